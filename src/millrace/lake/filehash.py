"""The digest of Parquet files, read back part by part in flat memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import groupby

import pyarrow as pa
import pyarrow.parquet as pq

from millrace.core.digest import Digest
from millrace.core.schema import Schema
from millrace.lake.rowhash import CHUNK, check_hashes, digest_batches, digest_table

PART_ROWS = 250_000  # rows that one thread takes at once
BATCH_BYTES = 16 << 20  # aimed size of what a thread holds decoded
SMALL_BYTES = 1 << 18  # decoded, of files that are hashed together: 300 rows alone cost 2 ms, nearly all of it calls


def _parts(path: str) -> Iterable[tuple[str, list[int], int, list[str]]]:
    """Yield parts of a file: path, row groups, rows in a batch, and columns to read as dictionaries."""
    metadata = pq.read_metadata(path)
    groups: list[int] = []
    rows = size = 0
    few: dict[str, bool] = {}
    for group in range(metadata.num_row_groups):
        found = metadata.row_group(group)
        groups.append(group)
        rows += found.num_rows
        size += found.total_byte_size
        for place in range(found.num_columns):
            column = found.column(place)
            # A plain text has four bytes for its length alone; under three a dictionary is: each text is hashed once.
            small = column.physical_type == "BYTE_ARRAY" and column.total_uncompressed_size < 3 * column.num_values
            few[column.path_in_schema] = small and few.get(column.path_in_schema, True)
        if rows >= PART_ROWS or group == metadata.num_row_groups - 1:
            batch = max(min(BATCH_BYTES * max(rows, 1) // max(size, 1), CHUNK), 64)
            yield path, groups, batch, [name for name, small in few.items() if small]
            groups, rows, size, few = [], 0, 0, {}


def _digest_part(part: tuple[str, list[int], int, list[str]], schema: Schema) -> Digest:
    path, groups, batch, dictionaries = part
    # Without pre_buffer a column chunk is read as it is decoded, not the whole row group at once.
    with pq.ParquetFile(path, pre_buffer=False, read_dictionary=dictionaries) as file:
        names = set(file.schema_arrow.names)
        wanted = [column.name for column in schema.columns if column.name in names]
        if not wanted:
            rows = sum(file.metadata.row_group(group).num_rows for group in groups)
            return digest_batches([pa.RecordBatch.from_pydict({"": pa.nulls(rows)})], schema)
        batches = file.iter_batches(batch, row_groups=groups, columns=wanted, use_threads=False)
        return digest_batches(batches, schema)


def _processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _bundles(paths: Sequence[str]) -> Iterator[list[str]]:
    """Yield the files, neighbours together that are small."""
    small: list[str] = []
    held = 0
    for path in paths:
        metadata = pq.read_metadata(path)
        size = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
        if size > SMALL_BYTES:
            yield [path]
            continue
        small.append(path)
        held += size
        if held > BATCH_BYTES:
            yield small
            small, held = [], 0
    if small:
        yield small


def _digest_together(paths: Sequence[str], schema: Schema) -> Digest:
    """Digest small files as if they were one."""
    found: list[pa.Table] = []
    for path in paths:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            names = set(file.schema_arrow.names)
            wanted = [column.name for column in schema.columns if column.name in names]
            rows = file.read(columns=wanted, use_threads=False).replace_schema_metadata()
            found.append(rows if wanted else pa.table({"": pa.nulls(file.metadata.num_rows)}))
    same = [pa.concat_tables(tables).combine_chunks() for _, tables in groupby(found, key=lambda rows: rows.schema)]
    return Digest.sum([digest_table(rows, schema) for rows in same], schema.shape)


def digest_files(paths: Sequence[str], schema: Schema, threads: int = 2) -> Digest:
    """Digest Parquet files by reading them back.

    Args:
        paths: the files; their `_millrace_*` columns and others that the schema does not name are left out.
        schema: columns in the order of the record, each with `hashed`.
        threads: files or parts of files that are read at once.

    Returns:
        The same digest as the server's over the same rows.

    Raises:
        ContractBroken: a column's Arrow type has no exact form of what was hashed on the server.
    """
    check_hashes(schema)

    def works() -> Iterator[Callable[[], Digest]]:
        for bundle in _bundles([str(path) for path in paths]):
            if len(bundle) > 1:
                yield partial(_digest_together, bundle, schema)
            else:
                yield from (partial(_digest_part, part, schema) for part in _parts(bundle[0]))

    threads = min(threads, _processors())  # on one processor two threads cost a fifth more than one
    with ThreadPoolExecutor(threads, thread_name_prefix="millrace-digest") as pool:
        return Digest.sum(pool.map(lambda work: work(), works()), schema.shape)
