"""A backfill of a project split by interval: one run for each, in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from millrace.core.plan import Plan
from millrace.errors import UsageError

if TYPE_CHECKING:
    from millrace.app.house import House
    from millrace.engine.records import RunResult
    from millrace.engine.session import RunOptions


def run_intervals(
    house: House,
    plan: Plan,
    intervals: Sequence[tuple[str, str]],
    *,
    pipeline: str = "",
    logical_time: str | None = None,
    options: RunOptions | None = None,
    show_as: str = "brief",
) -> Iterator[RunResult]:
    """Run a plan's copies for each interval in their order; its other steps once, with the last one.

    A run that fails is the last. What is published stays: the same intervals again find it equal by one digest each.

    Args:
        house: the project.
        plan: of its copies without an interval.
        intervals: begin and end of each.
        pipeline, logical_time, options, show_as: as `House.run` takes them.

    Raises:
        UsageError: a copy has no cursor, or there is none.
    """
    copies = Plan(tuple(step for step in plan.steps if step.kind == "copy"))
    if not copies.steps:
        raise UsageError("no copy is selected, so there is no interval to split", hint="name some: --select raw.orders")
    for number, interval in enumerate(intervals, 1):
        part = house.of_interval(plan if number == len(intervals) else copies, *interval)
        result = house.run(part, pipeline=pipeline, logical_time=logical_time, options=options, show_as=show_as)
        yield result
        if result.exit_code:
            return
