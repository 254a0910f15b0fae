"""Killed, paused and cut-off copies from PostgreSQL to PostgreSQL: a later run ends in the rows of an undisturbed one."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from doors import Copy, execute, leftovers, rows, table

from millrace.core import events
from millrace.core.names import new_run_id
from millrace.errors import CommitUnknown, MillraceError, SeqMoved, TargetBusy, TransientFailure

pytestmark = pytest.mark.slow

CHILD = Path(__file__).with_name("doors.py")
POINTS = [
    "postgres.stage.segment:2",
    "postgres.stage.closed",
    "postgres.prove",
    "postgres.publish.before_commit",
    "postgres.publish.after_commit",
]
HOWS = ["create", "sync", "merge"]
RARER = [
    (how, point)
    for how in ("truncate", "snapshot", "interval")
    for point in ("postgres.publish.before_commit", "postgres.publish.after_commit")
]
SWAPPED = [("swap", point) for point in ("postgres.stage.closed", "postgres.publish.before_commit")]


@pytest.fixture
def pair(db15: str, other18: str) -> Copy:
    execute(
        db15,
        "create type mood as enum ('sad', 'ok')",
        "create table t (id serial primary key, v text default 'x' check (v <> ''), n numeric, changed timestamp,"
        " twice numeric generated always as (n * 2) stored, mood mood default 'ok', unique (id, v))",
        "create index by_v on t (lower(v)) where id > 1",
        "insert into t select i, 'v' || i, i / 7.0, timestamp '2026-01-01' + i * interval '1 second' "
        "from generate_series(1, 2000) i",
    )
    return Copy(db15, other18, segment_rows=250, workers=1)


def prepared(pair: Copy, how: str) -> Copy:
    """Bring the target so far that the next copy is of that kind."""
    if how == "merge":
        pair = pair.with_(mode="incremental", cursor="changed")
    elif how == "interval":
        pair = pair.with_(mode="backfill", cursor="changed", start="2026-01-01")
    elif how in ("truncate", "snapshot"):
        pair = pair.with_(mode=how)
    elif how == "swap":
        execute(pair.urls[0], "insert into t select i, 'more ' || i, i from generate_series(3001, 9000) i")
    if how != "create":
        pair.run()
        execute(
            pair.urls[0],
            "update t set v = 'changed', changed = now() where id % 3 = 0",
            "insert into t select i, 'new', i, now() from generate_series(2001, 2100) i",
        )
        if how == "swap":
            execute(pair.urls[0], "update t set v = 'other ' || id")
        if how == "sync":
            execute(pair.urls[0], "delete from t where id % 10 = 1")
    return pair


def start(copy: Copy, run: str, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, CHILD, *copy.urls, json.dumps(copy.spec.to_json()), run]
    return subprocess.Popen(
        command, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def answer(child: subprocess.Popen[str]) -> Any:
    out, error = child.communicate(timeout=60)
    assert out, error
    return json.loads(out.splitlines()[-1])


def equal(copy: Copy) -> bool:
    if copy.spec.mode != "snapshot":
        return table(copy.urls[0]) == table(copy.urls[1])
    query = "select id, v, n::text, changed from t {} order by 1"
    return rows(copy.urls[0], query.format("")) == rows(copy.urls[1], query.format("where valid_to is null"))


def clean(copy: Copy) -> bool:
    return leftovers(copy.urls[0]) == leftovers(copy.urls[1]) == []


def history(copy: Copy) -> list[Any]:
    return [seq for (seq,) in rows(copy.urls[1], "select seq from _millrace.history order by seq")]


@pytest.mark.parametrize(("how", "point"), [*((how, point) for point in POINTS for how in HOWS), *RARER, *SWAPPED])
def test_case_22_killed(pair: Copy, how: str, point: str) -> None:
    copy = prepared(pair, how)
    seq = 0 if how == "create" else 1
    if how == "merge":
        point = point.removesuffix(":2")  # the changes are one segment
    child = start(copy, new_run_id(), MILLRACE_KILL_AT=point)
    child.communicate(timeout=60)
    assert child.returncode == -signal.SIGKILL
    published = point.endswith("after_commit")
    assert history(copy) == list(range(1, seq + 1 + published))
    execute(
        copy.urls[0],
        "update t set v = 'changed meanwhile', changed = now() where id = 6",
        "insert into t values (-1, 'meanwhile', 0, now())",
    )
    entry = copy.run()
    assert entry is not None
    assert entry.seq == seq + 1 + published
    assert equal(copy)
    assert copy.fresh().fresh
    assert clean(copy)
    assert entry.note.startswith("by swap: 100%") == (how == "swap")
    if how == "create" and not published:
        assert any("segments kept from run" in note for note in copy.ctx.report.notes)
        assert not any("left out" in note for note in copy.ctx.report.notes)
        indexes = "select indexdef from pg_indexes where tablename = 't' order by 1"
        checks = (
            "select conname, pg_get_constraintdef(oid) from pg_constraint where conrelid = 't'::regclass order by 1"
        )
        columns = "select column_name, column_default from information_schema.columns where table_name = 't' order by 1"
        for query in (indexes, checks.replace(" order", " and contype <> 'n' order"), columns):
            assert rows(copy.urls[0], query) == rows(copy.urls[1], query)
        assert copy.ctx.report.rows < 2000


def test_all_segments_are_kept_when_nothing_changed(pair: Copy) -> None:
    run = new_run_id()
    child = start(pair, run, MILLRACE_KILL_AT="postgres.publish.before_commit")
    child.communicate(timeout=60)
    assert pair.run() is not None
    kept = [note for note in pair.ctx.report.notes if "kept" in note]
    total = kept[0].split(" ")[2]
    assert kept == [f"{total} of {total} segments kept from run {run[:4]}"]
    assert pair.ctx.report.rows == 0
    assert equal(pair)
    assert clean(pair)


def test_the_same_run_adopts_what_it_published(pair: Copy) -> None:
    run = new_run_id()
    staged = pair.stage(run)
    proofs = pair.prove(staged)
    first = pair.publish(staged, proofs)
    execute(pair.urls[0], "delete from t where id = 1")
    pair.run()
    again = Copy(*pair.urls, pair.spec)
    assert again.publish(staged, proofs) == first  # also when others have published since
    assert history(pair) == [1, 2]


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("point", [POINTS[0], POINTS[2], POINTS[3]])
def test_a_zombie_is_refused(pair: Copy, how: str, point: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLRACE_LEASE_TTL", "2")
    copy = prepared(pair, how)
    point = point.removesuffix(":2") if how == "merge" else point
    child = start(copy, new_run_id(), MILLRACE_PAUSE_AT=point)
    try:
        os.waitpid(child.pid, os.WUNTRACED)
        with pytest.raises(TargetBusy):
            copy.run()
        time.sleep(2.2)  # the time to live
        entry = copy.run()
        assert entry is not None
        assert equal(copy)
    finally:
        os.kill(child.pid, signal.SIGCONT)
    assert answer(child)["error"] in ("SeqMoved", "TransientFailure")
    assert equal(copy)
    assert copy.target.ledger(copy.spec.asset) == entry
    assert history(copy)[-1] == entry.seq
    assert clean(copy)


def test_a_zombie_drops_only_its_own_stage(pair: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLRACE_LEASE_TTL", "2")
    child = start(pair, new_run_id(), MILLRACE_PAUSE_AT="postgres.prove")
    try:
        os.waitpid(child.pid, os.WUNTRACED)
        time.sleep(2.2)
        staged = pair.stage()
    finally:
        os.kill(child.pid, signal.SIGCONT)
    assert answer(child)["error"] == "SeqMoved"
    pair.publish(staged, pair.prove(staged))
    assert equal(pair)
    assert clean(pair)


def test_two_processes_at_once(pair: Copy) -> None:
    children = [start(pair, new_run_id()) for _ in range(3)]
    answers = [answer(child) for child in children]
    assert [found["seq"] for found in answers if found.get("seq")] == [1], answers
    assert equal(pair)
    assert clean(pair)


# commits without an answer


class Proxy:
    """Forwards connections to a server; can swallow the answer to what is sent next."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._to = (parts.hostname, parts.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = parts._replace(netloc=f"postgres@127.0.0.1:{self._listener.getsockname()[1]}").geturl()
        self.swallow = threading.Event()
        self.refuse = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.refuse.is_set():
                client.close()
                continue
            server = socket.create_connection(self._to)
            threading.Thread(target=self._pump, args=(client, server, False), daemon=True).start()
            threading.Thread(target=self._pump, args=(server, client, True), daemon=True).start()

    def _pump(self, one: socket.socket, other: socket.socket, answers: bool) -> None:
        try:
            while data := one.recv(65536):
                if answers and self.swallow.is_set():
                    self.swallow.clear()
                    break
                other.sendall(data)
        except OSError:
            pass
        for end in (one, other):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        one.close()

    def close(self) -> None:
        self._listener.close()


@contextmanager
def at(point: str, do: Any) -> Iterator[None]:
    stop = events.listen(lambda reached: do() if reached == point else None)
    try:
        yield
    finally:
        stop()


@pytest.mark.parametrize("how", HOWS)
def test_a_commit_without_an_answer_is_adopted(pair: Copy, how: str) -> None:
    copy = prepared(pair, how)
    proxy = Proxy(copy.urls[1])
    through = Copy(copy.urls[0], proxy.url, copy.spec)
    with at("postgres.publish.before_commit", proxy.swallow.set):
        entry = through.run()
    proxy.close()
    assert entry is not None
    assert entry == copy.target.ledger(copy.spec.asset)
    assert history(copy)[-1] == entry.seq
    assert equal(copy)
    assert clean(copy)


def test_a_server_that_does_not_come_back_is_a_commit_unknown(pair: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millrace.postgres.target.LOST_ATTEMPTS", 2)
    proxy = Proxy(pair.urls[1])
    through = Copy(pair.urls[0], proxy.url, pair.spec)
    staged = through.stage()
    proofs = through.prove(staged)

    def cut() -> None:
        proxy.swallow.set()
        proxy.refuse.set()

    with at("postgres.publish.before_commit", cut), pytest.raises(CommitUnknown):
        through.publish(staged, proofs)
    proxy.refuse.clear()
    entry = through.publish(staged, proofs)  # as the engine does: the ledger decides
    proxy.close()
    assert entry == pair.target.ledger(pair.spec.asset)
    assert history(pair) == [1]
    assert clean(pair)


def test_a_commit_that_did_not_happen_can_be_tried_again(pair: Copy) -> None:
    staged = pair.stage()
    proofs = pair.prove(staged)
    ended: list[Any] = []

    def end() -> None:
        if not ended:
            query = (
                "select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'millrace publish%'"
            )
            ended.extend(rows(pair.urls[1], query))

    with at("postgres.publish.before_commit", end):
        with pytest.raises(TransientFailure, match="was not committed"):
            pair.publish(staged, proofs)
        assert ended
        assert history(pair) == []
        entry = pair.publish(staged, proofs)
    assert entry.seq == 1
    assert equal(pair)
    assert clean(pair)


def test_case_21_a_connection_killed_in_mid_copy_is_resumed(pair: Copy) -> None:
    def end() -> None:
        rows(
            pair.urls[0],
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'millrace%'"
            " and datname = current_database()",
        )

    with at("postgres.stage.segment", end), pytest.raises(TransientFailure):
        pair.run()
    entry = pair.run()
    assert entry is not None
    assert any(note.startswith("1 of ") and "kept" in note for note in pair.ctx.report.notes)
    assert equal(pair)
    assert clean(pair)


def test_a_stage_of_a_live_process_elsewhere_is_respected(pair: Copy) -> None:
    staged = pair.stage()
    execute(pair.urls[1], "update _millrace.stage set host = 'elsewhere', pid = 1")
    with pytest.raises(TargetBusy, match="is being loaded by run") as caught:
        Copy(*pair.urls, pair.spec).run()
    assert "on elsewhere, pid 1, since " in str(caught.value)
    execute(pair.urls[1], "update _millrace.stage set heartbeat = now() - interval '2 minutes'")
    other = Copy(*pair.urls, pair.spec)
    assert other.run() is not None
    with pytest.raises(MillraceError) as refused:
        pair.publish(staged, pair.prove(staged))
    assert isinstance(refused.value, SeqMoved)
    assert clean(pair)
