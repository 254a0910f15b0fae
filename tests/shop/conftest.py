"""The shop of the e-commerce template on a real PostgreSQL, through the real command line."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import psycopg
import pytest
from tests import forked

from millrace.testing.servers import PostgresServer

from .house import Bases

SECONDS = 240


@dataclass
class Shop:
    """A project folder, its source database, and the command line in it."""

    folder: Path
    url: str

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MILLRACE_", "PG"))}
        env = {**kept, "NO_COLOR": "1", "COLUMNS": "100", "SHOP_DB_URL": self.url, **environment}
        return forked.run(arguments or ("run",), cwd=self.folder, env=env, timeout=SECONDS)

    def ok(self, *arguments: str, **environment: str) -> str:
        done = self.run(*arguments, **environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def statuses(self, *arguments: str) -> dict[str, str]:
        """Run and return how each step ended."""
        return {step["key"]: step["status"] for step in json.loads(self.ok(*(arguments or ("run", "--json"))))["steps"]}

    def source(self, query: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(query)
            return cursor.fetchall() if cursor.description else []

    @property
    def warehouse(self) -> Path:
        root = self.folder / "warehouse"
        return root / (root / "CURRENT").read_text().strip() / "warehouse.duckdb"

    def ask(self, query: str) -> list[tuple[Any, ...]]:
        """Ask the published warehouse."""
        with duckdb.connect(str(self.warehouse), read_only=True) as connection:
            return connection.execute(query).fetchall()

    def totals(self) -> tuple[Any, ...]:
        """Orders and revenue as the marts have them."""
        return self.ask("select sum(total_orders), sum(total_revenue), sum(gross_revenue) from marts.agg_daily_sales")[
            0
        ]

    def source_totals(self) -> tuple[Any, ...]:
        """Orders and revenue computed by the source, by SQL of its own."""
        return self.source(
            "select count(*), sum(amount) filter (where lower(trim(status)) <> 'cancelled'), sum(amount) from orders"
        )[0]


@pytest.fixture(scope="session")
def bases(pg18: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Bases:
    """Small projects, made once for all tests that begin with them."""
    return Bases(pg18, tmp_path_factory.mktemp("bases"))


@pytest.fixture
def shop(bases: Bases, tmp_path: Path) -> Iterator[Shop]:
    """A shop that never ran."""
    with bases.copy("shop", tmp_path, ran=False) as house:
        yield Shop(house.folder, house.url)


@pytest.fixture
def ran_shop(bases: Bases, tmp_path: Path) -> Iterator[Shop]:
    """A shop that ran once."""
    with bases.copy("shop", tmp_path, ran=True) as house:
        yield Shop(house.folder, house.url)
