"""Stages: hidden tables in the target, who owns them, and how a killed attempt's is taken over.

An asset has at most one stage: one row of `stage` names its table, its load and its owner's token. Two processes never
write one stage: every transaction that changes it locks the row and looks for its own token before it commits, and
taking over changes the token under the same lock. A process that slept (SIGSTOP) through a take-over finds its token
gone and its sessions ended. A live owner's stage is never taken.

A segment is one transaction that also records the transaction's id, so that the rows of a whole segment are found by
`xmin`, digested, kept or deleted.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from millrace.core.digest import Digest
from millrace.core.events import reach
from millrace.core.names import AssetId, TableRef
from millrace.core.ports import Progress, StageRequest
from millrace.core.position import Position
from millrace.core.schema import Schema
from millrace.core.segment import Segment, SegmentId
from millrace.core.staged import Staged, check_format
from millrace.errors import KeyInvalid, MillraceError, SeqMoved, TargetBusy, TransientFailure
from millrace.postgres.catalog import PgColumn, Relation, describe
from millrace.postgres.ddl import cut
from millrace.postgres.digest import digest_of, row_hash, shape
from millrace.postgres.ledger import Ledger
from millrace.postgres.names import sql_name
from millrace.postgres.pump import Stopping, copy_in, never, relay
from millrace.postgres.session import Connection, Database, connect, translated

TTL = 60.0  # seconds without a heartbeat after which an owner counts as dead; as for the engine's leases
VARIABLE = "MILLRACE_LEASE_TTL"
TAKE_OVER_ATTEMPTS = 5
LOCK_MS = 2_000
SORT_MEMORY = "128MB"  # for the key's index of a new table: sorts 3M integer keys in memory

_alive: set[str] = set()  # tokens whose owner is this process and still at it
_owner: tuple[int, str] = (0, "")


def ttl() -> float:
    """Return the time to live in seconds: `MILLRACE_LEASE_TTL`, or 60."""
    try:
        return max(float(os.environ.get(VARIABLE, "")), 0.1)
    except ValueError:
        return TTL


def owner() -> str:
    """Return this process's mark; its sessions in a target carry it, so that those of a dead owner can be ended."""
    global _owner  # noqa: PLW0603 (a forked child needs a mark of its own)
    if _owner[0] != os.getpid():
        _owner = (os.getpid(), secrets.token_hex(6))
    return _owner[1]


@dataclass(frozen=True, slots=True)
class StageRow:
    """One row of the stage table, as it was when it was read.

    Attributes:
        silent: seconds since the last heartbeat, by the server's clock.
    """

    asset: AssetId
    load: int
    run: str
    step: str
    base: int
    how: str
    place: str
    origin: str
    plan: Any
    token: str
    owner: str | None
    host: str | None
    pid: int | None
    started: str
    staged: Any
    silent: float

    @property
    def live(self) -> bool:
        """Whether its owner is to be believed at it."""
        if self.pid is None or self.silent > ttl():
            return False
        if self.host != socket.gethostname():
            return True
        if self.pid == os.getpid():
            return self.token in _alive
        return _runs(self.pid)

    def value(self) -> Staged | None:
        """Return the closed stage, or None while it is open."""
        return None if self.staged is None else Staged.from_json(self.staged)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


_SELECT: LiteralString = """
select layer, name, load, run, step, base, how, place, origin, plan, token, owner, host, pid,
    to_char(started, 'YYYY-MM-DD HH24:MI:SS UTC'), staged,
    extract(epoch from pg_catalog.clock_timestamp() - heartbeat)::float8 from {stage}"""


def _row(values: Sequence[Any]) -> StageRow:
    layer, name, *rest = values
    found = StageRow(AssetId(layer, name), *rest)
    if found.staged is not None:
        check_format(found.staged["format"], f"the stage of {found.asset}")
    return found


def rows(connection: Connection, ledger: Ledger) -> list[StageRow]:
    """Return all stages. Raises NewerFormat."""
    query = ledger.sql(_SELECT + " order by layer, name")
    return [_row(values) for values in connection.execute(query).fetchall()]


def row_of(connection: Connection, ledger: Ledger, asset: AssetId, *, lock: bool = False) -> StageRow | None:
    """Return an asset's stage, or None."""
    text: LiteralString = _SELECT + " where layer = %s and name = %s"
    query = ledger.sql(text + " for update" if lock else text)
    found = connection.execute(query, (asset.layer, asset.name)).fetchone()
    return None if found is None else _row(found)


def gone(asset: AssetId) -> SeqMoved:
    """Return the error for a stage that somebody else has taken over or dropped."""
    return SeqMoved(
        f"the stage of {asset} was taken over or dropped by another run",
        where=str(asset),
        hint="this process was silent for longer than the time to live; run again",
    )


def evict(connection: Connection, row: StageRow) -> None:
    """End the sessions of a dead or stopped owner, which may hold locks on its stage; never this process's own."""
    if row.owner is None or row.owner == owner():
        return
    query = (
        "select pg_catalog.pg_terminate_backend(pid) from pg_catalog.pg_stat_activity "
        "where pid <> pg_catalog.pg_backend_pid() and pg_catalog.right(application_name, %s) = %s"
    )
    deadline = time.monotonic() + 5
    with contextlib.suppress(psycopg.errors.InsufficientPrivilege):  # another role's: its locks will end with it
        while connection.execute(query, (len(row.owner), row.owner)).fetchall() and time.monotonic() < deadline:
            time.sleep(0.02)  # a session ends when it sees the signal


class Heart:
    """A thread that says of a stage that its owner lives."""

    def __init__(self, database: Database, ledger: Ledger, asset: AssetId, token: str) -> None:
        self._database = database
        self._ledger = ledger
        self.asset = asset
        self.token = token
        self.lost = False
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="millrace-stage", daemon=True)
        _alive.add(token)
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._end.set()
        _alive.discard(self.token)
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _beat(self) -> None:
        while not self._end.wait(ttl() / 3):
            with contextlib.suppress(MillraceError, psycopg.Error):  # the next beat comes before the stage is stale
                self.lost = not self.beat()
                if self.lost:
                    return

    def beat(self) -> bool:
        """Say it once; return whether the stage still is this owner's."""
        query = self._ledger.sql(
            "update {stage} set heartbeat = pg_catalog.clock_timestamp(), owner = %s, host = %s, pid = %s "
            "where layer = %s and name = %s and token = %s"
        )
        with connect(self._database, purpose=f"heartbeat {owner()}") as connection:
            connection.execute(sql.SQL("set lock_timeout = {}").format(sql.Literal(LOCK_MS)))
            values = (owner(), socket.gethostname(), os.getpid(), self.asset.layer, self.asset.name, self.token)
            return connection.execute(query, values).rowcount == 1


class PostgresStage:
    """An open stage: segments are copied into it, then it is closed.

    Made by `PostgresTarget.open_stage`.

    Attributes:
        place: the hidden table.
        plan: the segments of an earlier attempt, when this one goes on from it; else None.
        earlier: the run whose stage was taken over, or None.
    """

    def __init__(
        self,
        database: Database,
        ledger: Ledger,
        request: StageRequest,
        row: StageRow,
        *,
        target: str,
        earlier: StageRow | None,
    ) -> None:
        self._database = database
        self._ledger = ledger
        self._request = request
        self._target = target
        self._columns: tuple[PgColumn, ...] | None = None
        self.asset = request.asset
        self.token = row.token
        self.place = TableRef(ledger.stage_schema, row.place)
        self.earlier = None if earlier is None else earlier.run
        self.plan = None if earlier is None or earlier.plan is None else [Segment.from_json(s) for s in earlier.plan]
        self.heart = Heart(database, ledger, request.asset, row.token)

    @property
    def identifier(self) -> sql.Identifier:
        """The hidden table for building SQL."""
        return sql.Identifier(self.place.schema or "", self.place.name)

    @property
    def key(self) -> tuple[str, ...]:
        """The key columns."""
        return self._request.schema.key

    def connect(self) -> Connection:
        """Open a session for writing the stage; the caller closes it."""
        return connect(self._database, purpose=f"stage {owner()}")

    def lost(self) -> bool:
        """Whether a heartbeat found that somebody else has taken the stage."""
        return self.heart.lost

    # what an earlier attempt left

    def planned(self, segments: Sequence[Segment]) -> None:
        """Keep the segments, so that a later attempt finds the same ones."""
        with self.connect() as connection, translated(self._database.label, "plan the stage", connection=connection):
            statement = self._ledger.sql("update {stage} set plan = %s where layer = %s and name = %s and token = %s")
            plan = json.dumps([segment.to_json() for segment in segments])
            if connection.execute(statement, (plan, self.asset.layer, self.asset.name, self.token)).rowcount != 1:
                raise gone(self.asset)

    def done(self) -> Mapping[SegmentId, Digest]:
        """Return the whole segments that a killed attempt left, with the digest of the rows that lie there."""
        with self.connect() as connection, translated(self._database.label, "read the stage", connection=connection):
            known = self._segments(connection)
            if not known:
                return {}
            columns = self._described(connection)
            form = shape(columns)
            query = sql.SQL(
                "select xmin::text, pg_catalog.count(*), pg_catalog.sum({})::text from {} group by xmin"
            ).format(row_hash(columns), self.identifier)
            found = {row[0]: digest_of(row[1:], form) for row in connection.execute(query).fetchall()}
        digests = {name: found.get(xid, Digest(0, 0, form)) for name, (xid, _) in known.items()}
        return {name: digest for name, digest in digests.items() if digest.rows == known[name][1]}

    def _segments(self, connection: Connection) -> dict[SegmentId, tuple[str, int]]:
        query = self._ledger.sql("select id, xid, rows from {segment} where layer = %s and name = %s")
        return {row[0]: (row[1], row[2]) for row in connection.execute(query, (self.asset.layer, self.asset.name))}

    def _described(self, connection: Connection) -> tuple[PgColumn, ...]:
        if self._columns is None:
            relation = describe(connection, self.place, label=self._database.label)
            self._columns = relation.pick(self._request.schema.names)
        return self._columns

    def drop(self, keep: Iterable[SegmentId]) -> None:
        """Delete all rows but those of the named whole segments."""
        kept = set(keep)
        with (
            self.connect() as connection,
            translated(self._database.label, "clean the stage", connection=connection),
            connection.transaction(),
        ):
            self._own(connection)
            xids = [xid for name, (xid, _) in self._segments(connection).items() if name in kept]
            statement = sql.SQL("delete from {} where xmin::text <> all(%s)").format(self.identifier)
            connection.execute(statement, (xids,))
            connection.execute(
                self._ledger.sql("delete from {segment} where layer = %s and name = %s and id <> all(%s)"),
                (self.asset.layer, self.asset.name, list(kept)),
            )

    # writing

    def copy(
        self,
        segment: Segment,
        source: Connection,
        query: sql.Composable,
        target: Connection,
        columns: Sequence[str],
        *,
        binary: bool,
        labels: tuple[str, str],
        progress: Progress | None = None,
        stopping: Stopping = never,
    ) -> int:
        """Copy one segment in one transaction; returns its rows.

        Args:
            source, query: a connection inside the snapshot and its `copy … to stdout`.
            target: a session of `connect()`.
            columns: the columns that the query gives, in order.

        Raises:
            SeqMoved: somebody else has taken the stage.
            Interrupted, MillraceError: see `pump.relay`.
        """
        label = self._database.label
        with translated(label, "write the stage", connection=target):
            target.execute("begin; set local synchronous_commit = off")  # the publish's commit flushes all before it
        into = copy_in(self.identifier, [sql.Identifier(name) for name in columns], binary=binary)
        count = relay(source, query, target, into, labels=labels, progress=progress, stopping=stopping)
        with translated(label, "write the stage", connection=target):
            try:
                self._own(target)
                target.execute(
                    self._ledger.sql("insert into {segment} values (%s, %s, %s, %s, pg_current_xact_id()::xid)"),
                    (self.asset.layer, self.asset.name, segment.id, count),
                )
                target.execute("commit")
            except BaseException:
                with contextlib.suppress(psycopg.Error):
                    target.execute("rollback")
                raise
        reach("postgres.stage.segment")
        return count

    def _own(self, connection: Connection) -> None:
        """Lock the stage's row against a take-over until the transaction ends. Raises SeqMoved when it was taken."""
        query = self._ledger.sql(
            "select 1 from {stage} where layer = %s and name = %s and token = %s and staged is null for share"
        )
        if connection.execute(query, (self.asset.layer, self.asset.name, self.token)).fetchone() is None:
            raise gone(self.asset)

    # the end

    def close(
        self, position: Position, expected: Mapping[SegmentId, Digest], *, unique: bool = True, **detail: Any
    ) -> Staged:
        """End the stage: build the key, gather statistics, remember what it is.

        Args:
            position: the source position after the publish.
            expected: digest of each staged segment, taken from the source in the snapshot.
            unique: refuse a key that occurs twice; else the publish keeps the latest row of a key.
            detail: further facts for the publish; JSON.

        Raises:
            KeyInvalid: a null in the key, or the same key twice.
            SeqMoved: somebody else has taken the stage.
        """
        request = self._request
        staged = Staged(
            asset=request.asset,
            load=request.load,
            run=request.run,
            step=request.step,
            target=self._target,
            base=request.base,
            how=request.how,  # type: ignore[arg-type]
            place=str(self.place),
            schema=request.schema,
            position=position,
            expected=dict(expected),
            rows=sum(digest.rows for digest in expected.values()),
            inputs=dict(request.inputs),
            code=request.code,
            date=request.date,
            detail={"token": self.token, "table": self.place.name, **detail},
        )
        doing = f"finish the stage of {self.asset}"
        with self.connect() as connection, translated(self._database.label, doing, connection=connection):
            with connection.transaction():
                self._own(connection)
                self._build_key(connection, unique=unique)
                if request.how == "create":
                    self._set_sequences(connection)
                connection.execute(
                    self._ledger.sql("update {stage} set staged = %s where layer = %s and name = %s and token = %s"),
                    (json.dumps(staged.to_json()), self.asset.layer, self.asset.name, self.token),
                )
            if request.how != "create":  # the publish joins it; of a new table the server's own vacuum takes care
                connection.execute(sql.SQL("analyze {}").format(self.identifier))
        reach("postgres.stage.closed")
        return staged

    def _build_key(self, connection: Connection, *, unique: bool) -> None:
        if not self.key:
            return
        connection.execute(sql.SQL("set local maintenance_work_mem = {}").format(sql.Literal(SORT_MEMORY)))
        names = sql.SQL(", ").join(sql.Identifier(name) for name in self.key)
        try:
            if unique:
                connection.execute(
                    sql.SQL("alter table {} add constraint {} primary key ({})").format(
                        self.identifier, sql.Identifier(cut(self.place.name, "_pkey")), names
                    )
                )
            else:
                self._refuse_nulls(connection)
                connection.execute(sql.SQL("create index on {} ({})").format(self.identifier, names))
        except (psycopg.errors.UniqueViolation, psycopg.errors.NotNullViolation) as error:
            raise self._no_key(error) from error

    def _no_key(self, error: psycopg.Error) -> KeyInvalid:
        names = ", ".join(sql_name(name) for name in self.key)
        null = isinstance(error, psycopg.errors.NotNullViolation)
        return KeyInvalid(
            f"({names}) is not a key of {self.asset}: {'it holds nulls' if null else 'two rows have the same'}",
            where=str(self.asset),
            detail=[text for text in (error.diag.message_primary, error.diag.message_detail) if text],
            hint="name the columns that tell rows apart: --key, or key: in the project",
        )

    def _refuse_nulls(self, connection: Connection) -> None:
        nulls = sql.SQL(" or ").join(sql.SQL("{} is null").format(sql.Identifier(name)) for name in self.key)
        row = connection.execute(
            sql.SQL("select pg_catalog.count(*) from {} where {}").format(self.identifier, nulls)
        ).fetchone()
        if row is not None and row[0]:
            names = ", ".join(sql_name(name) for name in self.key)
            what = f"{row[0]:,} rows for {self.asset} have a null in the key ({names})"
            raise KeyInvalid(what, where=str(self.asset))

    def _set_sequences(self, connection: Connection) -> None:
        """Set identity columns past the highest value that was copied."""
        for column in self._described(connection):
            if column.identity:
                set_sequence(connection, self.identifier, column.name)

    def release(self) -> None:
        """Stop being the owner and leave the stage for a later attempt."""
        self.heart.stop()
        release(self._database, self._ledger, self.asset, self.token)

    def discard(self) -> None:
        """Drop the stage."""
        self.heart.stop()
        with self.connect() as connection:
            drop(connection, self._ledger, self.asset, self.token)


def set_sequence(connection: Connection, table: sql.Identifier, column: str) -> None:
    """Set a column's own sequence past its highest value, when it has one and is behind."""
    found = connection.execute(
        "select pg_catalog.pg_get_serial_sequence(%s, %s)", (table.as_string(connection), column)
    ).fetchone()
    if found is None or found[0] is None:
        return
    name = sql.SQL(found[0])  # quoted by the server
    connection.execute(
        sql.SQL(
            "select pg_catalog.setval(%s::regclass, m.highest) "
            "from (select pg_catalog.max({})::int8 as highest from {}) m, {} s "
            "where m.highest > s.last_value or (m.highest = s.last_value and not s.is_called)"
        ).format(sql.Identifier(column), table, name),
        (found[0],),
    )


def release(database: Database, ledger: Ledger, asset: AssetId, token: str) -> None:
    """Write into a stage's row that nobody is at it; quietly, for it is called when something else has failed."""
    _alive.discard(token)
    statement = ledger.sql(
        "update {stage} set owner = null, host = null, pid = null where layer = %s and name = %s and token = %s"
    )
    with contextlib.suppress(MillraceError, psycopg.Error), connect(database, purpose=f"stage {owner()}") as connection:
        connection.execute(sql.SQL("set lock_timeout = {}").format(sql.Literal(LOCK_MS)))
        connection.execute(statement, (asset.layer, asset.name, token))


def drop(connection: Connection, ledger: Ledger, asset: AssetId, token: str) -> bool:
    """Drop a stage with its table, if it still has that token; returns whether there was one."""
    with translated(ledger.label, f"drop the stage of {asset}", connection=connection), connection.transaction():
        row = row_of(connection, ledger, asset, lock=True)
        if row is None or row.token != token:
            return False
        forget(connection, ledger, row)
    return True


def forget(connection: Connection, ledger: Ledger, row: StageRow, *, table: bool = True) -> None:
    """Delete a stage's row, and its table unless it has become something else; inside a transaction."""
    if table:
        connection.execute(sql.SQL("drop table if exists {}").format(sql.Identifier(ledger.stage_schema, row.place)))
    connection.execute(
        ledger.sql("delete from {stage} where layer = %s and name = %s"), (row.asset.layer, row.asset.name)
    )


def busy(row: StageRow) -> TargetBusy:
    """Return the error for a stage with a live owner."""
    return TargetBusy(
        f"{row.asset} is being loaded by run {row.run}",
        where=str(row.asset),
        detail=[f"on {row.host}, pid {row.pid}, since {row.started}"],
        hint="wait for it to end, or stop it",
    )


@dataclass(frozen=True, slots=True)
class Taken:
    """A stage's row that is ours, and what it was before when it was another attempt's."""

    row: StageRow
    earlier: StageRow | None


def take(connection: Connection, ledger: Ledger, request: StageRequest, origin: str, make: Any) -> Taken:
    """Make an asset's stage, or take over a dead owner's.

    Args:
        connection: in autocommit mode.
        origin: fingerprint of what is staged; another one makes the old stage worthless.
        make: called with (connection, identifier) inside the transaction, to create the hidden table.

    Raises:
        TargetBusy: a live owner is at it.
        TransientFailure: its row stays locked.
    """
    for attempt in range(TAKE_OVER_ATTEMPTS):
        found = row_of(connection, ledger, request.asset)
        if found is not None:
            if found.live:
                raise busy(found)
            evict(connection, found)
        try:
            with connection.transaction():
                connection.execute(sql.SQL("set local lock_timeout = {}").format(sql.Literal(LOCK_MS)))
                now = row_of(connection, ledger, request.asset, lock=True)
                if (None if now is None else now.token) != (None if found is None else found.token):
                    continue  # somebody else was faster
                return _claim(connection, ledger, request, origin, make, now)
        except (psycopg.errors.UniqueViolation, psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
            time.sleep(0.05 * (attempt + 1))
    raise TransientFailure(f"the stage of {request.asset} is locked by another session", where=str(request.asset))


def _claim(
    connection: Connection, ledger: Ledger, request: StageRequest, origin: str, make: Any, row: StageRow | None
) -> Taken:
    token = secrets.token_hex(8)
    asset = request.asset
    if row is not None:
        same = (row.how, row.base, row.origin) == (request.how, request.base, origin)
        if same and _reopen(connection, ledger, row):
            connection.execute(
                ledger.sql(
                    "update {stage} set load = %s, run = %s, step = %s, token = %s, owner = %s, host = %s, pid = %s, "
                    "started = pg_catalog.now(), heartbeat = pg_catalog.clock_timestamp(), staged = null "
                    "where layer = %s and name = %s"
                ),
                (request.load, request.run, request.step, token, *_self(), asset.layer, asset.name),
            )
            return Taken(replace(row, token=token, load=request.load, run=request.run), row)
        forget(connection, ledger, row)
    place = f"s{request.load:015x}_{token[:6]}"
    make(connection, sql.Identifier(ledger.stage_schema, place))
    connection.execute(
        ledger.sql(
            "insert into {stage} values (%s, %s, %s, %s, %s, %s, %s, %s, %s, null, %s, %s, %s, %s, "
            "pg_catalog.now(), pg_catalog.clock_timestamp(), null)"
        ),
        (
            *(asset.layer, asset.name, request.load, request.run, request.step),
            *(request.base, request.how, place, origin, token, *_self()),
        ),
    )
    made = row_of(connection, ledger, asset)
    if made is None:
        raise gone(asset)
    return Taken(made, None)


def _self() -> tuple[str, str, int]:
    return owner(), socket.gethostname(), os.getpid()


def _reopen(connection: Connection, ledger: Ledger, row: StageRow) -> bool:
    """Make a taken stage writable again: without key and indexes, as before it was closed. False: its table is gone."""
    place = sql.Identifier(ledger.stage_schema, row.place)
    found = connection.execute(
        "select i.indexrelid::regclass::text, o.conname::text from pg_catalog.pg_class c "
        "join pg_catalog.pg_namespace n on n.oid = c.relnamespace "
        "left join pg_catalog.pg_index i on i.indrelid = c.oid "
        "left join pg_catalog.pg_constraint o on o.conindid = i.indexrelid and o.conrelid = c.oid "
        "where n.nspname = %s and c.relname = %s",
        (ledger.stage_schema, row.place),
    ).fetchall()
    for index, constraint in found:
        if constraint is not None:
            connection.execute(sql.SQL("alter table {} drop constraint {}").format(place, sql.Identifier(constraint)))
        elif index is not None:
            connection.execute(sql.SQL("drop index {}").format(sql.SQL(index)))  # quoted by the server
    return bool(found)


def staged_relation(connection: Connection, ledger: Ledger, staged: Staged, *, lock: bool = False) -> Relation:
    """Describe a closed stage's table.

    Raises:
        SeqMoved: it is not that stage any more.
    """
    row = row_of(connection, ledger, staged.asset, lock=lock)
    if row is None or row.staged is None or row.token != staged.detail["token"]:
        raise gone(staged.asset)
    return describe(connection, TableRef(ledger.stage_schema, row.place), label=ledger.label)


def schema_of(columns: Sequence[PgColumn], key: Sequence[str]) -> Schema:
    """Return the portable schema of some columns under a key."""
    return Schema(tuple(column.column() for column in columns), tuple(key))
