"""A warehouse with a year of sales, and a real browser."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import duckdb
import pytest

SALES = """
create schema marts;
create table marts.agg_daily_sales as
select date '2026-11-20' - cast(d as integer) as order_date, c.category, r.region, s.segment as customer_segment,
  cast(20 + (d * 7 + length(c.category) * 13) % 17 as bigint) as total_orders,
  cast(40 + (d * 5 + length(r.region) * 11) % 23 as bigint) as total_quantity,
  cast(1000 + (d * 37 + length(c.category) * 101) % 701 + 0.25 as decimal(38, 2)) as total_revenue,
  cast(-200 + (d * 37 + length(c.category) * 101) % 701 as decimal(38, 2)) as total_profit
from range(200) as days(d)
cross join (values ('Books'), ('Toys'), ('Garden'), ('<b>&"Ünï</script>')) as c(category)
cross join (values ('Seoul'), ('부산'), (null)) as r(region)
cross join (values ('VIP'), ('New')) as s(segment);
"""


@pytest.fixture
def warehouse() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect(":memory:") as connection:
        connection.execute(SALES)
        yield connection


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    path = next(
        (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
    )
    if path is None:
        if os.environ.get("CI"):
            pytest.fail("no Chromium: apt-get install chromium")
        pytest.skip("no Chromium: bring it with: apt-get install chromium")
    # node takes /tmp even where it may not write; Python looks further
    os.environ.setdefault("TMPDIR", tempfile.gettempdir())
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
        chromium = playwright.chromium.launch(executable_path=path, args=arguments)
        yield chromium
        chromium.close()
