"""The thin path end to end: PostgreSQL → bronze → silver → warehouse → dbt → gate → page."""

from __future__ import annotations

import json
import subprocess
import sys

import psycopg
import pytest

from millrace.templates.shop_source import BAD_ROWS

from .conftest import Shop

pytestmark = [pytest.mark.servers, pytest.mark.slow]


def test_to_a_page_then_nothing_then_only_what_changed(shop: Shop) -> None:
    first = shop.statuses()
    assert set(first.values()) <= {"published", "passed"}
    assert shop.totals() == shop.source_totals()
    page = (shop.folder / "pages" / "daily_sales.html").read_text()
    assert "Daily sales" in page
    assert "marts.agg_daily_sales" in page

    assert set(shop.statuses().values()) == {"fresh"}, "a second run does nothing"

    shop.source("update orders set status = 'cancelled', updated_at = now() where order_id between 100 and 104")
    shop.source(
        "insert into orders select order_id + 100000, customer_id, product_id, order_date, amount, quantity,"
        " status, now() from orders where order_id = 1"
    )
    changed = shop.statuses()
    assert changed["copy:bronze.orders"] == "published"
    assert changed["model:silver.orders"] == "published"
    assert changed["copy:bronze.products"] == "fresh"
    assert changed["load:silver.products"] == "fresh"
    assert changed["page:daily_sales"] == "published"
    assert shop.totals() == shop.source_totals()
    assert shop.ask("select count(*) from marts.fct_orders") == [(3001,)]


def test_incremental_facts_lose_nothing_over_several_runs(ran_shop: Shop) -> None:
    shop = ran_shop
    for turn in range(3):
        shop.source(
            f"update orders set quantity = quantity + 1, amount = amount + 1, updated_at = now() where order_id % 50 = {turn}"
        )
        shop.source(
            f"insert into orders select 200000 + {turn} * 1000 + order_id, 777000 + {turn}, product_id, order_date, amount,"
            " quantity, ' Shipped ', now() from orders where order_id <= 20"
        )
        shop.ok()
        assert shop.totals() == shop.source_totals()
    assert shop.ask("select count(*) from marts.fct_orders where customer_name = '(unknown)'")[0][0] >= 60
    # a customer that orders knew first arrives: the facts are repaired
    shop.source("insert into customers values (777000, 'Late', 'VIP', 'Seoul', now())")
    shop.ok()
    assert shop.ask("select distinct customer_name from marts.fct_orders where customer_id = 777000") == [("Late",)]
    incremental = shop.ask("select order_id, order_amount, status from marts.fct_orders order by 1")
    shop.ok("run", "--full-refresh")
    assert shop.ask("select order_id, order_amount, status from marts.fct_orders order by 1") == incremental


def test_a_transaction_that_commits_late_is_brought(ran_shop: Shop) -> None:
    shop = ran_shop
    with psycopg.connect(shop.url) as late:
        late.execute(
            "update orders set quantity = 99, amount = 99 * amount, updated_at = now() - interval '3 days'"
            " where order_id = 7"
        )
        with psycopg.connect(shop.url, autocommit=True) as other:
            other.execute(
                "update orders set quantity = 98, amount = 98 * amount, updated_at = now() where order_id = 8"
            )
        shop.ok()
        late.commit()
    shop.ok()
    assert shop.ask("select order_id, quantity from silver.orders where order_id in (7, 8) order by 1") == [
        (7, 99),
        (8, 98),
    ]


def test_a_failing_dbt_test_leaves_the_old_warehouse_and_page(ran_shop: Shop) -> None:
    shop = ran_shop
    before, page = shop.warehouse, (shop.folder / "pages/daily_sales.html").stat().st_mtime_ns
    totals = shop.totals()
    test = shop.folder / "dbt/tests/assert_never.sql"
    test.write_text("select * from {{ ref('fct_orders') }} limit 1\n")
    shop.source("update orders set amount = amount + 5, updated_at = now() where order_id = 3")
    failed = shop.run()
    assert failed.returncode == 1
    assert "assert_never" in failed.stdout + failed.stderr
    assert shop.warehouse == before
    assert shop.totals() == totals
    assert (shop.folder / "pages/daily_sales.html").stat().st_mtime_ns == page
    test.unlink()
    shop.ok()
    assert shop.totals() == shop.source_totals()


READER = """
import duckdb, sys
with duckdb.connect(sys.argv[1], read_only=True) as connection:
    print(connection.execute("select sum(total_orders) from marts.agg_daily_sales").fetchone()[0], flush=True)
    sys.stdin.readline()
    print(connection.execute("select sum(total_orders) from marts.agg_daily_sales").fetchone()[0], flush=True)
"""


def test_a_reader_neither_blocks_nor_is_blocked(ran_shop: Shop) -> None:
    shop = ran_shop
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, str(shop.warehouse)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert reader.stdout is not None
    first = reader.stdout.readline()
    for _ in range(3):  # more publishes than old folders are kept
        shop.source(
            "insert into orders select max(order_id) + 1, 1, 1, max(order_date), 5, 1, 'shipped', now() from orders"
        )
        shop.ok()
    out, _ = reader.communicate("\n", timeout=60)
    assert out == first
    assert shop.totals() == shop.source_totals()


def test_bad_orders_are_set_aside_with_their_reasons(shop: Shop) -> None:
    """Each kind of bad order that the synthetic shop has; what the source holds is in the asset or in quarantine."""
    with psycopg.connect(shop.url, autocommit=True) as connection:
        connection.execute(BAD_ROWS, {"orders": 3000, "bad": 5})
    assert shop.statuses("run", "--select", "+silver.orders", "--json")["model:silver.orders"] == "published"
    (entry,) = json.loads(shop.ok("quarantine", "list", "--json"))
    assert (entry["asset"], entry["open"]) == ("bronze.orders", 5)
    shown = shop.ok("quarantine", "show", "bronze.orders")
    for words in ("amount is 0", "amount is -", "quantity is 1000", "quantity is 0", "lost"):
        assert words in shown, shown
    assert "3,000 rows = 2,995 in bronze.orders + 5 in quarantine" in shop.ok("quarantine", "list")
    # a good order turns bad: its older version goes with it
    shop.source("update orders set quantity = 0, updated_at = now() where order_id = 1")
    shop.ok("run", "--select", "+silver.orders")
    assert shop.ok("query", "select count(*) as n from silver.orders", "--json").count("2994") == 1
    assert set(shop.statuses("run", "--select", "+silver.orders", "--json").values()) == {"fresh"}
