"""A small Context for tests of routes and step kinds: one step of one run, without an engine."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from millrace.core.names import AssetId, load_id, new_run_id
from millrace.core.plan import Step
from millrace.core.ports import Target
from millrace.core.staged import CheckResult, Staged


@dataclass
class Report:
    """Keeps what was reported."""

    notes: list[str] = field(default_factory=list)
    results: list[CheckResult] = field(default_factory=list)
    expected: int | None = None
    rows: int = 0
    size: int = 0

    def total(self, rows: int | None) -> None:
        self.expected = rows

    def moved(self, rows: int, size: int) -> None:
        self.rows += rows
        self.size += size

    def note(self, text: str) -> None:
        self.notes.append(text)

    def checks(self, results: Sequence[CheckResult]) -> None:
        self.results += results


class StepContext:
    """What a step is given: targets by name, the inputs' versions, what its group has staged."""

    def __init__(
        self,
        step: Step,
        targets: Mapping[str, Target] | None = None,
        *,
        run: str | None = None,
        versions: Mapping[AssetId, int | Staged] | None = None,
        group: Sequence[Staged] = (),
        logical_time: str = "2026-11-20T06:00:00Z",
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self.run = run or new_run_id()
        self.load = load_id(self.run, step.key, step.target)
        self.logical_time = logical_time
        self.report = Report()
        self._targets = dict(targets or {})
        self._versions = dict(versions or {})
        self._group = tuple(group)
        self._stopping = stopping
        self._scratch: tempfile.TemporaryDirectory[str] | None = None

    def target(self, name: str) -> Target:
        return self._targets[name]

    def version(self, asset: AssetId) -> int | Staged | None:
        return self._versions.get(asset)

    def group(self) -> Sequence[Staged]:
        return self._group

    def scratch(self) -> Path:
        if self._scratch is None:
            self._scratch = tempfile.TemporaryDirectory(prefix="millrace-step-")
        return Path(self._scratch.name)

    def stopping(self) -> bool:
        return self._stopping()

    def close(self) -> None:
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None
