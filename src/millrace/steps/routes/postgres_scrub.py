"""The scrub of a table in PostgreSQL: parts of it are compared with the source, and those that differ are staged too.

Rows that changed since the position lie in the stage already and are left out on both sides. What differs among the
others is staged beside them: one merge brings both, and deletes what those parts hold and the source does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from psycopg import sql

from millrace.core import scrub as parts
from millrace.core.digest import Digest
from millrace.core.ports import Context
from millrace.core.scrub import Scrub
from millrace.core.segment import Segment, SegmentId
from millrace.postgres.apply import refuse_deletes
from millrace.postgres.deletes import alive
from millrace.postgres.newest import lacking
from millrace.postgres.parts import any_of, gathered, joined
from millrace.postgres.reader import digest_segments
from millrace.postgres.session import Connection, translated
from millrace.postgres.stage import PostgresStage
from millrace.steps.routes.postgres_look import Look, whole_digest
from millrace.steps.routes.relay import Relay
from millrace.steps.scrubbing import due, moment, split, state_of, unchanged


@dataclass(frozen=True, slots=True)
class Scrubbed:
    """What a scrub found, and what was staged for it.

    Attributes:
        state: for the position after the load.
        expected: digests of the staged parts.
        detail: facts for the publish; `scrub` is one line for people.
    """

    state: Scrub | None
    expected: Mapping[SegmentId, Digest] = field(default_factory=dict)
    detail: Mapping[str, Any] = field(default_factory=dict)


def rows_of(look: Look) -> int:
    """Return the rows of the table, as far as somebody knows."""
    relation = look.base.relation if look.base.where is None else None
    known = (look.entry.rows if look.entry else -1, look.there.rows, relation.rows if relation else -1)
    return max(0, *known)


def scrub(look: Look, opened: PostgresStage, changes: Mapping[SegmentId, Digest], ctx: Context) -> Scrubbed:
    """Compare the parts that are due; stage those that differ.

    Args:
        look: at both sides, with a position.
        opened: the stage; the changes since the position lie in it.
        changes: what was staged: the source's digests.
        ctx: of the step.

    Raises:
        GuardRefused: more rows are gone at the source than `max_delete` allows.
    """
    now = moment(ctx.logical_time)
    state = state_of(look.spec, look.since, now)
    if state is None or look.since is None:
        return Scrubbed(state)
    state = split(state, look.spec, look.base, look.key, look.snap, rows_of(look))
    numbers = due(look.spec, state, now)
    after = state.after(numbers, now)
    if not numbers:
        return Scrubbed(after)
    segments = state.segments()
    wanted = [segments[number] for number in numbers]
    rows = alive(unchanged(look.reader, look.base, look.key, look.since, look.snap), look.spec.soft_delete)
    due_rows = rows.narrowed(any_of(wanted, look.base.pick(look.key)))  # by index, or hashed no further than the key
    ours = dict(digest_segments(look.snap.connection, due_rows, wanted, look.key))
    with look.target.connect("scrub") as there:
        theirs = _theirs(look, opened, there, wanted)
        different = [segment for segment in wanted if ours[segment.id] != theirs[segment.id]]
        scrubbed: dict[str, Any] = {}
        expected: Mapping[SegmentId, Digest] = {}
        missing = changed = deleted = 0
        if different:
            before = _against(look, opened, there)
            groups = gathered(different, look.spec.segment_rows, look.spec.workers)
            form = look.schema.shape
            known = {part.id: Digest.sum((ours[one.id] for one in part.segments), form) for part in groups}
            relay = Relay(look.reader, look.snap, rows, look.key, opened, ctx, look.spec.workers)
            expected = relay.run(groups, known, keep=changes)
            missing, changed = (now - then for now, then in zip(_against(look, opened, there), before, strict=True))
            deleted = _gone(look, opened, there, different)
            scrubbed["segments"] = [segment.to_json() for segment in joined(different)]
    if len(numbers) == len(segments):
        whole = Digest.sum([*ours.values(), *changes.values()], look.schema.shape)
        if look.spec.soft_delete is not None:  # changes that are marked as deleted will not stand in the target
            whole = whole_digest(look.snap.connection, look.source)
        scrubbed["whole"] = whole.to_json()
    told = parts.told(len(numbers), len(segments), missing=missing, changed=changed, deleted=deleted)
    return Scrubbed(after, expected, {"scrubbed": scrubbed, "scrub": told})


def _theirs(
    look: Look, opened: PostgresStage, there: Connection, segments: Sequence[Segment]
) -> Mapping[SegmentId, Digest]:
    """Digest the target's rows whose keys are not staged."""
    target = look.target_source
    key = target.pick(look.key)
    staged = sql.SQL("select {} from {}").format(
        sql.SQL(", ").join(column.identifier for column in key), opened.identifier
    )
    with translated(target.database, "look at the stage", connection=there):
        there.execute(sql.SQL("analyze {}").format(opened.identifier))
    rest = target.narrowed(lacking(key, sql.SQL("q") if look.held else look.there.identifier, staged))
    return dict(digest_segments(there, rest.narrowed(any_of(segments, key)), segments, look.key))


def _against(look: Look, opened: PostgresStage, there: Connection) -> tuple[int, int]:
    """Return how many of the staged rows the target lacks, and how many it holds otherwise."""
    target = look.target_source
    left, right = (
        sql.SQL(", ").join(sql.SQL("{}.{}").format(sql.SQL(side), column.identifier) for column in target.columns)
        for side in ("t", "s")
    )
    query = sql.SQL(
        "select pg_catalog.count(*) filter (where t.{one} is null),"
        " pg_catalog.count(*) filter (where t.{one} is not null"
        " and pg_catalog.record_image_ne(row({left}), row({right}))) from {stage} s left join {table} t on {same}"
    ).format(
        left=left,
        right=right,
        one=sql.Identifier(look.key[0]),  # a key has no nulls
        stage=opened.identifier,
        table=look.there_rows,
        same=_same(look),
    )
    with translated(target.database, f"compare {target.label}", connection=there):
        row = there.execute(query).fetchone() or (0, 0)
    return int(row[0]), int(row[1])


def _same(look: Look) -> sql.Composable:
    key = look.target_source.pick(look.key)
    return sql.SQL(" and ").join(sql.SQL("s.{0} = t.{0}").format(column.identifier) for column in key)


def _gone(look: Look, opened: PostgresStage, there: Connection, segments: Sequence[Segment]) -> int:
    """Count the target's rows in some segments that the source has no more; refuse too many. Raises GuardRefused."""
    target = look.target_source
    inside = any_of(segments, target.pick(look.key)) or sql.SQL("true")
    lost = sql.SQL("not exists (select from {} s where {})").format(opened.identifier, _same(look))
    query = sql.SQL("select pg_catalog.count(*) filter (where ({}) and {}), pg_catalog.count(*) from {} t").format(
        inside, lost, look.there.identifier
    )
    with translated(target.database, f"compare {target.label}", connection=there):
        row = there.execute(query).fetchone() or (0, 0)
    if not look.spec.allow_deletes:
        refuse_deletes(look.spec.asset.layer, look.spec.asset.name, int(row[0]), int(row[1]), look.spec.max_delete)
    return int(row[0])
