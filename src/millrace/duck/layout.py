"""The warehouse's folder: numbered folders, the pointer `CURRENT`, the lock, and what is removed when.

    root/000042/warehouse.duckdb   a published file, never written again; the last two are kept for readers
    root/000042/stage.json         who made it, from which folder, and what was staged in it
    root/000043/…                  a run's clone, until the pointer moves to it
    root/CURRENT                   the name of the published folder; replaced atomically
    root/.lock                     held for milliseconds: while a number is taken, the pointer moves, folders go
    root/.next                     the highest number ever taken

The published folders are those that the chain CURRENT, its base, its base's base … names; every other numbered
folder is a clone. Numbers are never used again, so a process that slept through its own end finds its folder
missing and never another's. Local disks only: the lock is flock, which network file systems keep badly.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from millrace.core.staged import check_format
from millrace.errors import MillraceError, PermissionMissing, StepFailed, TargetBusy

FILE = "warehouse.duckdb"
"""One name for ever: macros keep the catalogue's name, and dbt's partial parse its path."""
NOTE = "stage.json"
KEPT = 2
LOCK_SECONDS = 15.0  # it is held for milliseconds, unless its holder is stopped by a debugger or SIGSTOP
_NUMBERED = re.compile(r"\d{6,}")


def sync(path: Path) -> None:
    """Bring a file or a folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace(path: Path, text: str, *, durable: bool = False) -> None:
    """Write a small file so that it is whole, old or new, whenever the process is killed."""
    fresh = path.with_name(path.name + ".tmp")
    with fresh.open("w", encoding="utf-8") as file:
        file.write(text)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    fresh.replace(path)
    if durable:
        sync(path.parent)


@contextmanager
def disk(where: Path, doing: str) -> Iterator[None]:
    """Turn the file system's errors in the block into those of Millrace."""
    try:
        yield
    except OSError as error:
        raise disk_error(error, where, doing) from error


def disk_error(error: OSError, where: Path, doing: str) -> MillraceError:
    """Return the Millrace error for one of the file system's."""
    words = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StepFailed(f"{doing}: the disk is full", where=str(where), detail=[words], hint="free some space")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return PermissionMissing(
            f"{doing} is not allowed", where=str(where), detail=[words], hint="the folder must be writable for the run"
        )
    return StepFailed(f"{doing} failed", where=str(where), detail=[words])


class Layout:
    """The folder of one warehouse."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @contextmanager
    def lock(self, seconds: float = LOCK_SECONDS) -> Iterator[None]:
        """Hold the warehouse's lock; a holder that dies gives it up.

        Raises:
            TargetBusy: someone holds it for longer than `seconds`; the detail says who.
        """
        with disk(self.root, "locking the warehouse"):
            self.root.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.root / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            self._wait(handle, seconds)
            with disk(self.root, "locking the warehouse"):
                os.ftruncate(handle, 0)
                os.pwrite(handle, f"pid {os.getpid()} on {os.uname().nodename}".encode(), 0)
            yield
        finally:
            os.close(handle)

    def _wait(self, handle: int, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() < deadline:
                    time.sleep(0.01)
                    continue
                holder = os.pread(handle, 200, 0).decode(errors="replace")
                raise TargetBusy(
                    f"the warehouse has been locked for more than {seconds:g} s",
                    where=str(self.root),
                    detail=[f"held by {holder}"],
                ) from None
            return

    def current_name(self) -> str | None:
        """Return the name of the published folder, or None before the first publish.

        Raises:
            StepFailed: `CURRENT` holds something else.
        """
        try:
            name = (self.root / "CURRENT").read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return None
        if not _NUMBERED.fullmatch(name):
            raise StepFailed(f"CURRENT holds {name[:40]!r}, not a folder's number", where=str(self.root / "CURRENT"))
        return name

    def folders(self) -> list[Path]:
        """Return the numbered folders, lowest first."""
        try:
            found = [path for path in self.root.iterdir() if _NUMBERED.fullmatch(path.name)]
        except FileNotFoundError:
            return []
        return sorted(found, key=lambda path: int(path.name))

    def note(self, folder: Path) -> dict[str, Any] | None:
        """Return what `stage.json` says, or None when the folder or the note is gone.

        Raises:
            NewerFormat: a newer version of Millrace wrote it.
        """
        try:
            found: dict[str, Any] = json.loads((folder / NOTE).read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        check_format(found["format"], f"the stage {folder}")
        return found

    def published(self) -> list[str]:
        """Return the names of the published folders that still exist, the newest first."""
        chain: list[str] = []
        name = self.current_name()
        while name and name not in chain and (self.root / name).is_dir():
            chain.append(name)
            note = self.note(self.root / name)
            name = note["base"] if note else None
        return chain

    def clones(self) -> list[Path]:
        """Return the numbered folders that are not published."""
        chain = self.published()
        return [folder for folder in self.folders() if folder.name not in chain]

    def take_number(self, note: Mapping[str, Any]) -> Path:
        """Make the next folder, with its note; only under the lock."""
        counter = self.root / ".next"
        taken = [int(folder.name) for folder in self.folders()]
        taken.append(int(self.current_name() or 0))
        if counter.exists():
            taken.append(int(counter.read_text(encoding="ascii") or 0))
        number = max(taken) + 1
        replace(counter, str(number), durable=True)
        folder = self.root / f"{number:06d}"
        folder.mkdir()
        replace(folder / NOTE, json.dumps(note))
        return folder

    def point(self, folder: Path) -> None:
        """Move the pointer; only under the lock, after comparing it."""
        replace(self.root / "CURRENT", folder.name + "\n", durable=True)

    def set_aside(self, folder: Path) -> Path:
        """Take a folder out of sight at once; only under the lock. `remove` it afterwards."""
        aside = self.root / f".drop-{folder.name}-{uuid.uuid4().hex[:8]}"
        folder.rename(aside)
        return aside

    def aside(self) -> list[Path]:
        """Return folders that someone set aside and was killed before removing."""
        return sorted(self.root.glob(".drop-*"))


def remove(folder: Path) -> None:
    """Delete a folder that was set aside; one that is gone is fine."""
    shutil.rmtree(folder, ignore_errors=True)
