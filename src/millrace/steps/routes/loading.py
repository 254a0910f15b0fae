"""Exported files into a stage of a PostgreSQL target."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from millrace.core.ports import Context, StageRequest
from millrace.core.position import Position
from millrace.core.segment import Segment
from millrace.core.staged import Staged
from millrace.errors import Interrupted
from millrace.postgres.exported import Export, csv_blocks
from millrace.postgres.stage import PostgresStage
from millrace.postgres.target import PostgresTarget


def load(
    target: PostgresTarget,
    request: StageRequest,
    export: Export,
    folder: Path,
    ctx: Context,
    *,
    origin: str,
    position: Position,
    detail: Mapping[str, Any],
) -> Staged:
    """Load files to where no reader looks, but for those that an earlier attempt left whole in the stage.

    Args:
        origin: fingerprint of what is staged: see `PostgresTarget.open_stage`.
        position: of the source after the publish.
        detail: facts for the publish; JSON.

    Raises:
        ProofFailed: a file is not the one that was exported.
        Interrupted: what was loaded can be resumed.
        MillraceError: everything else that stops it; nothing is left in the target then.
    """
    opened = target.open_stage(request, export.columns, None, origin=origin, altered=bool(detail.get("alter")))
    opened.belongings = export.belongings
    try:
        _fill(opened, folder, export, ctx)
        expected = {file.segment: file.digest for file in export.files}
        staged = opened.close(position, expected, **detail)
    except BaseException as error:
        target.give_up(opened, error)
        raise
    if opened.left_out:
        ctx.report.note(f"left out: {'; '.join(opened.left_out)}")
    return staged


def _fill(opened: PostgresStage, folder: Path, export: Export, ctx: Context) -> None:
    """Load the files that are not in the stage yet."""
    done = opened.done() if opened.earlier is not None else {}
    kept = {file.segment for file in export.files if done.get(file.segment) == file.digest}
    if opened.earlier is not None:
        opened.drop(kept)
    opened.planned([Segment(file.segment, "file", file.name) for file in export.files])
    if kept:
        ctx.report.note(f"{len(kept)} of {len(export.files)} files kept from an earlier attempt")
    todo = [file for file in export.files if file.segment not in kept]
    ctx.report.total(sum(file.digest.rows for file in todo))
    with opened.connect() as session:
        for file in todo:
            if ctx.stopping():
                raise Interrupted(f"{opened.asset}: stopped while loading", hint="run again to go on from here")
            names = export.schema.names
            rows = opened.load(file.segment, csv_blocks(folder, export, file, names), session, names)
            ctx.report.moved(rows, file.size)
