"""The step kind `gate`: checks on what was staged in the warehouse, before the whole group is published."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from millrace.core.plan import Freshness, Step
from millrace.core.ports import Context
from millrace.core.staged import Proof, Staged
from millrace.duck.warehouse import WarehouseTarget
from millrace.steps.checking import enforce_checks
from millrace.steps.resources import Resources
from millrace.steps.warehouse import staged_query


class GateStep:
    """Holds a group back when a blocking check fails; makes nothing itself."""

    kind: ClassVar[str] = "gate"

    def __init__(self, resources: Resources) -> None:
        self._resources = resources

    def fresh(self, step: Step, ctx: Context) -> Freshness:
        """Fresh when its asset was not staged in this run: what is published has passed."""
        if any(isinstance(ctx.version(asset), Staged) for asset in step.inputs):
            return Freshness(False, f"{step.label} changes", proves="checks")
        return Freshness(True, "nothing changed")

    def stage(self, step: Step, ctx: Context) -> tuple[Staged, ...]:
        """Return nothing: a gate makes nothing."""
        return ()

    def prove(self, step: Step, staged: Sequence[Staged], ctx: Context) -> tuple[Proof, ...]:
        """Run the checks on what this run has staged. Raises GateFailed."""
        (asset,) = step.inputs
        warehouse = ctx.target(step.target)
        entry = warehouse.ledger(asset)
        with staged_query(ctx, step) as (query, where):
            results = enforce_checks(
                step.spec["checks"],
                asset,
                query,
                where(asset),
                ctx,
                relations=where,
                last_good=entry.time if entry else None,
            )
        if isinstance(warehouse, WarehouseTarget):  # pages read them there
            warehouse.note_checks(warehouse.clone(ctx.run), step.key, results)
        return ()
