"""Dropping what killed runs left: never what a living run is at, and what can be resumed only after a day."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Sequence
from functools import partial

from millrace.core.names import short_run
from millrace.core.ports import KEEP_SECONDS
from millrace.engine.leases import run_lives
from millrace.engine.records import RunRow, StepOutcome, StepRow, age
from millrace.engine.session import Session
from millrace.errors import MillraceError, NotFound


class Collector:
    """Knows which runs' stages are still wanted."""

    def __init__(self, session: Session, finished: Collection[str] = (), *, last: bool = False) -> None:
        """Prepare.

        Args:
            session: the run.
            finished: steps that this run brought to an end: stages of dead runs for them are worthless.
            last: this run's steps have ended; what it did not keep on purpose goes too.
        """
        self._session = session
        self._finished = finished
        self._last = last
        self._verdicts: dict[str, bool] = {}
        self._unread: dict[str, MillraceError] = {}

    def live(self, run: str) -> bool:
        """Say whether the stages of a run are still wanted."""
        if run not in self._verdicts:
            self._verdicts[run] = self._live(run)
        return self._verdicts[run]

    def _judge(self, run: str) -> Sequence[str]:
        self.live(run)
        return ()

    def _live(self, run: str) -> bool:
        session = self._session
        if run == session.run.id:
            return not self._last or bool(session.journal.open_steps(run))
        if run_lives(session.journal, run, session.leases.ttl):
            return True
        try:
            row = session.journal.run(run)
        except NotFound:
            return age(session.journal.stranger(run)) < KEEP_SECONDS
        if row.id != run:
            return age(session.journal.stranger(run)) < KEEP_SECONDS
        return any(self._resumable(row, step) for step in session.journal.open_steps(run))

    def _resumable(self, row: RunRow, step: StepRow) -> bool:
        if age(step.ended or step.started or row.started) > KEEP_SECONDS:
            return False
        if (
            step.key in self._finished and row.pid is not None
        ):  # of an orchestrator's run we cannot tell that it is dead
            return False
        target = self._session.targets.get(step.target)
        if target is None:
            return True
        for asset, base in (step.bases or {}).items():
            entry = target.ledger(asset)
            if (entry.seq if entry else 0) != base:
                return False  # published since: the compare-and-swap would refuse it
        return True

    def collect(self) -> list[str]:
        """Drop what is not wanted from the targets of the plan, and dead runs' scratch folders; returns names."""
        for step in self._session.journal.open_steps():
            # now: a target may ask while it holds its own lock
            self._quietly(step.target, partial(self._judge, step.run))
        dropped: list[str] = []
        for name in dict.fromkeys(step.target for step in self._session.plan.steps if step.target):
            target = self._session.targets.get(name)
            if target is not None:
                dropped += self._quietly(name, partial(target.gc, self.live))
        dropped += self._quietly("", self._scratch)
        if dropped:
            self._session.observer.say("collected", f"dropped {len(dropped)} leftovers: {', '.join(dropped[:5])}")
        return dropped

    def _quietly(self, target: str, collect: Callable[[], Sequence[str]]) -> Sequence[str]:
        """Collect; a target that cannot be read now fails its own steps, with the better message."""
        try:
            return collect()
        except MillraceError as error:
            self._unread[target] = error
            return []

    def complain(self, outcomes: Sequence[StepOutcome] = ()) -> None:
        """Tell where leftovers could not be looked for, unless a step on that target has failed and told why."""
        told = {self._session.plan[outcome.key].target for outcome in outcomes if outcome.error is not None}
        for target, error in self._unread.items():
            if target not in told:
                self._session.observer.say("left", f"leftovers could not be looked for: {error.what}")

    def _scratch(self) -> list[str]:
        session = self._session
        dropped = []
        for folder in sorted((session.work / "scratch").glob("*")):
            if folder.name != session.run.id and not run_lives(session.journal, folder.name, session.leases.ttl):
                shutil.rmtree(folder, ignore_errors=True)
                dropped.append(f"scratch of run {short_run(folder.name)}")
        return dropped

    def bury(self) -> None:
        """Note runs as killed whose process is gone."""
        session = self._session
        for row in session.journal.running():
            ours = row.id == session.run.id or row.pid is None
            if not ours and not run_lives(session.journal, row.id, session.leases.ttl):
                session.journal.end_run(row.id, "killed")
