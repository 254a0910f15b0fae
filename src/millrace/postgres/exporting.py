"""Writing a table's rows into files: for `millrace export`, and for copies that stage files."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from psycopg import sql

from millrace.core.digest import Digest
from millrace.core.events import reach
from millrace.core.names import TableRef
from millrace.core.ports import Progress
from millrace.core.segment import Segment, SegmentId
from millrace.errors import GuardRefused, Interrupted, MillraceError
from millrace.postgres.belongings import read_belongings
from millrace.postgres.catalog import PgColumn
from millrace.postgres.exported import FORMATS, NAME, Export, ExportedFile, Format, csv_header, sha256
from millrace.postgres.keys import check_key, key_columns
from millrace.postgres.pump import BLOCK, Stopping, never
from millrace.postgres.reader import PostgresReader, PostgresSnapshot, digest_segments
from millrace.postgres.segments import predicate
from millrace.postgres.session import Database, translated
from millrace.postgres.source import Source

WHOLE = "files.jsonl"
"""Beside an export that has not ended: a line for each file that is whole; it is there before the first file."""
PART = re.compile(rf"part-\d{{5,}}\.({'|'.join(FORMATS)})")
"""Names of files of rows."""


@contextlib.contextmanager
def written(what: str, folder: Path) -> Iterator[None]:
    """Translate what a file system refuses: a full disk, a folder that may not be written to. Raises MillraceError."""
    try:
        yield
    except OSError as error:
        said = error.strerror or str(error)
        raise MillraceError(f"{what} cannot be written", where=str(folder), detail=[said]) from error


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
    half = (WHOLE, f"{NAME}.half")
    ours = WHOLE in there  # other programs name their files part-00000.parquet, too
    others = [name for name in there if name not in half and not (ours and PART.fullmatch(name))]
    if others:
        raise GuardRefused(
            f"the folder is not empty: {', '.join(others[:3])}", where=str(folder), hint="name an empty or a new folder"
        )
    for name in sorted(there, key=WHOLE.__eq__):  # what says whose they are goes last
        (folder / name).unlink()


@dataclass(frozen=True, slots=True)
class Parts:
    """How rows become files.

    Attributes:
        form: of the files.
        kept: whole files of an attempt that died, by what they hold: they are moved instead of written again.
        progress: told rows and bytes.
        stopping: asked between blocks.
    """

    form: Format = "csv"
    kept: dict[tuple[str, Digest], tuple[Path, ExportedFile]] = field(default_factory=dict)
    progress: Progress | None = None
    stopping: Stopping = never


def export_table(
    reader: PostgresReader,
    table: TableRef,
    folder: Path,
    *,
    key: Sequence[str] = (),
    where: str | None = None,
    select: str | None = None,
    rows: int = 250_000,
    parts: Parts | None = None,
    shared: str = "",
    keyless: bool = False,
) -> Export:
    """Write a table's rows, of one snapshot, into files of about `rows` rows.

    Args:
        shared: name of the snapshot that it shares with other tables; empty: it has its own.
        keyless: allow a table without a primary key.

    Raises:
        GuardRefused: the folder is not empty.
        KeyInvalid, NotFound, PermissionMissing, UsageError: as for any copy.
        ContractBroken: Parquet cannot hold a value.
        Interrupted: `stopping` said so; half an export is left, which the next one clears.
    """
    prepare(folder)
    with reader.snapshot(shared=shared) as snap:
        source = reader.source(table, where=where, select=select, connection=snap.connection)
        names: tuple[str, ...] = ()
        if key or source.key or not keyless:
            names = tuple(column.name for column in key_columns(source, key or source.key))
            check_key(snap.connection, source, names)
        segments = reader.segments(source, snap, None, rows)
        if segments[0].how == "bucket":  # each would read everything
            segments = [Segment.whole()]
        digests = dict(digest_segments(snap.connection, source, segments, source.key))
        how = parts or Parts()
        files = write_files(reader.database, snap, source, source.key, segments, digests, folder, how)
        belongings = None
        if source.relation is not None and source.query is None:
            belongings = read_belongings(snap.connection, source.relation, source.names)
        found = Export(
            table=table,
            taken=datetime.now(UTC).isoformat(timespec="seconds"),
            format=how.form,
            columns=source.columns,
            key=names,
            snapshot=snap.state,
            files=files,
            belongings=belongings,
        )
    write_export(found, folder)
    return found


def write_export(export: Export, folder: Path, name: str = NAME, **more: Any) -> None:
    """Write an export's description, which makes it whole.

    Args:
        name: of the file.
        more: further facts; JSON.

    Raises:
        MillraceError: the disk refuses.
    """
    write_whole(folder / name, {**export.to_json(), **more})
    (folder / WHOLE).unlink(missing_ok=True)


def write_whole(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file so that it is there whole, or not at all. Raises MillraceError."""
    half = path.with_name(f"{path.name}.half")
    with written(path.name, path.parent):
        half.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
        _flushed(half)
        half.rename(path)
        _flushed(path.parent)


def _flushed(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_files(
    database: Database,
    snap: PostgresSnapshot,
    source: Source,
    key: Sequence[str],
    segments: Sequence[Segment],
    digests: Mapping[SegmentId, Digest],
    folder: Path,
    parts: Parts,
) -> tuple[ExportedFile, ...]:
    """Write each segment of a source into a file of an empty folder.

    Args:
        key: key columns, by which key segments are cut.
        digests: of the segments, taken in the snapshot.

    Raises:
        ContractBroken: Parquet cannot hold a value.
        Interrupted: it was asked to stop.
        MillraceError: the disk is full, or refuses otherwise.
    """
    with written(WHOLE, folder):
        (folder / WHOLE).touch()
    writer, columns = _Writer(database, snap, source, folder, parts), source.pick(key)
    return tuple(
        writer.write(number, segment, digests[segment.id], predicate(segment, columns))
        for number, segment in enumerate(segments)
    )


def content_of(form: Format, columns: Sequence[PgColumn]) -> str:
    """Return what files must have in common for one to stand for the other, beside their digest."""
    return json.dumps([form, [(column.name, column.type) for column in columns]])


def whole_files(folder: Path) -> dict[tuple[str, Digest], tuple[Path, ExportedFile]]:
    """Return the files that an attempt which died had written whole, by what they hold."""
    found = {}
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # a torn line is the last one
        for line in (folder / WHOLE).read_text(encoding="utf-8").splitlines():
            data = json.loads(line)
            file = ExportedFile.from_json(data["file"])
            found[data["content"], file.digest] = folder / file.name, file
    return found


class _Writer:
    """Writes parts of one source into files."""

    def __init__(self, database: Database, snap: PostgresSnapshot, source: Source, folder: Path, parts: Parts) -> None:
        self._database, self._snap, self._source, self._folder, self._parts = database, snap, source, folder, parts
        self._content = content_of(parts.form, source.columns)

    def write(self, number: int, segment: Segment, digest: Digest, where: sql.Composable | None) -> ExportedFile:
        """Write one file, or take it from an earlier attempt."""
        path = self._folder / f"part-{number:05}.{self._parts.form}"
        with written(path.name, self._folder):
            file = self._taken(path, segment, digest)
            if file is None:
                if self._parts.form == "csv":
                    self._csv(path, where)
                else:
                    self._parquet(path, where)
                _flushed(path)
                file = ExportedFile(path.name, segment.id, digest, path.stat().st_size, sha256(path))
            with (self._folder / WHOLE).open("a", encoding="utf-8") as whole:
                whole.write(json.dumps({"content": self._content, "file": file.to_json()}) + "\n")
        reach("export.file")
        return file

    def _taken(self, path: Path, segment: Segment, digest: Digest) -> ExportedFile | None:
        there, file = self._parts.kept.get((self._content, digest), (None, None))
        if there is None or file is None or not there.is_file() or sha256(there) != file.sha256:
            return None
        there.rename(path)
        del self._parts.kept[self._content, digest]
        return ExportedFile(path.name, segment.id, digest, file.size, file.sha256)

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
            file.write(csv_header(self._source.names))
            rows = size = 0
            for row in copy:
                file.write(row)
                rows, size = rows + 1, size + len(row)
                if size >= BLOCK:
                    self._told(rows, size)
                    rows = size = 0
            self._told(rows, size)

    def _parquet(self, path: Path, where: sql.Composable | None) -> None:
        import pyarrow.parquet as pq

        from millrace.postgres.arrow import arrow_schema, check_arrow, read_source

        source = self._source.narrowed(where)
        check_arrow(self._snap.connection, source)
        batches = read_source(self._database, source, Segment.whole(), self._snap.token)
        with pq.ParquetWriter(path, arrow_schema(source.columns), compression="zstd") as writer:
            for batch in batches:
                writer.write_batch(batch)
                self._told(batch.num_rows, batch.nbytes)

    def _told(self, rows: int, size: int) -> None:
        if self._parts.progress is not None:
            self._parts.progress(rows, size)
        if self._parts.stopping():
            raise Interrupted("stopped while exporting", hint="the same command begins again")
