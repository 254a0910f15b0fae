"""`millrace doctor`: is the set-up right? Extras, connections with their rights, lake, warehouse, tools."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from millrace import __version__
from millrace.app.extras import EXTRAS, installed, needed_extras
from millrace.app.house import House, open_house
from millrace.core.secrets import redact
from millrace.errors import MillraceError

if TYPE_CHECKING:
    from millrace.postgres.session import Database


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    name: str
    ok: bool
    detail: str
    hint: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the finding as JSON types."""
        return {"name": self.name, "ok": self.ok, "detail": self.detail, "hint": self.hint}


def examine(folder: Path | None, environment: str | None) -> list[Finding]:
    """Look at the installation, and at the project's environment when there is one.

    A missing extra counts as wrong only when the project needs it.
    """
    found = [Finding("millrace", ok=True, detail=f"{__version__}, Python {platform.python_version()}")]
    try:
        with open_house(folder, environment) as house:
            found += _extras(needed_extras(house.project))
            found += _project(house)
    except MillraceError as error:
        found += _extras(set())
        found.append(_failure("project", error))
    return found


def _extras(needed: set[str]) -> Iterator[Finding]:
    for extra in EXTRAS:
        if installed(extra):
            yield Finding(f"extra {extra}", ok=True, detail="installed")
        else:
            wanted = "this project needs it" if extra in needed else "not needed here"
            hint = f'pip install "millrace[{extra}]"' if extra in needed else ""
            yield Finding(f"extra {extra}", ok=extra not in needed, detail=f"not installed, {wanted}", hint=hint)


def _project(house: House) -> Iterator[Finding]:
    project = house.project
    yield Finding("project", ok=True, detail=f"{project.name}, environment {house.environment}")
    for name in project.settings.connections:
        yield _connection(house, name) if project.connection(name).type != "files" else _folder(house, name)
    if project.warehouse_in_postgres and project.settings.warehouse and project.settings.warehouse.url:
        yield _database("warehouse", lambda: _warehouse(house), is_target=True)
    for what, path in (("lake", project.lake_path()), ("warehouse", project.warehouse_path())):
        if path is not None:
            yield _place(what, Path(path))
    try:
        yield Finding("plan", ok=True, detail=f"{len(house.whole.steps)} steps")
    except MillraceError as error:
        yield _failure("plan", error)


def _connection(house: House, name: str) -> Finding:
    settings = house.project.settings.warehouse
    is_target = any(copy.target == f"connection:{name}" for copy in house.project.copies)
    is_target = is_target or (settings is not None and settings.connection == name)
    return _database(f"connection {name}", lambda: house.runtime.database(name), is_target=is_target)


def _warehouse(house: House) -> Database:
    from millrace.postgres.session import database_from_url

    return database_from_url(house.project.warehouse_url(), "warehouse")


def _database(what: str, database: Callable[[], Database], *, is_target: bool) -> Finding:
    try:
        from millrace.postgres.session import connect

        with connect(database(), purpose="doctor") as connection:
            row = connection.execute(
                "select current_setting('server_version'), current_user, current_database(),"
                " has_database_privilege(current_database(), 'create')"
            ).fetchone()
    except MillraceError as error:
        return _failure(what, error)
    version, user, base, may_create = row or ("", "", "", False)
    detail = f"PostgreSQL {version}, {user} at {base}"
    if is_target and not may_create:
        hint = f"GRANT CREATE ON DATABASE {base} TO {user};"
        return Finding(what, ok=False, detail=f"{detail}, may not create schemas, which is needed there", hint=hint)
    return Finding(what, ok=True, detail=detail)


def _folder(house: House, name: str) -> Finding:
    what = f"connection {name}"
    try:
        folder = house.runtime.files(name).root
    except MillraceError as error:
        return _failure(what, error)
    if not folder.is_dir():
        return Finding(what, ok=False, detail=str(folder), hint="the folder is missing: make it, or correct path:")
    if not os.access(folder, os.R_OK | os.X_OK):
        return Finding(what, ok=False, detail=str(folder), hint="the folder cannot be read by this user")
    return Finding(what, ok=True, detail=f"folder {folder}")


def _place(what: str, path: Path) -> Finding:
    nearest = next((folder for folder in (path, *path.parents) if folder.exists()), path)
    if not os.access(nearest, os.W_OK):
        return Finding(what, ok=False, detail=str(path), hint=f"{nearest} cannot be written to by this user")
    return Finding(what, ok=True, detail=str(path) + ("" if path.exists() else ", not made yet"))


def _failure(name: str, error: MillraceError) -> Finding:
    lines = redact(str(error)).splitlines()
    return Finding(name, ok=False, detail=lines[0], hint=" ".join(line.strip() for line in lines[1:]))
