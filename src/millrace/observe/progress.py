"""Reporters of a run for people and programs: a live terminal, plain lines for pipes, JSON events."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from millrace.core.plan import Plan, Step
from millrace.core.ports import Reporter
from millrace.core.secrets import redact
from millrace.core.staged import CheckResult
from millrace.observe import lines
from millrace.observe.redaction import clean
from millrace.observe.shapes import Observer, OutcomeSeen, ResultSeen, RunSeen, Several

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.live import Live
    from rich.text import Text

SPOKEN = ("retry", "restored", "left")  # the rest of what is said belongs in the log
STYLES: dict[lines.Tone, str] = {
    "good": "green",
    "warned": "yellow",
    "bad": "red",
    "quiet": "bright_black",
    "plain": "",
}
BAR = 10  # at 80 columns rate and time left still fit
REFRESHES = 8  # per second; more is not seen and costs CPU that the copy needs


def observer(
    form: str = "terminal", *, logs: Path | None = None, root: Path | None = None, stream: IO[str] | None = None
) -> Observer:
    """Return who watches a run of a command.

    Args:
        form: `terminal` (live, or plain lines when it is none), `brief` (the same without a run's first and last line,
            of which there are many), `plain`, `rich`, `json` (events on standard error: standard output belongs to the
            result), `json-log` (log lines on standard error), `silent`.
        logs: folder of the JSON logs, one file per run.
        root: the project's folder; a run of a project can be resumed.
        stream: instead of standard output, and of standard error for the errors at the end.
    """
    several: list[Observer] = []
    resume = "millrace run --resume {run}" if root is not None else None
    if form == "json":
        several.append(JsonReporter(stream or sys.stderr))
    elif form not in ("silent", "json-log"):
        shown = "auto" if form in ("terminal", "brief") else form
        errors, brief = stream or sys.stderr, form == "brief"
        several.append(reporter_for(stream or sys.stdout, form=shown, resume=resume, errors=errors, brief=brief))
    if logs is not None or form == "json-log":
        from millrace.observe.logs import LogObserver

        several.append(LogObserver(logs, stderr=form == "json-log"))
    return Several(*several)


def reporter_for(
    stream: IO[str],
    *,
    form: str = "auto",
    resume: str | None = None,
    errors: IO[str] | None = None,
    brief: bool = False,
) -> Observer:
    """Return the reporter that fits a stream.

    Args:
        stream: standard output or error.
        form: `auto`: live on a terminal, plain lines otherwise; or `rich`, `plain`, `json`.
        resume: command that takes up an unfinished run, with `{run}` in it.
        errors: where the errors are told at the end; None: in the stream.
        brief: leave a run's first and last line out.
    """
    if form == "json":
        return JsonReporter(stream)
    live = stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb")
    if form == "rich" or (form == "auto" and live):
        return RichReporter(stream, resume=resume, errors=errors, brief=brief)
    return PlainReporter(stream, resume=resume, errors=errors, brief=brief)


class PlainReporter:
    """One plain line per finished step, for pipes and logs of other tools; never cut."""

    def __init__(
        self, stream: IO[str], *, resume: str | None = None, errors: IO[str] | None = None, brief: bool = False
    ) -> None:
        self._brief = brief
        self._stream = stream
        self._errors = errors or stream
        self._resume = resume
        self._label = lines.LABEL_LEAST

    def start_run(self, run: RunSeen, plan: Plan) -> None:
        """See `shapes.Observer`."""
        self._label = lines.label_width(plan, None)
        if not self._brief:
            self._print(f"{lines.header(run)}\n")

    def step_started(self, step: Step) -> Reporter:
        """See `shapes.Observer`."""
        return Quiet()

    def step_finished(self, step: Step, outcome: OutcomeSeen) -> None:
        """See `shapes.Observer`."""
        self._print("".join(lines.columns(lines.line(outcome), self._label)[:2]), lines.line(outcome).note)

    def say(self, event: str, text: str, step: Step | None = None) -> None:
        """See `shapes.Observer`."""
        if event in SPOKEN:
            self._print(redact(f" {event:<{lines.KIND}}  {step.label + '  ' if step else ''}{text}"))

    def end_run(self, result: ResultSeen) -> None:
        """See `shapes.Observer`."""
        for block in lines.error_blocks(result):
            self._print(f"\n{block}", stream=self._errors)  # the blank line too: what a pipe gets has no gaps
        if not self._brief:
            self._print(f"\n{lines.closing(result, self._resume)}")

    def close(self) -> None:
        """See `shapes.Observer`."""

    def _print(self, *parts: str, stream: IO[str] | None = None) -> None:
        to = stream or self._stream
        with contextlib.suppress(BrokenPipeError):  # `| head` must not end a run
            to.write(" ".join(parts).rstrip(" ") + "\n")
            to.flush()


class JsonReporter:
    """One JSON object per event."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def start_run(self, run: RunSeen, plan: Plan) -> None:
        """See `shapes.Observer`."""
        names = ("id", "project", "env", "pipeline", "logical_time", "resumed")
        self._print(
            "run_started", {name: getattr(run, name) for name in names} | {"steps": [s.key for s in plan.steps]}
        )

    def step_started(self, step: Step) -> Reporter:
        """See `shapes.Observer`."""
        self._print("step_started", {"key": step.key, "kind": step.kind, "label": step.label})
        return Quiet()

    def step_finished(self, step: Step, outcome: OutcomeSeen) -> None:
        """See `shapes.Observer`."""
        self._print("step_finished", outcome.to_json())

    def say(self, event: str, text: str, step: Step | None = None) -> None:
        """See `shapes.Observer`."""
        if event in SPOKEN:
            self._print(event, {"text": text, "key": step.key if step else None})

    def end_run(self, result: ResultSeen) -> None:
        """See `shapes.Observer`."""
        self._print("run_ended", result.to_json())

    def close(self) -> None:
        """See `shapes.Observer`."""

    def _print(self, event: str, facts: dict[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._stream.write(json.dumps(clean({"event": event, **facts}), ensure_ascii=False) + "\n")
            self._stream.flush()


class Quiet:
    """A Reporter that says nothing."""

    def total(self, rows: int | None) -> None:
        """See `core.ports.Reporter`."""

    def moved(self, rows: int, size: int) -> None:
        """See `core.ports.Reporter`."""

    def note(self, text: str) -> None:
        """See `core.ports.Reporter`."""

    def checks(self, results: Sequence[CheckResult]) -> None:
        """See `core.ports.Reporter`."""


class RichReporter:
    """A line that moves for each running step, and finished lines above it."""

    def __init__(
        self,
        stream: IO[str],
        *,
        resume: str | None = None,
        width: int | None = None,
        errors: IO[str] | None = None,
        brief: bool = False,
    ) -> None:
        from rich.console import Console

        self._brief = brief
        self._console = Console(file=stream, highlight=False, markup=False, emoji=False, width=width)
        self._errors = self._console
        if errors is not None and errors is not stream:
            self._errors = Console(file=errors, highlight=False, markup=False, emoji=False, width=width)
        self._resume = resume
        self._label = lines.LABEL_LEAST
        self._running: dict[str, Running] = {}
        self._live: Live | None = None

    def start_run(self, run: RunSeen, plan: Plan) -> None:
        """See `shapes.Observer`."""
        from rich.live import Live

        self._label = lines.label_width(plan, self._console.width)
        if not self._brief:
            self._print(f"{lines.header(run)}\n")
        self._live = Live(self, console=self._console, transient=True, refresh_per_second=REFRESHES)
        self._live.start()

    def step_started(self, step: Step) -> Reporter:
        """See `shapes.Observer`."""
        running = self._running[step.key] = Running(step)
        return running

    def step_finished(self, step: Step, outcome: OutcomeSeen) -> None:
        """See `shapes.Observer`."""
        from rich.cells import cell_len
        from rich.text import Text

        self._running.pop(step.key, None)
        line = lines.line(outcome)
        before, word, note = lines.columns(line, self._label)
        note = lines.fit_note(note, self._console.width - cell_len(f"{before}{word} "))
        text = Text.assemble(before, (word, STYLES[line.tone]), " ", note)
        text.truncate(self._console.width, overflow="ellipsis")
        self._print(text)

    def say(self, event: str, text: str, step: Step | None = None) -> None:
        """See `shapes.Observer`."""
        from rich.text import Text

        if event == "proven" and step is not None and step.key in self._running:
            self._running[step.key].rest(text)
        if event in SPOKEN:
            said = redact(f"{step.label + '  ' if step else ''}{text}")
            self._print(Text.assemble((f" {event:<{lines.KIND}}", "yellow"), "  ", said))

    def end_run(self, result: ResultSeen) -> None:
        """See `shapes.Observer`."""
        from rich.text import Text

        self.close()
        for block in lines.error_blocks(result):
            with contextlib.suppress(BrokenPipeError):
                self._errors.print(Text.assemble("\n", ("error", "red"), block.removeprefix("error")), soft_wrap=True)
        if not self._brief:
            self._print(f"\n{lines.closing(result, self._resume, self._console.width)}")

    def close(self) -> None:
        """End the moving line."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        self._running.clear()

    def _print(self, what: str | Text) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._console.print(what, soft_wrap=True)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Render the running steps; called by the live display."""
        for running in list(self._running.values()):
            yield running.text(self._label, options.max_width)


class Running:
    """A step under way, as a Reporter and as a line."""

    def __init__(self, step: Step) -> None:
        self._step = step
        self._lock = threading.Lock()
        self._since = time.monotonic()
        self._total: int | None = None
        self._rows = 0
        self._note = ""
        self._rested: tuple[float, str] | None = None

    def total(self, rows: int | None) -> None:
        """See `core.ports.Reporter`."""
        with self._lock:
            self._total = rows

    def moved(self, rows: int, size: int) -> None:
        """See `core.ports.Reporter`."""
        with self._lock:
            self._rows += rows

    def note(self, text: str) -> None:
        """See `core.ports.Reporter`."""
        with self._lock:
            self._note = redact(text)

    def checks(self, results: Sequence[CheckResult]) -> None:
        """See `core.ports.Reporter`."""

    def rest(self, why: str) -> None:
        """Stand still: the step is proven and waits."""
        with self._lock:
            self._rested = (time.monotonic() - self._since, why)

    def text(self, label: int, width: int) -> Text:
        """Return the line: a bar with rows per second and time left where rows are known."""
        from rich.cells import set_cell_size
        from rich.text import Text

        with self._lock:
            rows, total, note, rested = self._rows, self._total, self._note, self._rested
        seconds = time.monotonic() - self._since
        name = set_cell_size(lines.fit(redact(self._step.label), label), label)
        text = Text(f" {self._step.kind:<{lines.KIND}}  {name}  ", no_wrap=True)
        if rested is not None:
            text.append(f"{lines.duration(rested[0])}  {rested[1]}", STYLES["quiet"])
            text.truncate(width, overflow="ellipsis")
            return text
        if total:
            share = min(rows / total, 1.0)
            full = int(share * BAR)
            text.append("━" * full, "green")
            text.append("━" * (BAR - full), "bright_black")
            text.append(f" {share:4.0%}")
        if rows:
            text.append(f"  {lines.count(rows, 'row')}" if not total else "")
            text.append(f"  {rows / max(seconds, 0.1):,.0f} rows/s")
        if total and rows and rows < total:
            text.append(f"  {lines.left((total - rows) / (rows / max(seconds, 0.1)))}")
        elif not total or rows >= total:
            text.append(f"  {lines.duration(seconds)}")
        if note:
            text.append(f"  {note}")
        text.truncate(width, overflow="ellipsis")
        return text
