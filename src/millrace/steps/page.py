"""The step kind `page`: a dashboard file and the published warehouse become one HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from millrace.core.plan import Freshness, Step
from millrace.core.ports import Context
from millrace.core.position import Versions
from millrace.core.schema import Schema
from millrace.core.staged import Proof, Staged
from millrace.dashboards.columns import check_columns
from millrace.dashboards.page import render
from millrace.dashboards.target import PageTarget
from millrace.duck.warehouse import WarehouseTarget
from millrace.errors import NotFound
from millrace.lake.target import LakeTarget
from millrace.steps.checking import querying
from millrace.steps.provenance import sources_of
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

    def _lake(self) -> LakeTarget:
        lake = self._resources.target("lake")
        assert isinstance(lake, LakeTarget)  # noqa: S101 - what is loaded into a warehouse comes from the lake
        return lake

    def fresh(self, step: Step, ctx: Context) -> Freshness:
        """Fresh while neither the dashboard file nor the loads it shows have changed.

        The loads behind what it reads, their checks and their quarantine are those that its inputs' versions saw, so
        these versions stand for all that the page shows.
        """
        return judge(step, ctx, publishes="one file, replaced")

    def stage(self, step: Step, ctx: Context) -> tuple[Staged, ...]:
        """Render the page from the published warehouse, read-only. Raises ProjectError for a column that is missing."""
        (asset,) = step.assets
        pages = self._pages(ctx, step)
        inputs = pinned(step, ctx)
        html = self._html(step, ctx)
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

    def _html(self, step: Step, ctx: Context) -> str:
        warehouse = self._resources.target("warehouse")
        assert isinstance(warehouse, WarehouseTarget)  # noqa: S101 - the planner names it
        connection = warehouse.reader()
        if connection is None:
            raise NotFound(f"{step.label} has nothing to show: the warehouse was never published", hint="millrace run")
        try:
            query = querying(connection, step.label)
            dashboard: Mapping[str, Any] = step.spec["dashboard"]
            check_columns(step.spec["columns"], lambda sql: query(sql, ()))
            sources = sources_of(step.inputs, connection, self._lake)
            return render(dashboard, lambda sql: query(sql, ()), sources, made=ctx.logical_time)
        finally:
            connection.close()

    def prove(self, step: Step, staged: Sequence[Staged], ctx: Context) -> tuple[Proof, ...]:
        """Check that the staged file is whole."""
        return tuple(self._pages(ctx, step).prove(item) for item in staged)
