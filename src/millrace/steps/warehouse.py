"""What the steps of a warehouse group share."""

from __future__ import annotations

from millrace.core.plan import Step
from millrace.core.ports import Context
from millrace.duck.warehouse import WarehouseTarget


def warehouse_of(ctx: Context, step: Step) -> WarehouseTarget:
    """Return the step's target, which is a warehouse."""
    target = ctx.target(step.target)
    assert isinstance(target, WarehouseTarget)  # noqa: S101 - the planner names it
    return target
