"""The step kind `model`: SQL over lake assets becomes a lake asset.

Kind `full` runs the whole SELECT and replaces the asset. Kind `upsert` declares that each output key depends only on
input rows with that same key: then only the keys that the inputs' change files name are computed again, and the
asset's files are rewritten where these keys lie. Where the changes are not known (a first run, other code, a full
refresh, an input that was replaced or that lacks the key), the whole SELECT runs.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
from millrace.duck.relations import show_files
from millrace.errors import KeyInvalid, NotFound
from millrace.lake.target import LakeTarget
from millrace.steps.resources import Resources
from millrace.steps.versions import judge, pinned
from millrace.steps.warehouse import enforce_checks, querying
from millrace.transform.sql_model import SqlModel, parse_model
from millrace.transform.sql_run import ModelResult, run_model

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa


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
        )


class ModelStep:
    """Runs SQL models in the embedded engine."""

    kind: ClassVar[str] = "model"

    def __init__(self, resources: Resources) -> None:
        self._resources = resources

    def fresh(self, step: Step, ctx: Context) -> Freshness:
        """Fresh while code, input versions and, where it is used, the logical date are those of the ledger."""
        publishes = "changed keys" if step.spec["kind"] == "upsert" else "replaced in one commit"
        return judge(step, ctx, publishes=publishes, proves="transfer, checks" if step.spec["checks"] else "transfer")

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
                show_files(connection, asset, lake.files(asset, seq), lake.schema(asset, seq))
            work = _Work(step, ctx, lake, model, connection, inputs, lake.ledger(step.assets[0]))
            return (self._stage_whole(work),)
        finally:
            connection.close()

    def _stage_whole(self, work: _Work) -> Staged:
        result = run_model(work.connection, work.model, parameters(work.ctx.logical_time), key=work.key)
        stage = work.lake.open_stage(work.request(result.schema, "replace" if work.entry else "create"))
        stage.drop(stage.done())  # a model's rows are not read from a source that could be compared with what is left
        counted = Counting(result, work.ctx)
        stage.write(Segment.whole(), counted.reader())
        return stage.close(Versions(work.inputs), {Segment.whole().id: counted.digest})

    def prove(self, step: Step, staged: Sequence[Staged], ctx: Context) -> tuple[Proof, ...]:
        """Read the files back, compare digests, then the key and the checks on what the asset would be."""
        lake = _lake(step, ctx)
        (one,) = staged
        proof = lake.prove(one)
        checks: tuple[Any, ...] = ()
        if step.spec["checks"] or one.schema.key:
            connection = engine.connect(memory_limit=self._resources.memory_limit, threads=self._resources.threads)
            try:
                show_files(connection, one.asset, lake.staged_files(one), one.schema)
                self._check_key(connection, one, step)
                entry = lake.ledger(one.asset)
                checks = enforce_checks(
                    step.spec["checks"],
                    one.asset,
                    querying(connection, step.label),
                    (one.asset.layer, one.asset.name),
                    ctx,
                    key=one.schema.key,
                    last_good=entry.time if entry else None,
                )
            finally:
                connection.close()
        return (Proof(proof.asset, proof.load, proof.level, proof.digest, checks),)

    def _check_key(self, connection: duckdb.DuckDBPyConnection, staged: Staged, step: Step) -> None:
        """Refuse a key with nulls or duplicates. Raises KeyInvalid."""
        key = staged.schema.key
        if not key:
            return
        columns = engine.listed(engine.identifier(name) for name in key)
        table = engine.qualified(staged.asset.layer, staged.asset.name)
        query = "select {columns}, count(*) as n from {table} group by all having n > 1 limit 3"
        found = engine.rows(connection, engine.fill(query, columns=columns, table=table))
        if found:
            rows = [", ".join(f"{n} = {v!r}" for n, v in zip(key, row[:-1], strict=True)) for row in found]
            raise KeyInvalid(
                f"{staged.asset} has more than one row of the same key",
                where=str(step.spec["path"]),
                detail=[f"{text} ({row[-1]} rows)" for text, row in zip(rows, found, strict=True)],
                hint="make the SELECT give one row per key, or name another key",
            )


def _lake(step: Step, ctx: Context) -> LakeTarget:
    target = ctx.target(step.target)
    assert isinstance(target, LakeTarget)  # noqa: S101 - the planner names it
    return target


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
