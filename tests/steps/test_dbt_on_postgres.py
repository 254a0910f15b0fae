"""dbt on PostgreSQL behind views: hidden schemas, one publish, clones, what readers keep. Read here by plain SQL."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from millrace.app import open_house
from millrace.engine.records import RunResult
from millrace.errors import GateFailed, ProjectError
from millrace.testing.servers import PostgresServer

pytestmark = [pytest.mark.servers, pytest.mark.slow]

FILES = {
    "millrace.yaml": """\
version: 1
name: desk
layers: {staging: warehouse, marts: warehouse, snapshots: warehouse}
environments:
  dev:
    connections:
      src: {type: postgres, url: "${env:SRC}"}
      dwh: {type: postgres, url: "${env:DWH}"}
    warehouse: {type: postgres, connection: dwh}
""",
    "copies/src.yaml": "from: src\nto: dwh.raw_data\ntables:\n  trades: {key: id}\n",
    "checks/marts.yaml": "marts.dim_symbols: {between: {total: [0, 100000]}, unique: [symbol]}\n",
    "dbt/dbt_project.yml": """\
name: desk
version: "1.0"
profile: desk
models:
  desk:
    staging: {+schema: staging, +materialized: view}
    marts: {+schema: marts, +materialized: table}
snapshots:
  desk: {+schema: snapshots}
""",
    "dbt/macros/schema.sql": "{% macro generate_schema_name(name, node) -%} {{ (name or target.schema) | trim }} {%- endmacro %}",
    "dbt/models/sources.yml": "sources:\n  - name: raw_data\n    tables:\n      - name: trades\n",
    "dbt/models/staging/stg_trades.sql": "select id, symbol, price from {{ source('raw_data', 'trades') }}",
    "dbt/models/marts/dim_symbols.sql": "select symbol, count(*) as trades, sum(price)::numeric(12,2) as total from {{ ref('stg_trades') }} group by symbol",
    "dbt/models/marts/log.sql": """
{{ config(materialized='incremental', incremental_strategy='append') }}
select count(*) as trades from {{ ref('stg_trades') }}
""",
    "dbt/models/marts/marts.yml": """\
models:
  - name: dim_symbols
    columns: [{name: symbol, data_tests: [unique, not_null]}, {name: total, data_tests: [not_null]}]
""",
    "dbt/snapshots/snapshots.yml": """\
snapshots:
  - name: trades_seen
    relation: ref('stg_trades')
    config: {unique_key: id, strategy: check, check_cols: all, hard_deletes: invalidate}
""",
}
SOURCE = """
create table trades (id int primary key, symbol text, price numeric(12,2) not null);
insert into trades select i, 'S' || i % 3, i from generate_series(1, 30) as i;
"""


FRESH = {"copy:raw_data.trades": "fresh", "dbt:desk": "fresh", "gate:marts.dim_symbols": "fresh"}
SECRET = "ny3Kq-pass-word"
KILLED = -signal.SIGKILL


class Desk:
    """A project whose source and warehouse are two databases."""

    def __init__(self, folder: Path, source: str, warehouse: str) -> None:
        self.folder = folder
        self.source = source
        self.warehouse = warehouse
        self.environ = {"SRC": source, "DWH": warehouse.replace("@", f":{SECRET}@", 1)}  # the server asks for none
        for name, text in FILES.items():
            self.write(name, text)
        with psycopg.connect(source, autocommit=True) as connection:
            connection.execute(SOURCE)

    def write(self, name: str, text: str) -> None:
        """Write a file of the project."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def run(self, **more: Any) -> RunResult:
        """Run everything in this process; dbt has one of its own."""
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.environ.items():
                patch.setenv(name, value)
            with open_house(self.folder, **more) as house:
                return house.run(house.plan(), show_as="silent")

    def killed(self, point: str) -> int:
        """Run in a process that dies at a point; returns its exit code."""
        environ = {**os.environ, **self.environ, "MILLRACE_KILL_AT": point}
        done = subprocess.run(
            [sys.executable, "-m", "millrace", "run"], cwd=self.folder, env=environ, capture_output=True, check=False
        )
        return done.returncode

    def change(self, text: str) -> None:
        """Change the source."""
        with psycopg.connect(self.source, autocommit=True) as connection:
            connection.execute(text.encode())

    def ask(self, text: str) -> list[tuple[Any, ...]]:
        """Ask the warehouse."""
        with psycopg.connect(self.warehouse, autocommit=True) as connection:
            return connection.execute(text.encode()).fetchall()

    def do(self, text: str) -> None:
        """Change the warehouse by hand."""
        with psycopg.connect(self.warehouse, autocommit=True) as connection:
            connection.execute(text.encode())

    def hidden(self) -> list[str]:
        """Return the hidden schemas that there are."""
        found = self.ask("select nspname from pg_namespace where nspname ~ '__[0-9]{6}$' order by 1")
        return [name for (name,) in found]


@pytest.fixture(scope="module")
def desk(pg15: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """The project after its first run."""
    names = [f"t_{uuid.uuid4().hex[:12]}" for _ in range(2)]
    with psycopg.connect(pg15.url(), autocommit=True) as connection:
        for name in names:
            connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        made = Desk(tmp_path_factory.mktemp("desk"), pg15.url(names[0]), pg15.url(names[1]))
        first = made.run()
        assert first.exit_code == 0, first.errors
        yield made
        for name in names:
            connection.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


def state(result: RunResult) -> dict[str, str]:
    """Return the status of each step."""
    return {outcome.key: outcome.status for outcome in result.steps}


def test_views_follow_through_kills_and_models_that_go_on_go_on(desk: Desk) -> None:
    first = desk.ask("select * from marts.dim_symbols order by 1")
    assert first == desk.ask("select symbol, count(*), sum(price) from raw_data.trades group by 1 order by 1")
    assert desk.ask("select relkind::text from pg_class where oid = 'marts.dim_symbols'::regclass") == [("v",)]
    assert state(desk.run()) == FRESH
    desk.do("create schema bi; create view bi.best as select symbol, total from marts.dim_symbols where total > 1000")
    desk.change("update trades set price = 1000 where id = 1; delete from trades where id = 2")
    # each point is reached twice: the copy's publish, then the warehouse's
    assert desk.killed("postgres.publish.before_commit:2") == KILLED
    assert desk.ask("select * from marts.dim_symbols order by 1") == first
    assert desk.killed("postgres.publish.after_commit") == KILLED  # the copy was published by the run before
    assert [symbol for symbol, _ in desk.ask("select * from bi.best")] == ["S1"]
    assert desk.ask("select trades from marts.log") == [(30,), (29,)]  # carried over, and appended to once
    versions = (
        "select price, dbt_valid_to is null from snapshots.trades_seen where id in (1, 2) order by id, dbt_valid_from"
    )
    assert [(int(price), valid) for price, valid in desk.ask(versions)] == [(1, False), (1000, True), (2, False)]
    assert state(desk.run()) == FRESH
    (number,) = desk.ask("select max(number) from _millrace.generation")[0]
    assert desk.hidden() == [f"{name}__{number:06d}" for name in ("marts", "snapshots", "staging")]


def test_what_fails_leaves_the_views_and_no_schemas(desk: Desk) -> None:
    seen = desk.ask("select * from marts.dim_symbols order by 1")
    before = desk.hidden()
    desk.change("insert into trades values (100, null, 5)")  # dbt's own test
    failed = desk.run()
    assert (failed.exit_code, type(failed["dbt:desk"].error)) == (1, GateFailed)
    assert "not_null_dim_symbols_symbol" in str(failed["dbt:desk"].error)
    assert desk.ask("select * from marts.dim_symbols order by 1") == seen
    assert set(desk.hidden()) <= set(before)
    desk.change("update trades set symbol = 'S0', price = 'NaN' where id = 100")  # the gate
    failed = desk.run()
    error = failed["gate:marts.dim_symbols"].error
    assert isinstance(error, GateFailed)
    assert "1 of 3 rows has total outside 0 … 100,000" in str(error)
    assert error.detail[0] == "total NaN (symbol S0, trades 11)"
    assert desk.ask("select * from marts.dim_symbols order by 1") == seen
    assert set(desk.hidden()) <= set(before)
    desk.change("delete from trades where id = 100")


def test_the_password_is_in_no_file(desk: Desk) -> None:
    assert SECRET in desk.environ["DWH"]
    texts = [path.read_bytes() for path in desk.folder.rglob("*") if path.is_file()]
    assert any(b"DBT_ENV_SECRET_MILLRACE_PASSWORD" in text for text in texts)  # the profile says where it is
    assert not any(SECRET.encode() in text for text in texts)


def test_the_next_run_is_normal_and_a_url_names_the_same_warehouse(desk: Desk) -> None:
    before = FILES["millrace.yaml"]
    desk.write("millrace.yaml", before.replace("connection: dwh", 'url: "${env:DWH}"'))
    try:
        assert state(desk.run()) == {**dict.fromkeys(FRESH, "published"), "gate:marts.dim_symbols": "passed"}
        assert desk.ask("select trades from marts.log") == [(30,), (29,), (29,)]
    finally:
        desk.write("millrace.yaml", before)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        (
            "copies/src.yaml",
            "from: src\nto: src.raw_data\ntables:\n  trades: {key: id}\n",
            "is copied to connection src",
        ),
        ("copies/src.yaml", "from: src\nto: dwh.other\ntables:\n  trades: {key: id}\n", "to: dwh.raw_data"),
        (
            "dashboards/d.yaml",
            "title: D\nasset: marts.dim_symbols\ndate: symbol\nkpis: [{label: T, measure: total}]\n",
            "not built",
        ),
    ],
)
def test_what_cannot_work_is_said_before_a_run(desk: Desk, name: str, text: str, words: str) -> None:
    path = desk.folder / name
    before = path.read_text() if path.exists() else None
    desk.write(name, text)
    try:
        with pytest.raises(ProjectError, match=words):
            desk.run()
    finally:
        path.unlink() if before is None else path.write_text(before)
