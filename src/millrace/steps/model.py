"""The step kind `model`: SQL over lake assets becomes a lake asset.

Kind `full` runs the whole SELECT and replaces the asset. Kind `upsert` declares that each output key depends only on
input rows with that same key: then only the keys that the inputs' change files name are computed again, and the
asset's files are rewritten where these keys lie. Where the changes are not known (a first run, other code, a full
refresh, an input that was replaced or that lacks the key), the whole SELECT runs.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from millrace.core.digest import Digest
from millrace.core.names import AssetId
from millrace.core.plan import Freshness, Step
from millrace.core.ports import Context, StageRequest
from millrace.core.position import Versions
from millrace.core.schema import Schema
from millrace.core.segment import Segment
from millrace.core.staged import LedgerEntry, Proof, Staged
from millrace.duck import engine
from millrace.duck import inputs as views
from millrace.duck.engine import Fragment
from millrace.errors import NotFound
from millrace.lake.table import arrow_schema, conform, file_batches
from millrace.lake.target import LakeTarget
from millrace.steps.checking import check_lake_stage
from millrace.steps.resources import Resources
from millrace.steps.sieve import Sieve, sieve_of
from millrace.steps.versions import judge, pinned
from millrace.transform.sql_model import KeyFilter, SqlModel, parse_model, restrict
from millrace.transform.sql_run import ModelResult, run_model

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

KEYS = "millrace_changed_keys"


@dataclass(frozen=True)
class _Work:
    """What the parts of one staging share."""

    step: Step
    ctx: Context
    lake: LakeTarget
    model: SqlModel
    connection: duckdb.DuckDBPyConnection
    inputs: dict[str, int]
    entry: LedgerEntry | None

    @property
    def asset(self) -> AssetId:
        return self.step.assets[0]

    @property
    def key(self) -> tuple[str, ...]:
        return tuple(self.step.spec["key"])

    @property
    def partitions(self) -> tuple[str, ...]:
        return tuple(self.step.spec.get("partitions", ()))

    def run(self, sql: str | None = None) -> ModelResult:
        return run_model(
            self.connection,
            self.model,
            parameters(self.ctx.logical_time),
            sql=sql,
            key=self.key,
            partitions=self.partitions,
            partitions_at=self.step.spec.get("partitions_at"),
        )

    @property
    def sieve(self) -> Sieve | None:
        return sieve_of(self.step, self.asset, self.key, self.ctx, self.entry)

    def request(self, schema: Schema, how: str) -> StageRequest:
        return StageRequest(
            asset=self.asset,
            load=self.ctx.load,
            run=self.ctx.run,
            step=self.step.key,
            base=self.entry.seq if self.entry else 0,
            how=how,
            schema=schema,
            inputs=self.inputs,
            code=self.step.code,
            date=self.ctx.logical_time[:10] if self.step.dated else None,
            partitions=self.partitions,
        )


class ModelStep:
    """Runs SQL models in the embedded engine."""

    kind: ClassVar[str] = "model"

    def __init__(self, resources: Resources) -> None:
        self._resources = resources

    def fresh(self, step: Step, ctx: Context) -> Freshness:
        """Fresh while code, input versions and, where it is used, the logical date are those of the ledger."""
        publishes = "changed keys" if step.spec["kind"] == "upsert" else "replaced in one commit"
        proves = "transfer, checks" if step.spec["checks"] else "transfer"
        found, lake = judge(step, ctx, publishes=publishes, proves=proves), _lake(step, ctx)
        wanted, asset = tuple(step.spec.get("partitions", ())), step.assets[0]
        if found.fresh or lake.ledger(asset) is None or lake.partitions(asset) == wanted:
            return found
        layout = f"split by {', '.join(wanted)}" if wanted else "not split any more"
        return replace(found, publishes=f"replaced in one commit, {layout}")

    def stage(self, step: Step, ctx: Context) -> tuple[Staged, ...]:
        """Run the SELECT over the pinned versions and write Parquet files that no log names yet."""
        lake = _lake(step, ctx)
        path = str(step.spec["path"])
        model = parse_model(path, (self._resources.folder / path).read_text("utf-8"))
        inputs = pinned(step, ctx)
        for asset in step.inputs:
            if str(asset) not in inputs:
                raise NotFound(f"{step.label} reads {asset}, which was never published", where=path)
        connection = engine.connect(
            memory_limit=self._resources.memory_limit,
            threads=self._resources.threads,
            scratch=ctx.scratch() / "spill",
        )
        try:
            for asset in step.inputs:
                seq = inputs[str(asset)]
                views.attach(connection, asset, lake.files(asset, seq), lake.schema(asset, seq))
            work = _Work(step, ctx, lake, model, connection, inputs, lake.ledger(step.assets[0]))
            filters = _changed_keys(work)
            return (_stage_whole(work) if filters is None else _stage_changes(work, filters),)
        finally:
            connection.close()

    def prove(self, step: Step, staged: Sequence[Staged], ctx: Context) -> tuple[Proof, ...]:
        """Read the files back, compare digests, then the key and the checks on what the asset would be."""
        lake = _lake(step, ctx)
        (one,) = staged
        proof = lake.prove(one)
        if not (step.spec["checks"] or one.schema.key):
            return (proof,)
        checks = check_lake_stage(self._resources, lake, one, step, ctx)
        return (replace(proof, checks=checks),)


def _lake(step: Step, ctx: Context) -> LakeTarget:
    target = ctx.target(step.target)
    assert isinstance(target, LakeTarget)  # noqa: S101 - the planner names it
    return target


def _stage_whole(work: _Work) -> Staged:
    """Run the whole SELECT. Of an upsert model only what differs is staged; rows that it gives no more are deleted."""
    upsert = work.step.spec["kind"] == "upsert" and work.entry is not None
    old = work.lake.files(work.asset, work.entry.seq) if upsert and work.entry else []
    # before the result is opened: DuckDB refuses a statement beside an open result
    keys = views.keys(work.connection, KEYS, old, work.key) if old else None
    result = work.run()
    if upsert and _same_table(work, result.schema):
        return _upsert(work, result, keys, whole=True)
    stage = work.lake.open_stage(work.request(result.schema, "replace" if work.entry else "create"))
    stage.drop(stage.done())  # a model's rows are not read from a source that could be compared with what is left
    counted = Counting(result, work.ctx)
    sieve = work.sieve
    if sieve is not None and work.partitions:  # sifted before it is split: many small files are not written twice
        file = _to_scratch(work, result.schema, counted)
        bad, reopened = sieve.changes(work.connection, [file], result.schema, stage.quarantined())
        stage.set_aside(bad, reopened=reopened)
        stage.write_batches(Segment.whole(), file_batches([str(file)], result.schema))
    else:
        stage.write(Segment.whole(), counted.reader())
        if sieve is not None:
            sieve.stage(work.connection, stage)
    return stage.close(Versions(work.inputs), {Segment.whole().id: counted.digest})


def _to_scratch(work: _Work, schema: Schema, counted: Counting) -> Path:
    """Write a model's rows to a file of the step's own."""
    import pyarrow.parquet as pq

    path, lies = work.ctx.scratch() / "rows.parquet", arrow_schema(schema)
    with pq.ParquetWriter(path, lies) as writer:
        for batch in counted.reader():
            writer.write_batch(conform(batch, lies, 0, 0, str(work.asset)))
    return path


def _same_table(work: _Work, schema: Schema) -> bool:
    """Whether the result fits into the table that is there; else the table is replaced by it in one commit."""
    same = work.lake.schema(work.asset).to_json() == schema.to_json()
    return same and work.lake.partitions(work.asset) == work.partitions


def _changed_keys(work: _Work) -> dict[AssetId, KeyFilter] | None:
    """Return for each input with the key a filter on the keys that changed; None when the whole SELECT must run."""
    step, entry = work.step, work.entry
    if step.spec["kind"] != "upsert" or entry is None or entry.code != step.code or step.spec.get("full_refresh"):
        return None
    if step.dated and entry.date != work.ctx.logical_time[:10]:
        return None
    keyed, files = [], []
    for asset in step.inputs:
        has_key = set(work.key) <= set(work.lake.schema(asset).names)
        if has_key:
            keyed.append(asset)
        since = entry.inputs.get(str(asset))
        if since == work.inputs[str(asset)]:
            continue
        changes = work.lake.changes(asset, since) if has_key and since is not None else None
        if changes is None:
            return None
        files += [file for change in changes for file in (*change.before, *change.after)]
    if not files:
        return None
    table = views.keys(work.connection, KEYS, files, work.key)
    return {asset: KeyFilter(table, work.key) for asset in keyed}


def _stage_changes(work: _Work, filters: dict[AssetId, KeyFilter]) -> Staged:
    """Compute the changed keys' rows; a changed key that gives no row is deleted."""
    result = work.run(restrict(work.model, filters))
    if not _same_table(work, result.schema):
        return _stage_whole(work)
    return _upsert(work, result, Fragment(next(iter(filters.values())).relation))


def _upsert(work: _Work, result: ModelResult, keys: Fragment | None, *, whole: bool = False) -> Staged:
    """Stage an upsert of the result; the rows of `keys` that the result lacks are deleted.

    Args:
        work: the staging.
        result: rows to insert or update.
        keys: name of a relation of keys that are settled by the result, or None.
        whole: the result is of all keys there are.
    """
    counted = Counting(result, work.ctx)
    changes, deletes = _to_scratch(work, result.schema, counted), work.ctx.scratch() / "deletes.parquet"
    bad: pa.Table | None = None
    reopened: list[str] = []
    if (sieve := work.sieve) is not None:
        older = work.lake.quarantine(work.asset)
        bad, reopened = sieve.changes(work.connection, [changes], result.schema, older)
    gone: list[Path] = []
    if keys is not None:
        _write_deletes(work, keys, changes, deletes)
        gone = [deletes]
    return work.lake.upsert(
        work.request(result.schema, "upsert"),
        [changes],
        result.schema,
        work.connection,
        position=Versions(work.inputs),
        expected={Segment.whole().id: counted.digest},
        deletes=gone,
        bad=bad,
        whole=whole,
        reopened=reopened,
    )


def _write_deletes(work: _Work, keys: Fragment, changes: Path, deletes: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    using = engine.listed(engine.identifier(name) for name in work.key)
    query = engine.fill("select {using} from {keys} anti join read_parquet(?) using ({using})", using=using, keys=keys)
    reader = work.connection.sql(query, params=[str(changes)]).to_arrow_reader(65_536)
    schema = work.lake.schema(work.asset)
    wanted = pa.schema([pa.field(name, _arrow_type(schema, name)) for name in work.key])
    with pq.ParquetWriter(deletes, wanted) as writer:
        for batch in reader:
            found = pa.Table.from_batches([batch]).select(list(work.key))
            writer.write_table(found.drop_null().cast(wanted))  # rows without a key are in quarantine, if anywhere


def _arrow_type(schema: Schema, name: str) -> pa.DataType:
    return arrow_schema(schema).field(name).type


def parameters(logical_time: str) -> dict[str, Any]:
    """Return the values of `$now` and `$today` for a run's logical time."""
    now = dt.datetime.fromisoformat(logical_time)
    now = now.replace(tzinfo=dt.UTC) if now.tzinfo is None else now.astimezone(dt.UTC)
    return {"now": now, "today": now.date()}


class Counting:
    """A model's rows on their way to the files: digested as they pass, so that the files can be compared with them."""

    def __init__(self, result: ModelResult, ctx: Context) -> None:
        self._result = result
        self._ctx = ctx
        self.digest = Digest(0, 0, result.schema.shape)

    def reader(self) -> pa.RecordBatchReader:
        """Return the rows, to be read once."""
        import pyarrow as pa

        return pa.RecordBatchReader.from_batches(self._result.reader.schema, self._batches())

    def _batches(self) -> Iterator[pa.RecordBatch]:
        from millrace.lake.rowhash import digest_batches

        for batch in self._result.reader:
            self.digest += digest_batches([batch], self._result.schema)
            self._ctx.report.moved(batch.num_rows, batch.nbytes)
            yield batch
