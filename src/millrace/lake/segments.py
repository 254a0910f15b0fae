"""Segments of an asset's files: the digest of each in one pass, with the hashes that the source's server computes.

A segment is a range of one integer key, or a bucket of the key's hash: the same parts as on the source's side, so that
both can be compared without moving rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from millrace.core.digest import Digest
from millrace.core.schema import Schema
from millrace.core.segment import Segment, SegmentId
from millrace.errors import MillraceError
from millrace.lake.rowhash import CHUNK, hash_rows, record_hashes
from millrace.lake.sql import EVERY_ROW, Condition, Fragment, SqlEngine, fill, listed, quoted
from millrace.lake.table import arrow_schema, conform

Places = npt.NDArray[np.int64]

FILES = Fragment("read_parquet(?, union_by_name = true, hive_partitioning = false)")
ROWS = "select {columns} from {files} t where ({bounds}) and ({only})"
WITHOUT = "select {columns} from {files} t anti join {files} c using ({keys}) where ({bounds}) and ({only})"
BETWEEN = "({key} >= ? and {key} <= ?)"
BATCH_ROWS = 65_536
MOST_RANGES = 64  # more are told apart in Python only


def key_of(schema: Schema) -> Schema:
    """Return the key's columns as a schema of their own."""
    return Schema(tuple(schema[name] for name in schema.key), schema.key)


def places(batch: pa.RecordBatch, schema: Schema, segments: Sequence[Segment]) -> Places:
    """Return for each row the index of its segment, or -1 where it is in none.

    Args:
        batch: up to CHUNK rows with the key columns.
        schema: of the asset.
        segments: parts of one kind that do not overlap.
    """
    how = {segment.how for segment in segments}
    if how == {"all"} and len(segments) == 1:
        return np.zeros(batch.num_rows, np.int64)
    if how == {"bucket"}:
        buckets = segments[0].upper or 1
        table = np.full(buckets, -1, np.int64)
        for place, segment in enumerate(segments):
            table[int(segment.lower or 0)] = place
        found: Places = table[(record_hashes(batch, key_of(schema)) & np.uint64(buckets - 1)).astype(np.int64)]
        return found
    if how != {"range"}:
        raise MillraceError(f"segments of {', '.join(sorted(how))} cannot be told apart in files")
    return _in_ranges(batch.column(schema.key[0]), segments)


def _in_ranges(column: pa.Array, segments: Sequence[Segment]) -> Places:
    values = np.asarray(column.cast(pa.int64()).fill_null(0))
    order = sorted(range(len(segments)), key=lambda place: _low(segments[place]))
    lows = np.array([_low(segments[place]) for place in order], np.int64)
    slot = np.searchsorted(lows, values, side="right") - 1
    found: Places = np.append(np.array(order, np.int64), -1)[slot]
    tops = np.array([_high(segment) for segment in segments], np.int64)
    outside = (found >= 0) & (values > tops[found])
    found[outside | np.asarray(column.is_null())] = -1
    return found


def _low(segment: Segment) -> int:
    return int(np.iinfo(np.int64).min) if segment.lower is None else int(segment.lower)


def batches(
    engine: SqlEngine,
    files: Sequence[str],
    schema: Schema,
    columns: Sequence[str],
    segments: Sequence[Segment] = (),
    without: Sequence[str] = (),
    only: Condition = EVERY_ROW,
) -> Iterator[pa.RecordBatch]:
    """Yield some columns of files in the lake's types, up to CHUNK rows at once.

    Args:
        engine: a DuckDB connection.
        files: Parquet files with the asset's columns.
        schema: of the asset.
        columns: which of its columns; others are texts.
        segments: parts that are wanted; of ranges little else is read, of others everything is.
        without: files with keys whose rows are left out.
        only: which rows at all.
    """
    if not files:
        return
    bounds, ends = _bounds(schema, segments)
    wanted = listed(quoted(name, "t") for name in columns)
    keys = listed(map(quoted, schema.key))
    template = WITHOUT if without else ROWS
    query = fill(template, columns=wanted, files=FILES, keys=keys, bounds=bounds, only=only.text)
    types = arrow_schema(schema)
    plain = pa.schema([types.field(name) if name in types.names else pa.field(name, pa.string()) for name in columns])
    params = [list(files), *([list(without)] if without else []), *ends, *only.values]
    for batch in engine.sql(query, params=params).to_arrow_reader(BATCH_ROWS):
        fitted = conform(batch, plain, 0, 0, "the lake")
        for start in range(0, fitted.num_rows, CHUNK):
            yield fitted.slice(start, CHUNK)


def _bounds(schema: Schema, segments: Sequence[Segment]) -> tuple[Fragment, list[int]]:
    if not segments or any(segment.how != "range" for segment in segments) or len(segments) > MOST_RANGES:
        return Fragment("true"), []
    part = fill(BETWEEN, key=quoted(schema.key[0], "t"))
    ends = [end for segment in segments for end in (_low(segment), _high(segment))]
    return listed([part] * len(segments), " or "), ends


def _high(segment: Segment) -> int:
    return int(np.iinfo(np.int64).max) if segment.upper is None else segment.upper - 1


def digests(rows: Iterable[pa.RecordBatch], schema: Schema, segments: Sequence[Segment]) -> dict[SegmentId, Digest]:
    """Digest each segment of a stream of rows; rows in none of them are left out.

    Args:
        rows: batches of up to CHUNK rows with all columns.
        schema: of the asset; every column has its hash.
        segments: parts of one kind.
    """
    count = np.zeros(len(segments), np.int64)
    total = [0] * len(segments)
    for batch in rows:
        where = places(batch, schema, segments)
        inside = where >= 0
        if not inside.all():
            batch, where = batch.filter(pa.array(inside)), where[inside]
        hashes = hash_rows(batch, schema).view("<i8")
        count += np.bincount(where, minlength=len(segments))
        for part in np.unique(where):  # halves apart: each sum stays below 2^63
            one = hashes[where == part]
            total[part] += (int((one >> 32).sum()) << 32) + int((one & 0xFFFFFFFF).sum())
    return {
        segment.id: Digest(int(rows_), sum_, schema.shape)
        for segment, rows_, sum_ in zip(segments, count, total, strict=True)
    }


def sums(
    rows: Iterable[pa.RecordBatch], given: str, schema: Schema, segments: Sequence[Segment]
) -> dict[SegmentId, Digest]:
    """Digest each segment of a stream of rows whose digests stand in a column, as texts; see `digests`."""
    found = [Digest(0, 0, schema.shape)] * len(segments)
    for batch in rows:
        for place, text in zip(places(batch, schema, segments), batch.column(given).to_pylist(), strict=True):
            if place >= 0:
                found[place] += Digest(1, int(text), schema.shape)
    return {segment.id: digest for segment, digest in zip(segments, found, strict=True)}


def keys_in(
    engine: SqlEngine,
    files: Sequence[str],
    schema: Schema,
    segments: Sequence[Segment],
    without: Sequence[str],
    only: Condition = EVERY_ROW,
) -> pa.Table:
    """Return the keys of the rows of some files that are in some segments and not among the keys of other files."""
    types = arrow_schema(schema)
    wanted = pa.schema([types.field(name) for name in schema.key])
    rows = batches(engine, files, schema, schema.key, segments, without, only)
    found = [batch.filter(pa.array(places(batch, schema, segments) >= 0)) for batch in rows]
    return pa.Table.from_batches(found, schema=wanted)


def write(path: Path, rows: pa.Table) -> str:
    """Write rows into a file of the caller's scratch folder; returns its path."""
    import pyarrow.parquet as pq

    pq.write_table(rows, path)
    return str(path)
