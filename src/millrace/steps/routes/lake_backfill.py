"""A backfill into the lake: an interval of the cursor becomes equal to the source's, deletes included.

Both sides digest the interval's rows by key segments; of those that differ the rows are read, and go the way of all
changes: the upsert compares them value by value with what is there. A row that stands in the asset's interval and not
in the source's is brought as it is there now, wherever its cursor is; only what the source has no more is deleted. The
interval as it would be after the publish is digested once more, in the proof.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from psycopg import sql

from millrace.core.digest import Digest
from millrace.core.ports import Context, StageRequest
from millrace.core.position import Position, Whole
from millrace.core.segment import Segment, SegmentId
from millrace.core.staged import LedgerEntry, Proof, Staged
from millrace.errors import GuardRefused, ProofFailed
from millrace.lake.intervals import Interval
from millrace.postgres.apply import refuse_deletes
from millrace.postgres.cursors import FORMATS, is_text
from millrace.postgres.deletes import alive
from millrace.postgres.newest import newest
from millrace.postgres.parts import any_of
from millrace.postgres.reader import PostgresReader, PostgresSnapshot, digest_segments
from millrace.postgres.segments import key_hash, key_segments
from millrace.postgres.source import Source
from millrace.steps.routes.lake_scrub import LakeSide, keys_gone
from millrace.steps.routes.parquet import Export, Folder
from millrace.steps.routes.postgres_backfill import MOST
from millrace.steps.routes.unfit import Unfit
from millrace.steps.spec import CopySpec

if TYPE_CHECKING:
    import duckdb

    from millrace.core.schema import Schema
    from millrace.lake.target import LakeTarget
    from millrace.steps.sieve import Sieve

FINER = 25  # segments that are compared are so much smaller than those that are copied: 10,000 rows


@dataclass(frozen=True, slots=True)
class Backfill:
    """One interval at the source.

    Attributes:
        interval: as the lake understands it.
        everywhere: one row for each key, without those marked as deleted.
        inside: those of them in the interval.
    """

    interval: Interval
    everywhere: Source
    inside: Source


def backfill_of(
    spec: CopySpec, base: Source, key: Sequence[str], snap: PostgresSnapshot, *, versions: bool
) -> Backfill:
    """Return the interval that a copy is told.

    Args:
        spec: of the copy; it has a cursor.
        base: all rows, with the cursor's rule.
        key: key columns.
        snap: the source's snapshot.
        versions: whether the source may keep several versions of a row; the newest by the cursor is taken.

    Raises:
        UsageError: the interval is empty, or the cursor's type does not know its bounds.
    """
    column = base[spec.tracked or ""]
    start, end = base.rule.check_interval(snap.connection, column, spec.start, spec.end)
    pattern = FORMATS[spec.cursor_format] if is_text(column) and spec.cursor_format is not None else None
    interval = Interval(column.name, start, end, pattern)
    everywhere = alive(newest(base, base.pick(key), column.name) if versions else base, spec.soft_delete)
    inside = everywhere.narrowed(base.rule.between(column, spec.start, spec.end))
    return Backfill(interval, everywhere, inside)


def position_of(spec: CopySpec, entry: LedgerEntry | None) -> Position:
    """Return the position of an incremental copy as it stands; it is open where there is none under these options."""
    return Whole() if entry is None or spec.full_refresh else entry.position


def side_of(
    target: LakeTarget,
    spec: CopySpec,
    entry: LedgerEntry,
    interval: Interval,
    engine: duckdb.DuckDBPyConnection,
    scratch: Path,
) -> LakeSide:
    """Return the interval of the asset. Raises UsageError where the lake cannot tell it."""
    side = LakeSide.of(target, spec, entry, engine, scratch)
    return replace(side, only=interval.condition(side.schema))


def same(found: Backfill, side: LakeSide, snap: PostgresSnapshot) -> bool:
    """Say whether the interval is equal on both sides: one digest of each."""
    whole = Segment.whole()
    ours = dict(digest_segments(snap.connection, found.inside, [whole]))
    return ours == side.digests([whole])


def detail_of(interval: Interval, source: Digest) -> Mapping[str, object]:
    """Return what the proof of an interval has to know, as JSON types."""
    return {"interval": {**asdict(interval), "source": source.to_json()}}


def stage(
    spec: CopySpec,
    reader: PostgresReader,
    target: LakeTarget,
    request: StageRequest,
    found: Backfill,
    entry: LedgerEntry,
    snap: PostgresSnapshot,
    ctx: Context,
    sieve: Sieve | None,
    engine: duckdb.DuckDBPyConnection,
) -> tuple[Staged, ...]:
    """Stage what differs in the interval; nothing when it is equal.

    Raises:
        GuardRefused: more of its rows are gone at the source than `max_delete` allows.
    """
    key = request.schema.key
    side = side_of(target, spec, entry, found.interval, engine, ctx.scratch())
    segments = key_segments(snap.connection, found.inside, found.inside.pick(key), max(1, spec.segment_rows // FINER))
    ours = dict(digest_segments(snap.connection, found.inside, segments, key))
    theirs = side.digests(segments)
    different = [segment for segment in segments if ours[segment.id] != theirs[segment.id]]
    if not different:
        ctx.report.note("the interval is equal")
        return ()
    word = "differs" if len(different) == 1 else "differ"
    ctx.report.note(f"{len(different)} of {len(segments)} segments {word}")
    source = Digest.sum(ours.values(), request.schema.shape)
    opened = target.open_stage(request)
    folder = Folder(ctx.scratch(), opened)
    try:
        rows = found.inside.narrowed(any_of(different, found.inside.pick(key)))
        unfit = None if sieve is None else Unfit(rows, key)
        read = Export(reader, rows, snap, folder, ctx, spec.workers, unfit).run([Segment("interval", "changes")])
        moved, gone, deleted = _lost(reader, found, side, different, snap, folder, ctx, unfit)
        if not spec.allow_deletes:
            before = sum(digest.rows for digest in theirs.values())
            refuse_deletes(spec.asset.layer, spec.asset.name, deleted, before, spec.max_delete)
        bad, reopened = None, list[str]()
        if sieve is not None:  # what lies in quarantine is read again
            older, aside = opened.quarantined(), None if unfit is None else unfit.table()
            bad, reopened = sieve.changes(engine, folder.files, request.schema, older, again=True, unfit=aside)
        staged = target.upsert(
            request,
            folder.files,
            request.schema,
            engine,
            position=position_of(spec, entry),
            expected={**read, **moved},
            deletes=gone,
            detail=detail_of(found.interval, source),
            bad=bad,
            reopened=reopened,
        )
        return (staged,)
    finally:
        for path in folder.files:
            path.unlink(missing_ok=True)


def _lost(
    reader: PostgresReader,
    found: Backfill,
    side: LakeSide,
    segments: Sequence[Segment],
    snap: PostgresSnapshot,
    folder: Folder,
    ctx: Context,
    unfit: Unfit | None,
) -> tuple[Mapping[SegmentId, Digest], list[str], int]:
    """Read what has left the interval at the source as it is there now.

    Returns:
        The digest of those rows; files with the keys that the source has no more; how many rows of the asset have them.

    Raises:
        GuardRefused: there are too many such keys to ask for.
    """

    def read() -> list[str]:
        aside = [] if unfit is None else unfit.keys(ctx.scratch() / "read-unfit.parquet", side.schema)
        return [str(path) for path in (*folder.files, *aside)]

    lost, number = keys_gone(side, segments, read(), ctx.scratch())
    if number > MOST:
        raise GuardRefused(
            f"more than {MOST:,} rows of the interval are not in it at the source",
            where=found.inside.label,
            hint="backfill shorter intervals, or compare everything with --full-refresh",
        )
    if not lost:
        return {}, [], 0
    key = found.everywhere.pick(side.schema.key)
    one_of_them = sql.SQL("{} = any({})").format(key_hash(key), sql.Literal(_hashes(lost[0], side.schema)))
    # a key with the hash of another one brings a row that the source has too
    rows = found.everywhere.narrowed(any_of(segments, key)).narrowed(one_of_them)
    moved = Export(reader, rows, snap, folder, ctx, 1, unfit).run([Segment("moved", "changes")])
    gone, deleted = keys_gone(side, segments, read(), ctx.scratch())
    return moved, gone, deleted


def _hashes(path: str, schema: Schema) -> list[int]:
    """Return the hashes of a file's keys, as the server makes them."""
    import pyarrow.parquet as pq

    from millrace.lake.rowhash import record_hashes
    from millrace.lake.segments import key_of

    batches = pq.read_table(path).to_batches(max_chunksize=65_536)
    return [int(one) for batch in batches for one in record_hashes(batch, key_of(schema)).view("<i8").tolist()]


# the proof


def prove(target: LakeTarget, staged: Staged, proof: Proof, engine: duckdb.DuckDBPyConnection, scratch: Path) -> Proof:
    """Digest the interval as it would be after the publish, and compare it with the source's at its snapshot.

    Raises:
        ProofFailed: they differ.
    """
    told = dict(staged.detail["interval"])
    wanted = Digest.from_json(told.pop("source"))
    side = _after(target, staged, engine, scratch)
    whole = Segment.whole()
    found = replace(side, only=Interval(**told).condition(staged.schema)).digests([whole])[whole.id]
    if found != wanted:
        raise ProofFailed(
            f"{staged.asset}: the interval would not be what the source holds",
            where=staged.place,
            detail=[
                f"source: {wanted.rows:,} rows, digest {wanted.total}",
                f"lake after the publish: {found.rows:,} rows, digest {found.total}",
            ],
            hint="nothing was published",
        )
    return replace(proof, level="applied")


def _after(target: LakeTarget, staged: Staged, engine: duckdb.DuckDBPyConnection, scratch: Path) -> LakeSide:
    """Return the asset as it would be, with the rows that would lie in quarantine."""
    record = staged.detail.get("quarantine")
    if record is None and staged.base:
        record = target.manifest(staged.asset, staged.base).quarantine
    name = None if record is None else record["file"]
    aside = None if name is None else target.folder(staged.asset).quarantine / name
    return LakeSide.with_aside(engine, staged.asset, staged.schema, target.staged_files(staged), aside, scratch)
