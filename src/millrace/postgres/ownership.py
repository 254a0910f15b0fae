"""Who owns a stage: its row, its heartbeat, and how a dead owner's is taken over.

An asset has at most one stage: one row of `stage` names its hidden table, its load and its owner's token. Two processes
never write one stage: every transaction that changes it locks the row and looks for its own token before it commits,
and taking over changes the token under the same lock. A process that slept (SIGSTOP) through a take-over finds its
token gone and its sessions ended. A live owner's stage is never taken.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from millrace.core.names import AssetId, short_run
from millrace.core.ports import StageRequest
from millrace.core.staged import Staged, check_format
from millrace.errors import MillraceError, SeqMoved, TargetBusy, TransientFailure
from millrace.postgres.ledger import Ledger
from millrace.postgres.session import Connection, Database, connect, translated

TTL = 60.0  # seconds without a heartbeat after which an owner counts as dead; as for the engine's leases
VARIABLE = "MILLRACE_LEASE_TTL"
TAKE_OVER_ATTEMPTS = 5
LOCK_MS = 2_000

Make = Callable[[Connection, sql.Identifier], None]
"""Creates a hidden table inside the transaction that claims a stage."""

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


_ROW = sql.SQL("""layer, name, load, run, step, base, how, place, origin, plan, token, owner, host, pid,
    to_char(started, 'YYYY-MM-DD HH24:MI:SS UTC'), staged,
    extract(epoch from pg_catalog.clock_timestamp() - heartbeat)::float8""")
_SELECT: LiteralString = "select {row} from {stage}"


def _row(values: Sequence[Any]) -> StageRow:
    layer, name, *rest = values
    found = StageRow(AssetId(layer, name), *rest)
    if found.staged is not None:
        check_format(found.staged["format"], f"the stage of {found.asset}")
    return found


def rows(connection: Connection, ledger: Ledger) -> list[StageRow]:
    """Return all stages. Raises NewerFormat."""
    query = ledger.sql(_SELECT + " order by layer, name", row=_ROW)
    return [_row(values) for values in connection.execute(query).fetchall()]


def row_of(connection: Connection, ledger: Ledger, asset: AssetId, *, lock: bool = False) -> StageRow | None:
    """Return an asset's stage, or None."""
    text: LiteralString = _SELECT + " where layer = %s and name = %s"
    query = ledger.sql(text + " for update" if lock else text, row=_ROW)
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
    _forget_segments(connection, ledger, row.asset)
    connection.execute(
        ledger.sql("delete from {stage} where layer = %s and name = %s"), (row.asset.layer, row.asset.name)
    )


def _forget_segments(connection: Connection, ledger: Ledger, asset: AssetId) -> None:
    """Delete a stage's segments; the cascade does not where a database sets session_replication_role to replica."""
    connection.execute(ledger.sql("delete from {segment} where layer = %s and name = %s"), (asset.layer, asset.name))


def busy(row: StageRow) -> TargetBusy:
    """Return the error for a stage with a live owner."""
    return TargetBusy(
        f"{row.asset} is being loaded by run {short_run(row.run)}",
        where=str(row.asset),
        detail=[f"on {row.host}, pid {row.pid}, since {row.started}"],
        hint="wait for it to end, or stop it",
    )


@dataclass(frozen=True, slots=True)
class Taken:
    """A stage's row that is ours, and what it was before when it was another attempt's."""

    row: StageRow
    earlier: StageRow | None


def take(connection: Connection, ledger: Ledger, request: StageRequest, origin: str, make: Make) -> Taken:
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
                now = None if found is None else row_of(connection, ledger, request.asset, lock=True)
                if (None if now is None else now.token) != (None if found is None else found.token):
                    continue  # somebody else was faster
                return _claim(connection, ledger, request, origin, make, now)
        except (psycopg.errors.UniqueViolation, psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
            time.sleep(0.05 * (attempt + 1))
    raise TransientFailure(f"the stage of {request.asset} is locked by another session", where=str(request.asset))


def _claim(
    connection: Connection, ledger: Ledger, request: StageRequest, origin: str, make: Make, row: StageRow | None
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
    made = connection.execute(  # a row of somebody else's that came meanwhile is a UniqueViolation
        ledger.sql(
            "insert into {stage} values (%s, %s, %s, %s, %s, %s, %s, %s, %s, null, %s, %s, %s, %s, "
            "pg_catalog.now(), pg_catalog.clock_timestamp(), null) returning {row}",
            row=_ROW,
        ),
        (
            *(asset.layer, asset.name, request.load, request.run, request.step),
            *(request.base, request.how, place, origin, token, *_self()),
        ),
    ).fetchone()
    assert made is not None  # noqa: S101 (an insert that did not raise returns its row)
    _forget_segments(connection, ledger, asset)  # of a stage that was forgotten without them
    return Taken(_row(made), None)


def _self() -> tuple[str, str, int]:
    return owner(), socket.gethostname(), os.getpid()


def _reopen(connection: Connection, ledger: Ledger, row: StageRow) -> bool:
    """Make a taken stage writable again: without key, indexes and checks, as before its end. False: it is gone."""
    place = sql.Identifier(ledger.stage_schema, row.place)
    found = connection.execute(
        "select i.indexrelid::regclass::text, o.conname::text from pg_catalog.pg_class c "
        "join pg_catalog.pg_namespace n on n.oid = c.relnamespace "
        "left join pg_catalog.pg_index i on i.indrelid = c.oid "
        "left join pg_catalog.pg_constraint o on o.conindid = i.indexrelid and o.conrelid = c.oid "
        "where n.nspname = %s and c.relname = %s "
        "union all select null, o.conname::text from pg_catalog.pg_constraint o "
        "join pg_catalog.pg_class c on c.oid = o.conrelid join pg_catalog.pg_namespace n on n.oid = c.relnamespace "
        "where n.nspname = %s and c.relname = %s and o.contype = 'c'",
        (ledger.stage_schema, row.place) * 2,
    ).fetchall()
    for index, constraint in found:
        if constraint is not None:
            connection.execute(sql.SQL("alter table {} drop constraint {}").format(place, sql.Identifier(constraint)))
        elif index is not None:
            connection.execute(sql.SQL("drop index {}").format(sql.SQL(index)))  # quoted by the server
    return bool(found)
