"""What observers read of a run: the engine's values have these shapes, and rooms do not import the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from millrace.core.plan import Plan, Step
from millrace.core.ports import Reporter
from millrace.core.staged import CheckResult, LedgerEntry
from millrace.errors import MillraceError


class RunSeen(Protocol):
    """A run."""

    @property
    def id(self) -> str:
        """Run id; people see four digits."""

    @property
    def project(self) -> str:
        """Name, or empty."""

    @property
    def env(self) -> str:
        """Environment, or empty."""

    @property
    def pipeline(self) -> str:
        """Name, or empty."""

    @property
    def logical_time(self) -> str:
        """ISO 8601 UTC."""

    @property
    def resumed(self) -> bool:
        """Whether an earlier process began it."""


class OutcomeSeen(Protocol):
    """How a step ended."""

    @property
    def key(self) -> str:
        """The step."""

    @property
    def kind(self) -> str:
        """Its kind."""

    @property
    def label(self) -> str:
        """What people call it."""

    @property
    def status(self) -> str:
        """As in `engine.records.Status`: `published`, `fresh`, `failed` and so on."""

    @property
    def rows(self) -> int | None:
        """Rows, where they apply."""

    @property
    def seconds(self) -> float:
        """Wall time."""

    @property
    def message(self) -> str:
        """One sentence."""

    @property
    def entries(self) -> Sequence[LedgerEntry]:
        """What it published."""

    @property
    def checks(self) -> Sequence[CheckResult]:
        """What was checked."""

    @property
    def error(self) -> MillraceError | None:
        """Why it failed."""

    @property
    def peak_rss(self) -> int:
        """Bytes."""

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON types."""


class ResultSeen(Protocol):
    """How a run ended."""

    @property
    def run(self) -> RunSeen:
        """The run."""

    @property
    def status(self) -> str:
        """`done`, `failed`, `differs` or `interrupted`."""

    @property
    def seconds(self) -> float:
        """Wall time."""

    @property
    def counts(self) -> Mapping[str, int]:
        """Steps by status."""

    @property
    def errors(self) -> Sequence[MillraceError]:
        """Why steps failed."""

    @property
    def quarantined(self) -> int:
        """Rows that wait in quarantine of what its steps make."""

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON types."""


class Observer(Protocol):
    """Who watches a run."""

    def start_run(self, run: RunSeen, plan: Plan) -> None:
        """A run begins."""

    def step_started(self, step: Step) -> Reporter:
        """A step begins."""

    def step_finished(self, step: Step, outcome: OutcomeSeen) -> None:
        """A step ended."""

    def say(self, event: str, text: str, step: Step | None = None) -> None:
        """Tell something worth a line."""

    def end_run(self, result: ResultSeen) -> None:
        """The run ended."""

    def close(self) -> None:
        """Let go of terminal and files."""


class Several:
    """Several observers as one."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def start_run(self, run: RunSeen, plan: Plan) -> None:
        """See `Observer`."""
        for observer in self._observers:
            observer.start_run(run, plan)

    def step_started(self, step: Step) -> Reporter:
        """See `Observer`."""
        return _Reporters([observer.step_started(step) for observer in self._observers])

    def step_finished(self, step: Step, outcome: OutcomeSeen) -> None:
        """See `Observer`."""
        for observer in self._observers:
            observer.step_finished(step, outcome)

    def say(self, event: str, text: str, step: Step | None = None) -> None:
        """See `Observer`."""
        for observer in self._observers:
            observer.say(event, text, step)

    def end_run(self, result: ResultSeen) -> None:
        """See `Observer`."""
        for observer in self._observers:
            observer.end_run(result)

    def close(self) -> None:
        """See `Observer`."""
        for observer in self._observers:
            observer.close()


class _Reporters:
    def __init__(self, reporters: Sequence[Reporter]) -> None:
        self._reporters = reporters

    def total(self, rows: int | None) -> None:
        for reporter in self._reporters:
            reporter.total(rows)

    def moved(self, rows: int, size: int) -> None:
        for reporter in self._reporters:
            reporter.moved(rows, size)

    def note(self, text: str) -> None:
        for reporter in self._reporters:
            reporter.note(text)

    def checks(self, results: Sequence[CheckResult]) -> None:
        for reporter in self._reporters:
            reporter.checks(results)
