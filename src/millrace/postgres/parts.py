"""Parts: what one COPY moves. A small segment by itself would cost a scan or a transaction too much.

Segments that differ are small, so that little moves; those of an integer key that lie side by side are joined, and
hash buckets, which no index finds, are read in as few scans as there are workers. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from psycopg import sql

from millrace.core.names import fingerprint
from millrace.core.segment import Segment, SegmentId
from millrace.postgres.catalog import PgColumn
from millrace.postgres.segments import bucket_expression, predicate

OR_LIMIT = 32  # up to so many ranges are found by an index, more by one scan
LOWEST = -(1 << 63)


@dataclass(frozen=True, slots=True)
class Part:
    """Segments that are copied together.

    Attributes:
        id: a segment's own id, or a name that tells exactly which segments these are.
        rows: estimated rows.
    """

    id: SegmentId
    segments: tuple[Segment, ...]

    @property
    def rows(self) -> int:
        """Estimated rows."""
        return sum(max(segment.rows, 0) for segment in self.segments)

    def predicate(self, key: Sequence[PgColumn]) -> sql.Composable | None:
        """Return the predicate of its rows; None when it is all."""
        return predicate(self.segments[0], key) if len(self.segments) == 1 else any_of(self.segments, key)


def alone(segments: Sequence[Segment]) -> list[Part]:
    """Return each segment as a part."""
    return [Part(segment.id, (segment,)) for segment in segments]


def gathered(segments: Sequence[Segment], rows: int, workers: int) -> list[Part]:
    """Join small segments: ranges in their order up to about `rows` rows, buckets into one part for each worker."""
    if not segments or segments[0].how not in ("range", "bucket"):
        return alone(segments)
    groups: list[list[Segment]] = []
    if segments[0].how == "bucket":
        groups = [list(segments[number::workers]) for number in range(min(max(workers, 1), len(segments)))]
    else:
        size = 0
        for segment in segments:
            if not groups or size >= rows:
                groups.append([])
                size = 0
            groups[-1].append(segment)
            size += segment.rows
    return [_part(group) for group in groups]


def _part(segments: Sequence[Segment]) -> Part:
    if len(segments) == 1:
        return Part(segments[0].id, tuple(segments))
    name = fingerprint(*(segment.id for segment in segments))
    return Part(f"{segments[0].id}+{len(segments) - 1}:{name}", tuple(segments))


def joined(segments: Sequence[Segment]) -> list[Segment]:
    """Return ranges with neighbours made one; other segments as they are."""
    found: list[Segment] = []
    for segment in segments:
        last = found[-1] if found else None
        if last is not None and segment.how == last.how == "range" and last.upper == segment.lower is not None:
            lower = None if last.lower is None else int(last.lower)
            found[-1] = Segment.range(lower, segment.upper, last.rows + segment.rows)
        else:
            found.append(segment)
    return found


def any_of(segments: Sequence[Segment], key: Sequence[PgColumn]) -> sql.Composable | None:
    """Return the predicate of the rows that are in any of the segments; None when that is all rows."""
    if not segments:
        return sql.SQL("false")
    if all(segment.how == "bucket" for segment in segments):
        buckets = segments[0].upper or 1
        if len(segments) == buckets:
            return None
        numbers = sql.Literal([int(segment.lower or 0) for segment in segments])
        return sql.SQL("{} = any({})").format(bucket_expression(key, buckets), numbers)
    ranges = joined(segments)
    if len(ranges) > OR_LIMIT:
        return _odd(ranges, key[0])
    parts = [predicate(segment, key) for segment in ranges]
    if any(part is None for part in parts):
        return None
    return sql.SQL("({})").format(sql.SQL(" or ").join(sql.SQL("({})").format(part) for part in parts if part))


def _odd(ranges: Sequence[Segment], column: PgColumn) -> sql.Composable:
    """Return one test for many ranges: a key lies in one of them when it has passed an odd number of their bounds."""
    bounds: list[int] = []
    for segment in ranges:
        bounds.append(LOWEST if segment.lower is None else int(segment.lower))
        if segment.upper is not None:
            bounds.append(segment.upper)
    return sql.SQL("pg_catalog.width_bucket({}::pg_catalog.int8, {}::pg_catalog.int8[]) % 2 = 1").format(
        column.identifier, sql.Literal(bounds)
    )
