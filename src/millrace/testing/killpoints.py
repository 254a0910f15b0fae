"""Kill or pause this process at a named point (`core.events.reach`), for tests and the demo.

`MILLRACE_KILL_AT=postgres.publish.before_commit` kills the process with SIGKILL when the point is reached;
`name:3` at the third time. `MILLRACE_PAUSE_AT` stops it with SIGSTOP instead, until someone sends SIGCONT.
`MILLRACE_INTERRUPT_AT` sends SIGINT, as Ctrl-C would.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping

from millrace.core import events

ACTIONS = {
    "MILLRACE_KILL_AT": signal.SIGKILL,
    "MILLRACE_PAUSE_AT": signal.SIGSTOP,
    "MILLRACE_INTERRUPT_AT": signal.SIGINT,
}


def arm(environment: Mapping[str, str]) -> None:
    """Listen for the points that the environment names."""
    for variable, action in ACTIONS.items():
        if wanted := environment.get(variable):
            point, _, count = wanted.partition(":")
            events.listen(_signal_at(point, int(count or 1), action))


def _signal_at(point: str, count: int, action: signal.Signals) -> Callable[[str], None]:
    left = [count]

    def listener(reached: str) -> None:
        if reached == point:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), action)

    return listener
