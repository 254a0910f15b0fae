"""`millrace copy SRC '*' DST`: all tables of one moment, each published by itself; a standby as the source."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.conftest import SETTINGS

from millrace.app.whole import Pattern, is_pattern
from millrace.core.names import TableRef
from millrace.errors import UsageError
from millrace.testing import servers

pytestmark = [pytest.mark.servers]

TABLES = """
create table cash (id int primary key, amount bigint not null);
create schema sales;
create table sales.debts (id int primary key, amount bigint not null, cash int references public.cash on delete cascade);
insert into cash select i, 1000 from generate_series(1, 100) i;
insert into sales.debts select i, 1000, i from generate_series(1, 100) i;
create table sales.log (id int not null, day date not null, text text, primary key (id, day)) partition by range (day);
create table sales.log_1 partition of sales.log for values from ('2026-01-01') to ('2026-02-01');
create table sales.log_2 partition of sales.log for values from ('2026-02-01') to ('2026-03-01');
insert into sales.log select i, date '2026-01-01' + i % 50, 'x' from generate_series(1, 12000) i;
create table "Odd" (a int);
insert into "Odd" values (1), (1), (null);
create view sales.rich as select * from cash where amount > 1000;
create sequence numbers;
create schema audit;
create table audit.trail (id int primary key);
create table owned (id int primary key);
alter extension plpgsql add table owned;
create schema _millrace_old;
create table _millrace_old.ledger (id int primary key);
"""
TOTAL = "select (select sum(amount) from cash) + (select sum(amount) from sales.debts)"
THERE = """
select n.nspname || '.' || c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace
where c.relkind in ('r', 'p') and n.nspname !~ '^(pg_|information_schema)' and n.nspname !~ '^_millrace' order by 1
"""


def ask(url: str, query: str) -> list[Any]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(query)  # type: ignore[arg-type]
        return [row[0] for row in cursor] if cursor.description else []


@contextmanager
def money_moves(url: str) -> Iterator[list[int]]:
    """Move money from one table to the other all the while, in single transactions; yields how many copies connect."""
    stop = threading.Event()
    seen: list[int] = []
    ours = (
        "select count(*) from pg_stat_activity where application_name like 'millrace%' and datname = current_database()"
    )

    def move() -> None:
        with psycopg.connect(url) as connection:
            for number in itertools.count():
                connection.execute("update cash set amount = amount - 1 where id = %s", (1 + number % 100,))
                connection.execute("update sales.debts set amount = amount + 1 where id = %s", (1 + number % 97,))
                connection.commit()
                seen.extend(connection.execute(ours).fetchone() or ())
                if stop.is_set():
                    return

    thread = threading.Thread(target=move)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


def test_all_of_a_database_is_of_one_moment(millrace: Any, db15: str, db18: str) -> None:
    ask(db15, TABLES)
    names = {"SRC": db15, "DST": db18}
    everything = ("copy", "env:SRC", "*", "env:DST", "--exclude", "audit.*")
    look = millrace(*everything, "--dry-run", "--json", **names)
    listed = json.loads(look.out)
    assert [one["table"] for one in listed["tables"]] == ['public."Odd"', "public.cash", "sales.debts", "sales.log"]
    assert [one["mode"] for one in listed["tables"]] == ["truncate", "full", "full", "full"]
    assert listed["excluded"] == 1
    assert {one["name"] for one in listed["not_copied"]} == {"sales.rich", "public.numbers"}
    assert ask(db18, THERE) == []
    with money_moves(db15) as connected:
        done = millrace(*everything, **names)
    assert 2 <= max(connected) <= 4
    assert done.code == 0, done.err
    assert ask(db18, THERE) == ["public.Odd", "public.cash", "sales.debts", "sales.log"]
    assert ask(db18, TOTAL) == [200_000]
    assert ask(db18, "select count(*) from sales.log") == [12_000]  # each row of its partitions once
    assert "4 tables, 12,203 rows, of one snapshot of the source" in done.out
    assert "not copied: 1 view, 1 sequence without a column (sales.rich, public.numbers)" in done.out
    assert "1 foreign key not in the target: --foreign-keys makes it" in done.out
    ask(db15, 'insert into cash values (500, 0); delete from sales.log where id <= 10; insert into "Odd" values (7)')
    with money_moves(db15):
        again = json.loads(millrace(*everything, "--foreign-keys", "--json", **names).out)
    assert [one["status"] for one in again["tables"]] == ["published"] * 4
    assert ask(db18, TOTAL) == [200_000]
    assert again["rows"] == 3 + 1 + 101 + 100 + 11_990
    assert again["foreign_keys"] == {"made": 1, "not_made": []}
    key = "select pg_get_constraintdef(oid) from pg_constraint where contype = 'f' and connamespace = 'sales'::regnamespace"
    assert ask(db18, key) == ask(db15, key) != []
    ask(db15, "update cash set amount = 7 where id = 1")
    quiet = millrace(*everything, **names)  # what is lacking is said again, what was made is not
    assert "4 tables, 12,195 rows, of one" in quiet.out  # of the tables, not those that moved
    assert (quiet.code, "foreign key" in quiet.out) == (0, False)
    ask(db18, "alter table sales.debts drop constraint debts_cash_fkey")
    assert "1 foreign key not in the target: --foreign-keys makes it" in millrace(*everything, **names).out


def test_a_table_copied_by_itself_is_fresh_among_all(millrace: Any, db15: str, db18: str) -> None:
    ask(db15, TABLES)
    names = {"SRC": db15, "DST": db18}
    for table in ("cash", "sales.debts"):
        assert millrace("copy", "env:SRC", table, "env:DST", **names).code == 0
    done = json.loads(millrace("copy", "env:SRC", "*", "env:DST", "--exclude", "audit.*", "--json", **names).out)
    assert {one["table"]: one["status"] for one in done["tables"]} == {
        'public."Odd"': "published", "public.cash": "fresh", "sales.debts": "fresh", "sales.log": "published",
    }  # fmt: skip
    again = json.loads(millrace("copy", "env:SRC", "cash", "env:DST", "--json", **names).out)
    assert again["published"] is False


def test_what_may_not_be_read_is_said_beforehand_as_in_the_run(millrace: Any, db15: str, db18: str) -> None:
    reader = f"reader_{db15[-8:]}"
    ask(
        db15,
        TABLES + f"; create role {reader} login; grant select on cash to {reader};"
        f" grant usage on schema sales to {reader}",
    )
    names = {"SRC": db15.replace("postgres@", f"{reader}@"), "DST": db18}
    everything = ("copy", "env:SRC", "*", "env:DST", "--exclude", "owned")
    try:
        look = millrace(*everything, "--dry-run", **names)
        listed = json.loads(millrace(*everything, "--dry-run", "--json", **names).out)
        done = millrace(*everything, **names)
    finally:
        ask(db15, f"drop owned by {reader}; drop role {reader}")
    assert (look.code, done.code) == (1, 1)
    assert look.err == done.err
    assert f"error: {reader} may not use schema audit" in look.err
    assert f"  GRANT SELECT ON sales.debts TO {reader};" in look.err
    assert " copy  sales.debts   may not be read\n" in look.out
    assert " 1 table would be copied, 4 would fail: ≈ " in look.out
    assert {one["table"] for one in listed["tables"] if not one["error"]} == {"public.cash"}


def test_a_failure_takes_no_other_table_with_it(millrace: Any, db15: str, db18: str) -> None:
    ask(db15, TABLES)
    names = {"SRC": db15, "DST": db18}
    ask(db18, "create schema raw; create table raw.debts (id int primary key, amount bigint, cash int)")
    ask(db18, "insert into raw.debts values (1, 2, 3)")
    arguments = ("copy", "env:SRC", "sales.*", "env:DST", "raw.*")
    none = millrace(*arguments, "--together", **names)
    assert none.code == 1
    assert ask(db18, THERE) == ["raw.debts"]
    one = millrace(*arguments, "--foreign-keys", **names)
    assert one.code == 1
    assert "error: raw.debts in env:DST has rows that Millrace did not write" in one.err
    assert "published 1, failed 1" in one.out
    assert "1 table, 12,000 rows, of one snapshot" in one.out
    assert "foreign key debts_cash_fkey of sales.debts not made: sales.debts was not copied" in one.out
    assert ask(db18, THERE) == ["raw.debts", "raw.log"]
    ask(db15, "update sales.log set text = 'y' where id = 1")
    both = millrace(*arguments, "--together", "--replace", "--json", **names)
    assert [step["status"] for step in json.loads(both.out)["tables"]] == ["published"] * 2
    assert ask(db18, "select count(distinct xmin::text) from _millrace.ledger") == [1]  # one transaction
    assert ask(db18, "select count(*) from _millrace.stage") == [0]


def test_killed_among_many_tables(millrace: Any, db15: str, db18: str) -> None:
    ask(db15, TABLES)
    names = {"SRC": db15, "DST": db18}
    arguments = ("copy", "env:SRC", "*", "env:DST")
    killed = millrace(*arguments, MILLRACE_KILL_AT="postgres.publish.before_commit:3", **names)
    assert killed.code == -9
    assert len(ask(db18, THERE)) == 2
    done = millrace(*arguments, **names)
    assert done.code == 0, done.err
    assert len(ask(db18, THERE)) == 5
    assert ask(db18, "select relname from pg_class where relnamespace = '_millrace_stage'::regnamespace") == []


@contextmanager
def standby(primary: servers.PostgresServer) -> Iterator[servers.PostgresServer]:
    """Start a hot standby of a server."""
    with tempfile.TemporaryDirectory(prefix="millrace-pg-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o777)
        data = Path(folder) / "data"
        user = servers._server_user()  # as which the server runs
        place = f"host=127.0.0.1 port={primary.port} user=postgres"
        command = [primary.bin / "pg_basebackup", "-d", place, "-D", data, "-R", "-c", "fast", "-X", "stream"]
        subprocess.run([*command, "--no-sync"], check=True, env={**os.environ, "LC_ALL": "C"}, **user)
        server = servers.start_postgres(primary.bin, data, {**SETTINGS, "fsync": "off"})
        try:
            yield server
        finally:
            server.stop()


def test_a_standby_is_a_source(millrace: Any, pg18: servers.PostgresServer, db18: str, db15: str) -> None:
    ask(db18, TABLES)
    with standby(pg18) as server:
        url = server.url(db18.rsplit("/", 1)[1])
        assert ask(url, "select pg_is_in_recovery()") == [True]
        done = millrace("copy", "env:SRC", "*", "env:DST", SRC=url, DST=db15)
        assert done.code == 0, done.err
    assert ask(db15, TOTAL) == [200_000]


def test_what_is_wrong_is_one_error(millrace: Any, db18: str, other18: str) -> None:
    ask(db18, TABLES)
    for arguments, says in (
        (("salse.*", "env:DST"), "no table matches salse.*\n  env:SRC (host 127.0.0.1"),
        (("sales.*", "env:DST", "raw.debts"), "not a place for several tables: 'raw.debts'"),
        (("sales.*", "env:DST", "--key", "id"), "--key is about one table"),
        (("*", "env:DST", "raw.*", "--exclude", "nothing here"), "not a pattern of tables: 'nothing here'"),
        (("sales.*", "env:DST", "--exclude", "*"), "every table that matches sales.* is excluded"),
        (("cash", "env:DST", "--exclude", "a.*"), "--exclude is for several tables"),
        (("*", "postgresql://postgres@127.0.0.1:1/x"), "cannot connect to x on 127.0.0.1"),
    ):
        done = millrace("copy", "env:SRC", *arguments, SRC=db18, DST=other18)
        assert done.code in (1, 2)
        assert says in done.err
        assert done.err.count("error: ") == 1
    assert ask(other18, THERE) == []


def test_patterns() -> None:
    def takes(text: str, *names: str) -> list[bool]:
        return [Pattern.parse(text).takes(TableRef.parse(name)) for name in names]

    assert takes("*", "a.b", '"Odd"."x.y"') == [True, True]
    assert takes("Sales.order_*", "sales.order_items", "sales.orders", "public.order_items") == [True, False, False]
    assert takes("tmp_*", "a.tmp_1", "tmp.x") == [True, False]
    assert takes('"Sales".*', "sales.a", '"Sales".a') == [False, True]
    assert takes('a."b*"', 'a."b*"', "a.bc") == [True, False]
    assert is_pattern("a.*")
    assert not is_pattern('a."b*"')
    for wrong in ("", "a.b.c", "a b", 'a."'):
        with pytest.raises(UsageError):
            Pattern.parse(wrong)
