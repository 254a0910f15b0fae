"""A backfill split by interval: how it is cut, one publish for each part, killed and gone on with."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from doors import execute, rows

from millrace.errors import UsageError
from millrace.steps.intervals import split

from .test_quarantine import BRONZE, Shop, killed


def test_split() -> None:
    assert split("2026-01-30", "2026/02/02", "1d") == [
        ("2026-01-30", "2026-01-31"),
        ("2026-01-31", "2026-02-01"),
        ("2026-02-01", "2026-02-02"),
    ]
    assert split("20260101", "2026-01-01 20:00", "12h") == [
        ("2026-01-01", "2026-01-01 12:00:00"),
        ("2026-01-01 12:00:00", "2026-01-01 20:00:00"),
    ]
    assert split("2026-01-01T00:00+09:00", "2026-01-08T00:00+09:00", "7d") == [
        ("2026-01-01 00:00:00+09:00", "2026-01-08 00:00:00+09:00")
    ]
    assert split("-5", "20", "10") == [("-5", "5"), ("5", "15"), ("15", "20")]
    assert len(split("0", "10000", "1")) == 10_000
    for start, end, every, told in (
        ("2026-01-01", None, "1d", "two ends"),
        (None, "2026-01-01", "1d", "two ends"),
        ("2026-01-01", "2026-01-02", "0d", "'0d' is no length"),
        ("2026-01-01", "2026-01-02", "-1d", "'-1d' is no length"),
        ("2026-01-01", "2026-01-02", "1mo", "'1mo' is no length"),
        ("2026-01-01", "2026-01-02", "", "'' is no length"),
        ("0", "9", "0", "'0' is no length"),
        ("2026-01-02", "2026-01-02", "1d", "the interval is empty"),
        ("9", "1", "2", "the interval is empty"),
        ("2026-01-01", "2026-02-01", "1m", "44,640 intervals, and one command takes 10,000"),
        ("0", "10001", "1", "10,001 intervals"),
        ("yesterday", "2026-02-01", "1d", "'yesterday' is no date or time"),
        ("2026-01-01", "2026-02-01", "7", "no whole numbers"),
        ("2026-01-01 00:00+09", "2026-02-01", "1d", "has a time zone and the other has none"),
    ):
        with pytest.raises(UsageError, match=told):
            split(start, end, every)


def command(*arguments: str, folder: Path, at: str = "", **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "millrace", *arguments],
        cwd=folder,
        env={**os.environ, **({"MILLRACE_KILL_AT": at} if at else {}), **more},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_split_backfill_of_a_project(db18: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_DB_URL", db18)
    shop = Shop(tmp_path, db18)
    shop.copies("incremental")
    shop.write("models/silver/late.sql", "select order_id from bronze.orders where status = 'late'")
    assert shop.run().exit_code == 0
    before = shop.lake.ledger(BRONZE)
    shop.execute("update orders set status = 'open' where order_id in (10, 70, 130)")  # of 40 s: parts 1, 2 and 4
    parts = ("run", "--from", "2026-01-01", "--to", "2026-01-01 00:03:20", "--every", "40s")
    killed(shop, "lake.publish.before_commit:2", *parts, "--select", "bronze.orders+")
    assert [shop.rows()[order]["status"] for order in (10, 70, 130)] == ["open", "paid", "paid"]
    done = command(*parts, "--select", "bronze.orders+", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [shop.rows()[order]["status"] for order in (10, 70, 130)] == ["open", "open", "open"]
    lines = [line for line in done.stdout.splitlines() if line]
    assert lines[0] == " 1 of 5 · 2026-01-01 … 2026-01-01 00:00:40"
    words = [word for line in lines if line.startswith(" copy") for word in ("fresh", "proven") if word in line]
    assert words == ["fresh", "proven", "fresh", "proven", "fresh"]
    assert [line.split()[1] for line in lines if line.startswith(" model")] == ["silver.late"]  # once, at the end
    assert lines[-1].startswith(" 5 intervals in ")
    entry = shop.lake.ledger(BRONZE)
    assert before is not None
    assert entry is not None
    assert entry.position == before.position
    shop.execute("update orders set status = 'lost' where order_id = 71 or order_id > 130")
    shop.execute("delete from orders where order_id between 41 and 75")
    done = command(*parts, "--select", "bronze.orders", folder=tmp_path)
    assert done.returncode == 1
    assert "would lose 35 of" in done.stderr
    assert done.stdout.splitlines()[-1].startswith(" stopped at interval 2 of 5 after ")
    for wrong, told in (
        (("--every", "1d"), "--every splits an interval with two ends"),
        (("--from", "1", "--to", "9", "--every", "3", "--select", "silver.late"), "no copy is selected"),
        ((*parts[1:], "--resume", "1a2b"), "--resume takes up one run"),
    ):
        done = command("run", *wrong, folder=tmp_path)
        assert (done.returncode, told in done.stderr) == (2, True), done.stderr
    shop.source.close()


def test_a_split_backfill_of_one_table(db18: str, other18: str, tmp_path: Path) -> None:
    execute(
        db18,
        "create table t (id int primary key, v text)",
        "insert into t select i, 'v' from generate_series(1, 100) i",
    )
    named = {"SRC": db18, "DST": other18}
    parts = ("copy", "env:SRC", "t", "env:DST", "--mode", "backfill", "--cursor", "id", "--from", "0", "--to", "90")
    parts = (*parts, "--every", "20")
    done = command(*parts, folder=tmp_path, at="postgres.publish.before_commit:3", **named)
    assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr
    assert rows(other18, "select count(*) from t") == [(39,)]
    done = command(*parts, folder=tmp_path, **named)
    assert done.returncode == 0, done.stdout + done.stderr
    assert rows(other18, "select count(*), max(id) from t") == [(89, 89)]
    last = done.stdout.splitlines()[-1]
    assert last.startswith(" 5 intervals in ")
    assert last.endswith("3 published, 2 equal")
    done = command(*parts, "--json", folder=tmp_path, **named)
    assert done.stdout.count('"published": false') == 5
    done = command(*parts, "--dry-run", folder=tmp_path, **named)
    assert (done.returncode, "the whole interval is counted" in done.stderr) == (2, True)
