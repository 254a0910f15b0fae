"""One PostgreSQL database as a source: consistent snapshots, segments, digests, positions.

A snapshot is one REPEATABLE READ READ ONLY transaction that exports itself; other connections enter it by its token,
so a table can be copied and digested by several at once and still be one state. Rows of foreign tables come from
another server, which the snapshot does not hold: if they change meanwhile, the proof fails and the copy is done again.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import psycopg
from psycopg import sql

from millrace.core.digest import Digest
from millrace.core.names import TableRef
from millrace.core.ports import Snapshot
from millrace.core.position import Cursor, Position
from millrace.core.schema import Schema
from millrace.core.segment import Segment, SegmentId
from millrace.errors import ContractBroken, MillraceError, TransientFailure
from millrace.postgres.catalog import PgColumn, Relation, describe
from millrace.postgres.cursors import PLAIN, Rule, is_text
from millrace.postgres.digest import digest_of, digest_query, shape
from millrace.postgres.names import sql_name
from millrace.postgres.segments import group_expression, key_segments, page_segments, predicate
from millrace.postgres.session import Connection, Database, translate, translated
from millrace.postgres.sessions import Sessions
from millrace.postgres.source import Source, both, open_source
from millrace.postgres.traits import unread
from millrace.postgres.types import text_form

if TYPE_CHECKING:
    import pyarrow as pa

    from millrace.core.ports import Reader

HALF_OF_XIDS = 1 << 31  # transaction ids compare modulo 2^32: farther apart, their order is unknown


@dataclass(slots=True)
class PostgresSnapshot:
    """One consistent view, alive while its connection's transaction is.

    Attributes:
        token: what `enter_snapshot` takes.
        state: `pg_current_snapshot()` as text, for positions.
        server: the cluster's system identifier; where an ordinary user may not read it, `at:host:port:oid of the
            database`, which changes when the same cluster is reached by another address (then rows are only found
            by their cursor values).
        connection: the transaction that holds it; it can run queries, one at a time.
    """

    token: str
    state: str
    server: str
    connection: Connection


def enter_snapshot(connection: Connection, token: str) -> None:
    """Begin a REPEATABLE READ READ ONLY transaction in an exported snapshot; `connection` is in autocommit mode.

    Raises:
        TransientFailure: the transaction that exported it has ended.
    """
    try:
        begin = sql.SQL("begin isolation level repeatable read read only; set transaction snapshot {}")
        connection.execute(begin.format(sql.Literal(token)))
    except psycopg.errors.Error as error:
        if error.sqlstate in ("22023", "42704", "55000"):
            raise TransientFailure(
                "the snapshot of the source is gone: the connection that held it has ended",
                where=connection.info.dbname,
                detail=[error.diag.message_primary or str(error)],
            ) from error
        raise translate(error, where=connection.info.dbname, doing="enter the snapshot") from error


def _view_gone(name: str, label: str) -> MillraceError:
    return MillraceError(
        f"the snapshot that {name} shares is gone: the connection that held it has ended",
        where=label,
        hint="run again: tables that were published meanwhile hold the earlier state, and all are read from a new one",
    )


def change_predicate(
    cursor: Cursor, column: PgColumn, *, now: str | None = None, versions: bool = True, rule: Rule = PLAIN
) -> sql.Composable:
    """Return the predicate of the rows to look at from a position on.

    These are rows at or past the cursor's value (ties at the boundary are read again), rows without a value, and, when
    `versions`, rows written by a transaction that the position's snapshot may not have seen, whatever their cursor
    value. The last is conservative: everything at or past the snapshot's xmin, for a subtransaction's id does not stand
    in the snapshot's list, but is never below its parent's.

    Args:
        cursor: the position; without a value all rows are meant.
        column: the cursor column.
        now: `PostgresSnapshot.state` of the look, to tell when the ids have gone round too far to be compared.
        versions: whether xmin means something: same cluster, plain heap.
        rule: how the cursor column is read.
    """
    if cursor.value is None:
        return sql.SQL("true")
    value = rule.ordered(column)
    parts = [
        sql.SQL("{} >= {}").format(value, rule.since(column, cursor.value)),
        sql.SQL("{} is null").format(value),
    ]
    if versions and cursor.snapshot is not None:
        oldest = int(cursor.snapshot.split(":")[0])
        if now is not None and int(now.split(":")[1]) - oldest >= HALF_OF_XIDS:
            return sql.SQL("true")
        parts.append(written_since(oldest))
    return sql.SQL("({})").format(sql.SQL(" or ").join(parts))


def written_since(oldest: int) -> sql.Composed:
    """Return the predicate of rows whose transaction has this 64-bit id or a later one, up to 2³¹ after it."""
    return sql.SQL("((xmin::pg_catalog.text::pg_catalog.int8 - {}) & 4294967295) < 2147483648").format(
        sql.Literal(oldest % (1 << 32))
    )


def _own(snap: Snapshot) -> PostgresSnapshot:
    """Return the snapshot as one of this room: a reader is only given its own."""
    return cast("PostgresSnapshot", snap)


class PostgresReader:
    """One database as a source.

    Args:
        database: where it is; connections are opened when they are needed.
        sessions: how they are opened; None: each time anew, as many as are needed.
    """

    def __init__(self, database: Database, sessions: Sessions | None = None) -> None:
        self.database = database
        self.sessions = sessions or Sessions(database)
        self._shared: dict[str, tuple[PostgresSnapshot, ExitStack]] = {}
        self._sharing = threading.Lock()

    def connect(self, purpose: str) -> AbstractContextManager[Connection]:
        """Open a pinned connection in autocommit mode for a block; it counts on its own: see `Sessions`."""
        return self.sessions.connect(purpose)

    def describe(self, table: TableRef, connection: Connection | None = None) -> Relation:
        """Describe a table. Raises NotFound, PermissionMissing."""
        if connection is not None:
            return describe(connection, table, label=self.database.label)
        with self.connect("describe") as own:
            return describe(own, table, label=self.database.label)

    def schema(self, table: TableRef) -> Schema:
        """Return columns and primary key. Raises NotFound, PermissionMissing."""
        return self.describe(table).schema()

    def source(
        self,
        table: TableRef,
        *,
        where: str | None = None,
        select: str | None = None,
        connection: Connection | None = None,
    ) -> Source:
        """Describe what a copy reads: see `source.open_source`. In a snapshot, give its connection."""
        if connection is not None:
            return open_source(connection, table, label=self.database.label, where=where, select=select)
        with self.connect("describe") as own:
            return open_source(own, table, label=self.database.label, where=where, select=select)

    @contextmanager
    def snapshot(self, connections: int = 1, *, shared: str = "") -> Iterator[PostgresSnapshot]:
        """Open one consistent view and export it; it ends with the block.

        Args:
            connections: how many are used in the block at least, this one included: see `Sessions.booked`.
            shared: name of a view that is opened at its first use and stays open until `let_go`.

        Raises:
            MillraceError: the connection that held the shared view has ended.
        """
        first = self._shared_snapshot(shared) if shared else None
        with (
            self.sessions.booked(connections, connections),
            self.sessions.session("snapshot") as connection,
        ):
            if first is None:
                yield self._exported(connection)
                return
            try:
                enter_snapshot(connection, first.token)
            except TransientFailure as error:
                raise _view_gone(shared, self.database.label) from error
            yield replace(first, connection=connection)

    def _shared_snapshot(self, name: str) -> PostgresSnapshot:
        with self._sharing:
            if name not in self._shared:
                with ExitStack() as stack:
                    snap = self._exported(stack.enter_context(self.sessions.held("shared snapshot")))
                    self._shared[name] = snap, stack.pop_all()
            return self._shared[name][0]

    def let_go(self, needed: Collection[str] = ()) -> None:
        """End shared views but for those named."""
        with self._sharing:
            for name in self._shared.keys() - set(needed):
                self._shared.pop(name)[1].close()

    def _exported(self, connection: Connection) -> PostgresSnapshot:
        with translated(self.database.label, "open a snapshot", connection=connection):
            connection.execute("begin isolation level repeatable read read only")
            row = connection.execute(
                "select pg_catalog.pg_export_snapshot(), pg_catalog.pg_current_snapshot()::text"
            ).fetchone()
            server = server_id(connection)
        token, state = row or ("", "")
        return PostgresSnapshot(token, state, server, connection)

    @contextmanager
    def entered(self, snap: Snapshot, purpose: str) -> Iterator[Connection]:
        """Open a connection of its own inside a snapshot; it is of those that were booked."""
        with self.sessions.session(purpose) as connection:
            enter_snapshot(connection, snap.token)
            yield connection

    def segments(
        self, table: TableRef | Source, snap: Snapshot, since: Position | None, rows: int
    ) -> Sequence[Segment]:
        """Split a table by heap pages, else by its key, else not at all; after a cursor its changes are one part."""
        source = self._source(table, snap)
        if isinstance(since, Cursor) and since.value is not None:
            return [Segment("changes", "changes")]
        if source.paged and source.relation is not None:
            return page_segments(source.relation, rows)
        if not source.key:
            return [Segment.whole(max(0, source.relation.rows if source.relation else 0))]
        return key_segments(_own(snap).connection, source, source.pick(source.key), rows)

    def _source(self, table: TableRef | Source, snap: Snapshot) -> Source:
        if isinstance(table, Source):
            return table
        return self.source(table, connection=_own(snap).connection)

    def read(self, table: TableRef | Source, segment: Segment, snap: Snapshot) -> pa.RecordBatchReader:
        """Stream a segment's rows as Arrow by ADBC: see `arrow.read_source`."""
        from millrace.postgres.arrow import read_source

        source = self._source(table, snap)
        return read_source(self.database, source, segment, snap.token)

    def digest(
        self,
        table: TableRef | Source,
        segments: Sequence[Segment],
        snap: Snapshot,
        key: Sequence[str] = (),
        columns: Sequence[PgColumn] | None = None,
    ) -> Mapping[SegmentId, Digest]:
        """Digest segments inside a snapshot, on a connection of its own. Raises what `digests` raises."""
        return dict(self.digests(table, segments, snap, key, columns))

    def digests(
        self,
        table: TableRef | Source,
        segments: Sequence[Segment],
        snap: Snapshot,
        key: Sequence[str] = (),
        columns: Sequence[PgColumn] | None = None,
    ) -> Iterator[tuple[SegmentId, Digest]]:
        """Yield the digest of each segment as it is known.

        Args:
            table: what is read.
            segments: parts of one kind: heap pages are read one after the other, key parts in one grouped scan.
            snap: the snapshot; it must stay open.
            key: key columns of key segments; the primary key by default.
            columns: columns of the digest; all by default.
        """
        with self.entered(snap, "digest") as connection:
            source = self.source(table, connection=connection) if isinstance(table, TableRef) else table
            yield from digest_segments(connection, source, segments, key, columns)

    def cursor(self, source: Source, column: str, snap: PostgresSnapshot) -> Cursor:
        """Return the position of everything that the snapshot holds: the highest value of the cursor column.

        Raises:
            NotFound: the source has no such column.
            ContractBroken: its type has no order.
        """
        found = source[column]
        value = None
        place = source.rule.ordered(found)
        # ORDER BY takes an output column of that name first: the text must not be called like the column
        shown = place if source.rule.format is not None and is_text(found) else text_form(found)
        text = sql.SQL("{} as {}").format(shown, sql.Identifier("b" if column == "a" else "a"))
        query = sql.SQL("{} order by {} desc limit 1").format(
            source.select([text], sql.SQL("{} is not null").format(place)), place
        )
        try:
            with translated(self.database.label, f"read the cursor of {source.label}", connection=snap.connection):
                row = snap.connection.execute(query).fetchone()
        except Exception as error:
            cause = error.__cause__
            if isinstance(cause, psycopg.Error) and cause.sqlstate == "42883":
                raise ContractBroken(
                    f"column {sql_name(column)} of {source.label} has type {found.type}, which has no order: "
                    "it cannot be a cursor",
                    where=self.database.label,
                ) from cause
            raise
        if row is not None:
            value = row[0]
        return Cursor(column, value, snap.state, snap.server, table=source.identity, traits=source.traits)

    def changes(self, source: Source, position: Cursor, snap: PostgresSnapshot) -> Source:
        """Return the rows to look at since a position: see `change_predicate`."""
        return source.narrowed(self._changed(source, position, snap))

    def unchanged(self, source: Source, position: Cursor, snap: PostgresSnapshot) -> Source:
        """Return the other rows of the source: those that `changes` leaves out."""
        return source.narrowed(sql.SQL("not {}").format(self._changed(source, position, snap)))

    def _changed(self, source: Source, position: Cursor, snap: PostgresSnapshot) -> sql.Composable:
        if position.table is not None and position.table != source.identity:
            return sql.SQL("true")  # rows that are older than the position may hold what was never read
        versions = source.paged and position.server == snap.server
        column = source[position.column]
        changed = change_predicate(position, column, now=snap.state, versions=versions, rule=source.rule)
        besides = unread(position.traits, source.traits) if position.traits is not None else None
        return changed if besides is None else sql.SQL("({} or {})").format(changed, besides)

    def moved(self, source: Source, position: Cursor, snap: PostgresSnapshot) -> tuple[Digest, int]:
        """Digest the rows to look at since a position, and count those that move.

        Rows at the boundary are looked at each time. As long as they are what the position says, they do not move.
        """
        rows, column = self.changes(source, position, snap), source[position.column]
        tied: sql.Composable = sql.SQL("0")
        if position.value is not None:
            tied = sql.SQL("({0} between {1} and {2} or {0} is null)::pg_catalog.int4").format(
                source.rule.ordered(column), source.rule.since(column, position.value), sql.Literal(position.value)
            )
        form = shape(rows.columns)
        query = digest_query(rows.origin, rows.columns, rows.where, tied)
        with translated(source.database, f"digest {source.label}", connection=snap.connection):
            found = {int(row[0]): digest_of(row[1:], form) for row in snap.connection.execute(query)}
        whole = Digest.sum(found.values(), form)
        return whole, whole.rows - (found[1].rows if found.get(1) == position.tail is not None else 0)


def _conforms(reader: PostgresReader) -> Reader:
    """Let mypy hold the reader to its port."""
    return reader


def server_id(connection: Connection) -> str:
    """Return what tells clusters apart: see `PostgresSnapshot.server`."""
    allowed = connection.execute(
        "select pg_catalog.has_function_privilege('pg_catalog.pg_control_system()', 'EXECUTE')"
    ).fetchone()
    if allowed and allowed[0]:
        row = connection.execute("select system_identifier::text from pg_catalog.pg_control_system()").fetchone()
        return str(row[0]) if row else ""
    row = connection.execute(
        "select oid::text from pg_catalog.pg_database where datname = pg_catalog.current_database()"
    ).fetchone()
    return f"at:{connection.info.host}:{connection.info.port}:{row[0] if row else ''}"


def digest_segments(
    connection: Connection,
    source: Source,
    segments: Sequence[Segment],
    key: Sequence[str] = (),
    columns: Sequence[PgColumn] | None = None,
) -> Iterator[tuple[SegmentId, Digest]]:
    """Yield the digests of segments, in the connection's present transaction.

    Raises:
        MillraceError: what the server said, translated.
    """
    if not segments:
        return
    wanted = source.columns if columns is None else tuple(columns)
    form = shape(wanted)
    keys = source.pick(tuple(key) or source.key) if segments[0].how in ("range", "bucket") else ()
    with translated(
        source.database,
        f"digest {source.label}",
        connection=connection,
        on=source.relation.ref if source.relation else None,
    ):
        if keys and len(segments) > 1:
            group = group_expression(segments, keys)
            query = digest_query(source.origin, wanted, source.where, group)
            found = {int(row[0]): digest_of(row[1:], form) for row in connection.execute(query)}
            for place, segment in enumerate(segments):
                yield segment.id, found.get(place, Digest(0, 0, form))
            return
        for segment in segments:
            query = digest_query(source.origin, wanted, both(source.where, predicate(segment, keys)))
            row = connection.execute(query).fetchone()
            yield segment.id, digest_of(row or (0, 0), form)
