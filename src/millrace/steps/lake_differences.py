"""The differences of a table in PostgreSQL and an asset of the lake: digests first, then segments, then rows.

Both sides hash alike, so rows are told apart by the hash of their key, and compared by the hash of each column. What is
shown of a value is each side's own text. Memory holds the hashes of some segments at a time.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from psycopg import sql

from millrace.core.schema import Schema
from millrace.core.segment import Segment
from millrace.errors import ContractBroken, KeyInvalid
from millrace.postgres.diff import ColumnDiff, RowDiff, Side, TableDiff
from millrace.postgres.digest import row_hash
from millrace.postgres.keys import check_key
from millrace.postgres.parts import any_of
from millrace.postgres.reader import PostgresSnapshot, digest_segments
from millrace.postgres.segments import key_hash, key_segments
from millrace.postgres.session import translated
from millrace.postgres.source import Source
from millrace.postgres.types import hashed, text_form
from millrace.steps.routes.lake_scrub import LakeSide

if TYPE_CHECKING:
    import pyarrow as pa

SEGMENT_ROWS = 50_000
GROUP_ROWS = 200_000  # rows whose hashes are held at once: some 40 MB a side
FETCH = 10_000
Hashes = dict[int, int]


@dataclass(frozen=True, slots=True)
class _Pair:
    """Both sides, narrowed to the columns that both have."""

    source: Source
    snap: PostgresSnapshot
    side: LakeSide

    @property
    def key(self) -> Sequence[str]:
        return self.side.schema.key


def diff_lake(
    source: Source,
    snap: PostgresSnapshot,
    side: LakeSide,
    right: str,
    *,
    key: Sequence[str] = (),
    limit: int = 20,
    changes: Source | None = None,
) -> TableDiff:
    """Compare a table with an asset.

    Args:
        source: the left side, in the snapshot.
        snap: its connection is used.
        side: the right side.
        right: what messages call it.
        key: key columns; by default the asset's, else the table's primary key.
        limit: most rows to show.
        changes: rows of the left that are known to be newer than the asset; those that differ count as behind.

    Raises:
        ContractBroken: no column in common, or one that is hashed in different ways.
        KeyInvalid: they differ and there is no key, or it does not tell rows apart.
    """
    schema = side.schema
    names = [name for name in source.names if name in schema.names]
    _check_columns(source, schema, names, right)
    wanted = tuple(key) or schema.key or source.key
    narrow = Schema(tuple(schema[name] for name in names), wanted if set(wanted) <= set(names) else ())
    pair = _Pair(source.only(source.pick(names)), snap, replace(side, schema=narrow))
    whole = Segment.whole()
    one = dict(digest_segments(snap.connection, pair.source, [whole]))[whole.id]
    two = pair.side.digests([whole])[whole.id]
    found = TableDiff(
        left=f"{source.label} in {source.database}",
        right=right,
        rows_left=one.rows,
        rows_right=two.rows,
        equal=one.rows,
        missing_left=tuple(name for name in schema.names if name not in names),
        missing_right=tuple(name for name in source.names if name not in names),
    )
    if one == two:
        return found
    if not narrow.key:
        raise KeyInvalid(
            f"{source.label} and {right} differ, and no key tells which rows belong together",
            hint="name the key columns: --key id",
        )
    check_key(snap.connection, source, narrow.key)
    segments = key_segments(snap.connection, pair.source, pair.source.pick(narrow.key), SEGMENT_ROWS)
    ours = dict(digest_segments(snap.connection, pair.source, segments, narrow.key))
    theirs = pair.side.digests(segments)
    different = [segment for segment in segments if ours[segment.id] != theirs[segment.id]]
    return _rows(replace(found, key=tuple(narrow.key)), pair, different, limit, changes)


def _check_columns(source: Source, schema: Schema, names: Sequence[str], right: str) -> None:
    if not names:
        raise ContractBroken(f"{source.label} and {right} have no column in common")
    other = [name for name in names if hashed(source[name]) != schema[name].hashed]
    if other:
        raise ContractBroken(
            f"{source.label} and {right} cannot be compared: columns have other types",
            detail=[f"{name}: {source[name].type} on the left, {schema[name].type} on the right" for name in other],
            hint="load the asset anew: millrace run --full-refresh",
        )


def _rows(found: TableDiff, pair: _Pair, segments: Sequence[Segment], limit: int, changes: Source | None) -> TableDiff:
    counts: dict[Side | None, int] = {None: 0, "left": 0, "right": 0}
    shown: dict[int, Side | None] = {}
    newer = _newer(pair, changes)
    behind = behind_left = 0
    for group in _groups(segments):
        left, right = _left(pair, group), _right(pair, group)
        for name in left.keys() | right.keys():
            if left.get(name) == right.get(name):
                continue
            side: Side | None = "left" if name not in right else "right" if name not in left else None
            if name in newer:
                behind += 1
                behind_left += side != "right"
                continue
            counts[side] += 1
            if len(shown) < limit:
                shown[name] = side
    rows = _shown(pair, segments, shown) if shown else []
    return replace(
        found,
        equal=found.rows_left - counts[None] - counts["left"] - behind_left,
        differing=counts[None],
        only_left=counts["left"],
        only_right=counts["right"],
        behind=behind,
        rows=tuple(rows),
    )


def _groups(segments: Sequence[Segment]) -> Iterator[list[Segment]]:
    group: list[Segment] = []
    for segment in segments:
        group.append(segment)
        if sum(max(1, one.rows) for one in group) >= GROUP_ROWS:
            yield group
            group = []
    if group:
        yield group


def _newer(pair: _Pair, changes: Source | None) -> frozenset[int]:
    """Return the key hashes of rows that changed since the asset was loaded."""
    if changes is None:
        return frozenset()
    query = changes.select([key_hash(pair.source.pick(pair.key))])
    with translated(changes.database, f"read the changes of {changes.label}", connection=pair.snap.connection):
        return frozenset(row[0] for row in pair.snap.connection.execute(query))


def _left(pair: _Pair, segments: Sequence[Segment]) -> Hashes:
    key = pair.source.pick(pair.key)
    query = pair.source.select([key_hash(key), row_hash(pair.source.columns)], any_of(segments, key))
    connection = pair.snap.connection
    with (
        translated(pair.source.database, f"compare {pair.source.label}", connection=connection),
        connection.cursor(name="millrace_diff") as cursor,
    ):
        cursor.itersize = FETCH
        return dict(cursor.execute(query))


def _right(pair: _Pair, segments: Sequence[Segment]) -> Hashes:
    """Return the asset's rows as its source should be: fixed rows taken out, rows in quarantine put in."""
    found = _hashes(pair, pair.side.files, segments)
    for name, row in _hashes(pair, pair.side.fixes, segments).items():
        if found.get(name) == row:
            del found[name]
    return found | _hashes(pair, pair.side.entries, segments) | _given(pair, segments)


def _given(pair: _Pair, segments: Sequence[Segment]) -> Hashes:
    """Return the rows in quarantine that do not fit the lake."""
    from millrace.lake.quarantine import DIGEST
    from millrace.lake.rowhash import record_hashes
    from millrace.lake.segments import key_of

    found: Hashes = {}
    for batch in _batches(pair, pair.side.unfit, segments, (*pair.key, DIGEST)):
        keys = record_hashes(batch, key_of(pair.side.schema)).view("<i8").tolist()
        found.update(zip(keys, map(int, batch.column(DIGEST).to_pylist()), strict=True))
    return found


def _hashes(pair: _Pair, files: Sequence[str], segments: Sequence[Segment]) -> Hashes:
    found: Hashes = {}
    for batch in _batches(pair, files, segments):
        found.update(zip(*_both(batch, pair.side.schema), strict=True))
    return found


def _batches(
    pair: _Pair, files: Sequence[str], segments: Sequence[Segment], columns: Sequence[str] = ()
) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    from millrace.lake import segments as lake

    side, schema = pair.side, pair.side.schema
    for batch in lake.batches(side.engine, files, schema, columns or schema.names, segments, only=side.only):
        yield batch.filter(pa.array(lake.places(batch, schema, segments) >= 0))


def _both(batch: pa.RecordBatch, schema: Schema) -> tuple[list[int], list[int]]:
    from millrace.lake.rowhash import hash_rows, record_hashes
    from millrace.lake.segments import key_of

    return record_hashes(batch, key_of(schema)).view("<i8").tolist(), hash_rows(batch, schema).view("<i8").tolist()


# rows side by side


@dataclass(frozen=True, slots=True)
class _Row:
    """One row: each column's text and hash."""

    texts: Mapping[str, str | None]
    hashes: Mapping[str, int]


def _shown(pair: _Pair, segments: Sequence[Segment], rows: Mapping[int, Side | None]) -> list[RowDiff]:
    left, right = _left_rows(pair, segments, list(rows)), _right_rows(pair, segments, rows.keys())
    found = []
    for name, only in rows.items():
        one, two = left.get(name), right.get(name)
        some = one or two
        if some is None:
            continue
        columns = tuple(
            ColumnDiff(column, one.texts[column] if one else None, two.texts[column] if two else None)
            for column in pair.source.names
            if one is None or two is None or one.hashes[column] != two.hashes[column]
        )
        found.append(RowDiff(tuple((column, str(some.texts[column])) for column in pair.key), only, columns))
    return sorted(found, key=lambda row: [_order(value) for _, value in row.key])


def _order(text: str) -> tuple[bool, int, str]:
    number = text.removeprefix("-").isdecimal()
    return not number, int(text) if number else 0, text


def _left_rows(pair: _Pair, segments: Sequence[Segment], names: Sequence[int]) -> dict[int, _Row]:
    key, columns = pair.source.pick(pair.key), pair.source.columns
    one = sql.SQL("{} = any({})").format(key_hash(key), sql.Literal(list(names)))
    where = any_of(segments, key)
    query = pair.source.select(
        [key_hash(key), *map(text_form, columns), *(key_hash([column]) for column in columns)],
        one if where is None else sql.SQL("({}) and {}").format(where, one),
    )
    with translated(pair.source.database, f"read rows of {pair.source.label}", connection=pair.snap.connection):
        rows = pair.snap.connection.execute(query).fetchall()
    size = len(columns) + 1
    return {
        row[0]: _Row(
            dict(zip(pair.source.names, row[1:size], strict=True)),
            dict(zip(pair.source.names, row[size:], strict=True)),
        )
        for row in rows
    }


def _right_rows(pair: _Pair, segments: Sequence[Segment], names: Collection[int]) -> dict[int, _Row]:
    import pyarrow as pa

    from millrace.lake.rowhash import record_hashes

    schema = pair.side.schema
    found: dict[int, _Row] = {}
    for files in (pair.side.files, pair.side.entries):
        for batch in _batches(pair, files, segments):
            keys = _both(batch, schema)[0]
            wanted = batch.filter(pa.array([name in names for name in keys], pa.bool_()))
            if not wanted.num_rows:
                continue
            hashes = {
                column.name: record_hashes(wanted, Schema((column,))).view("<i8").tolist() for column in schema.columns
            }
            kept = [name for name in keys if name in names]
            for place, row in enumerate(wanted.to_pylist()):
                texts = {column: _text(value) for column, value in row.items()}
                found[kept[place]] = _Row(texts, {column: values[place] for column, values in hashes.items()})
    return found


def _text(value: Any) -> str | None:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, bytes):
        return f"\\x{value.hex()}"
    if isinstance(value, dt.datetime):
        return value.isoformat(sep=" ")
    return None if value is None else str(value)
