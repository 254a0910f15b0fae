"""The step kind `page`: a dashboard file and the published warehouse become one HTML file."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import ClassVar

import yaml

from millrace.core.names import AssetId
from millrace.core.plan import Freshness, Step
from millrace.core.ports import Context
from millrace.core.position import Versions
from millrace.core.schema import Schema
from millrace.core.staged import Proof, Staged
from millrace.dashboards.page import Source, render
from millrace.dashboards.target import PageTarget
from millrace.duck.warehouse import WarehouseTarget
from millrace.errors import NotFound
from millrace.steps.checking import querying
from millrace.steps.resources import Resources
from millrace.steps.versions import judge, pinned


class PageStep:
    """Renders dashboards."""

    kind: ClassVar[str] = "page"

    def __init__(self, resources: Resources) -> None:
        self._resources = resources

    def _pages(self, ctx: Context, step: Step) -> PageTarget:
        target = ctx.target(step.target)
        assert isinstance(target, PageTarget)  # noqa: S101 - the planner names it
        return target

    def fresh(self, step: Step, ctx: Context) -> Freshness:
        """Fresh while neither the dashboard file nor the loads it shows have changed."""
        return judge(step, ctx, publishes="one file, replaced")

    def stage(self, step: Step, ctx: Context) -> tuple[Staged, ...]:
        """Render the page from the published warehouse, read-only."""
        (asset,) = step.assets
        pages = self._pages(ctx, step)
        warehouse = self._resources.target("warehouse")
        assert isinstance(warehouse, WarehouseTarget)  # noqa: S101 - the planner names it
        path = str(step.spec["path"])
        dashboard = yaml.safe_load((self._resources.folder / path).read_text("utf-8"))
        inputs = pinned(step, ctx)
        connection = warehouse.reader()
        if connection is None:
            raise NotFound(f"{asset} has nothing to show: the warehouse was never published", where=path)
        try:
            query = querying(connection, path)
            sources = [self._source(warehouse, name) for name in step.inputs]
            html = render(dashboard, lambda sql: query(sql, ()), sources, made=ctx.logical_time, where=path)
        finally:
            connection.close()
        base = pages.ledger(asset)
        staged = Staged(
            asset=asset,
            load=ctx.load,
            run=ctx.run,
            step=step.key,
            target=pages.name,
            base=base.seq if base else 0,
            how="file",
            place=str(pages.stage_file(ctx.load)),
            schema=Schema(()),
            position=Versions(inputs),
            rows=0,
            inputs=inputs,
            code=step.code,
            date=ctx.logical_time if step.dated else None,
            detail={"size": len(html.encode()), "page": str(pages.page(asset))},
        )
        return (pages.stage(staged, html),)

    def prove(self, step: Step, staged: Sequence[Staged], ctx: Context) -> tuple[Proof, ...]:
        """Check that the staged file is whole."""
        return tuple(self._pages(ctx, step).prove(item) for item in staged)

    def _source(self, warehouse: WarehouseTarget, asset: AssetId) -> Source:
        entry = warehouse.ledger(asset)
        if entry is None:
            return Source(str(asset), 0, "", "never published")
        when = dt.datetime.fromisoformat(entry.time).astimezone(dt.UTC)
        proof = {"none": "tests and gates passed", "transfer": "every row proven"}.get(entry.level, entry.level)
        return Source(str(asset), entry.seq, when.isoformat(timespec="seconds"), proof, entry.rows)
