"""Who watches a run: a terminal or nobody, and always the run's log when the project has one."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from millrace.app.explain import Quiet
from millrace.core.plan import Plan, Step
from millrace.core.ports import Reporter
from millrace.core.staged import CheckResult

if TYPE_CHECKING:
    from millrace.engine.records import Observer, RunInfo, RunResult, StepOutcome


class _Reporters:
    """A step's reporter that tells several."""

    def __init__(self, reporters: Sequence[Reporter]) -> None:
        self._all = reporters

    def total(self, rows: int | None) -> None:
        for reporter in self._all:
            reporter.total(rows)

    def moved(self, rows: int, size: int) -> None:
        for reporter in self._all:
            reporter.moved(rows, size)

    def note(self, text: str) -> None:
        for reporter in self._all:
            reporter.note(text)

    def checks(self, results: Sequence[CheckResult]) -> None:
        for reporter in self._all:
            reporter.checks(results)


class Several:
    """Tells several observers; with none, nobody watches."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._all = tuple(observers)

    def start_run(self, run: RunInfo, plan: Plan) -> None:
        """See `engine.records.Observer`."""
        for observer in self._all:
            observer.start_run(run, plan)

    def step_started(self, step: Step) -> Reporter:
        """See `engine.records.Observer`."""
        return _Reporters([observer.step_started(step) for observer in self._all]) if self._all else Quiet()

    def step_finished(self, step: Step, outcome: StepOutcome) -> None:
        """See `engine.records.Observer`."""
        for observer in self._all:
            observer.step_finished(step, outcome)

    def say(self, event: str, text: str, step: Step | None = None) -> None:
        """See `engine.records.Observer`."""
        for observer in self._all:
            observer.say(event, text, step)

    def end_run(self, result: RunResult) -> None:
        """See `engine.records.Observer`."""
        for observer in self._all:
            observer.end_run(result)

    def close(self) -> None:
        """See `engine.records.Observer`."""
        for observer in self._all:
            observer.close()


def observer(form: str, logs: Path | None = None) -> Observer:
    """Return who watches a run.

    Args:
        form: `auto` (live lines on a terminal, else plain ones), `plain`, `json`, or `silent`.
        logs: folder of the JSON logs, one file per run; None writes none.
    """
    found: list[Observer] = []
    if form != "silent":
        from millrace.observe.progress import reporter_for

        found.append(reporter_for(sys.stdout, form=form, resume="millrace run --resume {run}" if logs else None))
    if logs is not None:
        from millrace.observe.logs import LogObserver

        found.append(LogObserver(logs))
    return Several(found)
