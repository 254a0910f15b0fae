"""The route from PostgreSQL to PostgreSQL: COPY bytes from server to server, every row proven by digests.

Seven situations, told apart by `postgres_look`:

- `create`: the target is missing. Heap-page ranges are copied at once from one snapshot into a hidden table.
- `sync`: it exists. Both sides are digested by key segments, one scan each; only segments that differ are copied.
- `merge`, `append`: there is a cursor's position. The rows since then are copied; `append` only adds.
- `interval`: a backfill. As `sync`, of the rows in an interval of the cursor.
- `snapshot`: the target keeps versions; the current ones are compared like in `sync`, those that differ are closed.
- `truncate`: all rows are copied, and take the place of all that are there in one transaction.

What was staged by an attempt that died is kept where its digest still is the source's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from psycopg import sql

from millrace.core.digest import COUNTED, Digest
from millrace.core.names import fingerprint
from millrace.core.plan import Freshness, Step
from millrace.core.ports import Context, StageRequest
from millrace.core.position import Cursor, Position, Whole
from millrace.core.scrub import Scrub
from millrace.core.segment import Segment
from millrace.core.staged import Counts, LedgerEntry, Staged
from millrace.errors import ContractBroken, MillraceError, ProofFailed, UsageError
from millrace.postgres.apply import fits_of, refuse_deletes, refuse_first_contact, refuse_referred
from millrace.postgres.belongings import read_belongings
from millrace.postgres.heap import UNTOUCHED, touched
from millrace.postgres.keys import check_key
from millrace.postgres.newest import misplaced, told
from millrace.postgres.parts import alone, gathered, joined
from millrace.postgres.reader import PostgresReader
from millrace.postgres.segments import key_segments, page_segments
from millrace.postgres.session import translated
from millrace.postgres.source import author_select
from millrace.postgres.stage import PostgresStage
from millrace.postgres.target import PostgresTarget
from millrace.postgres.types import wire
from millrace.steps.checking import set_aside
from millrace.steps.routes.fitting import lost
from millrace.steps.routes.postgres_backfill import bring_moved
from millrace.steps.routes.postgres_compare import compare, compare_interval, count_rows
from millrace.steps.routes.postgres_look import (
    Look,
    both_digests,
    encoding_of,
    look_at,
    sets_unreadable_aside,
    whole_digest_there,
)
from millrace.steps.routes.postgres_scrub import rows_of, scrub
from millrace.steps.routes.postgres_swap import (
    ALL,
    MOST,
    differing_share,
    expected_share,
    fine_segments,
    why_not,
    words,
)
from millrace.steps.routes.postgres_types import add_words, other_types
from millrace.steps.routes.postgres_unreadable import cannot_be_carried, check_unreadable, naming
from millrace.steps.routes.postgres_written import PLAN, written
from millrace.steps.routes.relay import Relay
from millrace.steps.scrubbing import moment, said_due, state_of
from millrace.steps.spec import CopySpec

# freshness


PUBLISHES = {
    "create": "new table, renamed in place",
    "sync": "rows that differ",
    "merge": "merge",
    "append": "insert",
    "truncate": "all rows deleted and loaded",
    "snapshot": "new versions of changed rows",
    "interval": "rows that differ in the interval",
}
PROVES = {
    "create": "transfer, table",
    "sync": "transfer, table",
    "merge": "transfer, applied",
    "append": "transfer, applied",
    "truncate": "transfer, table",
    "snapshot": "transfer, table",
    "interval": "transfer, applied",
}


def fresh(
    spec: CopySpec,
    reader: PostgresReader,
    target: PostgresTarget,
    entry: LedgerEntry | None,
    *,
    now: str,
    ways: bool = True,
    contract: Mapping[str, Any] | None = None,
) -> Freshness:
    """Say whether the target already is what a run would make of it.

    Args:
        spec, reader, target: of the step.
        entry: what the target's ledger says.
        now: the logical time, ISO 8601 UTC: what of the scrub is due.
        ways: say also by which of two ways it would be published, which takes a sample of the rows.
        contract: of the copy: whether rows that cannot be carried are set aside.

    Raises:
        KeyInvalid, NotFound, ContractBroken, PermissionMissing: what would also stop the run.
    """
    with naming(spec, reader, target):
        try:
            return _fresh(spec, reader, target, entry, now=now, ways=ways)
        except MillraceError as error:
            if not cannot_be_carried(error) or not _sets_aside(spec, contract):
                raise
    return Freshness(False, "rows whose texts cannot be carried", None, PUBLISHES["sync"], PROVES["sync"])


def _sets_aside(spec: CopySpec, contract: Mapping[str, Any] | None) -> bool:
    return (contract or {}).get("bad_rows") == "quarantine" and sets_unreadable_aside(spec)


def _fresh(
    spec: CopySpec, reader: PostgresReader, target: PostgresTarget, entry: LedgerEntry | None, *, now: str, ways: bool
) -> Freshness:
    with look_at(spec, reader, target, entry) as look:
        rows = look.base.relation.rows if look.base.relation is not None else None

        def answer(is_fresh: bool, reason: str, moves: int | None = rows, more: str = "") -> Freshness:
            way = f"by way of {spec.stage} files" if spec.stage else wire(look.source.columns)
            publishes = f"{_publishes(look) if ways and not (is_fresh or spec.stage) else PUBLISHES[look.how]} · {way}"
            proves = "the number of rows; none is compared" if _counted(look) else PROVES[look.how]
            return Freshness(is_fresh, reason, moves, publishes, proves + more)

        if look.entry is None or (reason := _why_all(look)):
            return answer(False, "never published" if look.entry is None else reason)
        if not look.settled:
            return answer(False, "rows whose texts cannot be carried came or went")
        if look.since is not None:
            found, moves = reader.moved(look.base, look.since, look.snap)
            due, said = said_due(spec, look.since, look.base, look.key, look.snap, rows_of(look), now)
            if found == look.since.tail:
                return answer(False, f"{said} is due", 0) if due else answer(True, "nothing changed", 0)
            return answer(False, f"since {look.since.told}", moves, f" · {said}" if said else "")
        return answer(*_compared(look))


def _publishes(look: Look) -> str:
    """Say how it would be published, and why that way where there are two."""
    usual = PUBLISHES[look.how]
    if (reason := why_not(look)) is None:
        return usual
    if look.how == "truncate":
        return f"{usual}, not by swap: {reason}" if reason else f"by swap: {ALL}"
    if (share := expected_share(look)) <= MOST:
        return f"{usual}, about {share:.0%}"
    return f"{usual}, about {share:.0%}; not by swap: {reason}" if reason else f"by swap: about {words(share)}"


def _compared(look: Look) -> tuple[bool, str, int | None]:
    """Say whether both sides are equal, why, and how many rows would move."""
    assert look.entry is not None  # noqa: S101 - seen by fresh
    rows = look.base.relation.rows if look.base.relation is not None else None
    whole = Segment.whole()
    if look.how == "interval":
        ours, theirs = both_digests(look, [whole])
        return (True, "the interval is equal", 0) if ours == theirs else (False, "the interval differs", None)
    if look.entry.level == "counted":
        return False, "rows were counted, not compared", rows
    position = look.entry.position
    if not isinstance(position, Whole if look.spec.tracked is None else Cursor):
        return False, "the mode changed", rows
    touch = touched(look.source, position, look.snap)
    if touch == "yes":
        return False, "rows were written at the source", rows
    if touch == "no" and isinstance(position, Whole):
        same = look.how in ("merge", "append") or whole_digest_there(look) == position.digest
        return (True, UNTOUCHED, 0) if same else (False, "source and target differ", rows)
    ours, theirs = both_digests(look, [whole])
    if ours[whole.id] == theirs[whole.id]:
        return True, "source digest unchanged", 0
    if look.how in ("merge", "append") and isinstance(position, Whole) and position.digest == ours[whole.id]:
        return True, "source digest unchanged", 0
    return False, "source and target differ", rows


def _why_all(look: Look) -> str:
    """Return why everything is copied whatever the rows are, or nothing."""
    if look.relation is None:
        return "the target table is missing"
    if look.alter:
        return f"the columns changed: {', '.join(look.alter)}"
    return "full refresh" if look.spec.full_refresh else ""


# staging


def stage(
    spec: CopySpec, reader: PostgresReader, target: PostgresTarget, entry: LedgerEntry | None, step: Step, ctx: Context
) -> tuple[Staged, ...]:
    """Copy what the target lacks to where no reader looks.

    Returns:
        One stage; or () when there is nothing to publish.

    Raises:
        TargetBusy: a live run is at the same table.
        GuardRefused: the target has rows of somebody else's.
        Interrupted: what was staged can be resumed.
        MillraceError: everything else that stops a copy; nothing is left then.
    """
    with naming(spec, reader, target):
        try:
            return _staged(spec, reader, target, entry, step, ctx)
        except MillraceError as error:
            if not cannot_be_carried(error) or not _sets_aside(spec, step.spec.get("contract")):
                raise
        return _staged(spec, reader, target, entry, step, ctx, unreadable=True)


def _staged(
    spec: CopySpec,
    reader: PostgresReader,
    target: PostgresTarget,
    entry: LedgerEntry | None,
    step: Step,
    ctx: Context,
    *,
    unreadable: bool = False,
) -> tuple[Staged, ...]:
    with look_at(spec, reader, target, entry, unreadable=unreadable) as look:
        check_unreadable(look, step.spec.get("contract") or {}, entry)
        if look.unreadable and not step.spec.get("checks"):
            ctx.report.note(set_aside({"rows": len(look.unreadable)}) or "")
        look = _sifted(look, step, ctx)
        if look.relation is not None:
            check_target(look)
        tell(look, ctx)
        request = StageRequest(
            asset=spec.asset,
            load=ctx.load,
            run=ctx.run,
            step=step.key,
            base=look.seq,
            how=look.how,
            schema=look.schema,
            inputs={},
            code=step.code,
            date=ctx.logical_time[:10] if step.dated else None,
        )
        against = why_not(look)
        alike = against == ""
        add_words(look)
        opened = target.open_stage(
            *(request, look.source.columns, look.snap.connection),
            origin=fingerprint(look.origin, "alike") if alike else look.origin,
            altered=bool(look.alter),
            alike=alike,
        )
        try:
            staged = _fill(look, opened, request, ctx)
        except BaseException as error:
            target.give_up(opened, error)
            if isinstance(error, ContractBroken) and (reason := other_types(look, error)) is not None:
                raise reason from error
            raise
        if staged is None or staged.how == "position":
            target.forget(opened)
            opened.discard()
        return () if staged is None else (staged,)


def _sifted(look: Look, step: Step, ctx: Context) -> Look:
    """Return the look with what of the rows is to be set aside. Raises UsageError where that is not built."""
    if not step.spec.get("checks"):
        return look
    from millrace.steps.postgres_checks import sieve_of

    found = sieve_of(step, look.spec.asset, look.source.columns, look.key, ctx)
    if found and look.how in ("snapshot", "interval"):
        raise UsageError(
            f"rows of {look.spec.asset} cannot be set aside in mode {look.spec.mode} yet",
            where=str(step.spec["contract"]["place"]),
            hint="use mode full or incremental, or bad_rows: block",
        )
    if found and encoding_of(look.target) not in ("UTF8", "SQL_ASCII"):  # which may lack the only sign of our own
        found = tuple(replace(one, reason=one.reason.replace("…", "...")) for one in found)
    return replace(look, sieve=found)


def tell(look: Look, ctx: Context) -> None:
    """Say what of the source is not brought.

    Raises:
        KeyInvalid: a null in the key of several versions of a row.
        ContractBroken: a value that does not convert, where no null may be.
    """
    for said in lost(look.wanted(), look.snap.connection):
        ctx.report.note(said)
    cursor = look.spec.tracked
    if (number := look.left_out()) and cursor is not None:
        ctx.report.note(told(number, cursor))
    if cursor is not None and (odd := misplaced(look.snap.connection, look.base, cursor)):
        ctx.report.note(odd)
    if look.discarded:
        ctx.report.note(f"left out by the contract: {', '.join(look.discarded)}")


def check_target(look: Look) -> None:
    """The guards that need no digest."""
    with look.target.connect("check") as connection:
        label = look.target.database.label
        if look.entry is None and not look.spec.replace:
            with translated(label, f"look into {look.there.ref}", connection=connection):
                refuse_first_contact(connection, look.there, label)
        if look.how == "truncate":
            refuse_referred(connection, look.there, label)
        elif look.how != "snapshot":  # whose index lets a row have one current version
            check_key(connection, look.target_source, look.key)


def _fill(look: Look, opened: PostgresStage, request: StageRequest, ctx: Context) -> Staged | None:
    if look.relation is None or look.how == "truncate" or look.alter:
        return _all(look, opened, ctx)
    if look.since is not None:
        return _since_position(look, opened, ctx)
    return _differing(look, opened, request, ctx)


def _all(look: Look, opened: PostgresStage, ctx: Context) -> Staged:
    """Copy everything."""
    segments = opened.plan
    if segments is None:
        segments = parts_of(look)
        if len(segments) > 1:  # else there is nothing that a later attempt would have to cut in the same way
            opened.planned(segments)
    relay = Relay(
        look.reader,
        look.snap,
        look.source,
        look.key,
        opened,
        ctx,
        look.spec.workers,
        new=look.how == "create" or bool(look.alter),
        counted=_counted(look),
    )
    expected = relay.run(alone(segments))
    whole = Digest.sum(expected.values(), COUNTED if _counted(look) else look.schema.shape)
    check_count(look, whole.rows)
    if _counted(look):
        ctx.report.note("rows counted, not compared")
    detail = {} if look.how == "create" else {"segments": [Segment.whole().to_json()], "whole": whole.to_json()}
    if opened.alike:
        opened.swap, detail["swap"] = True, ALL
    elif reason := why_not(look):
        ctx.report.note(f"row by row: {reason}")
    if look.how == "create" and look.base.relation is not None:
        opened.belongings = read_belongings(look.snap.connection, look.base.relation, look.source.names)
    staged = opened.close(position_of(look, whole, ctx), expected, **detail, **detail_of(look))
    if opened.left_out:
        ctx.report.note(f"left out: {', '.join(opened.left_out)}")
    return staged


def _counted(look: Look) -> bool:
    """Say whether rows are counted and not compared: only where all are loaded anew, and none is set aside."""
    aside = bool(look.sieve) or look.held or bool(look.unreadable)
    return look.spec.proof == "count" and look.how in ("create", "truncate") and not aside


def parts_of(look: Look) -> list[Segment]:
    """Split all rows of the source into parts that are copied one by one."""
    source, rows = look.source, look.spec.segment_rows
    if source.paged and source.relation is not None:
        return page_segments(source.relation, rows)
    if not look.key:
        return [Segment.whole()]
    parts = key_segments(look.snap.connection, source, source.pick(look.key), rows)
    # Buckets would read a view or a query once for each of them.
    return parts if parts[0].how == "range" else [Segment.whole()]


def _since_position(look: Look, opened: PostgresStage, ctx: Context) -> Staged:
    """Copy the rows since the position."""
    relay = Relay(look.reader, look.snap, look.wanted(), look.key, opened, ctx, 1)
    expected = relay.run(alone([Segment("changes", "changes")]))
    if look.spec.count is not None:
        ctx.report.note("the count query is compared only when everything is read")
    found = scrub(look, opened, expected, ctx)
    if "scrub" in found.detail:
        ctx.report.note(found.detail["scrub"])
    position = position_of(look, None, ctx)
    if isinstance(position, Cursor):
        position = replace(position, scrub=found.state)
    detail = {**found.detail, **detail_of(look), "soft_delete": look.spec.soft_delete}
    return opened.close(position, {**expected, **found.expected}, **detail)


def _differing(look: Look, opened: PostgresStage, request: StageRequest, ctx: Context) -> Staged | None:
    """Copy the rows that were written, or the segments that differ; when none does, only the position moves."""
    if (found := written(look, opened, ctx)) is not None:
        check_count(look, found.whole.rows)
        position = position_of(look, found.whole, ctx, found.read)
        return opened.close(position, found.expected, segments=[], whole=found.whole.to_json(), **detail_of(look))
    segments = opened.plan
    if segments is None or segments == PLAN:
        segments = fine_segments(look)
        opened.planned(segments)
    ours, theirs = both_digests(look, segments)
    whole = Digest.sum(ours.values(), look.schema.shape)
    check_count(look, whole.rows)
    again = look.spec.full_refresh and bool(look.sieve or look.held)  # the rules may be others
    different = [segment for segment in segments if again or ours[segment.id] != theirs[segment.id]]
    if not different and not look.settled:
        different = segments[:1]  # entries come and go with a stage
    if not different and look.how == "interval":
        ctx.report.note("the interval is equal")
        return None
    if not different:
        return _position_only(look, request, whole, ctx)
    word = "differs" if len(different) == 1 else "differ"
    ctx.report.note(look.compared(f"{len(different)} of {len(segments)} segments {word}"))
    detail: dict[str, Any] = {}
    reason = "" if opened.alike else why_not(look)
    part = sum(ours[segment.id].rows for segment in different) / max(1, whole.rows)
    if reason is not None and (share := differing_share(look, different, part)) > MOST:
        if reason:
            ctx.report.note(f"row by row: {share:.0%} differ, but {reason}")
        else:
            opened.swap, detail["swap"], different = True, words(share), segments
    relay = Relay(look.reader, look.snap, look.source, look.key, opened, ctx, look.spec.workers)
    parts = gathered(different, look.spec.segment_rows, look.spec.workers)
    form = look.schema.shape
    known = {part.id: Digest.sum((ours[segment.id] for segment in part.segments), form) for part in parts}
    expected = relay.run(parts, known)
    if look.how == "interval":
        expected = bring_moved(look, opened, different, expected, ctx)
    segments = [Segment.whole()] if len(different) == len(segments) else joined(different)
    detail |= {"segments": [segment.to_json() for segment in segments], "whole": whole.to_json()}
    return opened.close(position_of(look, whole, ctx), expected, **detail, **detail_of(look))


def detail_of(look: Look) -> dict[str, Any]:
    """Return what the publish has to know of guards and of the target as it was seen."""
    more: dict[str, Any] = {"at": look.at} if look.how == "snapshot" else {}
    if look.sieve:
        more["sieve"] = [one.to_json() for one in look.sieve]
    if look.unreadable:
        more["unreadable"] = [one.to_json() for one in look.unreadable]
    if look.alter:
        more["alter"] = list(look.alter)
    if look.spec.mode == "backfill":
        more["interval"] = [look.spec.tracked, look.spec.cursor_format, look.spec.start, look.spec.end]
    return {
        **more,
        "fits": None if look.relation is None else fits_of(look.relation, look.source.names),
        "replace": look.spec.replace,
        "max_delete": None if look.spec.allow_deletes else look.spec.max_delete,
    }


def position_of(look: Look, whole: Digest | None, ctx: Context, read: str | None = None) -> Position:
    """Return the position of what the snapshot holds, with when the table was compared.

    Args:
        look, ctx: of the step.
        whole: digest of the whole source, where it is known.
        read: when all rows behind it were read; None: now.
    """
    now, counted = moment(ctx.logical_time), whole is not None and whole.shape == COUNTED
    found = look.position(None if counted else whole)
    if look.spec.mode == "backfill":
        return found
    if isinstance(found, Whole):
        return found if counted else replace(found, read=read or now)
    if not isinstance(found, Cursor):
        return found
    state = state_of(look.spec, look.since, now)
    return replace(found, scrub=None if state is None else Scrub.whole(now, proven=False) if counted else state)


def _position_only(look: Look, request: StageRequest, whole: Digest, ctx: Context) -> Staged | None:
    position = position_of(look, whole, ctx)
    before = look.entry.position if look.entry is not None and look.entry.code == request.code else None
    same = isinstance(before, Whole) and isinstance(position, Whole) and before.digest == position.digest
    if same and touched(look.source, before, look.snap) != "yes":  # else the next look would find the same versions
        ctx.report.note("nothing changed")
        return None
    ctx.report.note(look.compared("no row differs; only the position is published"))
    return Staged(
        asset=request.asset,
        load=request.load,
        run=request.run,
        step=request.step,
        target=look.target.name,
        base=request.base,
        how="position",
        place=str(look.there.ref),
        schema=request.schema,
        position=position,
        expected={"all": whole},
        code=request.code,
        date=request.date,
        detail={"fits": fits_of(look.there, look.source.names), "level": "table", "versions": look.how == "snapshot"},
    )


def check_count(look: Look, rows: int) -> None:
    """Compare the author's count, in the same snapshot, with the rows read. Raises ProofFailed."""
    if look.spec.count is None or look.spec.mode == "backfill":
        return
    query = sql.Composed([author_select(look.spec.count)])
    with translated(look.source.database, "run the count query", connection=look.snap.connection):
        found = look.snap.connection.execute(query).fetchone()
    try:
        counted = int(found[0]) if found is not None and len(found) == 1 else -1
    except (TypeError, ValueError):
        counted = -1
    rows += len(look.unreadable)
    if counted != rows:
        raise ProofFailed(
            f"the count query says {'no number' if counted < 0 else f'{counted:,} rows'}, {rows:,} were read",
            where=str(look.spec.asset),
            detail=[look.spec.count],
            hint="count exactly the rows that the copy reads: the same condition, in one number",
        )


# dry run


def dry_run(spec: CopySpec, reader: PostgresReader, target: PostgresTarget, entry: LedgerEntry | None) -> Counts:
    """Count what a run would insert, update and delete; nothing is changed, no ledger is made.

    Raises:
        GuardRefused: a run would delete more than max_delete allows.
        KeyInvalid: a null in the key of a source that may keep several versions of a row.
    """
    with look_at(spec, reader, target, entry) as found:
        look = found.narrowed() if found.alter else found
        look.left_out()
        if look.relation is None:
            return Counts(inserted=count_rows(look.snap.connection, look.source))
        with target.connect("dry run") as there:
            if look.how == "truncate":
                counts = Counts(count_rows(look.snap.connection, look.source), 0, count_rows(there, look.target_source))
                if not spec.allow_deletes:
                    lost = counts.deleted - counts.inserted
                    refuse_deletes(spec.asset.layer, spec.asset.name, lost, counts.deleted, spec.max_delete)
                return counts
            if look.since is not None:
                return compare(look, there)
            segments = fine_segments(look)
            ours, theirs = both_digests(look, segments)
            total = Counts()
            different = [segment for segment in segments if ours[segment.id] != theirs[segment.id]]
            scans = -(-sum(segment.rows for segment in different) // spec.segment_rows)  # of what fits into memory
            for part in gathered(different, spec.segment_rows, scans):
                one = (compare_interval if look.how == "interval" else compare)(look, there, part)
                total = Counts(total.inserted + one.inserted, total.updated + one.updated, total.deleted + one.deleted)
            if total.deleted and not spec.allow_deletes:
                before = sum(digest.rows for digest in theirs.values())
                refuse_deletes(spec.asset.layer, spec.asset.name, total.deleted, before, spec.max_delete)
            return total
