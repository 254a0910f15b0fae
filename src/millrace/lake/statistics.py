"""Statistics of an asset's columns: nulls, lowest, highest, and the sum of numbers, as texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from millrace.core.schema import Column, Kind, Schema
from millrace.lake.sql import EVERY_ROW, Condition, Fragment, SqlEngine, fill, listed, quoted

NUMBERS = (Kind.INT16, Kind.INT32, Kind.INT64, Kind.DECIMAL, Kind.FLOAT32, Kind.FLOAT64)
TIMES = (Kind.DATE, Kind.TIMESTAMP, Kind.TIMESTAMPTZ)
FILES = Fragment("read_parquet(?, union_by_name = true, hive_partitioning = false)")
HELD = "count({name})"
BOUNDS = "cast(min({name}) as varchar), cast(max({name}) as varchar)"
NO_BOUNDS = "null, null"
TOTAL = "cast(sum({name}) as varchar)"


def file_statistics(
    engine: SqlEngine, files: Sequence[str], schema: Schema, only: Condition = EVERY_ROW
) -> dict[str, Mapping[str, str | int | None]]:
    """Return each column's figures over some rows of files: `rows`, `nulls`, `min`, `max`, `sum`."""
    if not files:
        return {name: {"rows": 0, "nulls": 0, "min": None, "max": None, "sum": None} for name in schema.names}
    parts = listed(part for column in schema.columns for part in _of(column))
    query = fill("select count(*), {parts} from {files} t where {only}", parts=parts, files=FILES, only=only.text)
    row = engine.sql(query, params=[list(files), *only.values]).fetchall()[0]
    found: dict[str, Mapping[str, str | int | None]] = {}
    for place, name in enumerate(schema.names):
        held, low, high, total = row[1 + 4 * place : 5 + 4 * place]
        found[name] = {"rows": row[0], "nulls": row[0] - held, "min": low, "max": high, "sum": total}
    return found


def _of(column: Column) -> Sequence[Fragment]:
    name = quoted(column.name)
    ordered = column.kind in (*NUMBERS, *TIMES, Kind.TEXT, Kind.TIME)
    return (
        fill(HELD, name=name),
        fill(BOUNDS, name=name) if ordered else Fragment(NO_BOUNDS),
        fill(TOTAL, name=name) if column.kind in NUMBERS else Fragment("null"),
    )
