"""A publish group: its steps one after the other through stage and prove, then one publish, or nothing at all."""

from __future__ import annotations

from collections.abc import Sequence

from millrace.core.plan import Step
from millrace.engine.doors import KEEPS_STAGE, Doors, as_error, traceback_of
from millrace.engine.records import Status, StepOutcome
from millrace.engine.session import Session, Work, group_name
from millrace.errors import CommitUnknown, Interrupted, MillraceError, SeqMoved, TablesDiffer, TargetBusy


def lease_names(steps: Sequence[Step], scope: str) -> list[str]:
    """Return the leases under which steps are worked on."""
    return [f"{scope}/{step.key}" for step in steps]


class GroupRun:
    """Runs one publish group of a session."""

    def __init__(self, session: Session, steps: Sequence[Step]) -> None:
        self.session = session
        self.steps = tuple(steps)
        self.doors = Doors(session)
        self.leases = lease_names(steps, session.scope)
        self.works: list[Work] = []

    def run(self) -> list[StepOutcome]:
        """Run the group to its end; failures are outcomes, never exceptions."""
        outcomes = self._once()
        for step, outcome in zip(self.steps, outcomes, strict=True):
            self.session.observer.step_finished(step, outcome)
        return outcomes

    def _once(self) -> list[StepOutcome]:
        self.works = []
        error: BaseException | None = None
        try:
            self.session.leases.acquire(self.leases, self.steps[0].label)
            try:
                self._through()
            except SeqMoved:
                raise
            except Exception as caught:
                self._blame(caught)
                raise
            finally:
                self.session.leases.release(self.leases)
        except (Exception, KeyboardInterrupt) as caught:  # noqa: BLE001 -- whatever a step raises is an outcome
            error = caught
        if isinstance(error, KeyboardInterrupt):
            self.session.stop.set()
        if error is not None:
            self._fail(error)
        for step in self.steps:
            self.session.tidy(step)
        return [work.outcome() for work in self.works]

    def _through(self) -> None:
        resumed = self.session.journal.steps(self.session.run.id) if self.session.run.resumed else []
        rows = {row.key: row for row in resumed}
        for step in self.steps:
            work = self._begin(step)
            row = rows.get(step.key)
            if row is not None and row.phase in ("published", "passed"):
                self.doors.keep(work, row)
            else:
                self.doors.attempt(work, self.leases, row)
            work.pause_clock()
            if work.status is None and step is not self.steps[-1]:
                self.session.observer.say("proven", "waits for its group", step)
        staged = [work for work in self.works if work.status is None and work.staged]
        if staged:
            staged[-1].resume_clock()
            self.doors.publish(staged, self.leases)
        for work in self.works:
            if work.status is None:
                self.doors.end(work, "passed")

    def _blame(self, caught: Exception) -> None:
        """Say that another run took the step over when that is why things went wrong: it may have dropped our stage."""
        try:
            self.session.leases.confirm(self.leases, self.steps[0].label)
        except TargetBusy as busy:
            raise busy from caught

    def _begin(self, step: Step) -> Work:
        self.session.journal.note_started(self.session.run.id, step.key)
        return self._add(step)

    def _add(self, step: Step) -> Work:
        work = Work(self.session, step)
        self.works.append(work)
        return work

    def _fail(self, caught: BaseException) -> None:
        """End the group after a failure: nothing of it is published, and only what can be resumed is kept."""
        failing = next((work for work in self.works if work.status is None and work.proofs is None), None)
        failing = failing or next((work for work in reversed(self.works) if work.status is None), None)
        if failing is None:
            started = len(self.works)
            failing = self._begin(self.steps[min(started, len(self.steps) - 1)]) if started < len(self.steps) else None
        if failing is None:  # everything had ended: the journal itself failed
            raise caught
        error = _told(as_error(caught, failing.step))
        keep = isinstance(error, CommitUnknown) or (isinstance(error, KEEPS_STAGE) and len(self.steps) == 1)
        unfinished = [work for work in self.works if work.status is None]
        if not keep:
            self.doors.discard(unfinished)
        if error.__cause__ is not None and error is not caught:
            self.session.observer.say("traceback", traceback_of(caught), failing.step)
        status = _status(error)
        reason = f"not published: {failing.step.label} {'was interrupted' if status == 'interrupted' else 'failed'}"
        begun = {work.step.key for work in self.works}
        unfinished += [self._add(step) for step in self.steps if step.key not in begun]
        for work in unfinished:
            if work is failing:
                self.doors.end(work, status, error.what, error)
            else:
                self.doors.end(work, "discarded" if work.staged and not keep else "skipped", reason)
        order = {step.key: number for number, step in enumerate(self.steps)}
        self.works.sort(key=lambda work: order[work.step.key])


def skip(session: Session, steps: Sequence[Step], reason: str) -> list[StepOutcome]:
    """Journal and report steps that cannot run."""
    outcomes = []
    for step in steps:
        outcome = StepOutcome(step.key, step.kind, step.label, "skipped", message=reason)
        session.journal.note_step(session.run.id, step.key, phase="skipped", message=reason)
        session.observer.step_finished(step, outcome)
        outcomes.append(outcome)
    return outcomes


def groups_of(session: Session) -> list[tuple[Step, ...]]:
    """Return the publish groups in the plan's order, each at the place of its first step."""
    groups: dict[str, list[Step]] = {}
    for step in session.plan.steps:
        groups.setdefault(group_name(step), []).append(step)
    return [tuple(steps) for steps in groups.values()]


def _status(error: MillraceError) -> Status:
    if isinstance(error, Interrupted):
        return "interrupted"
    return "differs" if isinstance(error, TablesDiffer) else "failed"


def _told(error: MillraceError) -> MillraceError:
    """Say what to do where a target's own words may not."""
    if isinstance(error, SeqMoved) and error.hint is None:
        error.hint = "nothing of this run was published here; run again to start from the new version"
    return error
