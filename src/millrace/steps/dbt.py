"""The step kind `dbt`: the project's dbt folder is built and tested where no reader of the warehouse looks.

In a DuckDB warehouse that is the run's clone of the file; in PostgreSQL a generation of hidden schemas, in which
incremental models and snapshots were cloned first.
"""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from millrace.core.names import AssetId
from millrace.core.plan import Freshness, Step
from millrace.core.ports import Context, StageRequest, Target
from millrace.core.schema import Schema
from millrace.core.staged import CheckResult, Proof, Staged
from millrace.dashboards.columns import check_columns
from millrace.duck.warehouse import WarehouseTarget
from millrace.errors import MillraceError
from millrace.postgres.warehouse import PostgresWarehouse
from millrace.steps.checking import querying
from millrace.steps.resources import Resources
from millrace.steps.versions import judge, pinned
from millrace.steps.warehouse import warehouse_of
from millrace.transform.dbt import DbtGraph, DbtResult, build, graph
from millrace.transform.dbt_process import PASSWORD, DbtEvent, DbtOptions, DbtProcess

TESTS = "tests"  # dbt's tests in the detail of the first of what a build staged
CHECKED = {"pass": True, "warn": False, "fail": False}


class DbtStep:
    """Runs dbt as a subprocess; incremental models and snapshots find what the last publish left in the clone."""

    kind: ClassVar[str] = "dbt"

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._waiting: dict[str, DbtProcess] = {}

    @contextlib.contextmanager
    def expect(self, step: Step) -> Iterator[None]:
        """Start dbt's process: it is ready when its turn comes, and ended if that never does."""
        self._waiting[step.key] = process = DbtProcess()
        try:
            yield
        finally:
            self._waiting.pop(step.key, None)
            process.end()

    def fresh(self, step: Step, ctx: Context) -> Freshness:
        """Fresh while the dbt folder and what it reads are those of the ledger; dbt is not started to find out."""
        views = isinstance(ctx.target(step.target), PostgresWarehouse)
        publishes = "views of hidden tables, in one transaction" if views else "with the warehouse, in one step"
        return judge(step, ctx, publishes=publishes, proves="dbt tests")

    def stage(self, step: Step, ctx: Context) -> tuple[Staged, ...]:
        """Build where no reader looks. Raises StepFailed for a model, GateFailed for a test."""
        target = ctx.target(step.target)
        if isinstance(target, PostgresWarehouse):
            return self._stage_in_postgres(step, ctx, target)
        warehouse = warehouse_of(ctx, step)
        clone = warehouse.clone(ctx.run)
        if kept := clone.staged(ctx.load):
            return kept
        with clone.savepoint(ctx.load):
            result = build(
                self._resources.folder / str(step.spec["path"]),
                clone.folder,
                self._resources.cache,
                replace(self._options(step, ctx), inherit=(clone.owner,)),
            )
            details = self._details(step, ctx, result, self._graph(step))
            return warehouse.stage_results(clone, self._requests(step, ctx, warehouse), details)

    def _stage_in_postgres(self, step: Step, ctx: Context, warehouse: PostgresWarehouse) -> tuple[Staged, ...]:
        if kept := warehouse.staged(ctx.run, ctx.load):
            return kept
        project = self._graph(step, postgres=True)
        options = self._options(step, ctx)
        pins = pinned(step, ctx)
        made = warehouse.begin(
            ctx.run,
            project.schemas,
            [one.asset for one in project.models if one.carried and not (options.full_refresh and not one.snapshot)],
            {asset: pins.get(str(asset), 1) for asset in step.inputs},
        )
        try:
            where = warehouse.where()
            secret = {PASSWORD: where.password.reveal()} if where.password else {}
            result = build(
                self._resources.folder / str(step.spec["path"]),
                ctx.scratch(),
                self._resources.cache / "build",  # the plan's parse, of another server, keeps its own files
                replace(
                    options,
                    postgres=where.parameters,
                    suffix=made.suffix,
                    environment={**options.environment, **secret},
                ),
            )
            details = self._details(step, ctx, result, project)
            return warehouse.stage_results(made, self._requests(step, ctx, warehouse), details)
        except BaseException:
            with contextlib.suppress(MillraceError):  # else the next run drops it
                warehouse.abandon(made)
            raise

    def _options(self, step: Step, ctx: Context) -> DbtOptions:
        return DbtOptions(
            environment=environment(ctx.logical_time),
            full_refresh=bool(step.spec.get("full_refresh")),
            on_event=self._telling(ctx),
            stopping=ctx.stopping,
            process=self._waiting.pop(step.key, None),
            memory_limit=self._resources.memory_limit,
            threads=self._resources.threads,
        )

    def _graph(self, step: Step, *, postgres: bool = False) -> DbtGraph:
        """Return what the project makes; kept by its folder's hash."""
        return graph(self._resources.folder / str(step.spec["path"]), self._resources.cache, postgres=postgres)

    def _details(
        self, step: Step, ctx: Context, result: DbtResult, project: DbtGraph
    ) -> dict[AssetId, dict[str, list[dict[str, Any]]]]:
        """Report the tests and refuse a build in which anything failed; returns what goes with the first asset."""
        checks = self._checks(step, result, project)
        ctx.report.checks(checks)
        result.check()
        return {asset: {TESTS: [check.to_json() for check in checks]} for asset in step.assets[:1]}

    def _requests(self, step: Step, ctx: Context, warehouse: Target) -> list[StageRequest]:
        inputs = pinned(step, ctx)
        requests = []
        for asset in step.assets:
            base = warehouse.ledger(asset)
            requests.append(
                StageRequest(
                    asset=asset,
                    load=ctx.load,
                    run=ctx.run,
                    step=step.key,
                    base=base.seq if base else 0,
                    how="member",
                    schema=Schema(()),
                    inputs=inputs,
                    code=step.code,
                    date=ctx.logical_time[:10] if step.dated else None,
                )
            )
        return requests

    def _telling(self, ctx: Context) -> Any:
        told: set[str] = set()

        def tell(event: DbtEvent) -> None:
            if event.total and not told:
                ctx.report.total(event.total)
            if event.unique_id not in told and event.status not in ("", "started"):
                told.add(event.unique_id)
                ctx.report.moved(1, 0)

        return tell

    def prove(self, step: Step, staged: Sequence[Staged], ctx: Context) -> tuple[Proof, ...]:
        """Record the digests of what dbt made, or see that views keep their columns.

        dbt's tests ran while it built, and their outcomes came with the stage.
        """
        tests = [CheckResult.from_json(check) for item in staged for check in item.detail.get(TESTS, ())]
        ctx.report.checks(tests)
        ctx.report.note(f"{len(tests)} tests")
        target = ctx.target(step.target)
        if isinstance(target, PostgresWarehouse):
            return target.prove_all(staged)
        warehouse = warehouse_of(ctx, step)
        self._check_pages(step, staged, warehouse)
        if staged:  # gates come after it and add theirs
            warehouse.note_checks(warehouse.opened(staged[0]), step.key, tests, anew=True)
        return tuple(warehouse.prove(item) for item in staged)

    def _checks(self, step: Step, result: DbtResult, project: DbtGraph) -> list[CheckResult]:
        """Return dbt's tests as checks of what each looks at: journalled, shown and scored like all others."""
        looked_at = {test.unique_id: test.assets for test in project.tests}
        other = step.assets[:1] or (AssetId("dbt", step.label),)
        return [
            CheckResult(
                name=node.name,
                asset=(looked_at.get(node.unique_id) or other)[0],
                passed=CHECKED[node.status],
                blocking=node.status == "fail",
                failing=node.failures,
                detail=node.message,
            )
            for node in result.tests
            if node.status in CHECKED
        ]

    def _check_pages(self, step: Step, staged: Sequence[Staged], warehouse: WarehouseTarget) -> None:
        """Refuse to publish tables that lack a column which a page shows. Raises ProjectError."""
        wanted = step.spec.get("shown")
        if not staged or not wanted:
            return
        clone = warehouse.opened(staged[0])
        connection = clone.connect(read_only=True)
        try:
            query = querying(connection, str(clone.path))
            check_columns(wanted, lambda sql: query(sql, ()))
        finally:
            connection.close()


def environment(logical_time: str) -> Mapping[str, str]:
    """Return what dbt is told of a run: its logical time, to the second.

    Not as dbt's `vars`: those are part of dbt's parse, which would be made anew for each run.
    """
    now = dt.datetime.fromisoformat(logical_time).astimezone(dt.UTC)
    return {"MILLRACE_LOGICAL_TIME": now.strftime("%Y-%m-%d %H:%M:%S")}
