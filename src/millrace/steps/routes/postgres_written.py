"""A full sync of a table of which few rows were written: row versions tell which, and only those move.

Comparing by segments finds a change in each of them when the changes lie all over the table, and moves everything. Here
both tables are digested once: the target must still be what was published last. Then the rows that were written since
are staged. When rows were deleted too, nothing but segments can tell which. The publish proves the whole table,
whatever was staged.
"""

from __future__ import annotations

from collections.abc import Mapping

from millrace.core.digest import Digest
from millrace.core.ports import Context
from millrace.core.position import Whole
from millrace.core.segment import Segment, SegmentId
from millrace.postgres.heap import since
from millrace.postgres.parts import alone
from millrace.postgres.stage import PostgresStage
from millrace.steps.routes.postgres_look import Look, both_digests
from millrace.steps.routes.relay import Relay

SHARE = 0.25  # of the rows: with more, segments are as fast
PLAN = [Segment("changes", "changes")]


def written(look: Look, opened: PostgresStage, ctx: Context) -> tuple[Digest, Mapping[SegmentId, Digest]] | None:
    """Stage the rows that were written since the last publish.

    Returns:
        The digest of all rows of the source, and of what was staged; None: segments have to be compared, and nothing
        is staged.
    """
    position = None if look.entry is None else look.entry.position
    if look.how != "sync" or look.spec.full_refresh or opened.plan is not None or not isinstance(position, Whole):
        return None
    found = since(look.source, position, look.snap)
    if found is None or not 0 < found.perhaps <= SHARE * found.rows:
        return None
    whole = Segment.whole()
    ours, theirs = (side[whole.id] for side in both_digests(look, [whole]))
    if theirs != position.digest or ours == theirs:
        return None
    opened.planned(PLAN)
    changed = look.source.narrowed(found.written)
    relay = Relay(look.reader, look.snap, changed, look.key, opened, ctx, 1)
    expected = relay.run(alone(PLAN))
    if theirs.rows + opened.lacking(look.there) != ours.rows:  # rows were deleted
        opened.drop(())
        return None
    rows = "1 row" if found.perhaps == 1 else f"{found.perhaps:,} rows"
    ctx.report.note(look.compared(f"{rows} written since the last copy"))
    return ours, expected
