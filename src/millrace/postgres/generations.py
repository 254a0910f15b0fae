"""Generations of a PostgreSQL warehouse: hidden schemas in which one build is made, beside what readers see.

A generation of number 42 that makes `staging` and `marts` lies in `staging__000042` and `marts__000042`. One row of
`<ledger schema>.generation` names its run, the generation that it began from and what was staged in it; the row and
its schemas are made in one transaction, so a killed run leaves nothing that no row names. Numbers are never reused.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import LiteralString

import psycopg
from psycopg import sql

from millrace.core.names import AssetId, short_run
from millrace.core.staged import Staged
from millrace.errors import ProjectError, SeqMoved
from millrace.postgres.ledger import Ledger
from millrace.postgres.names import sql_name
from millrace.postgres.session import Connection

LONGEST = 63  # bytes of a name in PostgreSQL
DROP_LOCK_MS = 75  # a reader of an old generation is not waited for: it is dropped another time

_TABLE: LiteralString = """
create table {} (
    number bigint generated always as identity primary key, run text not null, base bigint not null,
    schemas text[] not null, members jsonb, started timestamptz not null default pg_catalog.now(),
    published timestamptz)"""
_SELECT: LiteralString = "select number, run, base, schemas, members, published is not null from {table}"

_DROP: Mapping[str, LiteralString] = {
    "v": "drop view {}",
    "m": "drop materialized view {}",
    "f": "drop foreign table {}",
    "r": "drop table {}",
    "p": "drop table {}",
    "S": "drop sequence {}",
}


@dataclass(frozen=True, slots=True)
class Generation:
    """One row of the table of generations.

    Attributes:
        base: number of the generation that was published when it was made; 0: none.
        schemas: the public names of its schemas.
        members: what was staged in it; empty while it is being built.
    """

    number: int
    run: str
    base: int
    schemas: tuple[str, ...]
    members: tuple[Staged, ...]
    published: bool

    @property
    def suffix(self) -> str:
        """What its schemas' names end with."""
        return f"__{self.number:06d}"

    @property
    def place(self) -> str:
        """Its name in a stage."""
        return f"{self.number:06d}"

    def relation(self, asset: AssetId) -> sql.Identifier:
        """Return where an asset lies in it."""
        return sql.Identifier(asset.layer + self.suffix, asset.name)

    @property
    def hidden(self) -> list[str]:
        """The names of its schemas."""
        return [name + self.suffix for name in self.schemas]


def gone(run: str) -> SeqMoved:
    """Return the error for a generation that is not there any more, or that is published."""
    return SeqMoved(
        f"the warehouse's generation of run {short_run(run)} is gone: it was dropped or published by someone else",
        hint="run again: it starts from what is published now",
    )


class Generations:
    """The table of generations beside a ledger; every call is given the connection, and with it the transaction."""

    def __init__(self, book: Ledger) -> None:
        self._book = book
        self._table = book.table("generation")

    def ensure(self, connection: Connection) -> None:
        """Make ledger and table where they are missing; `connection` is in autocommit mode."""
        self._book.ensure(connection)
        if self._known(connection):
            return
        with connection.transaction():
            self.lock(connection)
            if not self._known(connection):
                connection.execute(sql.SQL(_TABLE).format(self._table))

    def _known(self, connection: Connection) -> bool:
        found = connection.execute(
            "select 1 from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace "
            "where n.nspname = %s and c.relname = 'generation'",
            (self._book.schema,),
        ).fetchone()
        return found is not None

    def lock(self, connection: Connection) -> None:
        """Let one publish of the warehouse run at a time, until the transaction ends."""
        self._book.lock(connection, AssetId("", "generation"))

    def all(self, connection: Connection) -> list[Generation]:
        """Return all generations, oldest first; none where the table was never made."""
        if not self._known(connection):
            return []
        query = sql.SQL(_SELECT + " order by number").format(table=self._table)
        found = []
        for number, run, base, schemas, members, published in connection.execute(query).fetchall():
            staged = tuple(Staged.from_json(one) for one in members or ())
            found.append(Generation(number, run, base, tuple(schemas), staged, published))
        return found

    def published(self, connection: Connection) -> Generation | None:
        """Return the one that readers see."""
        return next((one for one in reversed(self.all(connection)) if one.published), None)

    def of_run(self, connection: Connection, run: str) -> list[Generation]:
        """Return what a run has that is not published."""
        return [one for one in self.all(connection) if one.run == run and not one.published]

    def take(self, connection: Connection, run: str, schemas: Sequence[str]) -> Generation:
        """Make a generation for a run, with empty schemas, on what is published now.

        Raises:
            ProjectError: a schema's name is too long to be hidden.
        """
        with connection.transaction():
            base = self.published(connection)
            row = connection.execute(
                sql.SQL("insert into {} (run, base, schemas) values (%s, %s, %s) returning number").format(self._table),
                (run, base.number if base else 0, list(schemas)),
            ).fetchone()
            made = Generation(row[0] if row else 0, run, base.number if base else 0, tuple(schemas), (), False)
            for name in made.hidden:
                if len(name.encode()) > LONGEST:
                    raise ProjectError(
                        f"the schema {name} would have {len(name.encode())} bytes, PostgreSQL allows {LONGEST}",
                        hint=f"give the schema a name of at most {LONGEST - len(made.suffix)} bytes",
                    )
                connection.execute(sql.SQL("create schema {}").format(sql.Identifier(name)))
        return made

    def carry(self, connection: Connection, made: Generation, assets: Iterable[AssetId]) -> int:
        """Clone tables of the generation that a new one began from, with indexes and comments; returns how many.

        What is not a table there is left out: it will be made anew.
        """
        base = next((one for one in self.all(connection) if one.number == made.base), None)
        count = 0
        if base is None:
            return count
        for asset in assets:
            kind = connection.execute(
                "select c.relkind::text from pg_catalog.pg_class c "
                "join pg_catalog.pg_namespace n on n.oid = c.relnamespace where n.nspname = %s and c.relname = %s",
                (asset.layer + base.suffix, asset.name),
            ).fetchone()
            if kind is None or kind[0] != "r":
                continue
            old, new = base.relation(asset), made.relation(asset)
            with connection.transaction():
                connection.execute(sql.SQL("create table {} (like {} including all)").format(new, old))
                connection.execute(sql.SQL("insert into {} overriding system value select * from {}").format(new, old))
            connection.execute(sql.SQL("analyze {}").format(new))
            count += 1
        return count

    def record(self, connection: Connection, made: Generation, staged: Sequence[Staged]) -> None:
        """Record what was staged in a generation, all at once. Raises SeqMoved when it is gone."""
        members = json.dumps([one.to_json() for one in staged])
        changed = connection.execute(
            sql.SQL("update {} set members = %s where number = %s and published is null").format(self._table),
            (members, made.number),
        )
        if changed.rowcount != 1:
            raise gone(made.run)

    def note_published(self, connection: Connection, made: Generation) -> None:
        """Say that readers see it from this transaction on; the members are in the ledger then."""
        connection.execute(
            sql.SQL("update {} set published = pg_catalog.now(), members = null where number = %s").format(self._table),
            (made.number,),
        )

    def drop(self, connection: Connection, old: Generation) -> bool:
        """Drop a generation's schemas, never with CASCADE; `connection` is in autocommit mode.

        What somebody else reads now or has built upon (a view on a hidden table, the view of a model that was taken
        out of the project) stays, and with it the row, for another time.

        Returns:
            Whether all of it is gone.
        """
        connection.execute(sql.SQL("set lock_timeout = {}").format(sql.Literal(DROP_LOCK_MS)))
        while sum(self._drop_relation(connection, *row) for row in self._relations(connection, old)):
            pass  # a view that others of the generation read goes after them
        left = [name for name in old.hidden if not self._attempt(connection, sql.SQL("drop schema if exists {}"), name)]
        connection.execute("set lock_timeout = 0")
        if left:
            return False
        connection.execute(sql.SQL("delete from {} where number = %s").format(self._table), (old.number,))
        return True

    def _relations(self, connection: Connection, old: Generation) -> list[tuple[str, str, str]]:
        found = connection.execute(
            "select c.relkind::text, n.nspname::text, c.relname::text from pg_catalog.pg_class c "
            "join pg_catalog.pg_namespace n on n.oid = c.relnamespace "
            "where n.nspname = any(%s) and c.relkind = any(%s) order by c.oid desc",
            (old.hidden, list(_DROP)),
        ).fetchall()
        return [(kind, schema, name) for kind, schema, name in found]

    def _drop_relation(self, connection: Connection, kind: str, schema: str, name: str) -> bool:
        return self._attempt(connection, sql.SQL(_DROP[kind]), schema, name)

    def _attempt(self, connection: Connection, statement: sql.SQL, *name: str) -> bool:
        try:
            connection.execute(statement.format(sql.Identifier(*name)))
        except (
            psycopg.errors.DependentObjectsStillExist,
            psycopg.errors.LockNotAvailable,
            psycopg.errors.DeadlockDetected,
            psycopg.errors.UndefinedTable,
        ):
            return False
        return True

    def describe(self, old: Generation) -> str:
        """Return a generation's name for messages."""
        return f"generation {old.place} ({', '.join(sql_name(name) for name in old.hidden)})"
