"""DuckDB's types beside the portable kinds of `core.schema`."""

from __future__ import annotations

from collections.abc import Sequence

from millrace.core.schema import Column, Kind, Schema, decimal_of
from millrace.duck.engine import Fragment, fill, identifier, listed
from millrace.errors import StepFailed

KINDS = {
    "BOOLEAN": Kind.BOOL,
    "TINYINT": Kind.INT16,
    "UTINYINT": Kind.INT16,
    "SMALLINT": Kind.INT16,
    "USMALLINT": Kind.INT32,
    "INTEGER": Kind.INT32,
    "UINTEGER": Kind.INT64,
    "BIGINT": Kind.INT64,
    "FLOAT": Kind.FLOAT32,
    "DOUBLE": Kind.FLOAT64,
    "BLOB": Kind.BYTES,
    "DATE": Kind.DATE,
    "TIME": Kind.TIME,
    "TIMESTAMP": Kind.TIMESTAMP,
    "TIMESTAMP WITH TIME ZONE": Kind.TIMESTAMPTZ,
}
"""What is not here travels as TEXT."""

_CASTS = {
    Kind.BOOL: "boolean",
    Kind.INT16: "smallint",
    Kind.INT32: "integer",
    Kind.INT64: "bigint",
    Kind.FLOAT32: "float",
    Kind.FLOAT64: "double",
    Kind.TEXT: "varchar",
    Kind.BYTES: "blob",
    Kind.DATE: "date",
    Kind.TIME: "varchar",  # lakes have no time of day: it travels as text
    Kind.TIMESTAMP: "timestamp",
    Kind.TIMESTAMPTZ: "timestamp with time zone",
}

OWN = ("_millrace_seq", "_millrace_loaded_at")
"""Columns that the lake adds to its assets, beside their schema; incremental models go by the first."""


def schema_of(columns: Sequence[tuple[str, str]]) -> Schema:
    """Return the schema of a relation's columns, given as names and DuckDB types."""
    found = []
    for name, type_text in columns:
        precise = decimal_of(type_text)
        kind = Kind.DECIMAL if precise else KINDS.get(type_text, Kind.TEXT)
        precision, scale = precise or (0, 0)
        found.append(Column(name, type_text, kind, precision=precision, scale=scale))
    return Schema(tuple(found))


def type_of(column: Column) -> Fragment:
    """Return the DuckDB type of a column's kind."""
    if column.kind is Kind.DECIMAL:
        if not 0 < column.precision <= 38:
            return Fragment("varchar")
        return Fragment(f"decimal({int(column.precision)}, {int(column.scale)})")
    return Fragment(_CASTS[column.kind])


def load_columns(schema: Schema, have: Sequence[tuple[str, str]], asset: str, *, own: bool = True) -> Fragment:
    """Return the select list that loads a schema's columns from files with the given columns.

    A file's own type is kept, except for what a lake cannot keep: it has instants in UTC only, so a timestamp
    without a zone comes back as one. The lake's own columns follow where `own` asks for them. With no files at all
    the columns are nulls of the kinds' types.

    Raises:
        StepFailed: the files lack a column.
    """
    types = dict(have)
    found = []
    for column in schema.columns:
        name = identifier(column.name)
        if not have:
            found.append(fill("cast(null as {type}) as {name}", type=type_of(column), name=name))
        elif column.name not in types:
            raise StepFailed(
                f"the files of {asset} have no column {column.name}", detail=[f"they have {', '.join(types)}"]
            )
        elif column.kind is Kind.TIMESTAMP and types[column.name] == "TIMESTAMP WITH TIME ZONE":
            found.append(fill("cast({name} as timestamp) as {name}", name=name))
        else:
            found.append(name)
    if own:
        found += [identifier(name) for name in OWN if name in types and name not in schema.names]
    return listed(found)
