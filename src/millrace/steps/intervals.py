"""A long interval of a backfill split into short ones, each of which is a publish of its own."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from itertools import pairwise

from millrace.errors import UsageError

MOST = 10_000
"""Intervals of one command."""
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def split(start: str | None, end: str | None, every: str) -> Sequence[tuple[str, str]]:
    """Return the intervals from `start` on and before `end`, in order; the last one may be shorter.

    Args:
        start, end: of the cursor: dates or times, or whole numbers.
        every: how long each is: a duration (`1d`, `12h`) for times, a whole number for numbers.

    Raises:
        UsageError: an end is open, the interval is empty, something is no bound or no length, or they are too many.
    """
    if start is None or end is None:
        raise UsageError(
            "--every splits an interval with two ends", hint="like --from 2026-01-01 --to 2026-03-01 --every 1d"
        )
    if every.isdecimal() and int(every):
        return _numbers(start, end, int(every))
    number = every[:-1]
    if every[-1:] not in _SECONDS or not number.isdecimal() or len(number) > 9 or not int(number):
        raise UsageError(
            f"{every!r} is no length of an interval",
            hint="a duration like 1d, 7d, 12h or 30m, or a whole number for a cursor of numbers; none is zero",
        )
    return _times(start, end, dt.timedelta(seconds=int(number) * _SECONDS[every[-1]]))


def _numbers(start: str, end: str, step: int) -> Sequence[tuple[str, str]]:
    try:
        first, last = int(start), int(end)
    except ValueError:
        raise UsageError(
            f"{start} and {end} are no whole numbers, and --every {step} is one",
            hint="of times a duration says how long each interval is: --every 1d",
        ) from None
    _check(first < last, -(-(last - first) // step), start, end)
    return [(str(low), str(min(low + step, last))) for low in range(first, last, step)]


def _times(start: str, end: str, step: dt.timedelta) -> Sequence[tuple[str, str]]:
    first, last = _time(start), _time(end)
    if (first.tzinfo is None) != (last.tzinfo is None):
        raise UsageError(f"one of {start} and {end} has a time zone and the other has none")
    count = -(-(last - first) // step)
    _check(first < last, count, start, end)
    cuts = [*(first + number * step for number in range(count)), last]
    return [(_written(low), _written(high)) for low, high in pairwise(cuts)]


def _check(filled: bool, count: int, start: str, end: str) -> None:
    if not filled:
        raise UsageError(f"the interval is empty: it begins at {start} and ends before {end}")
    if count > MOST:
        raise UsageError(
            f"from {start} to {end} these are {count:,} intervals, and one command takes {MOST:,} at most",
            hint="longer ones (--every 1d), or a part of the whole",
        )


def _time(text: str) -> dt.datetime:
    try:
        return dt.datetime.fromisoformat(text.replace("/", "-"))
    except ValueError:
        raise UsageError(
            f"{text!r} is no date or time, which --every counts from",
            hint="write 2026-01-31 or 2026-01-31 12:00:00; of a cursor of numbers --every is a number",
        ) from None


def _written(moment: dt.datetime) -> str:
    midnight = moment.tzinfo is None and moment.time() == dt.time()
    return moment.date().isoformat() if midnight else moment.isoformat(" ")
