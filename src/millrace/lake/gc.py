"""Cleaning up: what killed runs left, and versions that nobody needs any more.

Nothing here removes a file that a version of the table may still need: the files of the newest version, and all that
the manifests of true loads name, are left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from millrace.core.names import AssetId
from millrace.errors import TargetBusy
from millrace.lake import ledger, log
from millrace.lake.layout import DATA_FILE, IMAGES, MANIFEST, Folder, disk, read_json
from millrace.lake.stage import read_descriptor


def discard(folder: Folder, asset: AssetId, load: int) -> None:
    """Drop one stage: its files that no load has, its descriptor, its manifests that came to nothing."""
    with folder.lock(exclusive=True), disk(folder.path, f"dropping a stage of {asset}"):
        keep = _needed(folder, asset)
        for path in (*folder.data_files(), *_images(folder), *_manifests(folder)):
            if _load_of(path) == load and path not in keep:
                path.unlink(missing_ok=True)
        folder.descriptor(load).unlink(missing_ok=True)


def collect(folder: Folder, root: Path, live: Callable[[str], bool]) -> Sequence[str]:
    """Drop what belongs to no live run and to no load; returns names relative to the root."""
    try:
        with folder.lock(exclusive=True, wait=0), disk(folder.path, "cleaning up"):
            return [str(path.relative_to(root)) for path in _collect(folder, live)]
    except TargetBusy:
        return ()


def _collect(folder: Folder, live: Callable[[str], bool]) -> list[Path]:
    dropped: list[Path] = []
    kept_loads: set[int] = set()
    for path in sorted(folder.stages.glob("*.json")):
        data = read_descriptor(path)
        if data is None:
            continue
        if live(data["run"]):
            kept_loads.add(int(data["load"]))
        else:
            path.unlink(missing_ok=True)
            dropped.append(path)
    for path in _orphans(folder, kept_loads):
        path.unlink(missing_ok=True)
        dropped.append(path)
    for half in (*folder.loads.glob(".*.json.*"), *folder.stages.glob(".*.json.*")):
        half.unlink(missing_ok=True)
        dropped.append(half)
    return dropped


def _orphans(folder: Folder, kept_loads: set[int]) -> list[Path]:
    """Return files that look like ours and that no load has made."""
    snapshot = log.open_table(folder)
    asset = _asset(folder, snapshot)
    if asset is None and snapshot is not None and snapshot.seq:
        return []  # the manifest is missing: nobody can say what is needed
    needed = set() if asset is None else _needed(folder, asset)
    candidates = (*folder.data_files(), *_images(folder), *_manifests(folder))
    return [path for path in candidates if path not in needed and _load_of(path) not in kept_loads]


def _asset(folder: Folder, snapshot: log.Snapshot | None) -> AssetId | None:
    """Return which asset the folder is, or None when it was never published."""
    if snapshot is None or not snapshot.seq:
        return None
    data = read_json(folder.manifest(snapshot.seq, snapshot.load))
    return None if data is None else AssetId(*data["entry"]["asset"])


def _needed(folder: Folder, asset: AssetId) -> set[Path]:
    """Return all files that the newest version or a true load names."""
    snapshot = log.open_table(folder)
    found = set() if snapshot is None else {folder.path / name for name in snapshot.files()}
    oldest = None
    for manifest in ledger.chain(folder, snapshot, asset):
        found |= _named(folder, manifest)
        oldest = manifest.entry.seq
    for path in _manifests(folder):  # older than the chain reaches, because one was lost: nobody can say
        match = MANIFEST.fullmatch(path.name)
        if match and oldest is not None and int(match["seq"]) < oldest:
            lost = ledger.load(folder, int(match["seq"]), int(match["load"]), asset)
            found |= _named(folder, lost) if lost else set()
    return found


def _named(folder: Folder, manifest: ledger.Manifest) -> set[Path]:
    """Return the files that a manifest names, and itself."""
    return {
        folder.manifest(manifest.entry.seq, manifest.entry.load),
        *(folder.path / file["name"] for file in manifest.added),
        *(folder.path / name for name in manifest.removed),
        *(folder.changes / name for name in manifest.images.values()),
    }


def _load_of(path: Path) -> int | None:
    match = DATA_FILE.fullmatch(path.name) or IMAGES.fullmatch(path.name) or MANIFEST.fullmatch(path.name)
    return int(match["load"]) if match else None


def _images(folder: Folder) -> list[Path]:
    if not folder.changes.is_dir():
        return []
    return sorted(path for path in folder.changes.iterdir() if IMAGES.fullmatch(path.name))


def _manifests(folder: Folder) -> list[Path]:
    if not folder.loads.is_dir():
        return []
    return sorted(path for path in folder.loads.iterdir() if MANIFEST.fullmatch(path.name))
