"""Backfills split by interval, as `millrace run` and `millrace copy` show them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from millrace.cli import show

if TYPE_CHECKING:
    from millrace.app import CopyOptions, House
    from millrace.core.plan import Plan
    from millrace.engine.session import RunOptions


def run_each(
    house: House,
    plan: Plan,
    bounds: tuple[str | None, str | None, str],
    pipeline: str,
    at: str | None,
    options: RunOptions,
    *,
    json: bool,
) -> int:
    """Run a plan for each interval; return the exit code.

    Args:
        house, plan, pipeline, at, options: as `app.run_intervals` takes them.
        bounds: from, to and every.
        json: print a list of results, each with its interval.

    Raises:
        UsageError: see `steps.intervals.split`.
    """
    from millrace.app import run_intervals
    from millrace.steps.intervals import split

    intervals, since = split(*bounds), time.monotonic()
    results = run_intervals(
        house,
        plan,
        intervals,
        pipeline=pipeline,
        logical_time=at,
        options=options,
        show_as="silent" if json else "brief",
    )
    told: list[dict[str, Any]] = []
    published = code = 0
    for number, (start, end) in enumerate(intervals, 1):
        if not json:
            _announce(number, len(intervals), start, end)
        result = next(results)
        told.append({"from": start, "to": end, **result.to_json()})
        published += bool(result.counts["published"])
        if code := result.exit_code:
            break
    if json:
        show.as_json(told)
    else:
        _end(len(told), len(intervals), published, since, whole=not code)
    return code


def copy_each(
    source: str,
    table: str,
    target: str,
    into: str,
    options: CopyOptions,
    intervals: Sequence[tuple[str, str]],
    *,
    json: bool,
) -> None:
    """Copy each interval of a table; see `app.copy_intervals`. Raises what stopped one."""
    from millrace.app import copy_intervals

    since, published = time.monotonic(), 0
    outcomes = copy_intervals(source, table, target, into, options, intervals, show_progress=not json)
    told: list[dict[str, Any]] = []
    for number, (start, end) in enumerate(intervals, 1):
        if not json:
            _announce(number, len(intervals), start, end)
        try:
            outcome = next(outcomes)
        except Exception:
            if not json:
                _end(number, len(intervals), published, since, whole=False)
            raise
        told.append({"from": start, "to": end, **outcome.to_json()})
        published += outcome.published
    if json:
        show.as_json(told)
    else:
        _end(len(told), len(intervals), published, since, whole=True)


def _announce(number: int, count: int, start: str, end: str) -> None:
    show.out(show.painted(f" {number:,} of {count:,} · {start} … {end}", "grey"))


def _end(done: int, count: int, published: int, since: float, *, whole: bool) -> None:
    seconds = f"{time.monotonic() - since:,.1f} s"
    show.out()
    if whole:
        show.out(
            f" {show.count(count, 'interval')} in {seconds} · {published:,} published, {count - published:,} equal"
        )
    else:
        show.out(f" stopped at interval {done:,} of {count:,} after {seconds} · the same command goes on from there")
