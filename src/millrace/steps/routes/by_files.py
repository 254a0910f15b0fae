"""The route from PostgreSQL to PostgreSQL by way of files: the source is left before the target is written.

The target is asked what it holds, the source is read into files from one snapshot, the files are loaded; never more
than one of the two is connected to, but by the snapshot that several tables share. What the source's rows are is known
by their digests, which are proven in the target as in every copy.

An attempt that goes on in the same run (a retry, `--resume`) loads the files that an earlier one has written whole,
and does not ask the source again. Any other looks at the source anew, and takes the files whose rows still are there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from millrace.core.digest import Digest
from millrace.core.events import reach
from millrace.core.names import fingerprint
from millrace.core.plan import Step
from millrace.core.ports import Context, StageRequest
from millrace.core.position import Position, Whole, position_from_json
from millrace.core.segment import Segment
from millrace.core.staged import Staged
from millrace.errors import Handling, Interrupted, MillraceError, ProofFailed, UsageError
from millrace.postgres.apply import fits_of, refuse_first_contact
from millrace.postgres.belongings import read_belongings
from millrace.postgres.exported import Export, Format, read_export
from millrace.postgres.exporting import Parts, whole_files, write_export, write_files
from millrace.postgres.heap import touched
from millrace.postgres.reader import PostgresReader, digest_segments
from millrace.postgres.session import translated
from millrace.postgres.target import PostgresTarget
from millrace.steps.routes.loading import load
from millrace.steps.routes.postgres_look import Look, look_at, whole_digest_there
from millrace.steps.routes.postgres_postgres import check_count, check_target, detail_of, parts_of, position_of, tell
from millrace.steps.spec import CopySpec
from millrace.steps.staging import NAME, Staging, held


@dataclass(frozen=True, slots=True)
class Brought:
    """What lies in the files, and what the target has to know to publish it."""

    export: Export
    how: str
    base: int
    origin: str
    position: Position
    detail: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return all but the export as JSON types."""
        return {
            "how": self.how,
            "base": self.base,
            "origin": self.origin,
            "position": self.position.to_json(),
            "detail": dict(self.detail),
        }

    @classmethod
    def from_json(cls, export: Export, data: Mapping[str, Any]) -> Brought:
        """Read what `to_json` wrote."""
        return cls(**{**data, "export": export, "position": position_from_json(data["position"])})


def stage(
    spec: CopySpec, reader: PostgresReader, target: PostgresTarget, step: Step, ctx: Context, root: Path
) -> tuple[Staged, ...]:
    """Bring what the target lacks into files, and from there to where no reader looks.

    Args:
        root: of all staging files.

    Raises:
        UsageError: a backfill.
        TargetBusy: a live run is at the same table.
        MillraceError: as for any copy; a full disk. The files are gone then, unless a later attempt can use them.
    """
    if spec.mode == "backfill":
        hint = "leave stage out, or compare everything: mode: full"
        raise UsageError(f"{spec.asset}: a backfill by way of files is not built yet", hint=hint)
    with held(root, spec.asset, target.database.place, ctx.load) as staging:
        try:
            brought = _waiting(staging, spec, target, step)
            if brought is None:
                brought = _bring(spec, reader, target, step, staging, ctx)
            reader.sessions.close()
            if brought is None:
                staging.clear()
                ctx.report.note("nothing changed")
                return ()
            reach("files.staged")
            return (_load(brought, spec, target, step, staging.folder, ctx),)
        except MillraceError as error:
            if error.handling is Handling.FATAL and not isinstance(error, Interrupted):
                staging.clear()
            raise


def _told(spec: CopySpec, step: Step) -> str:
    return fingerprint(step.code, json.dumps(spec.to_json(), sort_keys=True))


def _waiting(staging: Staging, spec: CopySpec, target: PostgresTarget, step: Step) -> Brought | None:
    """Return what an earlier attempt of this load has written whole, when the target still is as it was then."""
    try:
        export, more = read_export(staging.folder, NAME)
        brought = Brought.from_json(export, more["copy"])
    except (MillraceError, KeyError, TypeError):  # none, torn or damaged: it is written again
        return None
    entry, relation = target.ledger(spec.asset), target.relation(spec.asset)
    fits = None if relation is None else fits_of(relation, export.schema.names)
    same = (more.get("told"), brought.base, brought.detail["fits"]) == (
        _told(spec, step),
        0 if entry is None else entry.seq,
        fits,
    )
    return brought if same else None


def _bring(
    spec: CopySpec, reader: PostgresReader, target: PostgresTarget, step: Step, staging: Staging, ctx: Context
) -> Brought | None:
    """Write the files; None: there is nothing to bring."""
    _check_early(spec, target)
    for anyway in (False, True):
        with look_at(spec, reader, target, target.ledger(spec.asset)) as look:
            digests = None if not anyway and _untouched(look) else _digests(look)
            same = digests is None or (not anyway and _same(look, digests))
            brought = None if same or digests is None else _write(look, digests, step, staging, ctx)
        reader.sessions.close()
        if brought is not None:
            if look.relation is not None:
                check_target(look)
            return brought
        if look.since is not None or look.position_digest == whole_digest_there(look):
            return None
    raise AssertionError


def _check_early(spec: CopySpec, target: PostgresTarget) -> None:
    """Refuse before anything is read what the publish would be refused for."""
    entry, relation = target.ledger(spec.asset), target.relation(spec.asset)
    with target.connect("check") as connection:
        target.check_rights(connection, spec.asset, "create" if relation is None else "sync")
        if relation is not None and entry is None and not spec.replace:
            label = target.database.label
            with translated(label, f"look into {relation.ref}", connection=connection):
                refuse_first_contact(connection, relation, label)


def _untouched(look: Look) -> bool:
    """Say whether the source holds what was published last, without reading all of it."""
    if look.since is not None:
        return look.reader.moved(look.base, look.since, look.snap)[0] == look.since.tail
    return look.position_digest is not None and touched(look.source, _position(look), look.snap) == "no"


def _position(look: Look) -> Whole:
    return cast("Whole", look.entry.position if look.entry else None)


def _digests(look: Look) -> dict[Segment, Digest]:
    """Digest what is to be brought, by file."""
    segments = [Segment("changes", "changes")] if look.since is not None else parts_of(look)
    found = dict(digest_segments(look.snap.connection, look.wanted(), segments, look.key))
    return {segment: found[segment.id] for segment in segments}


def _same(look: Look, digests: Mapping[Segment, Digest]) -> bool:
    return look.since is None and Digest.sum(digests.values(), look.schema.shape) == look.position_digest


def _write(look: Look, digests: Mapping[Segment, Digest], step: Step, staging: Staging, ctx: Context) -> Brought:
    """Write the files of one snapshot, and what says that they are whole."""
    whole = Digest.sum(digests.values(), look.schema.shape)
    if look.since is None:
        check_count(look, whole.rows)
    tell(look, ctx)
    ctx.report.total(whole.rows)
    form = cast("Format", look.spec.stage)
    left = staging.begin()
    kept = {content: found for folder in left for content, found in whole_files(folder).items()}
    before = len(kept)
    parts = Parts(form, kept, lambda _rows, size: ctx.report.moved(0, size), ctx.stopping)
    segments = list(digests)
    files = write_files(
        look.reader.database,
        look.snap,
        look.wanted(),
        look.key,
        segments,
        {segment.id: digest for segment, digest in digests.items()},
        staging.folder,
        parts,
    )
    if len(kept) < before:
        ctx.report.note(f"{before - len(kept)} of {len(files)} files kept from an earlier attempt")
    belongings = None
    if look.how == "create" and look.base.relation is not None:
        belongings = read_belongings(look.snap.connection, look.base.relation, look.source.names)
    columns, now = look.source.columns, datetime.now(UTC).isoformat(timespec="seconds")
    export = Export(look.spec.table, now, form, columns, look.key, look.snap.state, files, belongings)
    detail: dict[str, Any] = detail_of(look)
    if look.since is not None:
        detail["soft_delete"] = look.spec.soft_delete
    elif look.how != "create":
        detail |= {"segments": [Segment.whole().to_json()], "whole": whole.to_json()}
    position = position_of(look, None if look.since is not None else whole, ctx)
    brought = Brought(export, look.how, look.seq, look.origin, position, detail)
    write_export(export, staging.folder, NAME, copy=brought.to_json(), told=_told(look.spec, step))
    staging.clear(but_own=True)
    return brought


def _load(brought: Brought, spec: CopySpec, target: PostgresTarget, step: Step, folder: Path, ctx: Context) -> Staged:
    request = StageRequest(
        asset=spec.asset,
        load=ctx.load,
        run=ctx.run,
        step=step.key,
        base=brought.base,
        how=brought.how,
        schema=brought.export.schema,
        inputs={},
        code=step.code,
        date=ctx.logical_time[:10] if step.dated else None,
    )
    try:
        return load(
            target,
            request,
            brought.export,
            folder,
            ctx,
            origin=fingerprint("files", brought.origin),
            position=brought.position,
            detail=brought.detail,
        )
    except ProofFailed as error:
        raise ProofFailed(
            error.what, where=str(folder), detail=error.detail, hint="run again: the files are written anew"
        ) from error
