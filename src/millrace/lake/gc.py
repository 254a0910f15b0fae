"""Cleaning up: what killed runs left, and versions that nobody needs any more.

Nothing here removes a file that a version of the table may still need: the files of the newest version, and all that
the manifests of true loads name, are left alone.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from millrace.core.names import AssetId
from millrace.errors import TargetBusy
from millrace.lake import ledger, log
from millrace.lake.layout import DATA_FILE, IMAGES, MANIFEST, QUARANTINE, Folder, disk, read_json
from millrace.lake.stage import read_descriptor

HALF_SECONDS = 3600.0  # no process writes a descriptor or a manifest for that long
RETAIN = timedelta(days=7)  # a reader pinned to a version, or one that works on changes, has that long
VERSIONS = 2


def discard(folder: Folder, asset: AssetId, load: int) -> None:
    """Drop one stage: its files that no load has, its descriptor, its manifests that came to nothing."""
    if not folder.descriptor(load).exists() and not any(_load_of(path) == load for path in folder.data_files()):
        return
    with folder.lock(exclusive=True), disk(folder.path, f"dropping a stage of {asset}"):
        keep = _needed(folder, log.open_table(folder), asset)
        for path in (*folder.data_files(), *_images(folder), *_quarantines(folder), *_manifests(folder)):
            if _load_of(path) == load and path not in keep:
                path.unlink(missing_ok=True)
        folder.descriptor(load).unlink(missing_ok=True)
        folder.drop_empty()


def collect(folder: Folder, root: Path, live: Callable[[str], bool]) -> Sequence[str]:
    """Drop what belongs to no live run and to no load; returns names relative to the root."""
    try:
        with folder.lock(exclusive=True, wait=0), disk(folder.path, "cleaning up"):
            return [str(path.relative_to(root)) for path in _collect(folder, live)]
    except TargetBusy:
        return ()


def _collect(folder: Folder, live: Callable[[str], bool]) -> list[Path]:
    # Looked for before the descriptors: what a stage writes that is opened meanwhile is not among them.
    candidates = [*folder.data_files(), *_images(folder), *_quarantines(folder), *_manifests(folder)]
    halves = [*folder.loads.glob(".*.json.*"), *folder.stages.glob(".*.json.*")]
    dropped: list[Path] = [half for half in halves if not _writing(half)]
    kept_loads: set[int] = set()
    for path in sorted(folder.stages.glob("*.json")):
        data = read_descriptor(path)
        if data is None:
            continue
        if live(data["run"]):
            kept_loads.add(int(data["load"]))
        else:
            dropped.append(path)
    dropped += _orphans(folder, candidates, kept_loads)
    for path in dropped:
        path.unlink(missing_ok=True)
    folder.drop_empty()
    return dropped


def _writing(half: Path) -> bool:
    """Whether the process that writes a file is still at it; its id ends the file's name."""
    try:
        os.kill(int(half.name.rpartition(".")[2]), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        pass
    return time.time() - half.stat().st_mtime < HALF_SECONDS


def _orphans(folder: Folder, candidates: Sequence[Path], kept_loads: set[int]) -> list[Path]:
    """Return those of some files that look like ours and that no load has made."""
    snapshot = log.open_table(folder)
    asset = _asset(folder, snapshot)
    if snapshot is not None and snapshot.seq and asset is None:
        return []  # the manifest is missing: nobody can say what is needed
    if snapshot is None and any(_seq_of(path) > 1 for path in _manifests(folder)):
        return []  # the log is missing
    needed = _needed(folder, snapshot, asset)
    return [path for path in candidates if path not in needed and _load_of(path) not in kept_loads]


def _asset(folder: Folder, snapshot: log.Snapshot | None) -> AssetId | None:
    """Return which asset the folder is, or None when it was never published."""
    if snapshot is None or not snapshot.seq:
        return None
    data = read_json(folder.manifest(snapshot.seq, snapshot.load))
    return None if data is None else AssetId(*data["entry"]["asset"])


def _needed(folder: Folder, snapshot: log.Snapshot | None, asset: AssetId | None) -> set[Path]:
    """Return all files that the newest version or a true load names."""
    found = set() if snapshot is None else {folder.path / name for name in snapshot.files()}
    if asset is None:
        return found
    oldest = 0
    for manifest in ledger.chain(folder, snapshot, asset):
        found |= _named(folder, manifest)
        oldest = manifest.entry.seq
    for path in _manifests(folder):  # older than the chain reaches, because one was lost: nobody can say
        if _seq_of(path) < oldest:
            lost = ledger.load(folder, _seq_of(path), _load_of(path) or 0, asset)
            found |= _named(folder, lost) if lost else set()
    return found


def _named(folder: Folder, manifest: ledger.Manifest) -> set[Path]:
    """Return the files that a manifest names, and itself."""
    return {
        folder.manifest(manifest.entry.seq, manifest.entry.load),
        *(folder.path / file["name"] for file in manifest.added),
        *(folder.path / name for name in manifest.removed),
        *(folder.changes / name for name in manifest.images.values()),
        *_quarantine(folder, manifest),
    }


def _quarantine(folder: Folder, manifest: ledger.Manifest) -> set[Path]:
    """Return the file with the quarantine after a load; several loads may name one."""
    return set() if manifest.quarantine is None else {folder.quarantine / manifest.quarantine["file"]}


def _load_of(path: Path) -> int | None:
    for form in (DATA_FILE, IMAGES, QUARANTINE, MANIFEST):
        if match := form.fullmatch(path.name):
            return int(match["load"])
    return None


def _seq_of(manifest: Path) -> int:
    match = MANIFEST.fullmatch(manifest.name)
    return int(match["seq"]) if match else 0


def _images(folder: Folder) -> list[Path]:
    if not folder.changes.is_dir():
        return []
    return sorted(path for path in folder.changes.iterdir() if IMAGES.fullmatch(path.name))


def _quarantines(folder: Folder) -> list[Path]:
    if not folder.quarantine.is_dir():
        return []
    return sorted(path for path in folder.quarantine.iterdir() if QUARANTINE.fullmatch(path.name))


def _manifests(folder: Folder) -> list[Path]:
    if not folder.loads.is_dir():
        return []
    return sorted(path for path in folder.loads.iterdir() if MANIFEST.fullmatch(path.name))


def vacuum(
    folder: Folder, root: Path, asset: AssetId, retain: timedelta = RETAIN, versions: int = VERSIONS
) -> Sequence[str]:
    """Drop the files of old versions, their changes and manifests; returns names relative to the root.

    A version is kept while it is among the newest `versions`, or was the newest less than `retain` ago.

    Raises:
        TargetBusy: somebody publishes to the table for long.
    """
    with folder.lock(exclusive=True), disk(folder.path, f"dropping old versions of {asset}"):
        snapshot = log.open_table(folder)
        if snapshot is None:
            return []
        true = list(ledger.chain(folder, snapshot, asset))
        kept = _kept(true, datetime.now(UTC) - retain, max(versions, 1))
        held = {folder.path / name for name in snapshot.files()}
        needed = set(held)
        for newer in true[: kept - 1]:  # the files of the version before: without what came, with what went
            held -= {folder.path / file["name"] for file in newer.added}
            held |= {folder.path / name for name in newer.removed}
            needed |= held
        for manifest in true[:kept]:
            needed |= {folder.changes / name for name in manifest.images.values()} | _quarantine(folder, manifest)
            needed.add(folder.manifest(manifest.entry.seq, manifest.entry.load))
        dropped = sorted(path for path in _of(folder, true) if path not in needed and path.exists())
        for path in dropped:
            path.unlink(missing_ok=True)
        folder.drop_empty()
        return [str(path.relative_to(root)) for path in dropped]


def _kept(true: Sequence[ledger.Manifest], since: datetime, versions: int) -> int:
    """Return how many of the newest manifests' versions are kept."""
    kept = min(len(true), versions)
    while kept < len(true) and datetime.fromisoformat(true[kept - 1].entry.time) > since:
        kept += 1
    return kept


def _of(folder: Folder, manifests: Iterable[ledger.Manifest]) -> set[Path]:
    """Return what some loads have named, and is of our making."""
    named = {path for manifest in manifests for path in _named(folder, manifest)}
    return {path for path in named if _load_of(path) is not None}
