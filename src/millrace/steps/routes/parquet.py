"""Segments of a PostgreSQL source as Parquet files: workers that read and write, one connection that digests.

All read one exported snapshot. A file is recorded together with its segment's digest in the source; what passed
through here is proven later, by reading the files back.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from psycopg import sql

from millrace.core.digest import Digest
from millrace.core.ports import Context
from millrace.core.schema import Kind
from millrace.core.segment import Segment, SegmentId
from millrace.errors import ContractBroken, Interrupted
from millrace.postgres.catalog import PgColumn
from millrace.postgres.names import sql_name
from millrace.postgres.reader import PostgresReader, PostgresSnapshot, digest_segments
from millrace.postgres.segments import predicate
from millrace.postgres.session import translated
from millrace.postgres.source import Source
from millrace.postgres.types import arrow_expression, kind, text_form
from millrace.steps.routes.unfit import MOST, Unfit, guard_of

if TYPE_CHECKING:
    import pyarrow as pa

EXAMPLES = 3
FIRST_DAY, LAST_DAY = -719_162, 2_932_896  # 0001-01-01 and 9999-12-31 in days since 1970
DAY_US = 86_400_000_000
LOOK_SECONDS = 0.2  # how soon Ctrl-C is seen


class Sink(Protocol):
    """Where files go: a lake's stage, or a folder."""

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema of the files."""

    def conform(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return a batch in that schema. Raises ContractBroken."""

    def new_file(self, segment: Segment | None = None) -> Path:
        """Return a path for a new file."""

    def add_file(self, path: Path, segment: Segment, expected: Digest | None = None, rows: int | None = None) -> int:
        """Record a closed file as a whole segment."""


class Folder:
    """A sink that is a plain folder, for rows that are still to be merged."""

    def __init__(self, folder: Path, like: Sink, name: str = "changes") -> None:
        self._name = name
        self.schema = like.schema
        self.conform = like.conform
        self.files: list[Path] = []
        self._folder = folder
        self._numbers = itertools.count(1)

    def new_file(self, segment: Segment | None = None) -> Path:
        """Return a path for a new file."""
        return self._folder / f"{self._name}-{next(self._numbers)}.parquet"

    def add_file(self, path: Path, segment: Segment, expected: Digest | None = None, rows: int | None = None) -> int:
        """Keep a file."""
        self.files.append(path)
        return rows or 0


class _Unfit(Exception):
    """A value came that Arrow and Delta cannot hold as it is: the server is asked which."""


class _Stopped(Exception):
    """Another worker failed, or Ctrl-C was seen."""


class Export:
    """Writes segments of one source into a sink.

    Args:
        reader: the database.
        source: what is read; its rows are those of all segments.
        snap: the snapshot; it stays open meanwhile, and nobody else uses its connection, on which the digests are
            taken. One more connection was booked with it.
        sink: where the files go.
        ctx: progress, and whether to stop.
        workers: connections that read at once, as far as there are so many.
        unfit: takes the rows with values that Arrow or Delta cannot hold; None: they stop the copy.
    """

    def __init__(
        self,
        reader: PostgresReader,
        source: Source,
        snap: PostgresSnapshot,
        sink: Sink,
        ctx: Context,
        workers: int,
        unfit: Unfit | None = None,
    ) -> None:
        self._reader, self._source, self._snap, self._sink, self._ctx = reader, source, snap, sink, ctx
        self._unfit = unfit
        self._workers = max(1, workers)
        self._stop = threading.Event()

    def run(self, segments: Sequence[Segment]) -> Mapping[SegmentId, Digest]:
        """Write the segments; return the source's digest of each.

        Raises:
            ContractBroken: rows that Arrow or Delta cannot hold.
            Interrupted: Ctrl-C; whole segments are kept.
        """
        digests: dict[SegmentId, Future[Digest]] = {segment.id: Future() for segment in segments}
        waiting = deque(segments)
        with ThreadPoolExecutor(self._workers + 1, thread_name_prefix="millrace-copy") as pool:
            tasks = [pool.submit(self._digest, segments, digests)]
            tasks.append(pool.submit(self._work, waiting, digests))
            tasks += [pool.submit(self._help, waiting, digests) for _ in range(min(self._workers, len(segments)) - 1)]
            try:
                self._watch(tasks)
            except _Unfit as unfit:
                self._stop.set()
                refuse_unfit(self._source, self._snap)
                raise ContractBroken(
                    f"{self._source.label} has values that do not fit the lake's types",
                    where=self._source.database,
                    detail=[str(unfit)],
                ) from unfit
            finally:
                self._stop.set()
        return {segment_id: future.result() for segment_id, future in digests.items()}

    def _watch(self, tasks: Sequence[Future[None]]) -> None:
        """Wait for the tasks; the first failure stops the others."""
        pending = set(tasks)
        while pending:
            done, pending = wait(pending, LOOK_SECONDS, FIRST_EXCEPTION)
            for task in done:
                error = task.exception()
                if error is not None and not isinstance(error, _Stopped):
                    raise error
            if pending and self._ctx.stopping():
                raise Interrupted(f"{self._source.label}: stopped while copying", hint="run again to go on from here")

    def _digest(self, segments: Sequence[Segment], digests: Mapping[SegmentId, Future[Digest]]) -> None:
        try:
            for name, digest in digest_segments(self._snap.connection, self._source, segments):
                digests[name].set_result(digest)
                if self._stop.is_set():
                    raise _Stopped
        except BaseException as error:
            for future in digests.values():
                if not future.done():
                    future.set_exception(error)
            raise

    def _help(self, waiting: deque[Segment], digests: Mapping[SegmentId, Future[Digest]]) -> None:
        """Read on one more connection, as soon as there is one."""
        while waiting and not self._stop.is_set():
            with self._reader.sessions.booked(1) as free:
                if free:
                    return self._work(waiting, digests)
            self._stop.wait(LOOK_SECONDS)
        return None

    def _work(self, waiting: deque[Segment], digests: Mapping[SegmentId, Future[Digest]]) -> None:
        while not self._stop.is_set():
            try:
                segment = waiting.popleft()
            except IndexError:
                return
            path = self._sink.new_file(segment)
            try:
                rows = self._write(segment, path)
                expected: Digest | None = digests[segment.id].result()
            except BaseException:
                path.unlink(missing_ok=True)
                raise
            if expected is not None and expected.rows != rows and self._unfit is not None:
                expected = None  # a later attempt must not keep the file without the rows that are set aside
            self._sink.add_file(path, segment, expected, rows)
        raise _Stopped

    def _write(self, segment: Segment, path: Path) -> int:
        """Write one segment's file; return its rows."""
        from millrace.lake.layout import disk
        from millrace.lake.table import grouped, writer

        rows = 0
        output = None
        with disk(path.parent, f"writing {path.name}"):
            try:
                for table in grouped(self._batches(segment)):
                    if output is None:
                        output = writer(path, self._sink.schema, table)
                    output.write_table(table, row_group_size=table.num_rows)
                    rows += table.num_rows
                if output is None:
                    output = writer(path, self._sink.schema, self._sink.schema.empty_table())
            finally:
                if output is not None:
                    output.close()
        return rows

    def _batches(self, segment: Segment) -> Iterator[pa.RecordBatch]:
        """Yield a segment's rows in the sink's schema."""
        from millrace.postgres.arrow import read_arrow

        keys = self._source.pick(self._source.key) if segment.how in ("range", "bucket") else ()
        query = self._source.select(self._expressions(), predicate(segment, keys))
        for batch in read_arrow(self._reader.database, query, self._snap.token):
            if self._stop.is_set():
                raise _Stopped
            self._ctx.report.moved(batch.num_rows, batch.nbytes)
            yield self._fitting(batch)

    def _expressions(self) -> list[sql.Composable]:
        found: list[sql.Composable] = []
        for column in self._source.columns:
            value = _expression(column)
            if self._unfit is not None:
                value = self._unfit.expression(column, value)
            found.append(sql.SQL("{} as {}").format(value, column.identifier))
        return found if self._unfit is None else [*found, *self._unfit.more()]

    def _fitting(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return the rows that fit in the sink's schema; the others are kept, or raise _Unfit."""
        said = None
        if self._unfit is not None:
            batch, said = self._unfit.told(batch)
        _check_range(batch)
        try:
            found = self._sink.conform(batch)
        except ContractBroken as error:
            raise _Unfit(*error.detail) from error
        if self._unfit is None or said is None:
            return found
        found, bad = self._unfit.split(found, said)
        if not self._unfit.add(bad):
            raise _Unfit(f"more than {MOST:,} rows do")
        return found


def _expression(column: PgColumn) -> sql.Composable:
    """Return what is selected.

    The lake keeps times of day as text, which holds 24:00 too. Decimals come as the server's text: ADBC makes the same
    text of the binary form at many times the cost (0.34 s instead of 0.02 s for a million rows).
    """
    return text_form(column) if kind(column) in (Kind.TIME, Kind.DECIMAL) else arrow_expression(column)


def _check_range(batch: pa.RecordBatch) -> None:
    """Find dates and timestamps that are infinite or outside the years 0001 to 9999.

    ADBC adds its epoch without looking: infinity and far years wrap round, but never into this range.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    for array in batch.columns:
        if pa.types.is_timestamp(array.type):
            ends, unit = pc.min_max(array.view(pa.int64())), DAY_US
        elif pa.types.is_date32(array.type):
            ends, unit = pc.min_max(array.view(pa.int32())), 1
        else:
            continue
        low, high = ends["min"].as_py(), ends["max"].as_py()
        if low is not None and (low < FIRST_DAY * unit or high >= (LAST_DAY + 1) * unit):
            raise _Unfit(f"a {array.type} outside the years 0001 to 9999")


def refuse_unfit(source: Source, snap: PostgresSnapshot) -> None:
    """Count the rows with values that a lake cannot hold, and name some of them.

    Raises:
        ContractBroken: there are any: columns, how many rows, examples with their keys.
    """
    key = source.pick(source.key)
    detail = []
    with translated(source.database, f"check the values of {source.label}", connection=snap.connection):
        for column in source.columns:
            if (guard := guard_of(column)) is None:
                continue
            row = snap.connection.execute(source.select([sql.SQL("pg_catalog.count(*)")], guard)).fetchone()
            if not row or not row[0]:
                continue
            query = source.select([text_form(column), *(text_form(part) for part in key)], guard)
            found = snap.connection.execute(sql.SQL("{} limit {}").format(query, sql.Literal(EXAMPLES))).fetchall()
            shown = ", ".join(_example(key, one) for one in found)
            rows = "1 row" if row[0] == 1 else f"{row[0]:,} rows"
            detail.append(f"{sql_name(column.name)} ({column.type}): {rows}, like {shown}")
    if detail:
        raise ContractBroken(
            f"{source.label} has values that a lake cannot hold: it takes the years 0001 to 9999 and finite decimals",
            where=source.database,
            detail=detail,
            hint="set such rows aside: contract: {bad_rows: quarantine} (not in mode snapshot); leave them out by"
            " where:; or bring the column as text: select: …, ts::text as ts",
        )


def _example(key: Sequence[PgColumn], row: Sequence[object]) -> str:
    named = ", ".join(f"{sql_name(part.name)} {value}" for part, value in zip(key, row[1:], strict=True))
    return f"{row[0]} ({named})" if named else str(row[0])
