"""Which publish group runs when, and what a failure takes with it."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Collection, Iterable, Sequence

from millrace.core.names import AssetId
from millrace.core.plan import Step
from millrace.core.ports import Expecting, Holding
from millrace.engine.groups import GroupRun, groups_of, skip
from millrace.engine.records import StepOutcome
from millrace.engine.session import Session
from millrace.errors import Interrupted, MillraceError

Group = tuple[Step, ...]
BAD = ("failed", "differs", "interrupted")
"""How a step ends that takes others with it."""
Ended = tuple[Group, "list[StepOutcome] | BaseException"]


class Schedule:
    """Runs the groups of a session: in the plan's order, or several single steps at once with `jobs`."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._causes: dict[str, str] = {}  # key of a step that did not end well → what failed first
        self._outcomes: dict[str, StepOutcome] = {}
        self._groups = groups_of(session)
        self._expected: set[str] = set()
        self._closing = contextlib.ExitStack()
        self._readers: dict[AssetId, set[int]] = {}  # places of the groups that read an asset
        for place, steps in enumerate(self._groups):
            for asset in {asset for step in steps for asset in step.inputs}:
                self._readers.setdefault(asset, set()).add(place)
        self._makers = {asset: step.key for step in session.plan.steps for asset in step.assets}

    def run(self) -> list[StepOutcome]:
        """Run all groups; returns the outcomes in the plan's order."""
        with self._closing:
            if self._session.options.jobs > 1:
                self._at_once(list(self._groups))
            else:
                for steps in self._groups:
                    if not self._skipped(steps):
                        self._note(steps, GroupRun(self._session, steps).run())
        return [self._outcomes[step.key] for step in self._session.plan.steps]

    def _at_once(self, waiting: list[Group]) -> None:
        """Run up to `jobs` groups of one step at once; a larger group runs with nothing beside it."""
        ended: queue.SimpleQueue[Ended] = queue.SimpleQueue()
        running: list[Group] = []
        try:
            while waiting or running:
                while (steps := self._next(waiting, running)) is not None:
                    waiting.remove(steps)
                    if not self._skipped(steps):
                        running.append(steps)
                        # a daemon: a second Ctrl-C must not wait for a step that does not look
                        threading.Thread(target=self._thread, args=(steps, ended), daemon=True).start()
                if running:
                    self._collect(ended, running)
        except KeyboardInterrupt:
            self._session.stop.set()
            for steps in running:
                self._abandon(steps)
            for steps in waiting:
                self._skipped(steps)

    def _thread(self, steps: Group, ended: queue.SimpleQueue[Ended]) -> None:
        try:
            ended.put((steps, GroupRun(self._session, steps).run()))
        except BaseException as error:  # noqa: BLE001 -- raised again by the thread that waits
            ended.put((steps, error))

    def _collect(self, ended: queue.SimpleQueue[Ended], running: list[Group]) -> None:
        steps, outcomes = ended.get()
        running.remove(steps)
        if isinstance(outcomes, BaseException):
            raise outcomes
        self._note(steps, outcomes)

    def _next(self, waiting: Sequence[Group], running: Sequence[Group]) -> Group | None:
        """Return the first group that may start now."""
        if running and len(running) >= self._session.options.jobs:
            return None
        open_keys = {step.key for group in (*waiting, *running) for step in group}
        return next((steps for steps in waiting if self._may_start(steps, waiting, running, open_keys)), None)

    def _may_start(
        self, steps: Group, waiting: Sequence[Group], running: Sequence[Group], open_keys: Collection[str]
    ) -> bool:
        if not running and steps is waiting[0]:
            return True  # the plan's order holds: what it needs has ended
        if running and (len(steps) > 1 or any(len(others) > 1 for others in running)):
            return False
        own = {step.key for step in steps}
        return not any(needed in open_keys and needed not in own for step in steps for needed in self._needs(step))

    def _abandon(self, steps: Group) -> None:
        """End steps whose thread does not end: the process is about to; their stages can be resumed."""
        error = Interrupted("stopped at once")
        outcomes = []
        for step in steps:
            outcome = StepOutcome(step.key, step.kind, step.label, "interrupted", message=error.what, error=error)
            facts = {"message": error.what, "error": error.to_json()}
            self._session.journal.note_step(self._session.run.id, step.key, phase="interrupted", **facts)
            self._session.observer.step_finished(step, outcome)
            outcomes.append(outcome)
        self._note(steps, outcomes)

    def _skipped(self, steps: Group) -> bool:
        reason = self._reason(steps)
        if reason:
            self._note(steps, skip(self._session, steps, reason))
        return bool(reason)

    def _reason(self, steps: Group) -> str:
        """Return why a group cannot run, or nothing."""
        if self._session.stop():
            return "the run was interrupted"
        for step in steps:
            for needed in self._needs(step):
                if needed in self._causes:
                    cause = self._causes[needed]
                    self._causes.update({other.key: cause for other in steps})
                    return cause
        if self._session.options.fail_fast and self._causes:
            return f"stopped at the first failure: {next(iter(self._causes.values()))}"
        return ""

    def _needs(self, step: Step) -> list[str]:
        makers = [self._makers[asset] for asset in step.inputs if asset in self._makers]
        return [*(key for key in makers if key != step.key), *step.after]

    def _note(self, steps: Group, outcomes: Sequence[StepOutcome]) -> None:
        bad = next((outcome for outcome in outcomes if outcome.status in BAD), None)
        for step, outcome in zip(steps, outcomes, strict=True):
            self._outcomes[step.key] = outcome
            if bad is not None and outcome.status in (*BAD, "discarded", "skipped"):
                word = "was interrupted" if bad.status == "interrupted" else "failed"
                self._causes[step.key] = f"{bad.label} {word}"
        self._let_go({step.kind for step in steps})
        self._expect(step for step in steps if self._outcomes[step.key].status == "published")

    def _let_go(self, kinds: Collection[str]) -> None:
        """Let kinds close what no step of the run needs any more."""
        waiting = [step for step in self._session.plan.steps if step.key not in self._outcomes]
        for name in kinds:
            with contextlib.suppress(MillraceError):  # a kind that cannot be made has told why
                kind = self._session.kinds.get(name)
                if kind is None or not isinstance(kind, Holding):
                    continue
                kind.let_go([step for step in waiting if step.kind == name])

    def _expect(self, published: Iterable[Step]) -> None:
        """Tell the steps of groups that read what was just published: they will have work to do."""
        new = [asset for step in published for asset in step.assets]
        for place in sorted({place for asset in new for place in self._readers.get(asset, ())}):
            for step in self._groups[place]:
                with contextlib.suppress(MillraceError):  # a kind that cannot be made tells why in its turn
                    kind = self._session.kinds.get(step.kind)
                    if isinstance(kind, Expecting) and step.key not in self._expected.union(self._outcomes):
                        self._expected.add(step.key)
                        self._closing.enter_context(kind.expect(step))
