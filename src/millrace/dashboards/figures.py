"""What a dashboard file asks for, as queries and their answers. SQL is DuckDB's, built by sqlglot, never from text."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from sqlglot import exp

from millrace.core.names import AssetId
from millrace.errors import NotFound, did_you_mean

Query = Callable[[str], list[tuple[Any, ...]]]
Number = int | float | Decimal


@dataclass(frozen=True, slots=True)
class Kpi:
    """A figure of the newest day beside that of the day before.

    Attributes:
        value: None when the asset has no rows, or the ratio's divisor is 0.
        before: the day before's, None when that day has no rows.
        day: the newest day, None when there is none.
    """

    label: str
    unit: str
    value: Number | None
    before: Number | None
    day: dt.date | None
    trend: tuple[Number, ...]

    @property
    def change(self) -> float | None:
        """Relative change against the day before, None when it cannot be said."""
        if self.value is None or not self.before:
            return None
        return float(self.value - self.before) / float(self.before)  # type: ignore[operator]


@dataclass(frozen=True, slots=True)
class Chart:
    """Points of one chart, in drawing order."""

    title: str
    kind: str
    unit: str
    x: tuple[Any, ...]
    y: tuple[Number, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of the page's table, newest first."""

    title: str
    columns: tuple[str, ...]
    numeric: tuple[bool, ...]
    rows: tuple[tuple[Any, ...], ...]
    total: int


def _column(name: str) -> exp.Column:
    return exp.column(exp.to_identifier(name, quoted=True))


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
    return exp.Div(
        this=exp.Cast(this=total, to=exp.DataType.build("double")),
        expression=exp.Nullif(this=exp.Sum(this=_column(per)), expression=exp.Literal.number(0)),
    )


def _grouped(asset: AssetId, by: str, measure: str, spec: Mapping[str, Any]) -> exp.Select:
    """Select `by` and the figure grouped by it, without the null group."""
    return (
        exp.select(_column(by), _figure(spec, measure))
        .from_(_table(asset))
        .where(exp.Not(this=exp.Is(this=_column(by), expression=exp.null())))
        .group_by(_column(by))
    )


def _run(query: Query, select: exp.Expression) -> list[tuple[Any, ...]]:
    return query(select.sql(dialect="duckdb"))


def check_columns(query: Query, asset: AssetId, wanted: Sequence[str], where: str) -> dict[str, str]:
    """Return the asset's columns with their types.

    Raises:
        NotFound: the asset or one of the wanted columns does not exist; names the nearest.
    """
    select = (
        exp.select("column_name", "data_type")
        .from_("information_schema.columns")
        .where(
            exp.and_(
                exp.EQ(this=exp.column("table_schema"), expression=exp.Literal.string(asset.layer)),
                exp.EQ(this=exp.column("table_name"), expression=exp.Literal.string(asset.name)),
            )
        )
    )
    found = dict(_run(query, select))
    if not found:
        raise NotFound(f"the dashboard needs {asset}, which is not in the warehouse", where=where)
    for name in wanted:
        if name not in found:
            hint = did_you_mean(name, list(found)) or f"it has: {', '.join(found)}"
            raise NotFound(f'{asset} has no column "{name}"', where=where, hint=hint)
    return found


def kpi(query: Query, asset: AssetId, date: str, spec: Mapping[str, Any]) -> Kpi:
    """Compute one KPI over the newest 30 days of `date`."""
    select = _grouped(asset, date, spec["measure"], spec).order_by(_column(date).desc()).limit(30)
    days = _run(query, select)
    label, unit = spec["label"], spec.get("unit") or ""
    if not days:
        return Kpi(label, unit, None, None, None, ())
    newest = _day(days[0][0])
    before = next((value for day, value in days[1:2] if _day(day) == newest - dt.timedelta(days=1)), None)
    trend = tuple(value for _, value in reversed(days) if value is not None)
    return Kpi(label, unit, days[0][1], before, newest, trend)


def _day(value: dt.date | dt.datetime) -> dt.date:
    return value.date() if isinstance(value, dt.datetime) else value


def chart(query: Query, asset: AssetId, spec: Mapping[str, Any]) -> Chart:
    """Compute one chart: a line in the order of x (the newest `last` points), or bars, the greatest first."""
    select = _grouped(asset, spec["x"], spec["y"], spec)
    if spec["kind"] == "line":
        points = _run(query, select.order_by(_column(spec["x"]).desc()).limit(spec.get("last") or 366))
        points.reverse()
    else:
        points = _run(query, select)
        points.sort(key=lambda point: (-(point[1] or 0), str(point[0])))
        points = points[: spec.get("last") or 20]
    return Chart(
        spec["title"],
        spec["kind"],
        spec.get("unit") or "",
        tuple(point[0] for point in points),
        tuple(point[1] if point[1] is not None else 0 for point in points),
    )


NUMERIC = ("INT", "DECIMAL", "DOUBLE", "FLOAT", "NUMERIC", "REAL")


def table(query: Query, asset: AssetId, spec: Mapping[str, Any], types: Mapping[str, str]) -> Table:
    """Read the table's rows: `by` columns group, numeric others are summed; ordered by the first, newest first."""
    columns, by = tuple(spec["columns"]), tuple(spec.get("by") or ())
    numeric = tuple(any(word in types[name].upper() for word in NUMERIC) for name in columns)
    fields = [
        exp.alias_(exp.Sum(this=_column(name)), name, quoted=True)
        if by and is_number and name not in by
        else _column(name)
        for name, is_number in zip(columns, numeric, strict=True)
    ]
    select = exp.select(*fields).from_(_table(asset))
    if by:
        select = select.group_by(*(_column(name) for name in by))
    counted = _run(query, exp.select("count(*)").from_(select.subquery("counted")))
    order = by or columns[:1]
    ordering = [_column(order[0]).desc(), *(_column(name) for name in order[1:])]
    rows = _run(query, select.order_by(*ordering).limit(spec.get("limit") or 50))
    return Table(spec.get("title") or str(asset), columns, numeric, tuple(rows), counted[0][0])
