"""How `millrace plan` is shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from millrace.cli import show
from millrace.core.plan import Freshness, Step
from millrace.errors import MillraceError

REASON = 60  # cells of a line that a terminal keeps for kind and reason


def plan_json(explained: Sequence[tuple[Step, Freshness | MillraceError]]) -> list[dict[str, Any]]:
    """Return a plan as JSON types."""
    return [
        {**step.to_json(), "error": found.to_json()}
        if isinstance(found, MillraceError)
        else {
            **step.to_json(),
            "fresh": found.fresh,
            "reason": found.reason,
            "rows": found.rows,
            "publishes": found.publishes,
            "proves": found.proves,
        }
        for step, found in explained
    ]


def print_plan(explained: Sequence[tuple[Step, Freshness | MillraceError]]) -> None:
    """Print one line a step: what, whether, why; and for those that run, how they publish and what they prove."""
    if not explained:
        show.out(" nothing to do: the project has no steps")
        return
    kinds = max(len("skip"), *(len(step.kind) for step, _ in explained))
    labels = max(show.cells(step.label) for step, _ in explained)
    if (room := show.room()) is not None:
        labels = max(show.LEAST, min(labels, room - REASON))
    fresh = unknown = 0
    for step, found in explained:
        if isinstance(found, MillraceError):
            unknown += 1
            line = f" {step.kind.ljust(kinds)}  {show.padded(step.label, labels)}  unknown: {show.plain(found.what)}"
            show.out(show.painted(line, "red"))
            continue
        if found.fresh:
            fresh += 1
            line = f" {'skip'.ljust(kinds)}  {show.padded(step.label, labels)}  fresh: {found.reason}"
            show.out(show.painted(line, "grey"))
            continue
        rows = f"  ≈ {show.count(found.rows, 'row')}" if found.rows is not None else ""
        show.out(f" {step.kind.ljust(kinds)}  {show.padded(step.label, labels)}  because {found.reason}{rows}")
        more = "; ".join(part for part in (found.publishes, f"proves: {found.proves}" if found.proves else "") if part)
        if more:
            inset = kinds + 3 + labels + 2
            if room is not None and inset + show.cells(more) > room:  # below the label, where it fits sooner
                inset = kinds + 3
            show.out(show.painted(" " * inset + more, "grey"))
    more = f", {unknown} unknown" if unknown else ""
    show.out()
    show.out(f" {show.count(len(explained) - fresh - unknown, 'step')} would run, {fresh} fresh{more}")
