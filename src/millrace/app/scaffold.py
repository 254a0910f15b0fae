"""`millrace init`, and the JSON Schemas for editors."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING

from millrace.core.events import reach
from millrace.errors import MillraceError, UsageError, did_you_mean

if TYPE_CHECKING:
    from millrace.app.from_database import Proposed

TEMPLATES = ("ecommerce", "securities", "blank")
_VARIABLE = re.compile(r"(?m)^[^#\n]*\$\{env:(\w+)\}")
_NAME = re.compile(r"[A-Za-z_][\w-]*")


def init_project(folder: Path, template: str) -> list[Path]:
    """Write a project from a template; its name is the folder's.

    Args:
        folder: a new folder, or an empty one.
        template: one of TEMPLATES.

    Returns:
        The files written, relative to the folder.

    Raises:
        UsageError: no such template, a name that cannot name a project, or the folder is not empty.
    """
    if template not in TEMPLATES:
        raise UsageError(
            f"there is no template {template!r}",
            hint=did_you_mean(template, TEMPLATES) or f"templates: {', '.join(TEMPLATES)}",
        )
    name = _name_of(folder)
    texts = dict(_template(files("millrace.templates").joinpath(template), Path()))
    manifest = Path("millrace.yaml")
    texts[manifest] = re.sub(r"(?m)^name: .*$", f"name: {name}", texts[manifest], count=1)
    return write_whole(folder, texts)


def variables_of(folder: Path) -> list[str]:
    """Return the environment variables that a new project's manifest reads."""
    return list(dict.fromkeys(_VARIABLE.findall((folder / "millrace.yaml").read_text("utf-8"))))


def init_from_database(folder: Path, database: str, schemas: Sequence[str]) -> tuple[list[Path], Proposed]:
    """Write a project that copies the tables of a live database into a lake; its name is the folder's.

    Args:
        folder: a new folder, or an empty one.
        database: `env:NAME`, `service:NAME` or a URL without a password.
        schemas: SQL names of the schemas to read.

    Returns:
        The files written, relative to the folder; and what was proposed.

    Raises:
        UsageError: a name that cannot name a project, a folder that is not empty, or no such form of a database.
        MillraceError: the database cannot be read, or holds nothing to copy; nothing was written.
    """
    from millrace.app.from_database import propose

    found = propose(_name_of(folder), database, schemas, os.environ)
    return write_whole(folder, found.files), found


def _name_of(folder: Path) -> str:
    """Return the name of a new project in a folder, which must be new or empty."""
    name = folder.resolve().name
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot name a project", hint="use letters, digits, _ and -, beginning with a letter"
        )
    if folder.exists() and (not folder.is_dir() or any(not _ours(item) for item in folder.iterdir())):
        raise _taken(folder)
    return name


def _taken(folder: Path) -> UsageError:
    return UsageError(f"{folder} exists and is not empty", hint="name a new folder")


def _template(source: Traversable, below: Path) -> Iterator[tuple[Path, str]]:
    for item in sorted(source.iterdir(), key=lambda found: found.name):
        path = below / item.name
        if item.is_dir():
            if item.name != "__pycache__":
                yield from _template(item, path)
        else:
            yield path, item.read_text("utf-8")


# --- whole or not at all -------------------------------------------------------------------------------------------

_UNFINISHED = ".millrace-init-"


def _ours(path: Path) -> bool:
    return path.name.startswith(_UNFINISHED)


def write_whole(folder: Path, texts: Mapping[Path, str]) -> list[Path]:
    """Write files into a new folder that appears with all of them at once.

    They are written into a hidden folder beside it, which is then renamed. A folder that is there and empty is
    exchanged in the same way; but the one that the process stands in, or one that a file system is mounted on, stays,
    and gets the files from a hidden folder inside it, millrace.yaml last: without it there is no project. What a killed
    process left hidden is removed by the next one.

    Args:
        folder: does not exist, or is empty.
        texts: texts by path relative to the folder.

    Returns:
        The paths, in order.

    Raises:
        UsageError: the folder is not empty.
        MillraceError: it cannot be written.
    """
    place = folder.resolve()
    stays = place.is_dir() and (os.path.ismount(place) or Path.cwd().is_relative_to(place))
    around = place if stays else place.parent
    try:
        around.mkdir(parents=True, exist_ok=True)
        with _hidden(around) as hidden:
            for path, text in texts.items():
                (hidden / path).parent.mkdir(parents=True, exist_ok=True)
                (hidden / path).write_text(text, encoding="utf-8")
            reach("init.written")
            if stays:
                for name in sorted({path.parts[0] for path in texts}, key=lambda name: name == "millrace.yaml"):
                    (hidden / name).rename(place / name)
            else:
                if place.is_dir():
                    shutil.copymode(place, hidden)
                hidden.rename(place)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):  # somebody was faster
            raise _taken(folder) from None
        raise MillraceError(f"{folder} cannot be written: {error.strerror}") from None
    return sorted(texts)


@contextlib.contextmanager
def _hidden(around: Path) -> Iterator[Path]:
    """Make a hidden folder, locked while this process lives, and remove it if it is still there at the end."""
    for path in around.glob(f"{_UNFINISHED}*"):
        with _locked(path) as free:
            if free:
                shutil.rmtree(path, ignore_errors=True)
    hidden = around / f"{_UNFINISHED}{secrets.token_hex(4)}"
    hidden.mkdir()
    try:
        with _locked(hidden):
            yield hidden
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Lock a folder; False when a live process has it, or it is gone."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        yield False
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(handle)


def write_schemas(folder: Path) -> list[Path]:
    """Write the JSON Schema of every kind of file; returns the paths."""
    from millrace.project import schemas

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, schema in schemas().items():
        path = folder / f"{name}.schema.json"
        path.write_text(json.dumps(schema, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        written.append(path)
    return written
