"""How a program's own steps went: checkpoints, time, memory, rows per second; and retries of what may be retried."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal, ParamSpec, TypeVar, get_args

from millrace.api.records import Record
from millrace.core.secrets import redact
from millrace.engine.retry import Retries
from millrace.engine.stats import peak_rss
from millrace.engine.stop import Stop
from millrace.errors import MillraceError, UsageError, did_you_mean

P = ParamSpec("P")
T = TypeVar("T")

Status = Literal["running", "success", "failed", "recovered", "error"]
MB = 1e6

_log = logging.getLogger("millrace.api")


@dataclass(frozen=True, slots=True)
class Checkpoint(Record):
    """One point that a task reached: the step, one sentence, seconds since the start, peak memory in MB."""

    step: str
    message: str
    seconds: float
    memory_mb: float


@dataclass(frozen=True, slots=True)
class MonitoringReport(Record):
    """How a task went.

    Attributes:
        started: ISO 8601, UTC.
        duration: seconds.
        memory_mb: peak resident memory.
        checkpoints: in the order they were reached.
    """

    dag_id: str
    task_id: str
    status: Status
    started: str
    duration: float
    memory_mb: float
    checkpoints: tuple[Checkpoint, ...] = ()


@dataclass(slots=True)
class Monitoring:
    """Checkpoints of one task.

    Args:
        dag_id, task_id: what messages and the report call it.

    Attributes:
        start_time: when it was made, UTC.
        checkpoints: what was reached.
        status: `running` until `stop_monitoring`.
    """

    dag_id: str
    task_id: str
    start_time: datetime = field(default_factory=lambda: datetime.now(UTC), init=False)
    checkpoints: list[Checkpoint] = field(default_factory=list, init=False)
    status: Status = field(default="running", init=False)
    _since: float = field(default_factory=time.monotonic, init=False)

    def add_checkpoint(self, step: str, message: str) -> Checkpoint:
        """Note that a step was reached; secrets in the message are struck out."""
        point = Checkpoint(step, redact(message), round(self._seconds(), 3), round(peak_rss() / MB, 1))
        self.checkpoints.append(point)
        _log.info("%s.%s: %s: %s", self.dag_id, self.task_id, step, point.message)
        return point

    def stop_monitoring(self, final_status: Status) -> MonitoringReport:
        """End it.

        Raises:
            UsageError: there is no such status, or it is `running`.
        """
        known = [status for status in get_args(Status) if status != "running"]
        if final_status not in known:
            hint = did_you_mean(final_status, known) or f"one of: {', '.join(known)}"
            raise UsageError(f"unknown final status {final_status!r}", hint=hint)
        self.status = final_status
        return MonitoringReport(
            self.dag_id,
            self.task_id,
            final_status,
            self.start_time.isoformat(timespec="seconds"),
            round(self._seconds(), 3),
            round(peak_rss() / MB, 1),
            tuple(self.checkpoints),
        )

    def _seconds(self) -> float:
        return time.monotonic() - self._since


@dataclass(slots=True)
class Performance:
    """What `performance_monitoring` measures; whole once its block has ended.

    Attributes:
        status: `running`, then `success` or `failed`.
        seconds: wall time.
        memory_change_mb: growth of the peak resident memory, never negative.
    """

    operation: str
    status: Status = "running"
    seconds: float = 0.0
    memory_change_mb: float = 0.0


@contextmanager
def performance_monitoring(operation_name: str) -> Iterator[Performance]:
    """Measure a block; an error passes through and makes the status `failed`."""
    measured, since, before = Performance(operation_name), time.monotonic(), peak_rss()
    try:
        yield measured
        measured.status = "success"
    except BaseException:
        measured.status = "failed"
        raise
    finally:
        measured.seconds = time.monotonic() - since
        measured.memory_change_mb = max(0, peak_rss() - before) / MB
        _log.info(
            "%s: %s after %.2f s, %.1f MB more",
            operation_name,
            measured.status,
            measured.seconds,
            measured.memory_change_mb,
        )


@dataclass(frozen=True, slots=True)
class ProcessingStats(Record):
    """What moving rows cost.

    Attributes:
        source_records, target_records: rows read, and rows moved.
        processing_rate: rows moved per second; 0.0 when no time passed.
        memory_efficiency: rows moved per MB; 0.0 without memory.
        execution_time: seconds.
        memory_usage: MB.
    """

    source_records: int
    target_records: int
    processing_rate: float
    memory_efficiency: float
    execution_time: float
    memory_usage: float


def collect_processing_stats(
    source_count: int, target_count: int, execution_time: float, memory_usage: float
) -> ProcessingStats:
    """Return rates of a copy.

    Args:
        source_count: rows read.
        target_count: rows moved in this run, not all rows of the target.
        execution_time: seconds.
        memory_usage: MB, the peak.
    """
    return ProcessingStats(
        source_count,
        target_count,
        target_count / execution_time if execution_time > 0 else 0.0,
        target_count / memory_usage if memory_usage > 0 else 0.0,
        execution_time,
        memory_usage,
    )


def retry_with_backoff(
    max_retries: int = 3, base_delay: float = 1.0, max_delay: float = 60.0, exponential_base: float = 2.0
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorate a function so that retryable errors (`MillraceError.handling`) are tried again; others pass at once.

    Args:
        max_retries: attempts in all, as in earlier pipelines.
        base_delay: seconds before the second attempt; a random part of up to as much is added.
        max_delay: cap of a wait, seconds.
        exponential_base: by which each further wait is longer.

    Raises:
        UsageError: less than one attempt, or a negative wait.
    """
    if max_retries < 1 or base_delay < 0 or max_delay < 0 or exponential_base < 1:
        raise UsageError(
            f"max_retries={max_retries}, base_delay={base_delay}, max_delay={max_delay}, "
            f"exponential_base={exponential_base} cannot be tried",
            hint="at least one attempt, waits of 0 or more, a base of 1 or more",
        )
    retries = Retries(max_retries, base_delay, max_delay, base_delay, exponential_base)

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            return retries.call(lambda _: function(*args, **kwargs), Stop(), _told)

        return call

    return decorate


def _told(error: MillraceError, attempt: int, wait: float) -> None:
    _log.warning("attempt %d in %.1f s: %s", attempt, wait, redact(error.what))
