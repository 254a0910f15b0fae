"""Values that change without a row being written: incremental copies see attached partitions and renamed words."""

from __future__ import annotations

from pathlib import Path

import pytest
from doors import Copy, execute, table
from lakes import Lake

pytestmark = pytest.mark.servers


def test_an_attached_partition_with_old_cursor_values_is_brought(db15: str, other18: str) -> None:
    execute(
        db15,
        "create table t (id int primary key, v text) partition by range (id)",
        "create table p1 partition of t for values from (100) to (200)",
        "create table old (id int primary key, v text)",
        "insert into t select i, 'v' from generate_series(100, 199) i",
        "insert into old select i, 'v' from generate_series(1, 99) i",
    )
    copy = Copy(db15, other18, mode="incremental", cursor="id", verify=None)
    copy.run()
    assert copy.fresh().fresh
    execute(db15, "create table p2 partition of t for values from (200) to (300)")
    assert copy.fresh().fresh, "an empty one changes nothing"
    execute(db15, "alter table t attach partition old for values from (1) to (100)", "insert into t values (200, 'w')")
    assert not copy.fresh().fresh
    entry = copy.run()
    assert entry is not None
    assert entry.counts is not None
    assert (entry.counts.inserted, entry.counts.updated) == (100, 0)
    assert table(db15) == table(other18)
    assert copy.fresh().fresh


def test_renamed_words_and_longer_composites_are_read_again(
    db18: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SRC", db18)
    lake = Lake(tmp_path, db18)
    lake.execute(
        "create type mood as enum ('low', 'high')",
        "create domain feeling as mood[]",
        "create type pair as (a int, b int)",
        "create table t (id int primary key, m mood, f feeling, p pair)",
        "insert into t select i, 'low', '{low,high}', '(1,1)' from generate_series(1, 20) i",
    )
    lake.copy("mode: incremental, cursor: id, verify: never")
    lake.good()
    for change, found in (
        ("alter type mood rename value 'low' to 'calm'", ("calm", "{calm,high}", "(1,1)")),
        ("alter type pair add attribute c text", ("calm", "{calm,high}", "(1,1,)")),
        ("alter type mood add value 'new'", None),
    ):
        lake.execute(change)
        if found is not None:
            assert lake.good().startswith("published")
            row = lake.rows()[1]
            assert (row["m"], row["f"], row["p"]) == found
        assert lake.run().steps[0].status == "fresh"
    lake.source.close()
