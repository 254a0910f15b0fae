"""Input versions of a step, pinned; and freshness by code, versions and date, for kinds that compare nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from millrace.core.names import AssetId
from millrace.core.plan import Freshness, Step
from millrace.core.ports import Context, Versioned
from millrace.core.staged import LedgerEntry, Staged
from millrace.errors import NotFound
from millrace.planner import freshness


def pinned(step: Step, ctx: Context) -> dict[str, int]:
    """Return the seq of every input: of the same group, what its publish will be; else the ledger's."""
    found = {}
    for asset in step.inputs:
        version = ctx.version(asset)
        if version is not None:
            found[str(asset)] = version.base + 1 if isinstance(version, Staged) else version
    return found


def settled(entry: LedgerEntry | None, versions: Mapping[str, int], lake: object) -> dict[str, int]:
    """Return versions of inputs, those that only moved a position or recorded a proof taken as the one that was read.

    Args:
        entry: what was made of the inputs.
        versions: their versions now.
        lake: the target where such inputs live; only a `Versioned` one can tell.
    """
    found = dict(versions)
    if entry is None or not isinstance(lake, Versioned):
        return found
    for name, then in entry.inputs.items():
        if found.get(name, then) > then and lake.same_rows(AssetId.parse(name), then, found[name]):
            found[name] = then
    return found


def judge(step: Step, ctx: Context, *, publishes: str = "", proves: str = "") -> Freshness:
    """Compare code, input versions and, where the step uses it, the logical date with the ledger's."""
    target, versions = ctx.target(step.target), pinned(step, ctx)
    try:
        lake = ctx.target("lake") if versions else None
    except NotFound:
        lake = None
    found = Freshness(True, "nothing changed")
    for asset in step.assets:
        entry = target.ledger(asset)
        found = freshness.judge(entry, step, settled(entry, versions, lake), ctx.logical_time[:10])
        if not found.fresh:
            break
    return replace(found, publishes=publishes, proves=proves)
