"""The embedded engine: connections with limits, SQL put together from quoted names, errors in our words.

Contract: every connection has a memory limit, a number of threads, a folder to spill to and UTC as its time zone,
and never fetches an extension from the network. Values are bound; names pass through `identifier`; a statement is
made by `fill`, which takes nothing but fragments.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from millrace.errors import (
    ExtraMissing,
    MillraceError,
    NewerFormat,
    Place,
    StepFailed,
    TargetBusy,
    TransientFailure,
)

if TYPE_CHECKING:
    import duckdb

_HOLE = re.compile(r"\{(\w+)\}")
_EXCERPT = re.compile(r"\n\nLINE (\d+): (.*)\n( *)\^(\^*)", re.DOTALL)
_LOCKED = re.compile(r"Conflicting lock is held in (?P<program>.*?) \(PID (?P<pid>\d+)\)")


class Fragment(str):
    """A piece of SQL in which every name is quoted; made by the functions of this module only."""

    __slots__ = ()


def identifier(name: str) -> Fragment:
    """Return a name quoted for DuckDB, whatever is in it.

    Raises:
        StepFailed: there is a NUL in it, which DuckDB cannot store.
    """
    if "\0" in name:
        raise StepFailed(f"a name holds a NUL character: {name!r}")
    return Fragment('"' + name.replace('"', '""') + '"')


def qualified(*parts: str) -> Fragment:
    """Return names quoted and joined by dots: catalogue, schema, table."""
    return Fragment(".".join(identifier(part) for part in parts))


def listed(parts: Iterable[Fragment]) -> Fragment:
    """Return fragments joined by commas."""
    return Fragment(", ".join(parts))


def fill(template: str, **parts: Fragment) -> Fragment:
    """Return a statement: a constant text whose `{holes}` are filled with fragments.

    Raises:
        TypeError: a part is a plain text, which may not be SQL.
    """
    for name, part in parts.items():
        if not isinstance(part, Fragment):
            raise TypeError(f"{name} must be a Fragment, not {type(part).__name__}")
    return Fragment(_HOLE.sub(lambda hole: parts[hole[1]], template))


def connect(
    path: Path | str = ":memory:",
    *,
    read_only: bool = False,
    memory_limit: str = "1GB",
    threads: int = 2,
    scratch: Path | None = None,
) -> duckdb.DuckDBPyConnection:
    """Open a database file, or one in memory.

    Args:
        path: the file; its folder must exist.
        read_only: open beside other readers; the file must exist.
        memory_limit: DuckDB's limit, like `1GB`; beyond it, it spills.
        threads: threads that one query uses.
        scratch: folder to spill to; by default one below the system's temporary folder. DuckDB makes it when it
            spills and removes it when the database is closed.

    Raises:
        ExtraMissing: DuckDB is not installed.
        TargetBusy: another process has the file open for writing.
        StepFailed: the file cannot be opened.
    """
    try:
        import duckdb
    except ImportError:
        raise ExtraMissing("DuckDB", "warehouse") from None
    spill = scratch if scratch is not None else Path(tempfile.gettempdir()) / "millrace-spill"
    with translated(str(path), "opening the database"):
        connection = duckdb.connect(
            str(path),
            read_only=read_only,
            config={
                "memory_limit": memory_limit,
                "threads": threads,
                "temp_directory": str(spill),
                "autoinstall_known_extensions": False,
                "autoload_known_extensions": False,
                "allow_community_extensions": False,
            },
        )
        # not an option of connect in DuckDB 2; global, so that cursors have it too
        connection.execute("set global TimeZone = 'UTC'")
    return connection


def rows(connection: duckdb.DuckDBPyConnection, query: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    """Run a statement and return all its rows; DuckDB 2 refuses a new statement while a result is open."""
    found: list[tuple[Any, ...]] = connection.execute(query, list(parameters)).fetchall()
    return found


@contextmanager
def transaction(connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """Commit what the block does, or nothing of it."""
    connection.execute("begin transaction")
    try:
        yield
    except BaseException:
        connection.execute("rollback")
        raise
    connection.execute("commit")


@contextmanager
def translated(where: Place | str | None, doing: str) -> Iterator[None]:
    """Turn DuckDB's errors in the block into those of Millrace."""
    import duckdb

    try:
        yield
    except duckdb.Error as error:
        raise translate(error, where=where, doing=doing) from error


def position(text: str) -> tuple[int, int, int] | None:
    """Return line, column and length (1-based) of what a DuckDB message points at, or None."""
    match = _EXCERPT.search(text)
    if match is None:
        return None
    prefix = len("LINE ") + len(match[1]) + len(": ")
    column = len(match[3]) - prefix + 1
    # a long line is cut at its front: then the column is not the file's
    if match[2].startswith("...") or column < 1:
        return int(match[1]), 0, 1
    return int(match[1]), column, 1 + len(match[4])


def translate(error: duckdb.Error, *, where: Place | str | None, doing: str) -> MillraceError:
    """Return the Millrace error for a DuckDB error.

    Args:
        error: what DuckDB raised.
        where: the file whose SQL ran (line and column are added when DuckDB says them), or a name.
        doing: what was being done, like `loading silver.orders`.
    """
    import duckdb

    text = str(error)
    words = _EXCERPT.sub("", text).strip().splitlines()
    first, rest = words[0] if words else type(error).__name__, [line for line in words[1:] if line.strip()]
    place = where
    if isinstance(where, Place) and (found := position(text)):
        line, column, length = found
        place = Place(where.file, line + max(where.line - 1, 0), column, length)
    if isinstance(error, duckdb.OutOfMemoryException):
        return StepFailed(
            f"{doing} needs more memory than its limit",
            where=place,
            detail=[first],
            hint="raise memory_limit, lower threads, or make the work smaller",
        )
    if locked := _LOCKED.search(text):
        return TargetBusy(
            f"{doing}: another process has the file open for writing",
            where=place,
            detail=[f"{locked['program']} (pid {locked['pid']})"],
        )
    if "No space left on device" in text or "max_temp_directory_size" in text:
        return StepFailed(f"{doing}: the disk is full", where=place, detail=[first], hint="free some space, then run")
    if "newer version of DuckDB" in text or "newer DuckDB" in text:
        return NewerFormat(f"{doing}: a newer DuckDB wrote the file", where=place, detail=[first])
    if isinstance(error, duckdb.TransactionException):
        return TransientFailure(f"{doing} met another transaction", where=place, detail=[first])
    return StepFailed(f"{doing} failed", where=place, detail=[first, *rest])
