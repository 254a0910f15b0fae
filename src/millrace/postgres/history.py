"""Tables of versions (slowly changing dimensions, type 2): what mode `snapshot` makes and keeps.

The source's columns, then `valid_from` and `valid_to`: the instants, by the source's clock, of the snapshots that first
saw a version and that saw it changed or gone. `valid_to` is null in the current version. A closed version is never
touched again; a row that comes back opens a new one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import psycopg
from psycopg import sql

from millrace.core.digest import Digest
from millrace.core.names import TableRef
from millrace.core.staged import Counts, Staged
from millrace.errors import ContractBroken, UsageError
from millrace.postgres.apply import Applied, Table, appeared, guard_deletes, segments_of
from millrace.postgres.catalog import PgColumn, Relation, exists
from millrace.postgres.ddl import create_like, cut
from millrace.postgres.ledger import Ledger
from millrace.postgres.session import Connection
from millrace.postgres.source import Source
from millrace.postgres.stage import staged_relation

FROM, TO = "valid_from", "valid_to"
CURRENT = sql.SQL("{} is null").format(sql.Identifier(TO))
"""The predicate of current versions."""


def plain(columns: Sequence[PgColumn], label: str) -> tuple[PgColumn, ...]:
    """Return a source's columns as versions keep them: as values, not generated and no identity.

    Raises:
        UsageError: one has a name that versions need.
    """
    for column in columns:
        if column.name in (FROM, TO):
            raise UsageError(
                f"{label} has a column {column.name}, which mode snapshot adds itself",
                hint=f"give it another name: select: id, …, {column.name} as source_{column.name}",
            )
    return tuple(replace(column, generated="", generation=None, identity="") for column in columns)


def is_versions(relation: Relation | None) -> bool:
    """Whether a table is one of versions."""
    if relation is None or relation.primary_key[-1:] != (FROM,):
        return False
    types = {column.name: column.type for column in relation.columns}
    return all(types.get(name) == "timestamp with time zone" for name in (FROM, TO))


def current(source: Source) -> Source:
    """Return the current versions of a table of versions, as rows of its source."""
    names = [name for name in source.names if name not in (FROM, TO)]
    label = f"the current versions of {source.label}"
    return replace(source.only(source.pick(names)).narrowed(CURRENT), label=label)


def without(relation: Relation, label: str) -> Relation:
    """Return a table of versions without its two columns of its own.

    Raises:
        ContractBroken: it has not got them.
    """
    types = {column.name: column.type for column in relation.columns}
    for name in (FROM, TO):
        if types.get(name) != "timestamp with time zone":
            raise ContractBroken(
                f"{relation.ref} in {label} is no table of versions: it has no column {name} timestamptz",
                where=f"{relation.ref} in {label}",
                hint="mode snapshot needs a table of its own: name another one (as: orders_versions), or drop this one",
            )
    return replace(relation, columns=tuple(column for column in relation.columns if column.name not in (FROM, TO)))


def create(connection: Connection, ledger: Ledger, staged: Staged) -> None:
    """Create an empty table of versions with the stage's columns.

    Raises:
        GuardRefused: somebody else has made it.
        SeqMoved: somebody else has taken the stage.
    """
    ref = TableRef(staged.asset.layer, staged.asset.name)
    if exists(connection, ref, label=ledger.label):
        raise appeared(ref, ledger.label)
    ledger.make_schema(connection, staged.asset.layer)
    place = sql.Identifier(staged.asset.layer, staged.asset.name)
    key = sql.SQL(", ").join(sql.Identifier(name) for name in staged.schema.key)
    try:
        create_like(connection, place, staged_relation(connection, ledger, staged), staged.schema.names)
    except (psycopg.errors.DuplicateTable, psycopg.errors.UniqueViolation) as error:
        raise appeared(ref, ledger.label) from error
    connection.execute(
        sql.SQL(
            "alter table {} add {} timestamptz not null, add {} timestamptz, add constraint {} primary key ({}, {})"
        ).format(
            place,
            sql.Identifier(FROM),
            sql.Identifier(TO),
            sql.Identifier(cut(staged.asset.name, "_pkey")),
            key,
            sql.Identifier(FROM),
        )
    )
    connection.execute(sql.SQL("create unique index on {} ({}) where {}").format(place, key, CURRENT))


def snapshot(table: Table) -> Applied:
    """Close the versions that changed or are gone, open new ones, and prove the current ones against the source."""
    at = sql.Literal(_instant(table))
    where = segments_of(table)
    mine = CURRENT if where is None else sql.SQL("{} and {}").format(CURRENT, where)
    target = sql.SQL("{} as t").format(table.relation.identifier)
    gone = table.number(
        sql.SQL("select pg_catalog.count(*) from {} where {} and {}").format(target, mine, table.lacks())
    )
    if gone:
        guard_deletes(table, gone, CURRENT)
    closed = table.run(
        sql.SQL("update {} set {} = {} where {} and not exists (select from {} s where {} and not ({}))").format(
            target, sql.Identifier(TO), at, mine, table.stage, table.same_key, table.differs
        )
    )
    names = [column.identifier for column in table.columns]
    opened = table.run(
        sql.SQL(
            "insert into {} ({}, {}) select {}, {} from {} s "
            "where not exists (select from {} t where {} and t.{} is null)"
        ).format(
            table.relation.identifier,
            sql.SQL(", ").join(names),
            sql.Identifier(FROM),
            sql.SQL(", ").join(sql.SQL("s.{}").format(name) for name in names),
            at,
            table.stage,
            table.relation.identifier,
            table.same_key,
            sql.Identifier(TO),
        )
    )
    found = table.digest(CURRENT)
    table.prove(found, Digest.from_json(table.staged.detail["whole"]), "the current versions")
    changed = closed - gone
    return Applied(Counts(opened - changed, changed, gone), "table", found, found.rows)


def _instant(table: Table) -> str:
    """Return when the source's snapshot was taken; later than every instant in the table, whatever clocks say."""
    query = sql.SQL(
        "select greatest({at}::timestamptz, pg_catalog.max({first}) + interval '1 microsecond',"
        " pg_catalog.max({last}) + interval '1 microsecond')::text from {table}"
    )
    row = table.connection.execute(
        query.format(
            at=sql.Literal(table.staged.detail["at"]),
            first=sql.Identifier(FROM),
            last=sql.Identifier(TO),
            table=table.relation.identifier,
        )
    ).fetchone()
    return str(row[0]) if row else str(table.staged.detail["at"])
