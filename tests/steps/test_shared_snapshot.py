"""`snapshot: shared`: the tables of a file are of one moment, within the budget of the connection."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from millrace.app import open_house
from millrace.engine.session import RunOptions
from millrace.errors import ProjectError, UsageError

pytestmark = [pytest.mark.servers]

MANIFEST = """\
version: 1
name: bank
layers: {bronze: lake}
environments:
  dev:
    connections:
      src: {type: postgres, url: "${env:SRC}", max_connections: 3}
      dst: {type: postgres, url: "${env:DST}", max_connections: 3}
    lake: ./lake
"""
COPIES = """\
from: src
to: dst.copy
defaults: {snapshot: shared}
tables: {cash: {}, debts: {}, notes: {}}
"""
TABLES = """
create table cash (id int primary key, amount bigint not null);
create table debts (id int primary key, amount bigint not null);
insert into cash select i, 1000 from generate_series(1, 100) i;
insert into debts select i, 1000 from generate_series(1, 100) i;
create table notes (id int primary key, text text);
insert into notes select i, repeat('x', 100) from generate_series(1, 20000) i;
"""
TOTAL = "select (select sum(amount) from {0}.cash) + (select sum(amount) from {0}.debts)"


@contextmanager
def money_moves(url: str) -> Iterator[None]:
    """Move money from one table to the other in single transactions all the while, always the same way."""
    stop = threading.Event()

    def move() -> None:
        with psycopg.connect(url) as connection:
            for number in itertools.count():
                connection.execute("update cash set amount = amount - 1 where id = %s", (1 + number % 100,))
                connection.execute("update debts set amount = amount + 1 where id = %s", (1 + number % 97,))
                connection.commit()
                if stop.is_set():
                    return

    thread = threading.Thread(target=move)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def total(url: str, schema: str) -> int:
    with psycopg.connect(url) as connection:
        row = connection.execute(TOTAL.format(schema)).fetchone()  # type: ignore[arg-type]
    assert row is not None
    return int(row[0])


def test_tables_of_a_file_are_of_one_moment(
    db15: str, db18: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with psycopg.connect(db15) as connection:
        connection.execute(TABLES)
    with psycopg.connect(db18) as connection:
        connection.execute("create schema copy")
    (tmp_path / "copies").mkdir()
    (tmp_path / "millrace.yaml").write_text(MANIFEST)
    (tmp_path / "copies/src.yaml").write_text(COPIES)
    (tmp_path / "copies/lake.yaml").write_text(COPIES.replace("dst.copy", "bronze"))
    monkeypatch.setenv("SRC", db15)
    monkeypatch.setenv("DST", db18)
    with open_house(tmp_path) as house:
        plan = house.plan()
        for _step, found in house.explain(plan):
            assert "; reads the snapshot that copies/" in found.publishes  # type: ignore[union-attr]
        for jobs in (1, 4):  # the second run syncs what differs; four tables at once have three connections
            with money_moves(db15):
                result = house.run(plan, options=RunOptions(jobs=jobs), show_as="silent")
            assert result.status == "done", [outcome.error for outcome in result.steps]
            assert total(db18, "copy") == 200_000
            cash, debts = (
                house.query(f"select sum(amount) from bronze.{name}", 1).rows[0][0] for name in ("cash", "debts")
            )
            assert cash + debts == 200_000
        with psycopg.connect(db15) as connection:
            held = "select count(*) from pg_stat_activity where application_name like 'millrace%' and state <> 'idle'"
            assert connection.execute(held).fetchone() == (0,)
        with pytest.raises(UsageError, match=r"shares a snapshot with the other tables of copies/src\.yaml"):
            house.step("copy:copy.cash", "manual__1", "stage")
    (tmp_path / "millrace.yaml").write_text(MANIFEST.replace("max_connections: 3", "max_connections: 2"))
    with pytest.raises(ProjectError, match="max_connections"), open_house(tmp_path):
        pass
