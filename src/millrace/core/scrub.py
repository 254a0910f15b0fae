"""The rotating scrub: which parts of an incremental table were compared with its source, and when the next are due.

The parts are fixed ranges of the key, or buckets of its hash, that together are the whole table. When each was proven
last stands in the table's published position, so a killed run loses nothing and forgets nothing. Pure.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

from millrace.core.segment import Segment

EVERY = 7 * 86_400.0
"""Seconds within which every part of an incremental table is proven once, by default."""
MOST_PARTS = 64
"""They stand in every position: 64 are some 3 kB, and a run every three hours has one to prove in a week."""
GROWN = 1.5
"""A table that has grown so much is split anew, so that its last range does not become most of it."""


@dataclass(frozen=True, slots=True)
class Scrub:
    """When each part of a table was proven.

    Attributes:
        begun: when this was first kept, ISO 8601 UTC: what was never proven is as old as that.
        seen: the logical time of the last load.
        rows: rows of the table when it was split.
        how: the parts are ranges between `cuts`, or buckets of the key's hash.
        cuts: bounds of ranges, ascending.
        proven: for each part when it was proven, ISO 8601 UTC, or None.
    """

    begun: str
    seen: str
    rows: int = 0
    how: Literal["range", "bucket"] = "range"
    cuts: tuple[int, ...] = ()
    proven: tuple[str | None, ...] = (None,)

    @classmethod
    def whole(cls, now: str, *, proven: bool) -> Scrub:
        """Return the state of a table of one part."""
        return cls(now, now, proven=(now if proven else None,))

    def segments(self) -> list[Segment]:
        """Return the parts; together they are every key."""
        if len(self.proven) == 1:
            return [Segment.whole(self.rows)]
        each = self.rows // len(self.proven)
        if self.how == "bucket":
            return [Segment.bucket(number, len(self.proven), each) for number in range(len(self.proven))]
        return [Segment.range(lower, upper, each) for lower, upper in pairwise([None, *self.cuts, None])]

    def outgrown(self, rows: int, part_rows: int) -> bool:
        """Say whether the table should be split anew: into more parts, or because its last range holds too much."""
        wanted = min(MOST_PARTS, max(1, round(rows / part_rows)))
        return wanted > GROWN * len(self.proven) or (len(self.cuts) > 0 and rows > GROWN * max(self.rows, 1))

    def split(self, segments: Sequence[Segment], rows: int) -> Scrub:
        """Return the state over other parts: each was proven when the oldest part was that it overlaps.

        Args:
            segments: ranges or buckets that are every key.
            rows: rows of the table.
        """
        if len(segments) == 1:
            return replace(self, rows=rows, how="range", cuts=(), proven=(self._oldest(self.proven),))
        if segments[0].how == "bucket":
            known = self.proven if self.how == "bucket" or len(self.proven) == 1 else (self._oldest(self.proven),)
            finer = len(segments) % len(known) == 0
            times = tuple(known[n % len(known)] if finer else self._oldest(known) for n in range(len(segments)))
            return replace(self, rows=rows, how="bucket", cuts=(), proven=times)
        old = self.segments() if self.how == "range" else [Segment.whole()]
        known = self.proven if self.how == "range" else (self._oldest(self.proven),)
        times = tuple(
            self._oldest([time for time, part in zip(known, old, strict=True) if _overlap(part, segment)])
            for segment in segments
        )
        cuts = tuple(int(segment.upper) for segment in segments if segment.upper is not None)
        return replace(self, rows=rows, how="range", cuts=cuts, proven=times)

    @staticmethod
    def _oldest(times: Sequence[str | None]) -> str | None:
        return None if None in times else min(time for time in times if time is not None)

    def due(self, now: str, every: float) -> tuple[int, ...]:
        """Return which parts are to be proven in a run, the oldest first.

        They are as few as keep the ages evenly spread below `every`, also at the next run, which is expected after as
        long a time as has passed since the last.

        Args:
            now: the run's logical time, ISO 8601 UTC.
            every: seconds.
        """
        moment, count = instant(now), len(self.proven)
        ages = [max(0.0, (moment - instant(time or self.begun)).total_seconds()) for time in self.proven]
        window = every - max(0.0, (moment - instant(self.seen)).total_seconds())
        order = sorted(range(count), key=lambda part: (-ages[part], part))
        for number in range(count):
            left = [0.0] * number + [ages[part] for part in reversed(order[number:])]
            if all(age <= window * (place + 1) / count for place, age in enumerate(left)):
                return tuple(order[:number])
        return tuple(order)

    def next_due(self, every: float) -> dt.datetime:
        """Return when the next part is due."""
        times = sorted((instant(time or self.begun) for time in self.proven), reverse=True)
        step = dt.timedelta(seconds=every / len(times))
        return min(time + step * (place + 1) for place, time in enumerate(times))

    def after(self, parts: Collection[int], now: str) -> Scrub:
        """Return the state after a load at `now` that proved some parts."""
        proven = tuple(now if part in parts else time for part, time in enumerate(self.proven))
        return replace(self, seen=max(self.seen, now, key=instant), proven=proven)

    @property
    def since(self) -> str | None:
        """When the part was proven that waits longest: at or after it all of the table was. None: not all of it yet."""
        return self._oldest(self.proven)

    def share(self, since: dt.datetime) -> float:
        """Return the share of the parts that were proven at or after a time."""
        return sum(time is not None and instant(time) >= since for time in self.proven) / len(self.proven)

    def to_json(self) -> dict[str, Any]:
        """Return the state as JSON types."""
        return {
            "begun": self.begun,
            "seen": self.seen,
            "rows": self.rows,
            "how": self.how,
            "cuts": list(self.cuts),
            "proven": list(self.proven),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Scrub:
        """Read what `to_json` wrote."""
        return cls(**{**data, "cuts": tuple(data["cuts"]), "proven": tuple(data["proven"])})


def instant(time: str) -> dt.datetime:
    """Return an ISO 8601 text as an instant; what names no zone is UTC."""
    found = dt.datetime.fromisoformat(time)
    return found if found.tzinfo else found.replace(tzinfo=dt.UTC)


def _overlap(one: Segment, other: Segment) -> bool:
    def below(lower: int | str | None, upper: int | None) -> bool:
        return lower is None or upper is None or int(lower) < upper

    return below(one.lower, other.upper) and below(other.lower, one.upper)


def told_due(scrub: Scrub, now: str, every: float | None) -> str:
    """Return what `plan` says about the scrub: `scrub of 3 of 40 segments`, `scrub due in 3 days`, or nothing."""
    if every is None:
        return ""
    if due := scrub.due(now, every):
        return f"scrub of {of(len(due), len(scrub.proven))}"
    wait = (scrub.next_due(every) - instant(now)).total_seconds()
    for size, unit in ((86_400, "day"), (3_600, "hour"), (60, "minute")):
        if wait >= size:
            number = round(wait / size)
            return f"scrub due in {number} {unit}{'' if number == 1 else 's'}"
    return "scrub due soon"


def of(number: int, parts: int) -> str:
    """Return `3 of 40 segments`, or `the whole table`."""
    return "the whole table" if number == parts else f"{number} of {parts} segments"


def told(number: int, parts: int, *, missing: int, changed: int, deleted: int) -> str:
    """Return what a scrub found: `scrub: 3 of 40 segments, 2 rows deleted at the source`."""
    found = [
        f"{count:,} {'row' if count == 1 else 'rows'} {what}"
        for count, what in ((missing, "missing"), (changed, "changed"), (deleted, "deleted at the source"))
        if count
    ]
    return f"scrub: {of(number, parts)}, {', '.join(found) or 'equal'}"
