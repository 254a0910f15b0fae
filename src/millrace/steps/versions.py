"""Input versions of a step, pinned; and freshness by code, versions and date, for kinds that compare nothing else."""

from __future__ import annotations

from dataclasses import replace

from millrace.core.plan import Freshness, Step
from millrace.core.ports import Context
from millrace.core.staged import Staged
from millrace.planner import freshness


def pinned(step: Step, ctx: Context) -> dict[str, int]:
    """Return the seq of every input: of the same group, what its publish will be; else the ledger's."""
    found = {}
    for asset in step.inputs:
        version = ctx.version(asset)
        if version is not None:
            found[str(asset)] = version.base + 1 if isinstance(version, Staged) else version
    return found


def judge(step: Step, ctx: Context, *, publishes: str = "", proves: str = "") -> Freshness:
    """Compare code, input versions and, where the step uses it, the logical date with the ledger's."""
    target, versions = ctx.target(step.target), pinned(step, ctx)
    found = Freshness(True, "nothing changed")
    for asset in step.assets:
        found = freshness.judge(target.ledger(asset), step, versions, ctx.logical_time[:10])
        if not found.fresh:
            break
    return replace(found, publishes=publishes, proves=proves)
