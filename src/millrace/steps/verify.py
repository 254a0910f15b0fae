"""The step kind `verify`: a copy's whole table is compared with its source now, and nothing is copied.

Equal tables are published as a new load of nothing but the position: it says that every part was compared. The proof
digests the target once more. Tables that differ stop the step; what differs is kept in `found`, for who asked.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from millrace.core.digest import Digest
from millrace.core.names import AssetId
from millrace.core.plan import Freshness, Step
from millrace.core.ports import Context, StageRequest, Target
from millrace.core.position import Cursor, Position, Whole
from millrace.core.schema import Schema
from millrace.core.segment import Segment
from millrace.core.staged import LedgerEntry, Proof, Staged
from millrace.errors import NotFound, ProofFailed, TablesDiffer, UsageError
from millrace.postgres.apply import fits_of
from millrace.postgres.deletes import alive
from millrace.postgres.diff import Half, TableDiff, diff_halves
from millrace.postgres.keys import key_columns, proven
from millrace.postgres.newest import newest
from millrace.postgres.reader import PostgresReader, PostgresSnapshot, digest_segments
from millrace.postgres.source import Source
from millrace.postgres.target import PostgresTarget
from millrace.steps.resources import Resources
from millrace.steps.routes.fitting import fitted
from millrace.steps.routes.postgres_look import look_at
from millrace.steps.scrubbing import moment, state_of
from millrace.steps.spec import CopySpec

if TYPE_CHECKING:
    from millrace.steps.routes.lake_scrub import LakeSide

MODES = ("full", "incremental", "truncate", "snapshot")


class VerifyStep:
    """Verifies copies. `spec` holds `copy` and `contract`, as the copy's own step, and `limit`: most rows to keep.

    Attributes:
        found: what was compared, by asset.
    """

    kind: ClassVar[str] = "verify"

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self.found: dict[AssetId, TableDiff] = {}

    def fresh(self, step: Step, ctx: Context) -> Freshness:
        """Somebody asked for it."""
        return Freshness(False, "asked for")

    def stage(self, step: Step, ctx: Context) -> tuple[Staged, ...]:
        """Compare; stage the position when every row is equal.

        Raises:
            NotFound: the copy was never published.
            UsageError: tables of its mode cannot be compared with their source.
            TablesDiffer: they do.
        """
        spec, target = CopySpec.from_json(step.spec["copy"]), ctx.target(step.target)
        entry = target.ledger(spec.asset)
        if entry is None:
            raise NotFound(f"{spec.asset} was never published", hint=f"millrace run --select {spec.asset}")
        if what := refusal(spec):
            raise UsageError(f"{spec.asset} cannot be verified: its source does not hold all of its rows ({what})")
        reader = self._resources.reader(spec.source)
        if isinstance(target, PostgresTarget):
            staged, found = _postgres(spec, reader, target, entry, step, ctx)
        else:
            staged, found = _lake(self._resources, spec, reader, target, entry, step, ctx)
        self.found[spec.asset] = found
        if not found.same:
            raise differs(spec.asset, found)
        late = f"{found.behind:,} {'row' if found.behind == 1 else 'rows'} changed at the source since the last load"
        ctx.report.note(late if found.behind else "every row equals the source")
        return () if staged is None else (staged,)

    def prove(self, step: Step, staged: Sequence[Staged], ctx: Context) -> tuple[Proof, ...]:
        """Digest the target again. Raises ProofFailed."""
        target = ctx.target(step.target)
        if isinstance(target, PostgresTarget):
            return tuple(target.prove(one) for one in staged)
        return tuple(self._prove_lake(step, one, target, ctx) for one in staged)

    def _prove_lake(self, step: Step, staged: Staged, target: Target, ctx: Context) -> Proof:
        spec, entry = CopySpec.from_json(step.spec["copy"]), target.ledger(staged.asset)
        wanted = Digest.from_json(staged.detail["source"])
        with _side(self._resources, spec, target, entry, ctx) as side:
            whole = Segment.whole()
            if entry is None or entry.seq != staged.base or side.digests([whole])[whole.id] != wanted:
                raise ProofFailed(f"{staged.asset} was changed while it was verified", hint="verify it again")
        return replace(target.prove(staged), level="table")


def refusal(spec: CopySpec) -> str:
    """Return why a copy's target holds rows that its source has no more, or nothing where it does not."""
    if spec.files is not None:
        return "it is copied from files"
    if spec.mode == "incremental" and spec.cursor is None:
        return "incremental without a cursor deletes nothing"
    return "" if spec.mode in MODES else f"mode {spec.mode}"


def differs(asset: AssetId, found: TableDiff) -> TablesDiffer:
    """Return the error for a table that is not its source."""
    counts = ((found.only_left, "missing"), (found.differing, "changed"), (found.only_right, "not at the source"))
    told = ", ".join(f"{number:,} {'row' if number == 1 else 'rows'} {what}" for number, what in counts if number)
    columns = ", ".join((*found.missing_left, *found.missing_right))
    return TablesDiffer(
        f"{asset} is not its source: {told or f'columns {columns} are on one side only'}",
        where=found.right,
        hint=f"make it equal: millrace verify {shlex.quote(str(asset))} --repair",
    )


def _position(spec: CopySpec, entry: LedgerEntry, ctx: Context) -> Position:
    """Return the position as it stands, every part compared now."""
    position = entry.position
    if not isinstance(position, Cursor):
        return position
    now = moment(ctx.logical_time)
    state = state_of(spec, position, now)
    return position if state is None else replace(position, scrub=state.after(range(len(state.proven)), now))


def _postgres(
    spec: CopySpec, reader: PostgresReader, target: PostgresTarget, entry: LedgerEntry, step: Step, ctx: Context
) -> tuple[Staged | None, TableDiff]:
    with look_at(spec, reader, target, entry) as look, PostgresReader(target.database).snapshot() as snap:
        if look.relation is None:
            raise NotFound(f"{spec.asset} is missing in {target.database.label}", hint="copy it again")
        left = Half(reader, look.snap, look.source)
        right = Half(PostgresReader(target.database), snap, look.target_source)
        # rows at the boundary are looked at by every load: they changed only where their digest did
        still = look.since is None or reader.moved(look.base, look.since, look.snap)[0] == look.since.tail
        changes = None if still else look.changes()
        found = diff_halves(left, right, look.key, step.spec["limit"], changes=changes)
        if not found.same or found.behind:
            return None, found
        whole = Segment.whole()
        digests = left.digests([whole], ())
        position = _position(spec, entry, ctx)
        if spec.mode == "full" and look.how == "sync":  # all was read: what the next copy may go on from
            read = look.position(digests[whole.id])
            position = replace(read, read=moment(ctx.logical_time)) if isinstance(read, Whole) else position
        staged = Staged(
            asset=spec.asset,
            load=ctx.load,
            run=ctx.run,
            step=step.key,
            target=target.name,
            base=entry.seq,
            how="position",
            place=str(look.there.ref),
            schema=look.schema,
            position=position,
            expected=digests,
            code=entry.code,
            date=entry.date,
            detail={
                "fits": fits_of(look.there, look.source.names),
                "level": "table",
                "versions": look.how == "snapshot",
            },
        )
        return staged, found


@contextmanager
def _side(
    resources: Resources, spec: CopySpec, target: Target, entry: LedgerEntry | None, ctx: Context
) -> Iterator[LakeSide]:
    """Return an asset of the lake as its source should be. Raises NotFound."""
    from millrace.duck import engine
    from millrace.lake.target import LakeTarget
    from millrace.steps.routes.lake_scrub import LakeSide

    assert isinstance(target, LakeTarget)  # noqa: S101 - copies go to databases and lakes
    if entry is None:
        raise NotFound(f"{spec.asset} was never published")
    opened = engine.connect(memory_limit=resources.memory_limit, scratch=ctx.scratch() / "spill")
    with closing(opened) as connection:
        side = LakeSide.of(target, spec, entry, connection, ctx.scratch())
        if spec.mode == "snapshot":
            from millrace.steps.routes.lake_history import current

            side = current(side)
        yield side


def _lake(
    resources: Resources,
    spec: CopySpec,
    reader: PostgresReader,
    target: Target,
    entry: LedgerEntry,
    step: Step,
    ctx: Context,
) -> tuple[Staged | None, TableDiff]:
    from millrace.lake.target import LakeTarget
    from millrace.steps.lake_differences import diff_lake

    assert isinstance(target, LakeTarget)  # noqa: S101 - copies go to databases and lakes
    with _side(resources, spec, target, entry, ctx) as side, reader.snapshot() as snap:
        contract = step.spec.get("contract") or {}
        source, changes = _source(spec, reader, side.schema, contract, entry.position, snap)
        label = f"{spec.asset} in the lake"
        found = diff_lake(source, snap, side, label, limit=step.spec["limit"], changes=changes)
        if not found.same or found.behind:
            return None, found
        request = StageRequest(
            asset=spec.asset,
            load=ctx.load,
            run=ctx.run,
            step=step.key,
            base=entry.seq,
            how="position",
            schema=target.schema(spec.asset),
            inputs=entry.inputs,
            code=entry.code,
            date=entry.date,
            partitions=target.partitions(spec.asset),
        )
        whole = Segment.whole()
        detail = {"source": dict(digest_segments(snap.connection, source, [whole]))[whole.id].to_json()}
        return target.open_stage(request).close(_position(spec, entry, ctx), {}, detail=detail), found


def _source(
    spec: CopySpec,
    reader: PostgresReader,
    schema: Schema,
    contract: Mapping[str, Any],
    since: Position,
    snap: PostgresSnapshot,
) -> tuple[Source, Source | None]:
    """Return the rows that the asset should hold, and those that changed since its position."""
    base = reader.source(spec.table, where=spec.where, select=spec.select, connection=snap.connection)
    key = schema.key
    base, _ = fitted(base, schema, contract, [*key, *([spec.tracked] if spec.tracked else [])], snap.connection)
    if not isinstance(since, Cursor):
        return alive(base, spec.soft_delete), None
    columns = key_columns(base, key)
    source = base if proven(base, columns) else newest(base, columns, since.column)
    # rows at the boundary are looked at by every load: they changed only where their digest did
    still = reader.moved(base, since, snap)[0] == since.tail
    return alive(source, spec.soft_delete), None if still else reader.changes(base, since, snap)
