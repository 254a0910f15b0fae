"""`dashboards/*.yaml`: a page's figures, charts and table over assets of the warehouse."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, model_validator

from millrace.core.names import AssetId
from millrace.errors import UsageError
from millrace.project.fields import Part, Positive, Text, Texts, wrong
from millrace.project.source import Path_


def _asset(value: str) -> str:
    try:
        AssetId.parse(value)
    except UsageError:
        raise wrong(f'"{value}" is not an asset', hint="assets are named layer.name, like marts.fct_orders") from None
    return value


AssetName = Annotated[Text, AfterValidator(_asset)]
Aggregate = Literal["sum", "avg", "min", "max", "count", "count_distinct"]
Use = Literal["number", "sum", "date", "any"]
"""What a column must be, for what a dashboard does with it; `sum`: a number, beside the groups of a table."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column that a dashboard reads.

    Attributes:
        path: where the file names it.
    """

    asset: AssetId
    name: str
    use: Use
    path: Path_


class _Figure(Part):
    """What kpis and charts share.

    Attributes:
        agg: how rows become one figure.
        per: column whose sum divides the sum of the figure's; with the unit `%` the ratio is shown times 100.
        asset: where it reads, when not from the dashboard's asset.
    """

    agg: Aggregate = "sum"
    per: Text | None = None
    unit: Text | None = None
    asset: AssetName | None = None

    @model_validator(mode="after")
    def _ratio(self) -> _Figure:
        if self.per is not None and self.agg != "sum":
            raise wrong(f"per divides sums, and agg is {self.agg}", at="per", key=True, hint="leave agg or per out")
        return self

    @property
    def needs(self) -> Use:
        """What the figure's column must be."""
        return "any" if self.agg.startswith("count") else "number"


class Kpi(_Figure):
    """The newest day's figure beside that of the day before.

    Attributes:
        measure: column that becomes the figure of a day.
    """

    label: Text
    measure: Text


class Chart(_Figure):
    """A line over time or bars over a category.

    Attributes:
        y: column that becomes the figure for each x.
        last: number of points or bars shown.
        days: only rows of so many days up to the newest, by the dashboard's date column.
    """

    title: Text
    kind: Literal["line", "bar"]
    x: Text
    y: Text
    last: Positive | None = None
    days: Positive | None = None


class Table(Part):
    """Rows, newest first.

    Attributes:
        by: groups the rows; the other columns are added up.
        labels: what stands above a column instead of its name.
        asset: where it reads, when not from the dashboard's asset.
    """

    columns: Texts
    title: Text | None = None
    by: Texts | None = None
    labels: dict[Text, Text] | None = None
    limit: Positive | None = None
    asset: AssetName | None = None

    @model_validator(mode="after")
    def _labelled(self) -> Table:
        for name in self.labels or {}:
            if name not in self.columns:
                what = f'labels names "{name}", which is no column of the table'
                raise wrong(what, at="labels", hint=f"it has: {', '.join(self.columns)}")
        return self


class DashboardFile(Part):
    """A file in `dashboards/`.

    Attributes:
        asset: where the figures come from.
        date: the date column of the kpis, and of the days that charts cover.
    """

    title: Text
    asset: AssetName
    date: Text | None = None
    description: Text | None = None
    kpis: tuple[Kpi, ...] = ()
    charts: tuple[Chart, ...] = ()
    table: Table | None = None

    @model_validator(mode="after")
    def _shows(self) -> DashboardFile:
        if self.kpis and self.date is None:
            raise wrong("kpis need a date column", at="kpis", key=True, hint="date: order_date")
        if self.date is None and any(chart.days for chart in self.charts):
            raise wrong("days of a chart need a date column", at="charts", key=True, hint="date: order_date")
        if not self.kpis and not self.charts and self.table is None:
            raise wrong("the dashboard shows nothing", hint="add kpis, charts or a table")
        return self

    def reads(self) -> dict[AssetId, Path_]:
        """Return every asset the page reads, the main one first, with where the file names it."""
        found: dict[AssetId, Path_] = {AssetId.parse(self.asset): ("asset",)}
        parts: list[tuple[str | None, Path_]] = [(kpi.asset, ("kpis", i, "asset")) for i, kpi in enumerate(self.kpis)]
        parts += [(chart.asset, ("charts", i, "asset")) for i, chart in enumerate(self.charts)]
        parts += [(self.table.asset, ("table", "asset"))] if self.table else []
        for name, path in parts:
            if name is not None:
                found.setdefault(AssetId.parse(name), path)
        return found

    def columns(self) -> Iterator[Column]:
        """Yield the columns that the page reads, as often as the file names them."""
        for index, kpi in enumerate(self.kpis):
            asset = AssetId.parse(kpi.asset or self.asset)
            yield from self._figure(kpi, asset, kpi.measure, ("kpis", index), "measure")
            yield from self._dated(asset)
        for index, chart in enumerate(self.charts):
            asset = AssetId.parse(chart.asset or self.asset)
            yield Column(asset, chart.x, "any", ("charts", index, "x"))
            yield from self._figure(chart, asset, chart.y, ("charts", index), "y")
            if chart.days:
                yield from self._dated(asset)
        if self.table:
            yield from self._listed(self.table)

    def _figure(self, figure: _Figure, asset: AssetId, name: str, path: Path_, key: str) -> Iterator[Column]:
        yield Column(asset, name, figure.needs, (*path, key))
        if figure.per:
            yield Column(asset, figure.per, "number", (*path, "per"))

    def _dated(self, asset: AssetId) -> Iterator[Column]:
        if self.date:
            yield Column(asset, self.date, "date", ("date",))

    def _listed(self, table: Table) -> Iterator[Column]:
        asset = AssetId.parse(table.asset or self.asset)
        by = table.by or ()
        for index, name in enumerate(by):
            yield Column(asset, name, "any", ("table", "by", index))
        for index, name in enumerate(table.columns):
            yield Column(asset, name, "any" if not by or name in by else "sum", ("table", "columns", index))
