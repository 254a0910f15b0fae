"""A table as a folder of files with the digests of its rows: between servers that cannot be reached at once.

`export.json` is written last: a folder without it is half an export and is refused. CSV is the server's own (null is
nothing, an empty text is ""), in a pinned session, so every type is exact; Parquet holds what `arrow` reads, the rest
as the server's text. What the files are worth is shown in the target: its rows must have the digests that came along.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from millrace.core.digest import Digest
from millrace.core.names import TableRef
from millrace.core.schema import Schema
from millrace.core.segment import SegmentId
from millrace.core.staged import check_format
from millrace.errors import NotFound, ProofFailed
from millrace.postgres.belongings import Belongings
from millrace.postgres.catalog import PgColumn
from millrace.postgres.pump import BLOCK
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

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ExportedFile:
        """Read what `to_json` wrote."""
        return cls(**{**data, "digest": Digest.from_json(data["digest"])})


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
        return cls(
            table=TableRef(**data["table"]),
            taken=data["taken"],
            format=data["files_are"],
            columns=tuple(PgColumn(**column) for column in data["columns"]),
            key=tuple(data["key"]),
            snapshot=data["snapshot"],
            files=tuple(ExportedFile.from_json(file) for file in data["files"]),
            belongings=None if data["belongings"] is None else Belongings(**data["belongings"]),
        )


def read_export(folder: Path, name: str = NAME) -> tuple[Export, Mapping[str, Any]]:
    """Read an export's description; returns it, and its file's content.

    Raises:
        NotFound: there is none: the folder is another's, or the export did not end.
        NewerFormat: a newer version wrote it.
        ProofFailed: it is damaged, or a file is missing or has another size.
    """
    path = folder / name
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotFound(
            "there is no whole export in this folder", where=str(folder), hint=f"{name} is written last: export again"
        ) from None
    except (OSError, ValueError) as error:
        raise ProofFailed(f"{name} cannot be read", where=str(path), detail=[str(error)], hint="export again") from None
    try:
        check_format(data["format"], f"the export in {folder}")
        found = Export.from_json(data)
    except (KeyError, TypeError, ValueError) as error:
        raise ProofFailed(f"{name} is damaged", where=str(path), detail=[repr(error)], hint="export again") from None
    for file in found.files:
        size = (folder / file.name).stat().st_size if (folder / file.name).is_file() else None
        if Path(file.name).name != file.name or size != file.size:
            seen = "is missing" if size is None else f"has {size:,} bytes, not {file.size:,}"
            raise ProofFailed(f"{file.name} {seen}", where=str(folder), hint="bring the whole folder again")
    return found, data


def sha256(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def csv_header(names: Sequence[str]) -> bytes:
    """Return the first line of a CSV."""
    return (",".join('"' + name.replace('"', '""') + '"' for name in names) + "\n").encode()


def csv_blocks(folder: Path, export: Export, file: ExportedFile, columns: Sequence[str]) -> Iterator[bytes]:
    """Yield a file's rows as CSV with a header, whatever its format.

    Args:
        columns: those that are wanted, in the export's order.

    Raises:
        ProofFailed: the file is not the one that was exported, or cannot be read.
    """
    path = folder / file.name
    try:
        found = sha256(path)
    except OSError as error:
        said = error.strerror or str(error)
        raise ProofFailed(f"{file.name} cannot be read", where=str(folder), detail=[said]) from error
    if found != file.sha256:
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

    yield csv_header(columns)  # pyarrow's own does not quote every name
    options = pa_csv.WriteOptions(include_header=False)
    with contextlib.closing(pq.ParquetFile(path)) as file:
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
            pa_csv.write_csv(pa.RecordBatch.from_arrays(arrays, list(columns)), sink, options)
            yield sink.getvalue().to_pybytes()
