"""The page, made from a real DuckDB and opened in a real Chromium."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import duckdb
import pytest
import yaml

from millrace.dashboards.page import Source, number, render, short
from millrace.errors import NotFound, ProjectError

DASHBOARD = yaml.safe_load(files("millrace.templates").joinpath("ecommerce/dashboards/daily_sales.yaml").read_text())
SOURCES = [Source("marts.agg_daily_sales", 12, "2026-11-21T06:00:03+00:00", "tests and gates passed", 1600)]


def page(connection: duckdb.DuckDBPyConnection, dashboard: dict[str, Any] = DASHBOARD) -> str:
    def query(sql: str) -> list[tuple[Any, ...]]:
        return connection.execute(sql).fetchall()

    made = "2026-11-21T06:00:00+00:00"
    return render(
        dashboard, query, SOURCES, made=made, notes=["17 rows in quarantine"], where="dashboards/daily_sales.yaml"
    )


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(("name", "width"), [("desktop", 1280), ("phone", 390)])
def test_opens_in_a_browser_without_error_or_request(
    warehouse: duckdb.DuckDBPyConnection, browser: Any, tmp_path: Path, name: str, width: int, theme: str
) -> None:
    file = tmp_path / "page.html"
    file.write_text(page(warehouse), encoding="utf-8")
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
    tab = context.new_page()
    complaints: list[str] = []
    requests: list[str] = []
    tab.on("console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("request", lambda request: requests.append(request.url))
    tab.goto(file.as_uri())
    tab.wait_for_selector(".chart .main-svg")
    assert complaints == []
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert tab.locator(".kpis .card").count() == 4
    assert tab.locator("figure").count() == 4
    assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "scrolls sideways"
    for drawing in tab.locator(".chart .main-svg").all():
        assert (drawing.bounding_box() or {})["height"] >= 200
    tab.screenshot(path=str(tmp_path / f"{name}-{theme}.png"), full_page=True)
    first = tab.locator("section table tbody tr td:nth-child(4)").first
    tab.get_by_role("button", name="total orders").click()
    greatest = int(first.inner_text())
    tab.get_by_role("button", name="total orders").click()
    assert int(first.inner_text()) < greatest
    context.close()


def test_figures_are_those_of_the_warehouse(warehouse: duckdb.DuckDBPyConnection) -> None:
    html = page(warehouse)
    revenue = warehouse.execute(
        "select sum(total_revenue) from marts.agg_daily_sales where order_date = date '2026-11-20'"
    ).fetchone()
    assert revenue is not None
    assert f'title="{number(revenue[0], "USD")}"' in html


def test_values_cannot_break_out_of_the_page(warehouse: duckdb.DuckDBPyConnection) -> None:
    html = page(warehouse)
    assert "<b>&" not in html
    assert '\\u003cb>&\\"Ünï\\u003c/script>' in html


def test_an_empty_asset_makes_a_page_that_says_so(warehouse: duckdb.DuckDBPyConnection) -> None:
    warehouse.execute("delete from marts.agg_daily_sales")
    html = page(warehouse)
    assert html.count("No rows yet.") == 5
    assert "no figure for the day before" in html


def test_a_gap_before_the_newest_day_is_no_change(warehouse: duckdb.DuckDBPyConnection) -> None:
    warehouse.execute("delete from marts.agg_daily_sales where order_date = date '2026-11-19'")
    assert "against the day before" not in page(warehouse)


def test_unknown_column_names_the_nearest(warehouse: duckdb.DuckDBPyConnection) -> None:
    broken = {**DASHBOARD, "kpis": [{"label": "Revenue", "measure": "total_revenu"}]}
    with pytest.raises(NotFound) as caught:
        page(warehouse, broken)
    assert str(caught.value) == (
        'marts.agg_daily_sales has no column "total_revenu"\n  dashboards/daily_sales.yaml\n  did you mean "total_revenue"?'
    )


def test_unknown_asset_and_missing_date(warehouse: duckdb.DuckDBPyConnection) -> None:
    with pytest.raises(NotFound, match="which is not in the warehouse"):
        page(warehouse, {**DASHBOARD, "asset": "marts.nothing"})
    with pytest.raises(ProjectError, match="names no date column"):
        page(warehouse, {key: value for key, value in DASHBOARD.items() if key != "date"})


@pytest.mark.parametrize(
    ("value", "text"),
    [(7241, "7,241"), (12_400_000, "12.4 M"), (99.5, "99.50"), (-125000, "−125.0 k"), (None, "–"), (0, "0")],
)
def test_short_figures(value: float | None, text: str) -> None:
    assert short(value) == text
