"""A run's clone of the warehouse: the file that everything of one publish group is made in.

A clone belongs to one run, and to one process at a time: the process holds a lock on `.owner` in its folder until
it ends or lets go. So a later process of the same run takes over where a killed one stopped, and two never
write at once. What was staged stands in `stage.json`, written whole after each member.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from millrace.core.names import short_run
from millrace.core.staged import Staged
from millrace.duck import engine
from millrace.duck.layout import FILE, NOTE, Layout, disk, replace
from millrace.errors import SeqMoved, TargetBusy

if TYPE_CHECKING:
    import duckdb

_held: dict[str, int] = {}
"""Folders whose `.owner` this process has locked, with the open file."""
alone = threading.RLock()
"""Held by a thread that finds, makes or notes a clone: steps of one group may run in several."""
_active: set[str] = set()
"""Folders in which this process is inside a savepoint."""


def own(folder: Path, run: str) -> int:
    """Lock a clone for this process; returns the open file, which a child may inherit to keep the lock.

    Raises:
        TargetBusy: another process has it.
        SeqMoved: the folder is gone.
    """
    name = str(folder.resolve())
    if name in _held:
        return _held[name]
    try:
        handle = os.open(folder / ".owner", os.O_RDWR | os.O_CREAT, 0o666)
    except FileNotFoundError:
        raise gone(folder, run) from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(handle, 200, 0).decode(errors="replace")
        os.close(handle)
        raise TargetBusy(
            f"another process works on run {short_run(run)} in the warehouse",
            where=str(folder),
            detail=[f"held by {holder}"],
            hint="wait for it, or end it",
        ) from None
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"pid {os.getpid()} on {os.uname().nodename}".encode(), 0)
    _held[name] = handle
    return handle


def release(folder: Path) -> None:
    """Let another process take the clone."""
    handle = _held.pop(str(folder.resolve()), None)
    if handle is not None:
        os.close(handle)


def gone(folder: Path, run: str) -> SeqMoved:
    """Return the error for a clone that is not there any more."""
    return SeqMoved(
        f"the warehouse's clone of run {short_run(run)} is gone: it was dropped or published by someone else",
        where=str(folder),
        hint="run again: it starts from what is published now",
    )


@dataclass(frozen=True, slots=True)
class Clone:
    """A writable copy of the published file.

    Attributes:
        folder: its numbered folder; the working folder for tools that run in it.
        run: whose it is.
        base: name of the published folder that it was copied from; None: there was none.
    """

    layout: Layout
    folder: Path
    run: str
    base: str | None
    memory_limit: str = "1GB"
    threads: int = 2

    @property
    def path(self) -> Path:
        """The database file."""
        return self.folder / FILE

    @property
    def owner(self) -> int:
        """The open file that holds the lock: a child that inherits it keeps others out while it still writes."""
        return own(self.folder, self.run)

    def connect(self, *, read_only: bool = False) -> duckdb.DuckDBPyConnection:
        """Open the clone. Close the connection before another tool opens the file.

        Raises:
            SeqMoved: it was dropped, or it is published already.
            TargetBusy: another process works on it.
        """
        own(self.folder, self.run)
        if self.layout.note(self.folder) is None or self.folder.name in self.layout.published():
            raise gone(self.folder, self.run)
        if not read_only and self.path.exists() and not os.access(self.path, os.W_OK):
            self.path.chmod(0o644)  # a publish that was stopped had closed it already
        return engine.connect(
            self.path,
            read_only=read_only,
            memory_limit=self.memory_limit,
            threads=self.threads,
            scratch=self.folder / "spill",
        )

    def _note(self) -> dict[str, Any]:
        note = self.layout.note(self.folder)
        if note is None:
            raise gone(self.folder, self.run)
        return note

    def members(self) -> tuple[Staged, ...]:
        """Return everything staged in it so far."""
        return tuple(Staged.from_json(data) for data in self._note()["members"])

    def staged(self, load: int) -> tuple[Staged, ...]:
        """Return what a load has staged already; all its members, since they are recorded at once."""
        return tuple(staged for staged in self.members() if staged.load == load)

    def record(self, staged: Sequence[Staged]) -> None:
        """Record members; of an asset that was staged before, the new one counts."""
        with alone, disk(self.folder, "recording the stage"):
            note = self._note()
            assets = {one.asset for one in staged}
            kept = [one for one in self.members() if one.asset not in assets]
            note["members"] = [one.to_json() for one in (*kept, *staged)]
            replace(self.folder / NOTE, json.dumps(note))

    @contextmanager
    def savepoint(self, load: int) -> Iterator[None]:
        """Have what the block did to the file undone, unless its members are recorded by the end.

        For tools that commit as they go (dbt): what a failed or killed attempt did is undone before the clone is
        used again, so an append is never applied twice.
        """
        self.recover()
        with disk(self.folder, "making a savepoint"):
            self.checkpoint()
            shutil.copyfile(self.path, self._saved)
            replace(self._marker, str(load))
        name = str(self.folder.resolve())
        _active.add(name)
        try:
            yield
        finally:
            _active.discard(name)
        self.recover()

    def recover(self) -> None:
        """Undo what a load did that ended without recording its members."""
        if str(self.folder.resolve()) in _active or not self._marker.exists():
            return
        with disk(self.folder, "restoring the clone"):
            if not self.staged(int(self._marker.read_text(encoding="ascii"))):
                self.path.with_name(FILE + ".wal").unlink(missing_ok=True)
                part = self.path.with_name(FILE + ".part")
                shutil.copyfile(self._saved, part)
                part.replace(self.path)
            self._marker.unlink()
            self._saved.unlink()

    @property
    def _saved(self) -> Path:
        return self.folder / "savepoint.duckdb"

    @property
    def _marker(self) -> Path:
        return self.folder / "savepoint.load"

    def checkpoint(self) -> None:
        """Bring everything into the main file, so that it is whole without a write-ahead log."""
        with engine.translated(str(self.path), "writing the clone"):
            connection = self.connect()
            try:
                connection.execute("checkpoint")
            finally:
                connection.close()

    def release(self) -> None:
        """Let another process of the same run go on with it."""
        release(self.folder)
