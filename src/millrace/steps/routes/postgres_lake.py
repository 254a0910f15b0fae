"""PostgreSQL to a Delta lake: page ranges of one exported snapshot, by ADBC into Parquet files, digested at the source.

Each worker reads one segment after the other in the same snapshot and writes each into a file of its own; another
connection takes the segments' digests meanwhile, in that snapshot too. The files are proven later by reading them
back (`lake.rowhash`), so nothing that happens on the way has to be trusted.

Modes: `full` and the first `incremental` load read everything; a later `incremental` one reads what changed since the
ledger's position and upserts it by key; `append` adds the rows beyond the cursor, or everything when there is none.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from psycopg import sql

from millrace.core.digest import Digest
from millrace.core.plan import Freshness, Step
from millrace.core.ports import Context, StageRequest
from millrace.core.position import Cursor, Position, Whole
from millrace.core.schema import Kind, Schema
from millrace.core.segment import Segment, SegmentId
from millrace.core.staged import LedgerEntry, Staged
from millrace.errors import (
    ContractBroken,
    ExtraMissing,
    GuardRefused,
    Interrupted,
    KeyInvalid,
    ProofFailed,
    UsageError,
)
from millrace.postgres.catalog import PgColumn
from millrace.postgres.digest import row_hash
from millrace.postgres.names import sql_name
from millrace.postgres.reader import PostgresReader, PostgresSnapshot, ordered
from millrace.postgres.segments import predicate
from millrace.postgres.session import translated
from millrace.postgres.source import Source, author_select, both
from millrace.postgres.types import arrow_expression, column_guard, kind, text_form
from millrace.steps.spec import CopySpec

if TYPE_CHECKING:
    import pyarrow as pa

    from millrace.lake.stage import LakeStage
    from millrace.lake.target import LakeTarget

EXAMPLES = 3
FIRST_DAY, LAST_DAY = -719_162, 2_932_896  # 0001-01-01 and 9999-12-31 in days since 1970
DAY_US = 86_400_000_000
COMPRESSION_LEVEL = 1
LOOK_SECONDS = 0.2  # how soon Ctrl-C is seen


def _require() -> None:
    """Raise ExtraMissing unless the libraries of this way are installed."""
    from importlib.util import find_spec

    for name in ("pyarrow", "adbc_driver_postgresql", "numpy", "deltalake"):
        if find_spec(name) is None:
            raise ExtraMissing("copying into a lake", "lake")


# --- what there is to do -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Work:
    """What a look at both ends decided.

    Attributes:
        source: the rows to read.
        schema: columns and key of the asset.
        how: `create`, `replace`, `append`, `upsert`.
        since: the position that the rows are read from, or None for everything.
        reason: why, in a few words.
    """

    source: Source
    schema: Schema
    how: str
    since: Cursor | None
    reason: str


def _look(spec: CopySpec, reader: PostgresReader, target: LakeTarget, snap: PostgresSnapshot) -> Work:
    """Decide what a run has to read, and how it will be applied."""
    source = reader.source(spec.table, where=spec.where, select=spec.select, connection=snap.connection)
    key = tuple(column.name for column in source.pick(spec.key)) or source.key
    schema = source.schema(key)
    if spec.cursor is not None:
        _ = source[spec.cursor]
    entry = target.ledger(spec.asset)
    if spec.mode == "incremental":
        if spec.cursor is None:
            raise UsageError(f"{spec.asset} is incremental but has no cursor", hint="name one: cursor: updated_at")
        if not key:
            raise KeyInvalid(
                f"{spec.asset} is incremental but {source.label} has no key to merge by",
                where=source.database,
                hint="name one: key: [column, …], or copy it in mode full",
            )
    if entry is None:
        return Work(source, schema, "create", None, "never published")
    if spec.mode == "full" or spec.full_refresh:
        return Work(source, schema, "replace", None, "full refresh" if spec.full_refresh else "the source changed")
    if not _same_columns(target.schema(spec.asset), schema):
        return Work(source, schema, "replace", None, "the columns changed")
    how = "append" if spec.mode == "append" else "upsert"
    if spec.cursor is None:
        return Work(source, schema, how, None, "append reads everything")
    since = entry.position
    if not isinstance(since, Cursor) or since.column != spec.cursor:
        if how == "append":
            raise UsageError(
                f"{spec.asset} was not loaded by the cursor {spec.cursor}, so what is new is not known",
                hint="run with --full-refresh to load it anew",
            )
        return Work(source, schema, "replace", None, "the cursor changed")
    return Work(_since(reader, source, since, snap, how), schema, how, since, f"rows since {since.value}")


def _same_columns(old: Schema, new: Schema) -> bool:
    return (old.fingerprint, old.shape, old.key) == (new.fingerprint, new.shape, new.key)


def _since(reader: PostgresReader, source: Source, since: Cursor, snap: PostgresSnapshot, how: str) -> Source:
    """Return the rows to read from a position on; an append must not read a row twice, a merge may."""
    if how == "append":
        if since.value is None:
            return source
        column = source[since.column]
        return source.narrowed(sql.SQL("{} > {}").format(ordered(column), sql.Literal(since.value)))
    return reader.changes(source, since, snap)


def _whole_digest(reader: PostgresReader, source: Source, snap: PostgresSnapshot) -> Digest:
    segment = Segment.whole()
    return reader.digest(source, [segment], snap)[segment.id]


def fresh(spec: CopySpec, reader: PostgresReader, target: LakeTarget) -> Freshness:
    """Say whether the source is still what the ledger's position says, and what a run would do."""
    _require()
    entry = target.ledger(spec.asset)
    with reader.snapshot() as snap:
        work = _look(spec, reader, target, snap)
        if entry is not None and work.reason != "the columns changed":
            same = _unchanged(spec, reader, work, entry, target, snap)
            if same is not None:
                return Freshness(True, same, rows=0, publishes="", proves="")
        rows = work.source.relation.rows if work.source.relation is not None and work.since is None else None
    publishes = {"create": "new table", "replace": "replace", "append": "append", "upsert": "merge"}[work.how]
    proves = "transfer, table" if work.how in ("create", "replace") else "transfer"
    return Freshness(False, work.reason, rows if rows is None or rows >= 0 else None, publishes, proves)


def _unchanged(
    spec: CopySpec,
    reader: PostgresReader,
    work: Work,
    entry: LedgerEntry,
    target: LakeTarget,
    snap: PostgresSnapshot,
) -> str | None:
    """Return why there is nothing to do, or None when there is."""
    position = entry.position
    if spec.full_refresh or (spec.mode == "append" and spec.cursor is None):
        return None
    if isinstance(position, Cursor) and work.since is not None:
        if work.how == "append":
            digest = _whole_digest(reader, work.source, snap)
            return f"nothing beyond {position.value}" if not digest.rows else None
        if position.tail is not None and _whole_digest(reader, work.source, snap) == position.tail:
            return f"nothing changed since {position.value}"
        return None
    if spec.mode == "full" and isinstance(position, Whole) and position.digest is not None:
        if not _same_columns(target.schema(spec.asset), work.schema):
            return None
        if _whole_digest(reader, work.source, snap) == position.digest:
            return "source digest unchanged"
    return None


# --- staging -------------------------------------------------------------------------------------------------------


def stage(spec: CopySpec, reader: PostgresReader, target: LakeTarget, step: Step, ctx: Context) -> tuple[Staged, ...]:
    """Bring the rows into files that no reader looks at yet.

    Raises:
        ContractBroken: rows that Arrow or Delta cannot hold; names columns, how many and examples.
        KeyInvalid: no key, a null in it, or the same key twice.
        GuardRefused: the target would lose more rows than `max_delete` allows.
        Interrupted: Ctrl-C; what was staged whole is kept.
    """
    _require()
    entry = target.ledger(spec.asset)
    with reader.snapshot() as snap:
        work = _look(spec, reader, target, snap)
        _check_count(spec, reader, snap, work)
        base = reader.source(spec.table, where=spec.where, select=spec.select, connection=snap.connection)
        source = _keyed(spec, work, base, snap, ctx)
        position = _position(spec, reader, work, snap)
        request = StageRequest(
            asset=spec.asset,
            load=ctx.load,
            run=ctx.run,
            step=step.key,
            base=0 if entry is None else entry.seq,
            how=work.how,
            schema=work.schema,
            inputs={},
            code=step.code,
        )
        if work.how == "upsert":
            return (_stage_changes(spec, reader, target, request, source, position, snap, ctx),)
        opened = target.open_stage(request, replace=spec.replace)
        expected = _Copy(spec, reader, opened, source, snap, ctx).run()
        total = Digest.sum(expected.values(), work.schema.shape)
        if work.how == "replace":
            _guard_deletes(spec, entry, total.rows)
        if isinstance(position, Whole):
            position = Whole(total, snap.state)
        return (opened.close(position, expected),)


def _position(spec: CopySpec, reader: PostgresReader, work: Work, snap: PostgresSnapshot) -> Position:
    """Return the position after this load; the digest of a whole load is filled in when it is known."""
    if spec.cursor is None or spec.mode == "full":
        return Whole(None, snap.state)
    source = reader.source(spec.table, where=spec.where, select=spec.select, connection=snap.connection)
    found = reader.cursor(source, spec.cursor, snap)
    if found.value is None and work.since is not None:  # the source was emptied
        found = replace(found, value=work.since.value)
    if spec.mode == "append":
        return found
    tail = _whole_digest(reader, reader.changes(source, found, snap), snap)
    return replace(found, tail=tail)


def _guard_deletes(spec: CopySpec, entry: LedgerEntry | None, rows: int) -> None:
    """Refuse to publish when certainly more rows would go than allowed; a replacement does not know which."""
    if entry is None or entry.rows <= 0 or spec.allow_deletes:
        return
    lost = entry.rows - rows
    if lost > spec.max_delete * entry.rows:
        raise GuardRefused(
            f"{spec.asset} would lose {lost:,} of its {entry.rows:,} rows, more than max_delete {spec.max_delete:.0%}",
            hint="if that is meant, run again with --allow-deletes",
        )


def _check_count(spec: CopySpec, reader: PostgresReader, snap: PostgresSnapshot, work: Work) -> None:
    """Compare the project's own count query with the rows of the source, in the same snapshot."""
    if spec.count is None:
        return
    with translated(reader.database.label, f"count the rows of {work.source.label}", connection=snap.connection):
        wanted = snap.connection.execute(sql.SQL("select * from ({}) q").format(author_select(spec.count))).fetchone()
        found = snap.connection.execute(work.source.select([sql.SQL("pg_catalog.count(*)")])).fetchone()
    if wanted is None or found is None or int(wanted[0]) != int(found[0]):
        raise ProofFailed(
            f"the count query of {spec.asset} says {wanted[0] if wanted else 'nothing'}, "
            f"the source gives {found[0] if found else 'nothing'} rows",
            where=reader.database.label,
        )


# --- keys ----------------------------------------------------------------------------------------------------------


def _unique(source: Source, key: Sequence[str]) -> bool:
    """Return whether the catalogue says that no two rows have the same key and none a null in it."""
    relation = source.relation
    if relation is None or source.query is not None:
        return False
    if not all(source[name].not_null for name in key):
        return False
    return any(
        index.unique and index.valid and index.immediate and not index.partial
        for index in relation.indexes
        if index.columns and set(index.columns) <= set(key)
    )


def _check_key(work: Work, snap: PostgresSnapshot) -> int:
    """Return how many keys stand in more than one row.

    Raises:
        KeyInvalid: a null in the key.
    """
    source = work.source
    key = source.pick(work.schema.key)
    nulls = sql.SQL(" or ").join(sql.SQL("{} is null").format(column.identifier) for column in key)
    count = sql.SQL("pg_catalog.count(*)")
    groups = sql.SQL("{} group by {} having pg_catalog.count(*) > 1").format(
        source.select([count]), sql.SQL(", ").join(column.identifier for column in key)
    )
    with translated(source.database, f"check the key of {source.label}", connection=snap.connection):
        row = snap.connection.execute(source.select([count], nulls)).fetchone()
        if row and row[0]:
            names = ", ".join(sql_name(column.name) for column in key)
            raise KeyInvalid(
                f"{row[0]:,} rows of {source.label} have a null in the key ({names})",
                where=source.database,
                hint="leave them out by where:, or choose another key",
            )
        found = snap.connection.execute(sql.SQL("select pg_catalog.count(*) from ({}) as g").format(groups)).fetchone()
    return int(found[0]) if found else 0


def _keyed(spec: CopySpec, work: Work, base: Source, snap: PostgresSnapshot, ctx: Context) -> Source:
    """Return the work's rows with one row for each key, where the mode needs it.

    Incremental loads of a source that keeps several versions of a row take the newest by the cursor. It is chosen
    among all rows of the keys that changed, so that an old version that was committed late replaces nothing.

    Raises:
        KeyInvalid: a null in the key, or in mode full or append several rows of one key.
    """
    needed = spec.mode == "incremental" or bool(spec.key)
    if not needed or _unique(work.source, work.schema.key):
        return work.source
    twice = _check_key(work, snap)
    if not twice and work.since is None:
        return work.source
    key = base.pick(work.schema.key)
    if spec.mode != "incremental" or spec.cursor is None:
        raise KeyInvalid(
            f"{twice:,} keys of {base.label} stand in more than one row",
            where=base.database,
            detail=_examples(base, key, snap),
            hint=f"({', '.join(sql_name(column.name) for column in key)}) does not name one row: choose another key",
        )
    if twice:
        ctx.report.note(f"{twice:,} keys stand in several rows: the newest by {spec.cursor} is taken")
    names = sql.SQL(", ").join(column.identifier for column in key)
    changed = None
    if work.since is not None:
        changed = sql.SQL("({}) in ({})").format(names, work.source.select([column.identifier for column in key]))
    query = sql.SQL("select distinct on ({}) {} from {}{} order by {}, {} desc nulls last, {} desc").format(
        names,
        sql.SQL(", ").join(column.identifier for column in base.columns),
        base.origin,
        sql.SQL("") if (where := both(base.where, changed)) is None else sql.SQL(" where {}").format(where),
        names,
        ordered(base[spec.cursor]),
        row_hash(base.columns),  # of two with one cursor value the same is taken each time
    )
    return Source(base.label, base.columns, query=query, database=base.database)


def _examples(source: Source, key: Sequence[PgColumn], snap: PostgresSnapshot) -> list[str]:
    """Return a few keys that stand in more than one row, as text."""
    query = sql.SQL("{} group by {} having pg_catalog.count(*) > 1 limit {}").format(
        source.select([*(text_form(column) for column in key), sql.SQL("pg_catalog.count(*)")]),
        sql.SQL(", ").join(column.identifier for column in key),
        sql.Literal(EXAMPLES),
    )
    with translated(source.database, f"check the key of {source.label}", connection=snap.connection):
        return [f"{', '.join(map(str, row[:-1]))}: {row[-1]:,} rows" for row in snap.connection.execute(query)]


# --- copying segments ----------------------------------------------------------------------------------------------


class _Unfit(Exception):
    """A value came that Arrow and Delta cannot hold as it is: the server is asked which."""


class _Stopped(Exception):
    """Another worker failed, or Ctrl-C was seen."""


class _Copy:
    """Copies all segments of a source into a stage: workers that read and write, one connection that digests."""

    def __init__(
        self,
        spec: CopySpec,
        reader: PostgresReader,
        opened: LakeStage,
        source: Source,
        snap: PostgresSnapshot,
        ctx: Context,
    ) -> None:
        self._reader, self._stage, self._source, self._snap, self._ctx = reader, opened, source, snap, ctx
        self._label = str(spec.asset)
        self._workers = max(1, spec.workers)
        self._segments = list(reader.segments(source, snap, None, spec.segment_rows))
        self._query_key = source.pick(source.key)
        self._stop = threading.Event()

    def run(self) -> Mapping[SegmentId, Digest]:
        """Copy what is not there yet; return the source's digest of every segment.

        Raises:
            ContractBroken: rows that Arrow or Delta cannot hold.
            Interrupted: Ctrl-C; whole segments are kept.
        """
        self._ctx.report.total(sum(segment.rows for segment in self._segments) or None)
        kept = self._kept()
        todo = [segment for segment in self._segments if segment.id not in kept]
        digests: dict[SegmentId, Future[Digest]] = {segment.id: Future() for segment in todo}
        waiting = deque(todo)
        with ThreadPoolExecutor(self._workers + 1, thread_name_prefix="millrace-copy") as pool:
            tasks = [pool.submit(self._digest, todo, digests)]
            tasks += [pool.submit(self._work, waiting, digests) for _ in range(min(self._workers, len(todo)))]
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
        found = {segment_id: future.result() for segment_id, future in digests.items()}
        return {segment.id: kept.get(segment.id) or found[segment.id] for segment in self._segments}

    def _kept(self) -> dict[SegmentId, Digest]:
        """Return the segments of a killed attempt that still are what the source holds; drop the others."""
        done = self._stage.done()
        if not done:
            return {}
        known = [segment for segment in self._segments if segment.id in done]
        now = self._reader.digest(self._source, known, self._snap)
        kept = {name: digest for name, digest in now.items() if digest == done[name]}
        self._stage.drop(name for name in done if name not in kept)
        self._ctx.report.note(f"{len(kept)} of {len(self._segments)} segments kept from an earlier attempt")
        self._ctx.report.moved(sum(digest.rows for digest in kept.values()), 0)
        return kept

    def _watch(self, tasks: Sequence[Future[None]]) -> None:
        """Wait for the tasks; the first failure stops the others."""
        pending = set(tasks)
        while pending:
            done, pending = wait(pending, LOOK_SECONDS, FIRST_EXCEPTION)
            failed = [error for task in done if (error := task.exception()) is not None]
            for error in failed:
                if not isinstance(error, _Stopped):
                    self._stop.set()
                    raise error
            if self._ctx.stopping():
                self._stop.set()
                raise Interrupted(f"{self._label}: stopped while staging", hint="run again to go on from here")

    def _digest(self, todo: Sequence[Segment], digests: Mapping[SegmentId, Future[Digest]]) -> None:
        try:
            for name, digest in self._reader.digests(self._source, todo, self._snap):
                digests[name].set_result(digest)
                if self._stop.is_set():
                    raise _Stopped
        except BaseException as error:
            for future in digests.values():
                if not future.done():
                    future.set_exception(_Stopped() if isinstance(error, _Stopped) else error)
            raise

    def _work(self, waiting: deque[Segment], digests: Mapping[SegmentId, Future[Digest]]) -> None:
        while not self._stop.is_set():
            try:
                segment = waiting.popleft()
            except IndexError:
                return
            path = self._stage.new_file(segment)
            try:
                rows = self._write(segment, path)
            except BaseException:
                path.unlink(missing_ok=True)
                raise
            self._stage.add_file(path, segment, digests[segment.id].result(), rows)

    def _write(self, segment: Segment, path: Path) -> int:
        """Write one segment's file; return its rows."""
        from millrace.lake.table import grouped, writer

        rows = 0
        with writer(path, self._stage.schema) as output:
            for table in grouped(self._batches(segment)):
                output.write_table(table, row_group_size=table.num_rows)
                rows += table.num_rows
        return rows

    def _batches(self, segment: Segment) -> Iterator[pa.RecordBatch]:
        """Yield a segment's rows in the stage's schema."""
        from millrace.postgres.arrow import read_arrow

        expressions = [sql.SQL("{} as {}").format(_expression(c), c.identifier) for c in self._source.columns]
        query = self._source.select(expressions, predicate(segment, self._query_key))
        for batch in read_arrow(self._reader.database, query, self._snap.token):
            if self._stop.is_set():
                raise _Stopped
            _check_range(batch)
            try:
                found = self._stage.conform(batch)
            except ContractBroken as error:
                raise _Unfit(*error.detail) from error
            self._ctx.report.moved(batch.num_rows, batch.nbytes)
            yield found


def _expression(column: PgColumn) -> sql.Composable:
    """Return what is selected: the lake keeps times of day as text, which holds 24:00 too."""
    return text_form(column) if kind(column) is Kind.TIME else arrow_expression(column)


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
        ContractBroken: there are any.
    """
    key = source.pick(source.key)
    what = sql.SQL("{}").format(text_form(key[0])) if len(key) == 1 else None
    detail = []
    with translated(source.database, f"check the values of {source.label}", connection=snap.connection):
        for column in source.columns:
            guard = None if kind(column) is Kind.TIME else column_guard(column)
            if guard is None:
                continue
            row = snap.connection.execute(source.select([sql.SQL("pg_catalog.count(*)")], guard)).fetchone()
            if not row or not row[0]:
                continue
            shown = [text_form(column), *([what] if what is not None else [])]
            found = snap.connection.execute(
                sql.SQL("{} limit {}").format(source.select(shown, guard), sql.Literal(EXAMPLES))
            ).fetchall()
            named = [f"{r[0]} ({key[0].name} {r[1]})" if what is not None else str(r[0]) for r in found]
            detail.append(f"{sql_name(column.name)} {column.type}: {row[0]:,} rows, like {', '.join(named)}")
    if detail:
        raise ContractBroken(
            f"{source.label} has values that a lake cannot hold: it takes the years 0001 to 9999 and finite decimals",
            where=source.database,
            detail=detail,
            hint="leave such rows out by where:, or bring the column as text: select: …, ts::text as ts",
        )


def _stage_changes(
    spec: CopySpec,
    reader: PostgresReader,
    target: LakeTarget,
    request: StageRequest,
    source: Source,
    position: Position,
    snap: PostgresSnapshot,
    ctx: Context,
) -> Staged:
    raise UsageError("incremental copies into a lake are not built yet")
