"""The differences of two tables on one or two servers: counts, and rows side by side.

First one digest per side, at the same time: equal digests end it, and no key is needed. Else both are digested by key
segments in one scan each, and of the segments that differ the keys and row hashes are streamed in key order and merged,
so memory does not grow with the tables. Types may differ: a column that is hashed in another way on the two sides is
compared as text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Literal

from psycopg import sql

from millrace.core.digest import Digest
from millrace.core.names import TableRef
from millrace.core.segment import Segment
from millrace.errors import ContractBroken, KeyInvalid
from millrace.postgres.catalog import PgColumn
from millrace.postgres.digest import row_hash
from millrace.postgres.keys import check_key
from millrace.postgres.reader import PostgresReader, PostgresSnapshot, digest_segments
from millrace.postgres.segments import group_expression, key_segments, predicate
from millrace.postgres.session import Database, translated
from millrace.postgres.source import Source
from millrace.postgres.types import as_text, hashed, text_form

SEGMENT_ROWS = 50_000  # a segment with one difference is streamed whole: 50,000 keys and hashes, some 50 ms
FETCH = 10_000  # rows of a server-side cursor's batch
CANCEL_SECONDS = 5.0
OR_LIMIT = 32  # up to so many differing ranges are found by index, more by one grouped scan

Side = Literal["left", "right"]


@dataclass(frozen=True, slots=True)
class ColumnDiff:
    """One value that differs; each as its server's text, None for null (or no row on that side)."""

    name: str
    left: str | None
    right: str | None


@dataclass(frozen=True, slots=True)
class RowDiff:
    """One row that differs, or is only on one side (then `columns` holds all that were compared).

    Attributes:
        key: (column, value as text) in the order of the key.
        only: the side that has it, or None when both have.
    """

    key: tuple[tuple[str, str], ...]
    only: Side | None
    columns: tuple[ColumnDiff, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the difference as JSON types."""
        return {
            "key": dict(self.key),
            "only": self.only,
            "columns": {column.name: {"left": column.left, "right": column.right} for column in self.columns},
        }


@dataclass(frozen=True, slots=True)
class TableDiff:
    """What differs between two tables.

    Attributes:
        left, right: what was compared.
        rows_left, rows_right: numbers of rows.
        equal, differing, only_left, only_right: numbers of rows; equal + differing + only_left = rows_left.
        rows: the first differences in key order, up to the limit.
        missing_left, missing_right: columns that only the other side has; they are not compared.
        types: (column, type left, type right) of columns whose types differ.
        key: key columns; empty when the digests were equal and none was needed.
        behind: rows that differ because they changed on the left since the right was loaded; not among the others.
    """

    left: str
    right: str
    rows_left: int
    rows_right: int
    equal: int
    differing: int = 0
    only_left: int = 0
    only_right: int = 0
    rows: tuple[RowDiff, ...] = ()
    missing_left: tuple[str, ...] = ()
    missing_right: tuple[str, ...] = ()
    types: tuple[tuple[str, str, str], ...] = ()
    key: tuple[str, ...] = ()
    behind: int = 0

    @property
    def same(self) -> bool:
        """Whether every row and every column is on both sides, equal (types may differ)."""
        return not (self.differing or self.only_left or self.only_right or self.missing_left or self.missing_right)

    def to_json(self) -> dict[str, Any]:
        """Return the differences as JSON types."""
        return {
            "left": self.left,
            "right": self.right,
            "rows_left": self.rows_left,
            "rows_right": self.rows_right,
            "equal": self.equal,
            "differing": self.differing,
            "only_left": self.only_left,
            "only_right": self.only_right,
            "rows": [row.to_json() for row in self.rows],
            "missing_left": list(self.missing_left),
            "missing_right": list(self.missing_right),
            "types": [list(row) for row in self.types],
            "key": list(self.key),
            "behind": self.behind,
            "same": self.same,
        }


@dataclass(frozen=True, slots=True)
class Half:
    """One side: its reader, open snapshot and source; to be compared, with the columns that both sides have."""

    reader: PostgresReader
    snap: PostgresSnapshot
    source: Source

    def digests(self, segments: Sequence[Segment], key: Sequence[str]) -> Mapping[str, Digest]:
        """Digest segments, on the snapshot's own connection."""
        return dict(digest_segments(self.snap.connection, self.source, segments, key))


def diff(
    left: tuple[Database, TableRef],
    right: tuple[Database, TableRef],
    key: Sequence[str] = (),
    limit: int = 20,
    *,
    where: str | None = None,
    segment_rows: int = SEGMENT_ROWS,
) -> TableDiff:
    """Compare two tables.

    Args:
        left, right: database and table.
        key: key columns; by default the primary key of the left, else of the right table.
        limit: most rows to show.
        where: a condition on both sides.
        segment_rows: aimed rows of a segment.

    Raises:
        KeyInvalid: the tables differ and there is no key, or it does not tell rows apart.
        ContractBroken: they have no column in common.
        ConnectionRefused, AuthenticationFailed, NotFound, PermissionMissing, TransientFailure.
    """
    with ExitStack() as stack:
        halves = []
        for database, table in (left, right):
            reader = PostgresReader(database)
            snap = stack.enter_context(reader.snapshot())
            halves.append(Half(reader, snap, reader.source(table, where=where, connection=snap.connection)))
        return diff_halves(halves[0], halves[1], key, limit, segment_rows=segment_rows)


def diff_halves(
    left: Half,
    right: Half,
    key: Sequence[str] = (),
    limit: int = 20,
    *,
    segment_rows: int = SEGMENT_ROWS,
    changes: Source | None = None,
) -> TableDiff:
    """Compare two sides whose snapshots are open: see `diff`.

    Args:
        left, right: the sides.
        key, limit, segment_rows: as `diff`.
        changes: rows of the left that are known to be newer than the right; those that differ count as behind.
    """
    full_left, full_right = left.source, right.source
    columns_left, columns_right, types = _common(full_left, full_right)
    halves = (
        replace(left, source=full_left.only(columns_left)),
        replace(right, source=full_right.only(columns_right)),
    )
    with ThreadPoolExecutor(2) as pool:

        def at_once(work: Callable[[Half], Any]) -> tuple[Any, Any]:
            futures = [pool.submit(work, half) for half in halves]
            try:
                done, _ = wait(futures, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
            except BaseException:  # one side failed, or Ctrl-C: the other's query is not waited for
                for half in halves:
                    half.snap.connection.cancel_safe(timeout=CANCEL_SECONDS)
                raise
            return futures[0].result(), futures[1].result()

        whole = Segment.whole()
        one, two = at_once(lambda half: half.digests([whole], ())[whole.id])
        found = TableDiff(
            left=f"{full_left.label} in {full_left.database}",
            right=f"{full_right.label} in {full_right.database}",
            rows_left=one.rows,
            rows_right=two.rows,
            equal=one.rows,
            missing_left=tuple(name for name in full_right.names if name not in full_left.names),
            missing_right=tuple(name for name in full_left.names if name not in full_right.names),
            types=types,
        )
        if (one.rows, one.total) == (two.rows, two.total):
            return found
        names = tuple(key) or full_left.key or full_right.key
        _check_keys(halves, (full_left, full_right), names, at_once)
        segments = _differing(halves, names, segment_rows, at_once)
        return _rows(replace(found, key=names), halves, names, segments, limit, _keys(halves[0], names, changes))


def _keys(left: Half, names: Sequence[str], changes: Source | None) -> frozenset[tuple[Any, ...]]:
    """Return the keys of some rows of the left, as `_stream` gives them."""
    if changes is None:
        return frozenset()
    query = changes.select([_key_value(column) for column in left.source.pick(names)])
    with translated(changes.database, f"read the changes of {changes.label}", connection=left.snap.connection):
        return frozenset(left.snap.connection.execute(query).fetchall())


def _common(
    left: Source, right: Source
) -> tuple[tuple[PgColumn, ...], tuple[PgColumn, ...], tuple[tuple[str, str, str], ...]]:
    """Return the columns of both sides in the left's order; those hashed in different ways as text."""
    names = [name for name in left.names if name in right.names]
    if not names:
        raise ContractBroken(f"{left.label} and {right.label} have no column in common")
    pairs = [(left[name], right[name]) for name in names]
    types = tuple((one.name, one.type, two.type) for one, two in pairs if one.type != two.type)
    pairs = [(one, two) if hashed(one) == hashed(two) else (as_text(one), as_text(two)) for one, two in pairs]
    return tuple(one for one, _ in pairs), tuple(two for _, two in pairs), types


def _check_keys(
    halves: tuple[Half, Half],
    full: tuple[Source, Source],
    names: Sequence[str],
    at_once: Callable[[Callable[[Half], Any]], tuple[Any, Any]],
) -> None:
    if not names:
        raise KeyInvalid(
            f"{full[0].label} and {full[1].label} differ, and no key tells which rows belong together",
            hint="name the key columns: --key id",
        )
    at_once(lambda half: check_key(half.snap.connection, full[halves.index(half)], names))


def _differing(
    halves: tuple[Half, Half],
    names: Sequence[str],
    rows: int,
    at_once: Callable[[Callable[[Half], Any]], tuple[Any, Any]],
) -> list[Segment]:
    """Return the key segments whose digests differ."""
    larger = max(halves, key=lambda half: half.source.relation.rows if half.source.relation else -1)
    segments = key_segments(larger.snap.connection, larger.source, larger.source.pick(names), rows)
    one, two = at_once(lambda half: half.digests(segments, names))
    return [
        segment
        for segment in segments
        if (one[segment.id].rows, one[segment.id].total) != (two[segment.id].rows, two[segment.id].total)
    ]


def _predicate(segments: Sequence[Segment], key: Sequence[PgColumn]) -> sql.Composable:
    if segments[0].how == "range" and len(segments) <= OR_LIMIT:
        parts = [predicate(segment, key) or sql.SQL("true") for segment in segments]
        return sql.SQL(" or ").join(sql.SQL("({})").format(part) for part in parts)
    return sql.SQL("{} is not null").format(group_expression(segments, key))


def _key_value(column: PgColumn) -> sql.Composable:
    """Return the key as it is sorted and merged: a number, or text whose order is that of its code points."""
    return column.identifier if hashed(column) == "int" else text_form(column)


def _stream(half: Half, names: Sequence[str], segments: Sequence[Segment]) -> Iterator[tuple[tuple[Any, ...], int]]:
    """Yield (key, row hash) of the segments in key order."""
    keys = half.source.pick(names)
    order = []
    for column in keys:
        value = _key_value(column)
        if hashed(column) == "int":
            order.append(value)
        elif column.encode:  # bytes of another encoding have another order
            order.append(sql.SQL("pg_catalog.convert_to({}, 'UTF8')").format(value))
        else:
            order.append(sql.SQL('{} collate pg_catalog."C"').format(value))
    query = sql.SQL("{} order by {}").format(
        half.source.select(
            [*(_key_value(column) for column in keys), row_hash(half.source.columns)], _predicate(segments, keys)
        ),
        sql.SQL(", ").join(order),
    )
    connection = half.snap.connection
    with (
        translated(half.source.database, f"compare {half.source.label}", connection=connection),
        connection.cursor(name="millrace_diff") as cursor,
    ):
        cursor.itersize = FETCH
        cursor.execute(query)
        for row in cursor:
            yield row[:-1], row[-1]


def _merge(
    left: Iterator[tuple[tuple[Any, ...], int]], right: Iterator[tuple[tuple[Any, ...], int]]
) -> Iterator[tuple[tuple[Any, ...], Side | None]]:
    """Yield (key, side) of the rows that differ; both sides come sorted by key."""
    one, two = next(left, None), next(right, None)
    while one is not None or two is not None:
        if two is None or (one is not None and one[0] < two[0]):
            assert one is not None  # noqa: S101 (one of the two is there)
            yield one[0], "left"
            one = next(left, None)
        elif one is None or two[0] < one[0]:
            yield two[0], "right"
            two = next(right, None)
        else:
            if one[1] != two[1]:
                yield one[0], None
            one, two = next(left, None), next(right, None)


def _rows(
    found: TableDiff,
    halves: tuple[Half, Half],
    names: Sequence[str],
    segments: Sequence[Segment],
    limit: int,
    newer: frozenset[tuple[Any, ...]],
) -> TableDiff:
    counts: dict[Side | None, int] = {None: 0, "left": 0, "right": 0}
    behind = behind_left = 0
    shown: list[tuple[tuple[Any, ...], Side | None]] = []
    if segments:
        for key, side in _merge(_stream(halves[0], names, segments), _stream(halves[1], names, segments)):
            if key in newer:
                behind += 1
                behind_left += side == "left" or side is None
                continue
            counts[side] += 1
            if len(shown) < limit:
                shown.append((key, side))
    left = _values(halves[0], names, [key for key, side in shown if side != "right"])
    right = _values(halves[1], names, [key for key, side in shown if side != "left"])
    return replace(
        found,
        equal=found.rows_left - counts[None] - counts["left"] - behind_left,
        behind=behind,
        differing=counts[None],
        only_left=counts["left"],
        only_right=counts["right"],
        rows=tuple(_row(key, side, names, halves[0].source.names, left, right) for key, side in shown),
    )


def _values(
    half: Half, names: Sequence[str], keys: Sequence[tuple[Any, ...]]
) -> dict[tuple[Any, ...], tuple[str | None, ...]]:
    """Return the texts of all columns of some rows, by key."""
    if not keys:
        return {}
    columns = half.source.pick(names)
    wanted = sql.SQL("({}) in ({})").format(
        sql.SQL(", ").join(column.identifier for column in columns),
        sql.SQL(", ").join(
            sql.SQL("({})").format(sql.SQL(", ").join(sql.Literal(str(value)) for value in key)) for key in keys
        ),
    )
    query = half.source.select(
        [*(_key_value(column) for column in columns), *(text_form(column) for column in half.source.columns)], wanted
    )
    with translated(half.source.database, f"read rows of {half.source.label}", connection=half.snap.connection):
        rows = half.snap.connection.execute(query).fetchall()
    return {tuple(row[: len(names)]): tuple(row[len(names) :]) for row in rows}


def _row(
    key: tuple[Any, ...],
    side: Side | None,
    names: Sequence[str],
    columns: Sequence[str],
    left: Mapping[tuple[Any, ...], tuple[str | None, ...]],
    right: Mapping[tuple[Any, ...], tuple[str | None, ...]],
) -> RowDiff:
    nothing: tuple[str | None, ...] = (None,) * len(columns)
    one, two = left.get(key, nothing), right.get(key, nothing)
    values = tuple(
        ColumnDiff(name, a, b) for name, a, b in zip(columns, one, two, strict=True) if side is not None or a != b
    )
    return RowDiff(tuple((n, str(v)) for n, v in zip(names, key, strict=True)), side, values)
