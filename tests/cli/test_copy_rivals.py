"""`millrace copy` killed, raced, paused and cut off while it brings changes: the rows are right, once, nothing is left."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest

from millrace.app import CopyOptions, copy_table

pytestmark = [pytest.mark.servers, pytest.mark.slow]

TABLE = """
create table accounts (id bigint primary key, name text not null, balance numeric(12, 2), updated_at timestamptz not null);
insert into accounts select i, 'name ' || i, i / 7.0, timestamptz '2026-01-01' + i * interval '1 minute'
from generate_series(1, 5000) as i;
"""
CHANGES = """
update accounts set balance = -1, updated_at = '2027-01-01' where id % 5 = 0;
insert into accounts select i, 'new', 0, '2027-01-01' from generate_series(5001, 5200) as i;
"""
HOWS = {
    "full": ("copy", "env:SRC", "accounts", "env:DST", "accounts"),
    "incremental": (
        *("copy", "env:SRC", "accounts", "env:DST", "accounts"),
        *("--mode", "incremental", "--cursor", "updated_at"),
    ),
}
TTL = {"MILLRACE_LEASE_TTL": "1"}
SECONDS = 120


def ask(url: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(query)
        return cursor.fetchall() if cursor.description else []


@dataclass
class Pair:
    """Two databases, and the command between them."""

    source: str
    target: str
    how: str
    children: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, **more: str) -> subprocess.Popen[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MILLRACE_", "PG"))}
        child = subprocess.Popen(
            [sys.executable, "-m", "millrace", *HOWS[self.how]],
            env={**kept, "NO_COLOR": "1", "COLUMNS": "120", "SRC": self.source, "DST": self.target, **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.children.append(child)
        return child

    def paused(self, point: str, **more: str) -> subprocess.Popen[str]:
        child = self.start(MILLRACE_PAUSE_AT=point, **more)
        _, status = os.waitpid(child.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), child.communicate()
        return child

    def run(self, **more: str) -> tuple[int, str]:
        return ended(self.start(**more))

    def ok(self, **more: str) -> None:
        code, text = self.run(**more)
        assert code == 0, text

    def again(self) -> bool:
        """One more copy, in this process: what it costs to start one is paid once. Says whether it published."""
        options = CopyOptions() if self.how == "full" else CopyOptions(mode="incremental", cursor="updated_at")
        return copy_table(self.source, "accounts", self.target, "accounts", options, trusted_urls=True).published

    @property
    def history(self) -> list[int]:
        return [seq for (seq,) in ask(self.target, "select seq from _millrace.history order by 1")]

    @property
    def equal(self) -> bool:
        query = "select a::text from accounts as a order by 1"
        return ask(self.source, query) == ask(self.target, query)

    @property
    def left(self) -> list[Any]:
        tables = "select relname from pg_class where relnamespace = '_millrace_stage'::regnamespace and relkind = 'r'"
        found = ask(self.target, tables)
        for name in ("stage", "segment"):
            found += ask(self.target, f"select * from _millrace.{name}")
        return found

    @property
    def sessions(self) -> list[Any]:
        """Sessions that still are there after a moment: a server needs one to see that a client has gone."""
        query = (
            "select application_name from pg_stat_activity"
            " where datname = current_database() and application_name like 'millrace%'"
        )
        for _ in range(50):
            found = [*ask(self.source, query), *ask(self.target, query)]
            if not found:
                break
            time.sleep(0.1)
        return found

    def settled(self, seqs: int) -> None:
        """The rows are right; one more run finds nothing to do and leaves nothing."""
        assert self.equal
        assert self.history == list(range(1, seqs + 1))
        assert not self.again()
        assert self.equal
        assert self.history == list(range(1, seqs + 1))
        assert self.left == []
        assert self.sessions == []


def ended(child: subprocess.Popen[str]) -> tuple[int, str]:
    out, error = child.communicate(timeout=SECONDS)
    assert "Traceback" not in error
    return child.returncode, out + error


def woken(child: subprocess.Popen[str]) -> tuple[int, str]:
    os.kill(child.pid, signal.SIGCONT)
    return ended(child)


@pytest.fixture
def pair(db15: str, db18: str) -> Iterator[Pair]:
    """Rows that were copied once, and have changed since."""
    ask(db15, TABLE)
    made = Pair(db15, db18, "incremental")
    assert made.again()
    ask(db15, CHANGES)
    yield made
    for child in made.children:  # a failing test leaves nothing behind
        if child.poll() is None:
            child.kill()
        child.communicate()


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize(
    "point",
    [
        "postgres.stage.segment",
        "postgres.stage.closed",
        "postgres.publish.before_commit",
        "postgres.publish.after_commit",
    ],
)
def test_killed_while_it_brings_changes(pair: Pair, point: str, how: str) -> None:
    pair.how = how
    code, _ = pair.run(MILLRACE_KILL_AT=point)
    assert code == -9
    pair.again()
    pair.settled(2)


@pytest.mark.parametrize("point", ["postgres.stage.segment", "engine.before_publish", "postgres.publish.before_commit"])
def test_case_23_the_second_of_two_copies_refuses(pair: Pair, point: str) -> None:
    first = pair.paused(point)
    code, text = pair.run()
    assert code == 1, text
    assert "is being loaded by run " in text
    assert f"on {socket.gethostname()}, pid {first.pid}, since 2" in text
    code, text = woken(first)
    assert code == 0, text
    pair.settled(2)


@pytest.mark.parametrize("point", ["postgres.stage.closed", "engine.before_publish", "postgres.publish.before_commit"])
def test_a_zombie_is_refused(pair: Pair, point: str) -> None:
    zombie = pair.paused(point, **TTL)
    time.sleep(1.2)
    pair.ok(**TTL)
    assert pair.equal
    assert pair.history == [1, 2]
    code, text = woken(zombie)
    assert code == 1, text
    assert "taken over" in text or "published by someone else" in text
    pair.settled(2)


@pytest.mark.parametrize(
    ("point", "number"),
    [
        ("postgres.stage.segment", signal.SIGINT),
        ("postgres.stage.closed", signal.SIGTERM),
        ("postgres.prove", signal.SIGINT),
    ],
)
def test_interrupted(pair: Pair, point: str, number: signal.Signals) -> None:
    child = pair.paused(point)
    os.kill(child.pid, number)
    code, text = woken(child)
    assert code == 130, text
    assert "stopped" in text or "interrupted" in text
    assert not pair.equal
    assert pair.history == [1]
    pair.again()
    pair.settled(2)


@pytest.mark.parametrize("point", ["postgres.publish.before_commit", "postgres.publish.after_commit"])
def test_the_publishing_session_is_ended_by_the_server(pair: Pair, point: str) -> None:
    """Before the commit it is tried again, after it there is nothing to try: once in both cases."""
    child = pair.paused(point)
    end = (
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where application_name like 'millrace publish%' or application_name like 'millrace%' and query = 'commit'"
    )
    assert ask(pair.target, end) == [(True,)]
    code, text = woken(child)
    assert code == 0, text
    pair.settled(2)
