"""Publishing: compare-and-swap on the ledger by one Delta commit, and adoption of what is committed already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from dataclasses import replace as changed
from datetime import UTC, datetime
from typing import Any

from millrace.core.digest import Digest
from millrace.core.events import reach
from millrace.core.names import AssetId, short_run
from millrace.core.staged import Counts, LedgerEntry, Level, Proof, Staged, entry_for
from millrace.errors import CommitUnknown, GuardRefused, MillraceError, ProofFailed, SeqMoved, TransientFailure
from millrace.lake import ledger, log
from millrace.lake.aside import facts_of
from millrace.lake.layout import Folder, disk
from millrace.lake.ledger import Manifest
from millrace.lake.prove import check_size, hashable
from millrace.lake.table import arrow_schema, rows_of

SOURCES = ("whole", "cursor", "files")
"""Kinds of positions in a source, as opposed to versions of assets."""
ATTEMPTS = 20  # commits of others that may come between; optimize or vacuum in a loop would be needed for more


@dataclass(frozen=True, slots=True)
class _Plan:
    """What one commit will be."""

    manifest: Manifest
    remove: Mapping[str, int]
    recreate: bool


def publish(folder: Folder, staged: Staged, proof: Proof | None, expect: int) -> LedgerEntry:
    """Make a stage visible if the ledger's seq still is `expect`; adopt it if it is visible already.

    Raises:
        SeqMoved: someone else published, or the stage's files were cleaned up meanwhile.
        GuardRefused: something else than Millrace wrote into the table.
        ProofFailed: there is no proof of this load.
        TransientFailure: others commit to the table all the time.
    """
    if (adopted := committed(folder, staged)) is not None:
        return adopted
    if proof is None or proof.asset != staged.asset or proof.load != staged.load:
        raise ProofFailed(f"{staged.asset} has no proof, so it is not published")
    exclusive = _recreates(folder, staged)
    for _ in range(ATTEMPTS):
        try:
            with folder.lock(exclusive=exclusive):
                entry = _try(folder, staged, proof, expect, exclusive)
        except log.Moved:
            if (adopted := committed(folder, staged)) is not None:
                return adopted
            continue
        _forget(folder, staged)
        return entry
    raise TransientFailure(f"{staged.asset} was not published: others commit to its table all the time")


def committed(folder: Folder, staged: Staged) -> LedgerEntry | None:
    """Return the ledger's entry when it is this load's, and drop the stage's descriptor then."""
    snapshot = log.open_table(folder)
    if snapshot is None or snapshot.load != staged.load or not snapshot.seq:
        return None
    manifest = ledger.current(folder, snapshot, staged.asset)
    assert manifest is not None  # noqa: S101 - the snapshot has a seq
    _forget(folder, staged)
    return manifest.entry


def _forget(folder: Folder, staged: Staged) -> None:
    with disk(folder.path, f"ending the stage of {staged.asset}"):
        folder.descriptor(staged.load).unlink(missing_ok=True)


def _recreates(folder: Folder, staged: Staged) -> bool:
    """Whether the commit has to replace the table's columns, which needs the folder's lock alone."""
    snapshot = log.open_table(folder)
    if snapshot is None:
        return False
    return replaces(staged) and not snapshot.same_columns(arrow_schema(staged.schema), _partitions(staged))


def replaces(staged: Staged) -> bool:
    """Whether nothing of what the asset held stays."""
    return staged.how in ("create", "replace")


def _partitions(staged: Staged) -> Sequence[str]:
    return tuple(staged.detail.get("partitions", ()))  # a stage that was written before there were any has none


def _try(folder: Folder, staged: Staged, proof: Proof, expect: int, exclusive: bool) -> LedgerEntry:
    snapshot = log.open_table(folder)
    previous = ledger.current(folder, snapshot, staged.asset)
    check_seq(staged, previous, expect)
    if not staged.detail.get("replace"):
        check_foreign(folder, staged.asset, snapshot, previous, builds=not replaces(staged))
    _check_stage(folder, staged)
    plan = _plan(staged, proof, snapshot, previous)
    if plan.recreate and not exclusive:
        raise SeqMoved(f"the columns of {staged.asset} were changed since this load was staged", hint="run again")
    with disk(folder.path, f"publishing {staged.asset}"):
        ledger.write(folder, plan.manifest)
    reach("lake.publish.before_commit")
    try:
        log.commit(
            folder,
            snapshot,
            arrow_schema(staged.schema),
            plan.manifest.added,
            plan.remove,
            partitions=_partitions(staged),
            seq=plan.manifest.entry.seq,
            load=staged.load,
            recreate=plan.recreate,
        )
    except MillraceError as error:
        _check_commit(folder, staged, error)
    reach("lake.publish.after_commit")
    with disk(folder.path, f"publishing {staged.asset}"):
        log.settle(folder, plan.manifest.version)
    return plan.manifest.entry


def _check_commit(folder: Folder, staged: Staged, error: MillraceError) -> None:
    """Return when the commit was made although an error came: what the library does after it (checkpoints) failed.

    Raises:
        MillraceError: the error, when the commit was not made.
        CommitUnknown: nobody can say now.
    """
    try:
        snapshot = log.open_table(folder)
    except MillraceError:
        raise CommitUnknown(
            f"whether {staged.asset} was published is not known",
            where=str(folder.path),
            detail=[error.what, *error.detail],
            hint="run again: the ledger decides",
        ) from error
    if snapshot is None or snapshot.load != staged.load:
        raise error


def check_seq(staged: Staged, previous: Manifest | None, expect: int) -> None:
    """Raise SeqMoved unless the ledger still stands where the stage began."""
    seq = previous.entry.seq if previous else 0
    if seq == expect == staged.base:
        return
    detail = [f"it was staged upon load {staged.base}, the ledger is at {seq}"]
    if previous:
        detail.append(f"load {seq} is of run {short_run(previous.entry.run)}, {previous.entry.time}")
    raise SeqMoved(
        f"{staged.asset} was published by another run since this one was staged", detail=detail, hint="run again"
    )


def check_foreign(
    folder: Folder, asset: AssetId, snapshot: log.Snapshot | None, previous: Manifest | None, *, builds: bool
) -> None:
    """Refuse to build upon rows that something else wrote.

    Args:
        folder: the asset's.
        asset: the asset.
        snapshot: the newest version.
        previous: the last load's manifest.
        builds: files of the table stay in it.

    Raises:
        GuardRefused: the table has no ledger and is not empty, or was written to since the last load; or its files
            were moved, and would stay: those of others lack the partition columns.
    """
    if snapshot is None:
        return
    if previous is None:
        if snapshot.files():
            raise GuardRefused(
                f"{asset} holds data that Millrace did not write",
                where=str(folder.path),
                hint="to replace it: --replace",
            )
        return
    if snapshot.version <= previous.version:
        return
    changes = log.foreign_commits(folder, previous.version, snapshot.version)
    if not changes and not (builds and snapshot.partitions):
        return
    last = log.open_table(folder, previous.version)
    if last is not None and last.files() == snapshot.files():  # it was restored
        return
    if not changes:
        raise GuardRefused(
            f"the files of {asset} were rewritten by something else, without their partition columns",
            where=str(folder.path),
            hint=f"restore version {previous.version} of the Delta table, or remove its folder and run again",
        )
    raise GuardRefused(
        f"{asset} was written to by something other than Millrace",
        where=str(folder.path),
        detail=changes[:5],
        hint=f"restore version {previous.version} of the Delta table, or replace it whole: --replace",
    )


def _check_stage(folder: Folder, staged: Staged) -> None:
    """Refuse a stage whose files were cleaned up: the process slept, and its run was given up."""
    try:
        for file in staged.detail["files"]:
            check_size(folder, file, staged)
    except ProofFailed as error:
        raise SeqMoved(
            f"the stage of {staged.asset} is gone: its run {short_run(staged.run)} was given up",
            where=error.where,
            hint="run again",
        ) from error


def _plan(staged: Staged, proof: Proof, snapshot: log.Snapshot | None, previous: Manifest | None) -> _Plan:
    recreate = False
    remove: Mapping[str, int] = {}
    if snapshot is not None:
        same = snapshot.same_columns(arrow_schema(staged.schema), _partitions(staged))
        sizes = snapshot.sizes()
        if replaces(staged):
            recreate, remove = not same, sizes
        elif not same:
            raise SeqMoved(f"the columns of {staged.asset} are not those that were staged", hint="run again")
        elif staged.how == "upsert":
            remove = {file["name"]: sizes.get(file["name"], -1) for file in staged.detail["removed"]}
            if -1 in remove.values():
                raise SeqMoved(
                    f"files of {staged.asset} were rewritten by something else since this load was staged",
                    hint="run again",
                )
    entry, whole = _entry(staged, proof, previous)
    quarantine = _quarantine(staged, proof, previous)
    manifest = Manifest(
        entry=changed(entry, quarantined=0 if quarantine is None else quarantine["open"]),
        how=staged.how,
        version=0 if snapshot is None else snapshot.version + 1,
        previous=previous.entry.load if previous else None,
        schema=staged.schema,
        whole=whole,
        added=[_record(file) for file in staged.detail["files"]],
        removed=sorted(remove),
        images={side: image["name"] for side, image in staged.detail.get("images", {}).items()},
        proof=proof,
        quarantine=quarantine,
    )
    return _Plan(manifest, remove, recreate)


def _record(file: Mapping[str, Any]) -> dict[str, Any]:
    return {name: file[name] for name in ("name", "rows", "size")}


def _entry(staged: Staged, proof: Proof, previous: Manifest | None) -> tuple[LedgerEntry, bool]:
    """Return the ledger's entry, and whether its digest is of the whole asset."""
    before = previous.entry if previous else None
    replaces = staged.how in ("create", "replace")
    known = before.rows if before else 0
    rows: int
    level: Level = proof.level
    if replaces:
        rows, counts = staged.rows, Counts(inserted=staged.rows, deleted=max(known, 0))
        # all that the asset holds are files whose rows equal the source's
        level = "table" if level == "transfer" and staged.position.to_json()["kind"] in SOURCES else level
    elif staged.how == "upsert":
        counts = Counts(**staged.detail["counts"])
        rows = known + rows_of(staged.detail["files"]) - rows_of(staged.detail["removed"]) if known >= 0 else -1
    else:
        rows = known + staged.rows if known >= 0 else -1
        counts = Counts(inserted=staged.rows)
    digest, whole = _whole(staged, proof, previous, replaces)
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    entry = entry_for(staged, proof, time=now, level=level, digest=digest, rows=rows, counts=counts)
    return entry, whole


def _quarantine(staged: Staged, proof: Proof, previous: Manifest | None) -> Mapping[str, Any] | None:
    """Return what the manifest says about the quarantine; a load that says nothing about it leaves it as it is."""
    if "quarantine" not in staged.detail:
        replaces = staged.how in ("create", "replace")
        return None if replaces or previous is None else previous.quarantine
    return facts_of(staged.detail["quarantine"], previous, _source(staged, proof, previous))


def _source(staged: Staged, proof: Proof, previous: Manifest | None) -> Digest | None:
    """Return the digest of the whole source after the load, reckoned from the source's own digests."""
    if not hashable(staged.schema) or not staged.expected:
        return None
    read = Digest.sum(staged.expected.values(), staged.schema.shape)
    if staged.how in ("create", "replace"):
        return read
    before: Digest | None = None
    if previous is not None and previous.quarantine is not None:
        known = previous.quarantine["source"]
        before = None if known is None else Digest.from_json(known)
    elif previous is not None and previous.whole:
        before = previous.entry.digest
    if before is None or before.shape != read.shape or proof.digest is None:
        return None
    record = staged.detail["quarantine"]
    out = Digest.from_json(record["out"]) - Digest.from_json(record["out_fixes"])
    if staged.how != "upsert":
        return before + read - out
    # what was read takes the place of rows of the same keys: those that the merge replaced or left, less rows that
    # stood there fixed, and those that lay in quarantine
    changes = Digest.from_json(staged.detail["changes"])
    found = _found(staged)
    if found is not None and previous is not None and previous.whole and previous.entry.digest is not None:
        before += found - previous.entry.digest  # what a scrub mended went with the before-images as it was found
    return before + read - changes + proof.digest - out


def _whole(staged: Staged, proof: Proof, previous: Manifest | None, replaces: bool) -> tuple[Digest | None, bool]:
    """Return the asset's digest where it follows from the last one and the load's, else the load's."""
    last = _found(staged) or (previous.entry.digest if previous and previous.whole else None)
    if replaces:
        return proof.digest, proof.digest is not None
    if staged.how == "position":
        return last, last is not None
    if last is None or proof.digest is None or last.shape != proof.digest.shape:
        return proof.digest, False
    return last + proof.digest, True


def _found(staged: Staged) -> Digest | None:
    """Return the digest of the asset's files as a scrub found them, where it found other rows than were published."""
    found = staged.detail.get("found")
    return None if found is None else Digest.from_json(found)
