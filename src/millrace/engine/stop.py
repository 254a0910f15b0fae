"""Ctrl-C and SIGTERM: the first asks steps to end where they can be resumed, the second ends at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from millrace.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Whether the run was asked to stop."""

    def __init__(self) -> None:
        self._flag = threading.Event()

    def __call__(self) -> bool:
        """Say whether it was."""
        return self._flag.is_set()

    def set(self) -> None:
        """Ask the run to stop."""
        self._flag.set()

    def check(self, doing: str, where: str | None = None) -> None:
        """End here when the run was asked to stop.

        Args:
            doing: `before staging`.
            where: the step, as people call it, where there is one.

        Raises:
            Interrupted: it was.
        """
        if self._flag.is_set():
            raise Interrupted(f"stopped {doing}", where=where)

    def sleep(self, seconds: float) -> None:
        """Wait; a stop ends the wait.

        Raises:
            Interrupted: the run was asked to stop.
        """
        self._flag.wait(seconds)
        self.check("while waiting to try again")

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Listen for the signals, in the main thread only: elsewhere the caller has to `set`."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in SIGNALS}

        def handle(_number: int, _frame: FrameType | None) -> None:
            if self._flag.is_set():  # the second: KeyboardInterrupt ends the step wherever it is, a third the process
                for number, handler in before.items():
                    signal.signal(number, handler)
                raise KeyboardInterrupt
            self._flag.set()

        for number in SIGNALS:
            signal.signal(number, handle)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
