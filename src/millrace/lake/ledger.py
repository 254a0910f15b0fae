"""The ledger of a lake: the Delta log says which load is the last, its manifest says what that load was.

A manifest is written before the commit that makes it true, so a manifest alone means nothing: true are the one that
the log's newest application transactions name, and its ancestors, since each names the one before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from millrace.core.names import AssetId
from millrace.core.schema import Schema
from millrace.core.staged import FORMAT, LedgerEntry, Proof, check_format
from millrace.errors import NotFound, StepFailed
from millrace.lake.layout import Folder, read_json, write_json
from millrace.lake.log import Snapshot


@dataclass(frozen=True, slots=True)
class Manifest:
    """What one load did.

    Attributes:
        entry: the ledger's entry.
        how: `create`, `replace`, `append`, `upsert`, `position`.
        version: Delta's version that the commit made.
        previous: load id of the manifest before it, or None.
        schema: columns and key with the source's own types.
        whole: whether the entry's digest is of the whole asset.
        added: records of files (`name`, `rows`, `size`).
        removed: names of the files that it left.
        images: names of the files of before- and after-images (`before`, `after`) of an upsert.
        quarantine: None, or `file`: the file with all entries after this load; `open`, `replayed`, `dropped`: how many;
            `digest` of all of them, `fixes`: of the rows that stand in the asset for replayed ones, `source`: of the
            whole source after this load, or None where it is not known.
    """

    entry: LedgerEntry
    how: str
    version: int
    previous: int | None
    schema: Schema
    whole: bool
    added: Sequence[Mapping[str, Any]] = ()
    removed: Sequence[str] = ()
    images: Mapping[str, str] = field(default_factory=dict)
    proof: Proof | None = None
    quarantine: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the manifest as JSON types."""
        return {
            "format": FORMAT,
            "entry": self.entry.to_json(),
            "how": self.how,
            "version": self.version,
            "previous": None if self.previous is None else str(self.previous),
            "schema": self.schema.to_json(),
            "whole": self.whole,
            "added": [dict(file) for file in self.added],
            "removed": list(self.removed),
            "images": dict(self.images),
            "proof": None if self.proof is None else self.proof.to_json(),
            "quarantine": None if self.quarantine is None else dict(self.quarantine),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], what: str) -> Manifest:
        """Read what `to_json` wrote. Raises NewerFormat."""
        check_format(data["format"], what)
        return cls(
            LedgerEntry.from_json(data["entry"]),
            data["how"],
            data["version"],
            None if data["previous"] is None else int(data["previous"]),
            Schema.from_json(data["schema"]),
            data["whole"],
            tuple(data["added"]),
            tuple(data["removed"]),
            dict(data["images"]),
            None if data["proof"] is None else Proof.from_json(data["proof"]),
            data.get("quarantine"),  # what was written before there was a quarantine has no such field
        )


def write(folder: Folder, manifest: Manifest) -> None:
    """Write a manifest durably; it is true only once its commit is made."""
    write_json(folder.manifest(manifest.entry.seq, manifest.entry.load), manifest.to_json())


def current(folder: Folder, snapshot: Snapshot | None, asset: AssetId) -> Manifest | None:
    """Return the manifest of the last load in a version, or None when it holds no load of ours.

    Raises:
        StepFailed: the manifest is missing, or is another asset's.
        NewerFormat: a newer version wrote it.
    """
    if snapshot is None or not snapshot.seq:
        return None
    found = load(folder, snapshot.seq, snapshot.load, asset)
    if found is None:
        raise StepFailed(
            f"the lake's manifest of {asset} is missing, so its position is not known",
            where=str(folder.manifest(snapshot.seq, snapshot.load)),
            hint="bring it back from a backup, or remove the table's folder and run again",
        )
    return found


def load(folder: Folder, seq: int, load_id: int, asset: AssetId) -> Manifest | None:
    """Return one manifest, or None when there is none."""
    path = folder.manifest(seq, load_id)
    data = read_json(path)
    if data is None:
        return None
    try:
        found = Manifest.from_json(data, f"the ledger of {asset}")
    except (KeyError, TypeError, ValueError) as error:
        raise StepFailed("a manifest of the lake cannot be read", where=str(path), detail=[repr(error)]) from error
    if found.entry.asset != asset:
        raise StepFailed(
            f"the folder of {asset} holds {found.entry.asset}",
            where=str(folder.path),
            hint="folders of this file system do not tell upper from lower case: rename one of the two",
        )
    return found


def chain(folder: Folder, snapshot: Snapshot | None, asset: AssetId) -> Iterator[Manifest]:
    """Yield the true manifests, newest first, as far back as they are kept."""
    manifest = current(folder, snapshot, asset)
    while manifest is not None:
        yield manifest
        if manifest.previous is None:
            return
        manifest = load(folder, manifest.entry.seq - 1, manifest.previous, asset)


def at(folder: Folder, snapshot: Snapshot | None, asset: AssetId, seq: int) -> Manifest:
    """Return the manifest of a seq.

    Raises:
        NotFound: there is no such load, or it is not kept any more.
    """
    for manifest in chain(folder, snapshot, asset):
        if manifest.entry.seq == seq:
            return manifest
        if manifest.entry.seq < seq:
            break
    raise NotFound(f"{asset} has no load {seq}", where=str(folder.path))
