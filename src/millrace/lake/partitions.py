"""Partitions: one folder for each set of values of the partition columns, `event_date=2024-01-01/event_hour=7/`.

Contract: a data file's path says exactly which values its rows have, so nothing else has to remember them. The files
hold the partition columns too, which Delta allows: a file read by itself is whole, and the row digest is taken of what
lies in it. Readers of the Delta log take the values from there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date
from itertools import groupby
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from millrace.errors import ContractBroken
from millrace.lake.layout import LONGEST
from millrace.lake.table import grouped

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

NULL = "__HIVE_DEFAULT_PARTITION__"  # what Hive, Spark and DuckDB call the folder of nulls
MOST = 10_000  # partitions that one load may write: over a year of hours; each is a file at least


def split(batches: Iterable[pa.RecordBatch], columns: Sequence[str], asset: str) -> Iterator[tuple[str, pa.Table]]:
    """Yield the rows of some batches as tables of one row group each, with the folder that each belongs into.

    Args:
        batches: rows, those of one partition beside each other: where a partition comes again, so does its folder.
        columns: the partition columns; none: the folder is empty.
        asset: what errors name.

    Raises:
        ContractBroken: a value that no partition can have, or more partitions than MOST.
    """
    if not columns:
        yield from (("", table) for table in grouped(batches))
        return
    seen: set[str] = set()
    pieces = (piece for batch in batches for piece in _cut(batch, columns, asset))
    for folder, run in groupby(pieces, key=lambda piece: piece[0]):
        seen.add(folder)
        if len(seen) > MOST:
            raise ContractBroken(
                f"{asset}: its rows fall into more than {MOST:,} partitions ({', '.join(columns)})",
                hint="split by columns of fewer values: a day, a region",
            )
        yield from ((folder, table) for table in grouped(rows for _, rows in run))


def _cut(batch: pa.RecordBatch, columns: Sequence[str], asset: str) -> Iterator[tuple[str, pa.RecordBatch]]:
    """Yield the runs of rows of a batch that have equal values, and the folder of each."""
    import pyarrow.compute as pc

    arrays = [batch.column(name) for name in columns]
    start = 0
    for end in sorted({end for array in arrays for end in pc.run_end_encode(array).run_ends.to_pylist()}):
        texts = [_text(array[start], name, asset) for array, name in zip(arrays, columns, strict=True)]
        yield folder_of(dict(zip(columns, texts, strict=True)), asset), batch.slice(start, end - start)
        start = end


def _text(scalar: Any, name: str, asset: str) -> str | None:
    """Return a value as the Delta log writes it. Raises ContractBroken for what it cannot hold."""
    try:
        value = scalar.as_py()
    except (OverflowError, ValueError):
        raise ContractBroken(
            f"{asset}.{name}: a date outside of the years 1 to 9999 cannot be a partition", hint="make it null"
        ) from None
    if value == "":
        raise ContractBroken(
            f"{asset}.{name}: an empty text cannot be a partition, Delta would read it as null",
            hint=f"make it null: nullif({name}, '')",
        )
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, date):
        return value.isoformat()
    return None if value is None else str(value)


def folder_of(values: Mapping[str, str | None], asset: str) -> str:
    """Return the folder of some values, relative to the table's; `values_of` reads it back.

    Raises:
        ContractBroken: a value is too long for a folder's name.
    """
    parts = []
    for name, value in values.items():
        # the text that means null for others is a text like any other here
        text = NULL if value is None else quote(value, safe="").replace(NULL, f"%5F{NULL[1:]}")
        part = f"{quote(name, safe='')}={text}"
        if len(part) > LONGEST:
            raise ContractBroken(
                f"{asset}.{name}: a value is too long for a partition, whose folder has its name",
                detail=[f"{part[:60]}… has {len(part):,} bytes, {LONGEST} are allowed"],
                hint="split by a column of short values",
            )
        parts.append(part)
    return "/".join(parts)


def values_of(path: str) -> dict[str, str | None]:
    """Return the values that a data file's path names, as the Delta log writes them; none: it is not split."""
    parts = [part.partition("=") for part in path.split("/")[:-1]]
    return {unquote(name): None if text == NULL else unquote(text) for name, _, text in parts}


def wrong_value(file: pq.ParquetFile, path: str, asset: str) -> str | None:
    """Return which partition column of a file holds something else than its path says, from its footer; or None."""
    import pyarrow as pa

    for name, wanted in values_of(path).items():
        index = file.schema_arrow.get_field_index(name)
        kind = file.schema_arrow.field(index).type
        for group in range(file.metadata.num_row_groups):
            statistics = file.metadata.row_group(group).column(index).statistics
            if statistics is None:  # not of our writing
                same = False
            elif wanted is None:
                same = statistics.null_count == file.metadata.row_group(group).num_rows
            else:
                bounds = {statistics.min, statistics.max} if statistics.has_min_max else {None}
                texts = {None if one is None else _text(pa.scalar(one, kind), name, asset) for one in bounds}
                same = texts == {wanted} and not statistics.null_count
            if not same:
                return name
    return None
