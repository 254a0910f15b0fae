"""The engine: runs plans, whole or one phase of one step at a time.

Publish groups run in the plan's order; what depends on a failure is skipped, other branches go on. A failure is
part of the result; only what is wrong before the first step (no such run to resume, a newer journal) is raised.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from millrace.core.names import AssetId, new_run_id, short_run
from millrace.core.plan import Plan
from millrace.core.ports import StepKind, Target
from millrace.engine.collect import Collector
from millrace.engine.leases import Leases, host
from millrace.engine.phases import PHASES, PhaseRun, run_status
from millrace.engine.records import Observer, RunInfo, RunResult, RunRow, RunStatus, StepOutcome, now
from millrace.engine.retry import Retries
from millrace.engine.schedule import Schedule
from millrace.engine.session import RunOptions, Session
from millrace.engine.stop import Stop
from millrace.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from millrace.engine.journal import Journal


class Engine:
    """Runs plans with the step kinds and targets of one project and environment.

    Args:
        journal: where runs are kept.
        kinds: step kinds by name.
        targets: targets by name.
        observer: who watches.
        work: folder for scratch, like `.millrace`.
        project: the project's name, empty for `millrace copy`.
        env: the environment's name; journal memory and leases are kept apart by project and environment.
        locate: name of the target that holds an asset which the plan does not make, or None to look in all.
        retries: how often and how patiently retryable errors are tried again.
        lease_ttl: seconds after which a silent holder counts as dead; None: `MILLRACE_LEASE_TTL`, or 60.
    """

    def __init__(
        self,
        journal: Journal,
        kinds: Mapping[str, StepKind],
        targets: Mapping[str, Target],
        *,
        observer: Observer,
        work: Path,
        project: str = "",
        env: str = "",
        locate: Callable[[AssetId], str | None] = lambda _asset: None,
        retries: Retries | None = None,
        lease_ttl: float | None = None,
    ) -> None:
        self.journal = journal
        self.kinds = kinds
        self.targets = targets
        self.observer = observer
        self.work = work
        self.project = project
        self.env = env
        self.locate = locate
        self.retries = retries or Retries()
        self.lease_ttl = lease_ttl
        self.stop = Stop()

    @property
    def scope(self) -> str:
        """What keeps leases and memory of environments apart."""
        return f"{self.project}/{self.env}"

    def run(
        self,
        plan: Plan,
        *,
        resume: str | None = None,
        pipeline: str = "",
        logical_time: str | None = None,
        options: RunOptions | None = None,
        command: str | None = None,
    ) -> RunResult:
        """Run a plan.

        Args:
            plan: what to run.
            resume: id of an earlier run, or the beginning of it, that is taken up: same load ids, same logical time.
            pipeline: the pipeline's name, for people.
            logical_time: "now" in models and checks, ISO 8601 UTC; None: the time of the start.
            options: how it goes.
            command: the command line, for people; None: this process's.

        Raises:
            NotFound: there is no run to resume.
            TargetBusy: the run to resume is alive.
            UsageError: the run to resume is of another project or environment.
        """
        row = self._resumed(resume) if resume else None
        started = now()
        info = RunInfo(
            id=row.id if row else self._new_id(),
            project=self.project,
            env=self.env,
            pipeline=row.pipeline if row else pipeline,
            logical_time=row.logical_time if row else logical_time or started,
            started=row.started if row else started,
            resumed=row is not None,
        )
        since = time.monotonic()
        with self._watched(), self._session(plan, info, options or RunOptions()) as session:
            session.leases.acquire([f"run/{info.id}"], f"run {short_run(info.id)}")
            text = " ".join(sys.argv) if command is None else command
            self.journal.start_run(info, host=host(), pid=os.getpid(), command=text)
            status: RunStatus = "interrupted"
            try:
                self.journal.begin_steps(info.id, plan.steps)
                outcomes, status = self._run(session)
            finally:
                self.journal.end_run(info.id, status)
                session.tidy()
            result = RunResult(info, tuple(outcomes), status, time.monotonic() - since)
            self.observer.end_run(result)
        return result

    def phase(
        self,
        plan: Plan,
        key: str,
        run: str,
        phase: str | None = None,
        *,
        pipeline: str = "",
        logical_time: str | None = None,
        options: RunOptions | None = None,
    ) -> Sequence[StepOutcome]:
        """Take one step through one door, in a process of its own; state passes through the journal.

        Args:
            plan: the whole plan of the run.
            key: the step.
            run: the run's id, chosen by the orchestrator; the first process notes the run.
            phase: `stage`, `prove`, `publish` (of the whole group, when the last of it is proven) or `discard` (of
                the whole group); None: the first three, one after the other.
            pipeline: the pipeline's name, for people.
            logical_time: as in `run`; later processes take the first one's.
            options: how it goes.

        Returns:
            The outcome of the step; of `publish` and `discard` those of its whole group.

        Raises:
            UsageError: no such step or phase, or the step has not come so far.
        """
        if phase is not None and phase not in PHASES:
            raise UsageError(f"there is no phase {phase!r}", hint=f"phases are {', '.join(PHASES)}")
        if key not in {step.key for step in plan.steps}:
            hint = did_you_mean(key, [step.key for step in plan.steps])
            raise UsageError(f"there is no step {key!r} in this plan", hint=hint)
        started = now()
        info = RunInfo(run, self.project, self.env, pipeline, logical_time or started, started)
        self.journal.start_run(info, host=host(), pid=None, command="")
        row = self.journal.run(run)
        info = replace(info, logical_time=row.logical_time, started=row.started)
        self.journal.begin_steps(run, plan.steps)
        since = time.monotonic()
        outcomes: list[StepOutcome] = []
        with self._watched(), self._session(plan, info, options or RunOptions()) as session:
            self.observer.start_run(info, Plan((plan[key],)))
            try:
                for name in PHASES[:3] if phase is None else [phase]:
                    outcomes = PhaseRun(session, plan[key], name).run()
                    if any(outcome.error is not None for outcome in outcomes):
                        break
            finally:
                status = run_status(self.journal.steps(run))
                self.journal.end_run(run, status)
                session.tidy(plan[key])
            self.observer.end_run(RunResult(info, tuple(outcomes), status, time.monotonic() - since))
        return outcomes

    @contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        finally:
            self.observer.close()

    def _new_id(self) -> str:
        """Return a new run id that people can tell from all others by what they see of it."""
        for _ in range(100):
            run = new_run_id()
            if not self.journal.begin_with(short_run(run)):
                break
        return run

    def _resumed(self, resume: str) -> RunRow:
        row = self.journal.run(resume)
        if (row.project, row.env) != (self.project, self.env):
            raise UsageError(
                f"run {short_run(row.id)} is of {row.project or 'no project'}, environment {row.env or 'none'}",
                hint="resume it there",
            )
        return row

    @contextmanager
    def _session(self, plan: Plan, info: RunInfo, options: RunOptions) -> Iterator[Session]:
        leases = Leases(self.journal, info.id, self.lease_ttl)
        session = Session(
            journal=self.journal,
            kinds=self.kinds,
            targets=self.targets,
            observer=self.observer,
            retries=self.retries,
            stop=self.stop,
            leases=leases,
            plan=plan,
            run=info,
            options=options,
            scope=self.scope,
            work=self.work,
            locate=self.locate,
        )
        with self.stop.signals(), leases:
            yield session

    def _run(self, session: Session) -> tuple[list[StepOutcome], RunStatus]:
        self.observer.start_run(session.run, session.plan)
        collector = Collector(session)
        collector.bury()
        dropped = collector.collect()
        dead = any(step.run != session.run.id for step in self.journal.open_steps())
        outcomes = Schedule(session).run()
        if session.dirty or dead or dropped:
            finished = {outcome.key for outcome in outcomes if outcome.status in ("published", "fresh", "passed")}
            collector = Collector(session, finished, last=True)
            collector.collect()
        collector.complain(outcomes)
        statuses = {outcome.status for outcome in outcomes}
        if "interrupted" in statuses or (session.stop() and "skipped" in statuses):
            return outcomes, "interrupted"
        if statuses & {"failed", "discarded", "skipped"}:
            return outcomes, "failed"
        return outcomes, "differs" if "differs" in statuses else "done"
