"""Copying segments between two PostgreSQL servers: worker threads, each with a session on either side.

All read one exported snapshot. The source's digests are taken on the snapshot's own connection while the bytes move;
where the source has no connection to spare, and for a table of few rows, that one copies too.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait

from millrace.core.digest import Digest
from millrace.core.names import short_run
from millrace.core.ports import Context
from millrace.core.segment import SegmentId
from millrace.errors import Interrupted, MillraceError
from millrace.postgres.names import sql_name
from millrace.postgres.ownership import gone
from millrace.postgres.parts import Part
from millrace.postgres.pump import copy_out
from millrace.postgres.reader import PostgresReader, PostgresSnapshot, digest_segments
from millrace.postgres.session import Connection
from millrace.postgres.source import Source
from millrace.postgres.stage import PostgresStage
from millrace.postgres.types import wire

FEW = 10_000  # rows
LOOK_SECONDS = 0.1  # between looks for a free connection


class Relay:
    """Copies segments of one source into one stage.

    Args:
        source: what is read; its rows are those of all segments.
        key: key columns, by which key segments are cut.
        workers: connections that copy at once.
        new: the stage is a new table, whose generated columns its server computes.
        counted: rows are counted and not digested; nothing of an earlier attempt is kept then.
    """

    def __init__(
        self,
        reader: PostgresReader,
        snap: PostgresSnapshot,
        source: Source,
        key: Sequence[str],
        stage: PostgresStage,
        ctx: Context,
        workers: int,
        *,
        new: bool = False,
        counted: bool = False,
    ) -> None:
        self._reader = reader
        self._snap = snap
        self._source = source
        self._key = source.pick(key)
        self._stage = stage
        self._ctx = ctx
        self._workers = max(1, workers)
        self._counts: dict[SegmentId, Digest] | None = {} if counted else None
        generated = stage.alike or (new and any(column.generated for column in source.columns))
        computed = stage.computed() if generated else frozenset()
        self._columns = tuple(column for column in source.columns if column.name not in computed)
        stage.left_out += [
            f"expression of {sql_name(column.name)} (now a plain column)"
            for column in self._columns
            if new and column.generated
        ]
        self._binary = wire(self._columns) == "binary"
        self._stop = threading.Event()
        self._helped = threading.Event()
        self._lock = threading.Lock()

    def run(
        self,
        parts: Sequence[Part],
        known: Mapping[SegmentId, Digest] | None = None,
        *,
        keep: Collection[SegmentId] = (),
    ) -> dict[SegmentId, Digest]:
        """Copy parts, but for those that an earlier attempt left and that still agree.

        Args:
            parts: what is to be staged; whatever else lies in the stage is dropped.
            known: the source's digests of all parts in this snapshot, when they were taken already; else each part is
                one segment.
            keep: parts that an earlier call has staged.

        Returns:
            The source's digest of each part, or how many rows it was.

        Raises:
            Interrupted: the context said so; finished parts stay.
            MillraceError: the first failure of any thread; the others are stopped.
        """
        digests = {} if known is None else dict(known)
        kept = self._kept(parts, digests, keep)
        todo = [part for part in parts if part.id not in kept]
        self._ctx.report.total(sum(part.rows for part in todo) or None)
        waiting = deque(todo)
        missing = [part for part in parts if part.id not in digests]
        if self._counts is not None:
            digests, missing = self._counts, []
        if _few(parts, digests):
            self._digest(missing, digests)
            self._work(waiting, self._snap.connection)
            return {part.id: digests[part.id] for part in parts}
        with ThreadPoolExecutor(self._workers + 1, thread_name_prefix="millrace-copy") as pool:
            tasks = [pool.submit(self._help, waiting) for _ in range(min(self._workers, len(todo)))]
            tasks.append(pool.submit(self._alone, missing, waiting, digests))
            try:
                _watch(tasks)
            finally:
                self._stop.set()
        return {part.id: digests[part.id] for part in parts}

    def _alone(self, missing: Sequence[Part], waiting: deque[Part], digests: dict[SegmentId, Digest]) -> None:
        """Digest on the snapshot's own connection; copy on it too where no other is to be had."""
        self._digest(missing, digests)
        if not self._helped.wait(LOOK_SECONDS):
            self._work(waiting, self._snap.connection)

    def _help(self, waiting: deque[Part]) -> None:
        """Copy on a connection of its own, as soon as there is one."""
        while waiting and not self._stopping():
            with self._reader.sessions.booked(1) as free:
                if free:
                    self._helped.set()
                    with self._reader.entered(self._snap, "copy") as source:
                        return self._work(waiting, source)
            self._stop.wait(LOOK_SECONDS)
        return None

    def _kept(
        self, parts: Sequence[Part], digests: dict[SegmentId, Digest], keep: Collection[SegmentId]
    ) -> set[SegmentId]:
        """Return the parts that need no copying; drop the others that lie there."""
        if self._stage.earlier is None:
            return set()
        done = self._stage.done() if self._counts is None else {}
        again = [part for part in parts if part.id in done]
        self._digest([part for part in again if part.id not in digests], digests)
        kept = {part.id for part in again if digests[part.id] == done[part.id]}
        self._stage.drop({*kept, *keep})
        if kept:
            run = short_run(self._stage.earlier)
            self._ctx.report.note(f"{len(kept)} of {len(parts)} segments kept from run {run}")
        return kept

    def _stopping(self) -> bool:
        return self._stop.is_set() or self._stage.lost() or self._ctx.stopping()

    def _progress(self, rows: int, size: int) -> None:
        with self._lock:
            self._ctx.report.moved(rows, size)

    def _work(self, waiting: deque[Part], source: Connection) -> None:
        """Copy segments until there are no more."""
        if not waiting:
            return
        labels = (self._source.database, str(self._stage.asset))
        names = [column.name for column in self._columns]
        with self._stage.connect() as target:
            while True:
                if self._stopping():
                    raise self._stopped()
                try:
                    part = waiting.popleft()
                except IndexError:
                    return
                rows = self._source.select([column.value for column in self._columns], part.predicate(self._key))
                try:
                    count = self._stage.copy(
                        part.id,
                        source,
                        copy_out(rows, binary=self._binary),
                        target,
                        names,
                        binary=self._binary,
                        labels=labels,
                        progress=self._progress,
                        stopping=self._stopping,
                    )
                    if self._counts is not None:
                        self._counts[part.id] = Digest.counted(count)
                except Interrupted as error:
                    raise self._stopped() from error

    def _stopped(self) -> MillraceError:
        if self._stage.lost():
            return gone(self._stage.asset)
        return Interrupted(f"{self._stage.asset}: stopped while copying", hint="run again to go on from here")

    def _digest(self, parts: Sequence[Part], digests: dict[SegmentId, Digest]) -> None:
        """Digest parts of one segment each."""
        segments = [segment for part in parts for segment in part.segments]
        names = [column.name for column in self._key]
        for name, digest in digest_segments(self._snap.connection, self._source, segments, names):
            digests[name] = digest
            if self._stopping():
                raise self._stopped()


def _few(parts: Sequence[Part], known: Mapping[SegmentId, Digest]) -> bool:
    """Say whether one connection copies the parts as fast as several, which had to be opened first."""
    if all(part.id in known for part in parts):
        return sum(known[part.id].rows for part in parts) <= FEW
    counted = all(segment.how in ("pages", "range", "bucket") for part in parts for segment in part.segments)
    return counted and sum(part.rows for part in parts) <= FEW


def _watch(tasks: Sequence[Future[None]]) -> None:
    """Wait for all tasks, or raise the first failure."""
    done, _ = wait(tasks, return_when=FIRST_EXCEPTION)
    failed = [error for task in done if (error := task.exception()) is not None]
    for error in sorted(failed, key=lambda error: isinstance(error, Interrupted)):
        raise error
