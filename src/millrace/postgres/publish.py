"""Publishing: one transaction that applies stages to their tables, proves the result and writes the ledger.

`create` renames the proven stage into place, `position` moves nothing but the ledger; what is done to a table that is
there stands in `apply`, its exchange for the stage in `swap`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime

import psycopg
from psycopg import sql

from millrace.core.digest import Digest
from millrace.core.events import reach
from millrace.core.names import TableRef
from millrace.core.staged import Counts, LedgerEntry, Level, Proof, Staged, entry_for
from millrace.errors import MillraceError, ProofFailed, SeqMoved
from millrace.postgres import history
from millrace.postgres.apply import (
    Applied,
    Table,
    appeared,
    append,
    fits_of,
    interval,
    merge,
    open_table,
    set_aside,
    sync,
    truncate,
)
from millrace.postgres.catalog import Relation, describe
from millrace.postgres.ddl import cut, free
from millrace.postgres.heap import witness
from millrace.postgres.ledger import Ledger, moved
from millrace.postgres.ownership import forget, gone, owner, row_of, ttl
from millrace.postgres.quarantine import Store, brings_bad
from millrace.postgres.session import Connection
from millrace.postgres.source import Source
from millrace.postgres.swap import Swap, begin, exclusive

SIFTED = ("sync", "merge", "append", "truncate")
"""How stages are applied whose bad rows can be set aside, besides `create`."""
LOCK_MS = 1_000  # a publish that waits longer for a table gives way and tries again: writers queue behind it


def publish_in(
    connection: Connection,
    ledger: Ledger,
    staged: Sequence[Staged],
    proofs: Sequence[Proof],
    known: Callable[[Staged], Relation | None] = lambda _staged: None,
) -> tuple[LedgerEntry, ...]:
    """Publish stages in the connection's open transaction; the caller commits.

    Stages whose load the ledger carries already are adopted: their entries are returned, nothing is applied.
    `known` gives the table of a stage as its owner saw it when it was closed.

    Raises:
        SeqMoved, GuardRefused, ProofFailed, ContractBroken: nothing may be committed then.
        psycopg.Error: as the server says.
    """
    connection.execute(
        sql.SQL(
            "set local lock_timeout = {}; set local idle_in_transaction_session_timeout = {};"
            "set local application_name = {}"
        ).format(
            sql.Literal(LOCK_MS),
            sql.Literal(max(1_000, int(ttl() * 1_000))),  # a process that is stopped here must not hold locks for ever
            sql.Literal(f"millrace publish {owner()}"),
        )
    )
    by_load = {(proof.asset, proof.load): proof for proof in proofs}
    entries: list[LedgerEntry] = []
    applied: list[tuple[Staged, Proof, Applied | Swap]] = []
    for one in sorted(staged, key=lambda one: one.asset):  # in one order: two groups do not deadlock
        ledger.lock(connection, one.asset)
        earlier = ledger.published(connection, one.asset, one.load)
        if earlier is not None:
            entries.append(earlier)
            continue
        found = ledger.read(connection, one.asset, lock=True)
        if (found.seq if found else 0) != one.base:
            raise moved(one.asset, found)
        proof = by_load.get((one.asset, one.load))
        if proof is None or proof.digest is None or proof.digest.rows != sum(d.rows for d in one.expected.values()):
            raise ProofFailed(f"{one.asset} was not proven, so it is not published", where=str(one.asset))
        applied.append((one, proof, _apply(connection, ledger, one, found, known(one))))
    for one, proof, result in _finished(connection, ledger, applied):
        entry = entry_for(
            one,
            proof,
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            level=result.level,
            digest=result.digest,
            rows=result.rows,
            counts=result.counts,
        )
        aside = Store(connection, ledger, one.asset).counts()["open"]
        entry = replace(entry, quarantined=aside, note=result.note)
        if result.relation is not None:
            columns = result.relation.pick(one.schema.names)
            table = Source(str(one.asset), columns, result.relation, database=ledger.label)
            entry = replace(entry, witness=witness(connection, table))
        ledger.write(connection, entry)
        entries.append(entry)
    order = {one.asset: place for place, one in enumerate(staged)}
    return tuple(sorted(entries, key=lambda entry: order[entry.asset]))


def _finished(
    connection: Connection, ledger: Ledger, applied: Sequence[tuple[Staged, Proof, Applied | Swap]]
) -> Iterator[tuple[Staged, Proof, Applied]]:
    """Exchange tables when all else is done: readers have to wait from then until the commit."""
    swaps = [done for _, _, done in applied if isinstance(done, Swap)]
    refused = exclusive(connection, swaps) if swaps else None
    for one, proof, done in sorted(applied, key=lambda item: isinstance(item[2], Swap)):
        if not isinstance(done, Swap):
            yield one, proof, done
            continue
        result, exchanged = done.finish(refused)
        row = row_of(connection, ledger, one.asset, lock=True)
        if row is None:
            raise gone(one.asset)
        forget(connection, ledger, row, table=not exchanged)
        yield one, proof, result


def _apply(
    connection: Connection, ledger: Ledger, staged: Staged, found: LedgerEntry | None, known: Relation | None
) -> Applied | Swap:
    if staged.how == "position":
        return _position(connection, ledger, staged)
    row = row_of(connection, ledger, staged.asset, lock=True)
    if row is None or row.staged is None or row.token != staged.detail["token"]:
        raise gone(staged.asset)
    if staged.how == "create":
        place = TableRef(ledger.stage_schema, row.place)
        made = _create(connection, ledger, staged, known or describe(connection, place, label=ledger.label))
        forget(connection, ledger, row, table=False)
        return made
    apply: dict[str, Callable[[Table], Applied]] = {
        "sync": sync,
        "merge": merge,
        "append": append,
        "truncate": truncate,
        "snapshot": history.snapshot,
        "interval": interval,
    }
    if staged.how not in apply:
        raise MillraceError(f"a PostgreSQL target cannot publish by {staged.how!r}", where=str(staged.asset))
    if staged.how == "snapshot" and staged.detail["fits"] is None:
        history.create(connection, ledger, staged)
        Store(connection, ledger, staged.asset).clear()
    table = open_table(connection, ledger, staged, found)
    if staged.detail.get("swap") and table.store.empty:
        done = begin(table, ledger, apply[staged.how])
        if isinstance(done, Swap):
            return done
    else:
        deleted = set_aside(table) if staged.how in SIFTED else 0
        done = _less(apply[staged.how](table), table.store)
        if deleted:
            done = replace(done, counts=replace(done.counts, deleted=done.counts.deleted + deleted))
    forget(connection, ledger, row)
    return done


def _less(done: Applied, store: Store) -> Applied:
    """Return what was applied where it was counted with the rows in quarantine: the table's own rows and digest."""
    if done.rows < 0 or done.digest is None or store.empty:
        return done
    kept, fixes = store.digests()
    if done.level == "counted":
        kept, fixes = Digest.counted(kept.rows), Digest.counted(fixes.rows)
    digest = done.digest - kept + fixes
    return replace(done, digest=digest, rows=digest.rows)


# a new table


def _create(connection: Connection, ledger: Ledger, staged: Staged, relation: Relation) -> Applied:
    """Rename the stage into place: O(1)."""
    schema, name = staged.asset.layer, staged.asset.name
    ref = TableRef(schema, name)
    columns, key = relation.pick(staged.schema.names), relation.pick(staged.schema.key)
    store = Store(connection, ledger, staged.asset, columns, key)
    if brings_bad(staged) or not store.empty:
        store.settle(staged, relation.identifier, within=None)
    ledger.make_schema(connection, schema)
    stage, place = sql.Identifier(ledger.stage_schema, relation.name), sql.Identifier(schema, relation.name)
    try:
        connection.execute(sql.SQL("alter table {} set schema {}").format(stage, sql.Identifier(schema)))
        connection.execute(sql.SQL("alter table {} rename to {}").format(place, sql.Identifier(name)))
    except (psycopg.errors.DuplicateTable, psycopg.errors.UniqueViolation) as error:
        raise appeared(ref, ledger.label) from error
    _rename_parts(connection, relation, ref, staged.detail.get("names", ()))
    whole = staged.whole()
    # of an interval's source only these rows were read
    level: Level = "counted" if staged.counted else "applied" if "interval" in staged.detail else "table"
    done = _less(Applied(Counts(), level, whole, whole.rows), store)
    return replace(done, counts=Counts(inserted=done.rows), relation=relation if level == "table" else None)


def rename_indexes(connection: Connection, schema: str, names: Sequence[Sequence[str]]) -> None:
    """Give indexes the names that they are to have, or the next that are free."""
    for name, wanted in names:
        connection.execute(
            sql.SQL("alter index {} rename to {}").format(
                sql.Identifier(schema, name), sql.Identifier(free(connection, schema, wanted))
            )
        )


def _rename_parts(connection: Connection, relation: Relation, ref: TableRef, names: Sequence[Sequence[str]]) -> None:
    """Give indexes the source's names, and the key's and the sequences those that PostgreSQL would have given them."""
    schema = ref.schema or ""
    keys = [(index.name, cut(ref.name, "_pkey")) for index in relation.indexes if index.primary]
    rename_indexes(connection, schema, [*keys, *names])
    for column in relation.columns:
        if not column.identity and not (column.default or "").startswith("nextval("):
            continue
        found = connection.execute(
            "select pg_catalog.pg_get_serial_sequence(%s, %s)",
            (sql.Identifier(schema, ref.name).as_string(connection), column.name),
        ).fetchone()
        if found is not None and found[0] is not None:
            wanted = free(connection, schema, cut(f"{cut(ref.name, '')[:29]}_{column.name[:29]}", "_seq"))
            connection.execute(
                sql.SQL("alter sequence {} rename to {}").format(sql.SQL(found[0]), sql.Identifier(wanted))
            )


# nothing but the position


def _position(connection: Connection, ledger: Ledger, staged: Staged) -> Applied:
    """Move the position of a table that equals its source already."""
    relation = describe(connection, TableRef(staged.asset.layer, staged.asset.name), label=ledger.label)
    if fits_of(relation, staged.schema.names) != staged.detail["fits"]:
        raise SeqMoved(f"{relation.ref} was altered since it was compared", where=str(relation.ref), hint="run again")
    whole = staged.whole()
    columns, key = relation.pick(staged.schema.names), relation.pick(staged.schema.key)
    store = Store(connection, ledger, staged.asset, columns, key)
    counts = Counts()
    if asked := staged.detail.get("entries"):  # rows in quarantine that are replayed or dropped
        if asked["status"] == "replayed":
            connection.execute(sql.SQL("lock table {} in share row exclusive mode").format(relation.identifier))
            counts = Counts(inserted=store.replay(asked["changed"], staged.load, relation.identifier))
        else:
            store.mark(asked["changed"], asked["status"], staged.load)
    done = Applied(counts, staged.detail["level"], whole, whole.rows if staged.detail["level"] == "table" else -1)
    return _less(done, store)


def commit(connection: Connection) -> None:
    """Commit the publish, between the two kill points."""
    reach("postgres.publish.before_commit")
    connection.execute("commit")
    reach("postgres.publish.after_commit")
