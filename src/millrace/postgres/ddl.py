"""Tables as SQL: the stage of a new table with the source's types, and whether an existing one fits.

Nothing of the source's catalogue becomes SQL as it stands: names are quoted, types are named by schema and name and
looked up in the target, modifiers may only be words and numbers. The one exception is a generated column's expression,
which the source's server has printed from its parsed form.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import psycopg
from psycopg import sql

from millrace.errors import ContractBroken
from millrace.postgres.catalog import PgColumn, Relation
from millrace.postgres.names import sql_name
from millrace.postgres.session import Connection, translate

VIRTUAL = 180_000  # virtual generated columns came with PostgreSQL 18
_MODIFIERS = re.compile(r"\((?P<inside>[\w ,.-]+)\)")
_INTERVAL = re.compile(r"interval(?: [a-z ]+)?(?:\(\d\))?(?:\[\])?")

_FIND_TYPE = """
select n.nspname::text from pg_catalog.pg_type t join pg_catalog.pg_namespace n on n.oid = t.typnamespace
where t.typname = %(name)s and t.typtype <> 'p'
    and (n.nspname = %(schema)s or %(schema)s <> 'pg_catalog' and n.nspname <> 'pg_catalog')
order by n.nspname = %(schema)s desc, pg_catalog.pg_type_is_visible(t.oid) desc, 1 limit 1
"""

_LABELS = """
select e.enumlabel::text from pg_catalog.pg_enum e
join pg_catalog.pg_type t on t.oid = e.enumtypid join pg_catalog.pg_namespace n on n.oid = t.typnamespace
where t.typname = %s and n.nspname = %s order by e.enumsortorder
"""


def _named(column: PgColumn) -> tuple[str, str]:
    """Return (schema, name) of the type that must exist: an array's element, a domain itself."""
    if column.typtype != "d" and column.array:
        return column.element_namespace, column.element_name
    return column.typnamespace, column.typname


def _modifiers(column: PgColumn) -> str:
    found = None if column.typtype == "d" else _MODIFIERS.search(column.type.rpartition('"')[2])
    return "" if found is None else found["inside"]


def type_of(column: PgColumn, schema: str) -> sql.Composable:
    """Return a column's declared type for building SQL, with the schema in which the target has it."""
    _, name = _named(column)
    if _INTERVAL.fullmatch(column.type):
        return sql.SQL(column.type)  # its fields have no other way of writing; the pattern allows only words
    modifiers = _modifiers(column)
    return sql.SQL("{}{}{}").format(
        sql.Identifier(schema, name),
        sql.SQL(f"({modifiers})" if modifiers else ""),
        sql.SQL("[]" if column.typtype != "d" and column.array else ""),
    )


def bring_types(source: Connection, target: Connection, columns: Sequence[PgColumn], *, label: str) -> dict[str, str]:
    """Find the columns' types in the target, and make the enums that are missing there.

    Returns:
        By column name, the schema in which the target has its type.

    Raises:
        ContractBroken: another type is missing; the error names it.
    """
    found: dict[str, str] = {}
    for column in columns:
        schema, name = _named(column)
        row = target.execute(_FIND_TYPE, {"schema": schema, "name": name}).fetchone()
        if row is not None:
            found[column.name] = row[0]
            continue
        labels = [text for (text,) in source.execute(_LABELS, (name, schema)).fetchall()]
        if not labels:
            raise ContractBroken(
                f"{label} has no type {sql_name(schema, name)}, which column {sql_name(column.name)} needs",
                where=label,
                hint=f"create the type {sql_name(schema, name)} (or the extension that brings it) there first",
            )
        try:
            if target.execute("select 1 from pg_catalog.pg_namespace where nspname = %s", (schema,)).fetchone() is None:
                target.execute(sql.SQL("create schema {}").format(sql.Identifier(schema)))
            target.execute(
                sql.SQL("create type {} as enum ({})").format(
                    sql.Identifier(schema, name), sql.SQL(", ").join(sql.Literal(text) for text in labels)
                )
            )
        except psycopg.errors.InsufficientPrivilege as error:
            doing = f"make the type {sql_name(schema, name)}, which column {sql_name(column.name)} needs"
            raise translate(error, where=label, doing=doing, role=target.info.user, privilege="CREATE") from error
        found[column.name] = schema
    return found


def create_table(
    target: Connection, table: sql.Identifier, columns: Sequence[PgColumn], schemas: dict[str, str]
) -> None:
    """Create a stage that will be the new table: types, not null, identity, generated columns; keys come later.

    Args:
        schemas: what `bring_types` returned.
    """
    parts = [_definition(target, column, schemas[column.name]) for column in columns]
    target.execute(sql.SQL("create table {} ({})").format(table, sql.SQL(", ").join(parts)))


def _definition(target: Connection, column: PgColumn, schema: str) -> sql.Composed:
    parts: list[sql.Composable] = [column.identifier, type_of(column, schema)]
    if column.collation is not None:
        row = target.execute("select pg_catalog.to_regcollation(%s)::text", (column.collation,)).fetchone()
        if row is not None and row[0] is not None:
            parts.append(sql.SQL("collate {}").format(sql.SQL(row[0])))  # the target's own quoted name
    if column.generated and column.generation is not None:
        virtual = column.generated == "v" and target.info.server_version >= VIRTUAL
        parts.append(
            sql.SQL("generated always as ({}) {}").format(
                sql.SQL(column.generation), sql.SQL("virtual" if virtual else "stored")
            )
        )
    elif column.identity:
        always = column.identity == "a"
        parts.append(sql.SQL("generated {} as identity").format(sql.SQL("always" if always else "by default")))
    if column.not_null:
        parts.append(sql.SQL("not null"))
    return sql.SQL(" ").join(parts)


def create_like(target: Connection, table: sql.Identifier, relation: Relation, names: Sequence[str]) -> None:
    """Create a stage of an existing table's changes: the same types, no constraints."""
    target.execute(
        sql.SQL("create table {} as select {} from {} with no data").format(
            table, sql.SQL(", ").join(sql.Identifier(name) for name in names), relation.identifier
        )
    )


def same_type(left: PgColumn, right: PgColumn) -> bool:
    """Return whether values of one column are values of the other, unchanged."""
    if (left.typname, left.typtype == "d", _modifiers(left)) != (
        right.typname,
        right.typtype == "d",
        _modifiers(right),
    ):
        return False
    built_in = "pg_catalog" in (left.typnamespace, right.typnamespace)
    if _INTERVAL.fullmatch(left.type) and left.type != right.type:
        return False
    return left.typnamespace == right.typnamespace or not built_in


def check_fit(columns: Sequence[PgColumn], target: Relation, *, label: str) -> None:
    """Refuse an existing target that cannot take the source's columns.

    Raises:
        ContractBroken: naming the column and both types.
    """
    where = f"{target.ref} in {label}"
    if target.kind not in ("r", "p"):
        raise ContractBroken(f"{where} is not a table", where=label, hint="name a table, or another name for a new one")
    have = {column.name: column for column in target.columns}
    for column in columns:
        other = have.get(column.name)
        if other is None:
            raise ContractBroken(
                f"{where} has no column {sql_name(column.name)}, which the source has with type {column.type}",
                where=label,
                hint=f"ALTER TABLE {target.ref} ADD COLUMN {sql_name(column.name)} {column.type}; "
                "or leave it out by naming the columns to copy",
            )
        if not same_type(column, other):
            raise ContractBroken(
                f"column {sql_name(column.name)} is {column.type} in the source and {other.type} in {where}",
                where=label,
                hint=f"ALTER TABLE {target.ref} ALTER COLUMN {sql_name(column.name)} TYPE {column.type};",
            )
    names = {column.name for column in columns}
    for other in target.columns:
        needed = other.not_null and other.default is None and not other.identity and not other.generated
        if other.name not in names and needed:
            raise ContractBroken(
                f"{where} has a column {sql_name(other.name)} ({other.type}, NOT NULL) that the source lacks",
                where=label,
                hint="give it a default, or allow nulls",
            )


def written(columns: Sequence[PgColumn]) -> tuple[PgColumn, ...]:
    """Return the columns that a copy writes: all but generated ones, which the server computes."""
    return tuple(column for column in columns if not column.generated)


def free_name(target: Connection, schema: str, wanted: str) -> bool:
    """Return whether a schema has no relation of that name."""
    row = target.execute(
        "select 1 from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace "
        "where n.nspname = %s and c.relname = %s",
        (schema, wanted),
    ).fetchone()
    return row is None


def cut(name: str, suffix: str) -> str:
    """Return a name with a suffix, cut to the 63 bytes that PostgreSQL's names have, at a whole character."""
    room = 63 - len(suffix.encode())
    return name.encode()[:room].decode(errors="ignore") + suffix
