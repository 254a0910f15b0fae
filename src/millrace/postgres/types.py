"""Types: how each column enters the row digest, how it travels to Arrow, and whether COPY BINARY keeps it.

A type with an exact hash of its own is hashed as it is; every other one as the text that its server prints in a pinned
session: PostgreSQL's own hashes of numeric (5 = −5, 1.0 = 1.00, NaN = Infinity), interval (1 month = 30 days) and
char(n) (padding) are not exact, and json, xml, point, bit have none. The Arrow expression of such a column is that same
text, so that both ends hash the same.

`char(n)` keeps its padding: `::text` would drop trailing blanks, its output function does not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from psycopg import sql

from millrace.core.schema import Kind, decimal_of
from millrace.postgres.catalog import PgColumn

# Types of pg_catalog with an exact hash: name → class in the digest. `text` is hashed COLLATE "C".
_HASHED = {
    "bool": "bool",
    "int2": "int",
    "int4": "int",
    "int8": "int",
    "float4": "float8",
    "float8": "float8",
    "text": "text",
    "varchar": "text",
    "bytea": "bytes",
    "uuid": "uuid",
    "date": "date",
    "time": "time",
    "timestamp": "timestamp",
    "timestamptz": "timestamp",
}

_KINDS = {
    "bool": Kind.BOOL,
    "int2": Kind.INT16,
    "int4": Kind.INT32,
    "int8": Kind.INT64,
    "float4": Kind.FLOAT32,
    "float8": Kind.FLOAT64,
    "text": Kind.TEXT,
    "varchar": Kind.TEXT,
    "bytea": Kind.BYTES,
    "date": Kind.DATE,
    "time": Kind.TIME,
    "timestamp": Kind.TIMESTAMP,
    "timestamptz": Kind.TIMESTAMPTZ,
}

# Types of pg_catalog whose binary form holds no OID and does not depend on a setting (money, xml, reg* do). tsquery is
# none of them: the server does not take the binary form of an empty one that it has sent.
_BINARY_WORDS = """bool int2 int4 int8 float4 float8 numeric text varchar bpchar name char bytea uuid date time timetz
timestamp timestamptz interval json jsonb jsonpath inet cidr macaddr macaddr8 bit varbit point line lseg box path
polygon circle tsvector oid pg_lsn xid xid8 cid tid pg_snapshot txid_snapshot int4range int8range numrange
daterange tsrange tstzrange int4multirange int8multirange nummultirange datemultirange tsmultirange
tstzmultirange"""
_BINARY = frozenset(_BINARY_WORDS.split())
# Of extensions: text, pairs of texts, numbers; no OID.
_BINARY_EXTENSION_WORDS = "citext cube halfvec hstore lquery ltree ltxtquery sparsevec vector"
_BINARY_EXTENSIONS = frozenset(_BINARY_EXTENSION_WORDS.split())

WIDEST_DECIMAL = 38  # digits of decimal128


def _base(column: PgColumn) -> str:
    """Return the base type's name when it is one of pg_catalog and no array, else ""."""
    if column.base_namespace != "pg_catalog" or column.array:
        return ""
    return column.base_name


def hashed(column: PgColumn) -> str:
    """Return how the column enters the row digest: see `core.schema.Column.hashed`."""
    return _HASHED.get(_base(column), "text")


def kind(column: PgColumn) -> Kind:
    """Return the portable kind: a numeric that decimal128 cannot hold, and all without a kind, are TEXT."""
    name = _base(column)
    if name == "numeric":
        bounds = decimal_of(column.base_type)
        if bounds is not None and 1 <= bounds[0] <= WIDEST_DECIMAL and bounds[1] <= bounds[0]:
            return Kind.DECIMAL
    return _KINDS.get(name, Kind.TEXT)


def binary_safe(column: PgColumn) -> bool:
    """Return whether COPY BINARY carries the column exactly to a column of the same declared type elsewhere.

    Not for what sends OIDs (composites, arrays of user-defined types, reg*), what depends on a setting (money), and
    types of unknown extensions: those go as text.
    """
    if not column.sendable:
        return False
    if column.array:
        return column.element_namespace == "pg_catalog" and column.element_name in _BINARY
    if column.base_namespace == "pg_catalog":
        return column.base_name in _BINARY
    return column.base_typtype == "e" or (column.base_typtype == "b" and column.base_name in _BINARY_EXTENSIONS)


def wire(columns: Iterable[PgColumn]) -> str:
    """Return how COPY carries a table: `binary`, or `text` where a column's binary form is not safe."""
    return "binary" if all(binary_safe(column) for column in columns) else "text"


def text_form(column: PgColumn, value: sql.Composable | None = None) -> sql.Composable:
    """Return the expression of a column's exact text, in the server's encoding."""
    value = column.value if value is None else value
    if _base(column) == "bpchar":
        return sql.SQL("pg_catalog.textin(pg_catalog.bpcharout({}))").format(value)
    return sql.SQL("{}::pg_catalog.text").format(value)


def as_text(column: PgColumn) -> PgColumn:
    """Return the column as one that is hashed by its text, to be compared with a column of another type."""
    kept = _base(column) == "bpchar"
    return replace(column, base_namespace="pg_catalog" if kept else "", base_name="bpchar" if kept else "")


def digest_expression(column: PgColumn, value: sql.Composable | None = None) -> sql.Composable:
    """Return what stands for the column in `row(…)` of the digest.

    Args:
        column: the column.
        value: the expression that gives its value; what is read of it by default.
    """
    value = column.value if value is None else value
    match hashed(column):
        case "float8":
            return sql.SQL("pg_catalog.float8send({}::pg_catalog.float8)").format(value)
        case "text":
            text = value if _is_text(column) else text_form(column, value)
            if column.encode:
                return sql.SQL("pg_catalog.convert_to({}, 'UTF8')").format(text)
            return sql.SQL('{} collate pg_catalog."C"').format(text)
        case _:
            return _undomained(column, value)


def _is_text(column: PgColumn) -> bool:
    return column.typtype != "d" and _base(column) in ("text", "varchar")


def _undomained(column: PgColumn, value: sql.Composable) -> sql.Composable:
    if column.typtype != "d":
        return value
    return sql.SQL("{}::pg_catalog.{}").format(value, sql.Identifier(column.base_name))


def arrow_expression(column: PgColumn) -> sql.Composable:
    """Return the SELECT expression for ADBC, without an alias: types that it reads exactly as they are, others as text.

    A numeric of kind DECIMAL stays numeric: ADBC gives its exact text as `opaque<string>`.
    """
    portable = kind(column)
    if portable is Kind.DECIMAL:
        return _undomained(column, column.value)
    if portable is Kind.TEXT and not _is_text(column):
        return text_form(column)
    return _undomained(column, column.value)


# What Arrow and Delta hold and Python can show: years 0001 to 9999.
_FIRST_DAY, _AFTER_LAST_DAY = "0001-01-01", "10000-01-01"


def arrow_guard(columns: tuple[PgColumn, ...] | list[PgColumn]) -> sql.Composable | None:
    """Return a predicate that is true for rows that Arrow and Delta cannot hold, or None when no column can have one.

    These are infinite dates and timestamps and those outside the years 0001 to 9999, the time 24:00, and NaN or
    Infinity in a numeric that becomes a decimal. ADBC would hand over other values without a word.
    """
    parts = [part for column in columns if (part := column_guard(column)) is not None]
    return sql.SQL("(") + sql.SQL(" or ").join(parts) + sql.SQL(")") if parts else None


def column_guard(column: PgColumn) -> sql.Composable | None:
    """Return the part of `arrow_guard` for one column, or None; it is null for a null."""
    value = _undomained(column, column.value)
    match kind(column):
        case Kind.DATE | Kind.TIMESTAMP | Kind.TIMESTAMPTZ:
            bound = sql.Identifier("pg_catalog", _base(column))
            return sql.SQL("not ({value} >= {low}::{bound} and {value} < {high}::{bound})").format(
                value=value,
                low=sql.Literal(_FIRST_DAY),
                high=sql.Literal(_AFTER_LAST_DAY),
                bound=bound,
            )
        case Kind.TIME:
            return sql.SQL("{} = '24:00'::pg_catalog.time").format(value)
        case Kind.DECIMAL:
            return sql.SQL("{}::pg_catalog.text in ('NaN', 'Infinity', '-Infinity')").format(value)
        case _:
            return None
