"""Small projects for the crash tests, their real command line, and what a test may say about their state.

What is compared is read here by other code than Millrace's: Delta logs as JSON, files by DuckDB, tables by SQL.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import psycopg
import pytest
from psycopg import sql
from tests import forked

from millrace.app import open_house
from millrace.app.scaffold import init_project
from millrace.templates.shop_source import fill
from millrace.testing.servers import PostgresServer

ORDERS = 600
SECONDS = 240
END = dt.datetime.now(dt.UTC).date()

CHANGES = f"""
update orders set status = 'cancelled', updated_at = '{END} 00:00:00+00' where order_id % 7 = 0;
insert into orders select order_id + 100000, customer_id, product_id, order_date, amount, quantity, ' Shipped ',
  '{END} 00:00:01+00' from orders where order_id % 50 = 0;
update customers set region = 'Moved' where customer_id % 5 = 0;
delete from customers where customer_id = 1;
"""

COPIES = """
from: shop_db
to: bronze
defaults: {mode: incremental, cursor: updated_at, segment_rows: 200}
tables:
  orders: {key: order_id}
"""

DBT = {
    "models/sources.yml": "sources:\n  - name: silver\n    tables:\n      - name: orders\n",
    "models/marts/fct_versions.sql": """
{{ config(materialized='incremental', incremental_strategy='append') }}
-- Every version of an order that was ever loaded: an attempt that is applied twice shows.
select order_id, order_date, amount, status, _millrace_seq as load_seq from {{ source('silver', 'orders') }}
{% if is_incremental() %} where _millrace_seq > (select max(load_seq) from {{ this }}) {% endif %}
""",
    "models/marts/agg_days.sql": """
select order_date, count(*) as orders, sum(amount) as revenue from {{ ref('fct_versions') }} group by order_date
""",
    "models/marts/marts.yml": "models:\n  - name: fct_versions\n    columns:\n"
    "      - {name: order_id, data_tests: [not_null]}\n",
}

PAGE = """
title: Days
asset: marts.agg_days
date: order_date
kpis: [{label: Revenue, measure: revenue, unit: USD}]
charts: [{title: Revenue by day, kind: line, x: order_date, y: revenue, unit: USD, last: 90}]
"""


@dataclass
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def all(self) -> str:
        return self.out + self.err


def _environment(more: Mapping[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MILLRACE_", "PG"))}
    return {**kept, "NO_COLOR": "1", "COLUMNS": "120", **more}


class Child:
    """A running command, in a session of its own so that what it leaves behind can be found."""

    def __init__(self, folder: Path, arguments: tuple[str, ...], environment: Mapping[str, str]) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", "millrace", *arguments],
            cwd=folder,
            env=_environment(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def paused(self) -> Child:
        """Wait until it has stopped itself."""
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            raise AssertionError(f"it ended instead of pausing: {status}\n{self.process.communicate()}")
        return self

    def signal(self, number: signal.Signals, *, group: bool = False) -> None:
        (os.killpg if group else os.kill)(self.pid, number)

    def end(self) -> Done:
        out, err = self.process.communicate(timeout=SECONDS)
        return Done(self.process.returncode, out, err)

    def over(self) -> None:
        """End it however it is, so that a failing test leaves nothing behind."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def resumed(self) -> Done:
        self.signal(signal.SIGCONT)
        return self.end()

    def strays(self) -> list[str]:
        """What still runs of its session, of its children, or in its folder; a session's name says nothing of dbt's."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, parent, _, session = stat.read_text().rpartition(")")[2].split()[:4]
                place = stat.with_name("cwd").readlink()
                line = stat.with_name("cmdline").read_text().replace("\0", " ")
            except OSError:
                continue
            ours = str(self.pid) in (session, parent) or place.is_relative_to(self.folder)
            if ours and state != "Z":
                found.append(line)
        return found


@dataclass
class House:
    """A project folder and its source database."""

    folder: Path
    url: str
    children: list[Child] = field(default_factory=list)

    def start(self, *arguments: str, **environment: str) -> Child:
        self.children.append(Child(self.folder, arguments or ("run",), {"SHOP_DB_URL": self.url, **environment}))
        return self.children[-1]

    def run(self, *arguments: str, **environment: str) -> Done:
        arguments = arguments or ("run",)
        env = _environment({"SHOP_DB_URL": self.url, **environment})
        done = forked.run(arguments, cwd=self.folder, env=env, timeout=SECONDS)
        return Done(done.returncode, done.stdout, done.stderr)

    def ok(self, *arguments: str, **environment: str) -> str:
        done = self.run(*arguments, **environment)
        assert done.code == 0, done.all
        return done.out

    def again(self, *select: str, resume: str | None = None) -> dict[str, str]:
        """One more run, in this process: what it costs to start one is paid once. Returns how each step ended."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SHOP_DB_URL", self.url)
            with open_house(self.folder) as house:
                result = house.run(house.plan(select), resume=resume, show_as="silent")
        assert result.status == "done", [(step.key, step.status, step.message) for step in result.steps]
        return {step.key: f"{step.status}" for step in result.steps}

    def source(self, query: str) -> list[tuple[Any, ...]]:
        return ask(self.url, query)

    def journal(self, query: str) -> list[tuple[Any, ...]]:
        with sqlite3.connect(self.folder / ".millrace/state.db") as connection:
            return connection.execute(query).fetchall()

    def reached(self) -> str:
        """The step that the last run began last."""
        query = "select key from steps where started is not null order by started desc, position desc limit 1"
        return str(self.journal(query)[0][0])

    def last_run(self) -> str:
        return str(self.journal("select id from runs order by started desc limit 1")[0][0])

    # state

    def state(self) -> dict[str, Any]:
        """Every row of every asset, in order, and the number of each asset's last publish."""
        found: dict[str, Any] = {}
        for table in sorted(self.folder.glob("lake/*/*")):
            files = [str(table / name) for name in live_files(table)]
            found[f"lake {table.parent.name}.{table.name}"] = parquet_rows(files)
            found[f"lake {table.parent.name}.{table.name} seqs"] = seqs(table)
        if (self.folder / "warehouse/CURRENT").exists():
            found |= warehouse_rows(published(self.folder / "warehouse"))
        for page in sorted(self.folder.glob("pages/*.html")):
            found[f"page {page.name}"] = re.sub(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d[\d:.+Z]*", "(time)", page.read_text())
            ledger = json.loads((page.parent / ".millrace" / f"{page.stem}.json").read_text())
            found[f"page {page.name} seq"] = ledger["seq"]
        found |= postgres_rows(self.url)
        return found

    def rows(self, layer: str, name: str) -> list[dict[str, Any]]:
        """The rows of a lake asset."""
        table = self.folder / "lake" / layer / name
        with duckdb.connect() as connection:
            relation = connection.read_parquet([str(table / file) for file in live_files(table)], union_by_name=True)
            return [dict(zip(relation.columns, row, strict=True)) for row in relation.fetchall()]

    def leftovers(self) -> list[str]:
        """Whatever a run leaves that no published version needs."""
        folder = self.folder
        found = [*folder.glob("lake/*/*/_millrace/stages/*"), *folder.glob(".millrace/scratch/*")]
        for table in folder.glob("lake/*/*"):
            named = mentioned_files(table)
            data = [*table.glob("*.parquet"), *table.glob("*=*/**/*.parquet")]
            found += [path for path in data if str(path.relative_to(table)) not in named]
            loads = [path for path in table.glob("_millrace/loads/*") if path.name.startswith(".")]
            found += [*loads, *table.glob("_delta_log/*.tmp"), *table.glob("_delta_log/_commit_*")]
        root = folder / "warehouse"
        if root.exists():
            chain = published_chain(root)
            found += [path for path in root.iterdir() if path.is_dir() and path.name not in chain]
            found += [path for name in chain for path in (root / name).iterdir() if path.name not in KEPT_FILES]
            found += list(root.glob("*.tmp"))
        found += [*folder.glob("pages/.millrace/stage/*"), *folder.glob("pages/.millrace/.*.json.*")]
        return [str(path.relative_to(folder)) for path in found] + stages_in(self.url)


KEPT_FILES = {"warehouse.duckdb", "stage.json", ".owner"}


def ask(url: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(query)
        return cursor.fetchall() if cursor.description else []


def commits(table: Path) -> Iterator[dict[str, Any]]:
    for commit in sorted((table / "_delta_log").glob("*.json")):
        for line in commit.read_text().splitlines():
            yield json.loads(line)


def live_files(table: Path) -> list[str]:
    live: set[str] = set()
    for action in commits(table):
        if "remove" in action:
            live.discard(action["remove"]["path"])
        if "add" in action:
            live.add(action["add"]["path"])
    return sorted(live)


def mentioned_files(table: Path) -> set[str]:
    return {action[kind]["path"] for action in commits(table) for kind in ("add", "remove") if kind in action}


def seqs(table: Path) -> list[int]:
    """The numbers of the loads as the Delta commits carry them."""
    return [
        action["txn"]["version"]
        for action in commits(table)
        if "txn" in action and action["txn"]["appId"] == "millrace"
    ]


def parquet_rows(files: list[str]) -> list[tuple[Any, ...]]:
    with duckdb.connect() as connection:
        return ordered(connection.read_parquet(files, union_by_name=True)) if files else []


def ordered(relation: duckdb.DuckDBPyRelation) -> list[tuple[Any, ...]]:
    """All rows in the order of all columns, without what tells one load from another of the same rows."""
    names = sorted(name for name in relation.columns if not name.endswith(("loaded_at", "_load", "_run")))
    quoted = ", ".join(f'"{name}"' for name in names)
    return relation.project(quoted).order(quoted).fetchall()


def published(root: Path) -> Path:
    return root / (root / "CURRENT").read_text().strip() / "warehouse.duckdb"


def published_chain(root: Path) -> list[str]:
    """The published folder and the one before it."""
    if not (root / "CURRENT").exists():
        return []
    name = (root / "CURRENT").read_text().strip()
    base = json.loads((root / name / "stage.json").read_text())["base"]
    return [name, *([base] if base else [])]


def warehouse_rows(file: Path) -> dict[str, Any]:
    with duckdb.connect(str(file), read_only=True) as connection:
        tables = connection.execute(
            "select table_schema, table_name from information_schema.tables where table_schema <> '_millrace' order by all"
        ).fetchall()
        return {
            f"warehouse {schema}.{name}": ordered(connection.table(f'"{schema}"."{name}"')) for schema, name in tables
        }


def postgres_rows(url: str) -> dict[str, Any]:
    """The tables that a project copies into the schema `raw`."""
    with psycopg.connect(url, autocommit=True) as connection:
        names = connection.execute("select tablename from pg_tables where schemaname = 'raw' order by 1").fetchall()
        found: dict[str, Any] = {}
        for (name,) in names:
            query = sql.SQL("select r::text from {} as r order by 1").format(sql.Identifier("raw", name))
            found[f"postgres raw.{name}"] = connection.execute(query).fetchall()
        if names:
            found["postgres seqs"] = connection.execute("select name, seq from _millrace.ledger order by 1").fetchall()
            history = "select name, seq from _millrace.history order by 1, 2"
            found["postgres history"] = connection.execute(history).fetchall()
    return found


def stages_in(url: str) -> list[str]:
    """Stage tables, and rows of the table of stages and of their segments."""
    tables = "select relname from pg_class where relnamespace = to_regnamespace('_millrace_stage') and relkind = 'r'"
    found = [f"stage table {name}" for (name,) in ask(url, tables)]
    for name in ("stage", "segment"):
        if ask(url, f"select to_regclass('_millrace.{name}') is not null") == [(True,)]:
            found += [f"{name} row {row}" for row in ask(url, f"select * from _millrace.{name}")]
    return found


# making them


class Bases:
    """Projects as they are before a test: made once, then copied, database and all."""

    def __init__(self, server: PostgresServer, folder: Path) -> None:
        self._server = server
        self._folder = folder
        self._made: dict[tuple[str, bool], House] = {}
        self._states: dict[tuple[str, bool], dict[str, Any]] = {}

    def base(self, kind: str, *, ran: bool) -> House:
        """Return a project of a kind that never ran, or that ran once."""
        key = (kind, ran)
        if key not in self._made and ran:
            house = self._copied(self.base(kind, ran=False), self._folder / f"{kind}-ran")
            house.again()
            self._made[key] = house
        elif key not in self._made:
            house = House(self._folder / kind, self._database(None))
            with psycopg.connect(house.url, autocommit=True) as connection:
                fill(connection, orders=3000 if kind == "shop" else ORDERS, end=END)
            KINDS[kind](house.folder)
            house.ok("validate")  # dbt's graph is in the cache from here on
            self._made[key] = house
        return self._made[key]

    @contextmanager
    def copy(self, kind: str, folder: Path, *, ran: bool) -> Iterator[House]:
        """Give a test a project of its own."""
        house = self._copied(self.base(kind, ran=ran), folder / kind)
        try:
            yield house
        finally:
            for child in house.children:
                child.over()
            self._drop(house.url)

    def undisturbed(self, kind: str, *, changed: bool) -> dict[str, Any]:
        """Return what runs that nobody disturbs end in: the first, or a second one after `CHANGES`."""
        key = (kind, changed)
        if key not in self._states:
            base = self.base(kind, ran=True)
            if changed:
                base = self._copied(base, self._folder / f"{kind}-changed")
                base.source(CHANGES)
                base.again()
            self._states[key] = base.state()
        return self._states[key]

    def _copied(self, base: House, folder: Path) -> House:
        shutil.copytree(base.folder, folder)
        return House(folder, self._database(base.url.rpartition("/")[2]))

    def _database(self, template: str | None) -> str:
        name = f"t_{uuid.uuid4().hex[:12]}"
        with psycopg.connect(self._server.url(), autocommit=True) as connection:
            text = sql.SQL("create database {} template {}").format(
                sql.Identifier(name), sql.Identifier(template or "template1")
            )
            for attempt in range(50):  # sessions of the template's last run may be ending
                try:
                    connection.execute(text)
                    break
                except psycopg.errors.ObjectInUse:
                    if attempt == 49:
                        raise
                    time.sleep(0.1)
        return self._server.url(name)

    def _drop(self, url: str) -> None:
        with psycopg.connect(self._server.url(), autocommit=True) as connection:
            name = sql.Identifier(url.rpartition("/")[2])
            connection.execute(sql.SQL("drop database if exists {} with (force)").format(name))


def _lake(folder: Path) -> None:
    init_project(folder, "ecommerce")
    for name in ("dbt", "checks", "dashboards"):
        shutil.rmtree(folder / name)
    for file in folder.glob("models/silver/*.*"):
        if file.stem not in ("orders", "customers"):
            file.unlink()
    (folder / "copies/clickstream.yaml").unlink()
    (folder / "copies/shop_db.yaml").write_text(COPIES + "  customers: {key: customer_id, mode: full}\n")


def _dbt(folder: Path) -> None:
    _lake(folder)
    for file in folder.glob("models/silver/customers.*"):
        file.unlink()
    (folder / "copies/shop_db.yaml").write_text(COPIES)
    whole = folder.with_name(folder.name + "_whole")
    init_project(whole, "ecommerce")
    shutil.move(whole / "dbt", folder / "dbt")
    shutil.rmtree(whole)
    for name in ("models", "snapshots", "tests"):
        shutil.rmtree(folder / "dbt" / name)
    for name, text in DBT.items():
        (folder / "dbt" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "dbt" / name).write_text(text)
    (folder / "checks").mkdir()
    (folder / "checks/marts.yaml").write_text("marts.agg_days:\n  row_count: {min: 1}\n  unique: [order_date]\n")
    (folder / "dashboards").mkdir()
    (folder / "dashboards/days.yaml").write_text(PAGE)


def _postgres(folder: Path) -> None:
    _lake(folder)
    shutil.rmtree(folder / "models")
    text = COPIES.replace("to: bronze", "to: shop_db.raw") + "  customers: {key: customer_id, mode: full}\n"
    (folder / "copies/shop_db.yaml").write_text(text)


def _shop(folder: Path) -> None:
    init_project(folder, "ecommerce")


KINDS = {"shop": _shop, "lake": _lake, "dbt": _dbt, "postgres": _postgres}
