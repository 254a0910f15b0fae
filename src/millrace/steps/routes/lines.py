"""The lines of one load on their way from files into a stage: read, digested, written; what cannot be read, told."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from millrace.core.digest import Digest
from millrace.core.ports import Context
from millrace.core.position import Taken
from millrace.core.segment import Segment
from millrace.errors import ContractBroken, Interrupted
from millrace.observe.lines import count
from millrace.steps.contracts import most_bad
from millrace.steps.landing import FilesSpec
from millrace.steps.spec import CopySpec

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

    from millrace.connectors.folder import Found
    from millrace.connectors.json_lines import JsonLines
    from millrace.connectors.lines import Bad, LineFile, Piece
    from millrace.connectors.taking import Task
    from millrace.lake.stage import LakeStage

FILE, LINE, RAW = "_file", "_line", "_raw"
PART_BYTES = 64 << 20  # small files share a Parquet file; what changes meanwhile costs at most so much to read again
EXAMPLES = 3
MEMORY = 300_000_000  # bytes that DuckDB may use while extracting, and for the longest line
LINE_MEMORY = 8  # times its bytes: the line, its copies as text and as JSON, its columns


def opened(found: Found, taken: Taken | None, files: FilesSpec) -> LineFile:
    """Return a file to read what is new in it."""
    from millrace.connectors.lines import LineFile

    return LineFile(found, taken, limit=files.max_line, encoding=files.encoding, whole=files.format == "csv")


@dataclass
class _Part:
    """What one try at some files gave."""

    digest: Digest
    rows: int = 0
    blank: int = 0
    taken: dict[str, Taken] = field(default_factory=dict)
    bad: list[Bad] = field(default_factory=list)
    again: set[str] = field(default_factory=set)
    foreign: set[str] = field(default_factory=set)
    short: str = ""


class Load:
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
        self._again: set[str] = set()
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

        limit = (MEMORY + LINE_MEMORY * self.files.max_line) // 1_000_000
        return contextlib.closing(connect(memory_limit=f"{limit}MB", scratch=self.ctx.scratch() / "spill"))

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
        self._again |= part.again
        self.rows += part.rows
        self.blank += part.blank
        self.foreign |= part.foreign

    def _batches(self, tasks: Sequence[Task], part: _Part, json: JsonLines | None) -> Iterator[pa.RecordBatch]:
        """Yield the rows of some files, digested."""
        from millrace.connectors.lines import Changed
        from millrace.lake.rowhash import digest_batches

        for task in tasks:
            file = opened(task.found, task.taken, self.files)
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
            part.bad += sorted(file.tally.bad, key=lambda bad: bad.line)
            part.again |= {f"{task.found.name}:{line}" for line in file.tally.again}
            part.blank += file.tally.blank
            if file.encoding not in ("utf-8", self.files.encoding):
                part.foreign.add(file.encoding)

    def _objects(self, file: LineFile, json: JsonLines) -> Iterator[pa.RecordBatch]:
        from millrace.duck.engine import translated

        for piece in file.pieces():
            with translated(self.spec.source, f"reading {file.found.name}"):
                piece, columns = json.extract(piece, file)
            if len(piece):
                yield self._batch(columns, file, piece)

    def _records(self, file: LineFile) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        from millrace.connectors.csv_records import check_names, columns_of, numbers_of, records
        from millrace.connectors.lines import Piece

        wanted = [name for name in self.schema.names if name not in (FILE, LINE, RAW)]
        for names, found in records(file, self.files.delimiter):
            check_names(names, wanted, file)
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
        if not self.bad and self.opened.quarantined() is None:
            return  # else the sum of source, asset and quarantine goes on
        rows = self._rows_of(self.bad)
        from millrace.lake.quarantine import digest_of

        lines = self.rows + len(self.bad)
        allowed = most_bad(contract.get("max_bad", 0), lines)
        blocks = contract.get("bad_rows") != "quarantine"
        if self.bad and (blocks or self._new(rows) > allowed):
            raise self._broken(lines, None if blocks else allowed, str(contract.get("place", self.spec.source)))
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

        again = self._again | {
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

        from millrace.lake.quarantine import BYTES, REASON, RULE, SOURCE, UNREAD, bad_schema

        rows = {
            FILE: [one.name for one in bad],
            LINE: [one.line for one in bad],
            RAW: [one.text for one in bad],
            RULE: [UNREAD] * len(bad),
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
            detail.append(f"and {count(bad - EXAMPLES, 'further line')}")
        if allowed is None:
            why, what = "", "let such lines go to quarantine: contract: {bad_rows: quarantine}"
        else:
            why, what = f", and max_bad is {allowed:,} lines", "allow more in quarantine: max_bad of the contract"
        return ContractBroken(
            f"{self.spec.asset} was not published: {bad:,} of {count(lines, 'line')} cannot be read{why}",
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
