"""The pump: bytes of one COPY TO go into one COPY FROM on another server; no row becomes a Python object.

Both connections are driven through `psycopg.pq` without blocking: libpq's blocking calls hold the GIL while they wait,
and the pumps of other threads would wait with them. Memory is one block, whatever the table's size (a single row
larger than a block is held whole, twice: by libpq and here).
"""

from __future__ import annotations

import contextlib
import re
import select
from collections.abc import Callable, Sequence

import psycopg
from psycopg import pq, sql
from psycopg.errors import error_from_result

from millrace.core.ports import Progress
from millrace.core.secrets import redact
from millrace.errors import Interrupted, MillraceError, ProofFailed
from millrace.postgres.session import Connection, translate

BLOCK = 1 << 16  # bytes per put_copy_data: below it calls cost, above it only memory grows
PIECE = 1 << 20  # a larger row is handed over in pieces: libpq copies what it is given
WAKE_MS = 500  # a pump that waits looks this often whether it should stop
CANCEL_SECONDS = 5.0
LONGEST_VALUE = 100  # characters of a value that errors show
_PLACE = re.compile(r"^COPY .*, line \d+, column (?P<column>.*?)(?:: (?P<value>.*))?$", re.MULTILINE)

Stopping = Callable[[], bool]


def never() -> bool:
    """The answer when nobody can stop a pump."""
    return False


def copy_out(query: sql.Composable, *, binary: bool) -> sql.Composed:
    """Return the COPY TO statement of a query, in the binary or the text format."""
    return sql.SQL("copy ({}) to stdout (format {})").format(query, sql.SQL("binary" if binary else "text"))


def copy_in(table: sql.Composable, columns: Sequence[sql.Composable], *, binary: bool) -> sql.Composed:
    """Return the COPY FROM statement into a table's columns."""
    names = sql.SQL(" ({})").format(sql.SQL(", ").join(columns)) if columns else sql.SQL("")  # a table may have none
    return sql.SQL("copy {}{} from stdin (format {})").format(table, names, sql.SQL("binary" if binary else "text"))


def relay(
    source: Connection,
    query: sql.Composable,
    target: Connection,
    into: sql.Composable,
    *,
    labels: tuple[str, str] = ("the source", "the target"),
    progress: Progress | None = None,
    stopping: Stopping = never,
) -> int:
    """Run one COPY TO and feed its bytes into one COPY FROM.

    Neither side's transaction is begun or ended here. After an error both sides' statements are cancelled and the
    connections are closed: whatever transaction was open is rolled back by its server.

    Args:
        source, query: where the rows come from: a `copy … to stdout`.
        target, into: where they go: a `copy … from stdin` of the same columns and format.
        labels: what messages call source and target.
        progress: called with (rows, bytes) of each block.
        stopping: asked between blocks.

    Returns:
        The number of rows, in which both servers agree.

    Raises:
        Interrupted: `stopping` said so.
        MillraceError: either server's error, translated.
        ProofFailed: the servers counted differently.
    """
    pump = _Pump(source.pgconn, target.pgconn, progress, stopping)
    try:
        try:
            pump.begin(query.as_string(source).encode(), into.as_string(target).encode())
            pump.run()
            read, written = pump.end()
        except _TargetError as error:
            raise _translated(error.cause, labels[1], "write the stage") from error.cause
        except psycopg.Error as error:
            raise _translated(error, labels[0], "read the source") from error
    except BaseException as error:
        pump.abort(source, target, str(error))
        raise
    if read != written:
        raise ProofFailed(f"{labels[0]} sent {read:,} rows and {labels[1]} took {written:,}", where=labels[1])
    return read


class _TargetError(Exception):
    """Wraps the target's error, so that it is told from the source's."""

    def __init__(self, cause: psycopg.Error) -> None:
        super().__init__(str(cause))
        self.cause = cause


def _translated(error: psycopg.Error, where: str, doing: str) -> MillraceError:
    if error.sqlstate is None:  # libpq's own words: the connection was lost
        error = psycopg.OperationalError(str(error))
    found = translate(error, where=where, doing=doing)
    if place := _PLACE.search(error.diag.context or ""):
        value = f": {redact(place['value'])[:LONGEST_VALUE]}" if place["value"] else ""  # the binary form shows none
        found.detail = (*found.detail, f"column {place['column']}{value}")
    return found


class _Pump:
    """One COPY to COPY."""

    def __init__(
        self, source: pq.abc.PGconn, target: pq.abc.PGconn, progress: Progress | None, stopping: Stopping
    ) -> None:
        self.source = source
        self.target = target
        self.progress = progress
        self.stopping = stopping
        self.input = select.poll()
        self.output = select.poll()

    def begin(self, query: bytes, into: bytes) -> None:
        """Start both statements; a lock that one of them waits for does not keep `stopping` from being asked."""
        self.input.register(self.source.socket, select.POLLIN)
        self.output.register(self.target.socket, select.POLLOUT | select.POLLIN)
        self._start(self.source, self.input, query, pq.ExecStatus.COPY_OUT)
        try:
            self.output.modify(self.target.socket, select.POLLIN)
            self._start(self.target, self.output, into, pq.ExecStatus.COPY_IN)
            self.output.modify(self.target.socket, select.POLLOUT | select.POLLIN)
            self.target.nonblocking = 1
        except psycopg.Error as error:
            raise _TargetError(error) from error

    def _start(self, connection: pq.abc.PGconn, poll: select.poll, statement: bytes, wanted: pq.ExecStatus) -> None:
        connection.send_query(statement)
        self._wait(connection, poll)
        result = connection.get_result()
        if result is None or result.status != wanted:
            raise psycopg.OperationalError("no answer") if result is None else error_from_result(result)

    def _wait(self, connection: pq.abc.PGconn, poll: select.poll) -> None:
        while connection.is_busy():
            if poll.poll(WAKE_MS):
                connection.consume_input()
            self._check()

    def run(self) -> None:
        """Move everything."""
        get = self.source.get_copy_data
        rows: list[bytes | memoryview] = []
        size = 0
        while True:
            length, data = get(1)
            if length > 0:
                rows.append(data)
                size += length
                if size < BLOCK:
                    continue
            elif length == 0:
                self._check()
                if not rows and self.input.poll(WAKE_MS):
                    self.source.consume_input()
                    continue
                if not rows:
                    continue
            else:
                break
            self._put(rows, size)
            rows, size = [], 0
            del data  # a row of 100 MB is not held while the next one comes
        if rows:
            self._put(rows, size)

    def _put(self, rows: list[bytes | memoryview], size: int) -> None:
        self._check()
        block = memoryview(rows[0] if len(rows) == 1 else b"".join(rows))
        try:
            for start in range(0, len(block), PIECE):
                self.target.put_copy_data(block[start : start + PIECE])
                self._flush()
        except psycopg.Error as error:
            raise _TargetError(error) from error
        if self.progress is not None:
            self.progress(len(rows), size)

    def _check(self) -> None:
        if self.stopping():
            raise Interrupted("stopped while copying")

    def _flush(self) -> None:
        """Send what libpq holds; the server's notices are read meanwhile, or it could wait for us for ever."""
        while self.target.flush():
            for _, event in self.output.poll(WAKE_MS):
                if event & (select.POLLIN | select.POLLHUP | select.POLLERR):
                    self.target.consume_input()
            self._check()

    def end(self) -> tuple[int, int]:
        """End both statements; return the rows that each side counted."""
        read = self._rows(self.source, self.input)
        try:
            self.target.put_copy_end()
            self._flush()
            self.output.modify(self.target.socket, select.POLLIN)
            written = self._rows(self.target, self.output)
            self.target.nonblocking = 0
        except psycopg.Error as error:
            raise _TargetError(error) from error
        return read, written

    def _rows(self, connection: pq.abc.PGconn, poll: select.poll) -> int:
        """Read a statement's results to the end; return the rows that the server counted."""
        count = 0
        while True:
            self._wait(connection, poll)
            result = connection.get_result()
            if result is None:
                return count
            if result.status == pq.ExecStatus.FATAL_ERROR:
                raise error_from_result(result)
            count += result.command_tuples or 0

    def abort(self, source: Connection, target: Connection, reason: str) -> None:
        """Cancel both sides and close their connections."""
        for connection in (source, target):
            if connection.pgconn.status == pq.ConnStatus.OK:
                with contextlib.suppress(Exception):
                    connection.cancel_safe(timeout=CANCEL_SECONDS)
            with contextlib.suppress(Exception):
                connection.close()
