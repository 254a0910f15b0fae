"""One door of one step in a process of its own: what orchestrators call. The doors are those of a whole run."""

from __future__ import annotations

from collections.abc import Sequence

from millrace.core.plan import Step
from millrace.engine.collect import Collector
from millrace.engine.doors import KEEPS_STAGE, Doors, as_error, traceback_of
from millrace.engine.groups import lease_names
from millrace.engine.records import DONE_PHASES, RunStatus, StepOutcome, StepRow
from millrace.engine.session import Session, Work, group_name
from millrace.errors import Interrupted, MillraceError, UsageError

PHASES = ("stage", "prove", "publish", "discard")

STAGED_PHASES = ("staged", "proving", "proven", "publishing")

SIBLING_SECONDS = 3600.0  # members of a group share a clone: a second process waits for the first


class PhaseRun:
    """Takes one step through one door."""

    def __init__(self, session: Session, step: Step, phase: str) -> None:
        self.session = session
        self.step = step
        self.phase = phase
        self.doors = Doors(session)
        self.group = session.group(step)
        self.leases = lease_names(self.group, session.scope)
        self.rows: dict[str, StepRow] = {}

    def run(self) -> list[StepOutcome]:
        """Run the phase; a failure of the step is its outcome.

        Raises:
            UsageError: the step has not come so far.
            TargetBusy: another run is at the group.
        """
        session = self.session
        session.leases.acquire(self.leases, self.step.label, wait=SIBLING_SECONDS)
        try:
            self._recall()
            work = Work(session, self.step)
            row = self.rows[self.step.key]
            session.journal.note_started(session.run.id, self.step.key)
            works = [work]
            if row.phase in DONE_PHASES and not (row.phase == "fresh" and self.phase == "stage"):
                self.doors.keep(work, row)
            else:
                works = self._door(work, row)
        finally:
            session.leases.release(self.leases)
        for one in works:
            session.observer.step_finished(one.step, one.outcome())
        return [one.outcome() for one in works]

    def _recall(self) -> None:
        """Read from the journal what other processes of this run did."""
        session = self.session
        members = {step.key for step in self.group}
        for row in session.journal.steps(session.run.id):
            if row.phase == "published":
                session.published.update({entry.asset: entry.seq for entry in row.entries})
            if row.key in members:
                self.rows[row.key] = row
                if row.phase in STAGED_PHASES:
                    session.staged.setdefault(group_name(self.step), []).extend(row.staged)

    def _door(self, work: Work, row: StepRow) -> list[Work]:
        members = [work]
        try:
            if self.phase == "stage":
                self.doors.attempt(work, self.leases, row, prove=False)
                work.status = work.status or "staged"
            elif self.phase == "prove":
                self._prove(work, row)
            elif self.phase == "publish":
                members = self._members(work)
                self._publish(work, members)
            else:
                members = self._members(work)
                self._discard(members)
        except UsageError:
            raise
        except (Exception, KeyboardInterrupt) as caught:  # noqa: BLE001 -- whatever a step raises is an outcome
            self._fail(work, members, caught)
        work.pause_clock()
        return [member for member in members if member.status is not None]

    def _members(self, work: Work) -> list[Work]:
        return [work if step is self.step else Work(self.session, step) for step in self.group]

    def _prove(self, work: Work, row: StepRow) -> None:
        if self.step.assets and row.phase not in STAGED_PHASES and not row.staged:
            raise UsageError(
                f"{self.step.label} is not staged in run {self.session.run.id}: it is {row.phase}",
                hint=f"run this first: millrace step {self.step.key} --run {self.session.run.id} --phase stage",
            )
        self.doors.take_up(work, row)
        self.doors.attempt(work, self.leases)
        if not work.step.assets and len(self.group) == 1:
            self.doors.end(work, "passed")
        work.status = work.status or "proven"

    def _publish(self, work: Work, works: Sequence[Work]) -> None:
        """Publish the group if this is the last of it."""
        missing = [row for row in self.rows.values() if not _ready(row)]
        if self.step.key in {row.key for row in missing}:
            raise UsageError(
                f"{self.step.label} is not proven in run {self.session.run.id}: it is {self.rows[self.step.key].phase}",
                hint=f"run this first: millrace step {self.step.key} --run {self.session.run.id} --phase prove",
            )
        if missing:
            work.status = "proven"
            work.message = "published with its group, which waits for " + ", ".join(
                f"{row.label} ({row.phase})" for row in missing
            )
            return
        for member in works:
            row = self.rows[member.step.key]
            if row.phase in DONE_PHASES:
                self.doors.keep(member, row)
            elif not self.doors.adopt(member, self.doors.look(member)):
                self.doors.take_up(member, row)
                member.proofs = row.proofs
        open_works = [member for member in works if member.status is None]
        if staged := [member for member in open_works if member.staged]:
            self.doors.publish(staged, self.leases)
        for member in open_works:
            if member.status is None:
                self.doors.end(member, "passed")
        if any(member.adopted for member in works):  # killed right after its commit: the target could not tidy up
            self._collect()

    def _discard(self, works: Sequence[Work]) -> None:
        """Drop everything that the group staged; the orchestrator's way to end a group that failed."""
        for member in works:
            row = self.rows[member.step.key]
            if row.phase in DONE_PHASES:
                self.doors.keep(member, row)
                continue
            member.staged = row.staged
            self.doors.discard([member])
            self.doors.end(member, "discarded" if row.staged else "skipped", "its group was discarded")
        self._collect()

    def _collect(self) -> None:
        collector = Collector(self.session, last=True)
        collector.collect()
        collector.complain()

    def _fail(self, work: Work, members: Sequence[Work], caught: BaseException) -> None:
        error = as_error(caught, self.step)
        if error is not caught:
            self.session.observer.say("traceback", traceback_of(caught), self.step)
        unfinished = [member for member in members if member.status is None]
        if not isinstance(error, KEEPS_STAGE):
            self.doors.discard(unfinished)
        self._end(work, unfinished, error)

    def _end(self, work: Work, unfinished: Sequence[Work], error: MillraceError) -> None:
        for member in unfinished:
            if member is not work:
                self.doors.end(member, "failed", f"not published: {work.step.label} failed", None)
        self.doors.end(work, "interrupted" if isinstance(error, Interrupted) else "failed", error.what, error)


def _ready(row: StepRow) -> bool:
    """Say whether a member is proven; one whose publish failed and that kept its stage is, too."""
    return row.phase in ("proven", "publishing", *DONE_PHASES) or bool(row.proofs and row.staged)


def run_status(rows: Sequence[StepRow]) -> RunStatus:
    """Return the status of a run in phases, from its steps: it is running until all of them have ended."""
    phases = {row.phase for row in rows}
    if phases <= set(DONE_PHASES):
        return "done"
    return "failed" if phases & {"failed", "interrupted", "discarded", "skipped"} else "running"
