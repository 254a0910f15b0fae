"""A folder as a source: which files a pattern finds, and nothing outside the folder.

Files are only read and, where the project asks for it, moved to an archive after they were published. Whatever a name
or a link says, nothing outside the folder is looked at.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from millrace.errors import ContractBroken, GuardRefused, MillraceError, NotFound, PermissionMissing, StepFailed


@dataclass(frozen=True, slots=True)
class Found:
    """A file that was found.

    Attributes:
        name: relative to the folder, with slashes.
        path: where it lies.
        size: bytes.
        mtime: time of change, in nanoseconds since 1970.
    """

    name: str
    path: Path
    size: int
    mtime: int

    def now(self) -> Found | None:
        """Return it as it is now; None when it is gone."""
        try:
            state = self.path.stat()
        except FileNotFoundError:
            return None
        return Found(self.name, self.path, state.st_size, state.st_mtime_ns)


class FileFolder:
    """The folder of a connection.

    Args:
        root: the folder.
        name: the connection's, for errors.
    """

    def __init__(self, root: Path, name: str) -> None:
        self.root = root
        self.name = name

    def find(self, pattern: str) -> list[Found]:
        """Return the files that a pattern finds, by name.

        `*` and `?` stand for characters of one name, `[…]` for one of some, `**` for any folders. Names that begin
        with a dot are found only where the pattern has the dot; what is no file (a pipe, a socket) never is.

        Raises:
            NotFound: the folder is missing.
            GuardRefused: a link that the pattern finds leads out of the folder.
            PermissionMissing: a folder cannot be read.
            ContractBroken: a file's name is not UTF-8.
        """
        if not self.root.is_dir():
            raise NotFound(
                f"the folder of connection {self.name} is missing",
                where=str(self.root),
                hint="make it, or correct path: of the connection in millrace.yaml",
            )
        root = Path(os.path.realpath(self.root))
        parts = PurePosixPath(pattern).parts
        found = {one.name: one for one in self._walk(root, root, parts)}
        return [found[name] for name in sorted(found)]

    def _walk(self, root: Path, folder: Path, parts: tuple[str, ...]) -> Iterator[Found]:
        """Yield the files below a folder that match the rest of a pattern."""
        part, rest = parts[0], parts[1:]
        if part == "**":
            yield from self._walk(root, folder, rest or ("*",))
        matches = re.compile(_expression(part)).fullmatch
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except (FileNotFoundError, NotADirectoryError):  # it went meanwhile
            return
        except OSError as error:
            raise file_error(error, folder, "looking into the folder") from error
        for entry in entries:
            if not (matches(entry.name) and (not entry.name.startswith(".") or part.startswith("."))):
                continue
            path = Path(entry.path)
            outside = entry.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(root)
            if outside and path.exists():
                raise GuardRefused(
                    f"{self._relative(root, path)} leads out of the folder of connection {self.name}",
                    where=str(self.root),
                    hint="put the file itself there, or make a connection of the folder it lies in",
                )
            if entry.is_dir(follow_symlinks=False):  # one that is linked is found where it lies
                if part == "**":
                    yield from self._walk(root, path, parts)
                elif rest:
                    yield from self._walk(root, path, rest)
            elif part != "**" and not rest and (one := self._file(root, path)) is not None:
                yield one

    def _file(self, root: Path, path: Path) -> Found | None:
        try:
            state = path.stat()
        except FileNotFoundError:  # it went meanwhile, or a link leads nowhere
            return None
        except OSError as error:
            if error.errno == errno.ELOOP:  # a link to itself leads nowhere too
                return None
            raise file_error(error, path, "looking at the file") from error
        if not stat.S_ISREG(state.st_mode):
            return None
        return Found(self._relative(root, path), path, state.st_size, state.st_mtime_ns)

    def _relative(self, root: Path, path: Path) -> str:
        name = path.relative_to(root).as_posix()
        try:
            name.encode()
        except UnicodeEncodeError:
            raise ContractBroken(
                f"the name of a file is not UTF-8: {name!a}", where=str(self.root), hint="rename the file"
            ) from None
        return name


def _expression(part: str) -> str:
    """Return one part of a pattern as a regular expression for names."""
    import fnmatch

    return fnmatch.translate("*" if part == "**" else part)


def file_error(error: OSError, path: Path, doing: str) -> MillraceError:
    """Return our error for one of the operating system."""
    if isinstance(error, PermissionError):
        return PermissionMissing(f"{doing}: no permission", where=str(path), hint="let this user read it")
    if isinstance(error, FileNotFoundError):
        return NotFound(f"{doing}: it is gone", where=str(path), hint="run again")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StepFailed(f"{doing}: the disk is full", where=str(path), hint="free some space, then run again")
    return StepFailed(f"{doing} failed", where=str(path), detail=[error.strerror or str(error)])


def move(source: Path, place: Path) -> None:
    """Move a file; a kill in between leaves it whole at one of the two places, or at both.

    Raises:
        OSError: as the system said.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        source.replace(place)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        half = place.with_name(f".{place.name}.millrace")
        try:
            shutil.copy2(source, half)
            with half.open("rb") as copied:
                os.fsync(copied.fileno())
            half.replace(place)
        finally:
            with contextlib.suppress(FileNotFoundError):
                half.unlink()
        source.unlink()
