"""The scrub of a lake's asset: parts of it are compared with the source, and what differs is read again.

Rows that changed since the position are left out on both sides: the load brings and proves them anyway. For the others
of each part D(source) = D(asset less fixed rows) + D(rows in quarantine) must hold. Where it does not, the part's
rows are read, and go the way of all changes: the upsert compares them value by value with what is there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from millrace.core import scrub as parts
from millrace.core.digest import Digest
from millrace.core.names import AssetId
from millrace.core.ports import Context
from millrace.core.position import Cursor
from millrace.core.scrub import Scrub
from millrace.core.segment import Segment, SegmentId
from millrace.core.staged import LedgerEntry
from millrace.errors import GuardRefused
from millrace.lake.sql import EVERY_ROW, Condition
from millrace.postgres.deletes import alive
from millrace.postgres.parts import any_of
from millrace.postgres.reader import PostgresReader, PostgresSnapshot, digest_segments
from millrace.postgres.source import Source
from millrace.steps.scrubbing import due, moment, split, state_of, unchanged
from millrace.steps.spec import CopySpec

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

    from millrace.core.schema import Schema
    from millrace.lake.target import LakeTarget
    from millrace.steps.routes.parquet import Folder
    from millrace.steps.routes.unfit import Unfit

READ = Segment("scrub", "changes")


@dataclass(frozen=True, slots=True)
class Scrubbed:
    """What a scrub found, and what the upsert has to do besides.

    Attributes:
        state: for the position after the load.
        expected: the source's digest of rows that were read again.
        deletes: files with keys of rows that the source has no more.
        detail: facts for proof and publish; `scrub` is one line for people.
    """

    state: Scrub | None
    expected: Mapping[SegmentId, Digest] = field(default_factory=dict)
    deletes: Sequence[str] = ()
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LakeSide:
    """An asset as its source should be: its files less fixed rows, with the rows in quarantine.

    Attributes:
        files: the asset's.
        fixes: a file with the rows that stand for replayed entries, or none.
        entries: a file with the rows in quarantine whose values are all there, or none.
        unfit: a file with the others and their digests, or none.
        only: which rows of them all are compared.
    """

    engine: duckdb.DuckDBPyConnection
    schema: Schema
    files: Sequence[str]
    fixes: Sequence[str]
    entries: Sequence[str]
    unfit: Sequence[str] = ()
    only: Condition = EVERY_ROW

    @property
    def aside(self) -> list[str]:
        """Files with the keys of all rows in quarantine."""
        return [*self.entries, *self.unfit]

    @classmethod
    def of(
        cls, target: LakeTarget, spec: CopySpec, entry: LedgerEntry, engine: duckdb.DuckDBPyConnection, scratch: Path
    ) -> LakeSide:
        """Return the asset at a load; the fixed rows are written into the scratch folder."""
        manifest = target.manifest(spec.asset, entry.seq)
        record = manifest.quarantine
        aside = None if record is None else target.folder(spec.asset).quarantine / record["file"]
        files = target.files(spec.asset, entry.seq)
        return cls.with_aside(engine, spec.asset, manifest.schema, files, aside, scratch)

    @classmethod
    def with_aside(
        cls,
        engine: duckdb.DuckDBPyConnection,
        asset: AssetId,
        schema: Schema,
        files: Sequence[str],
        aside: Path | None,
        scratch: Path,
    ) -> LakeSide:
        """Return some files with the rows of a quarantine's file; what it takes is written into the scratch folder."""
        if aside is None:
            return cls(engine, schema, files, (), ())
        from millrace.lake import quarantine, segments

        state = quarantine.read_file(aside, asset)
        fixes = [segments.write(scratch / "fixes.parquet", quarantine.fixes(state, schema))]
        given = quarantine.unfit(state)
        if not given.true_count:
            return cls(engine, schema, files, fixes, [str(aside)])
        import pyarrow.compute as pc

        entries = [segments.write(scratch / "entries.parquet", state.filter(pc.invert(given)))]
        kept = state.filter(given).select([*schema.names, quarantine.DIGEST])
        unfit = [segments.write(scratch / "unfit.parquet", kept)]
        return cls(engine, schema, files, fixes, entries, unfit)

    def digests(self, segments: Sequence[Segment], without: Sequence[str] = ()) -> dict[SegmentId, Digest]:
        """Digest segments, without the keys of some files."""
        found = self._digests(self.files, segments, without)
        if self.entries:
            less, more = (self._digests(files, segments, without) for files in (self.fixes, self.entries))
            given = self._given(segments, without)
            found = {name: digest - less[name] + more[name] + given[name] for name, digest in found.items()}
        return found

    def _given(self, segments: Sequence[Segment], without: Sequence[str]) -> dict[SegmentId, Digest]:
        from millrace.lake import segments as lake
        from millrace.lake.quarantine import DIGEST

        columns = (*self.schema.key, DIGEST)
        rows = lake.batches(self.engine, self.unfit, self.schema, columns, segments, without, self.only)
        return lake.sums(rows, DIGEST, self.schema, segments)

    def _digests(
        self, files: Sequence[str], segments: Sequence[Segment], without: Sequence[str]
    ) -> dict[SegmentId, Digest]:
        from millrace.lake import segments as lake

        rows = lake.batches(self.engine, files, self.schema, self.schema.names, segments, without, self.only)
        return lake.digests(rows, self.schema, segments)


def scrub(
    spec: CopySpec,
    reader: PostgresReader,
    target: LakeTarget,
    base: Source,
    since: Cursor,
    entry: LedgerEntry,
    snap: PostgresSnapshot,
    folder: Folder,
    engine: duckdb.DuckDBPyConnection,
    ctx: Context,
    dead: Sequence[Path] = (),
    unfit: Unfit | None = None,
) -> Scrubbed:
    """Compare the parts that are due; read those that differ into the folder that holds the changes.

    Args:
        dead: files with the keys of changed rows that the source marks as deleted.
        unfit: takes the rows that do not fit the lake; it has those that changed already.

    Raises:
        GuardRefused: more rows are gone at the source than `max_delete` allows.
    """
    from millrace.lake.prove import digest, hashable
    from millrace.lake.upsert import compared

    now = moment(ctx.logical_time)
    side = LakeSide.of(target, spec, entry, engine, ctx.scratch())
    schema, key = side.schema, side.schema.key
    state = state_of(spec, since, now)
    if state is None or not hashable(schema):
        return Scrubbed(state)
    state = split(state, spec, base, key, snap, entry.rows)
    numbers = due(spec, state, now)
    after = state.after(numbers, now)
    if not numbers:
        return Scrubbed(after)
    segments = state.segments()
    wanted = [segments[number] for number in numbers]
    rows = alive(unchanged(reader, base, key, since, snap), spec.soft_delete)
    unread = [] if unfit is None else unfit.keys(ctx.scratch() / "changed-unfit.parquet", schema)
    changes = [str(path) for path in (*folder.files, *dead, *unread)]  # and what they mark as deleted
    due_rows = rows.narrowed(any_of(wanted, base.pick(key)))  # by index, or at least hashed no further than the key
    ours = dict(digest_segments(snap.connection, due_rows, wanted, key))
    theirs = side.digests(wanted, changes)
    different = [segment for segment in wanted if ours[segment.id] != theirs[segment.id]]
    detail: dict[str, Any] = {"level": "table"} if len(numbers) == len(segments) else {}
    missing = changed = deleted = 0
    expected: Mapping[SegmentId, Digest] = {}
    gone: list[str] = []
    if different:
        expected, read = _read(reader, rows.narrowed(any_of(different, base.pick(key))), snap, folder, ctx, unfit)
        unread = [] if unfit is None else unfit.keys(ctx.scratch() / "read-unfit.parquet", schema)
        gone, deleted = keys_gone(side, different, [*changes, *read, *map(str, unread)], ctx.scratch())
        _guard(spec, entry, deleted)
        missing, changed = compared(engine, side.files, read, side.aside, schema)
        if missing or changed:  # the files may hold other rows than were published
            detail["found"] = digest([Path(path) for path in side.files], schema).to_json()
    detail["scrub"] = parts.told(len(numbers), len(segments), missing=missing, changed=changed, deleted=deleted)
    return Scrubbed(after, expected, gone, detail)


def _read(
    reader: PostgresReader,
    rows: Source,
    snap: PostgresSnapshot,
    folder: Folder,
    ctx: Context,
    unfit: Unfit | None,
) -> tuple[Mapping[SegmentId, Digest], list[str]]:
    """Read rows of the source into the folder; return their digest and the new files."""
    from millrace.steps.routes.parquet import Export

    before = len(folder.files)
    expected = Export(reader, rows, snap, folder, ctx, 1, unfit).run([READ])
    return expected, [str(path) for path in folder.files[before:]]


def keys_gone(
    side: LakeSide, segments: Sequence[Segment], without: Sequence[str], scratch: Path
) -> tuple[list[str], int]:
    """Return a file with the keys that the source has no more, and how many rows of the asset have them."""
    import pyarrow as pa

    from millrace.lake.segments import keys_in, write

    lost = keys_in(side.engine, side.files, side.schema, segments, without, side.only)
    settled = keys_in(side.engine, side.aside, side.schema, segments, without, side.only)
    keys: pa.Table = pa.concat_tables([lost, settled]).drop_null()
    if not keys.num_rows:
        return [], 0
    names = list(side.schema.key)
    keys = keys.group_by(names).aggregate([]).select(names).cast(keys.schema)
    return [write(scratch / "gone.parquet", keys)], lost.num_rows


def _guard(spec: CopySpec, entry: LedgerEntry, deleted: int) -> None:
    if entry.rows > 0 and deleted > spec.max_delete * entry.rows and not spec.allow_deletes:
        raise GuardRefused(
            f"{spec.asset} would lose {deleted:,} of its {entry.rows:,} rows, more than "
            f"max_delete {spec.max_delete:.0%}",
            detail=["the scrub found that they are gone at the source"],
            hint="if that is meant, run again with --allow-deletes",
        )
