"""What a run would do, and why: every step's kind is asked, nothing is touched."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from pathlib import Path

from millrace.app.runtime import Runtime
from millrace.core.names import AssetId
from millrace.core.plan import Freshness, Plan, Step
from millrace.core.ports import Reporter, Target
from millrace.core.staged import Staged
from millrace.errors import MillraceError
from millrace.observe.progress import Quiet


class LookingContext:
    """The context of a step that is only asked whether it is fresh."""

    run = ""
    load = 0

    def __init__(self, runtime: Runtime, plan: Plan, step: Step, logical_time: str) -> None:
        self._runtime = runtime
        self._plan = plan
        self._step = step
        self.logical_time = logical_time
        self.report: Reporter = Quiet()

    def target(self, name: str) -> Target:
        """See `core.ports.Context`."""
        return self._runtime.target(name)

    def version(self, asset: AssetId) -> int | Staged | None:
        """Return the ledger's seq, in the target of the step that makes the asset."""
        maker = next((step for step in self._plan.steps if asset in step.assets), None)
        names = [maker.target] if maker else ["lake", "warehouse"]
        for name in names:
            if name in self._runtime.targets and (entry := self._runtime.targets[name].ledger(asset)):
                return entry.seq
        return None

    def group(self) -> Sequence[Staged]:
        """See `core.ports.Context`."""
        return ()

    def scratch(self) -> Path:
        """See `core.ports.Context`; a step that is only asked writes nothing."""
        raise MillraceError("a step that is only asked has no scratch folder", where=self._step.key)

    def stopping(self) -> bool:
        """See `core.ports.Context`."""
        return False


def explain(
    runtime: Runtime, whole: Plan, plan: Plan, logical_time: str | None = None
) -> list[tuple[Step, Freshness | MillraceError]]:
    """Ask every step of a plan whether it is fresh; what depends on a change changes too.

    Args:
        runtime: targets and kinds.
        whole: the project's whole plan, to know who makes what.
        plan: the steps to explain.
        logical_time: "now" of the run, ISO 8601 UTC.

    Returns:
        The plan's steps, each with its answer, or with the error for which it cannot be asked.
    """
    now = logical_time or dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    changing: set[AssetId] = set()
    unknown: set[AssetId] = set()
    found: list[tuple[Step, Freshness | MillraceError]] = []
    for step in plan.steps:
        upstream = next((f"{asset} changes" for asset in step.inputs if asset in changing), None)
        upstream = upstream or next((f"{asset} may change" for asset in step.inputs if asset in unknown), None)
        context = LookingContext(runtime, whole, step, now)
        try:
            freshness = runtime.kinds[step.kind].fresh(step, context)
        except MillraceError as error:
            if error.exit_code != 1:  # the project is wrong
                raise
            unknown.update(step.assets)
            found.append((step, error))
            continue
        if freshness.fresh and upstream is not None:
            freshness = Freshness(False, upstream, None, freshness.publishes, freshness.proves)
        if not freshness.fresh:
            changing.update(step.assets)
        found.append((step, freshness))
    return found
