"""What a dashboard file asks for, as queries and their answers. SQL is DuckDB's, built by sqlglot, never from text."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from sqlglot import exp

from millrace.core.names import AssetId
from millrace.dashboards.columns import Query, is_number

Number = int | float | Decimal

KPI_DAYS = 30  # of a kpi's small line
POINTS, BARS, ROWS = 366, 20, 50  # shown when the file does not say how many
NONE = "(none)"


@dataclass(frozen=True, slots=True)
class Kpi:
    """A figure of the newest day beside that of the day before it.

    Attributes:
        value: None when the asset has no rows, or the ratio's divisor is 0.
        before: the earlier figure, None when there is none.
        day: the newest day that has rows, None when there is none.
        day_before: the day that has rows next before it.
        trend: figures of the newest days, oldest first.
    """

    label: str
    measure: str
    unit: str
    value: Number | None
    before: Number | None
    day: dt.date | None
    day_before: dt.date | None
    trend: tuple[Number, ...]

    @property
    def change(self) -> float | None:
        """Change against the day before: relative, of a share in points; None when it cannot be said."""
        if self.value is None or self.before is None:
            return None
        difference = float(self.value) - float(self.before)
        if self.unit == "%":
            return difference
        return difference / abs(float(self.before)) if self.before else None


@dataclass(frozen=True, slots=True)
class Chart:
    """Points of one chart, in drawing order.

    Attributes:
        shares: of bars that are sums: each one's part of all, 0 to 1; else empty.
        since, until: the days that the rows behind bars cover, where the dashboard has a date.
        total: points or bars that there are, of which the last or the greatest are shown.
    """

    title: str
    kind: str
    measure: str
    unit: str
    x: tuple[Any, ...]
    y: tuple[Number | None, ...]
    shares: tuple[float, ...] = ()
    since: dt.date | None = None
    until: dt.date | None = None
    total: int = 0


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of the page's table, newest first."""

    title: str
    columns: tuple[str, ...]
    labels: tuple[str, ...]
    numeric: tuple[bool, ...]
    rows: tuple[tuple[Any, ...], ...]
    total: int


def _column(name: str) -> exp.Column:
    return exp.column(exp.to_identifier(name, quoted=True))


def _day(name: str) -> exp.Expression:
    return exp.Cast(this=_column(name), to=exp.DataType.build("date"))


def _table(asset: AssetId) -> exp.Table:
    return exp.Table(this=exp.to_identifier(asset.name, quoted=True), db=exp.to_identifier(asset.layer, quoted=True))


AGGREGATES: Mapping[str, Callable[[exp.Expression], exp.Expression]] = {
    "sum": lambda column: exp.Sum(this=column),
    "avg": lambda column: exp.Avg(this=column),
    "min": lambda column: exp.Min(this=column),
    "max": lambda column: exp.Max(this=column),
    "count": lambda column: exp.Count(this=column),
    "count_distinct": lambda column: exp.Count(this=exp.Distinct(expressions=[column])),
}


def _figure(spec: Mapping[str, Any], measure: str) -> exp.Expression:
    """Return the aggregate of a measure; `per` makes it a ratio of two sums, which an average of averages is not."""
    total = AGGREGATES[spec.get("agg") or "sum"](_column(measure))
    per = spec.get("per")
    if not per:
        return total
    ratio: exp.Expression = exp.Div(
        this=exp.Cast(this=total, to=exp.DataType.build("double")),
        expression=exp.Nullif(this=exp.Sum(this=_column(per)), expression=exp.Literal.number(0)),
    )
    return exp.Mul(this=ratio, expression=exp.Literal.number(100)) if spec.get("unit") == "%" else ratio


def _known(name: str) -> exp.Expression:
    return exp.Not(this=exp.Is(this=_column(name), expression=exp.null()))


def _grouped(asset: AssetId, by: exp.Expression, measure: str, spec: Mapping[str, Any]) -> exp.Select:
    return exp.select(exp.alias_(by, "_x"), exp.alias_(_figure(spec, measure), "_y")).from_(_table(asset)).group_by(by)


def _run(query: Query, select: exp.Expression) -> list[tuple[Any, ...]]:
    """Run a query. What is not finite (NaN, infinity) is no figure: None, which is shown as a dash or a gap."""

    def finite(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return [tuple(map(finite, row)) for row in query(select.sql(dialect="duckdb"))]


def kpi(query: Query, asset: AssetId, date: str, spec: Mapping[str, Any]) -> Kpi:
    """Compute one KPI over the newest days of `date`."""
    day = _day(date)
    select = _grouped(asset, day, spec["measure"], spec).where(_known(date))
    days = _run(query, select.order_by(day.copy().desc()).limit(KPI_DAYS))
    (newest, value), (earlier, before) = [*days, (None, None), (None, None)][:2]
    trend = tuple(value for _, value in reversed(days) if value is not None)
    return Kpi(spec["label"], spec["measure"], spec.get("unit") or "", value, before, newest, earlier, trend)


def chart(query: Query, asset: AssetId, spec: Mapping[str, Any], date: str | None) -> Chart:
    """Compute one chart: a line in the order of x (the newest `last` points), or bars, the greatest first.

    Args:
        query: of the warehouse.
        asset: where it reads.
        spec: the chart as the dashboard's file has it.
        date: the asset's date column, if it has one.
    """
    line = spec["kind"] == "line"
    select = _grouped(asset, _column(spec["x"]), spec["y"], spec)
    covered: exp.Select | None = None
    if date:
        covered = exp.select(exp.Min(this=_day(date)), exp.Max(this=_day(date))).from_(_table(asset))
        if spec.get("days"):
            window = _window(asset, date, spec["days"])
            select, covered = select.where(window), covered.where(window.copy())
    most = spec.get("last") or (POINTS if line else BARS)
    shares: tuple[float, ...] = ()
    if line:
        newest = exp.Ordered(this=_column(spec["x"]), desc=True)
        points = _run(query, select.where(_known(spec["x"])).order_by(newest).limit(most))[::-1]
        total = len(points)
    else:
        greatest = exp.Ordered(this=_figure(spec, spec["y"]), desc=True, nulls_first=False)
        points = _run(query, select.order_by(greatest, _column(spec["x"])).limit(most))
        total, shares = _of_all(query, select, spec, points)
    since, until = _run(query, covered)[0] if covered and points and not line else (None, None)
    return Chart(
        spec["title"],
        spec["kind"],
        spec["y"],
        spec.get("unit") or "",
        tuple(NONE if value is None else value for value, _ in points),
        tuple(figure for _, figure in points),
        shares,
        since,
        until,
        total,
    )


def _of_all(
    query: Query, select: exp.Select, spec: Mapping[str, Any], points: Sequence[tuple[Any, ...]]
) -> tuple[int, tuple[float, ...]]:
    """Return how many bars there are, and each shown one's part of all where the bars add up to something."""
    figure = exp.column("_y", table="bars")
    every = exp.select(exp.Count(this=exp.Star()), exp.Sum(this=figure), exp.Min(this=figure))
    every = every.from_(select.subquery("bars"))
    count, total, least = _run(query, every)[0]
    adds_up = (spec.get("agg") or "sum") in ("sum", "count") and not spec.get("per")
    if not adds_up or not total or least is None or least < 0:
        return count, ()
    return count, tuple(float(y or 0) / float(total) for _, y in points)


def _window(asset: AssetId, date: str, days: int) -> exp.Expression:
    """Return the condition that holds for the last days of an asset, up to its newest."""
    newest = exp.select(exp.Max(this=_day(date))).from_(_table(asset)).subquery()
    return exp.GT(this=_day(date), expression=exp.Sub(this=newest, expression=exp.Literal.number(days)))


def table(query: Query, asset: AssetId, spec: Mapping[str, Any], types: Mapping[str, str]) -> Table:
    """Read the table's rows: `by` columns group, numeric others are summed; ordered by the first, newest first."""
    columns, by = tuple(spec["columns"]), tuple(spec.get("by") or ())
    numeric = tuple(is_number(types[name]) for name in columns)
    fields = [
        exp.alias_(exp.Sum(this=_column(name)), name, quoted=True) if by and name not in by else _column(name)
        for name in columns
    ]
    select = exp.select(*fields).from_(_table(asset))
    if by:
        select = select.group_by(*(_column(name) for name in by))
    counted = _run(query, exp.select("count(*)").from_(select.subquery("counted")))
    order = by or columns[:1]
    ordering = [_column(order[0]).desc(), *(_column(name) for name in order[1:])]
    rows = _run(query, select.order_by(*ordering).limit(spec.get("limit") or ROWS))
    labels = spec.get("labels") or {}
    shown = tuple(labels.get(name) or name.replace("_", " ") for name in columns)
    return Table(spec.get("title") or str(asset), columns, shown, numeric, tuple(rows), counted[0][0])
