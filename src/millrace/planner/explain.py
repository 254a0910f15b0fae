"""A plan told step by step, for `millrace plan`: place in the order, publish group, why it is there, what it needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from millrace.core.plan import Plan
from millrace.planner.steps import needs


@dataclass(frozen=True, slots=True)
class Explanation:
    """One step of a plan.

    Attributes:
        number: place in the plan, from 1.
        group: publish group, or "" when the step is published alone.
        together: number of steps in the group.
        why: why it is in the plan.
        needs: keys of the steps of this plan that run before it.
        reads: inputs; those that no step of this plan makes are read as last published.
    """

    number: int
    key: str
    kind: str
    label: str
    assets: tuple[str, ...]
    group: str
    together: int
    why: str
    needs: tuple[str, ...]
    reads: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the explanation as JSON types."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def explain(plan: Plan, why: Mapping[str, str]) -> tuple[Explanation, ...]:
    """Return one explanation per step; `why` is what `plan_with_reasons` gave."""
    required = needs(plan.steps)
    sizes = {step.group: len(plan.group(step.group)) for step in plan.steps}
    return tuple(
        Explanation(
            number=number,
            key=step.key,
            kind=step.kind,
            label=step.label,
            assets=tuple(str(asset) for asset in step.assets),
            group="" if step.group == step.key else step.group,
            together=sizes[step.group],
            why=why.get(step.key, ""),
            needs=required[step.key],
            reads=tuple(str(asset) for asset in step.inputs),
        )
        for number, step in enumerate(plan.steps, 1)
    )
