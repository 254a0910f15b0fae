"""Publishing: one transaction that applies stages to their tables, proves the result and writes the ledger.

`create` renames the proven stage into place. `sync`, `merge` and `append` delete, update and insert the rows that
differ, under SHARE ROW EXCLUSIVE: readers are never blocked, and views, grants, foreign keys and triggers stay.
`position` moves nothing but the ledger. Never TRUNCATE: readers would wait.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import psycopg
from psycopg import sql

from millrace.core.digest import Digest
from millrace.core.events import reach
from millrace.core.names import TableRef, fingerprint
from millrace.core.segment import Segment
from millrace.core.staged import Counts, LedgerEntry, Level, Proof, Staged, entry_for
from millrace.errors import ContractBroken, GuardRefused, MillraceError, ProofFailed, SeqMoved
from millrace.postgres.catalog import PgColumn, Relation, describe, exists
from millrace.postgres.ddl import cut, free_name
from millrace.postgres.digest import digest_of, digest_query, shape
from millrace.postgres.ledger import Ledger, moved
from millrace.postgres.ownership import forget, gone, row_of, ttl
from millrace.postgres.parts import any_of
from millrace.postgres.session import Connection
from millrace.postgres.stage import set_sequence, staged_relation

LOCK_MS = 1_000  # a publish that waits longer for a table gives way and tries again: writers queue behind it


@dataclass(frozen=True, slots=True)
class Applied:
    """What applying one stage came to."""

    counts: Counts
    level: Level
    digest: Digest | None
    rows: int


def publish_in(
    connection: Connection, ledger: Ledger, staged: Sequence[Staged], proofs: Sequence[Proof]
) -> tuple[LedgerEntry, ...]:
    """Publish stages in the connection's open transaction; the caller commits.

    Stages whose load the ledger carries already are adopted: their entries are returned, nothing is applied.

    Raises:
        SeqMoved, GuardRefused, ProofFailed, ContractBroken: nothing may be committed then.
        psycopg.Error: as the server says.
    """
    connection.execute(
        sql.SQL("set local lock_timeout = {}; set local idle_in_transaction_session_timeout = {}").format(
            sql.Literal(LOCK_MS),
            sql.Literal(max(1_000, int(ttl() * 1_000))),  # a process that is stopped here must not hold locks for ever
        )
    )
    by_load = {(proof.asset, proof.load): proof for proof in proofs}
    entries = []
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
        done = _apply(connection, ledger, one, found)
        entry = entry_for(
            one,
            proof,
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            level=done.level,
            digest=done.digest,
            rows=done.rows,
            counts=done.counts,
        )
        ledger.write(connection, entry)
        entries.append(entry)
    order = {one.asset: place for place, one in enumerate(staged)}
    return tuple(sorted(entries, key=lambda entry: order[entry.asset]))


def _apply(connection: Connection, ledger: Ledger, staged: Staged, found: LedgerEntry | None) -> Applied:
    if staged.how == "position":
        return _position(connection, ledger, staged)
    row = row_of(connection, ledger, staged.asset, lock=True)
    if row is None or row.staged is None or row.token != staged.detail["token"]:
        raise gone(staged.asset)
    if staged.how == "create":
        done = _create(connection, ledger, staged)
        forget(connection, ledger, row, table=False)
        return done
    apply: dict[str, Callable[[_Table], Applied]] = {"sync": _sync, "merge": _merge, "append": _append}
    if staged.how not in apply:
        raise MillraceError(f"a PostgreSQL target cannot publish by {staged.how!r}", where=str(staged.asset))
    done = apply[staged.how](_open(connection, ledger, staged, found))
    forget(connection, ledger, row)
    return done


# a new table


def _create(connection: Connection, ledger: Ledger, staged: Staged) -> Applied:
    """Rename the stage into place: O(1)."""
    schema, name = staged.asset.layer, staged.asset.name
    ref = TableRef(schema, name)
    if exists(connection, ref, label=ledger.label):
        raise appeared(ref, ledger.label)
    relation = staged_relation(connection, ledger, staged)
    ledger.make_schema(connection, schema)
    stage, place = sql.Identifier(ledger.stage_schema, relation.name), sql.Identifier(schema, relation.name)
    try:
        connection.execute(sql.SQL("alter table {} set schema {}").format(stage, sql.Identifier(schema)))
        connection.execute(sql.SQL("alter table {} rename to {}").format(place, sql.Identifier(name)))
    except (psycopg.errors.DuplicateTable, psycopg.errors.UniqueViolation) as error:
        raise appeared(ref, ledger.label) from error
    _rename_parts(connection, relation, ref)
    whole = Digest.sum(staged.expected.values(), staged.schema.shape)
    return Applied(Counts(inserted=whole.rows), "table", whole, whole.rows)


def appeared(ref: TableRef, label: str) -> GuardRefused:
    """Return the error for a table that somebody made while its first load was staged."""
    return GuardRefused(
        f"{ref} was made in {label} by someone else while it was being loaded",
        where=f"{ref} in {label}",
        hint="it was not touched; run again with --replace to make it equal to the source",
    )


def _rename_parts(connection: Connection, relation: Relation, ref: TableRef) -> None:
    """Give the key's index and the identity columns' sequences the names that PostgreSQL would have given them."""
    schema = ref.schema or ""
    for index in relation.indexes:
        wanted = cut(ref.name, "_pkey")
        if index.primary and free_name(connection, schema, wanted):
            connection.execute(
                sql.SQL("alter index {} rename to {}").format(
                    sql.Identifier(schema, index.name), sql.Identifier(wanted)
                )
            )
    for column in relation.columns:
        wanted = cut(ref.name, f"_{column.name}_seq") if len(column.name.encode()) < 30 else ""
        if column.identity and wanted and free_name(connection, schema, wanted):
            found = connection.execute(
                "select pg_catalog.pg_get_serial_sequence(%s, %s)",
                (sql.Identifier(schema, ref.name).as_string(connection), column.name),
            ).fetchone()
            if found is not None and found[0] is not None:
                connection.execute(
                    sql.SQL("alter sequence {} rename to {}").format(sql.SQL(found[0]), sql.Identifier(wanted))
                )


# an existing table


@dataclass(frozen=True, slots=True)
class _Table:
    """A target table and the stage of its changes, both locked and described."""

    connection: Connection
    staged: Staged
    relation: Relation
    stage: sql.Identifier
    columns: tuple[PgColumn, ...]
    """What is digested: the target's columns in the stage's order."""
    key: tuple[PgColumn, ...]
    label: str

    @property
    def same_key(self) -> sql.Composable:
        """The join of target row `t` and stage row `s`."""
        return sql.SQL(" and ").join(sql.SQL("s.{0} = t.{0}").format(column.identifier) for column in self.key)

    @property
    def writable(self) -> tuple[PgColumn, ...]:
        """The columns that are written: the target computes generated ones itself."""
        return tuple(column for column in self.columns if not column.generated)

    def run(self, text: sql.Composed) -> int:
        """Run a statement; return how many rows it touched."""
        return self.connection.execute(text).rowcount

    def number(self, text: sql.Composed) -> int:
        """Return the number that a query gives."""
        row = self.connection.execute(text).fetchone()
        return int(row[0]) if row else 0

    def digest(self, where: sql.Composable | None = None) -> Digest:
        """Digest the target's rows."""
        query = digest_query(sql.SQL("{} as t").format(self.relation.identifier), self.columns, where)
        return digest_of(self.connection.execute(query).fetchone() or (0, 0), shape(self.columns))

    def stage_digest(self) -> Digest:
        """Digest the stage's rows."""
        query = digest_query(self.stage, self.columns)
        return digest_of(self.connection.execute(query).fetchone() or (0, 0), shape(self.columns))

    def lacks(self) -> sql.Composable:
        """The predicate of target rows whose key the stage does not hold."""
        return sql.SQL("not exists (select from {} s where {})").format(self.stage, self.same_key)

    @property
    def differs(self) -> sql.Composable:
        """The condition that target row `t` and stage row `s` of one key differ in any byte."""
        left, right = (
            sql.SQL(", ").join(sql.SQL("{}.{}").format(sql.SQL(side), column.identifier) for column in self.writable)
            for side in ("t", "s")
        )
        return sql.SQL("{} and pg_catalog.record_image_ne(row({}), row({}))").format(self.same_key, left, right)

    def upsert(self) -> tuple[int, int]:
        """Make the target hold the stage's rows; return how many were (updated, inserted).

        Rows that exchange values of another unique column cannot be updated one after the other: they are deleted
        and inserted. The same goes for identity columns that may not be updated.
        """
        updated = self._update()
        if updated is None:
            updated = self.run(
                sql.SQL("delete from {} as t using {} s where {}").format(
                    self.relation.identifier, self.stage, self.differs
                )
            )
            return updated, self.insert() - updated
        return updated, self.insert()

    def _update(self) -> int | None:
        """Update rows that differ in any byte; None when they cannot be updated."""
        keys = {column.name for column in self.key}
        rest = [column for column in self.writable if column.name not in keys]
        if not rest:
            return 0
        if any(column.identity == "a" for column in rest):
            return None
        assign = sql.SQL(", ").join(sql.SQL("{0} = s.{0}").format(column.identifier) for column in rest)
        statement = sql.SQL("update {} as t set {} from {} s where {}").format(
            self.relation.identifier, assign, self.stage, self.differs
        )
        if not any(index.unique and set(index.columns) != keys for index in self.relation.indexes):
            return self.run(statement)
        try:
            with self.connection.transaction():
                return self.run(statement)
        except psycopg.errors.UniqueViolation:
            return None

    def insert(self) -> int:
        """Add the rows whose key the target does not hold, and set its own sequences past them."""
        names = sql.SQL(", ").join(column.identifier for column in self.writable)
        values = sql.SQL(", ").join(sql.SQL("s.{}").format(column.identifier) for column in self.writable)
        count = self.run(
            sql.SQL(
                "insert into {} ({}) overriding system value select {} from {} s "
                "where not exists (select from {} t where {})"
            ).format(self.relation.identifier, names, values, self.stage, self.relation.identifier, self.same_key)
        )
        for column in self.relation.columns:
            if count and (column.identity or (column.default or "").startswith("nextval(")):
                set_sequence(self.connection, self.relation.identifier, column.name)
        return count

    def prove(self, found: Digest, wanted: Digest, what: str) -> None:
        """Refuse a result that is not what was meant."""
        if found != wanted:
            raise ProofFailed(
                f"{self.staged.asset} was not published: {what} of {self.label} would not equal the source",
                where=str(self.staged.asset),
                detail=[f"rows {found.rows:,}, expected {wanted.rows:,}; sums {found.total} and {wanted.total}"],
                hint="someone changed the table since it was compared, or one of its triggers changes rows; run again",
            )


def _open(connection: Connection, ledger: Ledger, staged: Staged, found: LedgerEntry | None) -> _Table:
    ref = TableRef(staged.asset.layer, staged.asset.name)
    name = sql.Identifier(staged.asset.layer, staged.asset.name)
    connection.execute(sql.SQL("lock table {} in share row exclusive mode").format(name))
    relation = describe(connection, ref, label=ledger.label)
    stage = staged_relation(connection, ledger, staged)
    if fits_of(relation, staged.schema.names) != staged.detail["fits"]:
        raise ContractBroken(
            f"{ref} in {ledger.label} was altered while its changes were staged",
            where=f"{ref} in {ledger.label}",
            hint="nothing was changed; run again",
        )
    if found is None and not staged.detail.get("replace"):
        refuse_first_contact(connection, relation, ledger.label)
    columns = relation.pick(staged.schema.names)
    key = relation.pick(staged.schema.key)
    return _Table(connection, staged, relation, stage.identifier, columns, key, f"{ref} in {ledger.label}")


def fits_of(relation: Relation, names: Sequence[str]) -> str:
    """Return what must not change between staging and publishing: the table itself and the columns that are written."""
    columns = [f"{c.name}\x1e{c.type}\x1e{c.generated}\x1e{c.not_null}" for c in relation.columns if c.name in names]
    return fingerprint(str(relation.oid), *columns)


def refuse_first_contact(connection: Connection, relation: Relation, label: str) -> None:
    """Refuse a table with rows that Millrace never wrote.

    Raises:
        GuardRefused: naming --replace.
    """
    row = connection.execute(sql.SQL("select 1 from {} limit 1").format(relation.identifier)).fetchone()
    if row is not None:
        raise GuardRefused(
            f"{relation.ref} in {label} has rows that Millrace did not write",
            where=f"{relation.ref} in {label}",
            hint="allow it to be made equal to the source with --replace; --dry-run shows what would change",
        )


def _segments(table: _Table) -> sql.Composable | None:
    """Return the predicate of the staged segments over the target's rows; None when they are everything."""
    return any_of([Segment.from_json(segment) for segment in table.staged.detail["segments"]], table.key)


def _sync(table: _Table) -> Applied:
    """Make the differing segments equal, deletes included, and prove the whole table."""
    where = _segments(table)
    lacking = table.lacks() if where is None else sql.SQL("{} and {}").format(where, table.lacks())
    source = sql.SQL("{} as t").format(table.relation.identifier)
    deletes = table.number(sql.SQL("select pg_catalog.count(*) from {} where {}").format(source, lacking))
    if deletes:
        _guard_deletes(table, deletes)
        deleted = table.run(sql.SQL("delete from {} where {}").format(source, lacking))
        if deleted != deletes:
            raise ProofFailed(
                f"{table.staged.asset} was not published: {deletes:,} rows were to be deleted from {table.label}, "
                f"but {deleted:,} were",
                where=str(table.staged.asset),
                hint="a trigger or rule of the table keeps rows",
            )
    updated, inserted = table.upsert()
    found = table.digest()
    table.prove(found, Digest.from_json(table.staged.detail["whole"]), "all rows")
    return Applied(Counts(inserted, updated, deletes), "table", found, found.rows)


def _guard_deletes(table: _Table, deletes: int) -> None:
    limit: Any = table.staged.detail.get("max_delete")
    if limit is None:
        return
    total = table.number(sql.SQL("select pg_catalog.count(*) from {}").format(table.relation.identifier))
    refuse_deletes(table.staged.asset.layer, table.staged.asset.name, deletes, total, float(limit))


def refuse_deletes(schema: str, name: str, deletes: int, total: int, limit: float) -> None:
    """Refuse to delete more than a share of a table's rows.

    Raises:
        GuardRefused: naming --allow-deletes.
    """
    if total and deletes > limit * total:
        raise GuardRefused(
            f"{TableRef(schema, name)} would lose {deletes:,} of {total:,} rows, more than max_delete ({limit:.0%})",
            where=str(TableRef(schema, name)),
            hint="if that is meant, allow it with --allow-deletes; the last good version stays",
        )


def _merge(table: _Table) -> Applied:
    """Upsert the changes and prove the merged keys."""
    wanted = table.stage_digest()
    updated, inserted = table.upsert()
    keys = sql.SQL("exists (select from {} s where {})").format(table.stage, table.same_key)
    found = table.digest(keys)
    table.prove(found, wanted, "the merged rows")
    return Applied(Counts(inserted, updated), "applied", found, -1)


def _append(table: _Table) -> Applied:
    """Add the rows whose key is new, and prove those."""
    table.run(
        sql.SQL("delete from {} as s where exists (select from {} t where {})").format(
            table.stage, table.relation.identifier, table.same_key
        )
    )
    wanted = table.stage_digest()
    inserted = table.insert()
    keys = sql.SQL("exists (select from {} s where {})").format(table.stage, table.same_key)
    found = table.digest(keys)
    table.prove(found, wanted, "the added rows")
    return Applied(Counts(inserted), "applied", found, -1)


# nothing but the position


def _position(connection: Connection, ledger: Ledger, staged: Staged) -> Applied:
    """Move the position of a table that equals its source already."""
    relation = describe(connection, TableRef(staged.asset.layer, staged.asset.name), label=ledger.label)
    if fits_of(relation, staged.schema.names) != staged.detail["fits"]:
        raise SeqMoved(f"{relation.ref} was altered since it was compared", where=str(relation.ref), hint="run again")
    whole = Digest.sum(staged.expected.values(), staged.schema.shape)
    return Applied(Counts(), staged.detail["level"], whole, whole.rows if staged.detail["level"] == "table" else -1)


def commit(connection: Connection) -> None:
    """Commit the publish, between the two kill points."""
    reach("postgres.publish.before_commit")
    connection.execute("commit")
    reach("postgres.publish.after_commit")
