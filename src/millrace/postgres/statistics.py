"""Statistics of a table's columns: nulls, lowest, highest, and the sum of numbers, each as the server's text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from psycopg import sql

from millrace.core.schema import Kind
from millrace.postgres.catalog import PgColumn
from millrace.postgres.session import Connection, translated
from millrace.postgres.source import Source
from millrace.postgres.types import kind

Figures = Mapping[str, str | int | None]
"""`rows`, `nulls`: numbers; `min`, `max`, `sum`: texts, or None where a type has none."""

NUMBERS = (Kind.INT16, Kind.INT32, Kind.INT64, Kind.DECIMAL, Kind.FLOAT32, Kind.FLOAT64)
ORDERED = (*NUMBERS, Kind.DATE, Kind.TIME, Kind.TIMESTAMP, Kind.TIMESTAMPTZ)
AT_ONCE = 300  # columns of one scan: a query has room for 1,664 expressions


def table_statistics(connection: Connection, source: Source) -> dict[str, Figures]:
    """Return each column's figures, in the connection's transaction."""
    found: dict[str, Figures] = {}
    for start in range(0, len(source.columns), AT_ONCE):
        columns = source.columns[start : start + AT_ONCE]
        query = source.select([sql.SQL("pg_catalog.count(*)"), *(one for column in columns for one in _of(column))])
        with translated(source.database, f"read statistics of {source.label}", connection=connection):
            row = connection.execute(query).fetchone() or ()
        for place, column in enumerate(columns):
            held, low, high, total = row[1 + 4 * place : 5 + 4 * place]
            found[column.name] = {"rows": row[0], "nulls": row[0] - held, "min": low, "max": high, "sum": total}
    return found


def _of(column: PgColumn) -> Sequence[sql.Composable]:
    """Return the expressions of a column: values that are not null, min, max, sum."""
    found, name = kind(column), column.identifier
    nothing = sql.SQL("null::pg_catalog.text")
    low: sql.Composable = nothing
    high: sql.Composable = nothing
    total: sql.Composable = nothing
    if found in ORDERED:
        low, high = (sql.SQL("pg_catalog.{}({})::pg_catalog.text").format(sql.SQL(f), name) for f in ("min", "max"))
    elif column.base_namespace == "pg_catalog" and column.base_name in ("text", "varchar"):
        value = sql.SQL('({}::pg_catalog.text collate pg_catalog."C")').format(name)
        low, high = (sql.SQL("pg_catalog.{}({})").format(sql.SQL(f), value) for f in ("min", "max"))
    if found in NUMBERS:
        total = sql.SQL("pg_catalog.sum({})::pg_catalog.text").format(name)
    return sql.SQL("pg_catalog.count({})").format(name), low, high, total


def side_by_side(left: Mapping[str, Figures], right: Mapping[str, Figures]) -> dict[str, dict[str, Figures | None]]:
    """Return the figures of both sides by column; None where a side has no such column."""
    names = dict.fromkeys((*left, *right))
    return {name: {"left": left.get(name), "right": right.get(name)} for name in names}
