"""A table into a folder of files, and a folder of files into a table: for servers that cannot be reached at once."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from millrace.app.copying import TARGET, CopyOutcome, database_of, first_schema, outcome_of, runtime_of, through_engine
from millrace.app.runtime import CONNECTION
from millrace.core.names import AssetId, TableRef, fingerprint
from millrace.core.plan import Step
from millrace.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from millrace.core.ports import Progress
    from millrace.postgres.exported import Export, Format


@dataclass(frozen=True, slots=True)
class ExportOutcome:
    """What an export wrote: rows, files, bytes, the rows' digest, and the seconds it took."""

    table: str
    folder: str
    rows: int
    files: int
    size: int
    digest: str
    seconds: float

    @classmethod
    def of(cls, table: str, folder: Path, export: Export, seconds: float) -> ExportOutcome:
        """Return what an export came to."""
        size = sum(file.size for file in export.files)
        return cls(table, str(folder), export.whole.rows, len(export.files), size, str(export.whole), seconds)

    def to_json(self) -> dict[str, Any]:
        """Return the outcome as JSON types."""
        return {
            "table": self.table,
            "folder": self.folder,
            "rows": self.rows,
            "files": self.files,
            "bytes": self.size,
            "digest": self.digest,
            "seconds": round(self.seconds, 3),
        }


def export_files(
    source: str,
    table: str,
    folder: Path,
    *,
    form: str = "csv",
    key: tuple[str, ...] = (),
    where: str | None = None,
    rows: int = 250_000,
    progress: Progress | None = None,
    trusted_urls: bool = False,
) -> ExportOutcome:
    """Write a table's rows, of one snapshot, into a folder, with the digests that prove them elsewhere.

    Args:
        source: as `copying.copy_table` takes it.
        folder: a new or empty one.
        form: `csv`, exact for every type, or `parquet`.
        rows: aimed rows of a file.
        progress: told rows and bytes.

    Raises:
        Interrupted: Ctrl-C; the same command begins again.
        MillraceError: see `exported.export_table`.
    """
    from millrace.engine.stop import Stop
    from millrace.postgres.exporting import Parts, export_table
    from millrace.postgres.reader import PostgresReader

    wanted = form_of(form)
    since, stop = time.monotonic(), Stop()
    with contextlib.ExitStack() as closing, stop.signals():
        reader = PostgresReader(database_of(source, "source", closing, trusted_urls=trusted_urls))
        found = export_table(
            reader,
            TableRef.parse(table),
            folder,
            key=key,
            where=where,
            rows=rows,
            parts=Parts(wanted, progress=progress, stopping=stop),
        )
    return ExportOutcome.of(table, folder, found, time.monotonic() - since)


def form_of(text: str) -> Format:
    """Return the format of files by its word. Raises UsageError."""
    from millrace.postgres.exported import FORMATS

    found = next((form for form in FORMATS if form == text), None)
    if found is None:
        hint = did_you_mean(text, FORMATS) or f"one of: {', '.join(FORMATS)}"
        raise UsageError(f"unknown format {text!r}", hint=hint)
    return found


def import_files(
    folder: Path,
    target: str,
    into: str | None = None,
    *,
    replace: bool = False,
    max_delete: float | None = 0.5,
    trusted_urls: bool = False,
    show_progress: bool = False,
) -> CopyOutcome:
    """Make a table equal to an exported folder, every row proven by the digests in it.

    Args:
        into: the target table; by default the one that was exported.
        replace: allow the first contact with a non-empty target that Millrace never wrote.
        max_delete: share of the target's rows that may be deleted; None: all.

    Raises:
        MillraceError: what stopped it; nothing was published then.
    """
    from millrace.postgres.exported import read_export

    since, (export, _) = time.monotonic(), read_export(folder)
    place = export.table if into is None else TableRef.parse(into)
    with runtime_of(target, target, most=2, trusted_urls=trusted_urls) as runtime:
        asset = AssetId(place.schema or first_schema(runtime), place.name)
        step = import_step(
            folder, export.table, TableRef(asset.layer, asset.name), replace=replace, max_delete=max_delete
        )
        result = through_engine(runtime, [step], show_progress=show_progress)
    return outcome_of(result, step, since, show_progress=show_progress)


def import_step(folder: Path, table: TableRef, place: TableRef, *, replace: bool, max_delete: float | None) -> Step:
    """Return the step that imports a table; `table` is the source's, `place` the target's, with its schema."""
    asset = AssetId(place.schema or "", place.name)
    return Step(
        key=f"import:{asset}",
        kind="import",
        label=str(place),
        assets=(asset,),
        target=f"{CONNECTION}{TARGET}",
        group=f"import:{asset}",
        code=fingerprint("import", str(table)),
        spec={"folder": str(folder.resolve()), "replace": replace, "max_delete": max_delete},
    )
