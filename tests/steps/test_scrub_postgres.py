"""The rotating scrub of a copy between two PostgreSQL servers."""

from __future__ import annotations

import datetime as dt
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from millrace.core.position import Cursor
from millrace.core.scrub import Scrub
from millrace.core.staged import LedgerEntry
from millrace.errors import GuardRefused

from .doors import Copy, execute, leftovers, rows, table

START = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
T = """create table t (id int primary key, note text, updated_at timestamp not null default '2026-01-01');
insert into t select i, 'n' || i, timestamp '2026-01-01' + i * interval '1 s' from generate_series(1, 1000) i; analyze t"""


def at(days: float) -> str:
    return (START + dt.timedelta(days=days)).isoformat(timespec="seconds")


def run(copy: Copy, days: float) -> tuple[LedgerEntry, str]:
    """Copy at a logical time; returns the entry and the last note."""
    entry = copy.run(logical_time=at(days))
    assert entry is not None
    return entry, copy.ctx.report.notes[-1] if copy.ctx.report.notes else ""


def scrub_of(entry: LedgerEntry) -> Scrub:
    assert isinstance(entry.position, Cursor)
    assert entry.position.scrub is not None
    return entry.position.scrub


@pytest.fixture
def copy(db15: str, db18: str) -> Copy:
    execute(db15, T)
    return Copy(db15, db18, mode="incremental", cursor="updated_at", segment_rows=2_500)


def test_case_16_deletes_and_changes_by_hand_are_mended_in_turn(copy: Copy) -> None:
    source, target = copy.urls
    run(copy, 0)
    execute(source, "delete from t where id in (3, 999)", "insert into t values (2000, 'new', '2026-02-01')")
    execute(target, "update t set note = 'by hand' where id = 555", "delete from t where id = 556", "analyze t")
    assert run(copy, 0.1)[1] == ""
    notes = [run(copy, day)[1] for day in range(1, 8)]
    told = ("1 row deleted at the source", "1 row missing, 1 row changed", "equal")
    assert [sum(note.endswith(words) for note in notes) for words in told] == [2, 1, 4]
    assert all(note.startswith("scrub: ") and note.split()[3] == "10" for note in notes)
    assert table(source) == table(target)
    entry = copy.target.ledger(copy.spec.asset)
    assert entry is not None
    assert (entry.level, scrub_of(entry).proven.count(at(7)) > 0) == ("applied", True)
    execute(
        source, "update t set note = 'x', updated_at = '2026-03-01' where id % 7 = 0", "delete from t where id = 20"
    )
    execute(target, "update t set note = 'by hand' where id = 20")
    entry, note = run(copy, 30)
    assert (note, entry.level, entry.rows) == ("scrub: the whole table, 1 row deleted at the source", "table", 998)
    assert table(source) == table(target)
    assert leftovers(target) == []


def test_case_15_a_row_that_was_committed_late_with_an_old_cursor(db15: str, db18: str) -> None:
    execute(db15, T, "alter table t rename to hidden", "create view t as select * from hidden")
    copy = Copy(db15, db18, mode="incremental", cursor="updated_at", key=("id",))
    run(copy, 0)
    execute(db15, "insert into hidden values (2000, 'late', '2020-01-01')")
    assert run(copy, 0.1)[1] == ""
    assert len(table(db18)) == 1000
    assert run(copy, 20)[1] == "scrub: the whole table, 1 row missing"
    assert table(db15) == table(db18)


def test_too_many_deletes_are_refused_and_never_is_never(copy: Copy) -> None:
    source, target = copy.urls
    run(copy, 0)
    execute(source, "delete from t where id < 900")
    assert run(copy.with_(verify=None), 20)[1] == ""
    with pytest.raises(GuardRefused, match="would lose 899 of 1,000 rows"):
        copy.run(logical_time=at(20))
    assert len(table(target)) == 1000
    assert leftovers(target) == []
    assert run(copy.with_(allow_deletes=True), 20)[1] == "scrub: the whole table, 899 rows deleted at the source"
    assert table(source) == table(target)


def test_text_keys_with_several_versions(db15: str, db18: str) -> None:
    execute(
        db15,
        "create table t (id text, note text, updated_at timestamp);"
        "insert into t select 'k' || i % 400, 'n' || i, timestamp '2026-01-01' + i * interval '1 s'"
        " from generate_series(1, 600) i; analyze t",
    )
    copy = Copy(db15, db18, mode="incremental", cursor="updated_at", key=("id",), segment_rows=2_500)
    run(copy, 0)
    execute(db15, "delete from t where id in ('k7', 'k300')", "insert into t values ('k9', 'newest', '2027-01-01')")
    entry, note = run(copy, 20)
    assert (note, scrub_of(entry).how) == ("scrub: the whole table, 2 rows deleted at the source", "bucket")
    newest = "select r::text from (select distinct on (id) * from t order by id, updated_at desc) r order by 1"
    assert rows(db15, newest) == rows(db18, "select t::text from t order by 1")
    assert run(copy, 40)[1] == "scrub: the whole table, equal"


@pytest.mark.parametrize(
    "point", ["postgres.stage.segment:2", "postgres.stage.closed", "postgres.publish.before_commit"]
)
def test_a_killed_scrub_has_proven_nothing_and_is_made_again(copy: Copy, point: str) -> None:
    source, target = copy.urls
    run(copy, 0)
    execute(source, "delete from t where id in (3, 700)", "insert into t values (2000, 'new', '2026-02-01')")
    arguments = [*copy.urls, json.dumps(copy.spec.to_json()), "killed"]
    environment = {**os.environ, "MILLRACE_KILL_AT": point}
    child = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("doors.py")), *arguments], env=environment, check=False
    )
    assert child.returncode == -9
    entry = copy.target.ledger(copy.spec.asset)
    assert entry is not None
    assert (entry.seq, scrub_of(entry).since) == (1, at(0))
    entry, note = run(copy, 900)
    assert (note, entry.level) == ("scrub: the whole table, 2 rows deleted at the source", "table")
    assert table(source) == table(target)
    assert leftovers(target) == []
