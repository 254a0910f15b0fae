"""Points that a step passes, for tests and the demo to stop or kill at: core knows the points, `testing/` listens.

`reach("postgres.publish.before_commit")` costs a tuple check when nobody listens.
"""

from __future__ import annotations

from collections.abc import Callable

Listener = Callable[[str], None]

_listeners: list[Listener] = []


def reach(point: str) -> None:
    """Say that the named point is reached."""
    for listener in tuple(_listeners):
        listener(point)


def listen(listener: Listener) -> Callable[[], None]:
    """Call `listener` at every point from now on; the returned function ends that."""
    _listeners.append(listener)
    return lambda: _listeners.remove(listener)
