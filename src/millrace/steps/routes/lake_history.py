"""Mode `snapshot` into the lake: a version of each row for each change, current versions proven against the source.

The first load opens a version of every row. Later ones digest the source and the asset's current versions by key
segments; of those that differ the rows are read, those that changed or are gone end their version, and new ones begin.
The proof digests the current versions of the asset as it would be, and shows by the load's images that no closed
version was touched. Its instants are those of the source's snapshots, by its clock.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from millrace.core.digest import Digest
from millrace.core.ports import Context, StageRequest
from millrace.core.position import Whole
from millrace.core.schema import Schema
from millrace.core.segment import Segment
from millrace.core.staged import Counts, LedgerEntry, Proof, Staged
from millrace.errors import ContractBroken, GuardRefused, ProofFailed
from millrace.lake import history
from millrace.postgres.apply import refuse_deletes
from millrace.postgres.parts import any_of
from millrace.postgres.reader import PostgresReader, PostgresSnapshot, digest_segments
from millrace.postgres.segments import key_segments
from millrace.postgres.source import Source
from millrace.steps.routes.lake_scrub import LakeSide, keys_gone
from millrace.steps.routes.parquet import Export, Folder
from millrace.steps.spec import CopySpec

if TYPE_CHECKING:
    import duckdb

    from millrace.lake.target import LakeTarget

FINER = 25  # segments that are compared are so much smaller than those that are copied: 10,000 rows


def check_asset(spec: CopySpec, old: Schema, new: Schema) -> None:
    """Refuse to make versions of what is none, and anything else of versions.

    Args:
        spec: of the copy.
        old: columns and key of the asset.
        new: columns and key of the source's rows.

    Raises:
        ContractBroken: the asset holds no versions, or of other columns.
        GuardRefused: another mode would throw the versions away.
    """
    if spec.mode != "snapshot":
        if history.is_versioned(old) and not history.is_versioned(new) and not spec.replace:
            raise GuardRefused(
                f"{spec.asset} holds versions, which mode {spec.mode} would throw away",
                hint="name another asset (as: …); to throw them away: --replace",
            )
        return
    if not history.is_versioned(old):
        raise ContractBroken(
            f"{spec.asset} is no asset of versions: it has no columns {history.FROM} and {history.TO}",
            hint=f"mode snapshot needs an asset of its own: name another one (as: {spec.asset.name}_versions)",
        )
    was = history.plain(old)
    if (was.fingerprint, was.shape, was.key) == (new.fingerprint, new.shape, new.key):
        return
    before, now = ({f"{column.name} ({column.type})" for column in one.columns} for one in (was, new))
    sides = (("new", now - before), ("dropped or retyped", before - now))
    detail = [f"{what}: {', '.join(sorted(columns))}" for what, columns in sides if columns]
    raise ContractBroken(
        f"the columns of {spec.asset} changed, and its versions have the old ones",
        detail=detail or [f"its key was {', '.join(was.key)} and is {', '.join(new.key)}"],
        hint="keep the old columns: select: id, …; or begin another asset of versions: as: …",
    )


def current(side: LakeSide) -> LakeSide:
    """Return the current versions of an asset of versions, as rows of the source."""
    return replace(side, schema=history.plain(side.schema), only=history.CURRENT)


def stage(
    spec: CopySpec,
    reader: PostgresReader,
    target: LakeTarget,
    request: StageRequest,
    source: Source,
    position: Whole,
    entry: LedgerEntry | None,
    snap: PostgresSnapshot,
    ctx: Context,
    engine: duckdb.DuckDBPyConnection,
) -> tuple[tuple[Staged, ...], Digest]:
    """Stage the versions that end and begin.

    Args:
        spec, reader, target, source, entry, snap, ctx, engine: of the copy.
        request: with the source's columns and key.
        position: after the load, without its digest.

    Returns:
        What was staged, and the source's digest.

    Raises:
        GuardRefused: more rows are gone at the source than `max_delete` allows.
    """
    asked = replace(request, schema=history.versioned(request.schema), how="upsert" if entry else "create")
    if entry is None:
        opened = target.open_stage(asked, replace=spec.replace)
        opened.drop(opened.left())
        parts = list(reader.segments(source, snap, None, spec.segment_rows))
        if parts[0].how == "bucket":  # each would scan the whole source again
            parts = [Segment.whole(sum(part.rows for part in parts))]
        ctx.report.total(sum(part.rows for part in parts) or None)
        at = _instant(snap)
        found = Export(reader, source, snap, history.Opening(opened, at), ctx, spec.workers).run(parts)
        whole = Digest.sum(found.values(), request.schema.shape)
        return (opened.close(replace(position, digest=whole), {}, detail=_detail(whole)),), whole
    side = current(LakeSide.of(target, spec, entry, engine, ctx.scratch()))
    key = source.pick(request.schema.key)
    segments = key_segments(snap.connection, source, key, max(1, spec.segment_rows // FINER))
    ours = dict(digest_segments(snap.connection, source, segments, request.schema.key))
    theirs = side.digests(segments)
    whole = Digest.sum(ours.values(), request.schema.shape)
    position = replace(position, digest=whole)
    different = [segment for segment in segments if ours[segment.id] != theirs[segment.id]]
    if not different:
        ctx.report.note("no row differs; only the position is published")
        opened = target.open_stage(replace(asked, how="position"))
        return (opened.close(position, {}, detail=_detail(whole)),), whole
    word = "differs" if len(different) == 1 else "differ"
    ctx.report.note(f"{len(different)} of {len(segments)} segments {word}")
    at = history.instant_after(engine, side.files, _instant(snap))
    opened = target.open_stage(asked)
    folder = Folder(ctx.scratch(), history.Opening(opened, at))
    rows = source.narrowed(any_of(different, key))
    ctx.report.total(sum(ours[segment.id].rows for segment in different))
    try:
        Export(reader, rows, snap, folder, ctx, spec.workers).run([Segment("rows", "changes")])
        read = [str(path) for path in folder.files]
        gone, lost = keys_gone(side, different, read, ctx.scratch())
        if not spec.allow_deletes:
            before = sum(digest.rows for digest in theirs.values())
            refuse_deletes(spec.asset.layer, spec.asset.name, lost, before, spec.max_delete)
        changes, begun, ended = history.changed(engine, side.files, read, gone, opened, ctx.scratch(), at)
        counts = Counts(begun - (ended - lost), ended - lost, lost)
        detail = {**_detail(whole), "counts": counts.to_json()}
        staged = target.upsert(asked, changes, asked.schema, engine, position=position, detail=detail)
        return (staged,), whole
    finally:
        for path in folder.files:
            path.unlink(missing_ok=True)


def _detail(source: Digest) -> dict[str, Any]:
    return {"versions": {"source": source.to_json()}}


def _instant(snap: PostgresSnapshot) -> int:
    """Return when the snapshot was taken, by the source's clock, in microseconds since 1970."""
    query = "select (extract(epoch from pg_catalog.now()) * 1000000)::int8"
    row = snap.connection.execute(query).fetchone()
    assert row is not None  # noqa: S101 - a SELECT without FROM
    return int(row[0])


def prove(target: LakeTarget, staged: Staged, proof: Proof, engine: duckdb.DuckDBPyConnection) -> Proof:
    """Compare the current versions, as they would be, with the source at its snapshot; see that closed ones stay.

    Raises:
        ProofFailed: they differ, or a closed version would change.
    """
    wanted = Digest.from_json(staged.detail["versions"]["source"])
    if (images := staged.detail.get("images")) is not None:
        folder = target.folder(staged.asset).changes
        before, after = (str(folder / images[side]["name"]) for side in ("before", "after"))
        history.check_images(engine, before, after, staged.schema, str(staged.asset))
    side = current(LakeSide(engine, staged.schema, target.staged_files(staged), (), ()))
    whole = Segment.whole()
    found = side.digests([whole])[whole.id]
    if found != wanted:
        raise ProofFailed(
            f"{staged.asset}: its current versions would not be what the source holds",
            where=staged.place,
            detail=[
                f"source: {wanted.rows:,} rows, digest {wanted.total}",
                f"current versions: {found.rows:,} rows, digest {found.total}",
            ],
            hint="nothing was published",
        )
    return replace(proof, level="table")
