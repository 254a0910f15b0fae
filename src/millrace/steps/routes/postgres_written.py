"""A full sync of a table of which few rows were written: row versions tell which, and only those move.

Comparing by segments finds a change in each of them when the changes lie all over the table, and moves everything. Here
the rows that were written since the last publish are staged, and nothing is read for a second time that is known:

- The target must be what was published last: its own row versions say that nobody wrote into it, else it is digested.
- The source's digest is that of the last copy, without the rows that the staged ones replace, with the staged ones.
  This needs that no row was deleted (the numbers tell) and that the server itself keeps the key. Else, and once within
  `verify`, the source is digested.

Neither is the proof: the publish digests the whole target, and what it finds must be the source's digest. A target that
was no more what was published fails there. When rows were deleted too, nothing but segments can tell which.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from millrace.core.digest import Digest
from millrace.core.ports import Context
from millrace.core.position import Whole
from millrace.core.scrub import instant
from millrace.core.segment import Segment, SegmentId
from millrace.postgres.apply import exact
from millrace.postgres.heap import since, unwritten
from millrace.postgres.keys import proven
from millrace.postgres.parts import alone
from millrace.postgres.stage import PostgresStage
from millrace.steps.routes.postgres_look import Look, whole_digest, whole_digest_there
from millrace.steps.routes.relay import Relay
from millrace.steps.scrubbing import moment

SHARE = 0.25  # of the rows: with more, segments are as fast
PLAN = [Segment("changes", "changes")]


@dataclass(frozen=True, slots=True)
class Written:
    """What was staged of a source.

    Attributes:
        whole: digest of all rows of the source.
        expected: digest of what was staged.
        read: when all rows behind `whole` were read; None: now.
    """

    whole: Digest
    expected: Mapping[SegmentId, Digest]
    read: str | None


def written(look: Look, opened: PostgresStage, ctx: Context) -> Written | None:
    """Stage the rows that were written since the last publish; None: nothing is staged, segments are to be compared."""
    position = None if look.entry is None else look.entry.position
    if look.how != "sync" or look.spec.full_refresh or opened.plan is not None or look.unreadable or not look.settled:
        return None
    if not isinstance(position, Whole) or position.digest is None:
        return None
    found = since(look.source, position, look.snap, most=SHARE)
    if found is None or found.digest is None or not 0 < found.perhaps <= SHARE * found.rows:
        return None
    if not _untouched(look, position.digest):
        return None
    opened.planned(PLAN)
    changed = look.source.narrowed(found.written)
    relay = Relay(look.reader, look.snap, changed, look.key, opened, ctx, 1)
    expected = relay.run(alone(PLAN), {PLAN[0].id: found.digest})
    whole = position.digest - opened.replaced(look.there_rows, look.target_source.columns) + found.digest
    read = position.read if _may_add_up(look, position.read, ctx) else None
    same = whole.rows == found.rows  # else rows were deleted
    if same and read is None:  # they may not add up: the key was not kept, or row versions did not tell all
        same = whole == whole_digest(look.snap.connection, look.source)
    if not same:
        opened.drop(())
        return None
    rows = "1 row" if found.perhaps == 1 else f"{found.perhaps:,} rows"
    told = "" if read is None else ", no other by the row versions"
    ctx.report.note(look.compared(f"{rows} written since the last copy{told}"))
    return Written(whole, expected, read)


def _untouched(look: Look, published: Digest) -> bool:
    """Say whether the target is what was published last."""
    entry = look.entry
    if entry is not None and entry.digest == published:
        with look.target.connect("look") as there:
            if unwritten(there, look.target_source, entry.witness, published.rows):
                return True
    return whole_digest_there(look) == published


def _may_add_up(look: Look, read: str | None, ctx: Context) -> bool:
    """Say whether the source's digest may be made of the last one: see above."""
    key, there = look.source.pick(look.key), look.there.pick(look.key)
    if read is None or look.spec.verify_all or not proven(look.source, key) or not all(map(exact, (*key, *there))):
        return False
    age = (instant(moment(ctx.logical_time)) - instant(read)).total_seconds()
    return look.spec.verify is None or 0 <= age < look.spec.verify
