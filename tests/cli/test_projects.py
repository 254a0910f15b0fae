"""The commands of a project on their good paths: what they print, as text and as JSON, and their exit codes."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests import forked

from millrace.testing.servers import PostgresServer

from . import small
from .conftest import environment


def call(folder: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return forked.run(arguments, cwd=folder, env=environment(more), timeout=120)


def ok(folder: Path, *arguments: str, **more: str) -> str:
    done = call(folder, *arguments, **more)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    return done.stdout


class Ran:
    """A project that ran once; `say` runs a command in it."""

    def __init__(self, folder: Path, names: dict[str, str]) -> None:
        self.folder = folder
        self.names = names
        self.first = self.say("run")

    def say(self, *arguments: str) -> str:
        return ok(self.folder, *arguments, **self.names)

    def data(self, *arguments: str) -> Any:
        return json.loads(self.say(*arguments, "--json"))


@pytest.fixture(scope="module")
def ran(pg15: PostgresServer, pg18: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    servers = {"SRC": pg15, "DST": pg18}
    name = f"projects_{os.getpid()}"
    for server in servers.values():
        with psycopg.connect(server.url(), autocommit=True) as connection:
            connection.execute(f"create database {name}".encode())
    names = {variable: server.url(name) for variable, server in servers.items()}
    with psycopg.connect(names["SRC"], autocommit=True) as connection:
        connection.execute(small.SOURCE.encode())
    yield Ran(small.write(tmp_path_factory.mktemp("projects") / "small"), names)
    for server in servers.values():
        with psycopg.connect(server.url(), autocommit=True) as connection:
            connection.execute(f"drop database {name} with (force)".encode())


def test_init_validate_and_the_templates(tmp_path: Path) -> None:
    assert "set:  export SHOP_DB_URL=postgresql://" in ok(tmp_path, "init", "shop")
    assert (tmp_path / "shop/millrace.yaml").read_text().splitlines()[1] == "name: shop"
    assert "nothing is wrong" in ok(tmp_path / "shop", "validate")
    assert "name a connection" in ok(tmp_path, "init", "empty", "--template", "blank")
    assert json.loads(ok(tmp_path / "empty", "validate", "--json")) == {
        "project": "empty",
        "environment": "dev",
        "steps": 0,
    }
    again = call(tmp_path, "init", "shop")
    assert again.returncode == 2
    assert "not empty" in again.stderr


def test_schemas_for_editors(tmp_path: Path) -> None:
    printed = ok(tmp_path, "validate", "--schemas", "schemas").split()
    for path in printed:
        assert json.loads((tmp_path / path).read_text())["$schema"]
    assert len(printed) >= 4


def test_help_has_an_example() -> None:
    listed = ok(Path.cwd(), "--help")
    names = re.findall(r"^│ (\w+)  +\w", listed, re.MULTILINE)
    assert {"copy", "diff", "demo", "init", "validate", "plan", "run", "step", "query", "runs", "status", "doctor"} <= {
        *names
    }
    for name in ("run", "copy"):  # of all others tests/test_docs.py knows
        shown = ok(Path.cwd(), name, "--help")
        assert "Example" in shown
        assert f"millrace {name}" in shown
    assert ok(Path.cwd()) == listed, "no command: the help"
    assert re.fullmatch(r"millrace \d+\.\d+\.\d+\S*\n", ok(Path.cwd(), "--version"))


@pytest.mark.servers
def test_run_prints_a_line_a_step(ran: Ran) -> None:
    for kind, label in (("copy", "raw.accounts"), ("copy", "bronze.accounts"), ("model", "silver.accounts")):
        assert re.search(rf"^ {kind} +{re.escape(label)} +300 rows +\d+\.\d s +proven", ran.first, re.MULTILINE)
    assert re.search(r"^ done in \d+\.\d s · published 3$", ran.first, re.MULTILINE)
    again = ran.data("run")
    assert {step["key"]: step["status"] for step in again["steps"]} == {
        "copy:raw.accounts": "fresh",
        "copy:bronze.accounts": "fresh",
        "model:silver.accounts": "fresh",
    }


@pytest.mark.servers
def test_plan_and_status(ran: Ran) -> None:
    assert "0 steps would run, 3 fresh" in ran.say("plan")
    (step,) = ran.data("plan", "--select", "silver.accounts")
    assert step["key"] == "model:silver.accounts"
    assert step["fresh"] is True
    assert step["inputs"] == ["bronze.accounts"]
    shown = ran.say("status")
    assert re.search(r"^ silver\.accounts +model +1 +300 +transfer ", shown, re.MULTILINE)
    published = {row["asset"]: row["published"] for row in ran.data("status")}
    assert {asset: entry["rows"] for asset, entry in published.items()} == {
        "raw.accounts": 300,
        "bronze.accounts": 300,
        "silver.accounts": 300,
    }


@pytest.mark.servers
def test_runs_and_one_run(ran: Ran) -> None:
    first = ran.data("runs")[-1]
    assert first["status"] == "done"
    assert f" {first['run'][:4]}  done " in ran.say("runs")
    shown = ran.say("runs", first["run"][:4])
    assert re.search(r"^ model +silver\.accounts +\w+ +300 ", shown, re.MULTILINE)
    steps = ran.data("runs", first["run"][:4])["steps"]
    assert {step["key"] for step in steps} == {"copy:raw.accounts", "copy:bronze.accounts", "model:silver.accounts"}
    assert all(step["error"] is None for step in steps)


@pytest.mark.servers
def test_query(ran: Ran) -> None:
    shown = ran.say("query", "select count(*) as n, sum(id) * 100 as total from silver.accounts")
    assert shown.splitlines()[1].split() == ["300", "4,515,000"]
    assert re.search(r"^ 1 row in \d+\.\d s$", shown, re.MULTILINE)
    assert "100 rows or more" in ran.say("query", "select id from bronze.accounts")
    assert ran.data("query", "select max(name) as name from silver.accounts") == [{"name": "N99"}]


@pytest.mark.servers
def test_doctor(ran: Ran) -> None:
    assert "failed" not in ran.say("doctor")
    found = {item["name"]: item for item in ran.data("doctor")}
    assert found["connection src"]["detail"].startswith("PostgreSQL 15")
    down = call(ran.folder, "doctor", **{**ran.names, "DST": "postgresql://postgres@127.0.0.1:1/x"})
    assert down.returncode == 1
    assert re.search(r"^ failed +connection dst .*nothing listens there", down.stdout, re.MULTILINE)


@pytest.mark.servers
def test_phases_of_a_step_from_a_folder_below(ran: Ran) -> None:
    with psycopg.connect(ran.names["SRC"], autocommit=True) as connection:
        connection.execute("update accounts set name = 'n1' where id = 1")
    below = ran.folder / "models"
    for phase in ("stage", "prove", "publish"):
        told = json.loads(
            ok(below, "step", "copy:bronze.accounts", "--run", "orch-1", "--phase", phase, "--json", **ran.names)
        )
        assert told[0]["key"] == "copy:bronze.accounts"
    assert "orch-1" in ran.say("runs")


@pytest.mark.servers
def test_a_reader_that_goes_is_no_error(ran: Ran) -> None:
    script = (
        f"set -o pipefail; {sys.executable} -m millrace query --limit 300 'select * from bronze.accounts' | head -1"
    )
    done = subprocess.run(
        ["bash", "-c", script], cwd=ran.folder, env=environment(ran.names), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.servers
def test_colour_only_on_a_terminal_and_never_with_no_color(ran: Ran) -> None:
    def on_a_terminal(**more: str) -> bytes:
        mine, its = pty.openpty()
        kept = {name: value for name, value in environment(ran.names).items() if name != "NO_COLOR"}
        process = subprocess.Popen(
            [sys.executable, "-m", "millrace", "plan"],
            cwd=ran.folder,
            env={**kept, "TERM": "xterm", **more},
            stdout=its,
            stderr=its,
        )
        os.close(its)
        text = b""
        try:
            while part := os.read(mine, 4096):
                text += part
        except OSError:  # the other end is closed
            pass
        os.close(mine)
        assert process.wait(60) == 0, text
        return text

    assert b"\x1b[90m" in on_a_terminal()
    assert b"\x1b" not in on_a_terminal(NO_COLOR="1")


@pytest.mark.servers
def test_copy_and_diff_take_the_projects_connections(ran: Ran, tmp_path: Path) -> None:
    found = ran.data("diff", "src", "accounts", "dst", "raw.accounts")
    assert (found["same"], found["rows_left"]) == (True, 300)
    assert ran.data("copy", "src", "accounts", "dst", "raw.again")["published"]
    assert "300 equal" in ran.say("diff", "dst", "raw.accounts", "dst", "raw.again")
    wrong = call(ran.folder, "diff", "sr", "accounts", "dst", "raw.accounts", **ran.names)
    assert wrong.returncode == 1
    assert "there is no connection 'sr'" in wrong.stderr
    assert 'did you mean "src"' in wrong.stderr
    outside = call(tmp_path, "diff", "src", "accounts", "dst", "raw.accounts", **ran.names)
    assert outside.returncode == 2
    assert "in a project, the name of a connection" in outside.stderr
