"""What a dashboard says of columns that are not there, or are not what it needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import pytest

from millrace.dashboards.columns import check_columns
from millrace.errors import ProjectError
from millrace.planner.steps import _column
from millrace.project.dashboards import DashboardFile
from millrace.project.problems import validated
from millrace.project.source import parse_yaml

TEXT = """\
title: Daily sales
asset: marts.agg_daily_sales
date: order_date
kpis:
  - {label: Revenue, measure: total_revenue, per: total_orders}
charts:
  - {title: By region, kind: bar, x: region, y: total_revenue, days: 30}
table: {columns: [order_date, total_orders], by: order_date}
"""


def wanted(text: str) -> list[dict[str, Any]]:
    document = parse_yaml(text, "dashboards/sales.yaml")
    return [_column(column, document) for column in validated(DashboardFile, document).columns()]


def error(warehouse: duckdb.DuckDBPyConnection, *changes: tuple[str, str]) -> ProjectError:
    text = TEXT
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    with pytest.raises(ProjectError) as caught:
        check_columns(wanted(text), lambda sql: warehouse.execute(sql).fetchall())
    return caught.value


def test_a_dashboard_whose_columns_are_there(warehouse: duckdb.DuckDBPyConnection) -> None:
    check_columns(wanted(TEXT), lambda sql: warehouse.execute(sql).fetchall())


def test_a_missing_column_is_one_error_with_its_place_and_the_nearest(warehouse: duckdb.DuckDBPyConnection) -> None:
    found = error(warehouse, ("measure: total_revenue", "measure: total_revenu"))
    assert str(found) == (
        'marts.agg_daily_sales has no column "total_revenu"\n'
        "  dashboards/sales.yaml:5:31\n"
        "  5 |   - {label: Revenue, measure: total_revenu, per: total_orders}\n"
        '    |                               ^^^^^^^^^^^^ did you mean "total_revenue"?'
    )


@pytest.mark.parametrize(
    ("old", "new", "place", "what"),
    [
        ("per: total_orders", "per: kg", "5:51", 'no column "kg"'),
        ("x: region", "x: land", "7:38", 'no column "land"'),
        ("date: order_date", "date: day", "3:7", 'no column "day"'),
        ("date: order_date", "date: region", "3:7", '"region" of marts.agg_daily_sales is VARCHAR, not a date'),
        ("y: total_revenue", "y: category", "7:49", '"category" of marts.agg_daily_sales is VARCHAR: it cannot be'),
        ("total_orders], by", "region], by", "8:31", '"region" of marts.agg_daily_sales is VARCHAR: it cannot be'),
        ("by: order_date", "by: dag", "8:46", 'no column "dag"'),
        ("asset: marts.agg_daily_sales", "asset: marts.agg_days", "5:31", "marts.agg_days is not in the warehouse"),
    ],
)
def test_whatever_is_wrong_names_its_line(
    warehouse: duckdb.DuckDBPyConnection, old: str, new: str, place: str, what: str
) -> None:
    found = error(warehouse, (old, new))
    assert str(found.where) == f"dashboards/sales.yaml:{place}"
    assert what in found.what


def test_all_missing_columns_at_once(warehouse: duckdb.DuckDBPyConnection) -> None:
    found = error(
        warehouse, ("total_revenue,", "nothing,"), ("x: region", "x: nowhere"), ("y: total_revenue", "y: nothing")
    )
    assert [other.what for other in found.others] == ['marts.agg_daily_sales has no column "nowhere"']


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        (
            "per: total_orders",
            "agg: last",
            '"agg" in kpi 1 must be sum, avg, min, max, count or count_distinct, not the text "last"',
        ),
        ("per: total_orders", "per: total_orders, agg: max", "per divides sums, and agg is max"),
        ("days: 30", "by: category", 'unknown key "by" in chart 1'),
        (
            "by: order_date",
            "labels: {total_order: orders}",
            'labels names "total_order", which is no column of the table',
        ),
        ("date: order_date\nkpis", "description: none\nkpis", "kpis need a date column"),
    ],
)
def test_what_the_page_cannot_do_is_refused_with_its_place(old: str, new: str, text: str) -> None:
    assert old in TEXT
    with pytest.raises(ProjectError) as caught:
        wanted(TEXT.replace(old, new, 1))
    assert caught.value.what == text
    assert ":" in str(caught.value.where), Path(str(caught.value.where))


def test_every_asset_that_is_read_has_its_place() -> None:
    text = TEXT.replace("per: total_orders", "asset: marts.a").replace("days: 30", "asset: marts.b")
    document = parse_yaml(text.replace("by: order_date", "asset: marts.c"), "dashboards/sales.yaml")
    reads = validated(DashboardFile, document).reads()
    assert {str(asset): str(document.place(path)) for asset, path in reads.items()} == {
        "marts.agg_daily_sales": "dashboards/sales.yaml:2:8",
        "marts.a": "dashboards/sales.yaml:5:53",
        "marts.b": "dashboards/sales.yaml:7:71",
        "marts.c": "dashboards/sales.yaml:8:53",
    }
