"""Segments: disjoint parts that together are the whole table, named so that a later attempt finds them again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

SegmentId = str
How = Literal["all", "pages", "range", "bucket", "changes", "file"]


@dataclass(frozen=True, slots=True)
class Segment:
    """One part of a table.

    Attributes:
        id: stable name, like `pages:0-8191` or `bucket:17/64`; the same id means the same predicate.
        how: `all` rows; heap `pages` [lower, upper) of the source; a `range` [lower, upper) of an integer key;
            hash `bucket` number `lower` of `upper` buckets of the key; the `changes` since a position; one `file`.
        lower, upper: bounds by `how`; None is open. Numbers, or a file's name in `lower`.
        rows: estimated rows, for progress only.
    """

    id: SegmentId
    how: How
    lower: int | str | None = None
    upper: int | None = None
    rows: int = 0

    @classmethod
    def whole(cls, rows: int = 0) -> Segment:
        """Return the segment that is the whole table."""
        return cls("all", "all", rows=rows)

    @classmethod
    def pages(cls, lower: int, upper: int | None, rows: int = 0) -> Segment:
        """Return heap pages [lower, upper); the last one is open, so that pages added meanwhile belong to it."""
        return cls(f"pages:{lower}-{'' if upper is None else upper}", "pages", lower, upper, rows)

    @classmethod
    def range(cls, lower: int | None, upper: int | None, rows: int = 0) -> Segment:
        """Return the integer keys in [lower, upper)."""
        name = f"range:{'' if lower is None else lower}:{'' if upper is None else upper}"
        return cls(name, "range", lower, upper, rows)

    @classmethod
    def bucket(cls, number: int, buckets: int, rows: int = 0) -> Segment:
        """Return one of `buckets` hash buckets of the key."""
        return cls(f"bucket:{number}/{buckets}", "bucket", number, buckets, rows)

    def to_json(self) -> dict[str, Any]:
        """Return the segment as JSON types."""
        return {"id": self.id, "how": self.how, "lower": self.lower, "upper": self.upper, "rows": self.rows}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Segment:
        """Read what `to_json` wrote."""
        return cls(data["id"], data["how"], data["lower"], data["upper"], data["rows"])
