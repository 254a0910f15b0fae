"""The three doors of a step, journalled: the same code for a whole run and for `step KEY --phase`.

stage → `engine.staged` → prove → `engine.proven` → `engine.before_publish` → publish → `engine.after_publish` →
journal → `engine.done`. A process may be killed between any two of these.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from typing import TypeVar

from millrace.core.events import reach
from millrace.core.names import AssetId, short_run
from millrace.core.plan import Step
from millrace.core.ports import Settling
from millrace.core.staged import LedgerEntry, Staged
from millrace.engine.records import DONE_PHASES, Phase, Status, StepRow, now
from millrace.engine.session import Session, StepContext, Work, group_name
from millrace.engine.stats import peak_rss
from millrace.errors import (
    CommitUnknown,
    ConnectionRefused,
    Interrupted,
    MillraceError,
    PositionRegressed,
    TransientFailure,
)

T = TypeVar("T")

KEEPS_STAGE = (Interrupted, TransientFailure, ConnectionRefused, CommitUnknown)
"""Failures after which a stage is worth resuming. Of an unknown commit it may even be part of what was published."""


class Doors:
    """Takes the steps of one run through the doors."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.journal = session.journal

    def note(self, work: Work, phase: Phase, **facts: object) -> None:
        """Journal where a step is."""
        self.journal.note_step(self.session.run.id, work.step.key, phase=phase, **facts)

    # before the first door

    def look(self, work: Work) -> dict[AssetId, LedgerEntry | None]:
        """Read the ledger of what the step makes.

        Raises:
            PositionRegressed: it is behind what the journal saw.
        """
        step = work.step
        if not step.target or not step.assets:
            return {}
        session = self.session
        target = session.target(step)
        ledger = {asset: target.ledger(asset) for asset in step.assets}
        if step.target not in session.remembered:
            session.remembered[step.target] = self.journal.remembered(session.scope, step.target)
        memory = session.remembered[step.target]
        ahead = []
        for asset, entry in ledger.items():
            seq, run, time = memory.get(asset, (0, "", ""))
            found = entry.seq if entry else 0
            if found < seq and not session.options.accept_restored:
                raise _regressed(asset, step.target, entry, (seq, run, time))
            if found < seq:
                self.journal.forget(session.scope, step.target, asset)
                memory.pop(asset)
                session.observer.say("restored", f"{asset} is taken as it is, at load {found}", step)
            if entry and entry.seq != seq:
                ahead.append(entry)
        if ahead:
            self._remember(step, ahead)
        return ledger

    def _remember(self, step: Step, entries: Sequence[LedgerEntry]) -> None:
        self.journal.remember(self.session.scope, step.target, entries)
        memory = self.session.remembered.setdefault(step.target, {})
        memory.update({entry.asset: (entry.seq, entry.run, entry.time) for entry in entries})

    def adopt(self, work: Work, ledger: dict[AssetId, LedgerEntry | None]) -> bool:
        """Take a step as published when the ledger carries its load: an earlier attempt came that far."""
        entries = [entry for entry in ledger.values() if entry is not None and entry.load == work.load]
        if not entries:
            return False
        work.adopted = True
        work.message = "published by an earlier attempt"
        self.session.observer.say("adopted", f"the ledger of {work.step.label} carries this load already", work.step)
        self.published(work, entries)
        return True

    def fresh(self, work: Work, ctx: StepContext, ledger: dict[AssetId, LedgerEntry | None]) -> bool:
        """Ask the step's kind whether there is nothing to do."""
        if self.session.options.full_refresh:
            return False
        staged = {staged.asset for staged in ctx.group()}
        if staged.intersection(work.step.inputs):
            return False
        freshness = self.session.kind(work.step).fresh(work.step, ctx)
        if not freshness.fresh:
            return False
        work.entries = tuple(entry for entry in ledger.values() if entry is not None)
        self.end(work, "fresh", freshness.reason)
        return True

    # the doors

    def stage(self, work: Work, ctx: StepContext, ledger: dict[AssetId, LedgerEntry | None]) -> None:
        """The first door. A step that has nothing to publish is fresh afterwards."""
        self.session.stop.check("before staging", work.step.label)
        bases = {asset: entry.seq if entry else 0 for asset, entry in ledger.items()}
        work.bases = bases or None
        self.note(work, "staging", bases=work.bases)
        self.session.dirty = True
        staged = tuple(self.session.kind(work.step).stage(work.step, ctx))
        for one in staged:
            if one.load != work.load or one.asset not in work.step.assets:
                raise MillraceError(
                    f"the step kind {work.step.kind!r} staged {one.asset}, which is not of this step or load",
                    where=work.step.label,
                )
        work.staged = staged
        if not staged and work.step.assets:
            work.entries = tuple(entry for entry in ledger.values() if entry is not None)
            self.end(work, "fresh", work.report.notes[-1] if work.report.notes else "nothing to publish")
            return
        self._hold(work)
        self.note(work, "staged", staged=staged, rows=work.rows)
        reach("engine.staged")

    def _hold(self, work: Work) -> None:
        """Let later steps of the group see what was staged."""
        held = self.session.staged.setdefault(group_name(work.step), [])
        held[:] = [one for one in held if one.load != work.load] + list(work.staged or ())

    def prove(self, work: Work, ctx: StepContext) -> None:
        """The second door."""
        self.session.stop.check("before proving", work.step.label)
        self.note(work, "proving")
        work.report.results.clear()
        work.proofs = tuple(self.session.kind(work.step).prove(work.step, work.staged or (), ctx))
        self.note(work, "proven", proofs=work.proofs)
        reach("engine.proven")

    def attempt(self, work: Work, leases: Sequence[str], row: StepRow | None = None, *, prove: bool = True) -> None:
        """Bring a step to `proven`, `fresh` or `published` (adopted), trying again where that may help.

        Args:
            work: the step.
            leases: what it is worked on under.
            row: what an earlier process of this run left.
            prove: False: stop at `staged`.
        """

        def once(_number: int) -> None:
            ctx = StepContext(work, leases)
            if work.staged is None:
                self._enter(work, ctx, row)
            if prove and work.status is None:
                self.prove(work, ctx)

        self._patiently(work, once)

    def _enter(self, work: Work, ctx: StepContext, row: StepRow | None) -> None:
        ledger = self.look(work)
        if self.adopt(work, ledger):
            return
        if row is not None and self._left(work, ctx, row, ledger):
            self.take_up(work, row)
        elif not self.fresh(work, ctx, ledger):
            self.stage(work, ctx, ledger)

    def take_up(self, work: Work, row: StepRow) -> None:
        """Go on with what an earlier process of this run staged."""
        work.staged, work.bases = row.staged, None if row.bases is None else dict(row.bases)
        self._hold(work)

    def keep(self, work: Work, row: StepRow) -> None:
        """Take over what an earlier process of this run finished."""
        work.status = "published" if row.phase == "published" else "passed" if row.phase == "passed" else "fresh"
        work.entries = row.entries
        work.message = "kept from the first attempt" if row.phase != "fresh" else row.message
        work.pause_clock()
        if row.phase == "published":
            self.session.published.update({entry.asset: entry.seq for entry in row.entries})

    def _left(self, work: Work, ctx: StepContext, row: StepRow, ledger: dict[AssetId, LedgerEntry | None]) -> bool:
        """Say whether what an earlier attempt of this run staged still lies there and is still wanted."""
        if not row.staged or row.bases is None or row.phase in DONE_PHASES or self.session.options.full_refresh:
            return False
        inputs = {str(asset): asset for asset in work.step.inputs}
        there = {(staged.asset, staged.load) for staged in self.session.target(work.step).stages()}

        def good(staged: Staged) -> bool:
            entry = ledger.get(staged.asset)
            return (
                (staged.asset, staged.load) in there
                and staged.base == (entry.seq if entry else 0)
                and staged.code == work.step.code
                and all(n in inputs and ctx.version(inputs[n]) == seq for n, seq in staged.inputs.items())
            )

        return all(good(staged) for staged in row.staged)

    def publish(self, works: Sequence[Work], leases: Sequence[str]) -> None:
        """The third door, for all of a group at once. A target gets one call with everything of it."""
        self.session.stop.check("before publishing", works[-1].step.label)
        label = works[-1].step.label
        for work in works:
            self.note(work, "publishing")
        self.session.leases.confirm(leases, label)
        reach("engine.before_publish")
        for name in dict.fromkeys(work.step.target for work in works):
            members = [work for work in works if work.step.target == name]
            entries = {entry.asset: entry for entry in self._publish_to(name, members)}
            reach("engine.after_publish")
            for work in members:
                self.published(work, [entries[staged.asset] for staged in work.staged or () if staged.asset in entries])
                self._settle(work, leases)
        reach("engine.done")

    def _settle(self, work: Work, leases: Sequence[str]) -> None:
        """Let a kind do what comes after its publish; that it failed undoes nothing, and is told."""
        kind = self.session.kind(work.step)
        if not isinstance(kind, Settling):
            return
        try:
            kind.settle(work.step, StepContext(work, leases))
        except MillraceError as error:
            self.session.observer.say("left", str(error), work.step)

    def _publish_to(self, name: str, works: Sequence[Work]) -> Sequence[LedgerEntry]:
        target = self.session.targets[name]
        staged = [one for work in works for one in work.staged or ()]
        proofs = [proof for work in works for proof in work.proofs or ()]
        expect = {one.asset: one.base for one in staged}
        unknown = False

        def once(_number: int) -> Sequence[LedgerEntry]:
            nonlocal unknown
            if unknown:  # the ledger decides: every asset carries our load, or none does
                found = [target.ledger(one.asset) for one in staged]
                mine = [entry for entry, one in zip(found, staged, strict=True) if entry and entry.load == one.load]
                if len(mine) == len(staged):
                    self.session.observer.say("adopted", "the answer to the commit was lost; it had come through")
                    return mine
            try:
                return target.publish(staged, proofs, expect)
            except CommitUnknown:
                unknown = True
                raise

        return self._patiently(works[-1], once)

    # endings

    def published(self, work: Work, entries: Sequence[LedgerEntry]) -> None:
        """Journal a publish."""
        work.entries = tuple(entries)
        self.session.published.update({entry.asset: entry.seq for entry in entries})
        if entries:
            self._remember(work.step, entries)
        for entry in entries:
            if entry.note:
                work.report.note(entry.note)
        self.end(work, "published", work.message)

    def end(self, work: Work, status: Status, message: str = "", error: MillraceError | None = None) -> None:
        """Journal how a step ended; of one that failed the stage is kept as long as it has bases."""
        work.pause_clock()
        work.status, work.error = status, error
        work.message = message or (work.report.notes[-1] if work.report.notes else "")
        if status in DONE_PHASES:
            work.bases = None
        facts: dict[str, object] = {
            "ended": now(),
            "seconds": round(work.seconds, 3),
            "peak_rss": peak_rss(),
            "message": work.message,
            "entries": work.entries,
            "bases": work.bases,
            "rows": work.rows,
            "error": None if error is None else {**error.to_json(), **_trace(error)},
        }
        if status in DONE_PHASES or work.bases is None:
            facts |= {"staged": None, "proofs": None}
        self.journal.note_checks(self.session.run.id, work.step.key, work.report.results)
        self.note(work, status, **facts)

    def discard(self, works: Sequence[Work]) -> None:
        """Drop the stages of steps that will not be published."""
        for work in works:
            for staged in work.staged or ():
                try:
                    self.session.targets[staged.target or work.step.target].discard(staged)
                except MillraceError as error:
                    self.session.observer.say(
                        "left", f"the stage of {staged.asset} was not dropped: {error}", work.step
                    )
            if work.status not in DONE_PHASES:
                work.bases = None
                held = self.session.staged.get(group_name(work.step), [])
                held[:] = [one for one in held if one.load != work.load]

    def _patiently(self, work: Work, once: Callable[[int], T]) -> T:
        def tell(error: MillraceError, attempt: int, wait: float) -> None:
            text = f"{error.what}: attempt {attempt} of {self.session.retries.attempts} in {wait:.1f} s"
            self.session.observer.say("retry", text, work.step)

        return self.session.retries.call(once, self.session.stop, tell)


def as_error(error: BaseException, step: Step) -> MillraceError:
    """Return an error of ours as it is; wrap any other, which counts as fatal."""
    if isinstance(error, MillraceError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return Interrupted("stopped at once", where=step.label)
    wrapped = MillraceError(
        f"unexpected {type(error).__name__}: {error}",
        where=step.label,
        hint="its traceback is in the run's log",
    )
    wrapped.__cause__ = error
    return wrapped


def traceback_of(error: BaseException) -> str:
    """Return the whole traceback, for logs."""
    return "".join(traceback.format_exception(error))


def _trace(error: MillraceError) -> dict[str, object]:
    cause = error.__cause__
    if type(error) is not MillraceError or cause is None:
        return {}
    return {"traceback": traceback_of(cause)}


def _regressed(asset: AssetId, target: str, entry: LedgerEntry | None, seen: tuple[int, str, str]) -> PositionRegressed:
    seq, run, time = seen
    found = f"load {entry.seq} of {entry.time}" if entry else "nothing"
    return PositionRegressed(
        f"{asset} in {target} is older than this project knows: the target was restored or emptied",
        where=str(asset),
        detail=[f"found {found}, expected load {seq} of {time} (run {short_run(run)})"],
        hint="if that is meant, go on from what is there with: millrace run --accept-restored",
    )
