"""The archive: where files go after their lines were published, as they came, in folders by the year of their change.

Moving comes after the publish, so a kill in between leaves files where they landed: the ledger says that they were
taken, and the next run moves them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from millrace.core.position import Taken
from millrace.errors import GuardRefused, StepFailed
from millrace.steps.landing import FilesSpec
from millrace.steps.resources import Resources
from millrace.steps.spec import CopySpec

if TYPE_CHECKING:
    from millrace.connectors.folder import Found
    from millrace.lake.target import LakeTarget


@dataclass(frozen=True, slots=True)
class Archive:
    """The archive of one asset.

    Attributes:
        folder: where it lies; None: files stay where they landed.
    """

    folder: Path | None

    @classmethod
    def of(cls, spec: CopySpec, files: FilesSpec, resources: Resources, target: LakeTarget) -> Archive:
        """Return the archive that a copy has: `<folder>/<layer>/<name>/year=YYYY/<file>`.

        Raises:
            GuardRefused: it lies in the folder that the files come to, and would be found again.
        """
        if files.archive is None:
            return cls(None)
        root = resources.folder / files.archive if files.archive else target.root.parent / "archive"
        landing = resources.files(spec.source).root
        if Path(os.path.realpath(root)).is_relative_to(os.path.realpath(landing)):
            raise GuardRefused(
                f"the archive of {spec.asset} lies in the folder of connection {spec.source}",
                where=str(root),
                hint="name a folder outside of it: archive: ./archive",
            )
        return cls(root / target.folder(spec.asset).path.relative_to(target.root))

    def waiting(self, found: Iterable[Found], seen: Mapping[str, Taken]) -> list[Found]:
        """Return the files that were taken as they are and can go."""
        if self.folder is None:
            return []
        return [one for one in found if one.name in seen and (one.size, one.mtime) == _state(seen[one.name])]

    def settle(self, found: Sequence[Found], seen: Mapping[str, Taken]) -> int:
        """Move what was taken; returns how many files went.

        Raises:
            StepFailed: some could not be moved; the next run tries again.
        """
        from millrace.connectors.folder import move

        moved, failed = 0, []
        for one in self.waiting(found, seen):
            try:
                if one.now() == one:
                    move(one.path, self._place(one.name, one.mtime))
                    moved += 1
            except OSError as error:
                failed.append(f"{one.name} ({error.strerror or error})")
        if failed:
            what = "1 file was" if len(failed) == 1 else f"{len(failed):,} files were"
            raise StepFailed(
                f"{what} published and not moved to the archive", where=str(self.folder), detail=failed[:3]
            )
        return moved

    def find(self, names: Mapping[str, Taken]) -> list[Found]:
        """Return those of some files that lie in the archive as they were taken."""
        from millrace.connectors.folder import Found

        found = []
        for name, taken in names.items():
            if self.folder is None:
                break
            path = self._place(name, taken.mtime)
            if path.is_file() and (state := path.stat()).st_size == taken.size:
                found.append(Found(name, path, state.st_size, state.st_mtime_ns))
        return found

    def _place(self, name: str, mtime: int) -> Path:
        assert self.folder is not None  # noqa: S101 - asked only where there is an archive
        year = datetime.fromtimestamp(mtime / 1e9, UTC).year
        return Path(os.path.normpath(self.folder / f"year={year:04d}" / name))


def _state(taken: Taken) -> tuple[int, int]:
    return taken.size, taken.mtime
