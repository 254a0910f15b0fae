"""Where the files of a copy by files lie: a folder of each table, below it one of each load; gone when it is proven."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from millrace.core.names import AssetId, fingerprint
from millrace.core.ports import KEEP_SECONDS
from millrace.errors import MillraceError, TargetBusy
from millrace.postgres.exporting import written

STATE = ".millrace"
DEFAULT = f"{STATE}/staging"
NAME = "copy.json"
"""What makes a load's files whole: an export's description, with what the copy knows; no import takes it."""
MOST_LETTERS = 40  # of a table's name in its folder's: names have 63 bytes, with a schema's and a hash up to 255


class Staging:
    """The folder of one table, held by one process.

    Attributes:
        folder: of this load's files.
    """

    def __init__(self, place: Path, load: int) -> None:
        self._place = place
        self.folder = place / f"{load:015x}"

    def begin(self) -> list[Path]:
        """Make the load's folder, empty; returns the folders that earlier attempts left. Raises MillraceError."""
        with written("the folder of the staging files", self._place):
            if self.folder.exists():
                self.folder.rename(self._free())
            left = self._left()
            self.folder.mkdir(mode=0o700)
        return left

    def _free(self) -> Path:
        names = (self.folder.with_name(f"{self.folder.name}.{number}") for number in range(1000))
        return next(path for path in names if not path.exists())

    def _left(self) -> list[Path]:
        return sorted(path for path in self._place.iterdir() if path.is_dir())

    def clear(self, *, but_own: bool = False) -> None:
        """Remove what earlier attempts left, and the load's own files."""
        for path in self._left():
            if path != self.folder or not but_own:
                shutil.rmtree(path, ignore_errors=True)


def root_of(folder: Path, wanted: str | None) -> Path:
    """Return the folder of all staging files.

    Args:
        folder: the project's, or the current one.
        wanted: what the copy says.
    """
    return folder / (DEFAULT if wanted is None else wanted)


@contextlib.contextmanager
def held(root: Path, asset: AssetId, target: str, load: int) -> Iterator[Staging]:
    """Hold a table's folder for a block; it is removed at the end when nothing lies in it.

    Args:
        root: of all staging files; made when its parent is there.
        asset, target: what is copied, and into which database.
        load: the load's id.

    Raises:
        TargetBusy: another process holds it.
        MillraceError: it cannot be made.
    """
    own = root.parent.name == STATE
    letters = re.sub(r"[^\w-]+", "_", f"{asset.layer}.{asset.name}")[:MOST_LETTERS]
    place = root / f"{letters}-{fingerprint(asset.layer, asset.name, target)}"
    handle = _locked(place, asset, parents=own)
    try:
        if own:
            _sweep(root, place)
        yield Staging(place, load)
    finally:
        for path in (place, root, root.parent) if own else (place,):
            with contextlib.suppress(OSError):  # not empty
                path.rmdir()
        os.close(handle)


def _locked(place: Path, asset: AssetId, *, parents: bool) -> int:
    while True:
        with written("the folder of the staging files", place.parent):
            place.parent.mkdir(parents=parents, exist_ok=True)
            place.mkdir(mode=0o700, exist_ok=True)
            handle = os.open(place, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(handle).st_ino == place.stat().st_ino:
                return handle
        except BlockingIOError:
            os.close(handle)
            hint = "wait for it to end, or stop it"
            raise TargetBusy(f"another copy writes the staging files of {asset}", where=str(place), hint=hint) from None
        except FileNotFoundError:  # its last owner has removed it
            pass
        os.close(handle)


def _sweep(root: Path, own: Path) -> None:
    """Remove what copies left that nobody went on with, of tables that are perhaps not copied any more."""
    for path in root.iterdir():
        with contextlib.suppress(OSError):
            if path == own or time.time() - path.stat().st_mtime < KEEP_SECONDS:
                continue
            handle = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path)
            finally:
                os.close(handle)


def drop(root: Path, asset: AssetId, target: str, load: int) -> None:
    """Remove a load's files, and the folders that are empty then; nothing when they are gone or held again."""
    if root.is_dir():
        with contextlib.suppress(MillraceError), held(root, asset, target, load) as staging:
            staging.clear()
