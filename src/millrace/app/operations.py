"""What `api.DatabaseOperations` needs of two databases around a copy, without a project."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from millrace.app.comparing import compare
from millrace.app.copying import database_of
from millrace.core.names import AssetId, TableRef
from millrace.errors import PermissionMissing

if TYPE_CHECKING:
    from millrace.postgres.catalog import Relation
    from millrace.postgres.diff import TableDiff
    from millrace.postgres.session import Connection, Database


@dataclass(frozen=True, slots=True)
class DescribedTable:
    """A table, and where it was described: the database as the caller named it."""

    database: str
    relation: Relation


@contextlib.contextmanager
def _opened(text: str, label: str, purpose: str) -> Iterator[tuple[Connection, Database]]:
    from millrace.postgres.session import connect

    with contextlib.ExitStack() as closing:
        database = database_of(text, label, closing, trusted_urls=True)
        yield closing.enter_context(connect(database, purpose=purpose)), database


def reach_database(text: str, label: str, *, to_write: bool = False) -> tuple[str, str, str, bool]:
    """Return version, user, database and whether schemas may be made.

    Raises:
        ConnectionRefused, AuthenticationFailed: it cannot be reached.
        PermissionMissing: `to_write`, and schemas may not be made; the hint is the GRANT.
    """
    from millrace.postgres.names import sql_name
    from millrace.postgres.sqlstates import grant

    with _opened(text, label, "test") as (connection, database):
        row = connection.execute(
            "select current_setting('server_version'), current_user::text, current_database()::text,"
            " has_database_privilege(current_database(), 'create')"
        ).fetchone()
    assert row is not None  # noqa: S101 - one row whatever happens
    version, user, name, may_create = row
    if to_write and not may_create:
        raise PermissionMissing(
            f"{user} may not make schemas in {name}",
            where=database.label,
            hint=grant("CREATE", "database", sql_name(name), user),
        )
    return version, user, name, may_create


def describe_table(text: str, table: str) -> DescribedTable:
    """Describe a table of the source. Raises NotFound, PermissionMissing, UsageError."""
    from millrace.postgres.catalog import describe

    ref = TableRef.parse(table)
    with _opened(text, "source", "describe") as (connection, database):
        return DescribedTable(text, describe(connection, ref, label=database.label))


def count_rows(text: str, table: str, where: str | None) -> int:
    """Count a table's rows, under the author's condition. Raises NotFound, PermissionMissing, UsageError."""
    from psycopg import sql

    from millrace.postgres.reader import PostgresReader

    ref = TableRef.parse(table)
    with contextlib.ExitStack() as closing:
        reader = PostgresReader(database_of(text, "source", closing, trusted_urls=True))
        snap = closing.enter_context(reader.snapshot())  # read only, so a condition cannot write
        source = reader.source(ref, where=where, connection=snap.connection)
        row = snap.connection.execute(source.select([sql.SQL("pg_catalog.count(*)")])).fetchone()
    return int(row[0]) if row else 0


def create_missing_table(described: DescribedTable, text: str, table: str) -> tuple[str, ...]:
    """Make a table like another, with what belongs to it, in one transaction, or see that the existing one fits.

    Returns:
        What the target cannot make, each with its server's reason.

    Raises:
        ContractBroken: it does not fit, or a type is missing.
        PermissionMissing: naming the GRANT.
    """
    from psycopg import sql

    from millrace.postgres.belongings import make_belongings, read_belongings
    from millrace.postgres.catalog import describe, exists
    from millrace.postgres.ddl import check_fit, create_table
    from millrace.postgres.publish import rename_indexes
    from millrace.postgres.session import translated
    from millrace.postgres.target import PostgresTarget
    from millrace.postgres.usertypes import bring_types

    relation, ref = described.relation, TableRef.parse(table)
    with (
        _opened(text, "target", "create") as (target, database),
        _opened(described.database, "source", "types") as (
            source,
            _,
        ),
    ):
        place = TableRef(ref.schema or _first_schema(target), ref.name)
        if exists(target, place, label=database.label):
            check_fit(relation.columns, describe(target, place, label=database.label), label=database.label)
            return ()
        asset = AssetId(place.schema or "", place.name)
        PostgresTarget(database, "target").check_rights(target, asset, "create")
        with translated(database.label, f"make {place}", connection=target, privilege="CREATE"), target.transaction():
            identifier = sql.Identifier(asset.layer, asset.name)
            target.execute(sql.SQL("create schema if not exists {}").format(sql.Identifier(asset.layer)))
            schemas = bring_types(source, target, relation.columns, label=database.label)
            create_table(target, identifier, relation.columns, schemas)
            if relation.primary_key:
                names = sql.SQL(", ").join(map(sql.Identifier, relation.primary_key))
                target.execute(sql.SQL("alter table {} add primary key ({})").format(identifier, names))
            belongings = read_belongings(source, relation, [column.name for column in relation.columns])
            made = make_belongings(target, place, belongings)
            rename_indexes(target, asset.layer, made.names)
    return tuple(made.left_out)


def drop_leftovers(text: str) -> Sequence[str]:
    """Drop stages of dead runs that nobody will resume; returns their names."""
    from millrace.postgres.target import PostgresTarget

    with contextlib.ExitStack() as closing:
        database = database_of(text, "target", closing, trusted_urls=True)
        return PostgresTarget(database, "target").gc(lambda _run: True)  # unknown runs may be resumed for a day


def _first_schema(connection: Connection) -> str:
    row = connection.execute("select current_schema()").fetchone()
    return str(row[0]) if row and row[0] else "public"


def compare_tables(
    source: str, table: str, target: str, other: str, key: tuple[str, ...], limit: int
) -> tuple[TableDiff, Mapping[str, Any]]:
    """Compare two tables row by row, and column by column. Raises KeyInvalid, NotFound, PermissionMissing."""
    found = compare(source, table, target, other, key=key, limit=limit, statistics=True, trusted_urls=True)
    return found.difference, found.statistics
