"""Each bug of the documents' samples that touches this shop: their logic on the same data goes wrong, ours does not.

The samples' SQL is run in DuckDB or PostgreSQL as the documents have it; ours is what the template runs. Which test holds
which bug, and which bugs touch nothing here, is a table in docs/explanation/samples.md.
"""

from __future__ import annotations

import datetime as dt
import json
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import psycopg
import pytest

from millrace.app import init_project, open_house
from millrace.transform.dbt import graph

from .conftest import Shop
from .house import Bases, live_files
from .marts import BRONZE, Marts, dimensions, make_silver, orders

D, NEXT, THIRD = dt.date(2026, 3, 9), dt.date(2026, 3, 10), dt.date(2026, 3, 11)
COLUMNS = "order_id, customer_id, product_id, order_date, amount, quantity, status, updated_at"


# --- the samples ---------------------------------------------------------------------------------------------------


class Sample:
    """The documents' daily pipeline: an extract per day, one folder per day, and their incremental fct_orders."""

    def __init__(self) -> None:
        self.duck = duckdb.connect()
        self.duck.execute("set timezone = 'UTC'")
        self.duck.execute(
            "create table source(order_id bigint, customer_id bigint, product_id bigint, order_date date,"
            " amount decimal(12, 2), quantity int, status text, updated_at timestamptz);"
            "create table customers(customer_id bigint, customer_name text);"
            "create table silver as select *, null::date as ds from source;"
            "create table daily(order_date date, order_count bigint, revenue decimal(38, 2));"
            "create table fct_orders(order_id bigint, order_date date, customer_name text, order_amount decimal(12, 2),"
            " status text)"
        )

    def run(self, shop: Shop, day: dt.date) -> None:
        """Run for one day, with the source as it is now: at 06:00 of the day after."""
        self.duck.execute("delete from source; delete from customers")
        self.duck.executemany(
            "insert into source values (?, ?, ?, ?, ?, ?, ?, ?)", shop.source(f"select {COLUMNS} from orders")
        )
        self.duck.executemany(
            "insert into customers values (?, ?)", shop.source("select customer_id, customer_name from customers")
        )
        self.duck.execute("insert into silver select *, ? from source where cast(updated_at as date) = ?", [day, day])
        self.duck.execute(
            "insert into daily select order_date, count(order_id), sum(amount) from silver"
            " where ds = ? and order_date = ? group by order_date",
            [day, day],
        )
        self.duck.execute(
            "insert into fct_orders select order_id, order_date, customer_name, amount, status"
            " from silver left join customers using (customer_id)"
            " where order_id is not null and amount > 0"
            " and order_date > (select coalesce(max(order_date), date '0001-01-01') from fct_orders)"
        )

    def ask(self, query: str) -> list[tuple[Any, ...]]:
        return self.duck.execute(query).fetchall()


@dataclass
class Story:
    """What became of 300 orders of one day: in the samples' tables, and in ours after each of two runs."""

    shop: Shop
    sample: Sample
    first: dict[str, Any] = field(default_factory=dict)


def run(shop: Shop, day: dt.date) -> dict[str, str]:
    """Run ours at the hour at which the documents run theirs."""
    return shop.statuses("run", "--select", "+marts.*", "--at", f"{day + dt.timedelta(days=1)}T06:00:00Z", "--json")


@pytest.fixture(scope="module")
def story(bases: Bases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """300 orders of one day D: 100 stay as they are, 100 are touched after midnight, 100 come in late.

    Both pipelines run at 06:00 of the next day, and again a day later. The database speaks Korean time.
    """
    with bases.copy("shop", tmp_path_factory.mktemp("story"), ran=False) as house:
        shop = Shop(house.folder, house.url)
        name = house.url.rpartition("/")[2]
        shop.source(f"truncate orders, customers, products; alter database {name} set timezone = 'Asia/Seoul'")
        shop.source(
            "insert into customers select i, 'Customer ' || i, 'VIP', 'Seoul', '2026-01-01' from generate_series(1, 9) i;"
            "insert into products select i, 'Product ' || i, 'Toys', 2, '2026-01-01' from generate_series(1, 3) i"
        )
        row = "insert into orders select i, {customer}, 1 + i % 3, '{day}', 10, 2, 'pending', '{at}' from generate_series({first}, {last}) i"
        shop.source(row.format(customer="1 + i % 9", day=D, at=f"{D} 20:00+00", first=1, last=100))
        shop.source(row.format(customer="10", day=D, at=f"{NEXT} 00:30+00", first=101, last=200))
        found = Story(shop, Sample())
        found.sample.run(shop, D)
        run(shop, D)
        found.first = {
            "loaded_at": shop.ask(
                "select min(loaded_at), max(loaded_at) from staging.stg_orders where order_id <= 100"
            ),
            "unknown": shop.ask("select count(*) from marts.fct_orders where customer_name = '(unknown)'"),
        }
        # the second day: late ones of D come in, some of D are cancelled, the unknown customer arrives, one is renamed
        shop.source(row.format(customer="1 + i % 9", day=D, at=f"{NEXT} 09:00+00", first=201, last=300))
        shop.source(row.format(customer="1 + i % 9", day=NEXT, at=f"{NEXT} 10:00+00", first=301, last=350))
        shop.source(f"update orders set status = 'cancelled', updated_at = '{NEXT} 11:00+00' where order_id <= 20")
        shop.source("insert into customers values (10, 'Ten', 'VIP', 'Seoul', '2026-03-10 08:00+00')")
        shop.source(
            "update customers set customer_name = 'Renamed', updated_at = '2026-03-10 12:00+00' where customer_id = 1"
        )
        found.sample.run(shop, NEXT)
        run(shop, NEXT)
        yield found


@pytest.mark.servers
@pytest.mark.slow
def test_no_order_is_lost(story: Story) -> None:
    """S2-1, S2-2, S2-17: the samples count 100 of 300 orders for good, in both tables; ours has all of them."""
    shop, sample = story.shop, story.sample
    assert sample.ask(f"select order_count from daily where order_date = '{D}'") == [(100,)]
    assert sample.ask(f"select count(*) from fct_orders where order_date = '{D}'") == [(100,)]
    for table, count in {
        "marts.fct_orders": "count(*)",
        "silver.daily_sales": "sum(order_count)",
        "silver.customer_segments": "sum(orders)",
        "marts.agg_daily_sales": "sum(total_orders)",
    }.items():
        assert shop.ask(f"select {count} from {table} where order_date = '{D}'") == [(300,)], table
    assert shop.totals() == shop.source_totals()


@pytest.mark.servers
@pytest.mark.slow
def test_changes_and_late_customers_reach_the_facts(story: Story) -> None:
    """S2-2: theirs keeps the first status for good, and a customer who came late stays null."""
    shop, sample = story.shop, story.sample
    assert sample.ask("select count(*) from fct_orders where status = 'cancelled'") == [(0,)]
    assert shop.ask("select count(*) from marts.fct_orders where status = 'cancelled'") == [(20,)]

    assert sample.ask("select count(*) from silver where customer_id = 10 and ds = '2026-03-10'") == [(100,)]
    assert sample.ask("select count(*) from fct_orders where customer_name = 'Ten'") == [(0,)]
    assert story.first["unknown"] == [(100,)], "unknown orders are kept, and named later"
    assert shop.ask("select count(*) from marts.fct_orders where customer_name = 'Ten'") == [(100,)]


@pytest.mark.servers
@pytest.mark.slow
def test_a_day_is_the_same_in_every_time_zone(story: Story) -> None:
    """S2-3: `DATE(updated_at) = ds` counts another day's rows in another session; our copy of them holds instants."""
    shop = story.shop
    counted = f"select count(*) from orders where date(updated_at) = '{NEXT}'"
    with psycopg.connect(shop.url) as connection:
        seoul = connection.execute(counted.encode()).fetchone()
        connection.execute("set timezone = 'UTC'")
        utc = connection.execute(counted.encode()).fetchone()
    assert seoul != utc
    ours = (
        f"select count(*) from silver.orders where updated_at >= '{NEXT} 00:00+00' and updated_at < '{THIRD} 00:00+00'"
    )
    assert shop.ask(ours) == [utc] == [(270,)], "the instants that were written"


@pytest.mark.servers
@pytest.mark.slow
def test_loaded_at_is_when_a_row_was_loaded(story: Story) -> None:
    """S2-12: theirs is the time of the query; ours stays until the row is loaded again."""
    with duckdb.connect() as sample:
        sample.execute("create view stg_orders as select 1 as order_id, get_current_timestamp() as loaded_at")
        query = "select loaded_at from stg_orders"
        assert sample.execute(query).fetchone() != sample.execute(query).fetchone()
    shop, before = story.shop, story.first["loaded_at"]
    unchanged = "select min(loaded_at), max(loaded_at) from staging.stg_orders where order_id between 21 and 100"
    assert shop.ask(unchanged) == shop.ask(unchanged) == before
    again = shop.ask("select min(loaded_at) from staging.stg_orders where order_id <= 20")
    assert again[0][0] > before[0][1]


@pytest.mark.servers
@pytest.mark.slow
def test_a_small_day_is_a_day(story: Story) -> None:
    """S2-17: 1,000 rows at least, says their suite of every day; ours published a day of 50 orders."""
    per_day = story.shop.ask("select order_date, count(*) from silver.orders group by 1 order by 1")
    assert per_day == [(D, 300), (NEXT, 50)]
    assert not any(1000 <= count <= 10_000_000 for _, count in per_day)


@pytest.mark.servers
@pytest.mark.slow
def test_a_renamed_customer_has_two_versions(story: Story) -> None:
    """Snapshots carry on from run to run: each run builds in a clone of the last warehouse."""
    assert story.shop.ask(
        "select customer_name, dbt_valid_to is null from snapshots.customers where customer_id = 1 order by dbt_valid_from"
    ) == [("Customer 1", False), ("Renamed", True)]


@pytest.mark.servers
@pytest.mark.slow
def test_readers_never_see_half_a_table(bases: Bases, tmp_path: Path) -> None:
    """S2-4: `overwrite` of a path empties it first; a job that dies leaves nothing. Ours is one commit."""
    theirs = tmp_path / "silver" / "customers"
    theirs.mkdir(parents=True)
    (theirs / "part-0.parquet").write_bytes(b"old")

    def overwrite(parts: Iterator[bytes]) -> None:
        shutil.rmtree(theirs)
        theirs.mkdir()
        for number, part in enumerate(parts):
            (theirs / f"part-{number}.parquet").write_bytes(part)

    def dying() -> Iterator[bytes]:
        yield b"half of the new"
        raise ConnectionError

    with pytest.raises(ConnectionError):
        overwrite(dying())
    assert [path.read_bytes() for path in theirs.iterdir()] == [b"half of the new"]

    with bases.copy("lake", tmp_path, ran=True) as house:
        before = house.rows("bronze", "customers")
        house.source("update customers set region = 'Moved'")
        done = house.run("run", "--select", "bronze.customers", MILLRACE_KILL_AT="lake.publish.before_commit")
        assert done.code == -9, done.all
        assert house.rows("bronze", "customers") == before
        house.again("bronze.customers")
        assert {row["region"] for row in house.rows("bronze", "customers")} == {"Moved"}


@pytest.mark.servers
@pytest.mark.slow
def test_a_row_lost_on_the_way_stops_the_publish(bases: Bases, tmp_path: Path) -> None:
    """S2-20: their job prints how many rows it wrote. Ours compares them with the source, row by row."""
    with bases.copy("lake", tmp_path, ran=False) as house:
        child = house.start("run", "--select", "bronze.orders", MILLRACE_PAUSE_AT="lake.prove").paused()
        (file, *_) = sorted((house.folder / "lake/bronze/orders").glob("*.parquet"))
        with duckdb.connect() as connection:
            whole = connection.execute("select count(*) from read_parquet(?)", [str(file)]).fetchone()
            short = f"copy (from read_parquet('{file}') where order_id <> 7) to '{file}.short' (format parquet)"
            written = connection.execute(short).fetchone()
        assert whole is not None
        assert written == (whole[0] - 1,), "theirs would say so, and end well"
        file.with_name(f"{file.name}.short").replace(file)
        done = child.resumed()
        assert done.code == 1
        assert "bronze.orders" in done.all
        assert live_files(house.folder / "lake/bronze/orders") == [], "nothing was published"


@pytest.mark.servers
@pytest.mark.slow
def test_a_gate_is_asked_before_anybody_sees_the_figures(bases: Bases, tmp_path: Path) -> None:
    """S2-9: their dbt writes where dashboards read, then the gate looks. Ours looks first, by the same rule."""
    rule = "total_revenue <= gross_revenue"
    revenue = "select sum(total_revenue) from marts.agg_daily_sales"
    with bases.copy("shop", tmp_path, ran=True) as house:
        shop = Shop(house.folder, house.url)
        assert rule in (shop.folder / "checks/marts.yaml").read_text()
        before, page = shop.ask(revenue), (shop.folder / "pages/daily_sales.html").read_bytes()
        theirs = Marts(tmp_path / "theirs")
        shutil.copyfile(shop.warehouse, theirs.file)
        model = shop.folder / "dbt/models/marts/agg_daily_sales.sql"
        good = model.read_text()
        model.write_text(good.replace("then order_amount end", "then order_amount * quantity end"))
        (shop.folder / "dbt/tests/assert_totals_agree.sql").unlink()  # dbt's own tests see nothing wrong

        shutil.copytree(shop.folder / "dbt", tmp_path / "dbt")
        done = theirs.plain_dbt(tmp_path / "dbt", "build", at=dt.datetime.now(dt.UTC))
        assert done.returncode == 0, done.stdout
        assert theirs.ask(revenue) > before, "a dashboard that is opened now shows this"
        assert theirs.ask(f"select count(*) from marts.agg_daily_sales where not {rule}") > [(0,)], (
            "their gate, too late"
        )

        seen = []
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(shop.run)
            while not running.done():
                seen.append(shop.ask(revenue))
                time.sleep(0.1)
        assert running.result().returncode == 1
        assert rule in running.result().stdout + running.result().stderr
        assert {*map(str, seen), str(shop.ask(revenue))} == {str(before)}, "nobody saw anything else at any time"
        assert (shop.folder / "pages/daily_sales.html").read_bytes() == page

        model.write_text(good)
        assert shop.statuses()["gate:marts.agg_daily_sales"] == "passed"
        assert shop.totals() == shop.source_totals()


@pytest.mark.servers
@pytest.mark.slow
def test_rows_are_counted_as_they_are_written(bases: Bases, tmp_path: Path) -> None:
    """S2-5: theirs counts the source again after the write, with what came meanwhile. Ours counts what it wrote."""
    with bases.copy("lake", tmp_path, ran=False) as house:
        child = house.start("run", "--select", "bronze.orders", "--json", MILLRACE_PAUSE_AT="lake.prove").paused()
        house.source(
            "insert into orders select 999999, customer_id, product_id, order_date, amount, quantity, status, updated_at"
            " from orders where order_id = 1"
        )
        done = child.resumed()
        assert done.code == 0, done.all
        (step,) = json.loads(done.out)["steps"]
        written = len(house.rows("bronze", "orders"))
        assert house.source("select count(*) from orders") == [(written + 1,)], "theirs would print this"
        assert step["rows"] == written


def test_totals_survive_their_dimensions() -> None:
    """S2-8, and where the documents contradict themselves: unknown products, the region, a segment's day."""
    with duckdb.connect() as duck:
        duck.execute("set timezone = 'UTC'")
        duck.execute(BRONZE)
        duck.execute(dimensions((1, 2, 3)) + "delete from bronze.products where product_id = 3;")
        duck.execute(orders(1, 60, f"{D}") + orders(61, 90, f"{NEXT}"))
        make_silver(duck)
        inner = "select count(*) from silver.orders join silver.products using (product_id)"
        assert duck.execute(inner).fetchone() == (60,), "theirs loses the orders of a product that nobody knows"
        with pytest.raises(duckdb.BinderException, match="region"):
            duck.execute(
                "select order_date, category, region, sum(amount) from silver.orders join silver.products"
                " using (product_id) group by all"
            )
        assert duck.execute("select sum(order_count) from silver.daily_sales").fetchone() == (90,)
        assert (
            duck.execute(
                "select sum(order_count) from silver.daily_sales where category = '(unknown)' or region = '(unknown)'"
            ).fetchone()
            == duck.execute("select count(*) from silver.orders where product_id = 3 or customer_id = 4").fetchone()
        )

        # a segment's day is the folder that their file lies in: read together, days cannot be told apart
        theirs = (
            "select customer_segment, count(*) as orders, sum(amount) as revenue from silver.orders"
            " left join silver.customers using (customer_id) where order_date = {} group by all"
        )
        days = " union all ".join(theirs.format(f"date '{day}'") for day in (D, NEXT))
        found = duck.execute(f"select customer_segment, count(*) from ({days}) group by all").fetchall()
        assert {count for _, count in found} == {2}
        ours = "select count(*), count(distinct (order_date, customer_segment)) from silver.customer_segments"
        assert duck.execute(ours).fetchone() == (6, 6)


def test_what_reads_comes_after_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S2-6, S2-10, S2-19: their aggregate runs beside what it reads, their selection leaves a layer out, their
    schemas get a prefix."""
    with duckdb.connect() as duck:
        duck.execute("set timezone = 'UTC'")
        duck.execute(BRONZE + dimensions() + orders(1, 50, f"{D}"))
        for name in ("customers", "products", "orders"):
            make_silver(duck, name)
        duck.execute(orders(51, 80, f"{NEXT}"))
        for name in ("daily_sales", "orders"):  # beside each other: the aggregate may well be first
            make_silver(duck, name)
        assert duck.execute("select sum(order_count) from silver.daily_sales").fetchone() == (50,)

    init_project(tmp_path / "shop", "ecommerce")
    monkeypatch.setenv("SHOP_DB_URL", "postgresql://localhost/nowhere")
    with open_house(tmp_path / "shop") as house:
        steps = [step.key for step in house.plan(["+marts.*"]).steps]
        needs = {step.key: {str(asset) for asset in step.inputs} for step in house.plan(()).steps}
        made = {str(asset) for step in house.plan(["marts.fct_orders"]).steps for asset in step.assets}
        cache = tmp_path / "shop/.millrace"
    assert steps.index("model:silver.orders") < steps.index("model:silver.daily_sales") < steps.index("dbt:shop")
    assert needs["model:silver.daily_sales"] == {"silver.orders", "silver.products", "silver.customers"}
    assert {"model:silver.customers", "model:silver.products"} <= {*steps}, "theirs reads these, and nothing makes them"

    project = tmp_path / "shop/dbt"
    (project / "macros/generate_schema_name.sql").unlink()
    theirs = graph(project, cache)
    assert {"main_staging", "main_marts"} <= {model.schema for model in theirs.models}
    selected = {model.asset for model in theirs.models if model.schema in ("main_staging", "main_marts")}
    (facts,) = [model for model in theirs.models if model.name == "fct_orders"]
    assert {str(asset) for asset in set(facts.inputs) - selected} == {"main_intermediate.int_order_items"}
    assert {"intermediate.int_order_items", "marts.dim_products", "staging.stg_orders"} <= made
