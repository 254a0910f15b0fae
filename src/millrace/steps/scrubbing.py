"""What the scrubs of all targets share: which parts of a source are due in a run, and what of them is compared."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

from millrace.core.position import Cursor
from millrace.core.scrub import MOST_PARTS, Scrub, instant, told_due
from millrace.postgres.keys import proven
from millrace.postgres.newest import newest_unchanged
from millrace.postgres.reader import PostgresReader, PostgresSnapshot
from millrace.postgres.segments import key_segments
from millrace.postgres.source import Source
from millrace.steps.spec import CopySpec

FINER = 25  # parts are so much smaller than segments that are copied: 10,000 rows


def moment(logical_time: str) -> str:
    """Return the time that a run proves at: its logical time, but never one that has not come."""
    now = dt.datetime.now(dt.UTC)
    return min(instant(logical_time).astimezone(dt.UTC), now).isoformat(timespec="seconds")


def state_of(spec: CopySpec, since: Cursor | None, now: str) -> Scrub | None:
    """Return the state of the parts before a load; None where no parts are kept: the table is always read whole."""
    if spec.mode != "incremental" or spec.cursor is None:
        return None
    if since is None:  # this load reads everything
        return Scrub.whole(now, proven=True)
    return since.scrub or Scrub.whole(now, proven=False)


def split(state: Scrub, spec: CopySpec, source: Source, key: Sequence[str], snap: PostgresSnapshot, rows: int) -> Scrub:
    """Return the state over parts that suit the table's size.

    Args:
        state: before.
        spec: of the copy.
        source: all rows.
        key: key columns.
        snap: the source's snapshot.
        rows: rows of the table, as far as known.
    """
    size = max(1, spec.segment_rows // FINER)
    if not state.outgrown(rows, size):
        return state
    found = key_segments(snap.connection, source, source.pick(key), max(size, -(-rows // MOST_PARTS)))
    return state.split(found, rows)


def due(spec: CopySpec, state: Scrub | None, now: str) -> tuple[int, ...]:
    """Return which parts a run compares."""
    if state is None:
        return ()
    if spec.verify_all:
        return tuple(range(len(state.proven)))
    return () if spec.verify is None else state.due(now, spec.verify)


def unchanged(
    reader: PostgresReader, base: Source, key: Sequence[str], since: Cursor, snap: PostgresSnapshot
) -> Source:
    """Return the rows of the source, one for each key, that did not change since a position."""
    columns = base.pick(key)
    if proven(base, columns):
        return reader.unchanged(base, since, snap)
    return newest_unchanged(base, columns, since.column, reader.changes(base, since, snap))


def said_due(
    spec: CopySpec, since: Cursor, base: Source, key: Sequence[str], snap: PostgresSnapshot, rows: int, now: str
) -> tuple[bool, str]:
    """Return whether parts are due in a run now, and what a plan says about it."""
    state = state_of(spec, since, moment(now))
    if state is None:
        return False, ""
    state = split(state, spec, base, key, snap, rows)
    every = 0.0 if spec.verify_all else spec.verify
    return bool(due(spec, state, moment(now))), told_due(state, moment(now), every)
