"""Sessions of one database: used again instead of opened again, and never more at once than a limit.

Opening a session costs the server a process and us four round trips: as much as copying a small table. Whoever needs
several at once books them together before the first, so that steps that run beside each other cannot wait for each
other's for ever; what is opened inside a booking is not counted again.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import psycopg
from psycopg import sql
from psycopg.pq import TransactionStatus

from millrace.postgres.session import Connection, Database, connect

FRESH_SECONDS = 1.0  # a session that was used so lately answers still
BRIEF = frozenset({"ledger", "describe", "look", "check"})  # over before anybody asks the server who it is
ALIKE = frozenset({"stage", "prove"})  # two doors of a step: what is run tells which


class _Idle(NamedTuple):
    """A session that waits to be used again, as what the server knows it, and since when by the monotonic clock."""

    connection: Connection
    name: str
    since: float


class Sessions:
    """Opens sessions of a database.

    Args:
        database: where to.
        most: how many may be open at once; None: as many as are asked for.
        keep: whether sessions stay open to be used again, until `close`.
    """

    def __init__(self, database: Database, most: int | None = None, *, keep: bool = False) -> None:
        self.database = database
        self.most = most
        self.keep = keep
        self._idle: list[_Idle] = []
        self._booked = self._held = 0
        self._freed = threading.Condition()
        self._process = os.getpid()

    @contextmanager
    def booked(self, wanted: int, least: int = 0) -> Iterator[int]:
        """Book sessions: wait for the fewest, take more while there are; yields how many.

        Args:
            wanted: at most so many.
            least: at least so many, or `most` where that is less; whoever waits must hold none.
        """
        with self._freed:
            if self.most is None:
                number = wanted
            else:
                fewest = min(least, max(self.most - self._held, 1))
                while self.most - self._booked < fewest:
                    self._freed.wait()
                    fewest = min(least, max(self.most - self._held, 1))
                number = max(fewest, min(wanted, self.most - self._booked))
            self._booked += number
        try:
            yield number
        finally:
            with self._freed:
                self._booked -= number
                self._freed.notify_all()

    @contextmanager
    def session(self, purpose: str) -> Iterator[Connection]:
        """Open a pinned session in autocommit mode for the block, inside a booking.

        A transaction that is open at the end of the block is rolled back. After an exception the session is closed.

        Raises:
            MillraceError: see `session.connect`.
        """
        connection, name = self._taken(purpose) or (connect(self.database, purpose=purpose), purpose)
        try:
            yield connection
            if self.keep and connection.info.transaction_status is not TransactionStatus.IDLE:
                connection.rollback()
        except BaseException:
            if connection.broken:  # the server may be gone, and the others with it
                self.close()
            connection.close()
            raise
        if not self.keep:
            connection.close()
            return
        with self._freed:
            self._idle.append(_Idle(connection, name, time.monotonic()))

    @contextmanager
    def held(self, purpose: str) -> Iterator[Connection]:
        """Book one session and open it for longer than others wait: they do not count on it."""
        with self.connect(purpose) as connection:
            with self._freed:
                self._held += 1
                self._freed.notify_all()
            try:
                yield connection
            finally:
                with self._freed:
                    self._held -= 1

    @contextmanager
    def connect(self, purpose: str) -> Iterator[Connection]:
        """Book one session and open it for the block: see `session`."""
        with self.booked(1, 1), self.session(purpose) as connection:
            yield connection

    def _taken(self, purpose: str) -> tuple[Connection, str] | None:
        """Return a session that was used before, and its name; one that waited long is asked whether it answers."""
        while True:
            with self._freed:
                if self._process != os.getpid():  # a forked child must not use, nor end, its parent's sessions
                    self._process, self._idle = os.getpid(), []
                if not self._idle:
                    return None
                idle = self._idle.pop()
            waited = time.monotonic() - idle.since
            if waited < FRESH_SECONDS and _fits(purpose, idle.name):
                return idle.connection, idle.name
            try:
                name = sql.Literal(f"millrace {purpose}".strip()[:63])
                idle.connection.execute(sql.SQL("set application_name = {}").format(name))
            except psycopg.Error:  # the server was restarted, or ended it
                idle.connection.close()
            else:
                return idle.connection, purpose

    def close(self) -> None:
        """Close the sessions that wait to be used again; more can be opened afterwards."""
        with self._freed:
            idle, self._idle = self._idle, []
        for one in idle:
            one.connection.close()


def _fits(purpose: str, name: str) -> bool:
    """Say whether a session may keep its name for a purpose."""
    (what, _, whose), (before, _, of) = purpose.partition(" "), name.partition(" ")
    return purpose == name or what in BRIEF or (whose == of and {what, before} <= ALIKE)
