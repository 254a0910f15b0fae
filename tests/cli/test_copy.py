"""`millrace copy` and `millrace diff` as a user calls them, between PostgreSQL 15 and 18, both ways."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from millrace.app import CopyOptions, copy_table

pytestmark = [pytest.mark.servers]

TABLE = """
create table public.accounts (
  id bigint primary key,
  name text not null,
  balance numeric(12, 2),
  tags text[],
  data jsonb,
  opened timestamptz not null default now(),
  updated_at timestamptz not null default now()
);
insert into accounts (id, name, balance, tags, data, opened, updated_at)
select i, 'name ' || i, i / 7.0, array[i::text, null], jsonb_build_object('n', i),
  timestamptz '2026-01-01' + i * interval '1 minute', timestamptz '2026-01-01' + i * interval '1 minute'
from generate_series(1, 5000) as i;
"""


def ask(url: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(query)
        return cursor.fetchall() if cursor.description else []


def texts(url: str, table: str = "public.accounts") -> list[tuple[Any, ...]]:
    """The rows as ordered text: an own comparison, not the digest under test."""
    return ask(url, f"select r::text from {table} as r order by 1")


def leftovers(url: str) -> list[tuple[Any, ...]]:
    """Stage tables, and stage rows of the ledger."""
    found = ask(
        url, "select relname from pg_class where relnamespace = to_regnamespace('_millrace_stage') and relkind = 'r'"
    )
    if ask(url, "select 1 from pg_class where relnamespace = to_regnamespace('_millrace') and relname = 'stage'"):
        found += ask(url, "select 'stage row' from _millrace.stage")
    return found


@pytest.fixture(params=["15 to 18", "18 to 15"])
def pair(request: pytest.FixtureRequest, db15: str, db18: str) -> Iterator[tuple[str, str]]:
    source, target = (db15, db18) if request.param == "15 to 18" else (db18, db15)
    ask(source, TABLE)
    return source, target


def test_first_copy_then_nothing_then_changes(millrace: Any, pair: tuple[str, str]) -> None:
    source, target = pair
    names = {"SRC": source, "DST": target}
    done = millrace("copy", "env:SRC", "public.accounts", "env:DST", "public.accounts", **names)
    assert done.code == 0, done.err
    assert "5,000 rows" in done.out
    assert "proven" in done.out
    assert texts(target) == texts(source)
    again = millrace("copy", "env:SRC", "public.accounts", "env:DST", "public.accounts", "--json", **names)
    assert again.code == 0, again.err
    assert json.loads(again.out)["published"] is False
    ask(source, "update accounts set balance = 0 where id = 17")
    ask(source, "delete from accounts where id = 18")
    ask(source, "insert into accounts (id, name) values (9000, 'new')")
    dry = millrace("copy", "env:SRC", "public.accounts", "env:DST", "public.accounts", "--dry-run", "--json", **names)
    assert json.loads(dry.out) == {"dry_run": True, "inserted": 1, "updated": 1, "deleted": 1}
    assert texts(target) != texts(source)
    differ = millrace("diff", "env:SRC", "public.accounts", "env:DST", "public.accounts", **names)
    assert differ.code == 1
    assert "balance" in differ.out
    changed = millrace("copy", "env:SRC", "public.accounts", "env:DST", "public.accounts", "--json", **names)
    entry = json.loads(changed.out)["entry"]
    assert entry["counts"] == {"inserted": 1, "updated": 1, "deleted": 1}
    assert entry["level"] == "table"
    assert texts(target) == texts(source)
    equal = millrace("diff", "env:SRC", "public.accounts", "env:DST", "public.accounts", **names)
    assert equal.code == 0
    assert leftovers(target) == []


def test_rows_that_are_only_counted_are_never_called_proven(
    millrace: Any, db18: str, other18: str, tmp_path: Path
) -> None:
    ask(db18, TABLE)
    names = {"SRC": db18, "DST": other18}
    done = millrace("copy", "env:SRC", "public.accounts", "env:DST", "raw.plain", "--proof", "count", **names)
    assert done.code == 0, done.err
    assert "counted" in done.out
    assert "rows counted, not compared" in done.out
    assert "proven" not in done.out
    again = millrace(
        "copy", "env:SRC", "public.accounts", "env:DST", "raw.plain", "--proof", "count", "--json", **names
    )
    assert json.loads(again.out)["entry"]["level"] == "table"

    connections = 'connections: {src: {type: postgres, url: "${env:SRC}"}, dst: {type: postgres, url: "${env:DST}"}}'
    (tmp_path / "millrace.yaml").write_text(f"version: 1\nname: counting\nenvironments:\n  dev:\n    {connections}\n")
    (tmp_path / "copies").mkdir()
    copies = "from: src\nto: dst.raw\ndefaults: {proof: count}\ntables:\n  accounts: {}\n"
    (tmp_path / "copies" / "src.yaml").write_text(copies)
    assert "the number of rows; none is compared" in millrace("plan", **names).out
    assert "rows counted, not compared" in millrace("run", **names).out
    shown = millrace("status", **names).out
    assert "counted" in shown
    assert "not compared" in shown
    verified = millrace("verify", **names)
    assert verified.code == 0, verified.err
    (row,) = json.loads(millrace("status", "--json", **names).out)
    assert row["published"]["level"] == "table"
    assert texts(other18, "raw.accounts") == texts(db18)
    assert "source untouched" in millrace("run", **names).out  # the next copy goes on from what verify read


def test_incremental(millrace: Any, pair: tuple[str, str]) -> None:
    source, target = pair
    names = {"SRC": source, "DST": target}
    arguments = (
        "copy",
        "env:SRC",
        "accounts",
        "env:DST",
        "raw.accounts",
        "--mode",
        "incremental",
        "--cursor",
        "updated_at",
    )
    first = millrace(*arguments, "--json", **names)
    if first.code:  # the schema does not exist: the error says so
        assert "raw" in first.err
        ask(target, "create schema raw")
        first = millrace(*arguments, "--json", **names)
    assert first.code == 0, first.err
    ask(source, "update accounts set balance = 1, updated_at = '2027-01-01' where id <= 100")
    second = json.loads(millrace(*arguments, "--json", **names).out)
    assert second["published"] is True
    assert second["entry"]["counts"]["updated"] == 100
    third = json.loads(millrace(*arguments, "--json", **names).out)
    assert third["published"] is False
    assert texts(target, "raw.accounts") == texts(source)


@pytest.mark.parametrize(
    "point",
    [
        "postgres.stage.segment",
        "postgres.stage.closed",
        "engine.staged",
        "postgres.prove",
        "engine.proven",
        "engine.before_publish",
        "postgres.publish.before_commit",
        "postgres.publish.after_commit",
        "engine.after_publish",
        "engine.done",
    ],
)
def test_killed_anywhere_one_more_run_ends_right(millrace: Any, db15: str, db18: str, point: str) -> None:
    ask(db15, TABLE)
    names = {"SRC": db15, "DST": db18, "MILLRACE_LEASE_TTL": "1"}
    arguments = ("copy", "env:SRC", "accounts", "env:DST", "accounts")
    killed = millrace(*arguments, MILLRACE_KILL_AT=point, **names)
    assert killed.code == -9
    after = millrace(*arguments, **names)
    assert after.code == 0, after.err
    assert texts(db18, "accounts") == texts(db15)
    assert leftovers(db18) == []
    assert ask(db18, "select seq from _millrace.ledger") == [(1,)]


def test_a_killed_copy_that_nobody_resumes_is_cleared_by_another(millrace: Any, db15: str, db18: str) -> None:
    ask(db15, TABLE)
    ask(db15, "create table few (id int primary key); insert into few values (1)")
    killed = millrace(
        *("copy", "env:SRC", "accounts", "env:DST", "accounts"), SRC=db15, DST=db18, MILLRACE_KILL_AT="engine.staged"
    )
    assert killed.code == -9
    left = leftovers(db18)
    copy_table(db15, "few", db18, "few", CopyOptions(), trusted_urls=True)
    assert leftovers(db18) == left != []  # it can be resumed
    ask(db18, "update _millrace.stage set heartbeat = now() - interval '25 hours'")
    copy_table(db15, "few", db18, "few", CopyOptions(), trusted_urls=True)
    assert leftovers(db18) == []


def test_the_password_shows_nowhere(millrace: Any, pg18: Any, db18: str, other18: str, tmp_path: Path) -> None:
    """Servers here trust loopback, so a wrong or right password is sent all the same when the URL has one."""
    ask(db18, TABLE)
    secret = 'p@ss:/%"'
    name = db18.rsplit("/", 1)[1]
    url = f"postgresql://postgres:p%40ss%3A%2F%25%22@127.0.0.1:{pg18.port}/{name}"
    refused = millrace("copy", url, "accounts", "env:DST", "accounts", DST=other18)
    assert refused.code == 2
    assert "env:" in refused.err
    for wrong in ("copy", "diff"):
        done = millrace(wrong, "env:SRC", "nothing_here", "env:DST", "accounts", SRC=url, DST=other18)
        assert done.code == 1
        for text in (refused.err, refused.out, done.err, done.out):
            assert secret not in text
            assert "p%40ss" not in text
    good = millrace("copy", "env:SRC", "accounts", "env:DST", "accounts", "--json", SRC=url, DST=other18)
    assert good.code == 0, good.err
    assert secret not in good.out
    assert ask(other18, "select count(*) from _millrace.ledger where ledger::text like '%p@ss%'") == [(0,)]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("copy", "env:NOPE", "t", "env:DST", "t"), 2, "NOPE"),
        (("copy", "env:SRC", "a.b.c", "env:DST", "t"), 2, "not a table name"),
        (("copy", "env:SRC", "acounts", "env:DST", "t"), 1, "accounts"),
        (("copy", "env:SRC", "accounts", "env:DST", "t", "--proof", "counted"), 2, "one of: rows, count"),
        (("copy", "env:SRC", "accounts", "env:DST", "t", "--mode", "ful"), 2, 'did you mean "full"'),
        (
            ("copy", "env:SRC", "accounts", "env:DST", "t", "--mode", "incremental", "--cursor", "updated"),
            1,
            "updated_at",
        ),
        (("copy", "env:SRC", "accounts", "env:DST", "t", "--key", "idd"), 1, 'did you mean "id"'),
        (("copy", "env:SRC", "accounts", "env:DST", "t", "--key", "balance"), 1, "balance"),
        (("copy", "env:SRC", "nokey", "env:DST", "t"), 1, "--key"),
        (("copy", "env:SRC", "accounts", "postgresql://postgres@127.0.0.1:1/x", "t"), 1, "127.0.0.1"),
        (("copy", "env:SRC", "accounts", "env:DST", "t", "--where", "1; drop table accounts"), 2, "condition"),
    ],
)
def test_wrong_input_is_one_clear_error(
    millrace: Any, db18: str, other18: str, arguments: tuple[str, ...], code: int, says: str
) -> None:
    ask(db18, TABLE)
    ask(
        db18,
        "create table nokey (a int); insert into accounts (id, name, balance) values (6000, 'x', 0), (6001, 'y', 0)",
    )
    done = millrace(*arguments, SRC=db18, DST=other18)
    assert done.code == code, done.err
    assert says in done.err
    assert done.err.lstrip("\n").startswith("error: ")
    assert "Traceback" not in done.err
    assert ask(other18, "select count(*) from pg_class where relname = 't'") == [(0,)]
    assert leftovers(other18) == []
