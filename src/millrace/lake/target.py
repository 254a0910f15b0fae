"""The lake as a target: a folder of Delta tables on a local disk.

Staged files lie in the table's folder and not in its log; proving reads them back; one Delta commit makes them
visible together with the ledger's new seq. Each asset is atomic by itself: two assets are two commits.
Object stores come later; Delta's compare-and-swap and hard links are a local disk's here.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace as changed
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from millrace.core.digest import Digest
from millrace.core.events import reach
from millrace.core.names import AssetId
from millrace.core.ports import StageRequest
from millrace.core.position import Position
from millrace.core.quarantine import Balance, Entry
from millrace.core.schema import Schema
from millrace.core.segment import Segment, SegmentId
from millrace.core.staged import LedgerEntry, Proof, Staged
from millrace.errors import ContractBroken, GuardRefused, NotFound, UsageError
from millrace.lake import gc, ledger, log, quarantine
from millrace.lake.changes import Change, change_of
from millrace.lake.gc import RETAIN, VERSIONS
from millrace.lake.layout import PRIVATE, Folder, disk
from millrace.lake.ledger import Manifest
from millrace.lake.prove import prove
from millrace.lake.publish import check_foreign, publish
from millrace.lake.sql import SqlEngine
from millrace.lake.stage import LakeStage, read_descriptor
from millrace.lake.table import arrow_schema, file_batches, require
from millrace.lake.upsert import Upsert, check_base, check_keys, fitting, settled, write_aside

if TYPE_CHECKING:
    import pyarrow as pa


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

    def same_rows(self, asset: AssetId, then: int, now: int) -> bool:
        """Say whether two loads of an asset are the same files: those between moved a position or recorded a proof."""
        try:
            return set(self.files(asset, then)) == set(self.files(asset, now))
        except NotFound:  # another target's, or not kept any more
            return False

    def files(self, asset: AssetId, seq: int | None = None) -> list[str]:
        """Return the absolute paths of an asset's data files as of a seq or its last load.

        What others have written since the last load is not among them; when they only moved its rows into other
        files (optimize), it is those.

        Raises:
            NotFound: there is no such load, or it is not kept any more.
        """
        manifest = self._manifest(asset, seq)
        folder = self.folder(asset)
        snapshot = log.open_table(folder)
        same = snapshot is not None and (snapshot.seq, snapshot.load) == (manifest.entry.seq, manifest.entry.load)
        moved = snapshot is not None and snapshot.partitions and snapshot.version > manifest.version
        # files that others write of a split table lack its partition columns
        if snapshot is None or not same or moved or log.foreign_commits(folder, manifest.version, snapshot.version):
            snapshot = log.open_table(folder, manifest.version)
        if snapshot is None or (snapshot.seq, snapshot.load) != (manifest.entry.seq, manifest.entry.load):
            raise NotFound(
                f"load {manifest.entry.seq} of {asset} is not what its manifest says",
                where=str(folder.path),
                hint="the Delta log was changed by something else",
            )
        return [str(folder.path / name) for name in snapshot.files()]

    def partitions(self, asset: AssetId) -> tuple[str, ...]:
        """Return the columns that an asset's files are split by; none also when it was never published."""
        snapshot = log.open_table(self.folder(asset))
        return () if snapshot is None else snapshot.partitions

    def staged_files(self, staged: Staged) -> list[str]:
        """Return the absolute paths of the files that the asset would have after publishing a stage."""
        folder = self.folder(staged.asset)
        own = [file["name"] for file in staged.detail["files"]]
        if staged.how in ("create", "replace"):
            kept: list[str] = []
        else:
            gone = {str(folder.path / file["name"]) for file in staged.detail.get("removed", ())}
            kept = [path for path in self.files(staged.asset, staged.base) if path not in gone]
        return [*kept, *(str(folder.path / name) for name in own)]

    # quarantine

    def quarantine(self, asset: AssetId, seq: int | None = None) -> pa.Table | None:
        """Return the rows in quarantine as of a seq or now, in the columns of `lake.quarantine.state_schema`, or None.

        Raises:
            NotFound: there is no such load, or it is not kept any more.
        """
        return quarantine.read(self.folder(asset), self._manifest(asset, seq))

    def entries(self, asset: AssetId, seq: int | None = None) -> list[Entry]:
        """Return the rows in quarantine as values, the oldest first. Raises NotFound."""
        manifest = self._manifest(asset, seq)
        return quarantine.entries(quarantine.read(self.folder(asset), manifest), asset, manifest.schema)

    def balance(self, asset: AssetId) -> Balance:
        """Return the arithmetic of source, asset and quarantine. Raises NotFound."""
        return quarantine.balance(self.folder(asset), self._manifest(asset, None))

    def manifest(self, asset: AssetId, seq: int | None = None) -> Manifest:
        """Return what a load did and what was proven of it, as of a seq or now. Raises NotFound."""
        return self._manifest(asset, seq)

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

    def upsert(
        self,
        request: StageRequest,
        changes: Sequence[Path | str],
        schema: Schema,
        sql: SqlEngine,
        *,
        position: Position,
        expected: Mapping[SegmentId, Digest] | None = None,
        deletes: Sequence[Path | str] = (),
        detail: Mapping[str, Any] | None = None,
        bad: pa.Table | None = None,
        whole: bool = False,
        reopened: Collection[str] = (),
        state: pa.Table | None = None,
    ) -> Staged:
        """Stage an upsert: the files that a real change touches are rewritten, the others stay.

        Args:
            request: its `how` does not matter; upon base 0 the changes become the table.
            changes: Parquet files with the asset's columns, in the Arrow types of `lake.table.arrow_schema`; one row
                a key. Columns of the lake's own are ignored.
            schema: columns and key of the asset; as in the request.
            sql: a DuckDB connection, or what speaks its SQL.
            position: what the source position is after the publish.
            expected: digests of the changes in the source.
            deletes: Parquet files with at least the key columns: rows to delete.
            detail: facts of the caller, kept in `Staged.detail`.
            bad: rows of the source to set aside, as `LakeStage.set_aside` takes them; older rows of their keys go.
            whole: changes and bad rows are all rows of the source.
            reopened: ids of replayed entries whose fixed rows do not stand any more.
            state: the complete quarantine afterwards, when the changes are fixed rows of its entries.

        The table keeps its partitions; those of the request hold where it becomes the table.

        Raises:
            KeyInvalid: no key, a null in one, or the same key twice.
            ContractBroken: the columns are not those of the table.
            SeqMoved: the table is not at the request's base.
            GuardRefused: something else than Millrace wrote into the table.
        """
        request = changed(request, schema=schema, how="upsert")
        folder, asset = self.folder(request.asset), str(request.asset)
        files = fitting([str(path) for path in changes], arrow_schema(schema), schema.names, asset)
        keys = fitting([str(path) for path in deletes], arrow_schema(schema), schema.key, asset)
        snapshot = log.open_table(folder)
        manifest = ledger.current(folder, snapshot, request.asset)
        check_base(manifest.entry.seq if manifest else 0, request.base, asset)
        if snapshot is not None and manifest is not None:
            request = changed(request, partitions=snapshot.partitions)
        stage = self.open_stage(request)
        stage.drop(stage.left())
        if bad is not None and (snapshot is None or manifest is None):
            stage.set_aside(bad)
        if snapshot is None or manifest is None:
            check_keys(sql, files, schema.key, asset)
            stage.write_batches(Segment.whole(), file_batches(files, schema))
            return stage.close(position, expected or {}, detail=detail)
        if not snapshot.same_columns(stage.schema, request.partitions):
            raise ContractBroken(
                f"the columns of {asset} are not those of its changes", hint="load it anew: --full-refresh"
            )
        check_foreign(folder, request.asset, snapshot, manifest, builds=True)
        if state is not None:
            stage.put_state(state)
            return Upsert(folder, stage, snapshot, files, keys, sql).run(position, expected or {}, detail or {})
        with tempfile.TemporaryDirectory(prefix="millrace-") as scratch:
            more = self._aside(folder, stage, manifest, bad, [*files, *keys], sql, whole, reopened, Path(scratch))
            files, keys = [*files, *more[0]], [*keys, *more[1]]
            return Upsert(folder, stage, snapshot, files, keys, sql).run(position, expected or {}, detail or {})

    def _aside(
        self,
        folder: Folder,
        stage: LakeStage,
        manifest: Manifest,
        bad: pa.Table | None,
        files: Sequence[str],
        sql: SqlEngine,
        whole: bool,
        reopened: Collection[str],
        scratch: Path,
    ) -> tuple[list[str], list[str]]:
        """Set the bad rows of an upsert aside and settle older entries; returns further changes and keys to delete."""
        older = stage.quarantined()
        if older is None and (bad is None or not bad.num_rows):
            return [], []
        schema = stage.request.schema
        bad = bad if bad is not None else quarantine.bad_schema(schema).empty_table()
        gone = []
        if older is not None and manifest.quarantine is not None:
            gone = settled(sql, folder.quarantine / manifest.quarantine["file"], files, schema.key)
        stage.set_aside(bad, gone=gone, whole=whole, reopened=reopened)
        with disk(scratch, f"setting rows of {stage.request.asset} aside"):
            return write_aside(sql, scratch, quarantine.fitted(bad, schema), stage.settle(), files, schema)

    def changes(self, asset: AssetId, since: int) -> list[Change] | None:
        """Return what the loads after a seq changed, oldest first.

        Returns:
            One entry a load; None when a load replaced everything, or is not kept any more: then everything may
            have changed. Loads that only moved the position have no files.

        Raises:
            NotFound: the asset was never published.
        """
        folder = self.folder(asset)
        found: list[Change] = []
        seq = self._manifest(asset, None).entry.seq
        for manifest in ledger.chain(folder, log.open_table(folder), asset):
            seq = manifest.entry.seq
            if seq <= since:
                break
            change = change_of(folder, manifest)
            if change is None:
                return None
            found.append(change)
            seq -= 1
        return found[::-1] if seq == since else None

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

    def vacuum(self, asset: AssetId, retain: timedelta = RETAIN, versions: int = VERSIONS) -> Sequence[str]:
        """Drop the files of an asset's old versions, with their changes and manifests; never done by itself.

        Args:
            asset: a published asset.
            retain: a version that was the newest less than this ago is kept.
            versions: so many newest versions are kept anyway; at least one.

        Returns:
            Paths of what was dropped, relative to the root.
        """
        return gc.vacuum(self.folder(asset), self.root, asset, retain, versions)
