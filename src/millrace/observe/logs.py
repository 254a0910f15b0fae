"""JSON lines: `.millrace/logs/<run>.jsonl`, and standard error with `--log-format json`.

Every line has `ts`, `level` and `event`, and `run`, `step`, `asset` where they are known. Known secrets are hidden
in every text.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import threading
from collections.abc import Sequence
from copy import copy
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Self

from millrace.core.plan import Plan, Step
from millrace.core.ports import Reporter
from millrace.core.staged import CheckResult
from millrace.observe.redaction import clean
from millrace.observe.shapes import OutcomeSeen, ResultSeen, RunSeen

LEVELS = {"retry": "warning", "left": "warning", "restored": "warning", "traceback": "error"}


class JsonLog:
    """Writes JSON lines to several files, from any thread.

    Args:
        files: where to.
        **known: what every line carries.
    """

    def __init__(self, files: Sequence[IO[str]], **known: Any) -> None:
        self._files = files
        self._lock = threading.Lock()
        self.known = known

    def bind(self, **known: Any) -> Self:
        """Return a log to the same files whose lines carry more."""
        more = copy(self)
        more.known = {**self.known, **known}
        return more

    def write(self, level: str, event: str, /, **facts: Any) -> None:
        """Write one line, with known secrets hidden in every text."""
        ts = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = json.dumps(clean({"ts": ts, "level": level, "event": event, **self.known, **facts}), ensure_ascii=False)
        with self._lock:
            for file in self._files:
                with contextlib.suppress(ValueError, OSError):  # a log that is closed or full must not end a run
                    file.write(line + "\n")
                    file.flush()


class _Bridge(logging.Handler):
    """Brings warnings of libraries into the log."""

    def __init__(self, logger: JsonLog) -> None:
        super().__init__(logging.WARNING)
        self._logger = logger

    def emit(self, record: logging.LogRecord) -> None:
        try:
            level = "error" if record.levelno >= logging.ERROR else "warning"
            self._logger.write(level, "library", logger=record.name, text=record.getMessage())
        except Exception:  # noqa: BLE001 -- as the standard library's own handlers do
            self.handleError(record)


class LogObserver:
    """Writes a run as JSON lines.

    Args:
        folder: folder of the logs, one file per run; None writes no file.
        stderr: write to standard error as well.
    """

    def __init__(self, folder: Path | None, *, stderr: bool = False) -> None:
        self._folder = folder
        self._stderr = stderr
        self._file: IO[str] | None = None
        self._bridge: _Bridge | None = None
        self._log: JsonLog | None = None
        self.path: Path | None = None

    def open(self, run: str) -> JsonLog:
        """Open the log of a run; a resumed run's is continued. Phases call it themselves."""
        if self._log is not None:
            return self._log
        files: list[IO[str]] = [sys.stderr] if self._stderr else []
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self.path = self._folder / f"{run}.jsonl"
            self._file = self.path.open("a", encoding="utf-8")
            files.append(self._file)
        self._log = JsonLog(files, run=run)
        self._bridge = _Bridge(self._log)
        logging.getLogger().addHandler(self._bridge)
        return self._log

    def close(self) -> None:
        """Close the log."""
        if self._bridge is not None:
            logging.getLogger().removeHandler(self._bridge)
        if self._file is not None:
            self._file.close()
        self._log = self._file = self._bridge = None

    def start_run(self, run: RunSeen, plan: Plan) -> None:
        """See `shapes.Observer`."""
        self.open(run.id).write(
            "info",
            "run started",
            project=run.project,
            env=run.env,
            pipeline=run.pipeline,
            logical_time=run.logical_time,
            resumed=run.resumed,
            steps=len(plan.steps),
        )

    def step_started(self, step: Step) -> Reporter:
        """See `shapes.Observer`."""
        logger = self._log or JsonLog([sys.stderr] if self._stderr else [])
        bound = logger.bind(**_names(step))
        bound.write("info", "step started")
        return _StepLog(bound)

    def step_finished(self, step: Step, outcome: OutcomeSeen) -> None:
        """See `shapes.Observer`."""
        if self._log is None:
            return
        level = "error" if outcome.error is not None else "info"
        rate = round(outcome.rows / outcome.seconds) if outcome.rows and outcome.seconds > 0 else None
        self._log.write(
            level,
            "step finished",
            **_names(step),
            status=outcome.status,
            rows=outcome.rows,
            seconds=round(outcome.seconds, 3),
            rows_per_second=rate if outcome.status == "published" else None,
            peak_rss=outcome.peak_rss,
            message=outcome.message,
            versions={str(entry.asset): entry.seq for entry in outcome.entries},
            error=None if outcome.error is None else outcome.error.to_json(),
        )

    def say(self, event: str, text: str, step: Step | None = None) -> None:
        """See `shapes.Observer`."""
        if self._log is not None:
            self._log.write(LEVELS.get(event, "info"), event, **(_names(step) if step else {}), text=text)

    def end_run(self, result: ResultSeen) -> None:
        """See `shapes.Observer`."""
        log = self.open(result.run.id)
        level = "info" if result.status == "done" else "error"
        log.write(
            level, "run ended", status=result.status, seconds=round(result.seconds, 3), counts=dict(result.counts)
        )


class _StepLog:
    """The Reporter of a step: notes and checks are lines, progress is not."""

    def __init__(self, log: JsonLog) -> None:
        self._log = log

    def total(self, rows: int | None) -> None:
        self._log.write("debug", "rows expected", rows=rows)

    def moved(self, rows: int, size: int) -> None:
        """Called thousands of times: the sum is in `step finished`."""

    def note(self, text: str) -> None:
        self._log.write("info", "note", text=text)

    def checks(self, results: Sequence[CheckResult]) -> None:
        for result in results:
            level = "info" if result.passed else "error" if result.blocking else "warning"
            self._log.write(level, "check", **{**result.to_json(), "asset": str(result.asset)})


def _names(step: Step) -> dict[str, Any]:
    named: dict[str, Any] = {"step": step.key}
    if len(step.assets) == 1:
        named["asset"] = str(step.assets[0])
    return named
