"""Tables as SQL: the stage of a new table with the source's types, and whether an existing one fits.

Nothing of the source's catalogue becomes SQL as it stands: names are quoted, types are named by schema and name and
looked up in the target (`usertypes`), modifiers may only be words and numbers. The exception are expressions, which the
source's server has printed from their parsed form.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import psycopg
from psycopg import sql

from millrace.errors import ContractBroken
from millrace.postgres.catalog import PgColumn, Relation
from millrace.postgres.names import sql_name
from millrace.postgres.session import Connection, bare_path

UNKNOWN = ("42", "0A", "3F", "22")  # classes of errors: what a server does not know, may not do or cannot compute
VIRTUAL = 180_000  # virtual generated columns came with PostgreSQL 18
_MODIFIERS = re.compile(r"\((?P<inside>[\w ,.-]+)\)")
_INTERVAL = re.compile(r"interval(?: [a-z ]+)?(?:\(\d\))?(?:\[\])?")


def named(column: PgColumn) -> tuple[str, str]:
    """Return (schema, name) of the type that must exist: an array's element, a domain itself."""
    if column.typtype != "d" and column.array:
        return column.element_namespace, column.element_name
    return column.typnamespace, column.typname


def _modifiers(column: PgColumn) -> str:
    found = None if column.typtype == "d" else _MODIFIERS.search(column.type.rpartition('"')[2])
    return "" if found is None else found["inside"]


def type_of(column: PgColumn, schema: str) -> sql.Composable:
    """Return a column's declared type for building SQL, with the schema in which the target has it."""
    _, name = named(column)
    if _INTERVAL.fullmatch(column.type):
        return sql.SQL(column.type)  # its fields have no other way of writing; the pattern allows only words
    modifiers = _modifiers(column)
    return sql.SQL("{}{}{}").format(
        sql.Identifier(schema, name),
        sql.SQL(f"({modifiers})" if modifiers else ""),
        sql.SQL("[]" if column.typtype != "d" and column.array else ""),
    )


def create_table(
    target: Connection, table: sql.Identifier, columns: Sequence[PgColumn], schemas: dict[str, str]
) -> None:
    """Create a stage that will be the new table: types, not null, identity, generated columns; the rest comes later.

    A generated column whose expression the target does not know becomes a plain one.

    Args:
        schemas: what `usertypes.bring_types` returned.
    """
    generated = {column.name for column in columns if column.generated}
    if not generated:
        _create(target, table, columns, schemas, generated)
        return
    with bare_path(target):
        if _created(target, table, columns, schemas, generated):
            return
        known = {name for name in generated if _created(target, table, columns, schemas, {name}, keep=False)}
        _create(target, table, columns, schemas, known)


def _created(
    target: Connection,
    table: sql.Identifier,
    columns: Sequence[PgColumn],
    schemas: dict[str, str],
    generated: set[str],
    *,
    keep: bool = True,
) -> bool:
    """Create the table; False when the target does not know what a generated column is made of."""
    try:
        with target.transaction(force_rollback=not keep):
            _create(target, table, columns, schemas, generated)
    except psycopg.Error as error:
        if not generated or not (error.sqlstate or "").startswith(UNKNOWN):
            raise
        return False
    return True


def _create(
    target: Connection,
    table: sql.Identifier,
    columns: Sequence[PgColumn],
    schemas: dict[str, str],
    generated: set[str],
) -> None:
    parts = [_definition(target, column, schemas[column.name], column.name in generated) for column in columns]
    target.execute(sql.SQL("create table {} ({})").format(table, sql.SQL(", ").join(parts)))


def _definition(target: Connection, column: PgColumn, schema: str, generated: bool) -> sql.Composed:
    parts: list[sql.Composable] = [column.identifier, type_of(column, schema)]
    if column.collation is not None:
        row = target.execute("select pg_catalog.to_regcollation(%s)::text", (column.collation,)).fetchone()
        if row is not None and row[0] is not None:
            parts.append(sql.SQL("collate {}").format(sql.SQL(row[0])))  # the target's own quoted name
    if generated and column.generation is not None:
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


def check_fit(
    columns: Sequence[PgColumn],
    target: Relation,
    *,
    label: str,
    new_columns: str = "freeze",
    type_changes: str = "freeze",
) -> tuple[str, ...]:
    """Refuse an existing target that cannot take the source's columns.

    Args:
        new_columns, type_changes: `evolve`: the target may be altered.

    Returns:
        The columns to add, and those whose type is to be altered.

    Raises:
        ContractBroken: naming the column and both types.
    """
    alter: list[str] = []
    where = f"{target.ref} in {label}"
    if target.kind not in ("r", "p"):
        raise ContractBroken(f"{where} is not a table", where=label, hint="name a table, or another name for a new one")
    have = {column.name: column for column in target.columns}
    for column in columns:
        other = have.get(column.name)
        if other is None:
            if new_columns == "evolve":
                alter.append(column.name)
                continue
            raise ContractBroken(
                f"{where} has no column {sql_name(column.name)}, which the source has with type {column.type}",
                where=label,
                hint=f"ALTER TABLE {target.ref} ADD COLUMN {sql_name(column.name)} {column.type}; "
                "or leave it out by naming the columns to copy",
            )
        if not same_type(column, other):
            if type_changes == "evolve":
                alter.append(column.name)
                continue
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
    return tuple(alter)


def alter_columns(target: Connection, relation: Relation, stage: Relation, names: Sequence[str]) -> None:
    """Add columns to a table, nullable, or alter their types, to those of its stage.

    Raises:
        psycopg.Error: a view needs the old type, or an old value does not fit the new one.
    """
    actions = []
    for column in stage.pick(names):
        kind = type_of(column, named(column)[0])
        if column.name in relation.names:
            action = sql.SQL("alter column {0} type {1} using {0}::{1}").format(column.identifier, kind)
        else:
            action = sql.SQL("add column {} {}").format(column.identifier, kind)
        actions.append(action)
    target.execute(sql.SQL("alter table {} {}").format(relation.identifier, sql.SQL(", ").join(actions)))


def written(columns: Sequence[PgColumn]) -> tuple[PgColumn, ...]:
    """Return the columns that a copy writes: all but generated ones, which the server computes."""
    return tuple(column for column in columns if not column.generated)


def free(target: Connection, schema: str, wanted: str) -> str:
    """Return a name that no relation of a schema has: the wanted one, or, as the server does it, with a number."""
    for number in range(100):
        name = cut(wanted, str(number) if number else "")
        if free_name(target, schema, name):
            return name
    raise ContractBroken(f"schema {sql_name(schema)} has {sql_name(wanted)} a hundred times")


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
