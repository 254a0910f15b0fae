"""Keys: that they exist, hold no null and no value twice; proven by an index where one does, else by a scan."""

from __future__ import annotations

from collections.abc import Sequence

import psycopg
from psycopg import sql

from millrace.errors import KeyInvalid, did_you_mean
from millrace.postgres.catalog import PgColumn
from millrace.postgres.names import sql_name
from millrace.postgres.session import Connection, translate
from millrace.postgres.source import Source
from millrace.postgres.types import text_form

EXAMPLES = 3


def key_columns(source: Source, key: Sequence[str]) -> tuple[PgColumn, ...]:
    """Return the key's columns.

    Raises:
        KeyInvalid: there is no key, a column is missing or named twice.
    """
    if not key:
        raise KeyInvalid(
            f"{source.label} has no primary key and no key was named",
            where=source.database,
            hint="name the columns that tell rows apart: --key id, or key: [id] in the project",
        )
    for name in key:
        if name not in source.names:
            raise KeyInvalid(
                f"the key names the column {sql_name(name)}, which {source.label} does not have",
                where=source.database,
                hint=did_you_mean(name, source.names),
            )
    if len(set(key)) != len(key):
        raise KeyInvalid(f"the key of {source.label} names a column twice: {', '.join(key)}", where=source.database)
    return source.pick(key)


def check_key(connection: Connection, source: Source, key: Sequence[str]) -> None:
    """Refuse a key that does not tell rows apart.

    Args:
        connection: a connection, or a transaction in the snapshot that is read.
        source: what is read.
        key: names of the key columns.

    Raises:
        KeyInvalid: a column is missing, is null somewhere, or two rows have the same key; with examples.
    """
    columns = key_columns(source, key)
    if proven(source, columns):
        return
    try:
        _scan(connection, source, columns)
    except psycopg.Error as error:
        if error.sqlstate == "42883":  # could not identify an equality operator
            raise KeyInvalid(
                f"the key of {source.label} has a column whose type has no equality",
                where=source.database,
                detail=[f"{sql_name(column.name)}: {column.type}" for column in columns],
            ) from error
        raise translate(error, where=source.database, doing=f"check the key of {source.label}") from error


def proven(source: Source, columns: Sequence[PgColumn]) -> bool:
    """Return whether an index of the server proves the key: unique, whole, valid, on NOT NULL columns."""
    relation = source.relation
    if relation is None or source.query is not None or not all(column.not_null for column in columns):
        return False
    if relation.kind == "r" and not relation.paged:
        return False  # an index of an inheritance parent says nothing about the rows of its children
    names = {column.name for column in columns}
    return any(
        index.unique and index.valid and not index.partial and index.columns and set(index.columns) <= names
        for index in relation.indexes
    )


def _scan(connection: Connection, source: Source, columns: Sequence[PgColumn]) -> None:
    names = ", ".join(sql_name(column.name) for column in columns)
    nullable = [column for column in columns if not column.not_null]
    if nullable:
        missing = sql.SQL(" or ").join(sql.SQL("{} is null").format(column.identifier) for column in nullable)
        found = connection.execute(source.select([sql.SQL("pg_catalog.count(*)")], missing)).fetchone()
        if found and found[0]:
            rows = connection.execute(
                source.select([text_form(column) for column in columns], missing)
                + sql.SQL(" limit {}").format(sql.Literal(EXAMPLES))
            ).fetchall()
            raise KeyInvalid(
                f"{found[0]:,} {'row has' if found[0] == 1 else 'rows have'} a null in the key ({names}) of "
                f"{source.label}",
                where=source.database,
                detail=[_shown(columns, row) for row in rows],
            )
    grouped = sql.SQL("{} group by {} having pg_catalog.count(*) > 1").format(
        source.select(
            [sql.SQL("pg_catalog.count(*) as n"), *map(text_form, columns)],
        ),
        sql.SQL(", ").join(column.identifier for column in columns),
    )
    rows = connection.execute(
        sql.SQL("select pg_catalog.count(*) over (), * from ({}) as twice limit {}").format(
            grouped, sql.Literal(EXAMPLES)
        )
    ).fetchall()
    if rows:
        total = rows[0][0]
        raise KeyInvalid(
            f"{total:,} {'key' if total == 1 else 'keys'} ({names}) of {source.label} "
            f"{'stands' if total == 1 else 'stand'} for more than one row",
            where=source.database,
            detail=[f"{_shown(columns, row[2:])}: {row[1]:,} rows" for row in rows],
            hint="name all columns that tell rows apart, or clean the source",
        )


def _shown(columns: Sequence[PgColumn], values: Sequence[object]) -> str:
    return ", ".join(
        f"{sql_name(column.name)} = {'null' if value is None else value}"
        for column, value in zip(columns, values, strict=True)
    )
