"""One look at both sides of a copy between two PostgreSQL databases: what is there and what has to be done."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

from psycopg import sql

from millrace.core.digest import Digest
from millrace.core.names import fingerprint
from millrace.core.position import Cursor, Position, Whole
from millrace.core.schema import Schema
from millrace.core.segment import Segment, SegmentId
from millrace.core.staged import LedgerEntry
from millrace.errors import ContractBroken, MillraceError, UsageError
from millrace.postgres.apply import fits_of
from millrace.postgres.catalog import PgColumn, Relation
from millrace.postgres.cursors import Rule
from millrace.postgres.ddl import check_fit
from millrace.postgres.deletes import alive
from millrace.postgres.digest import shape
from millrace.postgres.heap import heap_of
from millrace.postgres.history import CURRENT, plain, without
from millrace.postgres.keys import key_columns, proven
from millrace.postgres.names import sql_name
from millrace.postgres.newest import left_out, newest
from millrace.postgres.quarantine import Bad, Kept, Store
from millrace.postgres.reader import PostgresReader, PostgresSnapshot, digest_segments
from millrace.postgres.session import Connection, translated
from millrace.postgres.source import Source
from millrace.postgres.stage import schema_of
from millrace.postgres.target import PostgresTarget
from millrace.postgres.unreadable import Unreadable, look_for_unreadable
from millrace.steps.routes.fitting import kept_types
from millrace.steps.spec import CopySpec

How = Literal["create", "sync", "merge", "append", "truncate", "snapshot", "interval"]
MOST_UNREADABLE = 1_000
"""Rows whose texts cannot be carried: more of them are an encoding gone wrong, and no bad rows."""
EQUAL = ("sync", "truncate", "snapshot")  # after which the target's rows, or current versions, are the source's


@dataclass(frozen=True, slots=True)
class Look:
    """One look at both sides: what is there and what has to be done.

    Attributes:
        base: all rows of the source.
        source: one row for each key, without those marked as deleted: the rows that the target is to hold.
        since: the position from which changes are read; None: everything is.
        alter: columns that the publish adds to the target, or whose type it alters.
        discarded: columns of the source that the contract leaves out.
        held: whether rows of the table are in quarantine.
        sieve: which rows of the stage are bad, and are to be set aside.
        unreadable: rows of the source whose texts cannot be carried; they are in none of its other sources.
        settled: whether these are the ones that lie in quarantine.
    """

    spec: CopySpec
    reader: PostgresReader
    target: PostgresTarget
    snap: PostgresSnapshot
    base: Source
    source: Source
    key: tuple[str, ...]
    entry: LedgerEntry | None
    relation: Relation | None
    how: How
    since: Cursor | None
    versions: bool
    """Whether the source may keep several versions of a row, of which the newest by the cursor is taken."""
    everywhere: Source
    """The same rows as `source`, also those outside the interval of a backfill."""
    alter: tuple[str, ...] = ()
    discarded: tuple[str, ...] = ()
    held: bool = False
    sieve: tuple[Bad, ...] = ()
    unreadable: tuple[Unreadable, ...] = ()
    settled: bool = True

    @property
    def schema(self) -> Schema:
        """Columns and key of the result."""
        return schema_of(self.source.columns, self.key)

    @property
    def seq(self) -> int:
        """The ledger's seq, 0 when nothing was published."""
        return self.entry.seq if self.entry else 0

    @property
    def there(self) -> Relation:
        """The existing target."""
        if self.relation is None:
            raise MillraceError(f"{self.spec.asset} does not exist", where=self.target.database.label)
        return self.relation

    @property
    def target_source(self) -> Source:
        """The target's rows (of versions the current ones), in those of the source's columns that it has.

        They are its rows as the source has them: see `postgres.quarantine`.
        """
        there = self.there
        columns = there.pick([name for name in self.source.names if name in there.names or name not in self.alter])
        found = Source(str(there.ref), columns, there, where=self._there(), database=self.target.database.label)
        if not self.held:
            return found
        return replace(found, query=sql.SQL("select * from {} as t").format(self.there_rows))

    @property
    def there_rows(self) -> sql.Composable:
        """The rows of `target_source`, as they stand in FROM before an alias."""
        there = self.there
        if not self.held:
            return there.identifier
        columns = there.pick([name for name in self.source.names if name in there.names or name not in self.alter])
        return Kept(self.target.book, self.spec.asset, columns, there.pick(self.key)).everything(there.identifier)

    def narrowed(self) -> Look:
        """Return the look without the columns that the target is to be altered for."""
        names = [name for name in self.source.names if name not in self.alter]
        base, source = (one.only(one.pick(names)) for one in (self.base, self.source))
        return replace(self, base=base, source=source, alter=())

    def _there(self) -> sql.Composable | None:
        if self.how == "snapshot":
            return CURRENT
        if self.how != "interval":
            return None
        column = self.there.pick([self.spec.tracked or ""])[0]
        return self.base.rule.between(column, self.spec.start, self.spec.end)

    @property
    def origin(self) -> str:
        """Fingerprint of what is staged: a stage of another origin cannot be resumed."""
        relation = self.base.relation
        return fingerprint(
            self.snap.server,
            self.snap.connection.info.dbname,
            "" if relation is None else str(relation.oid),
            json.dumps(
                [
                    self.spec.where,
                    self.spec.select,
                    self.spec.soft_delete,
                    list(self.key),
                    self.how,
                    self.spec.start,
                    self.spec.end,
                ]
            ),
            self.schema.fingerprint,
            "" if self.since is None else json.dumps(self.since.to_json()),
            "" if self.relation is None else fits_of(self.relation, self.source.names),
        )

    @property
    def position_digest(self) -> Digest | None:
        """The digest of all rows as they were published last, where they were read under the same options."""
        position = self.entry.position if self.entry is not None else None
        plain = self.relation is not None and not self.alter and not self.spec.full_refresh
        return position.digest if plain and isinstance(position, Whole) and self.how in EQUAL else None

    @property
    def at(self) -> str:
        """When the snapshot was taken, by the source's clock: ISO 8601."""
        row = self.snap.connection.execute("select pg_catalog.now()::text").fetchone()
        return str(row[0]) if row else ""

    def count(self) -> int:
        """Count the rows to bring."""
        found = self.snap.connection.execute(self.source.select([sql.SQL("pg_catalog.count(*)")])).fetchone()
        return int(found[0]) if found else 0

    def changes(self) -> Source:
        """Return the rows since the position, each version; without a position all rows."""
        return self.base if self.since is None else self.reader.changes(self.base, self.since, self.snap)

    def wanted(self) -> Source:
        """Return the rows to bring: those since the position, one for each key, also those marked as deleted."""
        if self.since is None:
            return self.source
        changes = self.changes()
        return newest(self.base, self.base.pick(self.key), self.since.column, changes) if self.versions else changes

    def left_out(self) -> int:
        """Return how many versions of rows are not brought. Raises KeyInvalid for a null in their key."""
        if not self.versions:
            return 0
        changes = None if self.since is None else self.changes()
        return left_out(self.snap.connection, self.base, self.base.pick(self.key), changes)

    def compared(self, found: str) -> str:
        """Return what a comparison of everything found, with why it was made where changes were asked for."""
        entry, cursor = self.entry, self.spec.tracked
        if cursor is None or entry is None or self.how == "interval":
            return found
        if isinstance(entry.position, Cursor):
            return (
                f"the columns changed, so all was compared: {found}" if _altered(entry.position, self.base) else found
            )
        return f"no position by {sql_name(cursor)} yet, so all was compared: {found}"

    def position(self, whole: Digest | None) -> Position:
        """Return the position of what this snapshot holds.

        Args:
            whole: digest of the whole source, where everything was read.
        """
        if self.spec.mode == "backfill":  # which moves no position, and knows none under other options
            return Whole() if self.entry is None or self.spec.full_refresh else self.entry.position
        if self.spec.tracked is None:
            return Whole(whole, self.snap.state, heap_of(self.source, self.snap))
        found = self.reader.cursor(self.base, self.spec.tracked, self.snap)
        tail = whole_digest(self.snap.connection, self.reader.changes(self.base, found, self.snap))
        return replace(found, tail=tail)


@contextmanager
def look_at(
    spec: CopySpec,
    reader: PostgresReader,
    target: PostgresTarget,
    entry: LedgerEntry | None,
    *,
    unreadable: bool = False,
) -> Iterator[Look]:
    """Look at both sides, in a snapshot of the source that stays open in the block; at the target first.

    A copy by files asks the target nothing in the block.

    Args:
        entry: what the target's ledger said a moment ago: a publish since then is seen by the next one.
        unreadable: look for rows whose texts cannot be carried, and leave them out; as is done while some are kept.
    """
    relation, filled, held, there = _target_of(spec, target, entry)
    kept = _unreadable_kept(spec, target) if held else set()
    with reader.snapshot(shared=spec.snapshot) as snap:
        source = reader.source(spec.table, where=spec.where, select=spec.select, connection=snap.connection)
        source, key, discarded = _under_contract(spec, source, relation, target, snap)
        base = source
        versions = False
        if spec.tracked is not None:
            rule = Rule(spec.cursor_format, spec.lookback)
            rule.check(source[spec.tracked], source.label)  # NotFound with the nearest name
            if spec.mode == "backfill":
                rule.check_interval(snap.connection, source[spec.tracked], spec.start, spec.end)
            base = source = replace(source, rule=rule)
            if versions := spec.mode != "append" and not proven(source, key):
                source = newest(base, key, spec.tracked)
        since = _since(spec, entry, source) if filled else None
        how: How = "sync"
        if spec.mode == "snapshot":
            how = "snapshot"
            base = source = source.only(plain(source.columns, source.label))
        elif relation is None:
            how = "create"
        elif spec.mode == "backfill":
            how = "interval"
        elif spec.mode == "append" or spec.mode == "truncate":
            how = spec.mode
        elif since is not None or (spec.mode == "incremental" and spec.cursor is None):
            how = "merge"
        source = everywhere = alive(source, spec.soft_delete)
        if spec.mode == "backfill" and spec.tracked is not None:
            source = source.narrowed(base.rule.between(base[spec.tracked], spec.start, spec.end))
        alter: tuple[str, ...] = ()
        if relation is not None:
            _refuse_same(base, snap.connection, relation, target, there)
            fitting = without(relation, target.database.label) if how == "snapshot" else relation
            lets = (
                {}
                if how in ("snapshot", "interval")
                else {"new_columns": spec.new_columns, "type_changes": spec.type_changes}
            )
            alter = check_fit(source.columns, fitting, label=target.database.label, **lets)
        names = tuple(column.name for column in key)
        _refuse_aside(spec, target, how, held=held)
        found = (spec, reader, target, snap, base, source, names, entry, relation, how, since, versions, everywhere)
        look = Look(*found, alter, discarded, held)
        yield _readable(look, kept) if unreadable or kept else look


def sets_unreadable_aside(spec: CopySpec) -> bool:
    """Say whether rows whose texts cannot be carried can be set aside in a copy."""
    return spec.mode in ("full", "truncate") and not spec.stage and spec.select is None


def encoding_of(target: PostgresTarget) -> str:
    """Return the encoding of a target's database."""
    with target.connect("encoding") as there:
        return there.info.parameter_status("server_encoding") or "UTF8"


def _unreadable_kept(spec: CopySpec, target: PostgresTarget) -> set[tuple[str, int]]:
    """Return id and digest of the entries of rows whose texts cannot be carried.

    Raises:
        UsageError: there are some, and the copy knows nothing of such rows.
    """
    with target.connect("look") as look, translated(target.database.label, "look at the quarantine", connection=look):
        kept = Store(look, target.book, spec.asset).unreadable()
    if kept and not sets_unreadable_aside(spec):
        raise UsageError(
            f"{spec.asset} has rows in quarantine whose texts cannot be carried, which only a table's copy in mode full"
            " or truncate knows",
            where=f"{spec.asset} in {target.database.label}",
            hint="use mode full, or mend the rows at the source and run in mode full once",
        )
    return kept


def _readable(look: Look, kept: set[tuple[str, int]]) -> Look:
    """Return the look without the rows whose texts cannot be carried. Raises ContractBroken for too many."""
    if not look.source.paged or not sets_unreadable_aside(look.spec):
        return look
    count, rows = look_for_unreadable(
        look.snap.connection, look.source, look.key, encoding_of(look.target), MOST_UNREADABLE
    )
    if count > len(rows):
        raise ContractBroken(
            f"{count:,} rows of {look.source.label} have texts that cannot be carried, more than {MOST_UNREADABLE:,}"
            " are not set aside",
            where=look.source.database,
            hint="mend them at the source, or leave them out by where:",
        )
    settled = {(one.entry(look.spec.asset), one.digest) for one in rows} == kept
    if not rows:
        return replace(look, settled=settled)
    places = sql.SQL(", ").join(sql.Literal(one.ctid) for one in rows)
    without_them = sql.SQL("ctid <> all (array[{}]::pg_catalog.tid[])").format(places)
    base, source, everywhere = (one.narrowed(without_them) for one in (look.base, look.source, look.everywhere))
    return replace(look, base=base, source=source, everywhere=everywhere, unreadable=tuple(rows), settled=settled)


def _under_contract(
    spec: CopySpec, source: Source, relation: Relation | None, target: PostgresTarget, snap: PostgresSnapshot
) -> tuple[Source, tuple[PgColumn, ...], tuple[str, ...]]:
    """Return what a contract lets of a source's columns into a table as it is, the key, and what is left out."""
    discarded: tuple[str, ...] = ()
    if relation is not None and spec.new_columns == "discard":
        discarded = tuple(name for name in source.names if name not in relation.names)
        source = source.only(source.pick([name for name in source.names if name in relation.names]))
    named = spec.key or source.key
    key = key_columns(source, named) if named or spec.mode != "truncate" else ()
    if relation is not None and spec.type_changes == "discard":
        needed = [*(column.name for column in key), *([spec.tracked] if spec.tracked else [])]
        where = f"{relation.ref} in {target.database.label}"
        source = kept_types(source, relation, needed, where, snap.connection)
    return source, key, discarded


def _refuse_aside(spec: CopySpec, target: PostgresTarget, how: How | None, *, held: bool) -> None:
    """Refuse what is not known how to be compared while rows are in quarantine. Raises UsageError.

    Args:
        how: None: not known yet.
        held: whether rows are in quarantine.
    """
    what = "a copy by way of files" if spec.stage else f"a {spec.mode}" if how in ("snapshot", "interval") else ""
    if held and what:
        raise UsageError(
            f"{spec.asset} has rows in quarantine, and {what} of such a table is not built yet",
            where=f"{spec.asset} in {target.database.label}",
            hint="use mode full or incremental, straight from server to server",
        )


def _target_of(
    spec: CopySpec, target: PostgresTarget, entry: LedgerEntry | None
) -> tuple[Relation | None, bool, bool, Sequence[object] | None]:
    """Return the table, whether it has rows, whether rows of it are in quarantine, and its server.

    The last is for a copy by files only, which leaves the target now. Raises UsageError for quarantine and files.
    """
    relation, there, held = target.relation(spec.asset), None, False
    filled = relation is not None and entry is not None and spec.tracked is not None and _filled(target, relation)
    if entry is not None:
        doing = "look at the quarantine"
        with target.connect("look") as look, translated(target.database.label, doing, connection=look):
            held = not Store(look, target.book, spec.asset).empty
    if spec.stage:
        _refuse_aside(spec, target, None, held=held)
        there = None if relation is None else _server(target)
        target.sessions.close()
    return relation, filled, held, there


_SERVER = (
    "select pg_catalog.pg_postmaster_start_time()::text, oid from pg_catalog.pg_database"
    " where datname = pg_catalog.current_database()"
)


def _server(target: PostgresTarget) -> Sequence[object]:
    """Return what tells the target's database from others: see `_refuse_same`."""
    with target.connect("look") as there, translated(target.database.label, "look at the server", connection=there):
        return there.execute(_SERVER).fetchone() or ()


def _refuse_same(
    source: Source, here: Connection, relation: Relation, target: PostgresTarget, there: Sequence[object] | None
) -> None:
    """Refuse to copy a table onto itself.

    A server is told by when it started: everybody may ask for that, by whatever address they came, and the clone of a
    cluster, which has the same system identifier, started at another time.

    Args:
        there: what `_server` said of the target; None: ask it now.

    Raises:
        UsageError: source and target are one table.
    """
    if source.relation is None or source.relation.oid != relation.oid:
        return
    if here.execute(_SERVER).fetchone() == (_server(target) if there is None else there):
        raise UsageError(
            f"source and target are the same table: {relation.ref}",
            where=f"{source.label} in {source.database}, {relation.ref} in {target.database.label}",
            hint="name another table or another database as the target",
        )


def _filled(target: PostgresTarget, relation: Relation) -> bool:
    """Say whether a table has rows: changes since a position are worth nothing to one that was emptied."""
    with (
        target.connect("look") as there,
        translated(target.database.label, f"look into {relation.ref}", connection=there),
    ):
        return there.execute(sql.SQL("select from {} limit 1").format(relation.identifier)).fetchone() is not None


def _since(spec: CopySpec, entry: LedgerEntry | None, source: Source) -> Cursor | None:
    """Return the position from which changes say everything; None where all has to be compared."""
    position = entry.position if entry is not None else None
    if spec.mode == "backfill" or spec.full_refresh or spec.tracked is None or not isinstance(position, Cursor):
        return None
    if _altered(position, source):  # a column that comes with a default writes no row version
        return None
    return position if position.column == spec.tracked else None


def _altered(position: Cursor, source: Source) -> bool:
    return position.tail is not None and position.tail.shape != shape(source.columns)


def whole_digest(connection: Connection, source: Source) -> Digest:
    """Digest all rows of a source in the connection's transaction."""
    whole = Segment.whole()
    return dict(digest_segments(connection, source, [whole]))[whole.id]


def whole_digest_there(look: Look) -> Digest:
    """Digest all rows of the target."""
    with look.target.connect("digest") as there:
        return whole_digest(there, look.target_source)


def both_digests(
    look: Look, segments: Sequence[Segment]
) -> tuple[Mapping[SegmentId, Digest], Mapping[SegmentId, Digest]]:
    """Digest segments on both sides at the same time."""
    with ThreadPoolExecutor(1, thread_name_prefix="millrace-digest") as pool, look.target.connect("digest") as there:
        theirs = pool.submit(lambda: dict(digest_segments(there, look.target_source, segments, look.key)))
        ours = dict(digest_segments(look.snap.connection, look.source, segments, look.key))
        return ours, theirs.result()
