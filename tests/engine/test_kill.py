"""Runs in child processes that are killed, stopped, interrupted or raced; one more run must put all right."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from filetarget import Shop

CHILD = Path(__file__).with_name("filetarget.py")
ALONE = ["file.stage.row", "engine.staged", "file.prove", "engine.proven", "engine.before_publish",
         "file.publish.before_commit", "file.publish.after_commit", "engine.after_publish", "engine.done"]  # fmt: skip
ALL = {
    "bronze.customers": (1, ["ann", "bob"]),
    "bronze.orders": (1, ["one", "two", "three"]),
    "silver.orders": (1, ["ONE", "TWO", "THREE", "ANN", "BOB"]),
}


def start(shop: Shop, environment: dict[str, str] | None = None, **arguments: Any) -> subprocess.Popen[str]:
    shop.save()
    return subprocess.Popen(
        [sys.executable, CHILD, str(shop.root), json.dumps(arguments)],
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(child: subprocess.Popen[str]) -> tuple[int, dict[str, Any]]:
    out, err = child.communicate(timeout=60)
    assert "Traceback" not in err, err
    return child.returncode, json.loads(out.splitlines()[-1]) if out.strip() else {}


def wait_stopped(child: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 30
    while Path(f"/proc/{child.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "T":
        assert child.poll() is None, child.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("again", ["new run", "resume"])
@pytest.mark.parametrize("together", [False, True], ids=["alone", "group"])
@pytest.mark.parametrize("point", ALONE)
def test_killed_anywhere_ends_like_an_undisturbed_run(shop: Shop, point: str, together: bool, again: str) -> None:
    if together:
        shop.together()
    count = 2 if point in ("file.stage.row", "engine.staged", "engine.proven", "file.prove") else 1
    code, _ = end(start(shop, {"MILLRACE_KILL_AT": f"{point}:{count}"}))
    assert code == -signal.SIGKILL
    dead = shop.journal().list_runs(1)[0]
    assert dead.status == "running"
    result = shop.run(resume=dead.id) if again == "resume" else shop.run()
    assert result.exit_code == 0, result.errors
    assert shop.state() == ALL  # every seq is 1: nothing was published twice
    assert shop.lake.leftovers() == []
    assert shop.journal().run(dead.id).status == ("done" if again == "resume" else "killed")
    assert not list((shop.root / "work" / "scratch").glob("*"))


def test_a_stage_that_was_whole_is_published_by_resume_without_staging_again(shop: Shop) -> None:
    shop.steps = shop.steps[:1]
    end(start(shop, {"MILLRACE_KILL_AT": "engine.before_publish"}))
    shop.failing(0, "ProofFailed", text="staged again")
    assert shop.run(resume=shop.journal().list_runs(1)[0].id).exit_code == 0
    assert shop.state() == {"bronze.orders": ALL["bronze.orders"]}


def test_a_stage_is_made_again_when_its_code_changed(shop: Shop) -> None:
    shop.steps = shop.steps[:1]
    end(start(shop, {"MILLRACE_KILL_AT": "engine.before_publish"}))
    shop.failing(0, "ProofFailed", text="staged again")
    shop.steps[0] = shop.steps[0].__class__(
        **{**{n: getattr(shop.steps[0], n) for n in shop.steps[0].__slots__}, "code": "2"}
    )
    assert shop.run(resume=shop.journal().list_runs(1)[0].id).errors[0].what == "staged again"


def test_two_runs_at_once_the_second_names_the_first(shop: Shop) -> None:
    first = start(shop, {"MILLRACE_PAUSE_AT": "engine.before_publish"})
    wait_stopped(first)
    run = shop.journal().list_runs(1)[0].id
    code, second = end(start(shop))
    assert code == 1
    error = second["steps"][0]["error"]
    assert error["code"] == "TargetBusy"
    assert error["what"] == f"bronze.orders is being worked on by run {run[:4]}"
    assert f"pid {first.pid}" in error["detail"][0]
    assert [step["status"] for step in second["steps"]] == ["failed", "published", "skipped"]
    assert (shop.lake.root / "stage" / run).exists()  # the living run's stage is nobody else's to drop
    first.send_signal(signal.SIGCONT)
    code, done = end(first)
    assert (code, [step["status"] for step in done["steps"]]) == (0, ["published", "fresh", "published"])
    assert shop.state() == ALL


def test_a_living_run_cannot_be_resumed(shop: Shop) -> None:
    first = start(shop, {"MILLRACE_PAUSE_AT": "engine.staged"})
    wait_stopped(first)
    run = shop.journal().list_runs(1)[0].id
    code, answer = end(start(shop, resume=run[:4]))
    assert (code, answer["raised"]["what"]) == (3, f"run {run[:4]} is being worked on by run {run[:4]}")
    assert shop.journal().run(run).status == "running"
    first.send_signal(signal.SIGCONT)
    assert end(first)[0] == 0


@pytest.mark.parametrize("point", ["engine.before_publish", "engine.staged", "file.publish.after_commit"])
def test_a_zombie_that_wakes_after_its_time_is_refused(shop: Shop, point: str) -> None:
    shop.steps = shop.steps[:1]
    ttl = {"MILLRACE_LEASE_TTL": "0.6"}
    zombie = start(shop, {**ttl, "MILLRACE_PAUSE_AT": point})
    wait_stopped(zombie)
    if point == "file.publish.after_commit":  # it stands inside the target's own lock, its commit is out
        time.sleep(0.7)
        zombie.send_signal(signal.SIGCONT)
        assert end(zombie)[0] == 0
        assert shop.state() == {"bronze.orders": ALL["bronze.orders"]}
        return
    time.sleep(0.7)
    shop.orders.write_text("newer\n")
    assert end(start(shop, ttl))[0] == 0
    assert shop.state() == {"bronze.orders": (1, ["newer"])}
    zombie.send_signal(signal.SIGCONT)
    code, answer = end(zombie)
    assert code == 1
    assert answer["steps"][0]["error"]["code"] == ("SeqMoved" if point == "engine.before_publish" else "TargetBusy")
    assert shop.state() == {"bronze.orders": (1, ["newer"])}
    assert shop.lake.leftovers() == []


@pytest.mark.parametrize("together", [False, True], ids=["alone", "group"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_where_it_can_be_resumed(shop: Shop, number: signal.Signals, together: bool) -> None:
    if together:
        shop.together()
    child = start(shop, {"MILLRACE_PAUSE_AT": "file.stage.row:4"})  # in the second step
    wait_stopped(child)
    child.send_signal(number)
    child.send_signal(signal.SIGCONT)
    code, answer = end(child)
    assert code == 130
    expected = (
        ["discarded", "interrupted", "skipped", "skipped"] if together else ["published", "interrupted", "skipped"]
    )
    assert [step["status"] for step in answer["steps"]] == expected
    journal = shop.journal()
    (run,) = journal.list_runs(2)
    assert run.status == "interrupted"
    assert journal.leases(run.id) == []
    assert shop.run(resume=run.id[:4]).exit_code == 0
    assert shop.state() == ALL
    assert shop.lake.leftovers() == []


def test_a_signal_ends_a_wait_between_attempts(shop: Shop) -> None:
    shop.failing(0, "TransientFailure")
    child = start(shop, {"MILLRACE_RETRY_WAIT": "60", "SHOW": "1"})
    deadline = time.monotonic() + 20
    while not (shop.root / "count0").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.2)
    child.send_signal(signal.SIGINT)
    code, answer = end(child)
    assert code == 130
    assert answer["steps"][0]["status"] == "interrupted"


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_second_signal_ends_at_once(shop: Shop, jobs: int) -> None:
    shop.failing(0, "sleep", times=1)
    child = start(shop, jobs=jobs)
    deadline = time.monotonic() + 20
    while not (shop.root / "count0").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.2)
    child.send_signal(signal.SIGINT)
    time.sleep(0.2)
    assert child.poll() is None  # a step that does not look is left to end by itself
    child.send_signal(signal.SIGINT)
    code, answer = end(child)
    assert code == 130
    assert answer["steps"][0]["error"]["what"] == "stopped at once"
    journal = shop.journal()
    (run,) = journal.list_runs(2)
    assert (run.status, journal.leases(run.id)) == ("interrupted", [])
    assert shop.run().exit_code == 0


def test_a_stage_of_a_dead_run_is_kept_for_a_day_and_not_longer(shop: Shop) -> None:
    end(start(shop, {"MILLRACE_KILL_AT": "engine.staged"}))
    dead = shop.journal().list_runs(1)[0].id
    everything, shop.steps = shop.steps, [shop.copy("customers")]
    shop.run()
    assert (shop.lake.root / "stage" / dead).exists()
    with contextlib.closing(sqlite3.connect(shop.root / "state.db")) as connection, connection:
        connection.execute("update steps set started = '2026-01-01T00:00:00Z', ended = null where run = ?", (dead,))
    shop.run()
    assert not (shop.lake.root / "stage" / dead).exists()
    shop.steps = everything
    assert shop.run().exit_code == 0


def test_a_stage_of_another_journal_is_kept_for_a_day(shop: Shop) -> None:
    end(start(shop, {"MILLRACE_KILL_AT": "engine.staged"}))
    dead = shop.journal().list_runs(1)[0].id
    for path in shop.root.glob("state.db*"):
        path.unlink()
    shop.steps = [shop.copy("customers")]
    shop.run()
    assert (shop.lake.root / "stage" / dead).exists()
