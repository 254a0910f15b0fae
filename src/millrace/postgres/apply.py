"""What a publish does to an existing table, in its one transaction: changes applied from the stage, and proven.

Rows are deleted, updated and inserted under SHARE ROW EXCLUSIVE: readers are never blocked, and views, grants, foreign
keys and triggers stay. Never TRUNCATE: readers would wait.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from millrace.core.digest import Digest
from millrace.core.names import TableRef, fingerprint
from millrace.core.segment import Segment
from millrace.core.staged import Counts, LedgerEntry, Level, Staged
from millrace.errors import ContractBroken, GuardRefused, ProofFailed
from millrace.postgres.catalog import PgColumn, Relation, describe
from millrace.postgres.cursors import Rule
from millrace.postgres.ddl import alter_columns
from millrace.postgres.deletes import marked
from millrace.postgres.digest import digest_of, digest_query, shape
from millrace.postgres.ledger import Ledger
from millrace.postgres.parts import any_of
from millrace.postgres.quarantine import Store, brings_bad
from millrace.postgres.session import Connection
from millrace.postgres.source import Source, both
from millrace.postgres.stage import set_sequence, staged_relation

ALL = sql.SQL("true")
_EXACT = {"bool", "int2", "int4", "int8", "oid", "text", "varchar", "bytea", "uuid", "date", "timestamp", "timestamptz"}


@dataclass(frozen=True, slots=True)
class Applied:
    """What applying one stage came to; `note`: how, where the publish chose between ways."""

    counts: Counts
    level: Level
    digest: Digest | None
    rows: int
    relation: Relation | None = None
    """The table, where all of its rows were compared while nobody else could write."""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A target table and the stage of its changes, both locked and described."""

    connection: Connection
    staged: Staged
    relation: Relation
    stage: sql.Identifier
    columns: tuple[PgColumn, ...]
    """What is digested: the target's columns in the stage's order."""
    key: tuple[PgColumn, ...]
    label: str
    store: Store
    """The table's rows in quarantine."""

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
        return self._digest(self.relation.identifier, where)

    def whole(self, where: sql.Composable | None = None) -> Digest:
        """Digest the target's rows as the source has them: see `quarantine`."""
        rows = self.relation.identifier
        return self._digest(rows if self.store.empty else self.store.everything(rows), where)

    def _digest(self, rows: sql.Composable, where: sql.Composable | None) -> Digest:
        query = digest_query(sql.SQL("{} as t").format(rows), self.columns, where)
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
        rest = [column for column in self.writable if column.name not in keys or not exact(column)]
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
        return self.load(
            sql.SQL(" where not exists (select from {} t where {})").format(self.relation.identifier, self.same_key)
        )

    def load(self, where: sql.Composable | None = None) -> int:
        """Add the stage's rows `s`, and set the target's own sequences past them."""
        names = sql.SQL(", ").join(column.identifier for column in self.writable)
        values = sql.SQL(", ").join(sql.SQL("s.{}").format(column.identifier) for column in self.writable)
        count = self.run(
            sql.SQL("insert into {} ({}) overriding system value select {} from {} s{}").format(
                self.relation.identifier, names, values, self.stage, where or sql.SQL("")
            )
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
                hint="someone changed the table since it was compared, then run again; or one of its triggers changes "
                "rows, or a generated column computes something else than the source's",
            )


def exact(column: PgColumn) -> bool:
    """Say whether equal values are the same bytes: 1.0 equals 1.00, and -0 equals 0."""
    named = column.base_namespace == "pg_catalog" and column.base_name in _EXACT
    return named and column.collation_deterministic


def open_table(connection: Connection, ledger: Ledger, staged: Staged, found: LedgerEntry | None) -> Table:
    """Lock a target table and describe it with its stage.

    Raises:
        ContractBroken: it was altered meanwhile.
        GuardRefused: it has rows of somebody else's.
        SeqMoved: somebody else has taken the stage.
    """
    ref = TableRef(staged.asset.layer, staged.asset.name)
    name = sql.Identifier(staged.asset.layer, staged.asset.name)
    alter = staged.detail.get("alter", ())
    mode = sql.SQL("access exclusive" if alter else "share row exclusive")
    connection.execute(sql.SQL("lock table {} in {} mode").format(name, mode))
    relation = describe(connection, ref, label=ledger.label)
    stage = staged_relation(connection, ledger, staged)
    if staged.detail["fits"] not in (None, fits_of(relation, staged.schema.names)):
        raise ContractBroken(
            f"{ref} in {ledger.label} was altered while its changes were staged",
            where=f"{ref} in {ledger.label}",
            hint="nothing was changed; run again",
        )
    if found is None and not staged.detail.get("replace"):
        refuse_first_contact(connection, relation, ledger.label)
    if alter:
        alter_columns(connection, relation, stage, alter)
        relation = describe(connection, ref, label=ledger.label)
    columns = relation.pick(staged.schema.names)
    key = relation.pick(staged.schema.key)
    store = Store(connection, ledger, staged.asset, columns, key)
    return Table(connection, staged, relation, stage.identifier, columns, key, f"{ref} in {ledger.label}", store)


def fits_of(relation: Relation, names: Sequence[str]) -> str:
    """Return what must not change between staging and publishing: the table itself and the columns that are written."""
    columns = [f"{c.name}\x1e{c.type}\x1e{c.generated}\x1e{c.not_null}" for c in relation.columns if c.name in names]
    return fingerprint(str(relation.oid), *columns)


def appeared(ref: TableRef, label: str) -> GuardRefused:
    """Return the error for a table that somebody made while its first load was staged."""
    return GuardRefused(
        f"{ref} was made in {label} by someone else while it was being loaded",
        where=f"{ref} in {label}",
        hint="it was not touched; run again with --replace to make it equal to the source",
    )


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


def segments_of(table: Table) -> sql.Composable | None:
    """Return the predicate of the staged segments over the target's rows; None when they are everything."""
    return any_of([Segment.from_json(segment) for segment in table.staged.detail["segments"]], table.key)


def sync(table: Table) -> Applied:
    """Make the differing segments equal, deletes included, and prove the whole table."""
    deletes = _delete_lacking(table, segments_of(table))
    updated, inserted = table.upsert()
    found = table.whole()
    table.prove(found, Digest.from_json(table.staged.detail["whole"]), "all rows")
    return Applied(Counts(inserted, updated, deletes), "table", found, found.rows, table.relation)


def interval(table: Table) -> Applied:
    """Make an interval's differing segments equal, deletes included; prove the interval and the staged keys."""
    name, form, start, end = table.staged.detail["interval"]
    inside = Rule(form).between(table.relation.pick([name])[0], start, end)
    deletes = _delete_lacking(table, both(segments_of(table), inside), inside)
    wanted = table.stage_digest()
    updated, inserted = table.upsert()
    keys = sql.SQL("exists (select from {} s where {})").format(table.stage, table.same_key)
    table.prove(table.digest(keys), wanted, "the merged rows")
    found = table.digest(inside)
    table.prove(found, Digest.from_json(table.staged.detail["whole"]), "the interval")
    return Applied(Counts(inserted, updated, deletes), "applied", found, -1)


def _delete_lacking(table: Table, where: sql.Composable | None, of: sql.Composable = ALL) -> int:
    """Delete the rows for which a predicate holds and whose keys the stage does not hold; return how many."""
    lacking = table.lacks() if where is None else sql.SQL("{} and {}").format(where, table.lacks())
    source = sql.SQL("{} as t").format(table.relation.identifier)
    deletes = table.number(sql.SQL("select pg_catalog.count(*) from {} where {}").format(source, lacking))
    if deletes:
        guard_deletes(table, deletes, of)
        deleted = table.run(sql.SQL("delete from {} where {}").format(source, lacking))
        if deleted != deletes:
            raise _kept(table, deletes, deleted)
    return deletes


def _kept(table: Table, wanted: int, deleted: int) -> ProofFailed:
    return ProofFailed(
        f"{table.staged.asset} was not published: {wanted:,} rows were to be deleted from {table.label}, "
        f"but {deleted:,} were",
        where=str(table.staged.asset),
        hint="a trigger or rule of the table keeps rows",
    )


def guard_deletes(table: Table, deletes: int, where: sql.Composable = ALL) -> None:
    """Refuse to delete more than the stage's `max_delete` of the target's rows. Raises GuardRefused."""
    limit: Any = table.staged.detail.get("max_delete")
    if limit is None:
        return
    query = sql.SQL("select pg_catalog.count(*) from {} where {}")
    total = table.number(query.format(table.relation.identifier, where))
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


def merge(table: Table) -> Applied:
    """Upsert the changes, delete what they mark as deleted, and prove the merged keys.

    With them what a scrub staged, and what it found to be gone.
    """
    scrubbed: Mapping[str, Any] = table.staged.detail.get("scrubbed", {})
    segments = [Segment.from_json(segment) for segment in scrubbed.get("segments", ())]
    deleted = _delete_lacking(table, any_of(segments, table.key)) if segments else 0
    deleted += _marked(table)
    wanted = table.stage_digest()
    updated, inserted = table.upsert()
    counts = Counts(inserted, updated, deleted)
    whole = scrubbed.get("whole")
    if whole is not None:  # the scrub compared every part
        found = table.whole()
        table.prove(found, Digest.from_json(whole), "all rows")
        return Applied(counts, "table", found, found.rows)
    keys = sql.SQL("exists (select from {} s where {})").format(table.stage, table.same_key)
    found = table.digest(keys)
    table.prove(found, wanted, "the merged rows")
    return Applied(counts, "applied", found, -1)


def _marked(table: Table) -> int:
    """Delete the rows that the stage marks as deleted, there too; return how many."""
    text = table.staged.detail.get("soft_delete")
    if text is None:
        return 0
    rows = marked(Source(table.label, table.columns), text)
    gone = sql.SQL("exists (select from (select * from {} where {}) s where {})").format(
        table.stage, rows, table.same_key
    )
    target = sql.SQL("{} as t where {}").format(table.relation.identifier, gone)
    deletes = table.number(sql.SQL("select pg_catalog.count(*) from {}").format(target))
    if deletes:
        guard_deletes(table, deletes)
        deleted = table.run(sql.SQL("delete from {}").format(target))
        if deleted != deletes:
            raise _kept(table, deletes, deleted)
    table.run(sql.SQL("delete from {} where {}").format(table.stage, rows))
    return deletes


def set_aside(table: Table) -> int:
    """Move the stage's bad rows into quarantine, and settle the older entries that the load deals with.

    Returns how many rows of bad keys were deleted from the table.

    Rows that are appended must be new: those that are not leave the stage first. Rows that are marked as deleted are
    not bad.
    """
    staged, store = table.staged, table.store
    within: sql.Composable | None = sql.SQL("false")
    but = None
    if staged.how == "append":
        table.run(
            sql.SQL("delete from {} as s where exists (select from {} t where {})").format(
                table.stage, table.relation.identifier, table.same_key
            )
        )
    elif staged.how == "sync":
        within = segments_of(table)
    elif staged.how == "truncate":
        within = None
    elif staged.how == "merge":
        segments = staged.detail.get("scrubbed", {}).get("segments", ())
        within = any_of([Segment.from_json(segment) for segment in segments], table.key)
        text = staged.detail.get("soft_delete")
        but = None if text is None else marked(Source(table.label, table.columns), text)
    if not brings_bad(staged) and store.empty:
        return 0
    rows = None if staged.how == "append" else table.relation.identifier
    return store.settle(staged, table.stage, within=within, but=but, table=rows)


def append(table: Table) -> Applied:
    """Add the rows whose key is new, and prove those."""
    wanted = table.stage_digest()
    inserted = table.insert()
    keys = sql.SQL("exists (select from {} s where {})").format(table.stage, table.same_key)
    found = table.digest(keys)
    table.prove(found, wanted, "the added rows")
    return Applied(Counts(inserted), "applied", found, -1)


def truncate(table: Table) -> Applied:
    """Delete all rows, load all of the stage's, and prove the whole table, or its number of rows."""
    refuse_referred(table.connection, table.relation, table.label)
    before = table.number(sql.SQL("select pg_catalog.count(*) from {}").format(table.relation.identifier))
    guard_lost(table, before)
    table.connection.execute("set constraints all deferred")  # of tables that refer to it; checked at the commit
    deleted = table.run(sql.SQL("delete from {}").format(table.relation.identifier))
    if deleted != before:
        raise _kept(table, before, deleted)
    inserted = table.load()
    if table.staged.counted:
        found = Digest.counted(inserted)
        table.prove(found, table.staged.whole(), "the number of rows")
        return Applied(Counts(inserted, 0, deleted), "counted", found, inserted)
    found = table.whole()
    table.prove(found, table.staged.whole(), "all rows")
    return Applied(Counts(inserted, 0, deleted), "table", found, found.rows)


def guard_lost(table: Table, before: int) -> None:
    """Refuse to end with so much fewer rows than before that `max_delete` is passed. Raises GuardRefused."""
    limit: Any = table.staged.detail.get("max_delete")
    if limit is not None:
        refuse_deletes(
            table.staged.asset.layer, table.staged.asset.name, before - table.staged.rows, before, float(limit)
        )


_REFERRING = """
select c.conrelid::pg_catalog.regclass::text from pg_catalog.pg_constraint c
where c.confrelid = %s and c.contype = 'f' and c.conrelid <> c.confrelid
    and not (c.confdeltype = 'a' and c.condeferrable) order by 1 limit 1
"""


def refuse_referred(connection: Connection, relation: Relation, label: str) -> None:
    """Refuse to delete all rows of a table that others refer to, unless their foreign keys wait for the commit.

    Raises:
        GuardRefused: the rows could not be deleted, or rows of the other table would go or lose their reference.
    """
    found = connection.execute(_REFERRING, (relation.oid,)).fetchone()
    if found is not None:
        raise GuardRefused(
            f"the rows of {relation.ref} in {label} cannot all be deleted: {found[0]} refers to them",
            where=f"{relation.ref} in {label}",
            hint="use mode full, which deletes only rows that are gone; "
            "or alter the foreign key: ON DELETE NO ACTION DEFERRABLE",
        )
