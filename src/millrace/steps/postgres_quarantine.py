"""Entries of a table in PostgreSQL, replayed or dropped: a load that moves no position, and what is told of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from millrace.core.digest import Digest
from millrace.core.names import AssetId
from millrace.core.plan import Step
from millrace.core.ports import Context
from millrace.core.position import Whole
from millrace.core.quarantine import Balance, Entry
from millrace.core.segment import Segment
from millrace.core.staged import LedgerEntry, Staged
from millrace.errors import UsageError
from millrace.postgres.apply import fits_of
from millrace.postgres.catalog import Relation
from millrace.postgres.quarantine import Store
from millrace.postgres.reader import digest_segments
from millrace.postgres.session import Connection, translated
from millrace.postgres.source import Source
from millrace.postgres.stage import schema_of
from millrace.postgres.target import PostgresTarget
from millrace.postgres.unreadable import legible
from millrace.steps.entries import check_set, chosen, nothing_holds, nothing_there
from millrace.steps.postgres_checks import sieve_of

Row = Mapping[str, str | None]


@dataclass(frozen=True, slots=True)
class _Held:
    """A table and its rows in quarantine, by an open connection."""

    connection: Connection
    relation: Relation
    store: Store

    def whole(self, label: str) -> Digest:
        """Digest the table's rows as the source has them."""
        columns = self.store.columns
        query = sql.SQL("select * from {} as t").format(self.store.everything(self.relation.identifier))
        segment = Segment.whole()
        source = Source(str(self.relation.ref), columns, self.relation, query=query, database=label)
        return dict(digest_segments(self.connection, source, [segment]))[segment.id]


def _held(target: PostgresTarget, connection: Connection, asset: AssetId) -> _Held | None:
    """Return a table with its quarantine; None when it is missing or nothing is kept of it."""
    relation = target.relation(asset, connection)
    bare = Store(connection, target.book, asset)
    if relation is None or bare.empty:
        return None
    names, key = bare.names()
    columns = relation.pick([name for name in names if name in relation.names])
    return _Held(connection, relation, Store(connection, target.book, asset, columns, relation.pick(key)))


# looking


def entries(target: PostgresTarget, asset: AssetId) -> list[Entry]:
    """Return a table's entries, the oldest first."""
    with target.connect("quarantine") as connection, _reading(target, asset, connection):
        held = _held(target, connection, asset)
        return [] if held is None else held.store.entries()


def balance(target: PostgresTarget, asset: AssetId, entry: LedgerEntry) -> Balance:
    """Return the sums of a table with its quarantine; where the source's digest is known, both are compared now."""
    with target.connect("quarantine") as connection, _reading(target, asset, connection):
        held = _held(target, connection, asset)
        if held is None:
            return Balance(max(entry.rows, 0), entry.level == "table", max(entry.rows, 0), 0, 0, 0, None)
        counts = held.store.counts()
        query = sql.SQL("select pg_catalog.count(*) from {}").format(held.relation.identifier)
        row = connection.execute(query).fetchone()
        rows = int(row[0]) if row else 0
        source = rows - counts["replayed"] + sum(counts.values())
        wanted = entry.position.digest if isinstance(entry.position, Whole) else None
        agree = None if wanted is None else held.whole(target.database.label) == wanted
        return Balance(
            source, entry.level == "table", rows, counts["open"], counts["replayed"], counts["dropped"], agree
        )


def _reading(target: PostgresTarget, asset: AssetId, connection: Connection) -> Any:
    return translated(target.database.label, f"read the quarantine of {asset}", connection=connection)


# replaying and dropping


def stage(target: PostgresTarget, asset: AssetId, step: Step, ctx: Context) -> Staged:
    """Decide what a load does to entries: `step.spec` as for the lake.

    Raises:
        NotFound: there is no such entry.
        UsageError: an entry is not open, or a value does not fit its column.
        ContractBroken: none of the rows holds the rules.
    """
    before = target.ledger(asset)
    with target.connect("quarantine") as connection, _reading(target, asset, connection):
        held = _held(target, connection, asset)
        if held is None or before is None:
            raise nothing_there(asset)
        kept = held.store.entries()
        places = chosen(asset, [one.id for one in kept], [one.status for one in kept], step.spec["entries"])
        wanted = [kept[place] for place in places]
        changed: dict[str, Row | None] = {one.id: None for one in wanted}
        status = "dropped"
        if step.spec["action"] == "replay":
            changed, status = {**_replayed(held, wanted, asset, step, ctx)}, "replayed"
        columns = held.store.columns
        schema = schema_of(columns, [column.name for column in held.store.key])
        none = Digest(0, 0, schema.shape)
        whole = held.whole(target.database.label) if before.level == "table" else before.digest or none
        return Staged(
            asset=asset,
            load=ctx.load,
            run=ctx.run,
            step=step.key,
            target=target.name,
            base=before.seq,
            how="position",
            place=str(held.relation.ref),
            schema=schema,
            position=before.position,
            expected={"all": whole},
            inputs=before.inputs,
            code=before.code,
            date=before.date,
            detail={
                "fits": fits_of(held.relation, schema.names),
                "level": before.level,
                "versions": False,
                "entries": {"status": status, "changed": changed},
            },
        )


def _replayed(held: _Held, wanted: Sequence[Entry], asset: AssetId, step: Step, ctx: Context) -> dict[str, Row]:
    """Return the fixed rows of entries that hold the rules and fit the table, by entry; tell of the others."""
    store, changes = held.store, dict(step.spec["set"])
    names, key = [column.name for column in store.columns], [column.name for column in store.key]
    for name in changes:
        check_set(asset, name, names, key)
        column = next(column for column in store.columns if column.name == name)
        if column.generated:
            raise UsageError(f"{name} of {asset} is computed by the database", hint="set what it is computed from")
    news: Row = {name: None if text == "null" else text for name, text in changes.items()}
    rules = sieve_of(step, asset, store.columns, key, ctx)
    fixes: dict[str, Row] = {}
    told: list[str] = []
    with held.connection.transaction(force_rollback=True):
        trial = store.trial(held.relation)
        for one in wanted:
            if why := _unset(one, news, key):
                told.append(f"{one.id}: {why}")
                continue
            try:
                found, why = store.tried(trial, {**one.row, **news}, rules)
            except psycopg.errors.DataError as error:
                raise UsageError(f"a value does not fit its column in {asset}: {error.diag.message_primary}") from error
            except psycopg.errors.IntegrityError as error:
                found, why = {}, str(error.diag.message_primary)
            if why:
                told.append(f"{one.id}: {why}")
            else:
                fixes[one.id] = found
    if not fixes:
        raise nothing_holds(asset, told)
    for line in told:
        ctx.report.note(f"stays open: {line}")
    return fixes


def _unset(one: Entry, news: Row, key: Sequence[str]) -> str:
    """Return why an entry cannot be replayed: which of its bytes no text can hold; nothing where all are replaced."""
    bad = [] if one.bytes is None else [name for name in legible(one.bytes) if name not in news]
    if not bad:
        return ""
    if any(name in key for name in bad):
        return "its key holds bytes that the table cannot: mend it at the source, or drop it"
    told = " ".join(f"--set {name}=…" for name in bad)
    return f"{', '.join(bad)} cannot be held by the table as it is: {told}, or mend it at the source"
