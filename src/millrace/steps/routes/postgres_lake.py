"""PostgreSQL to a Delta lake: page ranges of one exported snapshot, by ADBC into Parquet files, digested at the source.

Modes: `full`, `truncate` (the same here) and the first load of every mode read everything. `incremental` then reads
what changed since the ledger's position and merges it by key. `append` does the same where there is a key, so that a
row that is read twice (equal cursor values, late commits) is there once; a source without a key is added as a whole
each time. `backfill` (`lake_backfill`) and `snapshot` (`lake_history`) compare digests first.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psycopg import sql

from millrace.core.digest import Digest
from millrace.core.plan import Freshness, Step
from millrace.core.ports import Context, StageRequest
from millrace.core.position import Cursor, Position, Whole
from millrace.core.schema import Schema
from millrace.core.segment import Segment, SegmentId
from millrace.core.staged import LedgerEntry, Proof, Staged
from millrace.errors import ContractBroken, ExtraMissing, GuardRefused, ProofFailed, UsageError
from millrace.postgres.cursors import Rule
from millrace.postgres.deletes import alive, marked
from millrace.postgres.heap import UNTOUCHED, heap_of, touched
from millrace.postgres.history import plain
from millrace.postgres.keys import check_key, key_columns, proven
from millrace.postgres.newest import left_out, misplaced, newest, told
from millrace.postgres.reader import PostgresReader, PostgresSnapshot, digest_segments
from millrace.postgres.session import translated
from millrace.postgres.source import Source, author_select
from millrace.steps.checking import set_aside
from millrace.steps.contracts import check_columns
from millrace.steps.routes import lake_backfill, lake_history
from millrace.steps.routes.fitting import fitted, lost
from millrace.steps.routes.lake_backfill import Backfill
from millrace.steps.routes.lake_scrub import Scrubbed, scrub
from millrace.steps.routes.parquet import Export, Folder
from millrace.steps.routes.unfit import Unfit
from millrace.steps.scrubbing import moment, said_due, state_of
from millrace.steps.sieve import Sieve, sieve_of
from millrace.steps.spec import CopySpec

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

    from millrace.lake.stage import LakeStage
    from millrace.lake.target import LakeTarget

MERGE_MEMORY = "300MB"  # DuckDB's share while merging; it spills beyond
READING = 2  # connections of a copy at least: one holds the snapshot and digests, ADBC reads on another
PUBLISHES = {
    "create": "new table",
    "replace": "replace",
    "append": "append",
    "upsert": "merge",
    "interval": "rows that differ in the interval",
    "snapshot": "new versions of changed rows",
}
PROVES = {
    "create": "transfer, table",
    "replace": "transfer, table",
    "append": "transfer",
    "upsert": "applied",
    "interval": "transfer, applied",
    "snapshot": "transfer, table",
}


def _require() -> None:
    """Raise ExtraMissing unless the libraries of this way are installed."""
    from importlib.util import find_spec

    if any(find_spec(name) is None for name in ("pyarrow", "adbc_driver_postgresql", "numpy", "deltalake", "duckdb")):
        raise ExtraMissing("copying into a lake", "lake")


# --- what there is to do -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Work:
    """What a look at both ends decided.

    Attributes:
        base: all rows of the source.
        source: the rows to read.
        schema: columns and key of the asset.
        how: `create`, `replace`, `append`, `upsert`, `interval`, `snapshot`.
        since: the position that the rows are read from, or None for everything.
        reason: why, in a few words.
        entry: the ledger's entry.
        discarded: columns of the source that the contract leaves out.
        backfill: the interval, of mode backfill.
    """

    base: Source
    source: Source
    schema: Schema
    how: str
    since: Cursor | None
    reason: str
    entry: LedgerEntry | None
    discarded: tuple[str, ...] = ()
    backfill: Backfill | None = None


def _look(
    spec: CopySpec,
    reader: PostgresReader,
    target: LakeTarget,
    snap: PostgresSnapshot,
    entry: LedgerEntry | None,
    contract: Mapping[str, Any],
) -> Work:
    """Decide what a run has to read, and how it will be applied.

    Raises:
        ContractBroken, KeyInvalid, NotFound, UsageError: what would also stop the run.
    """
    source = _base(spec, reader, snap)
    key = spec.key or source.key
    work = Work(
        source, alive(source, spec.soft_delete), source.schema(key), "replace", None, "the source changed", entry
    )
    if entry is None:
        return _interval(spec, replace(work, how="create", reason="never published"), snap)
    old = target.schema(spec.asset)
    needed = [*key, *([spec.tracked] if spec.tracked else [])]
    source, discarded = fitted(source, old, contract, needed, snap.connection)
    work = replace(
        work,
        base=source,
        source=alive(source, spec.soft_delete),
        schema=source.schema(key),
        discarded=tuple(discarded),
    )
    lake_history.check_asset(spec, old, work.schema)
    if spec.mode == "snapshot":
        return replace(work, how="snapshot")
    check_columns(spec.asset, contract, entry, old, work.schema)
    if spec.mode == "backfill":
        return _interval(spec, replace(work, how="interval"), snap, old)
    if spec.full_refresh:
        return replace(work, reason="full refresh")
    if not _same_columns(old, work.schema):
        return replace(work, reason="the columns changed")
    if spec.mode in ("full", "truncate"):
        return work
    if spec.tracked is None:
        return replace(work, how="upsert" if key else "append", reason="append adds what is there")
    since = entry.position
    if not isinstance(since, Cursor):
        return replace(work, reason=f"no position by {spec.tracked} yet")
    if since.column != spec.tracked:
        return replace(work, reason="the cursor changed")
    changes = reader.changes(source, since, snap)
    return replace(work, source=changes, how="upsert", since=since, reason=f"rows since {since.told}")


def _base(spec: CopySpec, reader: PostgresReader, snap: PostgresSnapshot) -> Source:
    """Return all rows of the source, with its cursor's rule; its key is there where one is needed."""
    source = reader.source(spec.table, where=spec.where, select=spec.select, connection=snap.connection)
    key = spec.key or source.key
    if spec.tracked is not None:
        rule = Rule(spec.cursor_format, spec.lookback)
        rule.check(source[spec.tracked], source.label)  # NotFound with the nearest name
        source = replace(source, rule=rule)
    elif spec.mode == "incremental":
        raise UsageError(f"{spec.asset} is incremental but has no cursor", hint="name one: cursor: updated_at")
    if spec.key or spec.tracked is not None or spec.mode == "snapshot":
        key_columns(source, key)
    return source.only(plain(source.columns, source.label)) if spec.mode == "snapshot" else source


def _interval(spec: CopySpec, work: Work, snap: PostgresSnapshot, old: Schema | None = None) -> Work:
    """Return the work of a backfill: the rows of its interval. Raises ContractBroken for columns that changed."""
    if spec.mode != "backfill":
        return work
    if old is not None and not _same_columns(old, work.schema):
        raise ContractBroken(
            f"the columns of {spec.asset} changed, so an interval of it cannot be made equal",
            hint=f"bring them with the incremental copy first: millrace run --select {spec.asset}",
        )
    key = work.schema.key
    found = lake_backfill.backfill_of(spec, work.base, key, snap, versions=not proven(work.base, work.base.pick(key)))
    return replace(work, source=found.inside, backfill=found)


def _same_columns(old: Schema, new: Schema) -> bool:
    return (old.fingerprint, old.shape, old.key) == (new.fingerprint, new.shape, new.key)


def _whole_digest(source: Source, snap: PostgresSnapshot) -> Digest:
    segment = Segment.whole()
    return dict(digest_segments(snap.connection, source, [segment]))[segment.id]


def fresh(
    spec: CopySpec,
    reader: PostgresReader,
    target: LakeTarget,
    contract: Mapping[str, Any] | None = None,
    *,
    now: str,
) -> Freshness:
    """Say whether the source is still what the ledger's position says, and what a run would do.

    Args:
        spec, reader, target, contract: of the step.
        now: the logical time, ISO 8601 UTC: what of the scrub is due.

    Raises:
        ContractBroken, KeyInvalid, NotFound, PermissionMissing, UsageError: what would also stop the run.
    """
    _require()
    # before the snapshot: a publish in between then moves the seq, and an older snapshot cannot replace a newer one
    entry = target.ledger(spec.asset)
    with reader.snapshot(shared=spec.snapshot) as snap:
        work = _look(spec, reader, target, snap, entry, contract or {})
        rows: int | None = None
        proves = PROVES[work.how]
        if work.since is not None:
            found, rows = reader.moved(work.base, work.since, snap)
            known = -1 if work.entry is None else work.entry.rows
            due, said = said_due(spec, work.since, work.base, work.schema.key, snap, known, now)
            if found == work.since.tail and not due:
                since = f" since {work.since.told}" if work.since.value is not None else ""
                return Freshness(True, f"nothing changed{since}", 0)
            if found == work.since.tail:
                return Freshness(False, f"{said} is due", 0, PUBLISHES[work.how], proves)
            proves = f"{proves} · {said}" if said else proves
        elif work.source.relation is not None and work.source.where is None and work.source.relation.rows >= 0:
            rows = work.source.relation.rows
        if work.backfill is not None and work.entry is not None:
            with tempfile.TemporaryDirectory(prefix="millrace-") as scratch, _engine(Path(scratch)) as engine:
                interval = work.backfill.interval
                side = lake_backfill.side_of(target, spec, work.entry, interval, engine, Path(scratch))
                equal = lake_backfill.same(work.backfill, side, snap)
            if equal:
                return Freshness(True, "the interval is equal", 0)
            return Freshness(False, "the interval differs", None, PUBLISHES[work.how], proves)
        position = work.entry.position if work.entry is not None else None
        if (
            isinstance(position, Whole)
            and position.digest is not None
            and work.how in ("replace", "upsert", "snapshot")
            and work.reason in ("the source changed", "append adds what is there")
        ):
            written = touched(work.source, position, snap)
            if written == "no":
                return Freshness(True, UNTOUCHED, 0)
            if written == "unknown" and _whole_digest(work.source, snap) == position.digest:
                return Freshness(True, "source digest unchanged", 0)
    return Freshness(False, work.reason, rows, PUBLISHES[work.how], proves)


# --- staging -------------------------------------------------------------------------------------------------------


def stage(spec: CopySpec, reader: PostgresReader, target: LakeTarget, step: Step, ctx: Context) -> tuple[Staged, ...]:
    """Bring the rows into files that no reader looks at yet.

    Raises:
        ContractBroken: rows that Arrow or Delta cannot hold; names columns, how many and examples. Or columns changed
            that the contract freezes, or more rows break it than it allows.
        KeyInvalid: no key, a null in it, or the same key twice.
        GuardRefused: the target would lose more rows than `max_delete` allows, or is not ours.
        Interrupted: Ctrl-C; what was staged whole is kept.
    """
    _require()
    # before the snapshot: a publish in between then moves the seq, and an older snapshot cannot replace a newer one
    entry = target.ledger(spec.asset)
    with reader.snapshot(READING, shared=spec.snapshot) as snap:
        work = _look(spec, reader, target, snap, entry, step.spec.get("contract") or {})
        source = _keyed(spec, work, snap, ctx)
        if work.discarded:
            ctx.report.note(f"left out by the contract: {', '.join(work.discarded)}")
        for said in lost(source, snap.connection):
            ctx.report.note(said)
        if spec.tracked is not None and (odd := misplaced(snap.connection, work.base, spec.tracked)):
            ctx.report.note(odd)
        position = _position(spec, reader, work, snap, moment(ctx.logical_time))
        request = StageRequest(
            asset=spec.asset,
            load=ctx.load,
            run=ctx.run,
            step=step.key,
            base=0 if work.entry is None else work.entry.seq,
            how=work.how,
            schema=work.schema,
            inputs={},
            code=step.code,
            date=ctx.logical_time[:10] if step.dated else None,
        )
        sieve = sieve_of(step, spec.asset, work.schema.key, ctx, work.entry, values=True)
        if work.how == "interval" and work.backfill is not None and work.entry is not None:
            asked = replace(request, how="upsert")
            with _engine(ctx.scratch()) as engine:
                changed = lake_backfill.stage(
                    spec, reader, target, asked, work.backfill, work.entry, snap, ctx, sieve, engine
                )
            return tuple(_noted(one, step, ctx) for one in changed)
        if spec.mode == "snapshot" and isinstance(position, Whole):
            with _engine(ctx.scratch()) as engine:
                versions, whole = lake_history.stage(
                    spec, reader, target, request, source, position, work.entry, snap, ctx, engine
                )
            _check_count(spec, whole.rows, source, snap)
            return versions
        opened = target.open_stage(request, replace=spec.replace)
        if work.how == "upsert":
            merged = _merge(spec, reader, target, request, opened, work, source, position, snap, ctx, sieve)
            return (_noted(merged, step, ctx),)
        unfit = None if sieve is None else Unfit(source, work.schema.key)
        expected = _fill(spec, reader, opened, source, snap, ctx, unfit)
        total = Digest.sum(expected.values(), work.schema.shape)
        _check_count(spec, total.rows, source, snap)
        if work.how == "replace":
            _guard_deletes(spec, work.entry, total.rows)
        if sieve is not None:
            with _engine(ctx.scratch()) as engine:
                sieve.stage(engine, opened, None if unfit is None else unfit.table())
        detail = None if work.backfill is None else lake_backfill.detail_of(work.backfill.interval, total)
        return (_noted(opened.close(_filled(position, total), expected, detail=detail), step, ctx),)


def _noted(staged: Staged, step: Step, ctx: Context) -> Staged:
    """Say what was set aside, where no checks are run that say it."""
    said = None if step.spec.get("checks") else set_aside(staged.detail.get("quarantine"))
    if said:
        ctx.report.note(said)
    return staged


def prove(target: LakeTarget, staged: Staged, scratch: Path) -> Proof:
    """Compare a stage with its source; of an interval and of versions also what the asset would hold of them.

    Raises:
        ProofFailed: they differ.
    """
    proof = target.prove(staged)
    if not {"interval", "versions"} & staged.detail.keys():
        return proof
    with _engine(scratch) as engine:
        if "versions" in staged.detail:
            return lake_history.prove(target, staged, proof, engine)
        return lake_backfill.prove(target, staged, proof, engine, scratch)


def _engine(scratch: Path) -> contextlib.closing[duckdb.DuckDBPyConnection]:
    """Return a connection of the embedded engine with little memory, to be closed."""
    from millrace.duck.engine import connect

    return contextlib.closing(connect(memory_limit=MERGE_MEMORY, scratch=scratch / "spill"))


def _position(spec: CopySpec, reader: PostgresReader, work: Work, snap: PostgresSnapshot, now: str) -> Position:
    """Return the position after this load; the digest of a whole load is filled in when it is known."""
    if spec.mode == "backfill":
        return lake_backfill.position_of(spec, work.entry)
    if spec.tracked is None:
        return Whole(None, snap.state, heap_of(work.source, snap))
    found = reader.cursor(work.base, spec.tracked, snap)
    if found.value is None and work.since is not None:  # the source was emptied
        found = replace(found, value=work.since.value)
    tail = _whole_digest(reader.changes(work.base, found, snap), snap)
    return replace(found, tail=tail, scrub=state_of(spec, work.since, now))


def _filled(position: Position, total: Digest) -> Position:
    if isinstance(position, Whole) and position.snapshot is not None:  # else it is of an interval only
        return replace(position, digest=total)
    return position


def _parts(spec: CopySpec, reader: PostgresReader, source: Source, snap: PostgresSnapshot) -> list[Segment]:
    parts = list(reader.segments(source, snap, None, spec.segment_rows))
    # Each hash bucket would scan the whole source again.
    return [Segment.whole(sum(part.rows for part in parts))] if parts[0].how == "bucket" else parts


def _fill(
    spec: CopySpec,
    reader: PostgresReader,
    opened: LakeStage,
    source: Source,
    snap: PostgresSnapshot,
    ctx: Context,
    unfit: Unfit | None,
) -> Mapping[SegmentId, Digest]:
    """Write all rows into the stage, except segments that a killed attempt left and that still agree."""
    segments = _parts(spec, reader, source, snap)
    ctx.report.total(sum(segment.rows for segment in segments) or None)
    done = opened.done()
    kept: dict[SegmentId, Digest] = {}
    if done:
        known = [segment for segment in segments if segment.id in done]
        now = dict(digest_segments(snap.connection, source, known))
        kept = {name: digest for name, digest in now.items() if digest == done[name]}
        opened.drop([name for name in done if name not in kept])
        if kept:
            ctx.report.note(f"{len(kept)} of {len(segments)} segments kept from an earlier attempt")
        ctx.report.moved(sum(digest.rows for digest in kept.values()), 0)
    todo = [segment for segment in segments if segment.id not in kept]
    found = Export(reader, source, snap, opened, ctx, spec.workers, unfit).run(todo)
    return {segment.id: kept[segment.id] if segment.id in kept else found[segment.id] for segment in segments}


def _merge(
    spec: CopySpec,
    reader: PostgresReader,
    target: LakeTarget,
    request: StageRequest,
    opened: LakeStage,
    work: Work,
    source: Source,
    position: Position,
    snap: PostgresSnapshot,
    ctx: Context,
    sieve: Sieve | None,
) -> Staged:
    """Bring the changed rows into a private folder and merge them by key."""
    everything = work.since is None
    segments = _parts(spec, reader, source, snap) if everything else [Segment("changes", "changes")]
    ctx.report.total(sum(segment.rows for segment in segments) or None)
    folder, dead = Folder(ctx.scratch(), opened), Folder(ctx.scratch(), opened, "deleted")
    unfit = None if sieve is None else Unfit(source, work.schema.key)
    expected = Export(reader, alive(source, spec.soft_delete), snap, folder, ctx, spec.workers, unfit).run(segments)
    if spec.soft_delete is not None and not everything:
        gone = source.narrowed(marked(source, spec.soft_delete))
        lost = None if sieve is None else Unfit(source, work.schema.key)  # of these only the key matters
        found_dead = Export(reader, gone, snap, dead, ctx, 1, lost).run(segments)
        dead.files += [] if lost is None else lost.keys(ctx.scratch() / "deleted-unfit.parquet", work.schema)
        _guard_marked(spec, work.entry, sum(digest.rows for digest in found_dead.values()))
    total = Digest.sum(expected.values(), work.schema.shape)
    if everything:
        _check_count(spec, total.rows, source, snap)
    elif spec.count is not None:
        ctx.report.note("the count query is compared only when everything is read")
    try:
        with _engine(ctx.scratch()) as engine:
            bad: pa.Table | None = None
            reopened: list[str] = []
            found = Scrubbed(None)
            if work.since is not None and work.entry is not None:
                found = scrub(
                    spec,
                    reader,
                    target,
                    work.base,
                    work.since,
                    work.entry,
                    snap,
                    folder,
                    engine,
                    ctx,
                    dead.files,
                    unfit,
                )
            if sieve is not None:
                again = bool(found.expected)
                older, rows = opened.quarantined(), None if unfit is None else unfit.table()
                bad, reopened = sieve.changes(engine, folder.files, work.schema, older, again=again, unfit=rows)
            if "scrub" in found.detail:
                ctx.report.note(found.detail["scrub"])
            if isinstance(position, Cursor) and found.state is not None:
                position = replace(position, scrub=found.state)
            return target.upsert(
                request,
                folder.files,
                work.schema,
                engine,
                position=_filled(position, total),
                expected={**expected, **found.expected},
                deletes=[*found.deletes, *map(str, dead.files)],
                detail=found.detail,
                bad=bad,
                reopened=reopened,
            )
    finally:
        for path in (*folder.files, *dead.files):
            path.unlink(missing_ok=True)


def _guard_deletes(spec: CopySpec, entry: LedgerEntry | None, rows: int) -> None:
    """Refuse when certainly more rows would go than allowed; which ones a replacement does not know."""
    if entry is None or entry.rows <= 0 or spec.allow_deletes:
        return
    lost = entry.rows - rows
    if lost > spec.max_delete * entry.rows:
        raise GuardRefused(
            f"{spec.asset} would lose {lost:,} of its {entry.rows:,} rows, more than max_delete {spec.max_delete:.0%}",
            hint="if that is meant, run again with --allow-deletes",
        )


def _guard_marked(spec: CopySpec, entry: LedgerEntry | None, rows: int) -> None:
    """Refuse when more rows are marked as deleted than allowed, where it is known how many there are."""
    if entry is not None and 0 < entry.rows * spec.max_delete < rows and not spec.allow_deletes:
        raise GuardRefused(
            f"{rows:,} changed rows of {spec.asset} are marked as deleted: of its {entry.rows:,} rows that would be "
            f"more than max_delete {spec.max_delete:.0%}",
            hint="if that is meant, run again with --allow-deletes",
        )


def _check_count(spec: CopySpec, rows: int, source: Source, snap: PostgresSnapshot) -> None:
    """Compare the author's count, in the same snapshot, with the rows read. Raises ProofFailed."""
    if spec.count is None or spec.mode == "backfill":
        return
    with translated(source.database, "run the count query", connection=snap.connection):
        found = snap.connection.execute(sql.Composed([author_select(spec.count)])).fetchone()
    counted = found[0] if found is not None and len(found) == 1 and isinstance(found[0], int) else None
    if counted != rows:
        raise ProofFailed(
            f"the count query says {'no number' if counted is None else f'{counted:,} rows'}, {rows:,} were read",
            where=str(spec.asset),
            detail=[spec.count],
            hint="count exactly the rows that the copy reads: the same condition, in one number",
        )


# --- keys ----------------------------------------------------------------------------------------------------------


def _keyed(spec: CopySpec, work: Work, snap: PostgresSnapshot, ctx: Context) -> Source:
    """Return the work's rows with one row for each key, where a key is needed.

    An incremental load of a source that keeps several versions of a row takes the newest by the cursor. It is chosen
    among all rows of the keys that changed, so that an old version that was committed late replaces nothing.

    Raises:
        KeyInvalid: a null in the key, or in other modes the same key twice.
    """
    needed = work.how == "upsert" or spec.mode in ("incremental", "backfill", "snapshot") or bool(spec.key)
    if not needed:
        return work.source
    key = work.base.pick(work.schema.key)
    if proven(work.base, key):
        return work.source
    if work.backfill is not None and spec.cursor is not None:
        if number := left_out(snap.connection, work.base, key):
            ctx.report.note(told(number, spec.cursor))
        return work.source
    if spec.mode != "incremental" or spec.cursor is None:
        check_key(snap.connection, work.source, work.schema.key)
        return work.source
    changes = None if work.since is None else work.source
    if number := left_out(snap.connection, work.base, key, changes):
        ctx.report.note(told(number, spec.cursor))
    found = newest(work.base, key, spec.cursor, changes)
    return found if changes is not None else alive(found, spec.soft_delete)
