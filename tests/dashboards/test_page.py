"""The page, made from a real DuckDB and opened in a real Chromium."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import duckdb
import pytest
import yaml

from millrace.core.names import AssetId
from millrace.core.staged import CheckResult
from millrace.dashboards.page import Source, number, render, short
from millrace.project.dashboards import DashboardFile

DAYS = AssetId("marts", "agg_daily_sales")
FILE = yaml.safe_load(files("millrace.templates").joinpath("ecommerce/dashboards/daily_sales.yaml").read_text())
WARNED = CheckResult("between(profit_margin_pct)", DAYS, False, False, 3, "3 rows are not between -100 and 100")
SOURCES = [
    Source(str(DAYS), 12, "2026-11-21T06:00:03+00:00", "built", 1600, (CheckResult("row_count", DAYS, True), WARNED)),
    Source("bronze.orders", 9, "2026-11-21T06:00:01+00:00", "equal to the source, every row", 9000, quarantine=17),
]


def content(**changes: Any) -> dict[str, Any]:
    """The template's dashboard with some keys changed, as the project hands it on."""
    return DashboardFile.model_validate({**FILE, **changes}).model_dump(mode="json", exclude_none=True)


def page(connection: duckdb.DuckDBPyConnection, dashboard: dict[str, Any] | None = None) -> str:
    def query(sql: str) -> list[tuple[Any, ...]]:
        return connection.execute(sql).fetchall()

    return render(dashboard or content(), query, SOURCES, made="2026-11-21T06:00:00+00:00")


@contextmanager
def opened(browser: Any, file: Path, html: str, *, width: int = 1280, theme: str = "light") -> Iterator[Any]:
    """Open a page; whatever it complains of or asks the network for fails the test."""
    file.write_text(html, encoding="utf-8")
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
    tab = context.new_page()
    complaints: list[str] = []
    requests: list[str] = []
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("request", lambda request: requests.append(request.url))
    tab.goto(file.as_uri())
    tab.wait_for_selector(".chart .main-svg")
    yield tab
    assert complaints == []
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []
    context.close()


CONTRAST = """() => {
  const light = (text) => text.match(/[\\d.]+/g).slice(0, 3).map((v) => (v /= 255, v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const ground = (node) => { for (; node; node = node.parentElement) { const found = getComputedStyle(node).backgroundColor;
    if (!/, 0\\)$/.test(found)) return found; } };
  const texts = [...document.querySelectorAll("main *")].filter((node) => [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim()));
  return texts.filter((node) => !node.closest("svg")).map((node) => {
    const [a, b] = [light(getComputedStyle(node).color), light(ground(node))].sort((x, y) => y - x);
    return [node.textContent.trim().slice(0, 40), (a + .05) / (b + .05)]; }).filter(([, ratio]) => ratio < 4.5); }"""


@pytest.mark.slow
@pytest.mark.parametrize(("width", "theme"), [(1280, "light"), (360, "dark")])
def test_opens_in_a_browser_without_error_or_request(
    warehouse: duckdb.DuckDBPyConnection, browser: Any, tmp_path: Path, width: int, theme: str
) -> None:
    with opened(browser, tmp_path / "page.html", page(warehouse), width=width, theme=theme) as tab:
        assert tab.locator(".kpis .card").count() == 4
        assert tab.locator("figure").count() == 5
        assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "scrolls sideways"
        for drawing in tab.locator(".chart").all():
            box, shown = drawing.bounding_box(), drawing.locator(".main-svg").first.bounding_box()
            assert shown["height"] >= 200
            assert shown["width"] <= box["width"]
            for label in drawing.locator(".xtick text, .ytick text").all():
                assert label.bounding_box()["x"] >= 0, "a label is cut off"
                assert label.bounding_box()["x"] + label.bounding_box()["width"] <= width
        ticks = tab.locator(".chart").first.locator(".ytick text").all_text_contents()
        assert ticks[0] == "0"
        assert "10,000" in ticks
        assert tab.evaluate(CONTRAST) == []
        ground = "rgb(16, 21, 28)" if theme == "dark" else "rgb(245, 246, 248)"
        assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == ground
        tab.emulate_media(media="print")
        tab.add_style_tag(content="body { width: 340px }")
        assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        place, drawing = (tab.locator(which).first.bounding_box() for which in (".chart", ".chart .main-svg"))
        assert drawing["width"] <= place["width"], "on paper the drawing is scaled"


@pytest.mark.slow
def test_the_table_is_sorted_by_keyboard_and_its_head_stays(
    warehouse: duckdb.DuckDBPyConnection, browser: Any, tmp_path: Path
) -> None:
    with opened(browser, tmp_path / "page.html", page(warehouse)) as tab:
        tab.keyboard.press("Tab")
        assert tab.evaluate("document.activeElement.className") == "trust"
        outline = "getComputedStyle(document.activeElement).outlineStyle"
        assert tab.evaluate(outline) == "solid"
        first = tab.locator(".rows tbody tr td:nth-child(2)").first
        tab.get_by_role("button", name="revenue, USD").focus()
        assert tab.evaluate(outline) == "solid"
        tab.keyboard.press("Enter")
        greatest = float(first.inner_text().replace(",", ""))
        tab.keyboard.press("Enter")
        assert float(first.inner_text().replace(",", "")) < greatest
        assert tab.locator("th[aria-sort=ascending]").inner_text() == "revenue, USD"
        above = tab.evaluate(
            "() => { const box = document.querySelector('.scroll'); box.scrollTop = 400; return box.scrollTop"
            " && box.querySelector('th').getBoundingClientRect().y - box.getBoundingClientRect().y; }"
        )
        assert above == pytest.approx(0, abs=1)


@pytest.mark.slow
def test_hostile_names_are_text_and_long_ones_fit(
    warehouse: duckdb.DuckDBPyConnection, browser: Any, tmp_path: Path
) -> None:
    bad = "</script><script>document.title='taken'</script>'\"&amp; " + "긴 이름 " * 30
    warehouse.execute("update marts.agg_daily_sales set category = ? where category = 'Toys'", [bad])
    dashboard = content(title=bad, table={"title": bad, "columns": ["category", "total_orders"], "limit": 500})
    dashboard["charts"][0] |= {"x": "category", "title": bad, "unit": bad}
    dashboard["kpis"][0] |= {"label": bad, "unit": bad}
    with opened(browser, tmp_path / "page.html", page(warehouse, dashboard), width=360) as tab:
        assert tab.locator("h1").inner_text() == bad.strip()
        assert tab.title().startswith("</script><script>document.title='taken'")
        assert tab.locator(".bars th").all_inner_texts().count(bad.strip()) == 1
        assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "scrolls sideways"
        assert tab.evaluate("document.scripts.length") == 4, "data, library twice (packed and run), page"


@pytest.mark.slow
def test_ten_thousand_days(warehouse: duckdb.DuckDBPyConnection, browser: Any, tmp_path: Path) -> None:
    warehouse.execute("delete from marts.agg_daily_sales")
    warehouse.execute(
        "insert into marts.agg_daily_sales select date '2026-11-20' - cast(d as integer), 'Books', 'Seoul', 'VIP',"
        " 20 + d % 9, 40, 1000 + d % 700, 5 from range(10000) as days(d)"
    )
    dashboard = content()
    dashboard["charts"][0]["last"], dashboard["table"]["limit"] = 10_000, 3_000
    html = page(warehouse, dashboard)
    assert len(html.encode()) < 6_000_000
    with opened(browser, tmp_path / "page.html", html) as tab:
        assert tab.evaluate("document.querySelector('.chart').data[0].x.length") == 10_000
        assert tab.locator(".rows tbody tr").count() == 3_000
        tab.get_by_role("button", name="day").click()
        tab.get_by_role("button", name="day").click()
        assert tab.locator(".rows tbody td").first.inner_text() == "2018-09-04"


def test_figures_are_those_of_the_warehouse(warehouse: duckdb.DuckDBPyConnection) -> None:
    html = page(warehouse)
    (revenue, profit, orders), *_ = warehouse.execute(
        "select sum(total_revenue), sum(total_profit), sum(total_orders) from marts.agg_daily_sales"
        " where order_date = date '2026-11-20'"
    ).fetchall()
    assert f'title="{number(revenue, "USD")}"' in html
    assert f'title="{number(orders)}"' in html
    assert f'title="{number(100 * float(profit) / float(revenue), "%")}"' in html, "a ratio of sums, times 100"
    for column in ("category", "region", "customer_segment"):
        found = warehouse.execute(
            f"select sum(total_revenue) from marts.agg_daily_sales where order_date > date '2026-10-21' group by {column}"
        ).fetchall()
        assert all(f'title="{number(value, "USD")}"' in html for (value,) in found)
    assert html.count("22 Oct 2026 – 20 Nov 2026") == 3
    assert ">(none)</th>" in html, "sales without a region are a bar of their own"


def test_the_foot_says_where_the_figures_come_from(warehouse: duckdb.DuckDBPyConnection) -> None:
    text = " ".join(re.sub(r"<[^>]*>", " ", page(warehouse).partition("<footer")[2]).split())
    assert "1 of 2 checks passed, score 0.500. 17 rows wait in quarantine: millrace quarantine list" in text
    assert "marts.agg_daily_sales 1,600 12 2026-11-21 06:00 UTC built 1 of 2 passed" in text
    assert "between(profit_margin_pct): 3 rows are not between -100 and 100" in text
    assert "bronze.orders 9,000 9 2026-11-21 06:00 UTC equal to the source, every row none 17 waiting" in text


def test_an_empty_asset_makes_a_page_that_says_so(
    warehouse: duckdb.DuckDBPyConnection, browser: Any, tmp_path: Path
) -> None:
    warehouse.execute("delete from marts.agg_daily_sales")
    html = page(warehouse)
    assert html.count("No rows yet.") == 7
    assert "marts.agg_daily_sales is empty: figures appear here with its first rows" in html
    assert html.count("no figure yet") == 4
    assert len(html) < 50_000, "nothing to draw needs no library"


@pytest.mark.parametrize(
    ("gone", "text"),
    [
        ("false", "vs the day before"),
        ("order_date = date '2026-11-19'", "vs 18 Nov 2026"),
        ("order_date < date '2026-11-20'", "nothing to compare with"),
    ],
)
def test_a_change_names_what_it_is_against(warehouse: duckdb.DuckDBPyConnection, gone: str, text: str) -> None:
    warehouse.execute(f"delete from marts.agg_daily_sales where {gone}")
    assert page(warehouse).count(text) == 4


@pytest.mark.slow
def test_what_is_no_number_is_a_dash_and_a_gap(
    warehouse: duckdb.DuckDBPyConnection, browser: Any, tmp_path: Path
) -> None:
    warehouse.execute("alter table marts.agg_daily_sales alter total_revenue type double")
    for day, value in (("2026-11-20", "nan"), ("2026-11-10", "inf"), ("2026-11-09", "-inf")):
        warehouse.execute(f"update marts.agg_daily_sales set total_revenue = '{value}' where order_date = date '{day}'")
    warehouse.execute("update marts.agg_daily_sales set region = null, customer_segment = ''")
    html = page(warehouse)
    assert '<p class="value" title="–">–</p>' in html
    assert not re.search(r"\b(nan|inf)\b", html.partition("<script")[0].partition("<main>")[2], re.IGNORECASE)
    with opened(browser, tmp_path / "page.html", html) as tab:
        assert tab.evaluate("document.querySelector('.chart').data[0].y.filter((y) => y === null).length") == 3


def test_a_day_with_several_times_is_one_day(warehouse: duckdb.DuckDBPyConnection) -> None:
    before = re.findall(r'<p class="value" title="([^"]*)"', page(warehouse))
    warehouse.execute("alter table marts.agg_daily_sales alter order_date type timestamp")
    warehouse.execute(
        "update marts.agg_daily_sales set order_date = order_date + interval 7 hour where region = 'Seoul'"
    )
    assert re.findall(r'<p class="value" title="([^"]*)"', page(warehouse)) == before


@pytest.mark.parametrize(("agg", "shown"), [("count", "24"), ("count_distinct", "4"), ("max", "34"), ("avg", "26.25")])
def test_other_aggregates(warehouse: duckdb.DuckDBPyConnection, agg: str, shown: str) -> None:
    kpi = {"label": "Figure", "measure": "category" if agg.startswith("count") else "total_orders", "agg": agg}
    found = re.findall(r'<p class="value" title="([^"]*)"', page(warehouse, content(kpis=[kpi])))
    assert found == [shown]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (7241, "7,241"),
        (12_400_000, "12.4 M"),
        (99.5, "99.50"),
        (-125000, "−125,000"),
        (None, "–"),
        (0, "0"),
        (1999.6, "2,000"),
    ],
)
def test_short_figures(value: float | None, text: str) -> None:
    assert short(value) == text
