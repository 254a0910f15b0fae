"""The lake as a target: a folder of Delta tables on a local disk.

Staged files lie in the table's folder and not in its log; proving reads them back; one Delta commit makes them
visible together with the ledger's new seq. Each asset is atomic by itself: two assets are two commits.
Object stores come later; Delta's compare-and-swap and hard links are a local disk's here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from millrace.core.events import reach
from millrace.core.names import AssetId
from millrace.core.ports import StageRequest
from millrace.core.schema import Schema
from millrace.core.staged import LedgerEntry, Proof, Staged
from millrace.errors import GuardRefused, NotFound, UsageError
from millrace.lake import gc, ledger, log
from millrace.lake.layout import PRIVATE, Folder
from millrace.lake.ledger import Manifest
from millrace.lake.prove import prove
from millrace.lake.publish import publish
from millrace.lake.stage import LakeStage, read_descriptor
from millrace.lake.table import require


class LakeTarget:
    """A lake below one folder.

    Args:
        root: the folder, on a local disk; made when the first asset is staged.
        name: the target's name in the runtime.

    Raises:
        ExtraMissing: deltalake or pyarrow is not installed.
        UsageError: the root is a URL.
    """

    def __init__(self, root: Path | str, name: str = "lake") -> None:
        if "://" in str(root):
            raise UsageError(f"a lake lies on a local disk for now, not at {root}", hint="give a folder")
        require()
        self.root = Path(root).absolute()
        self.name = name

    def folder(self, asset: AssetId) -> Folder:
        """Return where an asset lies."""
        return Folder.of(self.root, asset)

    # reading

    def ledger(self, asset: AssetId) -> LedgerEntry | None:
        """Return the asset's last publish, or None.

        Raises:
            StepFailed: the log or the manifest cannot be read.
            NewerFormat: a newer version of Millrace wrote it.
        """
        folder = self.folder(asset)
        manifest = ledger.current(folder, log.open_table(folder), asset)
        return None if manifest is None else manifest.entry

    def schema(self, asset: AssetId, seq: int | None = None) -> Schema:
        """Return the columns of an asset with the source's own types, as of a seq or now. Raises NotFound."""
        return self._manifest(asset, seq).schema

    def files(self, asset: AssetId, seq: int | None = None) -> list[str]:
        """Return the absolute paths of an asset's data files as of a seq or its last load.

        They are those of one Delta version: what others have written since is not among them.

        Raises:
            NotFound: there is no such load, or it is not kept any more.
        """
        manifest = self._manifest(asset, seq)
        folder = self.folder(asset)
        snapshot = log.open_table(folder, manifest.version)
        if snapshot is None or (snapshot.seq, snapshot.load) != (manifest.entry.seq, manifest.entry.load):
            raise NotFound(
                f"load {manifest.entry.seq} of {asset} is not what its manifest says",
                where=str(folder.path),
                hint="the Delta log was changed by something else",
            )
        return [str(folder.path / name) for name in snapshot.files()]

    def staged_files(self, staged: Staged) -> list[str]:
        """Return the absolute paths of the files that the asset would have after publishing a stage."""
        folder = self.folder(staged.asset)
        own = [file["name"] for file in staged.detail["files"]]
        if staged.how in ("create", "replace"):
            kept: list[str] = []
        else:
            gone = {file["name"] for file in staged.detail.get("removed", ())}
            kept = [path for path in self.files(staged.asset, staged.base) if Path(path).name not in gone]
        return [*kept, *(str(folder.path / name) for name in own)]

    def _manifest(self, asset: AssetId, seq: int | None) -> Manifest:
        folder = self.folder(asset)
        snapshot = log.open_table(folder)
        manifest = ledger.current(folder, snapshot, asset)
        if manifest is None:
            raise NotFound(f"{asset} was never published", where=str(folder.path))
        if seq is None or seq == manifest.entry.seq:
            return manifest
        return ledger.at(folder, snapshot, asset, seq)

    # staging, proving, publishing

    def open_stage(self, request: StageRequest, *, replace: bool = False) -> LakeStage:
        """Open a stage, or the one that a killed attempt of the same load left.

        Args:
            request: `how` is one of create, replace, append, upsert, position.
            replace: allow to replace a table that Millrace did not write.

        Raises:
            GuardRefused: the table exists, is not empty and has no ledger.
            ContractBroken: the columns cannot be a Delta table's.
        """
        folder = self.folder(request.asset)
        if request.base == 0 and not replace:
            snapshot = log.open_table(folder)
            if snapshot is not None and not snapshot.seq and snapshot.files():
                raise GuardRefused(
                    f"{request.asset} holds data that Millrace did not write",
                    where=str(folder.path),
                    hint="to replace it: --replace",
                )
        return LakeStage(folder, self.name, self._place(folder), request, replace)

    def _place(self, folder: Folder) -> str:
        return str(folder.path.relative_to(self.root))

    def prove(self, staged: Staged) -> Proof:
        """Check the staged files and compare their digest with `staged.expected`. Raises ProofFailed."""
        reach("lake.prove")
        return prove(self.folder(staged.asset), staged)

    def publish(
        self, staged: Sequence[Staged], proofs: Sequence[Proof], expect: Mapping[AssetId, int]
    ) -> Sequence[LedgerEntry]:
        """Make the stages visible, each by one commit, if its ledger seq still is as expected.

        Raises:
            SeqMoved: someone else published, or the stage was cleaned up.
            GuardRefused: something else than Millrace wrote into the table.
            ProofFailed: a stage has no proof.
        """
        proven = {(proof.asset, proof.load): proof for proof in proofs}
        return tuple(
            publish(self.folder(one.asset), one, proven.get((one.asset, one.load)), expect[one.asset]) for one in staged
        )

    def discard(self, staged: Staged) -> None:
        """Drop a stage; no error when it is gone, no harm when it was published."""
        gc.discard(self.folder(staged.asset), staged.asset, staged.load)

    def stages(self) -> Iterable[Staged]:
        """Return the closed stages that lie in the lake."""
        for folder in self.folders():
            for path in sorted(folder.stages.glob("*.json")):
                data = read_descriptor(path)
                if data is not None and data["staged"] is not None:
                    yield Staged.from_json(data["staged"])

    def folders(self) -> list[Folder]:
        """Return the folders that Millrace keeps assets in."""
        return [Folder(path.parent) for path in sorted(self.root.glob(f"*/*/{PRIVATE}"))]

    def assets(self) -> list[AssetId]:
        """Return the published assets."""
        found = set()
        for folder in self.folders():
            snapshot = log.open_table(folder)
            if snapshot is None or not snapshot.seq:
                continue
            try:
                data = json.loads(folder.manifest(snapshot.seq, snapshot.load).read_text("utf-8"))
            except FileNotFoundError:
                continue
            found.add(AssetId(*data["entry"]["asset"]))
        return sorted(found)

    # cleaning up

    def gc(self, live: Callable[[str], bool]) -> Sequence[str]:
        """Drop what killed runs left: stages of runs that are not live, files and manifests of no load.

        Returns:
            Paths of what was dropped, relative to the root. A table that somebody publishes to is left for later.
        """
        return [name for folder in self.folders() for name in gc.collect(folder, self.root, live)]
