"""What a backfill needs besides a sync of its interval: rows that have left the interval at the source.

Such a row stands in the target's interval and not in the source's. To delete it there would lose it, because the
incremental copy may have passed the place where it is now. It is staged as it is now, wherever that is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from psycopg import sql

from millrace.core.digest import Digest
from millrace.core.ports import Context
from millrace.core.segment import Segment, SegmentId
from millrace.errors import GuardRefused
from millrace.postgres.newest import lacking
from millrace.postgres.parts import alone, any_of
from millrace.postgres.session import translated
from millrace.postgres.source import both
from millrace.postgres.stage import PostgresStage
from millrace.postgres.types import text_form
from millrace.steps.routes.postgres_look import Look
from millrace.steps.routes.relay import Relay

CHUNK = 1_000  # keys of a query
MOST = 100_000


def bring_moved(
    look: Look, opened: PostgresStage, segments: Sequence[Segment], staged: Mapping[SegmentId, Digest], ctx: Context
) -> dict[SegmentId, Digest]:
    """Stage the source's rows, outside the interval, of the keys that the target has in it and the stage has not.

    Returns:
        The source's digests of all that is staged then.

    Raises:
        GuardRefused: there are too many such keys to ask for.
    """
    target = look.target_source
    key = target.pick(look.key)
    listed = sql.SQL(", ").join(column.identifier for column in key)
    lost = lacking(key, look.there.identifier, sql.SQL("select {} from {}").format(listed, opened.identifier))
    query = target.select([text_form(column) for column in key], both(any_of(segments, key), lost))
    with (
        look.target.connect("backfill") as there,
        translated(target.database, f"compare {target.label}", connection=there),
    ):
        keys = there.execute(query + sql.SQL(" limit {}").format(sql.Literal(MOST + 1))).fetchall()
    if len(keys) > MOST:
        raise GuardRefused(
            f"more than {MOST:,} rows of the interval are not in it at the source",
            where=f"{target.label} in {target.database}",
            hint="backfill shorter intervals, or compare everything with --full-refresh",
        )
    expected = dict(staged)
    for number in range(0, len(keys), CHUNK):
        rows = [
            sql.SQL("({})").format(sql.SQL(", ").join(sql.Literal(value) for value in row))
            for row in keys[number : number + CHUNK]
        ]
        chosen = sql.SQL("({}) in ({})").format(listed, sql.SQL(", ").join(rows))
        relay = Relay(look.reader, look.snap, look.everywhere.narrowed(chosen), look.key, opened, ctx, 1)
        found = relay.run(alone([Segment(f"moved-{number}", "changes")]), keep=expected)
        expected |= found
    return expected
