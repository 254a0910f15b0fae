"""Stages: Parquet files that lie in the table's folder but not in its log, and the descriptor that lists them.

A segment is whole once the descriptor names its files; the descriptor is replaced atomically after they are closed
and on the disk. What a killed attempt left whole can be taken over: of the same load as it lies, of another load by
hard links under this load's names, so that nothing is taken from a stage that might still live.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as changed
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from millrace.core.digest import Digest
from millrace.core.events import reach
from millrace.core.ports import StageRequest
from millrace.core.position import Position
from millrace.core.schema import check_partitions
from millrace.core.segment import Segment, SegmentId
from millrace.core.staged import FORMAT, Publish, Staged, check_format
from millrace.errors import ContractBroken, ProofFailed, UsageError
from millrace.lake.aside import Aside
from millrace.lake.layout import DATA_FILE, Folder, disk, read_json, sync_all, sync_file, write_json
from millrace.lake.partitions import split
from millrace.lake.table import arrow_schema, conform, microseconds, rows_of, writer

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

FILE_ROWS = 4 * 131_072  # small enough that an upsert rewrites little, large enough that millions of rows are few files
HOWS: Mapping[str, Publish] = {
    "create": "create",
    "replace": "replace",
    "append": "append",
    "upsert": "upsert",
    "position": "position",
}


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What lies on the disk about a stage.

    Attributes:
        files: records of files: `name`, `rows`, `size`, `segment`.
        segments: the whole segments, each with the digest it was written under, or None.
        images: names of files of before- and after-images.
        staged: of a closed stage.
    """

    request: StageRequest
    loaded_at: str
    owner: Mapping[str, Any]
    files: tuple[Mapping[str, Any], ...] = ()
    segments: Mapping[SegmentId, Digest | None] = field(default_factory=dict)
    images: Mapping[str, str] = field(default_factory=dict)
    staged: Staged | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the descriptor as JSON types."""
        request = self.request
        return {
            "format": FORMAT,
            "asset": [request.asset.layer, request.asset.name],
            "load": str(request.load),
            "run": request.run,
            "step": request.step,
            "base": request.base,
            "how": request.how,
            "schema": request.schema.to_json(),
            "partitions": list(request.partitions),
            "loaded_at": self.loaded_at,
            "owner": dict(self.owner),
            "files": [dict(file) for file in self.files],
            "segments": {name: None if digest is None else digest.to_json() for name, digest in self.segments.items()},
            "images": dict(self.images),
            "staged": None if self.staged is None else self.staged.to_json(),
        }


def read_descriptor(path: Path) -> dict[str, Any] | None:
    """Read a descriptor as JSON; None when it is gone. Raises NewerFormat."""
    data = read_json(path)
    if data is not None:
        check_format(data["format"], "a stage of the lake")
    return data


def owner(run: str) -> dict[str, Any]:
    """Return who stages, for people."""
    since = datetime.now(UTC).isoformat(timespec="seconds")
    return {"host": socket.gethostname(), "pid": os.getpid(), "run": run, "since": since}


class LakeStage:
    """An open stage; made by `LakeTarget.open_stage`. Its methods may be called from several threads.

    Attributes:
        request: what it was opened for.
        schema: the Arrow schema of its files.
        seq: what `_millrace_seq` is in every row of this load.
        loaded_at: what `_millrace_loaded_at` is, in microseconds since 1970, UTC.
    """

    def __init__(self, folder: Folder, target: str, place: str, request: StageRequest, replace: bool = False) -> None:
        if request.how not in HOWS:
            raise UsageError(f"a lake cannot publish by {request.how!r}", hint=f"it can by {', '.join(HOWS)}")
        check_partitions(request.schema, request.partitions, str(request.asset))
        self.request = request
        self.schema: pa.Schema = arrow_schema(request.schema)
        self.seq = request.base + 1
        self._folder = folder
        self._target = target
        self._place = place
        self._replace = replace
        self._guard = threading.Lock()
        self._images: dict[str, str] = {}
        self._closed = False
        self._settled: tuple[dict[str, Any] | None, pa.Table] | None = None
        with disk(folder.path, f"staging {request.asset}"):
            folder.path.mkdir(parents=True, exist_ok=True)
            own = read_descriptor(folder.descriptor(request.load))
            self._number = self._last_number()
            same = own is not None and self._fits(own)
            moment = datetime.fromisoformat(own["loaded_at"]) if own is not None and same else datetime.now(UTC)
            self._files: list[Mapping[str, Any]] = list(own["files"]) if own is not None and same else []
            self._segments: dict[SegmentId, Digest | None] = _segments(own) if own is not None and same else {}
            self._left = set(self._segments)  # nobody has said yet that these still agree
            self._loaded(moment)
            self._save()
        self._aside = Aside(folder, request, moment)
        if own is not None:
            kept = {file["name"] for file in self._files}
            self._remove([file for file in own["files"] if file["name"] not in kept])

    def _loaded(self, moment: datetime) -> None:
        self._moment = moment
        self.loaded_at = microseconds(moment)

    def _fits(self, other: Mapping[str, Any]) -> bool:
        """Whether another stage's files could be this one's: same rows' shape, same folders, same seq."""
        same = other["schema"] == self.request.schema.to_json()
        same = same and other.get("partitions", []) == list(self.request.partitions)
        return bool(same and other["base"] == self.request.base)

    def _last_number(self) -> int:
        load = str(self.request.load)
        found = (DATA_FILE.fullmatch(file.name) for file in self._folder.data_files())
        return max((int(match["number"]) for match in found if match and match["load"] == load), default=0)

    def _save(self, staged: Staged | None = None) -> None:
        descriptor = Descriptor(
            self.request,
            self._moment.isoformat(),
            owner(self.request.run),
            tuple(self._files),
            self._segments,
            self._images,
            staged,
        )
        write_json(self._folder.descriptor(self.request.load), descriptor.to_json())

    def _remove(self, files: Iterable[Mapping[str, Any]]) -> None:
        for file in files:
            (self._folder.path / file["name"]).unlink(missing_ok=True)

    # what an earlier attempt left

    def done(self) -> Mapping[SegmentId, Digest]:
        """Return the segments that a killed attempt left whole, with the digest each was written under.

        They count from now on as this stage's, unless `drop` is told otherwise. Of an attempt of the same load
        they are found as they lie; else the newest other stage of this asset with the same columns, upon the same
        seq, is taken over.
        """
        with self._guard, disk(self._folder.path, f"taking over a stage of {self.request.asset}"):
            if not self._segments:
                self._take_over()
            nameless = [name for name in self._left if self._segments[name] is None]
            self._forget(nameless)
            self._left.clear()
            return {name: digest for name, digest in self._segments.items() if digest is not None}

    def _take_over(self) -> None:
        others = [path for path in self._folder.stages.glob("*.json") if path.stem != str(self.request.load)]
        for path in sorted(others, key=lambda path: path.stat().st_mtime, reverse=True):
            other = read_descriptor(path)
            if other is None or not self._fits(other) or other["images"] or not any(other["segments"].values()):
                continue
            try:
                files = [self._linked(file) for file in other["files"]]
            except FileNotFoundError:  # it was dropped while we looked
                continue
            self._files += files
            self._segments |= _segments(other)
            self._loaded(datetime.fromisoformat(other["loaded_at"]))  # the files have that time in every row
            self._sync_folders(files)
            self._save()
            return

    def _linked(self, file: Mapping[str, Any]) -> Mapping[str, Any]:
        source = self._folder.path / file["name"]
        path = self._next_path(str(Path(file["name"]).parent))
        try:
            path.hardlink_to(source)
        except FileNotFoundError:
            raise
        except OSError:  # a file system without hard links
            shutil.copyfile(source, path)
            sync_file(path)
        return {**file, "name": self._name(path)}

    def left(self) -> list[SegmentId]:
        """Return the segments of an earlier attempt of the same load that nobody has confirmed yet."""
        return sorted(self._left)

    def drop(self, segments: Iterable[SegmentId]) -> None:
        """Remove segments that no longer agree with the source."""
        with self._guard, disk(self._folder.path, f"staging {self.request.asset}"):
            self._forget(list(segments))

    def _forget(self, segments: Sequence[SegmentId]) -> None:
        gone = set(segments) & set(self._segments)
        if not gone:
            return
        files = [file for file in self._files if file["segment"] in gone]
        self._files = [file for file in self._files if file["segment"] not in gone]
        for name in gone:
            del self._segments[name]
        self._left -= gone
        self._save()
        self._remove(files)

    # writing

    def conform(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return a batch with this stage's columns: cast exactly, the lake's own two added. Raises ContractBroken."""
        return conform(batch, self.schema, self.seq, self.loaded_at, str(self.request.asset))

    def write(self, segment: Segment, data: pa.RecordBatchReader, expected: Digest | None = None) -> int:
        """Write a segment whole (atomically: a torn one is not `done`); returns its rows.

        Args:
            segment: its id names it; an earlier segment of that id is replaced.
            data: rows with the asset's columns, by name.
            expected: digest of the segment in the source.

        Raises:
            ContractBroken: the rows do not fit the schema.
            StepFailed: the disk is full.
        """
        return self.write_batches(segment, data, expected)

    def write_batches(self, segment: Segment, data: Iterable[pa.RecordBatch], expected: Digest | None = None) -> int:
        """Write a segment from any batches; see `write`. Columns of the lake's own that they have are kept.

        Rows of one partition come beside each other: where one comes again, it gets another file.
        """
        return self._record(segment, self._write_files(data), expected)

    def add_images(self, images: Mapping[str, str]) -> None:
        """Record the files of before- and after-images."""
        with self._guard, disk(self._folder.path, f"staging {self.request.asset}"):
            self._images = dict(images)
            self._save()

    def _write_files(self, data: Iterable[pa.RecordBatch]) -> list[Path]:
        """Write rows to new files of at most FILE_ROWS rows; on an error none is left."""
        paths: list[Path] = []
        rows = 0
        output, last = None, ""
        batches = (self.conform(batch) for batch in data)
        try:
            with disk(self._folder.path, f"staging {self.request.asset}"):
                for folder, table in split(batches, self.request.partitions, str(self.request.asset)):
                    if output is None or folder != last or rows + table.num_rows > FILE_ROWS:
                        if output is not None:
                            output.close()
                        with self._guard:
                            paths.append(self._next_path(folder))
                        output, last, rows = self._writer(paths[-1], table), folder, 0
                    output.write_table(table, row_group_size=table.num_rows)
                    rows += table.num_rows
                if output is not None:
                    output.close()
        except BaseException:
            if output is not None:
                with contextlib.suppress(Exception):  # it is open still, and would keep its space on a full disk
                    output.close()
            for path in paths:
                path.unlink(missing_ok=True)
            raise
        return paths

    def _writer(self, path: Path, rows: pa.Table) -> pq.ParquetWriter:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return writer(path, self.schema, rows, self.request.partitions)
        except FileNotFoundError:  # gc has removed the folder, which was empty
            with self._folder.lock():
                path.parent.mkdir(parents=True, exist_ok=True)
                return writer(path, self.schema, rows, self.request.partitions)

    def new_file(self, segment: Segment | None = None) -> Path:
        """Return a path for a new Parquet file, for writers of their own; `add_file` makes it count."""
        with self._guard:
            return self._next_path()

    def _next_path(self, folder: str = "") -> Path:
        self._number += 1
        return self._folder.path / folder / f"{self.request.load}-{self._number}.parquet"

    def _name(self, path: Path) -> str:
        return path.relative_to(self._folder.path).as_posix()

    def _sync_folders(self, files: Iterable[Mapping[str, Any]]) -> None:
        """Bring the entries of the folders that some files lie in to the disk, those above them included."""
        folders = {""}
        for name in {file["name"].rpartition("/")[0] for file in files}:
            parts = name.split("/")
            folders |= {"/".join(parts[:depth]) for depth in range(1, len(parts) + 1)}
        sync_all([self._folder.path / folder for folder in folders])

    def add_file(
        self, path: Path | Sequence[Path], segment: Segment, expected: Digest | None = None, rows: int | None = None
    ) -> int:
        """Record one or several closed files as one whole segment; returns its rows.

        Args:
            path: as `new_file` gave it; the file has the columns of `schema`.
            segment: whose rows these are, all of them.
            expected: digest of the segment in the source.
            rows: rows that were written; the files must hold as many.

        Raises:
            ProofFailed: the files hold another number of rows.
        """
        paths = [path] if isinstance(path, Path) else list(path)
        found = self._record(segment, paths, expected)
        if rows is not None and found != rows:
            self.drop([segment.id])
            raise ProofFailed(
                f"{self.request.asset}: {rows:,} rows of {segment.id} were written, its files hold {found:,}"
            )
        return found

    def _record(self, segment: Segment, paths: Sequence[Path], expected: Digest | None) -> int:
        import pyarrow.parquet as pq

        with disk(self._folder.path, f"staging {self.request.asset}"):
            files: list[Mapping[str, Any]] = []
            sync_all(paths)
            for path in paths:
                rows = pq.read_metadata(path).num_rows
                files.append(
                    {"name": self._name(path), "rows": rows, "size": path.stat().st_size, "segment": segment.id}
                )
                reach("lake.stage.file")
            with self._guard:
                replaced = [file for file in self._files if file["segment"] == segment.id]
                self._files = [file for file in self._files if file["segment"] != segment.id] + files
                self._segments[segment.id] = expected
                self._left.discard(segment.id)
                self._sync_folders(files)
                self._save()
                self._remove(replaced)
        return rows_of(files)

    # quarantine

    def set_aside(
        self, bad: pa.Table, *, gone: Collection[str] = (), whole: bool = False, reopened: Collection[str] = ()
    ) -> None:
        """Keep rows out of the asset: they go to its quarantine, visible with this load. May be called several times.

        Their digests count in the proof as if they were in the files. In a load that creates or replaces the asset,
        older entries that are not among them vanish, and a replayed one that still is puts its fixed row into the
        asset again.

        Args:
            bad: the asset's columns as they came, `_millrace_reason` (one sentence), and where there are any
                `_millrace_rule`, `_millrace_column`, `_millrace_source`, `_millrace_bytes`.
            gone: ids of older entries of an upsert whose keys the load settles.
            whole: an upsert of all rows of the source.
            reopened: ids of replayed entries whose fixed rows do not stand any more.

        Raises:
            ContractBroken: the columns do not fit.
        """
        self._aside.add(bad, gone, whole, reopened)

    def put_state(self, state: pa.Table) -> None:
        """Take a complete quarantine, in which entries of the published one have another status."""
        self._aside.put_state(state)

    def quarantined(self) -> pa.Table | None:
        """Return the published quarantine that this load builds upon; None when it is empty."""
        return self._aside.older()

    def settle(self) -> pa.Table:
        """End setting aside; returns the fixed rows that belong into the asset again."""
        if self._settled is None:
            self._settled = self._aside.settle()
        return self._settled[1]

    def files(self) -> dict[SegmentId, list[Path]]:
        """Return the files written so far, by segment."""
        found: dict[SegmentId, list[Path]] = {}
        for file in self._files:
            found.setdefault(file["segment"], []).append(self._folder.path / file["name"])
        return found

    # closing

    def close(
        self,
        position: Position,
        expected: Mapping[SegmentId, Digest] | None = None,
        *,
        detail: Mapping[str, Any] | None = None,
        rows: int | None = None,
    ) -> Staged:
        """End the stage: no more writes.

        Segments that an earlier attempt left and that neither `done` nor `write` has touched since are dropped.

        Args:
            position: what the source position is after the publish.
            expected: digest per segment from the source; by default those that were written with the segments.
            detail: facts of the caller, kept in `Staged.detail`.
            rows: rows to report; by default those of the files.
        """
        if self._closed:
            raise ContractBroken(f"the stage of {self.request.asset} is closed already")
        fixed = self.settle()
        if fixed.num_rows and self.request.how in ("create", "replace"):
            self.write_batches(Segment("replayed", "file"), fixed.to_batches())
        with self._guard, disk(self._folder.path, f"closing the stage of {self.request.asset}"):
            self._forget(list(self._left))
            known = {name: digest for name, digest in self._segments.items() if digest is not None}
            facts = {**(detail or {}), **self._set_aside()}
            staged = self._staged(position, dict(expected) if expected is not None else known, facts)
            if rows is not None:
                staged = changed(staged, rows=rows)
            self._save(staged)
            self._closed = True
        reach("lake.stage.closed")
        return staged

    def _set_aside(self) -> dict[str, Any]:
        record = self._settled[0] if self._settled is not None else None
        return {} if record is None else {"quarantine": record}

    def _staged(self, position: Position, expected: Mapping[SegmentId, Digest], detail: Mapping[str, Any]) -> Staged:
        request = self.request
        how = HOWS[request.how]
        if request.base == 0:
            how = "create"
        elif how == "create":
            how = "replace"
        return Staged(
            asset=request.asset,
            load=request.load,
            run=request.run,
            step=request.step,
            target=self._target,
            base=request.base,
            how=how,
            place=self._place,
            schema=request.schema,
            position=position,
            expected=expected,
            rows=rows_of(self._files),
            inputs=dict(request.inputs),
            code=request.code,
            date=request.date,
            detail={
                **detail,
                "files": [dict(file) for file in self._files],
                "partitions": list(request.partitions),
                "replace": self._replace,
            },
        )


def _segments(data: Mapping[str, Any]) -> dict[SegmentId, Digest | None]:
    found = data["segments"].items()
    return {name: None if digest is None else Digest.from_json(digest) for name, digest in found}
