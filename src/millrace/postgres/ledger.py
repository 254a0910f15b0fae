"""The ledger in a PostgreSQL target: what was published, and the tables that stages are kept in.

A schema (`_millrace` unless set otherwise) holds `format`, `ledger`, `history`, `stage`, `segment` and `quarantine`; a
second one, `<schema>_stage`, holds the hidden tables. A row's key is the place inside the target, (schema, table),
never a project's alias, so that every way to copy into a table competes for one row. Everything is made at the first
use, under an advisory lock.
"""

from __future__ import annotations

import json
from typing import Any, LiteralString

from psycopg import sql
from psycopg.pq import TransactionStatus

from millrace.core.names import AssetId, fingerprint, short_run
from millrace.core.staged import FORMAT, LedgerEntry, check_format
from millrace.errors import PermissionMissing, SeqMoved, UsageError
from millrace.postgres.names import sql_name
from millrace.postgres.session import Connection, translated
from millrace.postgres.sqlstates import grant

LONGEST_SCHEMA = 57  # bytes, so that `<schema>_stage` still is a name

_TABLES: LiteralString = """
create table {schema}.format (version integer not null);
insert into {schema}.format values ({version});
create table {schema}.ledger (
    layer text not null, name text not null, seq bigint not null, load bigint not null,
    entry jsonb not null, primary key (layer, name));
create table {schema}.history (
    layer text not null, name text not null, seq bigint not null, load bigint not null,
    entry jsonb not null, primary key (layer, name, seq), unique (layer, name, load));
create table {schema}.stage (
    layer text not null, name text not null, load bigint not null, run text not null, step text not null,
    base bigint not null, how text not null, place text not null, origin text not null, plan jsonb,
    token text not null, owner text, host text, pid integer,
    started timestamptz not null, heartbeat timestamptz not null, staged jsonb, primary key (layer, name));
create table {schema}.segment (
    layer text not null, name text not null, id text not null, rows bigint not null, xid text not null,
    primary key (layer, name, id), foreign key (layer, name) references {schema}.stage on delete cascade);
"""
QUARANTINE: LiteralString = """
create table if not exists {schema}.quarantine (
    layer text not null, name text not null, entry text not null, status text not null,
    rule text not null, about text not null, reason text not null,
    columns text[] not null, keys text[] not null, key text[] not null, digest bigint not null,
    row jsonb not null, fix jsonb, source text, bytes bytea,
    since timestamptz not null, run text not null, load bigint not null, settled timestamptz,
    primary key (layer, name, entry));
create index if not exists quarantine_key on {schema}.quarantine using hash (key);
"""
"""Ledgers that earlier versions made get it when the first row is set aside."""


class Ledger:
    """The ledger's tables in one schema; every call is given the connection, and with it the transaction.

    Args:
        schema: where it is.
        label: what messages call the database.
        remember: whether tables that were seen once need not be looked for again.
    """

    def __init__(self, schema: str, label: str, *, remember: bool = False) -> None:
        if not schema or len(schema.encode()) > LONGEST_SCHEMA:
            raise UsageError(f"the ledger's schema must have 1 to {LONGEST_SCHEMA} bytes: {schema!r}")
        self.schema = schema
        self.stage_schema = f"{schema}_stage"
        self.label = label
        self._remember = remember
        self._seen = self._keeps = False
        self._rendered: dict[str, sql.Composed] = {}

    def table(self, name: str) -> sql.Identifier:
        """Return a table of the ledger's schema for building SQL."""
        return sql.Identifier(self.schema, name)

    def sql(self, text: LiteralString, **more: sql.Composable) -> sql.Composed:
        """Return SQL in which {ledger}, {history}, {stage}, {segment}, {quarantine} stand for the tables.

        What else stands for something is given in `more`, for one text always the same.
        """
        if text not in self._rendered:
            names = ("format", "ledger", "history", "stage", "segment", "quarantine")
            whole = sql.SQL(text).format(**{name: self.table(name) for name in names}, **more)
            rendered: Any = whole.as_string()
            self._rendered[text] = sql.Composed([sql.SQL(rendered)])
        return self._rendered[text]

    # existence

    def known(self, connection: Connection) -> bool:
        """Return whether the ledger's tables exist.

        Raises:
            NewerFormat: a newer version made them.
            PermissionMissing: they may not be read.
        """
        if self._seen:
            return True
        row = connection.execute(
            "select c.oid, pg_catalog.has_schema_privilege(n.oid, 'USAGE') "
            "and pg_catalog.has_table_privilege(c.oid, 'SELECT') "
            "from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace "
            "where n.nspname = %s and c.relname = 'format'",
            (self.schema,),
        ).fetchone()
        if row is None:
            return False
        if not row[1]:
            raise self._unusable(connection)
        found = connection.execute(self.sql("select version from {format}")).fetchone()
        check_format(found[0] if found else FORMAT, f"the ledger in schema {self.schema} of {self.label}")
        self._seen = self._remember
        if self._remember:
            self.keeps_rows(connection)  # now: in the transactions to come nothing is remembered
        return True

    def keeps_rows(self, connection: Connection) -> bool:
        """Return whether the table of rows in quarantine exists: ledgers of earlier versions have none."""
        if self._keeps:
            return True
        query = (
            "select 1 from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace"
            " where n.nspname = %s and c.relname = 'quarantine'"
        )
        found = connection.execute(query, (self.schema,)).fetchone() is not None
        # what was made in an open transaction may still be rolled back
        if found and self._remember and connection.info.transaction_status is TransactionStatus.IDLE:
            self._keeps = True
        return found

    def _unusable(self, connection: Connection) -> PermissionMissing:
        user = connection.info.user
        name = sql_name(self.schema)
        return PermissionMissing(
            f"{user} may not use the ledger in schema {self.schema}",
            where=self.label,
            hint=f"{grant('USAGE', 'schema', name, user)} "
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {name} TO {sql_name(user)};",
        )

    def ensure(self, connection: Connection) -> None:
        """Make the schemas and tables when they are missing; `connection` is in autocommit mode.

        Raises:
            PermissionMissing: naming the GRANT.
            NewerFormat: a newer version made them.
        """
        with translated(self.label, f"make the ledger in schema {self.schema}", connection=connection):
            if self.known(connection):
                return
            with connection.transaction():
                self._serialise(connection)
                if self.known(connection):  # two first runs raced: the other one was first
                    return
                for schema in (self.schema, self.stage_schema):
                    self.make_schema(connection, schema)
                connection.execute(
                    sql.SQL(_TABLES + QUARANTINE).format(
                        schema=sql.Identifier(self.schema), version=sql.Literal(FORMAT)
                    )
                )

    def _serialise(self, connection: Connection) -> None:
        connection.execute("select pg_catalog.pg_advisory_xact_lock(%s)", (self._number("schema"),))

    def make_schema(self, connection: Connection, schema: str) -> None:
        """Create a schema unless it exists: `if not exists` would ask for the right even then."""
        row = connection.execute("select 1 from pg_catalog.pg_namespace where nspname = %s", (schema,)).fetchone()
        if row is None:
            connection.execute(sql.SQL("create schema {}").format(sql.Identifier(schema)))

    # reading and writing

    def read(self, connection: Connection, asset: AssetId, *, lock: bool = False) -> LedgerEntry | None:
        """Return an asset's entry.

        Args:
            lock: lock the row; the tables must exist.

        Raises:
            NewerFormat: a newer version wrote it.
        """
        with translated(self.label, f"read the ledger of {asset}", connection=connection):
            if not lock and not self.known(connection):
                return None
            query = "select entry from {ledger} where layer = %s and name = %s"
            found = connection.execute(
                self.sql(query + " for update" if lock else query), (asset.layer, asset.name)
            ).fetchone()
        return None if found is None else LedgerEntry.from_json(_object(found[0]))

    def published(self, connection: Connection, asset: AssetId, load: int) -> LedgerEntry | None:
        """Return what a load published, also when others have published since."""
        found = connection.execute(
            self.sql("select entry from {history} where layer = %s and name = %s and load = %s"),
            (asset.layer, asset.name, load),
        ).fetchone()
        return None if found is None else LedgerEntry.from_json(_object(found[0]))

    def lock(self, connection: Connection, asset: AssetId) -> None:
        """Let one publish of an asset run at a time, also before it has a row; until the transaction ends."""
        connection.execute("select pg_catalog.pg_advisory_xact_lock(%s)", (self._number(asset.layer, asset.name),))

    def write(self, connection: Connection, entry: LedgerEntry) -> None:
        """Write an entry if the ledger still is one before it, and its history.

        Raises:
            SeqMoved: it is not.
        """
        values = {
            "layer": entry.asset.layer,
            "name": entry.asset.name,
            "seq": entry.seq,
            "load": entry.load,
            "entry": json.dumps(entry.to_json()),
        }
        if entry.seq == 1:
            statement = self.sql(
                "insert into {ledger} values (%(layer)s, %(name)s, %(seq)s, %(load)s, %(entry)s)"
                " on conflict do nothing returning *"
            )
        else:
            statement = self.sql(
                "update {ledger} set seq = %(seq)s, load = %(load)s, entry = %(entry)s "
                "where layer = %(layer)s and name = %(name)s and seq = %(seq)s - 1 returning *"
            )
        both = sql.SQL("with written as ({}) insert into {} select layer, name, seq, load, entry from written")
        if connection.execute(both.format(statement, self.table("history")), values).rowcount != 1:
            raise moved(entry.asset, None)

    def _number(self, *names: str) -> int:
        """Return an advisory lock's number: 63 bits of the database-local name."""
        return int(fingerprint("millrace", self.schema, *names), 16) >> 1


def moved(asset: AssetId, found: LedgerEntry | None) -> SeqMoved:
    """Return the error for a publish that came second."""
    detail = [] if found is None else [f"load {found.seq} of {found.time} (run {short_run(found.run)}) is there now"]
    return SeqMoved(
        f"{asset} was published by someone else since this was staged",
        where=str(asset),
        detail=detail,
        hint="what was staged is dropped; run again to start from what is there now",
    )


def _object(value: Any) -> dict[str, Any]:
    """Return a jsonb value, which psycopg has parsed unless a loader was changed."""
    found: dict[str, Any] = json.loads(value) if isinstance(value, str) else value
    return found
