"""Leases: who is at a step. They tell people; safety is the compare-and-swap of the target's ledger.

A lease is a row with a heartbeat. It is taken over when its heartbeat is older than the time to live, or when its
process is dead on this host. A process that slept longer finds its lease lost.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from millrace.core.names import short_run
from millrace.engine.records import LeaseRow, now
from millrace.errors import MillraceError, TargetBusy

if TYPE_CHECKING:
    from millrace.engine.journal import Journal

TTL = 60.0  # seconds; a paused laptop or a long garbage collection stays below
VARIABLE = "MILLRACE_LEASE_TTL"

_OWNER = secrets.token_hex(8)  # tells this process from an earlier one with the same pid (containers: always 1)


def host() -> str:
    """Return this machine's name."""
    return socket.gethostname()


def ttl_from(environ: dict[str, str] | os._Environ[str] | None = None) -> float:
    """Return the time to live in seconds: `MILLRACE_LEASE_TTL`, or 60."""
    text = (os.environ if environ is None else environ).get(VARIABLE, "")
    try:
        return max(float(text), 0.1)
    except ValueError:
        return TTL


def _pid_lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def alive(lease: LeaseRow, ttl: float) -> bool:
    """Say whether a lease's holder is to be believed alive."""
    if time.time() - lease.heartbeat > ttl:
        return False
    if lease.host != host():
        return True
    if lease.pid == os.getpid():
        return lease.owner == _OWNER
    return _pid_lives(lease.pid)


class Leases:
    """The leases of one run in this process, with one thread that keeps them alive.

    Use as a context manager: leaving it releases all.
    """

    def __init__(self, journal: Journal, run: str, ttl: float | None = None) -> None:
        self._journal = journal
        self._run = run
        self.ttl = ttl_from() if ttl is None else ttl
        self._held: set[str] = set()
        self._lost: set[str] = set()
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._beat, name="millrace-leases", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        if self._thread is not None:
            self._thread.join()
        self.release(sorted(self._held))

    def acquire(self, names: Sequence[str], what: str, wait: float = 0.0) -> None:
        """Take leases, all or none.

        Args:
            names: the leases.
            what: what the error calls them, like `bronze.orders`.
            wait: seconds to wait for another process of this same run.

        Raises:
            TargetBusy: a live process holds one of them.
        """
        deadline = time.monotonic() + wait
        taken: list[str] = []
        try:
            for name in sorted(names):
                while not self._take(name, what, last=time.monotonic() >= deadline):
                    time.sleep(0.1)
                taken.append(name)
        except BaseException:
            self.release(taken)
            raise

    def _take(self, name: str, what: str, *, last: bool) -> bool:
        while True:
            holder = self._journal.lease(name)
            if holder is not None and alive(holder, self.ttl):
                if last or holder.run != self._run:
                    raise _busy(holder, what)
                return False
            mine = LeaseRow(name, self._run, host(), os.getpid(), _OWNER, now(), time.time())
            if self._journal.take_lease(mine, holder):
                with self._lock:
                    self._held.add(name)
                    self._lost.discard(name)
                return True

    def release(self, names: Sequence[str]) -> None:
        """Give leases back; those that were lost are left to their new holders."""
        with self._lock:
            names = [name for name in names if name in self._held]
            self._held.difference_update(names)
        if names:
            self._journal.drop_leases(names, _OWNER, self._run)

    def lost(self, names: Sequence[str]) -> bool:
        """Say whether one of the leases was found taken over at the last heartbeat."""
        with self._lock:
            return any(name in self._lost for name in names)

    def confirm(self, names: Sequence[str], what: str) -> None:
        """Look whether leases are still ours, in the last moment before a publish.

        Raises:
            TargetBusy: another run took one over, while this process was stopped for longer than the time to live.
        """
        gone = self._journal.beat(sorted(names), _OWNER, self._run)
        if gone:
            with self._lock:
                self._lost |= gone
            holder = self._journal.lease(min(gone))
            if holder is not None:
                raise _busy(holder, what)
            raise TargetBusy(f"{what} was taken over by another run, which has ended", hint="run again")

    def _beat(self) -> None:
        while not self._end.wait(self.ttl / 3):
            with self._lock:
                names = sorted(self._held)
            try:
                gone = self._journal.beat(names, _OWNER, self._run) if names else set()
            except MillraceError:
                continue  # the journal is busy; the next beat comes before the lease is stale
            with self._lock:
                self._lost |= gone & self._held


def _busy(holder: LeaseRow, what: str) -> TargetBusy:
    return TargetBusy(
        f"{what} is being worked on by run {short_run(holder.run)}",
        detail=[f"on {holder.host}, pid {holder.pid}, since {holder.acquired}"],
        hint="wait for it to end, or stop it",
    )


def run_lives(journal: Journal, run: str, ttl: float) -> bool:
    """Say whether a process holds a living lease of the run."""
    return any(alive(lease, ttl) for lease in journal.leases(run))
