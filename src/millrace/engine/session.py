"""One run in this process: what all its steps share, and the context that one step is given."""

from __future__ import annotations

import contextlib
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from millrace.core.names import AssetId, fingerprint, load_id
from millrace.core.plan import Plan, Step
from millrace.core.ports import Reporter, StepKind, Target
from millrace.core.staged import CheckResult, LedgerEntry, Proof, Staged
from millrace.engine.leases import Leases
from millrace.engine.records import Observer, RunInfo, Status, StepOutcome
from millrace.engine.retry import Retries
from millrace.engine.stats import peak_rss
from millrace.engine.stop import Stop
from millrace.errors import MillraceError, NotFound

if TYPE_CHECKING:
    from millrace.engine.journal import Journal


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How a run goes.

    Attributes:
        full_refresh: no step counts as fresh.
        fail_fast: the first failure ends the run.
        accept_restored: a target that is behind the journal is taken as it is.
        jobs: publish groups that run at once.
    """

    full_refresh: bool = False
    fail_fast: bool = False
    accept_restored: bool = False
    jobs: int = 1


@dataclass
class Session:
    """What the steps of one run share."""

    journal: Journal
    kinds: Mapping[str, StepKind]
    targets: Mapping[str, Target]
    observer: Observer
    retries: Retries
    stop: Stop
    leases: Leases
    plan: Plan
    run: RunInfo
    options: RunOptions
    scope: str
    work: Path
    locate: Callable[[AssetId], str | None]
    published: dict[AssetId, int] = field(default_factory=dict)
    """Seq of what this run published."""
    staged: dict[str, list[Staged]] = field(default_factory=dict)
    """What the steps of a group have staged, by group."""
    remembered: dict[str, dict[AssetId, tuple[int, str, str]]] = field(default_factory=dict)
    dirty: bool = False
    """Whether a stage may lie in a target that nobody will resume."""

    def target(self, step: Step) -> Target:
        """Return the target of a step.

        Raises:
            NotFound: the runtime has none of that name.
        """
        try:
            return self.targets[step.target]
        except KeyError:
            raise NotFound(f"there is no target {step.target!r}", where=step.label) from None

    def kind(self, step: Step) -> StepKind:
        """Return the kind of a step.

        Raises:
            NotFound: no such kind is installed.
        """
        try:
            return self.kinds[step.kind]
        except KeyError:
            raise NotFound(
                f"there is no step kind {step.kind!r}", where=step.label, detail=[f"known: {', '.join(self.kinds)}"]
            ) from None

    def group(self, step: Step) -> tuple[Step, ...]:
        """Return the steps that become visible together with a step."""
        return tuple(other for other in self.plan.steps if group_name(other) == group_name(step))

    def seq(self, asset: AssetId, reader: Step) -> int | None:
        """Return the version of an input: what this run published, else the latest in its target's ledger."""
        if asset in self.published:
            return self.published[asset]
        maker = next((step for step in self.plan.steps if asset in step.assets), None)
        name = maker.target if maker else self.locate(asset)
        names = [name] if name else [reader.target, *(other for other in self.targets if other != reader.target)]
        for candidate in names:
            if candidate in self.targets and (entry := self.targets[candidate].ledger(asset)):
                return entry.seq
        return None

    def scratch(self, step: Step | None = None) -> Path:
        """Return the run's folder for what may be lost, or a step's folder in it; not made here."""
        folder = self.work / "scratch" / self.run.id
        if step is None:
            return folder
        return folder / f"{re.sub(r'[^A-Za-z0-9.-]+', '_', step.key)[:40]}-{fingerprint(step.key)[:6]}"

    def tidy(self, step: Step | None = None) -> None:
        """Remove a scratch folder, and the run's with the last step's."""
        shutil.rmtree(self.scratch(step), ignore_errors=True)
        if step is not None:
            with contextlib.suppress(OSError):  # others are at work in it
                self.scratch().rmdir()


def group_name(step: Step) -> str:
    """Return the publish group of a step: its own key when it is alone."""
    return step.group or step.key


class StepReport:
    """The Reporter of a step: keeps what is said for the outcome and passes it on."""

    def __init__(self, inner: Reporter) -> None:
        self._inner = inner
        self._lock = threading.Lock()
        self.notes: list[str] = []
        self.results: list[CheckResult] = []
        self.rows = 0

    def total(self, rows: int | None) -> None:
        """See `core.ports.Reporter`."""
        self._inner.total(rows)

    def moved(self, rows: int, size: int) -> None:
        """See `core.ports.Reporter`."""
        with self._lock:
            self.rows += rows
        self._inner.moved(rows, size)

    def note(self, text: str) -> None:
        """See `core.ports.Reporter`."""
        with self._lock:
            self.notes.append(text)
        self._inner.note(text)

    def checks(self, results: Sequence[CheckResult]) -> None:
        """See `core.ports.Reporter`."""
        with self._lock:
            self.results.extend(results)
        self._inner.checks(results)


class Work:
    """One step on its way through the three doors in one run."""

    def __init__(self, session: Session, step: Step) -> None:
        self.session = session
        self.step = step
        self.load = load_id(session.run.id, step.key, step.target)
        self.report = StepReport(session.observer.step_started(step))
        self.status: Status | None = None
        self.staged: tuple[Staged, ...] | None = None
        self.proofs: tuple[Proof, ...] | None = None
        self.entries: tuple[LedgerEntry, ...] = ()
        self.bases: dict[AssetId, int] | None = None
        self.message = ""
        self.error: MillraceError | None = None
        self.adopted = False
        self.seconds = 0.0
        self._since: float | None = time.monotonic()

    def pause_clock(self) -> None:
        """Count the seconds so far; what follows belongs to other steps of the group."""
        if self._since is not None:
            self.seconds += time.monotonic() - self._since
            self._since = None

    def resume_clock(self) -> None:
        """Count seconds from here."""
        self._since = time.monotonic()

    @property
    def rows(self) -> int | None:
        """Rows for people: staged ones; of a fresh or adopted step the asset's, where known."""
        if self.staged:
            return sum(staged.rows for staged in self.staged)
        known = [entry.rows for entry in self.entries if entry.rows >= 0]
        return sum(known) if known and self.step.assets else None

    def outcome(self) -> StepOutcome:
        """Return how it ended."""
        return StepOutcome(
            key=self.step.key,
            kind=self.step.kind,
            label=self.step.label,
            status=self.status or "failed",
            rows=self.rows,
            seconds=self.seconds,
            message=self.message or (self.report.notes[-1] if self.report.notes else ""),
            notes=tuple(self.report.notes),
            entries=self.entries,
            checks=tuple(self.report.results),
            error=self.error,
            adopted=self.adopted,
            peak_rss=peak_rss(),
        )


class StepContext:
    """What a step kind is given: see `core.ports.Context`."""

    def __init__(self, work: Work, leases: Iterable[str]) -> None:
        self._work = work
        self._session = work.session
        self._leases = tuple(leases)
        self.run = self._session.run.id
        self.load = work.load
        self.logical_time = self._session.run.logical_time
        self.report: Reporter = work.report
        self._pins = {asset: self._session.seq(asset, work.step) for asset in work.step.inputs if not self._own(asset)}

    def _own(self, asset: AssetId) -> Staged | None:
        return next((staged for staged in self.group() if staged.asset == asset), None)

    def target(self, name: str) -> Target:
        """See `core.ports.Context`."""
        try:
            return self._session.targets[name]
        except KeyError:
            raise NotFound(f"there is no target {name!r}", where=self._work.step.label) from None

    def version(self, asset: AssetId) -> int | Staged | None:
        """See `core.ports.Context`."""
        if (staged := self._own(asset)) is not None:
            return staged
        if asset not in self._pins:
            self._pins[asset] = self._session.seq(asset, self._work.step)
        return self._pins[asset]

    def group(self) -> Sequence[Staged]:
        """See `core.ports.Context`."""
        return tuple(self._session.staged.get(group_name(self._work.step), ()))

    def scratch(self) -> Path:
        """See `core.ports.Context`."""
        folder = self._session.scratch(self._work.step)
        while not folder.is_dir():
            with contextlib.suppress(FileNotFoundError):  # another step removed the run's empty folder in between
                folder.mkdir(parents=True, exist_ok=True)
        return folder

    def stopping(self) -> bool:
        """See `core.ports.Context`; also true when another run took this step's lease over."""
        return self._session.stop() or self._session.leases.lost(self._leases)
