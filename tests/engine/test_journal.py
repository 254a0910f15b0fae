from __future__ import annotations

import os
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from filetarget import Shop

from millrace.core.names import AssetId
from millrace.core.secrets import Secret
from millrace.core.staged import CheckResult
from millrace.engine.journal import Journal
from millrace.engine.leases import Leases, alive, ttl_from
from millrace.engine.records import LeaseRow, RunInfo, now
from millrace.errors import MillraceError, NewerFormat, NotFound, PermissionMissing, TargetBusy, UsageError

PASSWORD = 'p@ss:/%"'


def info(run: str, started: str = "2026-11-20T06:00:00.000Z") -> RunInfo:
    return RunInfo(run, "shop", "dev", "daily", started, started)


def test_a_newer_journal_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    Journal(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("update format set version = 99")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(NewerFormat, match="the journal has format 99, this version of Millrace knows up to 1"):
        Journal(path)
    assert path.read_bytes() == before


def test_what_is_no_journal_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    path.write_text("this is a text of some length, but it is no database at all " * 20)
    with pytest.raises(MillraceError, match="the journal cannot be read") as caught:
        Journal(path)
    assert "positions are kept in the targets" in str(caught.value)
    with pytest.raises(UsageError, match="a SQLite file"):
        Journal("postgresql://x/y")
    (tmp_path / "file").touch()
    with pytest.raises(PermissionMissing):
        Journal(tmp_path / "file" / "state.db")


def test_a_full_disk_is_no_broken_journal(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "state.db")
    pages = journal._opened().execute("pragma page_count").fetchone()[0]
    journal._opened().execute(f"pragma max_page_count = {pages}")  # SQLite's own "database or disk is full"
    with pytest.raises(MillraceError, match="the journal cannot be written") as caught:
        journal.start_run(info("full"), host="h" * 1_000_000, pid=1)
    assert "make room" in str(caught.value)
    assert "move the file away" not in str(caught.value)
    journal._opened().execute("pragma max_page_count = 10000")
    journal.start_run(info("later"), host="h", pid=1)
    assert journal.run("later").status == "running"


def test_wal_foreign_keys_and_url(tmp_path: Path) -> None:
    journal = Journal(f"sqlite:///{tmp_path / 'deep' / 'state.db'}")
    with journal._write() as connection:
        assert connection.execute("pragma journal_mode").fetchone()[0] == "wal"
        assert connection.execute("pragma foreign_keys").fetchone()[0] == 1
        assert connection.execute("pragma busy_timeout").fetchone()[0] == 30_000


def test_a_journal_in_memory_serves_several_threads() -> None:
    journal = Journal(":memory:")
    failures: list[BaseException] = []

    def write(number: int) -> None:
        try:
            for turn in range(20):
                journal.start_run(info(f"{number}-{turn}"), host="h", pid=1)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(journal.list_runs(100)) == 80
    assert not Path(":memory:").exists()
    journal.close()


def test_processes_make_the_same_journal_at_once(tmp_path: Path) -> None:
    code = f"from millrace.engine.journal import Journal; Journal({str(tmp_path / 's.db')!r}).list_runs()"
    children = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(4)]
    assert [child.wait(60) for child in children] == [0] * 4


def test_runs_are_found_by_their_beginning(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "state.db")
    for number, run in enumerate(["abcd0000", "abcd1111", "ab%d2222"]):
        journal.start_run(info(run, f"2026-11-20T06:0{number}:00.000Z"), host="h", pid=1)
    assert journal.run("abcd0").id == "abcd0000"
    assert journal.run("ab%").id == "ab%d2222"
    with pytest.raises(NotFound, match="2 runs begin with 'abcd'"):
        journal.run("abcd")
    assert [row.id for row in journal.list_runs(2)] == ["ab%d2222", "abcd1111"]


def test_checks_of_a_later_attempt_replace_the_earlier_ones(shop: Shop) -> None:
    journal = shop.journal()
    journal.start_run(info("r"), host="h", pid=1)
    journal.begin_steps("r", shop.steps)
    odd = AssetId("My Schema", 'a"b.c')
    journal.note_checks("r", shop.steps[0].key, [CheckResult("x", odd, False, True, 3, "d", ("1", "2"))])
    second = CheckResult("y", odd, True)
    journal.note_checks("r", shop.steps[0].key, [second])
    assert journal.checks("r") == [second]
    journal.note_step("r", shop.steps[0].key, bases={odd: 7})
    row = journal.step("r", shop.steps[0].key)
    assert row is not None
    assert row.bases == {odd: 7}


def test_no_secret_reaches_the_journal(shop: Shop) -> None:
    Secret(PASSWORD)
    shop.failing(0, "ConnectionRefused", text=f"cannot reach postgresql://u:{PASSWORD}@h/d and p%40ss%3A%2F%25%22")
    shop.failing(1, "no such class", text=PASSWORD)
    result = shop.run(command=f"millrace run {PASSWORD}")
    assert [step.status for step in result.steps[:2]] == ["failed", "failed"]
    content = b"".join(path.read_bytes() for path in shop.root.glob("state.db*"))
    assert b"cannot reach postgresql" in content
    for form in (PASSWORD, "p%40ss%3A%2F%25%22", 'p@ss:/%\\"'):
        assert form.encode() not in content


def test_leases_are_all_or_none_and_name_their_holder(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "state.db")
    with Leases(journal, "first", 5) as first, Leases(journal, "second", 5) as second:
        first.acquire(["b"], "b")
        with pytest.raises(TargetBusy, match="silver is being worked on by run first") as caught:
            second.acquire(["a", "b", "c"], "silver")
        assert f"on {socket.gethostname()}, pid {os.getpid()}, since 20" in str(caught.value)
        assert journal.leases("second") == []
        first.release(["b"])
        second.acquire(["a", "b", "c"], "silver")
    assert journal.leases("second") == []


def test_a_lease_of_a_dead_process_or_an_old_heartbeat_is_taken_over(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "state.db")
    dead = subprocess.Popen(["true"])
    dead.wait()
    here = socket.gethostname()
    old = LeaseRow("a", "r", "elsewhere", 1, "x", now(), time.time() - 10)
    gone = LeaseRow("b", "r", here, dead.pid, "x", now(), time.time())
    before = LeaseRow("c", "r", here, os.getpid(), "an earlier process with this pid", now(), time.time())
    living = LeaseRow("d", "r", "elsewhere", 1, "x", now(), time.time())
    assert [alive(lease, 5) for lease in (old, gone, before, living)] == [False, False, False, True]
    for lease in (old, gone, before, living):
        assert journal.take_lease(lease, None)
    with Leases(journal, "mine", 5) as leases:
        leases.acquire(["a", "b", "c"], "x")
        with pytest.raises(TargetBusy):
            leases.acquire(["d"], "x")


def test_a_lost_lease_is_noticed(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "state.db")
    with Leases(journal, "mine", 0.3) as leases:
        leases.acquire(["a"], "x")
        time.sleep(0.5)
        assert not leases.lost(["a"])  # the heartbeat keeps it
        thief = LeaseRow("a", "thief", "elsewhere", 1, "x", now(), time.time() + 60)
        assert journal.take_lease(thief, journal.lease("a"))
        with pytest.raises(TargetBusy, match="run thief"):
            leases.confirm(["a"], "x")
        assert leases.lost(["a"])
    assert journal.lease("a") == thief  # what was lost is not released


def test_the_time_to_live_comes_from_the_environment() -> None:
    assert ttl_from({"MILLRACE_LEASE_TTL": "1.5"}) == 1.5
    assert ttl_from({"MILLRACE_LEASE_TTL": "soon"}) == 60
    assert ttl_from({}) == 60


def test_the_engine_imports_no_driver() -> None:
    code = "import sys, millrace.engine.runner, millrace.observe.progress; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    for heavy in ("sqlalchemy", "tenacity", "rich", "psycopg"):
        assert heavy not in loaded
