"""Files of a folder to a Delta lake: each line or record one row, as it came, under its file and line.

The columns are those that the project declares (of CSV else those of the headers), as text, and `_file`, `_line` and
`_raw`: where the row stood, and all of what stood there. A load appends what is new: files that were not there, and of
a file that grew the lines that came. What cannot be read is set aside, or stops the load.

The proof: every row is digested as it was read, before it is written; the files of the stage, read back, and what was
set aside must add up to that. That what was read is what the file holds is counted by `connectors.lines`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from millrace.core.digest import Digest
from millrace.core.plan import Freshness, Step
from millrace.core.ports import Context, StageRequest, Target
from millrace.core.position import Files, Taken
from millrace.core.schema import Column, Kind, Schema
from millrace.core.segment import Segment
from millrace.core.staged import LedgerEntry, Staged
from millrace.errors import ContractBroken, ExtraMissing, GuardRefused, Interrupted
from millrace.steps.archive import Archive
from millrace.steps.landing import FilesSpec
from millrace.steps.resources import Resources
from millrace.steps.sieve import LEAST, sieve_of
from millrace.steps.spec import CopySpec

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

    from millrace.connectors.folder import Found
    from millrace.connectors.json_lines import JsonLines
    from millrace.connectors.lines import Bad, LineFile, Piece
    from millrace.connectors.taking import Task
    from millrace.lake.stage import LakeStage
    from millrace.lake.target import LakeTarget

FILE, LINE, RAW = "_file", "_line", "_raw"
PART_BYTES = 64 << 20  # small files share a Parquet file; what changes meanwhile costs at most so much to read again
EXAMPLES = 3
MEMORY = "300MB"  # DuckDB's share while extracting


def _require() -> None:
    """Raise ExtraMissing unless the libraries of this way are installed."""
    from importlib.util import find_spec

    if any(find_spec(name) is None for name in ("pyarrow", "numpy", "deltalake", "duckdb")):
        raise ExtraMissing("copying files into a lake", "lake")


def lake_of(target: Target) -> LakeTarget:
    """Return the target of files, which is a lake: the project's files are refused otherwise."""
    from millrace.lake.target import LakeTarget

    assert isinstance(target, LakeTarget)  # noqa: S101
    return target


def _seen(entry: LedgerEntry | None) -> Mapping[str, Taken] | None:
    """Return what was taken before; None: nothing that a load could build upon."""
    return entry.position.seen if entry is not None and isinstance(entry.position, Files) else None


def fresh(spec: CopySpec, files: FilesSpec, resources: Resources, target: LakeTarget) -> Freshness:
    """Say whether there are new files, and what a run would do; no file is read.

    Raises:
        NotFound, GuardRefused, PermissionMissing: what would also stop the run.
    """
    _require()
    from millrace.connectors.taking import changed

    entry = target.ledger(spec.asset)
    found = resources.files(spec.source).find(files.pattern)
    seen = _seen(entry)
    new = changed(found, {} if seen is None or spec.full_refresh else seen)
    size = sum(one.size - (seen[one.name].size if seen and one.name in seen else 0) for one in new)
    what = f"{_count(len(new), 'new file')}, {_bytes(max(size, 0))}"
    if seen is None:
        return Freshness(False, f"never published: {what}", None, "new table", "transfer, table")
    if spec.full_refresh:
        return Freshness(False, f"full refresh: {what}", None, "replace", "transfer, table")
    if new:
        return Freshness(False, what, None, "append", "transfer")
    waiting = Archive.of(spec, files, resources, target).waiting(found, seen)
    if waiting:
        return Freshness(False, f"{_count(len(waiting), 'file')} to archive")
    return Freshness(True, "no new files", 0)


def stage(
    spec: CopySpec, files: FilesSpec, resources: Resources, target: LakeTarget, step: Step, ctx: Context
) -> tuple[Staged, ...]:
    """Bring the new lines into files that no reader looks at yet.

    Raises:
        ContractBroken: lines that cannot be read, where they are not set aside or are too many; a file that became
            shorter or changed in what was taken already.
        GuardRefused: everything is to be read anew, and files that were taken are gone.
        NotFound, PermissionMissing, StepFailed: the folder is missing, or a file cannot be read.
        Interrupted: Ctrl-C.
    """
    _require()
    from millrace.connectors.taking import choose

    entry = target.ledger(spec.asset)
    folder, archive = resources.files(spec.source), Archive.of(spec, files, resources, target)
    found, seen = folder.find(files.pattern), _seen(entry)
    since = {} if seen is None or spec.full_refresh else dict(seen)
    schema = _schema(files, found, since, None if entry is None or not since else target.schema(spec.asset))
    if since and entry is not None and target.schema(spec.asset).to_json() != schema.to_json():
        ctx.report.note("the columns changed: all files are read anew")
        since = {}
    if seen and not since:
        found = _all(spec, found, seen, archive)
    work = choose(found, since)
    if entry is not None and since and not work.tasks and not work.noted:
        moved = archive.settle(found, since)
        ctx.report.note(f"no new files; {_count(moved, 'file')} moved to the archive" if moved else "no new files")
        return ()
    request = StageRequest(
        asset=spec.asset,
        load=ctx.load,
        run=ctx.run,
        step=step.key,
        base=0 if entry is None else entry.seq,
        how="append" if since else "replace" if entry else "create",
        schema=schema,
        inputs={},
        code=step.code,
    )
    opened = target.open_stage(request, replace=spec.replace)
    opened.drop(opened.left())  # what was told of their files is not known any more
    load = _Load(spec, files, opened, ctx)
    load.read(work.tasks)
    load.keep_or_stop(step.spec.get("contract") or {}, since)
    sieve = sieve_of(step, spec.asset, schema.key, ctx, entry)
    if sieve is not None:
        with load.engine() as connection:
            sieve.stage(connection, opened)
    position = _position(since, load.taken, work.noted)
    ctx.report.note(_told(load, work.same, found))
    return (opened.close(Files(position), load.expected),)


def settle(spec: CopySpec, files: FilesSpec, resources: Resources, target: LakeTarget) -> None:
    """Move files that were published to the archive. Raises StepFailed for those that cannot be moved."""
    seen = _seen(target.ledger(spec.asset))
    if seen is not None:
        found = resources.files(spec.source).find(files.pattern)
        Archive.of(spec, files, resources, target).settle(found, seen)


def _position(since: Mapping[str, Taken], taken: Mapping[str, Taken], noted: Mapping[str, Taken]) -> dict[str, Taken]:
    """Return what has been taken after this load. A repeated content has the lines of the file that it repeats."""
    found = {**since, **taken}
    for name, one in noted.items():
        if one.same is None:
            found[name] = one
            continue
        known = [side[one.same] for side in (since, taken) if one.same in side and side[one.same].digest == one.digest]
        if known:  # else that file was left for the next run, and so is this one
            found[name] = replace(known[0], mtime=one.mtime, same=one.same)
    return dict(sorted(found.items()))


def _all(spec: CopySpec, found: Sequence[Found], seen: Mapping[str, Taken], archive: Archive) -> list[Found]:
    """Return the files to read when everything is read anew: those that are there, and those in the archive.

    Raises:
        GuardRefused: files that were taken are at neither place, so their rows would be lost.
    """
    here = {one.name for one in found}
    gone = {name: taken for name, taken in seen.items() if name not in here and taken.lines and taken.same is None}
    kept = archive.find(gone)
    lost = [name for name in gone if name not in {one.name for one in kept}]
    if lost and not spec.allow_deletes:
        lines = _count(sum(gone[name].lines for name in lost), "line")
        raise GuardRefused(
            f"{spec.asset} would lose {lines} of files that are gone: {len(lost):,}",
            where=spec.source,
            detail=[*lost[:EXAMPLES], *(["…"] if len(lost) > EXAMPLES else [])],
            hint="bring the files back, or run again with --allow-deletes if that is meant",
        )
    return sorted([*found, *kept], key=lambda one: one.name)


# --- columns -------------------------------------------------------------------------------------------------------


def _schema(files: FilesSpec, found: Sequence[Found], since: Mapping[str, Taken], old: Schema | None) -> Schema:
    """Return the asset's columns: those declared, else those of the headers that are known or new."""
    columns = dict(files.columns)
    if not columns and files.format == "csv":
        from millrace.connectors.csv_records import header_of
        from millrace.connectors.taking import changed

        names = [] if old is None else [name for name in old.names if name not in (FILE, LINE, RAW)]
        for one in changed(found, since):
            names += header_of(_opened(one, None, files), files.delimiter)
        columns = dict.fromkeys(names, "text")
    made = [Column(name, kind, Kind.TEXT, hashed="text") for name, kind in columns.items()]
    made.append(Column(FILE, "text", Kind.TEXT, nullable=False, hashed="text"))
    made.append(Column(LINE, "bigint", Kind.INT64, nullable=False, hashed="int"))
    made.append(Column(RAW, "text", Kind.TEXT, hashed="text"))
    return Schema(tuple(made), (FILE, LINE))


def _opened(found: Found, taken: Taken | None, files: FilesSpec) -> LineFile:
    from millrace.connectors.lines import LineFile

    return LineFile(found, taken, limit=files.max_line, encoding=files.encoding, whole=files.format == "csv")


# --- reading -------------------------------------------------------------------------------------------------------


@dataclass
class _Part:
    """What one try at some files gave."""

    digest: Digest
    rows: int = 0
    blank: int = 0
    taken: dict[str, Taken] = field(default_factory=dict)
    bad: list[Bad] = field(default_factory=list)
    foreign: set[str] = field(default_factory=set)
    short: str = ""


class _Load:
    """The lines of one load on their way into a stage.

    Attributes:
        expected: digests of what was read, by segment.
        taken: what was taken of each file that was read.
        bad: what cannot be read.
        left: files that changed while they were read.
    """

    def __init__(self, spec: CopySpec, files: FilesSpec, opened: LakeStage, ctx: Context) -> None:
        self.spec, self.files, self.opened, self.ctx = spec, files, opened, ctx
        self.schema = opened.request.schema
        self.expected: dict[str, Digest] = {}
        self.taken: dict[str, Taken] = {}
        self.bad: list[Bad] = []
        self.left: list[str] = []
        self.rows = self.blank = 0
        self.foreign: set[str] = set()

    def read(self, tasks: Sequence[Task]) -> None:
        """Read files into segments of the stage."""
        from millrace.connectors.json_lines import JsonLines

        with self.engine() as connection:
            json = JsonLines(connection, self.files.columns) if self.files.format == "jsonl" else None
            for number, part in enumerate(_parts(tasks)):
                self._part(Segment(f"files:{number}", "file", part[0].found.name), part, json)
        self.expected.setdefault("none", Digest(0, 0, self.schema.shape))

    def engine(self) -> contextlib.closing[duckdb.DuckDBPyConnection]:
        """Return a connection of the embedded engine, to be closed."""
        from millrace.duck.engine import connect

        return contextlib.closing(connect(memory_limit=MEMORY, scratch=self.ctx.scratch() / "spill"))

    def _part(self, segment: Segment, tasks: Sequence[Task], json: JsonLines | None) -> None:
        """Read some files; those that changed meanwhile are left out, and the others are read again."""
        from millrace.connectors.lines import Changed

        while tasks:
            part = _Part(Digest(0, 0, self.schema.shape))
            with contextlib.suppress(Changed):
                self.opened.write_batches(segment, self._batches(tasks, part, json))
            still = [task for task in tasks if task.found.now() == task.found and task.found.name != part.short]
            if len(still) == len(tasks):
                self._accept(segment, part)
                return
            self.left += [task.found.name for task in tasks if task not in still]
            tasks = still
        self.opened.drop([segment.id])

    def _accept(self, segment: Segment, part: _Part) -> None:
        self.expected[segment.id] = part.digest
        self.taken |= part.taken
        self.bad += part.bad
        self.rows += part.rows
        self.blank += part.blank
        self.foreign |= part.foreign

    def _batches(self, tasks: Sequence[Task], part: _Part, json: JsonLines | None) -> Iterator[pa.RecordBatch]:
        """Yield the rows of some files, digested."""
        from millrace.connectors.lines import Changed
        from millrace.lake.rowhash import digest_batches

        for task in tasks:
            file = _opened(task.found, task.taken, self.files)
            rows = self._records(file) if json is None else self._objects(file, json)
            try:
                for batch in rows:
                    if self.ctx.stopping():
                        raise Interrupted(f"{self.spec.asset}: stopped while reading", hint="run again")
                    part.digest += digest_batches([batch], self.schema)
                    part.rows += batch.num_rows
                    self.ctx.report.moved(batch.num_rows, batch.nbytes)
                    yield batch
            except Changed:
                part.short = task.found.name
                raise
            part.taken[task.found.name] = file.taken()
            part.bad += file.tally.bad
            part.blank += file.tally.blank
            if file.encoding not in ("utf-8", self.files.encoding):
                part.foreign.add(file.encoding)

    def _objects(self, file: LineFile, json: JsonLines) -> Iterator[pa.RecordBatch]:
        for piece in file.pieces():
            piece, columns = json.extract(piece, file)
            if len(piece):
                yield self._batch(columns, file, piece)

    def _records(self, file: LineFile) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        from millrace.connectors.csv_records import columns_of, numbers_of, records
        from millrace.connectors.lines import Piece

        wanted = [name for name in self.schema.names if name not in (FILE, LINE, RAW)]
        for names, found in records(file, self.files.delimiter):
            columns = [pa.array(values, pa.string()) for values in columns_of(names, wanted, found)]
            raw = pa.array([record.text for record in found], pa.string())
            yield self._batch(columns, file, Piece(numbers_of(found), raw))

    def _batch(self, columns: Sequence[pa.Array], file: LineFile, piece: Piece) -> pa.RecordBatch:
        import pyarrow as pa

        name = pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int32()), len(piece)), [file.found.name])
        return pa.RecordBatch.from_arrays(
            [*columns, name, pa.array(piece.numbers), piece.text], names=list(self.schema.names)
        )

    # what cannot be read

    def keep_or_stop(self, contract: Mapping[str, Any], since: Mapping[str, Taken]) -> None:
        """Set bad lines aside, or stop.

        Args:
            contract: of the step's spec; a step without one blocks.
            since: what was taken before this load.

        Raises:
            ContractBroken: there are bad lines, and they are not set aside or are more than max_bad allows.
        """
        gone = self._settled(since)
        if not self.bad and not gone:
            return
        rows = self._rows_of(self.bad)
        lines = self.rows + len(self.bad)
        allowed = max(LEAST, int(contract["max_bad"] * lines)) if contract.get("max_bad") else 0
        blocks = contract.get("bad_rows") != "quarantine"
        if self.bad and (blocks or self._new(rows) > allowed):
            raise self._broken(lines, None if blocks else allowed, str(contract.get("place", self.spec.source)))
        from millrace.lake.quarantine import digest_of

        self.expected["bad"] = digest_of(rows, self.schema)
        self.opened.set_aside(rows, gone=gone)

    def _new(self, rows: pa.Table) -> int:
        """Return how many of the bad lines are not in quarantine already: reading all files anew finds those again."""
        from millrace.lake.quarantine import DIGEST, row_digests, row_keys

        older = self.opened.quarantined()
        if older is None:
            return int(rows.num_rows)
        key = self.schema.key
        known = set(zip(row_keys(older, key), older.column(DIGEST).to_pylist(), strict=True))
        return sum(one not in known for one in zip(row_keys(rows, key), row_digests(rows, self.schema), strict=True))

    def _settled(self, since: Mapping[str, Taken]) -> list[str]:
        """Return the entries of lines that were set aside before they were whole and were taken again now."""
        from millrace.lake.quarantine import ENTRY, SOURCE

        again = {
            f"{name}:{since[name].lines}"
            for name, taken in self.taken.items()
            if name in since and not since[name].ended and not since[name].kept
        }
        older = self.opened.quarantined() if again else None
        if older is None:
            return []
        pairs = zip(older.column(ENTRY).to_pylist(), older.column(SOURCE).to_pylist(), strict=True)
        return [entry for entry, source in pairs if source in again]

    def _rows_of(self, bad: Sequence[Bad]) -> pa.Table:
        """Return bad lines in the asset's columns, with why they are bad."""
        import pyarrow as pa

        from millrace.lake.quarantine import BYTES, REASON, RULE, SOURCE, bad_schema

        rows = {
            FILE: [one.name for one in bad],
            LINE: [one.line for one in bad],
            RAW: [one.text for one in bad],
            RULE: ["readable"] * len(bad),
            REASON: [one.reason for one in bad],
            SOURCE: [f"{one.name}:{one.line}" for one in bad],
            BYTES: [one.data for one in bad],
        }
        schema = bad_schema(self.schema)
        arrays = [pa.array(rows.get(field.name, [None] * len(bad)), field.type) for field in schema]
        return pa.Table.from_arrays(arrays, schema=schema)

    def _broken(self, lines: int, allowed: int | None, place: str) -> ContractBroken:
        """Return the error about bad lines; `allowed` is None where every one blocks."""
        from millrace.connectors.lines import shown

        bad = len(self.bad)
        detail = []
        for one in self.bad[:EXAMPLES]:
            stands = one.text or one.data
            detail.append(f"{one.name}:{one.line}: {one.reason}" + (f": {shown(stands)}" if stands else ""))
        if bad > EXAMPLES:
            detail.append(f"and {_count(bad - EXAMPLES, 'further line')}")
        if allowed is None:
            why, what = "", "let such lines go to quarantine: contract: {bad_rows: quarantine}"
        else:
            why, what = f", and max_bad is {allowed:,} lines", "allow more in quarantine: max_bad of the contract"
        return ContractBroken(
            f"{self.spec.asset} was not published: {bad:,} of {_count(lines, 'line')} cannot be read{why}",
            detail=detail,
            hint=f"correct the files, or {what}, {place}",
        )


def _parts(tasks: Sequence[Task]) -> Iterator[list[Task]]:
    """Yield files in groups of about PART_BYTES; a large file is alone."""
    part: list[Task] = []
    size = 0
    for task in tasks:
        if part and size + task.size > PART_BYTES:
            yield part
            part, size = [], 0
        part.append(task)
        size += task.size
    if part:
        yield part


# --- words ---------------------------------------------------------------------------------------------------------


def _told(load: _Load, same: Sequence[str], found: Sequence[Found]) -> str:
    """Return what happened, in one sentence."""
    parts = [_count(len(load.taken), "file") if load.taken else "no new files" if found else "no files"]
    if load.bad:
        parts.append(f"{_count(len(load.bad), 'line')} → quarantine")
    if load.blank:
        parts.append(_count(load.blank, "empty line") + " skipped")
    if same:
        parts.append(f"{_names(same)} left out: the same content was taken under another name")
    if load.left:
        parts.append(f"{_names(load.left)} changed while read: left for the next run")
    if load.foreign:
        parts.append(f"read as {', '.join(sorted(load.foreign))}, as the byte order mark says")
    return "; ".join(parts)


def _names(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {_count(len(names) - 1, 'more file')}"


def _count(number: int, one: str) -> str:
    return f"{number:,} {one}{'' if number == 1 else 's'}"


def _bytes(size: int) -> str:
    for unit, step in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= step:
            return f"{size / step:,.1f} {unit}"
    return f"{size} bytes"
