"""A table as a folder of files with the digests of its rows: between servers that cannot be reached at once.

`export.json` is written last: a folder without it is half an export and is refused. CSV is the server's own (null is
nothing, an empty text is ""), in a pinned session, so every type is exact; Parquet holds what `arrow` reads, the rest
as the server's text. What the files are worth is shown in the target: its rows must have the digests that came along.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from psycopg import sql

from millrace.core.digest import Digest
from millrace.core.names import TableRef
from millrace.core.ports import Progress
from millrace.core.schema import Schema
from millrace.core.segment import Segment, SegmentId
from millrace.core.staged import check_format
from millrace.errors import GuardRefused, Interrupted, MillraceError, NotFound, ProofFailed
from millrace.postgres.belongings import Belongings, read_belongings
from millrace.postgres.catalog import PgColumn
from millrace.postgres.keys import check_key, key_columns
from millrace.postgres.pump import BLOCK, Stopping, never
from millrace.postgres.reader import PostgresReader, PostgresSnapshot
from millrace.postgres.segments import predicate
from millrace.postgres.session import translated
from millrace.postgres.source import Source
from millrace.postgres.stage import schema_of

Format = Literal["csv", "parquet"]
FORMATS: tuple[Format, ...] = ("csv", "parquet")
NAME = "export.json"
VERSION = 1


@dataclass(frozen=True, slots=True)
class ExportedFile:
    """One file: the segment that it holds, its rows' digest at the source, its bytes and their SHA-256."""

    name: str
    segment: SegmentId
    digest: Digest
    size: int
    sha256: str

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON types."""
        return {**asdict(self), "digest": self.digest.to_json()}


@dataclass(frozen=True, slots=True)
class Export:
    """An exported table.

    Attributes:
        table: the source's.
        taken: when, ISO 8601 in UTC.
        columns: all of them, as the source's catalogue has them; generated ones are in the files too.
        key: its columns.
        snapshot: the source's `pg_current_snapshot()`.
        belongings: defaults, indexes and so on, for a new table; None for a query.
    """

    table: TableRef
    taken: str
    format: Format
    columns: tuple[PgColumn, ...]
    key: tuple[str, ...]
    snapshot: str
    files: tuple[ExportedFile, ...]
    belongings: Belongings | None = None

    @property
    def schema(self) -> Schema:
        """The portable schema."""
        return schema_of(self.columns, self.key)

    @property
    def whole(self) -> Digest:
        """The digest of all rows."""
        return Digest.sum((file.digest for file in self.files), self.schema.shape)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON types."""
        return {
            "format": VERSION,
            "table": asdict(self.table),
            "taken": self.taken,
            "files_are": self.format,
            "columns": [asdict(column) for column in self.columns],
            "key": list(self.key),
            "snapshot": self.snapshot,
            "rows": self.whole.rows,
            "files": [file.to_json() for file in self.files],
            "belongings": None if self.belongings is None else asdict(self.belongings),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Export:
        """Read what `to_json` wrote."""
        files = [{**file, "digest": Digest.from_json(file["digest"])} for file in data["files"]]
        return cls(
            table=TableRef(**data["table"]),
            taken=data["taken"],
            format=data["files_are"],
            columns=tuple(PgColumn(**column) for column in data["columns"]),
            key=tuple(data["key"]),
            snapshot=data["snapshot"],
            files=tuple(ExportedFile(**file) for file in files),
            belongings=None if data["belongings"] is None else Belongings(**data["belongings"]),
        )


def read_export(folder: Path) -> Export:
    """Read an export's description.

    Raises:
        NotFound: there is none: the folder is another's, or the export did not end.
        NewerFormat: a newer version wrote it.
        ProofFailed: it is damaged, or a file is missing or has another size.
    """
    path = folder / NAME
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotFound(
            "there is no whole export in this folder", where=str(folder), hint=f"{NAME} is written last: export again"
        ) from None
    except (OSError, ValueError) as error:
        raise ProofFailed(f"{NAME} cannot be read", where=str(path), detail=[str(error)], hint="export again") from None
    try:
        check_format(data["format"], f"the export in {folder}")
        found = Export.from_json(data)
    except (KeyError, TypeError, ValueError) as error:
        raise ProofFailed(f"{NAME} is damaged", where=str(path), detail=[repr(error)], hint="export again") from None
    for file in found.files:
        size = (folder / file.name).stat().st_size if (folder / file.name).is_file() else None
        if Path(file.name).name != file.name or size != file.size:
            seen = "is missing" if size is None else f"has {size:,} bytes, not {file.size:,}"
            raise ProofFailed(f"{file.name} {seen}", where=str(folder), hint="bring the whole folder again")
    return found


# writing


def prepare(folder: Path) -> None:
    """Make the folder, and clear half an export from it.

    Raises:
        GuardRefused: it holds other things, or a whole export.
        MillraceError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        there = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise MillraceError("the folder cannot be made", where=str(folder), detail=[error.strerror or ""]) from error
    if NAME in there:
        raise GuardRefused("the folder holds an export already", where=str(folder), hint="name another folder")
    others = [name for name in there if not (name.startswith("part-") and name.endswith(FORMATS))]
    if others:
        raise GuardRefused(
            f"the folder is not empty: {', '.join(others[:3])}", where=str(folder), hint="name an empty or a new folder"
        )
    for name in there:
        (folder / name).unlink()


def export_table(
    reader: PostgresReader,
    table: TableRef,
    folder: Path,
    *,
    key: Sequence[str] = (),
    where: str | None = None,
    select: str | None = None,
    form: Format = "csv",
    rows: int = 250_000,
    progress: Progress | None = None,
    stopping: Stopping = never,
) -> Export:
    """Write a table's rows, of one snapshot, into files of about `rows` rows.

    Raises:
        GuardRefused: the folder is not empty.
        KeyInvalid, NotFound, PermissionMissing, UsageError: as for any copy.
        ContractBroken: Parquet cannot hold a value.
        Interrupted: `stopping` said so; half an export is left, which the next one clears.
    """
    prepare(folder)
    with reader.snapshot() as snap:
        source = reader.source(table, where=where, select=select, connection=snap.connection)
        columns = key_columns(source, key or source.key)
        names = tuple(column.name for column in columns)
        check_key(snap.connection, source, names)
        writer = _Writer(reader, snap, source, folder, form, progress, stopping)
        segments = reader.segments(source, snap, None, rows)
        if segments[0].how == "bucket":  # each would read everything
            segments = [Segment.whole()]
        digests = dict(reader.digests(source, segments, snap, source.key))
        files = []
        for number, segment in enumerate(segments):
            written = writer.write(number, predicate(segment, source.pick(source.key)))
            files.append(replace(written, segment=segment.id, digest=digests[segment.id]))
        belongings = None
        if source.relation is not None and source.query is None:
            belongings = read_belongings(snap.connection, source.relation, source.names)
        found = Export(
            table=table,
            taken=datetime.now(UTC).isoformat(timespec="seconds"),
            format=form,
            columns=source.columns,
            key=names,
            snapshot=snap.state,
            files=tuple(files),
            belongings=belongings,
        )
    half = folder / f"{NAME}.half"
    half.write_text(json.dumps(found.to_json(), ensure_ascii=False, indent=1), encoding="utf-8")
    _flushed(half)
    half.rename(folder / NAME)
    _flushed(folder)
    return found


def _flushed(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _Writer:
    """Writes parts of one source into files."""

    def __init__(
        self,
        reader: PostgresReader,
        snap: PostgresSnapshot,
        source: Source,
        folder: Path,
        form: Format,
        progress: Progress | None,
        stopping: Stopping,
    ) -> None:
        self._reader, self._snap, self._source, self._folder = reader, snap, source, folder
        self._form, self._progress, self._stopping = form, progress, stopping

    def write(self, number: int, where: sql.Composable | None) -> ExportedFile:
        """Write one file; segment and digest are filled in by the caller."""
        path = self._folder / f"part-{number:05}.{self._form}"
        try:
            if self._form == "csv":
                self._csv(path, where)
            else:
                self._parquet(path, where)
            _flushed(path)
        except OSError as error:
            raise MillraceError(
                f"{path.name} cannot be written", where=str(self._folder), detail=[error.strerror or str(error)]
            ) from error
        return ExportedFile(path.name, "", Digest(0, 0, ""), path.stat().st_size, sha256(path))

    def _csv(self, path: Path, where: sql.Composable | None) -> None:
        query = sql.SQL("copy ({}) to stdout (format csv)").format(self._source.select(predicate=where))
        doing = f"export {self._source.label}"
        connection = self._snap.connection
        with (
            translated(self._source.database, doing, connection=connection),
            path.open("wb", buffering=BLOCK) as file,
            connection.cursor() as cursor,
            cursor.copy(query) as copy,
        ):
            file.write(self._header())
            rows = size = 0
            for row in copy:
                file.write(row)
                rows, size = rows + 1, size + len(row)
                if size >= BLOCK:
                    self._told(rows, size)
                    rows = size = 0
            self._told(rows, size)

    def _header(self) -> bytes:
        quoted = ('"' + name.replace('"', '""') + '"' for name in self._source.names)
        return (",".join(quoted) + "\n").encode()

    def _parquet(self, path: Path, where: sql.Composable | None) -> None:
        import pyarrow.parquet as pq

        from millrace.postgres.arrow import arrow_schema, check_arrow, read_source

        source = self._source.narrowed(where)
        check_arrow(self._snap.connection, source)
        batches = read_source(self._reader.database, source, Segment.whole(), self._snap.token)
        with pq.ParquetWriter(path, arrow_schema(source.columns), compression="zstd") as writer:
            for batch in batches:
                writer.write_batch(batch)
                self._told(batch.num_rows, batch.nbytes)

    def _told(self, rows: int, size: int) -> None:
        if self._progress is not None:
            self._progress(rows, size)
        if self._stopping():
            raise Interrupted("stopped while exporting", hint="the same command begins again")


# reading


def sha256(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def csv_blocks(folder: Path, export: Export, file: ExportedFile, columns: Sequence[str]) -> Iterator[bytes]:
    """Yield a file's rows as CSV with a header, whatever its format.

    Args:
        columns: those that are wanted, in the export's order.

    Raises:
        ProofFailed: the file is not the one that was exported.
    """
    path = folder / file.name
    if sha256(path) != file.sha256:
        raise ProofFailed(f"{file.name} was changed since it was exported", where=str(folder), hint="bring it again")
    if export.format == "csv":
        with path.open("rb") as source:
            while block := source.read(BLOCK):
                yield block
        return
    yield from _parquet_blocks(path, columns)


def _parquet_blocks(path: Path, columns: Sequence[str]) -> Iterator[bytes]:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.csv as pa_csv
    import pyarrow.parquet as pq

    with contextlib.closing(pq.ParquetFile(path)) as file:
        header = True
        for batch in file.iter_batches(batch_size=10_000, columns=list(columns)):
            arrays = [
                pa.array([None if one is None else "\\x" + one.hex() for one in array.to_pylist()], pa.string())
                if pa.types.is_binary(array.type)
                else pc.cast(array, pa.string())
                if pa.types.is_floating(array.type)
                else array
                for array in batch.columns
            ]
            sink = pa.BufferOutputStream()
            options = pa_csv.WriteOptions(include_header=header)
            pa_csv.write_csv(pa.RecordBatch.from_arrays(arrays, list(columns)), sink, options)
            yield sink.getvalue().to_pybytes()
            header = False
        if header:
            yield (",".join(f'"{name}"' for name in columns) + "\n").encode()
