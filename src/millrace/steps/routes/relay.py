"""Copying segments between two PostgreSQL servers: worker threads, each with a session on either side.

All read one exported snapshot. The source's digests are taken on a connection of their own while the bytes move.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait

from millrace.core.digest import Digest
from millrace.core.names import short_run
from millrace.core.ports import Context
from millrace.core.segment import SegmentId
from millrace.errors import Interrupted, MillraceError
from millrace.postgres.ownership import gone
from millrace.postgres.parts import Part
from millrace.postgres.pump import copy_out
from millrace.postgres.reader import PostgresReader, PostgresSnapshot
from millrace.postgres.source import Source
from millrace.postgres.stage import PostgresStage
from millrace.postgres.types import binary_safe


class Relay:
    """Copies segments of one source into one stage.

    Args:
        source: what is read; its rows are those of all segments.
        key: key columns, by which key segments are cut.
        workers: connections that copy at once.
        new: the stage is a new table, whose generated columns its server computes.
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
    ) -> None:
        self._reader = reader
        self._snap = snap
        self._source = source
        self._key = source.pick(key)
        self._stage = stage
        self._ctx = ctx
        self._workers = max(1, workers)
        self._columns = tuple(column for column in source.columns if not (new and column.generated))
        self._binary = all(binary_safe(column) for column in self._columns)
        self._stop = threading.Event()
        self._lock = threading.Lock()

    def run(self, parts: Sequence[Part], known: Mapping[SegmentId, Digest] | None = None) -> dict[SegmentId, Digest]:
        """Copy parts, but for those that an earlier attempt left and that still agree.

        Args:
            parts: what is to be staged; whatever else lies in the stage is dropped.
            known: the source's digests of all parts in this snapshot, when they were taken already; else each part is
                one segment.

        Returns:
            The source's digest of each part.

        Raises:
            Interrupted: the context said so; finished parts stay.
            MillraceError: the first failure of any thread; the others are stopped.
        """
        digests = {} if known is None else dict(known)
        kept = self._kept(parts, digests)
        todo = [part for part in parts if part.id not in kept]
        self._ctx.report.total(sum(part.rows for part in todo) or None)
        waiting = deque(todo)
        with ThreadPoolExecutor(self._workers + 1, thread_name_prefix="millrace-copy") as pool:
            tasks = [pool.submit(self._work, waiting) for _ in range(min(self._workers, len(todo)))]
            if missing := [part for part in parts if part.id not in digests]:
                tasks.append(pool.submit(self._digest, missing, digests))
            try:
                _watch(tasks)
            finally:
                self._stop.set()
        return {part.id: digests[part.id] for part in parts}

    def _kept(self, parts: Sequence[Part], digests: dict[SegmentId, Digest]) -> set[SegmentId]:
        """Return the parts that need no copying; drop the others that lie there."""
        if self._stage.earlier is None:
            return set()
        done = self._stage.done()
        again = [part for part in parts if part.id in done]
        self._digest([part for part in again if part.id not in digests], digests)
        kept = {part.id for part in again if digests[part.id] == done[part.id]}
        self._stage.drop(kept)
        if kept:
            run = short_run(self._stage.earlier)
            self._ctx.report.note(f"{len(kept)} of {len(parts)} segments kept from run {run}")
        return kept

    def _stopping(self) -> bool:
        return self._stop.is_set() or self._stage.lost() or self._ctx.stopping()

    def _progress(self, rows: int, size: int) -> None:
        with self._lock:
            self._ctx.report.moved(rows, size)

    def _work(self, waiting: deque[Part]) -> None:
        """Copy segments until there are no more."""
        labels = (self._source.database, str(self._stage.asset))
        names = [column.name for column in self._columns]
        with (
            self._reader.entered(self._snap, "copy") as source,
            contextlib.closing(self._stage.connect()) as target,
        ):
            while True:
                if self._stopping():
                    raise self._stopped()
                try:
                    part = waiting.popleft()
                except IndexError:
                    return
                rows = self._source.select([column.identifier for column in self._columns], part.predicate(self._key))
                try:
                    self._stage.copy(
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
                except Interrupted as error:
                    raise self._stopped() from error

    def _stopped(self) -> MillraceError:
        if self._stage.lost():
            return gone(self._stage.asset)
        return Interrupted(f"{self._stage.asset}: stopped while copying", hint="run again to go on from here")

    def _digest(self, parts: Sequence[Part], digests: dict[SegmentId, Digest]) -> None:
        """Digest parts of one segment each, on a connection of its own."""
        segments = [segment for part in parts for segment in part.segments]
        names = [column.name for column in self._key]
        for name, digest in self._reader.digests(self._source, segments, self._snap, names):
            digests[name] = digest
            if self._stopping():
                raise self._stopped()


def _watch(tasks: Sequence[Future[None]]) -> None:
    """Wait for all tasks, or raise the first failure."""
    done, _ = wait(tasks, return_when=FIRST_EXCEPTION)
    failed = [error for task in done if (error := task.exception()) is not None]
    for error in sorted(failed, key=lambda error: isinstance(error, Interrupted)):
        raise error
