"""The project's own files and their hash. Secrets (`.env`), data and what tools leave behind are not among them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

FOLDERS = ("copies", "models", "dbt", "checks", "events", "analytics", "dashboards")
# What dbt and Python write into a project's folder; a run must not change the project's hash.
_LEFT_BY_TOOLS = frozenset({"target", "logs", "__pycache__"})


def bundle_files(root: Path) -> tuple[str, ...]:
    """Return the paths of the project's files, relative, with slashes, sorted."""
    names = [name for name in ("millrace.yaml",) if (root / name).is_file()]
    for folder in FOLDERS:
        names += _below(root, folder)
    return tuple(sorted(names))


def bundle_hash(root: Path) -> str:
    """Return the hash of all files' names and contents: 32 hexadecimal digits."""
    return hash_of(root, bundle_files(root))


def folder_hash(root: Path, folder: str) -> str:
    """Return the hash of one folder's files, like the bundle's."""
    return hash_of(root, tuple(sorted(_below(root, folder))))


def hash_of(root: Path, files: tuple[str, ...]) -> str:
    """Return the hash of some files' names and contents."""
    total = hashlib.sha256()
    for name in files:
        content = hashlib.sha256((root / name).read_bytes()).hexdigest()
        total.update(f"{name}\0{content}\n".encode("utf-8", "surrogateescape"))
    return total.hexdigest()[:32]


def _below(root: Path, folder: str) -> Iterator[str]:
    for path, folders, files in os.walk(root / folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in _LEFT_BY_TOOLS]
        for name in files:
            if not name.startswith(".") and not name.endswith(("~", ".pyc")):
                yield (Path(path) / name).relative_to(root).as_posix()
