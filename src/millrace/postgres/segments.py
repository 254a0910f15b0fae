"""Segments as SQL: predicates, the grouping of one scan into segments, and how a table is split.

Predicates and grouping are pure; `key_segments` asks the server where to cut. A key is canonical: integers are compared
as they are, every other key is split by the digest's own hash of it, which is the same on every server.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from psycopg import sql

from millrace.core.digest import SEED
from millrace.core.segment import Segment
from millrace.errors import KeyInvalid, MillraceError
from millrace.postgres.catalog import PgColumn, Relation
from millrace.postgres.session import Connection, translated
from millrace.postgres.source import Source
from millrace.postgres.types import digest_expression, hashed

MOST_PAGES = 65_536  # 512 MB of heap in one segment, so that wide rows do not make a resume start far back
MOST_SEGMENTS = 4_096  # a grouped scan keeps one numeric sum for each
SAMPLES = 64  # keys sampled for each segment: cuts are then within some 15 % of even
SAMPLED_PAGES = 400  # at least: rows of one page have keys close to each other, so that few pages say little


def predicate(segment: Segment, key: Sequence[PgColumn] = ()) -> sql.Composable | None:
    """Return the predicate of a segment's rows; None when it is all rows that the source gives."""
    match segment.how:
        case "all" | "changes" | "file":
            return None
        case "pages":
            return _between(sql.SQL("ctid"), _tid(segment.lower or 0), _tid(segment.upper))
        case "range":
            lower, upper = segment.lower, segment.upper
            return _between(
                _one_integer(key).identifier,
                None if lower is None else sql.Literal(lower),
                None if upper is None else sql.Literal(upper),
            )
        case "bucket":
            if segment.upper == 1:
                return None
            return sql.SQL("{} = {}").format(bucket_expression(key, segment.upper or 1), sql.Literal(segment.lower))


def _between(
    value: sql.Composable, lower: sql.Composable | None, upper: sql.Composable | None
) -> sql.Composable | None:
    parts = []
    if lower is not None:
        parts.append(sql.SQL("{} >= {}").format(value, lower))
    if upper is not None:
        parts.append(sql.SQL("{} < {}").format(value, upper))
    return sql.SQL(" and ").join(parts) if parts else None


def _tid(page: int | str | None) -> sql.Composable | None:
    return None if page is None else sql.SQL("{}::pg_catalog.tid").format(sql.Literal(f"({page},0)"))


def _one_integer(key: Sequence[PgColumn]) -> PgColumn:
    if len(key) != 1 or hashed(key[0]) != "int":
        raise MillraceError("key ranges need one integer key column")
    return key[0]


def key_hash(key: Sequence[PgColumn]) -> sql.Composable:
    """Return the canonical hash of a key: a signed 64-bit integer, equal on every server."""
    values = sql.SQL(", ").join(digest_expression(column) for column in key)
    return sql.SQL("pg_catalog.hash_record_extended(row({}), {}::pg_catalog.int8)").format(values, sql.Literal(SEED))


def bucket_expression(key: Sequence[PgColumn], buckets: int) -> sql.Composable:
    """Return the number of a row's bucket, 0 … buckets − 1; `buckets` is a power of two."""
    if buckets < 1 or buckets & (buckets - 1):
        raise MillraceError(f"the number of buckets must be a power of two, not {buckets}")
    if not key:
        raise KeyInvalid("buckets need a key")
    return sql.SQL("({} & {})").format(key_hash(key), sql.Literal(buckets - 1))


def group_expression(segments: Sequence[Segment], key: Sequence[PgColumn]) -> sql.Composable:
    """Return an expression that is the index of a row's segment, or null when it is in none of them.

    One scan then digests all of them. Heap pages have no such expression: their segments are read one by one, each
    page once.
    """
    how = {segment.how for segment in segments}
    if how == {"range"}:
        return _range_group(segments, _one_integer(key))
    if how == {"bucket"}:
        return _bucket_group(segments, key)
    if len(segments) == 1 and how <= {"all", "changes"}:
        return sql.SQL("0")
    raise MillraceError(f"segments of {', '.join(sorted(how))} cannot be grouped in one scan")


def _range_group(segments: Sequence[Segment], column: PgColumn) -> sql.Composable:
    value = sql.SQL("{}::pg_catalog.int8").format(column.identifier)
    bounds = sorted({int(cut) for s in segments for cut in (s.lower, s.upper) if cut is not None})
    if not bounds:
        return sql.SQL("0")
    # width_bucket counts the bounds at or below a value: slot 0 lies before the first of them
    slot = sql.SQL("pg_catalog.width_bucket({}, {}::pg_catalog.int8[])").format(value, sql.Literal(bounds))
    starts = {None: 0} | {bound: number for number, bound in enumerate(bounds, 1)}
    places: list[int | None] = [None] * (len(bounds) + 1)
    for place, segment in enumerate(segments):
        first = starts[None if segment.lower is None else int(segment.lower)]
        after = len(places) if segment.upper is None else starts[segment.upper]
        for number in range(first, after):
            if places[number] is not None:
                raise MillraceError(f"segments {segments[places[number] or 0].id} and {segment.id} overlap")
            places[number] = place
    return slot if places == list(range(len(segments))) else _looked_up(places, slot)


def _looked_up(places: Sequence[int | None], number: sql.Composable) -> sql.Composable:
    """Return the element of `places` at a number that counts from 0."""
    return sql.SQL("({}::pg_catalog.int4[])[{} + 1]").format(sql.Literal(list(places)), number)


def _bucket_group(segments: Sequence[Segment], key: Sequence[PgColumn]) -> sql.Composable:
    buckets = {segment.upper for segment in segments}
    if len(buckets) != 1:
        raise MillraceError("buckets of different numbers cannot be grouped in one scan")
    number = bucket_expression(key, buckets.pop() or 1)
    wanted = [int(segment.lower or 0) for segment in segments]
    if wanted == list(range(segments[0].upper or 1)):
        return number
    places: list[int | None] = [None] * (segments[0].upper or 1)
    for place, bucket in enumerate(wanted):
        places[bucket] = place
    return _looked_up(places, number)


def page_segments(relation: Relation, rows: int) -> list[Segment]:
    """Split a heap into ranges of pages of about `rows` rows; the last one is open at its end."""
    known = max(relation.rows, 0)
    density = known / relation.pages if relation.pages else 0.0
    step = round(rows / density) if density else MOST_PAGES
    step = max(1, min(step, MOST_PAGES), -(-relation.pages // MOST_SEGMENTS))
    cuts: list[int | None] = [*range(0, max(relation.pages, 1), step)]
    if len(cuts) > 1 and relation.pages - (cuts[-1] or 0) < step // 2:
        cuts.pop()  # a small rest goes with the part before it
    each = known // len(cuts)
    return [Segment.pages(lower or 0, upper, each) for lower, upper in pairwise([*cuts, None])]


def key_segments(connection: Connection, source: Source, key: Sequence[PgColumn], rows: int) -> list[Segment]:
    """Split by key into parts of about `rows` rows: ranges of one integer key, else hash buckets.

    The parts cover every possible key, so they also fit the other side of a copy.

    Raises:
        KeyInvalid: there is no key.
    """
    if not key:
        raise KeyInvalid(f"{source.label} has no key to split it by", hint="name one: key: [column, …]")
    with translated(source.database, f"split {source.label}", connection=connection):
        total = source.relation.rows if source.relation is not None and source.where is None else -1
        if total < 0:
            found = connection.execute(source.select([sql.SQL("pg_catalog.count(*)")])).fetchone()
            total = found[0] if found else 0
        wanted = min(MOST_SEGMENTS, max(1, round(total / rows)))
        if len(key) == 1 and hashed(key[0]) == "int":
            cuts = _integer_cuts(connection, source, key[0], wanted, total) if wanted > 1 else []
            each = total // (len(cuts) + 1)
            return [Segment.range(lower, upper, each) for lower, upper in pairwise([None, *cuts, None])]
    buckets = 1 << (wanted - 1).bit_length()
    return [Segment.bucket(number, buckets, total // buckets) for number in range(buckets)]


def _integer_cuts(connection: Connection, source: Source, key: PgColumn, wanted: int, total: int) -> list[int]:
    """Return where to cut an integer key: at quantiles of a sample, else evenly between lowest and highest."""
    pages = source.relation.pages if source.paged and source.relation is not None else 0
    if pages and total:
        share = min(100.0, max(100.0 * SAMPLES * wanted / total, 100.0 * SAMPLED_PAGES / pages))
        places = [place / wanted for place in range(1, wanted)]
        sample = sql.SQL(
            "select pg_catalog.count({key}), pg_catalog.percentile_disc({places}::float8[])"
            " within group (order by {key}) from {origin} tablesample system ({share}) repeatable (1)"
        )
        found = connection.execute(
            sample.format(
                key=key.identifier,
                places=sql.Literal(places),
                origin=source.origin,
                share=sql.Literal(share),
            )
        ).fetchone()
        if found is not None and found[0] >= 4 * wanted:
            return sorted({int(cut) for cut in found[1]})
    ends = [sql.SQL("pg_catalog.min({})"), sql.SQL("pg_catalog.max({})")]
    row = connection.execute(source.select([end.format(key.identifier) for end in ends])).fetchone()
    if row is None or row[0] is None:
        return []
    low, high = int(row[0]), int(row[1])
    return sorted({low + (high - low) * place // wanted for place in range(1, wanted)} - {low})
