"""The route from PostgreSQL to PostgreSQL: COPY bytes from server to server, every row proven by digests.

Four situations, told apart by `_look`:

- `create`: the target is missing. Heap-page ranges are copied at once from one snapshot into a hidden table.
- `sync`: it exists. Both sides are digested by key segments, one scan each; only segments that differ are copied.
- `merge`, `append`: there is a cursor's position. The rows since then are copied; `append` only adds.

What was staged by an attempt that died is kept where its digest still is the source's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from psycopg import sql

from millrace.core.digest import Digest
from millrace.core.names import fingerprint
from millrace.core.plan import Freshness, Step
from millrace.core.ports import Context, StageRequest
from millrace.core.position import Cursor, Position, Whole
from millrace.core.schema import Schema
from millrace.core.segment import Segment, SegmentId
from millrace.core.staged import Counts, LedgerEntry, Staged
from millrace.errors import Handling, Interrupted, MillraceError, ProofFailed
from millrace.postgres.catalog import Relation
from millrace.postgres.ddl import check_fit
from millrace.postgres.digest import row_hash
from millrace.postgres.keys import check_key, key_columns, proven
from millrace.postgres.names import sql_name
from millrace.postgres.newest import left_out, newest, told
from millrace.postgres.parts import Part, alone, gathered, joined
from millrace.postgres.publish import fits_of, refuse_deletes, refuse_first_contact
from millrace.postgres.reader import PostgresReader, PostgresSnapshot, digest_segments
from millrace.postgres.segments import key_hash, key_segments, page_segments
from millrace.postgres.session import Connection, translated
from millrace.postgres.source import Source, author_select
from millrace.postgres.stage import PostgresStage, schema_of
from millrace.postgres.target import PostgresTarget
from millrace.steps.routes.relay import Relay
from millrace.steps.spec import CopySpec

How = Literal["create", "sync", "merge", "append"]
FINER = 25  # segments that are compared are so much smaller than those that are copied: 10,000 rows
FETCH = 20_000  # rows of a server-side cursor's batch, of two integers each


@dataclass(frozen=True, slots=True)
class _Look:
    """One look at both sides: what is there and what has to be done.

    Attributes:
        base: all rows of the source.
        source: one row for each key: the rows that the target is to hold.
        since: the position from which changes are read; None: everything is.
    """

    spec: CopySpec
    reader: PostgresReader
    target: PostgresTarget
    snap: PostgresSnapshot
    base: Source
    source: Source
    key: tuple[str, ...]
    entry: LedgerEntry | None
    relation: Relation | None
    how: How
    since: Cursor | None

    @property
    def schema(self) -> Schema:
        return schema_of(self.source.columns, self.key)

    @property
    def seq(self) -> int:
        return self.entry.seq if self.entry else 0

    @property
    def there(self) -> Relation:
        """The existing target."""
        if self.relation is None:
            raise MillraceError(f"{self.spec.asset} does not exist", where=self.target.database.label)
        return self.relation

    @property
    def target_source(self) -> Source:
        """The target's rows, in the source's columns."""
        there = self.there
        return Source(str(there.ref), there.pick(self.source.names), there, database=self.target.database.label)

    @property
    def origin(self) -> str:
        """Fingerprint of what is staged: a stage of another origin cannot be resumed."""
        relation = self.base.relation
        return fingerprint(
            self.snap.server,
            self.snap.connection.info.dbname,
            "" if relation is None else str(relation.oid),
            json.dumps([self.spec.where, self.spec.select, list(self.key), self.how]),
            self.schema.fingerprint,
            "" if self.since is None else json.dumps(self.since.to_json()),
            "" if self.relation is None else fits_of(self.relation, self.source.names),
        )

    @property
    def versions(self) -> bool:
        """Whether the source may keep several versions of a row, of which the newest by the cursor is taken."""
        return self.source is not self.base

    def changes(self) -> Source:
        """Return the rows since the position, each version; without a position all rows."""
        return self.base if self.since is None else self.reader.changes(self.base, self.since, self.snap)

    def wanted(self) -> Source:
        """Return the rows to bring: those since the position, one for each key."""
        if self.since is None:
            return self.source
        changes = self.changes()
        return newest(self.base, self.base.pick(self.key), self.since.column, changes) if self.versions else changes

    def left_out(self) -> int:
        """Return how many versions of rows are not brought. Raises KeyInvalid for a null in their key."""
        if not self.versions:
            return 0
        changes = None if self.since is None else self.changes()
        return left_out(self.snap.connection, self.base, self.base.pick(self.key), changes)

    def compared(self, found: str) -> str:
        """Return what a comparison of everything found, with why it was made where changes were asked for."""
        entry, cursor = self.entry, self.spec.cursor
        if self.spec.mode == "full" or cursor is None or entry is None or isinstance(entry.position, Cursor):
            return found
        return f"no position by {sql_name(cursor)} yet, so all was compared: {found}"

    def position(self, whole: Digest | None) -> Position:
        """Return the position of what this snapshot holds.

        Args:
            whole: digest of the whole source, where everything was read.
        """
        if self.spec.mode == "full" or self.spec.cursor is None:
            return Whole(whole, self.snap.state)
        found = self.reader.cursor(self.base, self.spec.cursor, self.snap)
        tail = _whole(self.snap.connection, self.reader.changes(self.base, found, self.snap))
        return Cursor(found.column, found.value, found.snapshot, found.server, tail)


@contextmanager
def _look(spec: CopySpec, reader: PostgresReader, target: PostgresTarget) -> Iterator[_Look]:
    """Look at both sides, in a snapshot of the source that stays open in the block."""
    entry = target.ledger(spec.asset)
    relation = target.relation(spec.asset)
    with reader.snapshot() as snap:
        base = source = reader.source(spec.table, where=spec.where, select=spec.select, connection=snap.connection)
        key = key_columns(source, spec.key or source.key)
        if spec.cursor is not None and spec.mode != "full":
            source[spec.cursor]  # NotFound with the nearest name
            if spec.mode == "incremental" and not proven(source, key):
                source = newest(base, key, spec.cursor)
        since = _since(spec, entry) if relation is not None and _filled(target, relation) else None
        how: How = "sync"
        if relation is None:
            how = "create"
        elif spec.mode == "append":
            how = "append"
        elif since is not None or (spec.mode == "incremental" and spec.cursor is None):
            how = "merge"
        if relation is not None:
            check_fit(source.columns, relation, label=target.database.label)
        names = tuple(column.name for column in key)
        yield _Look(spec, reader, target, snap, base, source, names, entry, relation, how, since)


def _filled(target: PostgresTarget, relation: Relation) -> bool:
    """Say whether a table has rows: changes since a position are worth nothing to one that was emptied."""
    with (
        target.connect("look") as there,
        translated(target.database.label, f"look into {relation.ref}", connection=there),
    ):
        return there.execute(sql.SQL("select from {} limit 1").format(relation.identifier)).fetchone() is not None


def _since(spec: CopySpec, entry: LedgerEntry | None) -> Cursor | None:
    position = entry.position if entry is not None else None
    if spec.mode == "full" or spec.full_refresh or spec.cursor is None or not isinstance(position, Cursor):
        return None
    return position if position.column == spec.cursor else None


def _whole(connection: Connection, source: Source) -> Digest:
    """Digest all rows of a source in the connection's transaction."""
    whole = Segment.whole()
    return dict(digest_segments(connection, source, [whole]))[whole.id]


def _both(look: _Look, segments: Sequence[Segment]) -> tuple[Mapping[SegmentId, Digest], Mapping[SegmentId, Digest]]:
    """Digest segments on both sides at the same time."""
    with ThreadPoolExecutor(1, thread_name_prefix="millrace-digest") as pool, look.target.connect("digest") as there:
        theirs = pool.submit(lambda: dict(digest_segments(there, look.target_source, segments, look.key)))
        ours = dict(digest_segments(look.snap.connection, look.source, segments, look.key))
        return ours, theirs.result()


# freshness


PUBLISHES = {
    "create": "new table, renamed in place",
    "sync": "rows that differ",
    "merge": "merge",
    "append": "insert",
}
PROVES = {
    "create": "transfer, table",
    "sync": "transfer, table",
    "merge": "transfer, applied",
    "append": "transfer, applied",
}


def fresh(spec: CopySpec, reader: PostgresReader, target: PostgresTarget) -> Freshness:
    """Say whether the target already is what a run would make of it.

    Raises:
        KeyInvalid, NotFound, ContractBroken, PermissionMissing: what would also stop the run.
    """
    with _look(spec, reader, target) as look:
        rows = look.base.relation.rows if look.base.relation is not None else None

        def answer(is_fresh: bool, reason: str, moves: int | None = rows) -> Freshness:
            return Freshness(is_fresh, reason, moves, PUBLISHES[look.how], PROVES[look.how])

        if look.relation is None:
            return answer(False, "never published" if look.entry is None else "the target table is missing")
        if look.entry is None:
            return answer(False, "never published")
        if spec.full_refresh:
            return answer(False, "full refresh")
        if look.since is not None:
            found, moves = reader.moved(look.base, look.since, look.snap)
            if found == look.since.tail:
                return answer(True, "nothing changed", 0)
            return answer(False, f"since {look.since.value}", moves)
        wanted = Whole if spec.mode == "full" or spec.cursor is None else Cursor
        if not isinstance(look.entry.position, wanted):
            return answer(False, "the mode changed")
        whole = Segment.whole()
        ours, theirs = _both(look, [whole])
        if ours[whole.id] == theirs[whole.id]:
            return answer(True, "source digest unchanged", 0)
        position = look.entry.position
        if look.how != "sync" and isinstance(position, Whole) and position.digest == ours[whole.id]:
            return answer(True, "source digest unchanged", 0)
        return answer(False, "source and target differ")


# staging


def stage(
    spec: CopySpec, reader: PostgresReader, target: PostgresTarget, step: Step, ctx: Context
) -> tuple[Staged, ...]:
    """Copy what the target lacks to where no reader looks.

    Returns:
        One stage; or () when there is nothing to publish.

    Raises:
        TargetBusy: a live run is at the same table.
        GuardRefused: the target has rows of somebody else's.
        Interrupted: what was staged can be resumed.
        MillraceError: everything else that stops a copy; nothing is left then.
    """
    with _look(spec, reader, target) as look:
        if look.relation is not None:
            _check_target(look)
        if (number := look.left_out()) and spec.cursor is not None:
            ctx.report.note(told(number, spec.cursor))
        request = StageRequest(
            asset=spec.asset,
            load=ctx.load,
            run=ctx.run,
            step=step.key,
            base=look.seq,
            how=look.how,
            schema=look.schema,
            inputs={},
            code=step.code,
            date=ctx.logical_time[:10] if step.dated else None,
        )
        opened = target.open_stage(request, look.source.columns, look.snap.connection, origin=look.origin)
        try:
            staged = _fill(look, opened, request, ctx)
        except BaseException as error:
            target.forget(opened)
            if _worthless(error):
                opened.discard()
            else:
                opened.release()
            raise
        if staged is None or staged.how == "position":
            target.forget(opened)
            opened.discard()
        return () if staged is None else (staged,)


def _worthless(error: BaseException) -> bool:
    """Say whether what was staged is of no use to a later attempt."""
    return isinstance(error, MillraceError) and error.handling is Handling.FATAL and not isinstance(error, Interrupted)


def _check_target(look: _Look) -> None:
    """The guards that need no digest."""
    with look.target.connect("check") as connection:
        label = look.target.database.label
        if look.entry is None and not look.spec.replace:
            with translated(label, f"look into {look.there.ref}", connection=connection):
                refuse_first_contact(connection, look.there, label)
        check_key(connection, look.target_source, look.key)


def _fill(look: _Look, opened: PostgresStage, request: StageRequest, ctx: Context) -> Staged | None:
    if look.how == "create":
        return _first(look, opened, ctx)
    if look.since is not None:
        return _since_position(look, opened, ctx)
    return _differing(look, opened, request, ctx)


def _first(look: _Look, opened: PostgresStage, ctx: Context) -> Staged:
    """Copy everything into the new table."""
    segments = opened.plan
    if segments is None:
        segments = _parts(look)
        opened.planned(segments)
    relay = Relay(look.reader, look.snap, look.source, look.key, opened, ctx, look.spec.workers, new=True)
    expected = relay.run(alone(segments))
    whole = Digest.sum(expected.values(), look.schema.shape)
    _check_count(look, whole.rows)
    return opened.close(look.position(whole), expected)


def _parts(look: _Look) -> list[Segment]:
    source, rows = look.source, look.spec.segment_rows
    if source.paged and source.relation is not None:
        return page_segments(source.relation, rows)
    parts = key_segments(look.snap.connection, source, source.pick(look.key), rows)
    # Buckets would read a view or a query once for each of them.
    return parts if parts[0].how == "range" else [Segment.whole()]


def _since_position(look: _Look, opened: PostgresStage, ctx: Context) -> Staged:
    """Copy the rows since the position."""
    relay = Relay(look.reader, look.snap, look.wanted(), look.key, opened, ctx, 1)
    expected = relay.run(alone([Segment("changes", "changes")]))
    if look.spec.count is not None:
        ctx.report.note("the count query is compared only when everything is read")
    return opened.close(look.position(None), expected, **_detail(look))


def _differing(look: _Look, opened: PostgresStage, request: StageRequest, ctx: Context) -> Staged | None:
    """Copy the segments that differ; when none does, only the position moves, if that."""
    segments = opened.plan
    if segments is None:
        segments = _fine(look)
        opened.planned(segments)
    ours, theirs = _both(look, segments)
    whole = Digest.sum(ours.values(), look.schema.shape)
    _check_count(look, whole.rows)
    different = [segment for segment in segments if ours[segment.id] != theirs[segment.id]]
    if not different:
        return _position_only(look, request, whole, ctx)
    ctx.report.note(look.compared(f"{len(different)} of {len(segments)} segments differ"))
    relay = Relay(look.reader, look.snap, look.source, look.key, opened, ctx, look.spec.workers)
    parts = gathered(different, look.spec.segment_rows, look.spec.workers)
    form = look.schema.shape
    known = {part.id: Digest.sum((ours[segment.id] for segment in part.segments), form) for part in parts}
    expected = relay.run(parts, known)
    segments = [Segment.whole()] if len(different) == len(segments) else joined(different)
    detail = {"segments": [segment.to_json() for segment in segments], "whole": whole.to_json()}
    return opened.close(look.position(whole), expected, **detail, **_detail(look))


def _fine(look: _Look) -> list[Segment]:
    """Split by key, finely: one grouped scan digests many segments as fast as few, and less is copied."""
    rows = max(1, look.spec.segment_rows // FINER)
    return key_segments(look.snap.connection, look.source, look.source.pick(look.key), rows)


def _detail(look: _Look) -> dict[str, Any]:
    """Return what the publish has to know of guards and of the target as it was seen."""
    return {
        "fits": fits_of(look.there, look.source.names),
        "replace": look.spec.replace,
        "max_delete": None if look.spec.allow_deletes else look.spec.max_delete,
    }


def _position_only(look: _Look, request: StageRequest, whole: Digest, ctx: Context) -> Staged | None:
    position = look.position(whole)
    before = look.entry.position if look.entry is not None and look.entry.code == request.code else None
    if isinstance(before, Whole) and isinstance(position, Whole) and before.digest == position.digest:
        ctx.report.note("nothing changed")
        return None
    ctx.report.note(look.compared("no row differs; only the position is published"))
    return Staged(
        asset=request.asset,
        load=request.load,
        run=request.run,
        step=request.step,
        target=look.target.name,
        base=request.base,
        how="position",
        place=str(look.there.ref),
        schema=request.schema,
        position=position,
        expected={"all": whole},
        code=request.code,
        date=request.date,
        detail={"fits": fits_of(look.there, look.source.names), "level": "table"},
    )


def _check_count(look: _Look, rows: int) -> None:
    """Compare the author's count, in the same snapshot, with the rows read. Raises ProofFailed."""
    if look.spec.count is None:
        return
    query = sql.Composed([author_select(look.spec.count)])
    with translated(look.source.database, "run the count query", connection=look.snap.connection):
        found = look.snap.connection.execute(query).fetchone()
    try:
        counted = int(found[0]) if found is not None and len(found) == 1 else -1
    except (TypeError, ValueError):
        counted = -1
    if counted != rows:
        raise ProofFailed(
            f"the count query says {'no number' if counted < 0 else f'{counted:,} rows'}, {rows:,} were read",
            where=str(look.spec.asset),
            detail=[look.spec.count],
            hint="count exactly the rows that the copy reads: the same condition, in one number",
        )


# dry run


def dry_run(spec: CopySpec, reader: PostgresReader, target: PostgresTarget) -> Counts:
    """Count what a run would insert, update and delete; nothing is changed, no ledger is made.

    Raises:
        GuardRefused: a run would delete more than max_delete allows.
        KeyInvalid: a null in the key of a source that may keep several versions of a row.
    """
    with _look(spec, reader, target) as look:
        look.left_out()
        if look.relation is None:
            found = look.snap.connection.execute(look.source.select([sql.SQL("pg_catalog.count(*)")])).fetchone()
            return Counts(inserted=found[0] if found else 0)
        with target.connect("dry run") as there:
            if look.since is not None:
                return _compare(look, there)
            segments = _fine(look)
            ours, theirs = _both(look, segments)
            total = Counts()
            different = [segment for segment in segments if ours[segment.id] != theirs[segment.id]]
            scans = -(-sum(segment.rows for segment in different) // spec.segment_rows)  # of what fits into memory
            for part in gathered(different, spec.segment_rows, scans):
                one = _compare(look, there, part)
                total = Counts(total.inserted + one.inserted, total.updated + one.updated, total.deleted + one.deleted)
            if total.deleted and not spec.allow_deletes:
                before = sum(digest.rows for digest in theirs.values())
                refuse_deletes(spec.asset.layer, spec.asset.name, total.deleted, before, spec.max_delete)
            return total


def _compare(look: _Look, there: Connection, part: Part | None = None) -> Counts:
    """Compare row hashes by key hash, of one part or of the changes."""
    left, right = look.wanted(), look.target_source
    where = None if part is None else part.predicate(look.source.pick(look.key))
    where_there = None if part is None else part.predicate(right.pick(look.key))
    wanted = dict(_hashes(look.snap.connection, left, look.key, where, "ours"))
    inserted, updated, deleted = len(wanted), 0, 0
    with there.transaction():
        for key, row in _hashes(there, right, look.key, where_there, "theirs"):
            found = wanted.get(key)
            if found is None:
                deleted += 1
            else:
                inserted -= 1
                updated += found != row
    if look.how == "append":
        updated = 0
    return Counts(inserted, updated, deleted if look.how == "sync" else 0)


def _hashes(
    connection: Connection, source: Source, key: Sequence[str], where: sql.Composable | None, name: str
) -> Iterator[tuple[int, int]]:
    query = source.select([key_hash(source.pick(key)), row_hash(source.columns)], where)
    with (
        translated(source.database, f"compare {source.label}", connection=connection),
        connection.cursor(f"millrace_{name}") as cursor,
    ):
        cursor.itersize = FETCH
        yield from cursor.execute(query)
