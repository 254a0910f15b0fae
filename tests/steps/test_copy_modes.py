"""The modes of a copy on real servers: truncate, snapshot, backfill; what each does to a table that is there."""

from __future__ import annotations

import psycopg
import pytest
from doors import Copy, execute, leftovers, rows, table

from millrace.core.staged import Counts
from millrace.errors import GuardRefused


@pytest.fixture
def pair(db18: str, other18: str) -> Copy:
    execute(
        db18,
        "create table t (id int primary key, v text, at timestamp)",
        "insert into t select i, 'v' || i, timestamp '2026-01-01' + i * interval '1 hour' from generate_series(1, 100) i",
    )
    return Copy(db18, other18)


def equal(copy: Copy) -> bool:
    return table(copy.urls[0]) == table(copy.urls[1])


def clean(copy: Copy) -> bool:
    return leftovers(copy.urls[0]) == leftovers(copy.urls[1]) == []


# truncate


def test_truncate(pair: Copy) -> None:
    source, target = pair.urls
    execute(
        source, "create table log (n int, v text)", "insert into log select i % 3, 'x' from generate_series(1, 9) i"
    )
    copy = Copy(source, target, table="log", mode="truncate")  # without a key
    assert copy.dry_run() == Counts(9)
    assert copy.run() is not None
    execute(target, "create view names as select v from log", "alter table log add extra int default 7")
    execute(source, "update log set v = 'y' where n = 1", "insert into log values (1, 'z'), (1, 'z')")
    oid = rows(target, "select 'log'::regclass::oid")
    with psycopg.connect(target) as reading:
        assert reading.execute("select count(*) from names").fetchone() == (9,)
        found = copy.fresh()
        assert (found.fresh, found.publishes, found.proves) == (False, "all rows deleted and loaded", "transfer, table")
        assert copy.dry_run() == Counts(11, 0, 9)
        entry = copy.run()
        assert reading.execute("select count(*) from names").fetchone() == (11,)
    assert entry is not None
    assert (entry.level, entry.rows, entry.counts) == ("table", 11, Counts(11, 0, 9))
    assert rows(target, "select n, v from log order by 1, 2") == rows(source, "select n, v from log order by 1, 2")
    assert rows(target, "select distinct extra, 'log'::regclass::oid from log") == [(7, oid[0][0])]
    assert copy.fresh().fresh
    execute(source, "delete from log")
    for refused in (copy.run, copy.dry_run):
        with pytest.raises(GuardRefused, match=r"would lose 11 of 11 rows"):
            refused()
    assert rows(target, "select count(*) from log") == [(11,)]
    entry = copy.with_(allow_deletes=True).run()
    assert entry is not None
    assert entry.counts == Counts(0, 0, 11)
    assert clean(pair)


def test_truncate_leaves_rows_of_others_alone(pair: Copy) -> None:
    target = pair.urls[1]
    copy = pair.with_(mode="truncate")
    copy.run()
    execute(target, "create table child (t_id int references t on delete cascade)", "insert into child values (5)")
    execute(pair.urls[0], "update t set v = 'new' where id = 5")
    with pytest.raises(GuardRefused, match=r"public\.t in DST cannot all be deleted: child refers to them") as caught:
        copy.run()
    assert "mode full" in str(caught.value)
    execute(
        target,
        "alter table child drop constraint child_t_id_fkey, add foreign key (t_id) references t deferrable",
    )
    entry = copy.run()
    assert entry is not None
    assert entry.counts == Counts(100, 0, 100)
    assert equal(copy)
    assert rows(target, "select t_id from child") == [(5,)]
    execute(pair.urls[0], "delete from t where id = 5")
    with pytest.raises(Exception, match="still referenced from table") as gone:
        copy.run()
    assert rows(target, "select count(*) from t") == [(100,)], gone
    assert clean(pair)
