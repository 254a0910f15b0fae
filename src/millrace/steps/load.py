"""The step kind `load`: a lake asset's files become a physical table in the warehouse's clone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from millrace.core.plan import Freshness, Step
from millrace.core.ports import Context, StageRequest
from millrace.core.schema import Schema
from millrace.core.staged import Proof, Staged
from millrace.errors import NotFound
from millrace.lake.target import LakeTarget
from millrace.steps.resources import Resources
from millrace.steps.versions import judge, pinned
from millrace.steps.warehouse import warehouse_of


class LoadStep:
    """Loads lake assets into the warehouse: tables, not views over files, which a later vacuum would break."""

    kind: ClassVar[str] = "load"

    def __init__(self, resources: Resources) -> None:
        self._resources = resources

    def fresh(self, step: Step, ctx: Context) -> Freshness:
        """Fresh while the lake asset's version is the one that was loaded."""
        return judge(step, ctx, publishes="with the warehouse, in one step", proves="transfer")

    def stage(self, step: Step, ctx: Context) -> tuple[Staged, ...]:
        """Make the table from the files of the pinned version."""
        (asset,), (source,) = step.assets, step.inputs
        lake = self._resources.target("lake")
        assert isinstance(lake, LakeTarget)  # noqa: S101 - the planner names it
        inputs = pinned(step, ctx)
        seq = inputs.get(str(source))
        if seq is None:
            raise NotFound(f"{source} was never published, so it cannot be loaded", where=step.label)
        warehouse = warehouse_of(ctx, step)
        base = warehouse.ledger(asset)
        entry = lake.ledger(source)
        schema: Schema = lake.schema(source, seq)
        request = StageRequest(
            asset=asset,
            load=ctx.load,
            run=ctx.run,
            step=step.key,
            base=base.seq if base else 0,
            how="member",
            schema=schema,
            inputs=inputs,
            code=step.code,
        )
        count = entry.rows if entry is not None and entry.seq == seq and entry.rows >= 0 else None
        staged = warehouse.load(warehouse.clone(ctx.run), asset, lake.files(source, seq), schema, request, count=count)
        ctx.report.moved(staged.rows, 0)
        return (staged,)

    def prove(self, step: Step, staged: Sequence[Staged], ctx: Context) -> tuple[Proof, ...]:
        """Compare the table's digest with that of the files."""
        return tuple(warehouse_of(ctx, step).prove(item) for item in staged)
