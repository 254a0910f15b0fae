"""Upserts: copy-on-write over the files that a real change touches, with the changes' before- and after-images kept.

The lake has no SQL engine of its own: the caller passes one that speaks DuckDB's SQL. What a change does not really
change is found by comparing every column, so a wide update in the source that alters nothing rewrites nothing here.

What is read is the newest version of the table; the publish refuses when one of the rewritten files has gone since.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from millrace.core.digest import Digest
from millrace.core.position import Position
from millrace.core.schema import Column, Kind, Schema
from millrace.core.segment import Segment, SegmentId
from millrace.core.staged import Counts, Staged
from millrace.errors import ContractBroken, KeyInvalid, MillraceError, SeqMoved
from millrace.lake.layout import Folder, disk_error, sync_file, sync_folder
from millrace.lake.log import Snapshot
from millrace.lake.prove import digest, hashable
from millrace.lake.quarantine import ENTRY
from millrace.lake.sql import Fragment, SqlEngine, fill, listed, quoted
from millrace.lake.stage import LakeStage
from millrace.lake.table import OWN, conform, grouped, writer

if TYPE_CHECKING:
    import pyarrow as pa

FILE = "_millrace_file"
CHANGE = "_millrace_change"
DIFFERS = "_millrace_differs"
BATCH_ROWS = 65_536

# In every statement `t` is the table, `c` the changes, `d` the keys to delete, `b` and `a` the images before and after.
_PARTS = {
    "files": Fragment("read_parquet(?, union_by_name = true, hive_partitioning = false)"),
    "table": Fragment("read_parquet(?, union_by_name = true, hive_partitioning = false, filename = '_millrace_file')"),
    "updates": Fragment("(select * from read_parquet(?) where _millrace_change = 'update')"),
}
NULLS = "select count(*) from {files} where {nulls}"
TWICE = "select {shown}, count(*) from {files} group by {keys} having count(*) > 1 limit 3"
BOTH = "select {shown} from {files} c semi join {files} d using ({keys}) limit 3"
MATCHED = "select {columns}, ({differs}) as _millrace_differs from {table} t join {files} c using ({keys})"
GONE = "select {columns} from {table} t semi join {files} d using ({keys})"
UPDATED = "select {columns} from {files} c semi join {updates} b using ({keys})"
INSERTED = "select {columns} from {files} c anti join {files} t using ({keys})"
ALL_INSERTED = "select {columns} from {files} c"
STAYING = "select {columns} from {files} t anti join {files} b using ({keys})"
COMING = "select {columns} from {files} a semi join (select * from {updates} where _millrace_file = ?) b using ({keys})"
NEW = "select {columns} from {files} a where _millrace_change = 'insert'"
# of a table with partitions: an updated row may belong into another one now; it comes with the inserted ones
COMING_HERE = "select {columns} from {files} a semi join (select * from {updates} where _millrace_file = ?) b on {here}"
NEW_OR_MOVED = "select {columns} from {files} a anti join {updates} b on {here} order by {order}"

SETTLED = "select {entry} from {files} q semi join (select {keys} from {files}) using ({keys})"
MISSING = "select count(*) from {files} c anti join {files} t using ({keys}){aside}"
CHANGED = "select count(*) from {files} t join {files} c using ({keys}){aside} where {differs}"
ASIDE = " anti join {files} q using ({keys})"
ONLY_BAD = "select {keys} from {files} b anti join (select {keys} from {files}) using ({keys})"


def _fill(template: str, **parts: Fragment) -> Fragment:
    return fill(template, **_PARTS, **parts)


class Upsert:
    """One upsert into a table that exists.

    Args:
        stage: an open stage with `how` upsert; its segments of an earlier attempt are dropped.
        snapshot: the newest version.
        changes: Parquet files with the asset's columns, one row a key.
        deletes: Parquet files with the key columns of rows to delete.
        sql: the engine.
    """

    def __init__(
        self,
        folder: Folder,
        stage: LakeStage,
        snapshot: Snapshot,
        changes: Sequence[str],
        deletes: Sequence[str],
        sql: SqlEngine,
    ) -> None:
        self._folder = folder
        self._stage = stage
        self._sizes = snapshot.sizes()
        self._table = {str(folder.path / name): name for name in snapshot.files()}
        self._changes = list(changes)
        self._deletes = list(deletes)
        self._sql = sql
        self._schema: Schema = stage.request.schema
        self._keys = listed(quoted(name) for name in self._schema.key)
        self._partitions = stage.request.partitions
        self._here = listed(
            [
                *(fill("{a} = {b}", a=quoted(name, "a"), b=quoted(name, "b")) for name in self._schema.key),
                *(
                    fill("{a} is not distinct from {b}", a=quoted(name, "a"), b=quoted(name, "b"))
                    for name in self._partitions
                ),
            ],
            " and ",
        )
        self._asset = str(stage.request.asset)
        self._touched: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self._unchanged = Digest(0, 0, self._schema.shape)

    def run(self, position: Position, expected: Mapping[SegmentId, Digest], detail: Mapping[str, Any]) -> Staged:
        """Stage the rewritten files, the inserts and the images.

        Raises:
            KeyInvalid: a null in a key, or the same key twice.
            ContractBroken: the changes' columns do not fit.
            StepFailed: the engine fails, or the disk is full.
        """
        with self._engine():
            self._check_keys()
            changed = digest([Path(path) for path in self._changes], self._schema) if hashable(self._schema) else None
            before = self._write_image("before", self._before())
            after = self._write_image("after", self._after(before))
            self._stage.add_images({side: path.name for side, path in (("before", before), ("after", after))})
            for name in sorted(self._touched):
                self._rewrite(name, before, after)
            self._insert(before, after)
            counts = Counts(self._counts["insert"], self._counts["update"], self._counts["delete"])
            facts = {
                "counts": counts.to_json(),
                **detail,  # which may count other things than rows: of versions those that the source has changed
                "images": {"before": _record(before), "after": _record(after)},
                "removed": [self._removed(name) for name in sorted(self._touched)],
                "changes": None if changed is None else changed.to_json(),
                "unchanged": None if changed is None else self._unchanged.to_json(),
            }
            return self._stage.close(position, expected, detail=facts, rows=sum(self._counts.values()))

    @contextmanager
    def _engine(self) -> Iterator[None]:
        """Turn the engine's errors, whichever it is, into ours."""
        try:
            yield
        except (MillraceError, KeyboardInterrupt):
            raise
        except Exception as error:
            raise disk_error(error, self._folder.path, f"upserting {self._asset}") from error

    def _query(self, template: str, *params: Any, **parts: Fragment) -> Iterable[pa.RecordBatch]:
        statement = _fill(template, keys=self._keys, **parts)
        return self._sql.sql(statement, params=list(params)).to_arrow_reader(BATCH_ROWS)

    def _columns(self, alias: str, *more: str) -> Fragment:
        return listed(quoted(name, alias) for name in (*self._schema.names, *more))

    # what changes

    def _check_keys(self) -> None:
        """Raise KeyInvalid for keys that do not name one row each."""
        for files in (self._changes, self._deletes):
            check_keys(self._sql, files, self._schema.key, self._asset)
        if not (self._changes and self._deletes):
            return
        shown = listed(_shown(name, "c") for name in self._schema.key)
        statement = _fill(BOTH, shown=shown, keys=self._keys)
        if found := self._sql.sql(statement, params=[self._changes, self._deletes]).fetchall():
            raise KeyInvalid(
                f"{self._asset}: the same key is to be changed and deleted",
                detail=[_named(self._schema.key, row) for row in found],
            )

    def _before(self) -> Iterator[pa.RecordBatch]:
        """Yield the rows that go, as they are: updated ones, then deleted ones."""
        if not self._table:
            return
        files = list(self._table)
        columns = self._columns("t", *OWN, FILE)
        if self._changes:
            for batch in self._query(MATCHED, files, self._changes, columns=columns, differs=differ(self._schema)):
                yield self._labelled(self._really(batch), "update")
        if self._deletes:
            for batch in self._query(GONE, files, self._deletes, columns=columns):
                yield self._labelled(batch, "delete")

    def _really(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return the rows that really change; digest the others."""
        import pyarrow.compute as pc

        differs = batch.column(DIFFERS)
        batch = batch.drop_columns([DIFFERS])
        if hashable(self._schema):
            from millrace.lake.rowhash import digest_table

            self._unchanged += digest_table(self._fitted(batch.filter(pc.invert(differs))), self._schema)
        return batch.filter(differs)

    def _fitted(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return a batch in the files' own types, which an engine may have changed on the way."""
        return self._stage.conform(batch.drop_columns([FILE]))

    def _labelled(self, batch: pa.RecordBatch, change: str) -> pa.RecordBatch:
        """Name the file by its name in the log, and say what becomes of the rows."""
        import pyarrow as pa

        names = batch.column(FILE).dictionary_encode()
        known = pa.array([self._table[path] for path in names.dictionary.to_pylist()], pa.string())
        files = pa.DictionaryArray.from_arrays(names.indices, known).cast(pa.string())
        self._touched.update(dict.fromkeys(known.to_pylist(), 0) if batch.num_rows else {})
        self._counts[change] += batch.num_rows
        at = batch.schema.get_field_index(FILE)
        return batch.set_column(at, FILE, files).append_column(CHANGE, pa.repeat(change, batch.num_rows))

    def _after(self, before: Path) -> Iterator[pa.RecordBatch]:
        """Yield the rows that come: updated ones, then inserted ones."""
        import pyarrow as pa

        if not self._changes:
            return
        columns = self._columns("c")
        updates = self._query(UPDATED, self._changes, [str(before)], columns=columns)
        yield from (batch.append_column(CHANGE, pa.repeat("update", batch.num_rows)) for batch in updates)
        there = [list(self._table)] if self._table else []
        inserts = self._query(INSERTED if there else ALL_INSERTED, self._changes, *there, columns=columns)
        for batch in inserts:
            self._counts["insert"] += batch.num_rows
            yield batch.append_column(CHANGE, pa.repeat("insert", batch.num_rows))

    def _write_image(self, side: str, batches: Iterator[pa.RecordBatch]) -> Path:
        """Write images durably; returns the file."""
        import pyarrow as pa

        stage = self._stage
        self._folder.changes.mkdir(parents=True, exist_ok=True)
        path = self._folder.changes / f"{stage.seq}-{stage.request.load}.{side}.parquet"
        schema = stage.schema.append(pa.field(CHANGE, pa.string()))
        if side == "before":
            schema = schema.append(pa.field(FILE, pa.string()))
        fitted = (conform(batch, schema, stage.seq, stage.loaded_at, self._asset) for batch in batches)
        with writer(path, schema) as output:
            for table in grouped(fitted):
                output.write_table(table, row_group_size=table.num_rows)
        sync_file(path)
        sync_folder(path.parent)
        return path

    # the new files

    def _rewrite(self, name: str, before: Path, after: Path) -> None:
        """Write what a touched file holds now: the rows that stay with their load, then the updated ones."""
        columns = self._columns("t", *OWN)
        staying = [str(self._folder.path / name)]

        def rows() -> Iterator[pa.RecordBatch]:
            yield from self._query(STAYING, staying, [str(before)], columns=columns)
            coming = self._columns("a", *OWN)
            template = COMING_HERE if self._partitions else COMING
            yield from self._query(template, [str(after)], [str(before)], name, columns=coming, here=self._here)

        self._stage.write_batches(Segment(f"rewrite:{name}", "file", name), rows())

    def _insert(self, before: Path, after: Path) -> None:
        columns = self._columns("a", *OWN)
        if self._partitions:
            order = listed(quoted(name, "a") for name in self._partitions)
            files = [str(after)], [str(before)]
            rows = self._query(NEW_OR_MOVED, *files, columns=columns, here=self._here, order=order)
        elif self._counts["insert"]:
            rows = self._query(NEW, [str(after)], columns=columns)
        else:
            return
        self._stage.write_batches(Segment("insert", "changes"), rows)

    def _removed(self, name: str) -> dict[str, Any]:
        import pyarrow.parquet as pq

        return {
            "name": name,
            "rows": pq.read_metadata(self._folder.path / name).num_rows,
            "size": self._sizes[name],
        }


def _differs(column: Column) -> Fragment:
    """Return the comparison of a column's values in table and changes, exact: floats tell −0 from 0."""
    old, new = quoted(column.name, "t"), quoted(column.name, "c")
    if column.kind in (Kind.FLOAT32, Kind.FLOAT64):
        return fill("cast({old} as varchar) is distinct from cast({new} as varchar)", old=old, new=new)
    return fill("{old} is distinct from {new}", old=old, new=new)


def differ(schema: Schema) -> Fragment:
    """Return the comparison of rows of one key in table and changes."""
    floats = (Kind.FLOAT32, Kind.FLOAT64)  # of which equal keys may differ: 0 and -0
    rest = [column for column in schema.columns if column.name not in schema.key or column.kind in floats]
    return listed(map(_differs, rest), " or ") if rest else Fragment("false")


def compared(
    sql: SqlEngine, files: Sequence[str], changes: Sequence[str], aside: Sequence[str], schema: Schema
) -> tuple[int, int]:
    """Return how many rows of `changes` the files lack or hold otherwise; keys of `aside` do not count."""
    keys = listed(map(quoted, schema.key))
    left = _fill(ASIDE, keys=keys) if aside else Fragment("")
    more = [list(aside)] if aside else []
    missing = sql.sql(_fill(MISSING, keys=keys, aside=left), params=[list(changes), list(files), *more])
    statement = _fill(CHANGED, keys=keys, aside=left, differs=differ(schema))
    changed = sql.sql(statement, params=[list(files), list(changes), *more])
    return missing.fetchall()[0][0], changed.fetchall()[0][0]


def _shown(name: str, alias: str = "") -> Fragment:
    return fill("cast({name} as varchar)", name=quoted(name, alias))


def _named(key: Sequence[str], row: Sequence[Any]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in zip(key, row, strict=False))


def check_keys(sql: SqlEngine, files: Sequence[str], key: Sequence[str], asset: str) -> None:
    """Check that each row of some files has a key of its own.

    Raises:
        KeyInvalid: there is no key, a null in one, or the same key twice; shows some.
    """
    if not key:
        raise KeyInvalid(f"{asset} has no key, so nothing can be upserted into it", hint="name one: key: order_id")
    if not files:
        return
    nulls = listed((fill("{name} is null", name=quoted(name)) for name in key), " or ")
    count = sql.sql(_fill(NULLS, nulls=nulls), params=[list(files)]).fetchall()[0][0]
    if count:
        raise KeyInvalid(f"{asset}: {count:,} rows have a null in the key ({', '.join(key)})")
    shown, keys = listed(map(_shown, key)), listed(map(quoted, key))
    found = sql.sql(_fill(TWICE, shown=shown, keys=keys), params=[list(files)]).fetchall()
    if found:
        raise KeyInvalid(
            f"{asset}: the same key stands in more than one changed row",
            detail=[f"{_named(key, row)} ({row[-1]} rows)" for row in found],
            hint="keep the newest row of each key",
        )


def settled(sql: SqlEngine, state: Path, files: Sequence[str], key: Sequence[str]) -> list[str]:
    """Return the ids of the entries in a quarantine's file whose keys stand in some files."""
    keys = listed(map(quoted, key))
    found = sql.sql(_fill(SETTLED, entry=quoted(ENTRY), keys=keys), params=[str(state), list(files)]).fetchall()
    return [row[0] for row in found]


def write_aside(
    sql: SqlEngine, folder: Path, bad: pa.Table, fixed: pa.Table, files: Sequence[str], schema: Schema
) -> tuple[list[str], list[str]]:
    """Write what rows that are set aside mean for the asset: fixed rows come, the older rows of their keys go.

    Args:
        sql: the engine.
        folder: where the files are written.
        bad: the rows set aside.
        fixed: rows of replayed entries.
        files: changes and deletes of the same upsert; what they say about a key holds.
        schema: of the asset.

    Returns:
        files of changes, and files of keys to delete.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    key = list(schema.key)
    changes, deletes = folder / "fixed.parquet", folder / "bad.parquet"
    pq.write_table(fixed, changes)
    keys = bad.select(key).drop_null().group_by(key).aggregate([]).select(key)
    pq.write_table(keys, deletes)
    said = [*files, str(changes)]
    query = _fill(ONLY_BAD, keys=listed(map(quoted, key)))
    rest = list(sql.sql(query, params=[str(deletes), said]).to_arrow_reader(BATCH_ROWS))
    gone = pa.Table.from_batches(rest).cast(keys.schema) if rest else keys.schema.empty_table()
    pq.write_table(gone, deletes)
    return [str(changes)] * bool(fixed.num_rows), [str(deletes)] * bool(gone.num_rows)


def fitting(files: Sequence[str], schema: pa.Schema, names: Sequence[str], asset: str) -> list[str]:
    """Return the paths of change files whose columns lie as the table's do.

    Raises:
        ContractBroken: a column is missing, or has another type.
    """
    import pyarrow.parquet as pq

    for path in files:
        found = pq.read_schema(path)
        for name in names:
            wanted = schema.field(name).type
            at = found.get_field_index(name)
            if at < 0 or found.field(at).type != wanted:
                have = "is missing" if at < 0 else f"is {found.field(at).type}, not {wanted}"
                raise ContractBroken(f"{asset}: the column {name} of the changes {have}", where=str(path))
    return [str(path) for path in files]


def _record(path: Path) -> dict[str, Any]:
    import pyarrow.parquet as pq

    return {"name": path.name, "rows": pq.read_metadata(path).num_rows, "size": path.stat().st_size}


def check_base(seq: int, base: int, asset: str) -> None:
    """Raise SeqMoved when an upsert would be staged upon a version that is not the newest."""
    if seq != base:
        raise SeqMoved(f"{asset} was published by another run: it is at load {seq}, not {base}", hint="run again")
