"""`dashboards/*.yaml`: a page's figures, charts and table over assets of the warehouse."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, model_validator

from millrace.core.names import AssetId
from millrace.errors import UsageError
from millrace.project.fields import Part, Positive, Text, Texts, wrong


def _asset(value: str) -> str:
    try:
        AssetId.parse(value)
    except UsageError:
        raise wrong(f'"{value}" is not an asset', hint="assets are named layer.name, like marts.fct_orders") from None
    return value


AssetName = Annotated[Text, AfterValidator(_asset)]


class Kpi(Part):
    """The newest day's figure beside that of the day before.

    Attributes:
        measure: column that is added up over the day.
        per: column whose sum divides it.
    """

    label: Text
    measure: Text
    per: Text | None = None
    unit: Text | None = None


class Chart(Part):
    """A line over time or bars over a category.

    Attributes:
        y: column that is added up for each x; `per` divides it.
        last: number of points or bars shown.
        asset: where it reads, when not from the dashboard's asset.
    """

    title: Text
    kind: Literal["line", "bar"]
    x: Text
    y: Text
    per: Text | None = None
    unit: Text | None = None
    last: Positive | None = None
    asset: AssetName | None = None


class Table(Part):
    """Rows, newest first; `by` groups them and adds up the numeric columns beside."""

    columns: Texts
    title: Text | None = None
    by: Texts | None = None
    limit: Positive | None = None


class DashboardFile(Part):
    """A file in `dashboards/`.

    Attributes:
        asset: where the figures come from.
        date: the date column of the kpis.
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
        if not self.kpis and not self.charts and self.table is None:
            raise wrong("the dashboard shows nothing", hint="add kpis, charts or a table")
        return self

    def assets(self) -> tuple[AssetId, ...]:
        """Return every asset the page reads, the main one first."""
        names = dict.fromkeys([self.asset, *(chart.asset for chart in self.charts if chart.asset)])
        return tuple(AssetId.parse(name) for name in names)
