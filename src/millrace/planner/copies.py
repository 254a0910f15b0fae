"""What a copy's step is told, from its table in a copies file; and what of it is refused, with file and line."""

from __future__ import annotations

from typing import Any

from millrace.core.names import AssetId
from millrace.errors import Place, ProjectError
from millrace.project import CopyTable, Project
from millrace.project.copies import Contract, TableOptions


def check_contract(project: Project, copy: CopyTable, wanted: Contract) -> None:
    """Refuse what a contract cannot be held to. Raises ProjectError."""
    mode = copy.options.mode
    words = {name: getattr(wanted, name) for name in ("new_columns", "type_changes")}
    later: dict[str, tuple[str, ...]] = {}
    if copy.target != "lake":
        if wanted.bad_rows == "quarantine" and mode in ("snapshot", "backfill"):
            what = f"rows of tables in a database cannot be set aside in mode {mode} yet"
            raise unbuilt(project, copy, "contract", what, "use bad_rows: block")
        if wanted.bad_rows == "quarantine" and copy.options.proof == "count":
            what = "rows that are only counted cannot be set aside yet"
            raise unbuilt(project, copy, "proof", what, "use proof: rows, or bad_rows: block")
        if wanted.bad_rows == "quarantine" and _by_files(copy.options):
            what = "rows cannot be set aside by way of files yet"
            raise unbuilt(project, copy, "stage", what, "use stage: direct, or bad_rows: block")
        if wanted.type_changes == "discard" and (mode in ("snapshot", "backfill") or _by_files(copy.options)):
            way = "by way of files" if _by_files(copy.options) else f"in mode {mode}"
            what = f"type_changes: discard is not built for copies {way}"
            raise unbuilt(project, copy, "contract", what, "use evolve or freeze")
        later = dict.fromkeys(words, ("quarantine",))
    elif wanted.bad_rows == "quarantine" and mode == "snapshot":
        raise unbuilt(project, copy, "contract", "rows cannot be set aside in mode snapshot yet", "use bad_rows: block")
    elif copy.options.files is not None:
        later = dict.fromkeys(words, ("discard", "quarantine"))
    for name, refused in later.items():
        if words[name] in refused:
            of = (
                "tables in a database"
                if copy.target != "lake"
                else "files, whose columns are those that columns: names"
            )
            raise unbuilt(
                project, copy, "contract", f"{name}: {words[name]} is not built for {of}", f"leave {name} out"
            )
    for name, word in words.items():
        if word == "quarantine" and wanted.bad_rows != "quarantine":
            what = f"{name}: quarantine sets rows aside, which bad_rows does not allow"
            raise unbuilt(project, copy, "contract", what, "say so: bad_rows: quarantine")


def unbuilt(project: Project, copy: CopyTable, key: str, what: str, hint: str | None = None) -> ProjectError:
    """Return the error about a key that is understood and does nothing yet: it must not seem to hold."""
    return project.problem(f"{copy.asset}: {what}", said(project, copy, key), hint=hint or f"leave {key} out")


def said(project: Project, copy: CopyTable, key: str) -> Place:
    """Return where a table of a copies file, or its defaults, say something; the table where nothing does."""
    values = project.documents[copy.file].values
    paths = [path for path in values if path and path[-1] == key]
    place = next((values[path] for path in paths if copy.table.name in map(str, path)), None)
    return place or next((values[path] for path in paths if "defaults" in path), copy.place)


def copy_spec(copy: CopyTable) -> dict[str, Any]:
    """Return the CopySpec of a table as JSON; what the file leaves open keeps the spec's default."""
    options = copy.options
    spec: dict[str, Any] = {
        "source": copy.source,
        "table": {"schema": copy.table.schema, "name": copy.table.name},
        "asset": asset_json(copy.asset),
        "mode": options.mode or "full",
        "key": list(options.key or ()),
        "cursor": options.cursor,
        "where": options.where,
        "select": options.select,
        "count": options.count,
    }
    if options.files is not None:
        spec["files"] = _files_spec(options)
    if options.snapshot == "shared":
        spec["snapshot"] = copy.file
    spec |= {
        name: getattr(options, name)
        for name in (
            "cursor_format",
            "lookback",
            "soft_delete",
            "start",
            "end",
            "max_delete",
            "workers",
            "segment_rows",
            "proof",
        )
        if getattr(options, name) is not None
    }
    if options.stage is not None and _by_files(options):
        spec |= {"stage": options.stage.file, "stage_folder": options.stage.folder}
        if copy.target != "lake":  # parts are compared with both ends at once
            spec["verify"] = None
    if options.verify is not None:
        spec["verify"] = options.verify.seconds
    return spec


def _by_files(options: TableOptions) -> bool:
    return options.stage is not None and options.stage.file != "direct"


def _files_spec(options: TableOptions) -> dict[str, Any]:
    """Return the FilesSpec of a table of files as JSON; what is left open keeps the spec's default."""
    names = ("format", "columns", "encoding", "delimiter", "max_line")
    spec: dict[str, Any] = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if options.archive:
        spec["archive"] = "" if options.archive is True else options.archive
    return {"pattern": options.files, **spec}


def asset_json(asset: AssetId) -> dict[str, str]:
    """Return an asset's name as JSON types."""
    return {"layer": asset.layer, "name": asset.name}


def what_counts(spec: dict[str, Any]) -> dict[str, Any]:
    """Return what of a copy's spec decides which rows there are: when it changes, all are read again."""
    shape = {name: spec[name] for name in ("source", "table", "mode", "key", "cursor", "where", "select")}
    shape |= {name: spec[name] for name in ("cursor_format", "soft_delete") if name in spec}
    if spec["mode"] == "backfill":  # which leaves an incremental copy's position alone
        shape["mode"] = "incremental"
    if "files" in spec:  # where files go afterwards changes no row
        shape["files"] = {name: value for name, value in spec["files"].items() if name != "archive"}
    return shape
