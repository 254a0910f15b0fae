"""The step kind `gate`: checks on tables of the warehouse's clone, before the whole group is published."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from millrace.core.plan import Freshness, Step
from millrace.core.ports import Context
from millrace.core.staged import Proof, Staged
from millrace.steps.checking import enforce_checks, querying
from millrace.steps.resources import Resources
from millrace.steps.warehouse import warehouse_of


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
        """Run the checks in the clone of this run. Raises GateFailed."""
        (asset,) = step.inputs
        warehouse = warehouse_of(ctx, step)
        entry = warehouse.ledger(asset)
        clone = warehouse.clone(ctx.run)
        connection = clone.connect(read_only=True)
        try:
            query = querying(connection, str(clone.path))
            results = enforce_checks(
                step.spec["checks"],
                asset,
                query,
                (asset.layer, asset.name),
                ctx,
                last_good=entry.time if entry else None,
            )
        finally:
            connection.close()
        warehouse.note_checks(clone, step.key, results)
        return ()
