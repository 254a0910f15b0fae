"""The words and columns of a run's lines; pure, so that terminal and pipe show the same."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from millrace.core.names import short_run
from millrace.core.plan import Plan
from millrace.core.secrets import redact
from millrace.observe.shapes import OutcomeSeen, ResultSeen, RunSeen

Tone = Literal["good", "warned", "bad", "quiet", "plain"]

KIND = 5  # copy, model, gate, page, load, dbt
AMOUNT = 12  # 999,999 rows; more take from the space after the label
SECONDS = 7  # 999.9 s; a longer step's line is wider
WORD = 9  # published
LABEL_LEAST = 13
NOTE_LEAST = 18  # a shorter rest of the line says nothing

QUARANTINED = re.compile(r"^([\d,]+) (?:row|line)s? → quarantine$")
ENDED = {"done": "done in", "failed": "failed after", "differs": "done in", "interrupted": "stopped after"}
ORDER = ("published", "passed", "fresh", "failed", "differs", "interrupted", "discarded", "skipped")


@dataclass(frozen=True, slots=True)
class Line:
    """One finished step: its columns, not yet aligned."""

    kind: str
    label: str
    amount: str
    seconds: str
    word: str
    tone: Tone
    note: str


def count(number: int, one: str, many: str | None = None) -> str:
    """Return a number with its unit: `1 row`, `120,418 rows`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def duration(seconds: float) -> str:
    """Return a duration in seconds with one decimal."""
    return f"{seconds:,.1f} s"


def left(seconds: float) -> str:
    """Return the time left in words: `4 s left`, `3 min left`."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s left"
    return f"{seconds / 60:.0f} min left" if seconds < 5400 else f"{seconds / 3600:.1f} h left"


def header(run: RunSeen) -> str:
    """Return the first line: ` shop · dev · daily · run 7f3a`."""
    parts = [run.project, run.env, run.pipeline, f"run {short_run(run.id)}" + (", resumed" if run.resumed else "")]
    return redact(" " + " · ".join(part for part in parts if part))


def closing(result: ResultSeen, resume: str | None, width: int | None = None) -> str:
    """Return the last line, or more where it does not fit.

    Args:
        result: the run.
        resume: command that takes an unfinished run up again, with `{run}` in it.
        width: terminal cells of a line.
    """
    counts = ", ".join(
        f"{'stopped' if status == 'interrupted' else status} {result.counts[status]}"
        for status in ORDER
        if result.counts.get(status)
    )
    text = f" {ENDED.get(result.status, result.status)} {duration(result.seconds)} · {counts}".rstrip(" ·")
    further = []
    if result.quarantined:
        further.append(f"{count(result.quarantined, 'row')} in quarantine: millrace quarantine list")
    if result.status != "done" and resume:
        further.append(f"go on with: {resume.format(run=short_run(result.run.id))}")
    for part in further:
        wide = width is not None and len(text.rpartition("\n")[2]) + 3 + len(part) > width
        text += f"\n {part}" if wide else f" · {part}"
    return text


def line(outcome: OutcomeSeen) -> Line:
    """Return the line of a finished step."""
    word, tone = _word(outcome)
    note = outcome.message.splitlines()[0] if outcome.message else ""
    if not note and outcome.status == "published":
        note = _changes(outcome)
    seconds = duration(outcome.seconds) if outcome.seconds >= 0.05 else ""
    return Line(outcome.kind, redact(outcome.label), _amount(outcome), seconds, word, tone, redact(note))


def _amount(outcome: OutcomeSeen) -> str:
    if outcome.kind == "dbt" and outcome.entries:
        return count(len(outcome.entries), "model")
    return "" if outcome.rows is None or outcome.kind in ("page", "gate") else count(outcome.rows, "row")


def _word(outcome: OutcomeSeen) -> tuple[str, Tone]:
    warned = any(not check.passed for check in outcome.checks)
    match outcome.status:
        case "published":
            if any(entry.level == "counted" for entry in outcome.entries):
                return "counted", "warned"
            if any(entry.level != "none" for entry in outcome.entries):
                return "proven", "warned" if warned else "good"
            return ("checked" if outcome.checks else "published"), "warned" if warned else "good"
        case "passed":
            return "passed", "warned" if warned else "good"
        case "failed" | "differs":
            return outcome.status, "bad"
        case "interrupted":
            return "stopped", "warned"
        case other:
            return other, "quiet" if other in ("fresh", "discarded", "skipped") else "plain"


def _changes(outcome: OutcomeSeen) -> str:
    """Say what the publish did to the target, unless all its rows are new."""
    inserted = sum(entry.counts.inserted for entry in outcome.entries)
    updated = sum(entry.counts.updated for entry in outcome.entries)
    deleted = sum(entry.counts.deleted for entry in outcome.entries)
    if not updated and not deleted:
        return ""
    if inserted and not updated and inserted == sum(entry.rows for entry in outcome.entries):
        return f"all replaced, {deleted:,} before"
    words = ((inserted, "new"), (updated, "changed"), (deleted, "deleted"))
    return ", ".join(f"{number:,} {word}" for number, word in words if number)


def label_width(plan: Plan, width: int | None) -> int:
    """Return the width of the label column: that of the longest label, less when the line is too narrow."""
    from rich.cells import cell_len

    longest = max([LABEL_LEAST, *(cell_len(step.label) for step in plan.steps)])
    if width is None:
        return longest
    rest = width - (1 + KIND + 2 + 1 + AMOUNT + 1 + SECONDS + 2 + WORD + 1) - NOTE_LEAST
    return max(LABEL_LEAST, min(longest, rest))


def columns(line: Line, label: int) -> tuple[str, str, str]:
    """Return what stands before the state word, the word, and the note, aligned.

    Args:
        line: the step.
        label: width of the label column in terminal cells.
    """
    from rich.cells import set_cell_size

    room = label + 1 + max(AMOUNT - len(line.amount), 0)  # of the label and the spaces before the amount
    if len(line.amount) > AMOUNT:
        room = max(label + 1 + AMOUNT - len(line.amount), LABEL_LEAST)
    before = f" {line.kind:<{KIND}}  {set_cell_size(fit(line.label, min(label, room - 1)), room)}"
    before += f"{line.amount} {line.seconds:>{SECONDS}}  "
    return before, f"{line.word:<{WORD}}", line.note


def fit(name: str, width: int) -> str:
    """Return a name, cut in its middle where it is wider than so many terminal cells: names differ at their ends.

    Args:
        name: like `warehouse/silver.customers`; what follows the last `/` or `.` goes last.
        width: terminal cells.
    """
    from rich.cells import cell_len, set_cell_size

    if cell_len(name) <= width:
        return name
    last = cell_len(re.split(r"[/.]", name)[-1])
    head = set_cell_size(name, max(2, min(width // 3, width - 1 - last))).rstrip()
    tail = name[len(head) :]
    while tail and cell_len(head) + 1 + cell_len(tail) > width:
        tail = tail[1:]
    return f"{head}…{tail}"


def fit_note(note: str, width: int) -> str:
    """Return a note for so many terminal cells: where it is wider, the parts that fit, rows in quarantine first."""
    from rich.cells import cell_len

    if cell_len(note) <= width:
        return note
    parts = [QUARANTINED.sub(r"\1 → quarantine", part) for part in note.split("; ")]
    first, *further = sorted(parts, key=lambda part: not part.endswith("→ quarantine"))
    for part in further:
        if cell_len(first) + 2 + cell_len(part) <= width:
            first += f"; {part}"
    return first


def error_blocks(result: ResultSeen) -> Sequence[str]:
    """Return the errors of a run as blocks; one that several steps share is told once."""
    blocks = [redact(f"error: {error}") for error in result.errors]
    return list(dict.fromkeys(blocks))
