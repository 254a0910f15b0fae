"""Values of a column whose type changed, as the type that it had: exact ones only, told apart by a predicate.

A conversion is exact where converting back gives the same: numbers and times by value, all else by its text. No value
makes the query fail: what a cast would refuse is asked for first.
"""

from __future__ import annotations

import re
from dataclasses import replace

from psycopg import sql

from millrace.core.schema import Column, Kind
from millrace.errors import ContractBroken
from millrace.postgres.catalog import PgColumn, Refusal
from millrace.postgres.names import sql_name
from millrace.postgres.types import column_guard, text_form

_LENGTH = re.compile(r"varying\((\d+)\)")
ASKS = 160_000  # the server that has pg_input_is_valid
_NAMES = {
    Kind.BOOL: "bool",
    Kind.INT16: "int2",
    Kind.INT32: "int4",
    Kind.INT64: "int8",
    Kind.FLOAT32: "float4",
    Kind.FLOAT64: "float8",
    Kind.DECIMAL: "numeric",
    Kind.TEXT: "text",
    Kind.BYTES: "bytea",
    Kind.DATE: "date",
    Kind.TIME: "time",
    Kind.TIMESTAMP: "timestamp",
    Kind.TIMESTAMPTZ: "timestamptz",
}
_INTEGERS = {Kind.INT16: 15, Kind.INT32: 31, Kind.INT64: 63}
_FLOATS = {Kind.FLOAT32: 37, Kind.FLOAT64: 300}  # decimal exponents that a cast surely takes
_TIMES = (Kind.DATE, Kind.TIMESTAMP, Kind.TIMESTAMPTZ)
_NUMBERS = ("int2", "int4", "int8", "float4", "float8", "numeric")
_PATTERNS = {  # of texts, for servers that cannot be asked
    "int2": "^(0|-?[1-9][0-9]{0,18})$",
    "int4": "^(0|-?[1-9][0-9]{0,18})$",
    "int8": "^(0|-?[1-9][0-9]{0,18})$",
    "numeric": "^-?[0-9]{1,38}([.][0-9]{1,38})?$",
    "bool": "^(true|false)$",
    "uuid": "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$",
    "bytea": r"^\\x([0-9a-f]{2})*$",
}


def same_values(column: PgColumn, old: Column) -> bool:
    """Return whether a column's values are in a lake what those of the old type are."""
    new = column.column()
    return (new.kind, new.precision, new.scale, new.hashed) == (old.kind, old.precision, old.scale, old.hashed)


def converted(column: PgColumn, old: Column, version: int, *, refuse: bool) -> PgColumn:
    """Return a column as one of its old type, null where a value does not convert exactly.

    Args:
        column: as the source has it now.
        old: as it was: its kind decides.
        version: of the source's server.
        refuse: rows with other values are to be set aside; else the value is given up.

    Raises:
        ContractBroken: the server cannot tell which texts it would take.
    """
    name = "uuid" if old.hashed == "uuid" else _NAMES[old.kind]
    like = replace(
        column,
        type=old.type,
        typname=name,
        typnamespace="pg_catalog",
        typtype="b",
        base_type=f"numeric({old.precision},{old.scale})" if old.kind is Kind.DECIMAL else old.type,
        base_name=name,
        base_namespace="pg_catalog",
        base_typtype="b",
        element_name="",
        element_namespace="",
    )
    exact, value = _exact(column, old, like, version)
    like = replace(like, expression=sql.SQL("case when {} then {} end").format(exact, value))
    lost = sql.SQL("({} is not null and not coalesce({}, false))").format(column.identifier, exact)
    return replace(like, refused=(Refusal(column, lost, f"no {old.type}"),)) if refuse else replace(like, lost=lost)


def kept(column: PgColumn, other: PgColumn, version: int, *, where: str) -> PgColumn:
    """Return a column as one of the type that a target's column has, null where a value does not convert exactly.

    Args:
        column: as the source has it.
        other: the target's.
        version: of the source's server.
        where: what errors name.

    Raises:
        ContractBroken: nothing is known of how to convert into that type.
    """
    old = other.column()
    text = other.base_name in ("text", "varchar")
    known = other.base_name == ("uuid" if old.hashed == "uuid" else _NAMES[old.kind]) or text
    length = _LENGTH.search(other.type) if text else None
    bounded = "(" in other.type and old.kind is not Kind.DECIMAL and length is None
    if other.typtype != "b" or other.typnamespace != "pg_catalog" or other.array or bounded or not known:
        raise ContractBroken(
            f"column {sql_name(column.name)} is {column.type} in the source and {other.type} in {where},"
            " and nothing is known of how to convert it",
            where=where,
            hint="type_changes: evolve takes the new type; a select may convert it",
        )
    exact, value = _exact(column, old, other, version)
    if length is not None:
        exact = sql.SQL("pg_catalog.char_length({}) <= {}").format(value, sql.Literal(int(length[1])))
    return replace(
        other,
        number=column.number,
        generated="",
        identity="",
        not_null=column.not_null or other.not_null,
        encode=column.encode,
        expression=sql.SQL("case when {} then {} end").format(exact, value),
        lost=sql.SQL("({} is not null and not coalesce({}, false))").format(column.identifier, exact),
    )


def _type(old: Column, name: str) -> sql.Composable:
    modifiers = f"({old.precision},{old.scale})" if old.kind is Kind.DECIMAL else ""
    return sql.SQL("pg_catalog.{}{}").format(sql.Identifier(name), sql.SQL(modifiers))


def _exact(column: PgColumn, old: Column, like: PgColumn, version: int) -> tuple[sql.Composable, sql.Composable]:
    """Return the predicate of values that convert exactly, and the converted value."""
    own = column.base_name if column.base_namespace == "pg_catalog" and not column.array else ""
    if own in _NUMBERS and (old.kind in _INTEGERS or old.kind in _FLOATS or old.kind is Kind.DECIMAL):
        return _number(text_form(column), old, like.base_name)
    if own in ("date", "timestamp", "timestamptz") and old.kind in _TIMES:
        fits = column_guard(column)
        value = sql.SQL("({}::pg_catalog.{})").format(column.identifier, sql.Identifier(own))
        there = sql.SQL("{}::{}").format(value, _type(old, like.base_name))
        back = sql.SQL("({})::pg_catalog.{} = {}").format(there, sql.Identifier(own), value)
        return sql.SQL("case when {} then false else {} end").format(fits, back), there
    text = text_form(column)
    if old.kind is Kind.TEXT and old.hashed == "text":
        return sql.SQL("true"), text
    there = sql.SQL("{}::{}").format(text, _type(old, like.base_name))
    if version >= ASKS:
        asked = sql.SQL("pg_catalog.pg_input_is_valid({}, {})").format(
            text, sql.Literal(_type(old, like.base_name).as_string(None))
        )
    elif like.base_name in _PATTERNS:
        asked = sql.SQL("{} ~ {}").format(text, sql.Literal(_PATTERNS[like.base_name]))
    else:
        raise ContractBroken(
            f"column {sql_name(column.name)} is {column.type} now, and a server before PostgreSQL 16 does not tell "
            f"which of its values are {old.type}",
            hint="type_changes: evolve takes the new type; a select may convert it",
        )
    if old.kind in _INTEGERS or old.kind is Kind.DECIMAL:
        number, _ = _number(text, old, like.base_name)
        asked = sql.SQL("case when {} then {} else false end").format(asked, number)
    back = sql.SQL("{} = {}").format(text_form(replace(like, name=""), there), text)
    return sql.SQL("case when {} then {} else false end").format(asked, back), there


def _number(text: sql.Composable, old: Column, name: str) -> tuple[sql.Composable, sql.Composable]:
    """Return what `_exact` does for the text of a number."""
    number = sql.SQL("{}::pg_catalog.numeric").format(text)
    if (bits := _INTEGERS.get(old.kind)) is not None:
        exact = sql.SQL("({n} between {low} and {high} and {n} = pg_catalog.trunc({n}))").format(
            n=number, low=sql.Literal(-(2**bits)), high=sql.Literal(2**bits - 1)
        )
        return exact, sql.SQL("{}::{}").format(number, _type(old, name))
    if old.kind is Kind.DECIMAL:
        exact = sql.SQL(
            "(pg_catalog.abs({n}) < {top}::pg_catalog.numeric and {n} = pg_catalog.round({n}, {scale}))"
        ).format(n=number, top=sql.Literal(f"1e{old.precision - old.scale}"), scale=sql.Literal(old.scale))
        return exact, sql.SQL("{}::{}").format(number, _type(old, name))
    there = sql.SQL("{}::{}").format(text, _type(old, name))
    exact = sql.SQL(
        "case when {n}::pg_catalog.text in ('NaN', 'Infinity', '-Infinity') then true"
        " when {n} = 0 or pg_catalog.abs({n}) between {low}::pg_catalog.numeric and {high}::pg_catalog.numeric"
        " then {there}::pg_catalog.text::pg_catalog.numeric = {n} else false end"
    ).format(
        n=number, there=there, low=sql.Literal(f"1e-{_FLOATS[old.kind]}"), high=sql.Literal(f"1e{_FLOATS[old.kind]}")
    )
    return exact, there
