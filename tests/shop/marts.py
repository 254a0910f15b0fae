"""The template's own models without a source: its lake models run in DuckDB, its dbt project on the same file.

What Millrace adds on the way (the number and time of the load that brought a row) is added here by hand, so that a
day's changes cost one `dbt build` and no server.
"""

from __future__ import annotations

import datetime as dt
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb

import millrace.templates
from millrace.transform.dbt import DbtResult, build
from millrace.transform.dbt_process import DbtOptions

TEMPLATE = Path(next(iter(millrace.templates.__path__))) / "ecommerce"
SILVER = ("customers", "products", "orders", "daily_sales", "customer_segments")

BRONZE = """
create schema bronze;
create schema silver;
create table bronze.customers(
  customer_id bigint, customer_name text, customer_segment text, region text, updated_at timestamptz);
create table bronze.products(
  product_id bigint, product_name text, category text, unit_cost decimal(12, 2), updated_at timestamptz);
create table bronze.orders(
  order_id bigint, customer_id bigint, product_id bigint, order_date date, amount decimal(12, 2), quantity integer,
  status text, updated_at timestamptz);
"""


def make_silver(connection: duckdb.DuckDBPyConnection, *names: str) -> None:
    """Make some of the template's lake models, or all, from the connection's bronze tables."""
    for name in names or SILVER:
        text = (TEMPLATE / f"models/silver/{name}.sql").read_text()
        connection.execute(f"create or replace table silver.{name} as {text}")


class Marts:
    """A warehouse file in a folder, and the loads that filled it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "run"
        self.folder.mkdir(parents=True)
        self.cache = folder / "cache"
        self.seq = 0
        self.change(BRONZE)

    @property
    def file(self) -> Path:
        return self.folder / "warehouse.duckdb"

    def _connected(self, *, read_only: bool = False) -> duckdb.DuckDBPyConnection:
        connection = duckdb.connect(str(self.file), read_only=read_only)
        connection.execute("set timezone = 'UTC'")
        return connection

    def change(self, sql: str) -> None:
        """Change what came from the source."""
        with self._connected() as connection:
            connection.execute(sql)

    def load(self, at: dt.datetime) -> None:
        """Make the silver tables, as the warehouse holds them: unchanged rows keep the load that brought them."""
        self.seq += 1
        with self._connected() as connection:
            if self.seq == 1:
                make_silver(connection)
                for name in SILVER:
                    connection.execute(
                        f"alter table silver.{name} add column _millrace_seq bigint;"
                        f"alter table silver.{name} add column _millrace_loaded_at timestamptz"
                    )
            else:
                for name in SILVER:
                    connection.execute(f"create or replace table last_{name} as from silver.{name}")
                make_silver(connection)
                for name in SILVER:
                    columns = ", ".join(
                        f'"{row[0]}"' for row in connection.execute(f"describe silver.{name}").fetchall()
                    )
                    connection.execute(
                        f"create or replace table silver.{name} as from silver.{name} left join last_{name} using ({columns});"
                        f"drop table last_{name}"
                    )
            for name in SILVER:
                connection.execute(
                    f"update silver.{name} set _millrace_seq = $seq, _millrace_loaded_at = $at where _millrace_seq is null",
                    {"seq": self.seq, "at": at},
                )

    def build(self, at: dt.datetime, *, full_refresh: bool = False) -> DbtResult:
        """Build as a run at this logical time does, in a warehouse that the last one left."""
        self.load(at)
        moment = at.astimezone(dt.UTC).strftime("%Y-%m-%d %H:%M:%S")
        result = build(
            TEMPLATE / "dbt",
            self.folder,
            self.cache,
            DbtOptions(environment={"MILLRACE_LOGICAL_TIME": moment}, full_refresh=full_refresh),
        )
        result.check()
        return result

    def ask(self, query: str) -> list[tuple[Any, ...]]:
        with self._connected(read_only=True) as connection:
            return connection.execute(query).fetchall()

    def columns(self, table: str) -> list[str]:
        return [row[0] for row in self.ask(f"describe {table}")]

    def plain_dbt(self, copy: Path, *arguments: str, at: dt.datetime) -> subprocess.CompletedProcess[str]:
        """Run dbt itself in a copy of the template's folder, as somebody without Millrace does."""
        return subprocess.run(
            [str(Path(sys.executable).with_name("dbt")), *arguments],
            cwd=copy,
            env={
                **os.environ,
                "WAREHOUSE_FILE": str(self.file),
                "MILLRACE_LOGICAL_TIME": at.strftime("%Y-%m-%d %H:%M:%S"),
                "DBT_USE_COLORS": "false",
                "DBT_SEND_ANONYMOUS_USAGE_STATS": "false",
            },
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )


def orders(first: int, last: int, day: str, **more: str) -> str:
    """Return an INSERT of orders of one day; `more` sets other columns than plain ones, as SQL over `i`."""
    columns = {
        "order_id": "i",
        "customer_id": "1 + i % 4",
        "product_id": "1 + i % 3",
        "order_date": f"date '{day}'",
        "amount": "(20 + i % 10)::decimal(12, 2)",
        "quantity": "1 + i % 3",
        "status": "'pending'",
        "updated_at": f"timestamptz '{day} 12:00:00+00'",
        **more,
    }
    listed = ", ".join(f"{text} as {name}" for name, text in columns.items())
    return f"insert into bronze.orders select {listed} from range({first}, {last + 1}) as r(i);\n"


def dimensions(customers: Sequence[int] = (1, 2, 3), at: str = "2026-01-01") -> str:
    """Return INSERTs of some customers and of three products."""
    people = ", ".join(
        f"({i}, 'Customer {i}', '{('New', 'VIP')[i % 2]}', '{('Seoul', 'Busan')[i % 2]}', timestamptz '{at} 00:00:00+00')"
        for i in customers
    )
    return (
        f"insert into bronze.customers values {people};\n"
        "insert into bronze.products select i, 'Product ' || i, case when i = 1 then 'Books' else 'Toys' end,"
        f" i::decimal(12, 2), timestamptz '{at} 00:00:00+00' from range(1, 4) as r(i);\n"
    )
