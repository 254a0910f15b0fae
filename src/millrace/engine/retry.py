"""Trying again: only what an error class calls retryable, with growing waits that a stop ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from millrace.engine.stop import Stop
from millrace.errors import Handling, MillraceError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Retries:
    """How often and how patiently.

    Attributes:
        attempts: tries in all, 1 for no second one.
        wait: seconds before the second try.
        longest: cap of a wait, seconds.
        jitter: up to so many seconds are added, so that runs that failed together do not come back together.
        growth: by which each further wait is longer.
    """

    attempts: int = 3
    wait: float = 1.0
    longest: float = 60.0
    jitter: float = 1.0
    growth: float = 2.0

    def call(
        self, function: Callable[[int], T], stop: Stop, on_retry: Callable[[MillraceError, int, float], None]
    ) -> T:
        """Call `function(attempt)`, attempts counted from 1, until it returns.

        Args:
            function: what to try.
            stop: ends the waits.
            on_retry: told the error, the number of the next attempt and the wait before it in seconds.

        Raises:
            MillraceError: the last attempt's error, or at once one that is not retryable.
        """
        import tenacity  # 30 ms of asyncio

        def tell(state: tenacity.RetryCallState) -> None:
            error = state.outcome.exception() if state.outcome else None
            if isinstance(error, MillraceError) and state.next_action is not None:
                on_retry(error, state.attempt_number + 1, state.next_action.sleep)

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(retryable),
            stop=tenacity.stop_after_attempt(self.attempts),
            wait=tenacity.wait_exponential(self.wait, self.longest, self.growth) + tenacity.wait_random(0, self.jitter),
            before_sleep=tell,
            sleep=stop.sleep,
            reraise=True,
        )
        attempt = 0

        def once() -> T:
            nonlocal attempt
            attempt += 1
            return function(attempt)

        return retrying(once)


def retryable(error: BaseException) -> bool:
    """Say whether trying again may help; what Millrace did not raise on purpose counts as fatal."""
    return isinstance(error, MillraceError) and error.handling is Handling.RETRYABLE
