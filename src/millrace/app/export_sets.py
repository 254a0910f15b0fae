"""Several tables of one snapshot into one folder, and such a folder into tables."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from millrace.app.copying import runtime_of, through_engine
from millrace.app.exporting import ExportOutcome, form_of, import_step
from millrace.app.whole import Chosen, Pattern, WholeOutcome, choose, others_json, schema_of, target_of, tie
from millrace.core.names import TableRef, fingerprint
from millrace.core.staged import check_format
from millrace.errors import GuardRefused, NotFound, ProofFailed, UsageError

if TYPE_CHECKING:
    from millrace.core.ports import Progress
    from millrace.postgres.inventory import ForeignKey

NAME = "exports.json"
VERSION = 1
SNAPSHOT = "this export"
MOST_LETTERS = 60


@dataclass(frozen=True, slots=True)
class SetOutcome:
    """What an export of several tables wrote, and in `chosen` what else the pattern means."""

    tables: tuple[ExportOutcome, ...]
    chosen: Chosen
    folder: str
    seconds: float

    @property
    def rows(self) -> int:
        """Rows of all tables."""
        return sum(one.rows for one in self.tables)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(one.size for one in self.tables)

    def to_json(self) -> dict[str, Any]:
        """Return the outcome as JSON types."""
        return {
            "folder": self.folder,
            "rows": self.rows,
            "bytes": self.size,
            "seconds": round(self.seconds, 3),
            "tables": [one.to_json() for one in sorted(self.tables, key=lambda one: one.table)],
            "not_exported": others_json(self.chosen),
            "excluded": self.chosen.excluded,
            "foreign_keys": len(self.chosen.keys),
        }


@dataclass(frozen=True, slots=True)
class Member:
    """A table of a set: its folder below the set's, and the SHA-256 of the description there."""

    table: TableRef
    folder: str
    sha256: str


@dataclass(frozen=True, slots=True)
class ExportSet:
    """The tables of one snapshot, and the foreign keys between them."""

    members: tuple[Member, ...]
    keys: tuple[ForeignKey, ...]


def look_set(source: str, pattern: str, exclude: Sequence[str]) -> Chosen:
    """Return what an export of several tables would write; writes nothing. Raises MillraceError."""
    with runtime_of(source, source, most=2) as runtime:
        return choose(runtime, pattern, exclude)


def export_set(
    source: str,
    pattern: str,
    folder: Path,
    *,
    exclude: Sequence[str] = (),
    form: str = "csv",
    rows: int = 250_000,
    progress: Callable[[TableRef], Progress] | None = None,
    trusted_urls: bool = False,
) -> SetOutcome:
    """Write all tables that a pattern means, of one snapshot, each into a folder of its own below `folder`.

    Args:
        source: as `copying.copy_table` takes it.
        pattern, exclude: as `whole.copy_tables` takes them. A table without a primary key is one file, or several.
        folder: a new or empty one, or that of an export that did not end, which begins anew.
        progress: makes what is told rows and bytes of a table.

    Raises:
        GuardRefused: the folder holds other things.
        MillraceError: see `exporting.export_table`; the tables that were written are left, without the set's file.
    """
    from millrace.engine.stop import Stop
    from millrace.postgres.exported import NAME as DESCRIPTION
    from millrace.postgres.exported import sha256
    from millrace.postgres.exporting import Parts, export_table, write_whole, written

    wanted = form_of(form)
    since, stop = time.monotonic(), Stop()
    done: list[ExportOutcome] = []
    members = []
    with runtime_of(source, source, most=3, trusted_urls=trusted_urls) as runtime, stop.signals():
        chosen = choose(runtime, pattern, exclude, shared=SNAPSHOT)
        _clear(folder)
        with written("the folder", folder):
            folder.mkdir(parents=True, exist_ok=True)
        for one in chosen.tables:
            began, place = time.monotonic(), folder / folder_of(one.ref)
            parts = Parts(wanted, progress=None if progress is None else progress(one.ref), stopping=stop)
            found = export_table(
                runtime.reader("source"), one.ref, place, rows=rows, parts=parts, shared=SNAPSHOT, keyless=True
            )
            done.append(ExportOutcome.of(str(one.ref), place, found, time.monotonic() - began))
            members.append(Member(one.ref, place.name, sha256(place / DESCRIPTION)))
    content = {
        "format": VERSION,
        "taken": datetime.now(UTC).isoformat(timespec="seconds"),
        "tables": [asdict(member) for member in members],
        "foreign_keys": [asdict(key) for key in chosen.keys],
    }
    write_whole(folder / NAME, content)
    return SetOutcome(tuple(done), chosen, str(folder), time.monotonic() - since)


def folder_of(table: TableRef) -> str:
    """Return the name of a table's folder: its letters, and what tells it from others of the same ones."""
    letters = re.sub(r"[^\w.-]+", "_", f"{table.schema}.{table.name}")[:MOST_LETTERS].lstrip(".")
    return f"{letters}-{fingerprint(table.schema or '', table.name)[:8]}"


def _clear(folder: Path) -> None:
    """Remove what an export of several tables left that did not end. Raises GuardRefused for anything else."""
    if not folder.is_dir():
        return
    there = sorted(folder.iterdir())
    names = [path.name for path in there]
    if NAME in names:
        raise GuardRefused("the folder holds an export already", where=str(folder), hint="name another folder")
    others = [path.name for path in there if not _ours(path) and path.name != f"{NAME}.half"]
    if others:
        raise GuardRefused(
            f"the folder is not empty: {', '.join(others[:3])}", where=str(folder), hint="name an empty or a new folder"
        )
    for path in there:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _ours(path: Path) -> bool:
    """Say whether a folder holds nothing but a table's export, whole or not, and under a name that a set gives."""
    from millrace.postgres.exported import NAME as DESCRIPTION
    from millrace.postgres.exporting import PART, WHOLE

    if not path.is_dir() or re.search(r"-[0-9a-f]{8}$", path.name) is None:
        return False
    if (path / DESCRIPTION).is_file():  # a name like orders-20260131 may be a user's
        try:
            table = TableRef(**json.loads((path / DESCRIPTION).read_text(encoding="utf-8"))["table"])
        except (OSError, ValueError, KeyError, TypeError):
            return False
        if path.name != folder_of(table):
            return False
    names = [one.name for one in path.iterdir() if one.is_file()]
    if len(names) < len(list(path.iterdir())) or (names and not {DESCRIPTION, WHOLE}.intersection(names)):
        return False
    return all(PART.fullmatch(name) or name in (DESCRIPTION, f"{DESCRIPTION}.half", WHOLE) for name in names)


def is_set(folder: Path) -> bool:
    """Say whether a folder holds an export of several tables."""
    return (folder / NAME).is_file()


def read_set(folder: Path) -> ExportSet:
    """Read the description of an export of several tables.

    Raises:
        NewerFormat: a newer version wrote it.
        ProofFailed: it is damaged.
    """
    from millrace.postgres.inventory import ForeignKey

    path = folder / NAME
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        check_format(data["format"], f"the export in {folder}")
        members = tuple(Member(TableRef(**one["table"]), one["folder"], one["sha256"]) for one in data["tables"])
        keys = tuple(ForeignKey(**key) for key in data["foreign_keys"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ProofFailed(f"{NAME} is damaged", where=str(path), detail=[repr(error)], hint="export again") from None
    return ExportSet(members, keys)


def _check(folder: Path, members: Sequence[Member]) -> None:
    """Refuse a set of which a table's folder is missing or another's. Raises ProofFailed."""
    from millrace.postgres.exported import NAME as DESCRIPTION
    from millrace.postgres.exported import sha256

    for member in members:
        place = folder / member.folder / DESCRIPTION
        if Path(member.folder).name != member.folder or not place.is_file() or sha256(place) != member.sha256:
            seen = "is not the one that was exported" if place.is_file() else "is missing"
            what = f"the folder {member.folder} of {member.table} {seen}"
            raise ProofFailed(what, where=str(folder), hint="bring the whole folder again")


def import_set(
    folder: Path,
    target: str,
    into: str | None = None,
    *,
    only: str | None = None,
    replace: bool = False,
    max_delete: float | None = 0.5,
    foreign_keys: bool = False,
    trusted_urls: bool = False,
    show_progress: bool = False,
) -> WholeOutcome:
    """Make tables equal to an exported set; each is published as soon as it is proven.

    Args:
        into: a schema for all of them, as `raw.*`; None: the schemas that they had.
        only: a name or a pattern: only these tables of the set.
        replace, max_delete: see `exporting.import_files`.
        foreign_keys: make the foreign keys between the tables that the target lacks.

    Raises:
        MillraceError: what is wrong before the first table; what a table failed of stands in the outcome.
    """
    since, found = time.monotonic(), read_set(folder)
    members, schema = _only(found, only, folder), schema_of(into)
    _check(folder, members)
    places = {one.table: TableRef(schema or one.table.schema, one.table.name) for one in members}
    if len(set(places.values())) < len(places):
        twice = next(place for place in places.values() if list(places.values()).count(place) > 1)
        raise UsageError(f"two tables of the export would both go into {twice}", hint="leave the schema out")
    with runtime_of(target, target, most=4, trusted_urls=trusted_urls) as runtime:
        with target_of(runtime).connect("look"):
            pass
        steps = [
            import_step(folder / one.folder, one.table, places[one.table], replace=replace, max_delete=max_delete)
            for one in members
        ]
        result = through_engine(runtime, steps, jobs=2, show_progress=show_progress)
        good = {outcome.key for outcome in result.steps if outcome.status in ("published", "fresh")}
        there = {one.table: places[one.table] for one, step in zip(members, steps, strict=True) if step.key in good}
        names = {one.table for one in members}
        chosen = Chosen((), (), len(found.members) - len(members), tuple(k for k in found.keys if k.ref in names))
        made, not_made = tie(runtime, chosen, there, wanted=foreign_keys)
    tables = {step.key: (one.table, places[one.table]) for one, step in zip(members, steps, strict=True)}
    return WholeOutcome(result, chosen, tables, made, tuple(not_made), time.monotonic() - since)


def _only(found: ExportSet, only: str | None, folder: Path) -> list[Member]:
    if only is None:
        return list(found.members)
    wanted = Pattern.parse(only)
    members = [one for one in found.members if wanted.takes(one.table)]
    if not members:
        names = ", ".join(str(one.table) for one in found.members[:5])
        raise NotFound(f"the export has no table {only}", where=str(folder), hint=f"it has: {names}")
    return members
