"""`millrace init`, and the JSON Schemas for editors."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from millrace.errors import UsageError, did_you_mean

TEMPLATES = ("ecommerce", "blank")
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
    name = folder.resolve().name
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot name a project", hint="use letters, digits, _ and -, beginning with a letter"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists and is not empty", hint="name a new folder")
    return _write(files("millrace.templates").joinpath(template), folder, Path(), name)


def _write(source: Traversable, folder: Path, below: Path, name: str) -> list[Path]:
    written = []
    (folder / below).mkdir(parents=True, exist_ok=True)
    for item in sorted(source.iterdir(), key=lambda found: found.name):
        path = below / item.name
        if item.is_dir():
            if item.name != "__pycache__":
                written += _write(item, folder, path, name)
            continue
        text = item.read_text("utf-8")
        if path == Path("millrace.yaml"):
            text = re.sub(r"(?m)^name: .*$", f"name: {name}", text, count=1)
        (folder / path).write_text(text, encoding="utf-8")
        written.append(path)
    return written


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
