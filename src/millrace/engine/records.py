"""What the engine tells: a run, the outcome of a step, the result of a run; and what the journal gives back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, Protocol

from millrace.core.names import AssetId
from millrace.core.plan import Plan, Step
from millrace.core.ports import Reporter
from millrace.core.staged import CheckResult, LedgerEntry, Proof, Staged
from millrace.errors import MillraceError

Status = Literal[
    "published", "fresh", "passed", "failed", "differs", "discarded", "skipped", "interrupted", "staged", "proven"
]
"""How a step ended. `passed`: it publishes nothing and held (a gate); `differs`: it compared tables, and they are not
equal; `staged` and `proven` end a single phase only."""

Phase = Literal[
    "waiting",
    "staging",
    "staged",
    "proving",
    "proven",
    "publishing",
    "published",
    "passed",
    "fresh",
    "failed",
    "differs",
    "discarded",
    "skipped",
    "interrupted",
]
"""Where a step of a run is, as the journal keeps it."""

RunStatus = Literal["running", "done", "failed", "differs", "interrupted", "killed"]

DONE_PHASES = ("published", "passed", "fresh")
"""Phases of a step that nothing is left to do for."""


def now() -> str:
    """Return the time as ISO 8601 in UTC with milliseconds, ending in Z."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def age(time: str) -> float:
    """Return how many seconds ago an ISO 8601 time was."""
    return (datetime.now(UTC) - datetime.fromisoformat(time)).total_seconds()


@dataclass(frozen=True, slots=True)
class RunInfo:
    """A run.

    Attributes:
        id: run id; people see its first four digits.
        logical_time: "now" in models and checks, ISO 8601 UTC.
        started: ISO 8601 UTC.
        resumed: whether an earlier process began it.
    """

    id: str
    project: str = ""
    env: str = ""
    pipeline: str = ""
    logical_time: str = ""
    started: str = ""
    resumed: bool = False


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """How one step of a run ended.

    Attributes:
        rows: staged rows; of a fresh step the asset's rows where the ledger knows them; None where rows do not apply.
        seconds: wall time of its own doors; the last step of a publish group has the publish too.
        message: one sentence: why it is fresh, skipped or failed, or its last note.
        notes: everything the step said.
        entries: the ledger entries that it published, or that stand when it is fresh.
        adopted: an earlier attempt had published it.
        peak_rss: peak memory of this process and its children so far, bytes.
    """

    key: str
    kind: str
    label: str
    status: Status
    rows: int | None = None
    seconds: float = 0.0
    message: str = ""
    notes: tuple[str, ...] = ()
    entries: tuple[LedgerEntry, ...] = ()
    checks: tuple[CheckResult, ...] = ()
    error: MillraceError | None = None
    adopted: bool = False
    peak_rss: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the outcome as JSON types."""
        return {
            "key": self.key,
            "kind": self.kind,
            "label": self.label,
            "status": self.status,
            "rows": self.rows,
            "seconds": round(self.seconds, 3),
            "message": self.message,
            "notes": list(self.notes),
            "entries": [entry.to_json() for entry in self.entries],
            "checks": [check.to_json() for check in self.checks],
            "error": None if self.error is None else self.error.to_json(),
            "adopted": self.adopted,
            "peak_rss": self.peak_rss,
        }


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a run ended."""

    run: RunInfo
    steps: tuple[StepOutcome, ...]
    status: RunStatus
    seconds: float = 0.0

    @property
    def counts(self) -> Mapping[str, int]:
        """Number of steps by status."""
        return Counter(step.status for step in self.steps)

    @property
    def errors(self) -> tuple[MillraceError, ...]:
        """The errors of the steps that failed, in the plan's order."""
        return tuple(step.error for step in self.steps if step.error is not None)

    @property
    def quarantined(self) -> int:
        """Rows that wait in quarantine of what the steps have published or found fresh."""
        return sum(entry.quarantined for step in self.steps for entry in step.entries)

    @property
    def exit_code(self) -> int:
        """0 done, 1 failed, 2 when nothing but usage was wrong, 130 interrupted."""
        if self.status == "interrupted":
            return 130
        if self.status == "done":
            return 0
        return min((error.exit_code for error in self.errors), default=1)

    def __getitem__(self, key: str) -> StepOutcome:
        for step in self.steps:
            if step.key == key:
                return step
        raise KeyError(key)

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON types."""
        return {
            "run": self.run.id,
            "project": self.run.project,
            "env": self.run.env,
            "pipeline": self.run.pipeline,
            "logical_time": self.run.logical_time,
            "started": self.run.started,
            "status": self.status,
            "seconds": round(self.seconds, 3),
            "counts": dict(self.counts),
            "steps": [step.to_json() for step in self.steps],
        }


class Observer(Protocol):
    """Who watches a run: a terminal, a log, several of them. Called from the thread that runs the step."""

    def start_run(self, run: RunInfo, plan: Plan) -> None:
        """A run begins."""

    def step_started(self, step: Step) -> Reporter:
        """A step begins; it reports its progress to what is returned."""

    def step_finished(self, step: Step, outcome: StepOutcome) -> None:
        """A step ended, skipped and fresh ones too; once per step, in a group after the group's publish."""

    def say(self, event: str, text: str, step: Step | None = None) -> None:
        """Tell something worth a line in the log.

        Events are `retry`, `proven` (waits for its group), `adopted`, `restored` (accepted), `collected` (leftovers
        dropped), `left` (they could not be), `traceback`.
        """

    def end_run(self, result: RunResult) -> None:
        """The run ended."""

    def close(self) -> None:
        """Let go of terminal and files; called once, last, also when the run was ended by an exception."""


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run as the journal keeps it; `pid` is None when an orchestrator runs the phases as processes of their own."""

    id: str
    project: str
    env: str
    pipeline: str
    started: str
    ended: str | None
    status: RunStatus
    logical_time: str
    host: str
    pid: int | None
    command: str


@dataclass(frozen=True, slots=True)
class StepRow:
    """A step of a run as the journal keeps it.

    Attributes:
        position: its place in the plan, from 0.
        bases: the ledger seq of each asset that it was staged upon; None when no stage of it is left on purpose.
    """

    run: str
    key: str
    position: int
    kind: str
    label: str
    target: str
    phase: Phase
    started: str | None = None
    ended: str | None = None
    rows: int | None = None
    seconds: float | None = None
    peak_rss: int | None = None
    message: str = ""
    bases: Mapping[AssetId, int] | None = None
    staged: tuple[Staged, ...] = ()
    proofs: tuple[Proof, ...] = ()
    entries: tuple[LedgerEntry, ...] = ()
    error: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class LeaseRow:
    """Who is at something."""

    name: str
    run: str
    host: str
    pid: int
    owner: str
    acquired: str
    heartbeat: float
