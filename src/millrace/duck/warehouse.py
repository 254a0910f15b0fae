"""The DuckDB warehouse as a target: clone the published file, make everything in the clone, move the pointer.

A publish group is one clone. Its members are tables loaded from Parquet files (proven by digest on both sides) and
whatever tools such as dbt made in it (recorded, not compared with anything). The publish writes the ledger into
the clone, brings it to the disk, and under the warehouse's lock moves `CURRENT` from the clone's base to the clone;
when `CURRENT` is not the base any more, the publish is refused. A reader that has the published file open keeps
its file, and neither waits nor is waited for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace as changed
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from millrace.core.digest import Digest
from millrace.core.events import reach
from millrace.core.names import AssetId, short_run
from millrace.core.ports import StageRequest
from millrace.core.position import Position, Versions
from millrace.core.schema import Schema
from millrace.core.staged import FORMAT, CheckResult, Counts, LedgerEntry, Proof, Staged, entry_for
from millrace.duck import engine, ledger
from millrace.duck.clone import Clone, alone, gone, own, release
from millrace.duck.digest import digest, types
from millrace.duck.engine import Fragment, fill, qualified, rows, transaction, translated
from millrace.duck.kinds import load_columns, schema_of
from millrace.duck.layout import FILE, KEPT, NOTE, Layout, disk, remove, sync
from millrace.errors import MillraceError, ProofFailed, SeqMoved, StepFailed

if TYPE_CHECKING:
    import duckdb

COPY_BYTES = 8 << 20
ALL = "all"


class WarehouseTarget:
    """A warehouse folder on a local disk.

    Args:
        root: the folder; made at the first clone.
        name: the target's name in the runtime.
        memory_limit: DuckDB's limit per connection.
        threads: threads per connection.
    """

    def __init__(self, root: Path | str, name: str = "warehouse", memory_limit: str = "1GB", threads: int = 2) -> None:
        self.root = Path(root)
        self.name = name
        self.memory_limit = memory_limit
        self.threads = threads
        self._layout = Layout(self.root)
        self._ledger: tuple[str | None, dict[AssetId, LedgerEntry]] = (None, {})

    # reading

    def current(self) -> Path | None:
        """Return the published file, or None before the first publish."""
        name = self._layout.current_name()
        return None if name is None else self.root / name / FILE

    def reader(self) -> duckdb.DuckDBPyConnection | None:
        """Open the published file read-only, or return None before the first publish."""
        for _ in range(10):
            path = self.current()
            if path is None:
                return None
            try:
                return engine.connect(path, read_only=True, memory_limit=self.memory_limit, threads=self.threads)
            except StepFailed:
                if path == self.current():  # else it was superseded twice and removed since we looked
                    raise
        raise StepFailed("the warehouse is published faster than it can be opened", where=str(self.root))

    def entries(self) -> dict[AssetId, LedgerEntry]:
        """Return every asset's last publish."""
        name = self._layout.current_name()
        if name is None or name != self._ledger[0]:  # a published file never changes
            connection = self.reader()
            if connection is None:
                return {}
            try:
                with translated(str(self.root), "reading the warehouse's ledger"):
                    self._ledger = (name, ledger.read(connection))
            finally:
                connection.close()
        return self._ledger[1]

    def ledger(self, asset: AssetId) -> LedgerEntry | None:
        """Return the asset's last publish, or None. Raises NewerFormat."""
        return self.entries().get(asset)

    def relation(self, asset: AssetId) -> Fragment:
        """Return the quoted name of an asset's table."""
        return qualified(ledger.CATALOG, schema_name(asset), asset.name)

    # staging

    def clone(self, run: str) -> Clone:
        """Return the run's clone: the one it has, or a new copy of the published file.

        Raises:
            SeqMoved: the run has staged into a clone whose base is not the published file any more.
            TargetBusy: another process works on this run.
            StepFailed: the disk is full, or the published file cannot be read.
        """
        with alone:
            return self._filled(self._found(run) or self._made(run))

    def _found(self, run: str) -> Clone | None:
        """Return the run's clone, if it has one that can still be published; drop it if it cannot."""
        for folder in self._layout.clones():
            note = self._layout.note(folder)
            if note is None or note["run"] != run:
                continue
            own(folder, run)
            if note["base"] == self._layout.current_name():
                return self._clone(folder, note)
            self._drop(folder)
            if note["members"]:
                raise SeqMoved(
                    f"someone else published the warehouse since run {short_run(run)} began",
                    where=str(self.root),
                    hint="run again: it starts from what is published now",
                )
        return None

    def _made(self, run: str) -> Clone:
        with self._layout.lock(), disk(self.root, "making a clone of the warehouse"):
            note = {
                "format": FORMAT,
                "run": run,
                "base": self._layout.current_name(),
                "time": datetime.now(UTC).isoformat(timespec="seconds"),
                "members": [],
            }
            folder = self._layout.take_number(note)
            own(folder, run)
        return self._clone(folder, note)

    def _clone(self, folder: Path, note: Mapping[str, Any]) -> Clone:
        return Clone(self._layout, folder, note["run"], note["base"], self.memory_limit, self.threads)

    def _filled(self, clone: Clone) -> Clone:
        """Copy the base's file into the clone, unless that is done."""
        if clone.path.exists():
            clone.recover()
        elif clone.base is None:
            connection = clone.connect()
            with translated(str(clone.path), "making the warehouse"):
                ledger.create(connection)
            connection.close()
        else:
            part = clone.path.with_name(FILE + ".part")
            try:
                with (self.root / clone.base / FILE).open("rb") as source, part.open("wb") as copy:
                    while chunk := source.read(COPY_BYTES):
                        copy.write(chunk)
                part.replace(clone.path)
            except FileNotFoundError:
                raise SeqMoved(
                    "the warehouse was published twice while it was cloned", where=str(self.root), hint="run again"
                ) from None
            except OSError:
                self._drop(clone.folder)
                with disk(clone.folder, "copying the warehouse"):
                    raise
        reach("warehouse.stage.cloned")
        return clone

    def load(
        self,
        clone: Clone,
        asset: AssetId,
        files: Sequence[str],
        schema: Schema,
        request: StageRequest,
        *,
        count: int | None = None,
        position: Position | None = None,
    ) -> Staged:
        """Make the asset's table from Parquet files, whole, with the digest of the files' rows as what is expected.

        Columns are the schema's, and the lake's own (`_millrace_…`) where the files have them. A load that this
        clone already has, of the same inputs, is kept.

        Args:
            clone: the run's clone.
            asset: its layer is the schema, its name the table.
            files: paths of all Parquet files of the asset's version; none: an empty table.
            schema: the asset's columns and key.
            request: of the step.
            count: rows that the files must hold, where the caller knows it from a ledger.
            position: by default the request's input versions.

        Raises:
            ProofFailed: the files do not hold `count` rows.
            StepFailed: a file is missing or torn, the disk is full.
        """
        for kept in clone.staged(request.load):
            if kept.asset == asset and kept.inputs == dict(request.inputs) and kept.code == request.code:
                return kept
        with alone:  # DuckDB loads one table with all its threads; two at once would conflict in the catalogue
            clone.recover()
            connection = clone.connect()
            try:
                with translated(str(clone.path), f"loading {asset}"):
                    expected = self._load(connection, asset, list(files), schema)
            finally:
                connection.close()
        if count is not None and count != expected.rows:
            raise ProofFailed(
                f"{asset} was not loaded: its files hold {expected.rows:,} rows, its ledger says {count:,}",
                hint="the files were changed by something else: publish the asset again",
            )
        staged = self._member(request, clone, schema, expected.rows, position, None)
        staged = changed(staged, expected={ALL: expected})
        clone.record([staged])
        reach("warehouse.stage.member")
        return staged

    def _load(self, connection: duckdb.DuckDBPyConnection, asset: AssetId, files: list[str], schema: Schema) -> Digest:
        source = fill("(select * from read_parquet(?, union_by_name = true, hive_partitioning = false))")
        have = types(connection, source, [files]) if files else []
        columns = load_columns(schema, have, str(asset))
        if files:
            query = fill("(select {columns} from {source})", columns=columns, source=source)
            bound: list[Any] = [files]
        else:
            query, bound = fill("(select {columns} where false)", columns=columns), []
        connection.execute("set preserve_insertion_order = false")  # else a wide table is held in memory
        expected = digest(connection, query, bound)
        with transaction(connection):
            made = qualified(ledger.CATALOG, schema_name(asset))
            connection.execute(fill("create schema if not exists {schema}", schema=made))
            self._drop_view(connection, asset)
            connection.execute(
                fill("create or replace table {table} as {query}", table=self.relation(asset), query=query), bound
            )
        return expected

    def _drop_view(self, connection: duckdb.DuckDBPyConnection, asset: AssetId) -> None:
        if _kind(connection, asset) == "VIEW":
            connection.execute(fill("drop view {view}", view=self.relation(asset)))

    def stage_member(
        self,
        request: StageRequest,
        clone: Clone,
        rows: int,
        digest: Digest | None,
        *,
        position: Position | None = None,
        detail: Mapping[str, Any] | None = None,
    ) -> Staged:
        """Record one thing that a step made in the clone by itself."""
        staged = self._member(request, clone, request.schema, rows, position, detail)
        staged = changed(staged, detail={**staged.detail, "digest": None if digest is None else digest.to_json()})
        clone.record([staged])
        reach("warehouse.stage.member")
        return staged

    def stage_results(
        self,
        clone: Clone,
        requests: Sequence[StageRequest],
        details: Mapping[AssetId, Mapping[str, Any]] | None = None,
    ) -> tuple[Staged, ...]:
        """Record all that one tool (dbt) made in the clone, at once: schema, rows and, for tables, a digest.

        Raises:
            StepFailed: an asset is not in the clone.
        """
        staged = []
        connection = clone.connect()
        try:
            for request in requests:
                with translated(str(clone.path), f"reading {request.asset}"):
                    schema, count, found = self._result(connection, request.asset)
                detail = dict((details or {}).get(request.asset, {}))
                detail["digest"] = None if found is None else found.to_json()
                staged.append(self._member(request, clone, schema.with_key(request.schema.key), count, None, detail))
        finally:
            connection.close()
        clone.record(staged)
        reach("warehouse.stage.member")
        return tuple(staged)

    def _result(self, connection: duckdb.DuckDBPyConnection, asset: AssetId) -> tuple[Schema, int, Digest | None]:
        kind = _kind(connection, asset)
        if kind is None:
            raise StepFailed(f"{asset} was not made in the warehouse", where=str(self.root))
        table = self.relation(asset)
        schema = schema_of(types(connection, table))
        if kind == "VIEW":  # it is computed whenever it is read: a digest would cost a query and prove nothing
            return schema, rows(connection, fill("select count(*) from {table}", table=table))[0][0], None
        found = digest(connection, table)
        return schema, found.rows, found

    def _member(
        self,
        request: StageRequest,
        clone: Clone,
        schema: Schema,
        count: int,
        position: Position | None,
        detail: Mapping[str, Any] | None,
    ) -> Staged:
        return Staged(
            asset=request.asset,
            load=request.load,
            run=request.run,
            step=request.step,
            target=self.name,
            base=request.base,
            how="member",
            place=clone.folder.name,
            schema=schema,
            position=position if position is not None else Versions(dict(request.inputs)),
            rows=count,
            inputs=dict(request.inputs),
            code=request.code,
            date=request.date,
            detail=dict(detail or {}),
        )

    def note_checks(self, clone: Clone, step: str, results: Sequence[CheckResult], *, anew: bool = False) -> None:
        """Record in the clone what a step's checks found in it, so that it is published with what was checked.

        Args:
            clone: the run's clone.
            step: whose results these are; those that it had before go.
            results: what was found.
            anew: those of all other steps go too: what they looked at was made again.
        """
        with alone, translated(str(clone.path), "recording the checks"):
            connection = clone.connect()
            try:
                ledger.write_checks(connection, step, results, anew=anew)
            finally:
                connection.close()

    def opened(self, staged: Staged) -> Clone:
        """Return the clone that something was staged in.

        Raises:
            SeqMoved: it is gone, or published.
            TargetBusy: another process works on it.
        """
        folder = self.root / staged.place
        note = self._layout.note(folder)
        if note is None or note["run"] != staged.run or staged.place in self._layout.published():
            raise gone(folder, staged.run)
        own(folder, staged.run)
        return self._clone(folder, note)

    # proving

    def prove(self, staged: Staged) -> Proof:
        """Digest the member's table in the clone, and compare it with what was expected.

        A member without an expected digest was made by a tool: its own digest is recorded under level `none`.

        Raises:
            ProofFailed: the table does not hold the rows of the files it was loaded from.
        """
        reach("warehouse.prove")
        clone = self.opened(staged)
        connection = clone.connect()
        try:
            with translated(str(clone.path), f"proving {staged.asset}"):
                _, count, found = self._result(connection, staged.asset)
        finally:
            connection.close()
        if not staged.expected:
            return Proof(staged.asset, staged.load, "none", found)
        wanted = Digest.sum(staged.expected.values(), next(iter(staged.expected.values())).shape)
        if found is not None and found.shape != wanted.shape:
            raise ProofFailed(
                f"{staged.asset} cannot be proven: it was staged by another version of DuckDB or with other types",
                hint="run again: it is staged anew",
            )
        if found != wanted:
            raise ProofFailed(
                f"{staged.asset}: the warehouse's table is not what its files hold",
                detail=[
                    f"files: {wanted.rows:,} rows, digest {wanted.total}",
                    f"table: {count:,} rows, digest {found}",
                ],
                hint="nothing was published",
            )
        return Proof(staged.asset, staged.load, "transfer", found)

    # publishing

    def publish(
        self, staged: Sequence[Staged], proofs: Sequence[Proof], expect: Mapping[AssetId, int]
    ) -> Sequence[LedgerEntry]:
        """Move the pointer to the clone that all of `staged` lies in, with the ledger rows of its members.

        Raises:
            SeqMoved: someone else published; the clone is worthless.
            ProofFailed: a member has no proof.
            TargetBusy: another publish holds the lock for long.
        """
        if not staged:
            return ()
        if (adopted := self._adopted(staged)) is not None:
            self._prune()
            return adopted
        proven = {(proof.asset, proof.load): proof for proof in proofs}
        for one in staged:
            if (one.asset, one.load) not in proven:
                raise ProofFailed(f"{one.asset} has no proof, so it is not published")
        places = {one.place for one in staged}
        if len(places) > 1:
            raise SeqMoved(
                f"run {staged[0].run} staged in more than one clone: {', '.join(sorted(places))}", hint="run again"
            )
        clone = self.opened(staged[0])
        self._compare(clone)
        entries = self._write_ledger(clone, staged, proven, expect)
        self._settle(clone)
        with self._layout.lock():
            self._compare(clone)
            if self._layout.note(clone.folder) is None:
                raise gone(clone.folder, clone.run)
            reach("warehouse.publish.before_commit")
            with disk(self.root, "publishing the warehouse"):
                self._layout.point(clone.folder)
        reach("warehouse.publish.after_commit")
        release(clone.folder)
        self._prune()
        return entries

    def _adopted(self, staged: Sequence[Staged]) -> list[LedgerEntry] | None:
        """Return the entries of a publish that already happened, or None."""
        connection = self.reader()
        if connection is None:
            return None
        try:
            with translated(str(self.root), "reading the warehouse's ledger"):
                found = ledger.history(connection, [one.load for one in staged])
        finally:
            connection.close()
        wanted = [(one.asset, one.load) for one in staged]
        return [found[key] for key in wanted] if all(key in found for key in wanted) else None

    def _compare(self, clone: Clone) -> None:
        current = self._layout.current_name()
        if current != clone.base:
            raise SeqMoved(
                f"someone else published the warehouse since run {short_run(clone.run)} began",
                where=str(self.root),
                detail=[
                    f"the run's clone comes from {clone.base or 'nothing'}, now {current or 'nothing'} is published"
                ],
                hint="run again: it starts from what is published now",
            )

    def _write_ledger(
        self,
        clone: Clone,
        staged: Sequence[Staged],
        proven: Mapping[tuple[AssetId, int], Proof],
        expect: Mapping[AssetId, int],
    ) -> list[LedgerEntry]:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        before = self.entries()
        entries = []
        for one in staged:
            seq = before[one.asset].seq if one.asset in before else 0
            if seq != expect.get(one.asset, one.base) or seq != one.base:
                raise SeqMoved(
                    f"{one.asset} was staged upon publish {one.base}, the warehouse is at {seq}",
                    where=str(self.root),
                    hint="run again",
                )
            proof = proven[one.asset, one.load]
            counts = Counts(inserted=one.rows) if seq == 0 else Counts()
            entries.append(
                entry_for(one, proof, time=now, level=proof.level, digest=None, rows=one.rows, counts=counts)
            )
        connection = clone.connect()
        try:
            with translated(str(clone.path), "writing the warehouse's ledger"):
                ledger.write(connection, entries)
                connection.execute("checkpoint")
        finally:
            connection.close()
        return entries

    def _settle(self, clone: Clone) -> None:
        """Bring the clone to the disk: one file, no write-ahead log, nothing a tool left beside it."""
        with disk(clone.folder, "bringing the warehouse to the disk"):
            if clone.path.with_name(FILE + ".wal").exists():
                raise MillraceError("the clone still has a write-ahead log", where=str(clone.path))
            for left in clone.folder.iterdir():
                if left.name not in (FILE, NOTE, ".owner"):
                    remove(left) if left.is_dir() else left.unlink()
            clone.path.chmod(0o444)  # a tool that opens it for writing would lock readers out
            sync(clone.path)
            sync(clone.folder / NOTE)
            sync(clone.folder)
            sync(self.root)

    def _prune(self) -> list[str]:
        """Remove published folders but the last ones; readers that have them open keep them."""
        with self._layout.lock():
            old = self._layout.published()[KEPT:]
            aside = [self._layout.set_aside(self.root / name) for name in old]
        for folder in aside:
            remove(folder)
        return old

    # clearing up

    def _drop(self, folder: Path) -> None:
        release(folder)
        with self._layout.lock():
            if folder.name in self._layout.published() or not folder.exists():
                return
            aside = self._layout.set_aside(folder)
        remove(aside)

    def discard(self, staged: Staged) -> None:
        """Drop the clone that something was staged in, with all the others in it; no error when it is gone."""
        folder = self.root / staged.place
        note = self._layout.note(folder)
        if note is not None and note["run"] == staged.run:
            self._drop(folder)

    def drop_run(self, run: str) -> None:
        """Drop the run's clone, whether or not anything was staged in it."""
        for folder in self._layout.clones():
            note = self._layout.note(folder)
            if note is not None and note["run"] == run:
                self._drop(folder)

    def stages(self) -> Iterable[Staged]:
        """Return what is staged in the clones."""
        for folder in self._layout.clones():
            note = self._layout.note(folder)
            for data in note["members"] if note else ():
                yield Staged.from_json(data)

    def gc(self, live: Callable[[str], bool]) -> Sequence[str]:
        """Drop clones of runs that are not live, published files beyond the last ones, and half-removed folders."""
        if not self.root.exists():
            return ()
        dropped: list[str] = []
        with self._layout.lock():
            for folder in self._layout.clones():
                note = self._layout.note(folder)
                if note is None or not live(note["run"]):
                    release(folder)
                    self._layout.set_aside(folder)
                    dropped.append(folder.name)
            for left in self.root.glob("*.tmp"):
                left.unlink(missing_ok=True)
            (self.root / ".next.tmp").unlink(missing_ok=True)
        dropped += self._prune()
        for folder in self._layout.aside():
            remove(folder)
        return tuple(dropped)


def schema_name(asset: AssetId) -> str:
    """Return the schema that an asset's table lies in.

    A lake asset that is loaded keeps its layer's name as its schema, but is another asset than the lake's: plans and
    ledgers call it `warehouse/silver.orders`.
    """
    return asset.layer.rpartition("/")[2]


def _kind(connection: duckdb.DuckDBPyConnection, asset: AssetId) -> str | None:
    """Return `BASE TABLE` or `VIEW`, or None when there is no such relation."""
    found = rows(
        connection,
        "select table_type from information_schema.tables"
        " where table_catalog = ? and table_schema = ? and table_name = ?",
        [ledger.CATALOG, schema_name(asset), asset.name],
    )
    return found[0][0] if found else None
