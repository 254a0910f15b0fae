"""The modes of a copy on real servers: truncate, snapshot, backfill; what each does to a table that is there."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest
from doors import Copy, execute, leftovers, rows, table

from millrace.app import compare, open_house
from millrace.app.verify import verify
from millrace.core.names import AssetId
from millrace.core.staged import Counts
from millrace.errors import ContractBroken, GuardRefused, UsageError


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
        assert (found.fresh, found.publishes, found.proves) == (
            False,
            "all rows deleted and loaded · binary",
            "transfer, table",
        )
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


# snapshot


def versions(copy: Copy, where: str = "true") -> list[tuple[object, ...]]:
    query = f"select id, v, valid_to is null, valid_from < coalesce(valid_to, 'infinity') from t where {where} order by id, valid_from"
    return rows(copy.urls[1], query)


def test_snapshot(pair: Copy) -> None:
    source, target = pair.urls
    execute(source, "alter table t add twice int generated always as (id * 2) stored")
    copy = pair.with_(mode="snapshot", segment_rows=500)
    assert copy.dry_run() == Counts(100)
    first = copy.run()
    assert first is not None
    assert (first.level, first.rows, first.counts) == ("table", 100, Counts(100))
    assert copy.fresh().fresh
    assert copy.run() is None
    began = rows(target, "select distinct valid_from, valid_to from t")
    assert len(began) == 1
    execute(
        source, "update t set v = 'new' where id = 1", "delete from t where id = 2", "insert into t values (101, 'a')"
    )
    found = copy.fresh()
    assert (found.fresh, found.publishes, found.proves) == (
        False,
        "new versions of changed rows · binary",
        "transfer, table",
    )
    assert copy.dry_run() == Counts(1, 1, 1)
    entry = copy.run()
    assert entry is not None
    assert (entry.level, entry.rows, entry.counts) == ("table", 100, Counts(1, 1, 1))
    assert versions(copy, "id in (1, 2, 101)") == [
        (1, "v1", False, True),
        (1, "new", True, True),
        (2, "v2", False, True),
        (101, "a", True, True),
    ]
    opened = "select valid_from from t where id = 1 and valid_to is null"
    assert (
        rows(target, "select valid_to from t where id in (1, 2) and valid_to is not null") == rows(target, opened) * 2
    )
    assert rows(target, "select count(*) from t where valid_from = (select min(valid_from) from t)") == [(100,)]
    execute(
        source, "insert into t values (2, 'v2', timestamp '2026-01-01 02:00')", "update t set v = 'v1' where id = 1"
    )
    entry = copy.run()
    assert entry is not None
    assert entry.counts == Counts(1, 1, 0)
    assert [row[1:3] for row in versions(copy, "id in (1, 2)")] == [
        ("v1", False), ("new", False), ("v1", True), ("v2", False), ("v2", True)
    ]  # fmt: skip
    query = "select id, v, at, twice from t {} order by id"
    assert rows(source, query.format("")) == rows(target, query.format("where valid_to is null"))
    assert copy.fresh().fresh
    assert copy.run() is None
    execute(source, "delete from t where id > 20")
    for refused in (copy.run, copy.dry_run):
        with pytest.raises(GuardRefused, match=r"would lose 81 of 101 rows"):
            refused()
    assert clean(pair)


def test_snapshot_is_not_led_astray(pair: Copy) -> None:
    source, target = pair.urls
    copy = pair.with_(mode="snapshot")
    copy.run()
    execute(
        target,
        "update t set v = 'by hand' where id = 3",
        "update t set valid_from = now() + interval '1 day' where id = 4",
    )
    execute(source, "update t set v = 'x' where id in (4, 5)")
    entry = copy.run()  # the clock went back: versions still follow one another
    assert entry is not None
    assert entry.counts == Counts(0, 3, 0)
    assert [row[1:] for row in versions(copy, "id in (3, 4)")] == [
        ("by hand", False, True), ("v3", True, True), ("v4", False, True), ("x", True, True)
    ]  # fmt: skip
    with pytest.raises(psycopg.errors.UniqueViolation):
        execute(target, "insert into t (id, valid_from) values (3, '2001-01-01')")
    full = pair.with_(mode="full", key=())
    with pytest.raises(ContractBroken, match="valid_from"):
        full.run()
    plain = Copy(source, target, into="public.p")
    plain.run()
    with pytest.raises(ContractBroken, match=r"public\.p in DST is no table of versions"):
        plain.with_(mode="snapshot").run()
    execute(source, "alter table t rename at to valid_to")
    with pytest.raises(UsageError, match="has a column valid_to, which mode snapshot adds itself"):
        copy.run()
    query = copy.with_(key=("id",), select="id, v, valid_to as at")
    assert query.dry_run() == Counts()
    assert clean(pair)


@pytest.mark.parametrize("mode", ["full", "incremental"])
def test_a_key_that_is_equal_and_not_the_same(pair: Copy, mode: str) -> None:
    source, target = pair.urls
    execute(
        source,
        "drop table t",
        "create table t (id numeric, f float8, v text, primary key (id, f))",
        "insert into t select i, 0, 'v' from generate_series(1, 20) i",
    )
    copy = pair.with_(mode=mode, cursor="id" if mode == "incremental" else None)
    copy.run()
    execute(source, "update t set id = 7.00, f = '-0' where id = 7")
    entry = copy.run()
    assert entry is not None
    assert entry.counts == Counts(0, 1)
    assert table(source) == table(target)
    assert copy.run() is None or mode == "incremental"
    assert clean(pair)


# backfill


def test_backfill(pair: Copy) -> None:
    source, target = pair.urls
    grows = pair.with_(mode="incremental", cursor="at", segment_rows=500)
    grows.run()
    before = pair.target.ledger(pair.spec.asset)
    day = grows.with_(mode="backfill", start="2026-01-02", end="2026-01-03")  # ids 24 to 47
    assert day.fresh().reason == "the interval is equal"
    assert day.run() is None
    execute(target, "update t set v = 'by hand' where id in (30, 60)", "delete from t where id in (31, 61)")
    execute(source, "delete from t where id in (32, 62)", "update t set v = 'x' where id = 33")
    execute(source, "update t set at = '2026-01-04 12:00' where id = 34")  # it has left the interval
    execute(source, "update t set at = '2026-01-02 12:00' where id = 80")  # it has come into it
    found = day.fresh()
    assert (found.fresh, found.reason, found.proves) == (False, "the interval differs", "transfer, applied")
    assert day.dry_run() == Counts(1, 4, 1)
    entry = day.run()
    assert entry is not None
    assert before is not None
    assert (entry.level, entry.counts, entry.position) == ("applied", Counts(1, 4, 1), before.position)
    inside = "select * from t where at >= '2026-01-02' and at < '2026-01-03' order by id"
    assert rows(source, inside) == rows(target, inside)
    assert rows(target, "select id, v, at::text from t where id in (34, 60, 61, 62) order by id") == [
        (34, "v34", "2026-01-04 12:00:00"),  # not lost
        (60, "by hand", "2026-01-03 12:00:00"),
        (62, "v62", "2026-01-03 14:00:00"),
    ]
    assert day.fresh().fresh
    execute(source, "insert into t values (200, 'new', '2026-03-01')")
    assert grows.run() is not None  # goes on from its own position
    assert rows(target, "select v from t where id = 200") == [("new",)]
    open_end = day.with_(end=None)
    entry = open_end.run()
    assert entry is not None
    assert table(source) == table(target)
    execute(source, "delete from t where at >= '2026-01-02' and at < '2026-01-03'")
    with pytest.raises(GuardRefused, match=r"would lose 23 of 23 rows"):
        day.run()
    assert clean(pair)


def test_bounds_of_an_interval(pair: Copy) -> None:
    source, target = pair.urls
    execute(source, "alter table t alter at type text using to_char(at, 'YYYYMMDD')")
    copy = pair.with_(mode="incremental", cursor="at", cursor_format="yyyymmdd")
    copy.run()
    execute(target, "update t set v = 'by hand' where at = '20260102'")
    day = copy.with_(mode="backfill", start="2026-01-02", end="2026/01/03")
    assert day.dry_run() == Counts(0, 24)
    entry = day.run()
    assert entry is not None
    assert table(source) == table(target)
    assert day.with_(start="20260102").fresh().fresh
    for start, end, says in (
        ("2026-01-03", "2026-01-02", "the interval is empty"),
        ("2026-01-02 09:00+09", None, "is no bound of the cursor"),
        ("", None, "is no bound of the cursor"),
    ):
        with pytest.raises(UsageError, match=says):
            day.with_(start=start, end=end).run()
    for start, end, says in (("9", "10", ""), ("10", "9", "the interval is empty"), ("x", None, "no interval of the")):
        ids = day.with_(cursor="id", cursor_format=None, start=start, end=end)
        if not says:
            assert ids.fresh().fresh
            continue
        with pytest.raises(UsageError, match=says):
            ids.run()


def test_a_backfill_makes_a_table_and_the_position_is_open(pair: Copy) -> None:
    day = pair.with_(mode="backfill", cursor="at", start="2026-01-02", end="2026-01-03")
    entry = day.run()
    assert entry is not None
    assert (entry.level, entry.counts) == ("applied", Counts(24))
    assert day.fresh().fresh
    grows = day.with_(mode="incremental", start=None, end=None)
    entry = grows.run()
    assert entry is not None
    assert entry.counts == Counts(76)
    assert equal(pair)
    assert clean(pair)


def test_modes_of_a_project(pair: Copy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = pair.urls
    monkeypatch.setenv("SRC", source)
    monkeypatch.setenv("DST", target)
    connections = 'connections: {src: {type: postgres, url: "${env:SRC}"}, dst: {type: postgres, url: "${env:DST}"}}'
    (tmp_path / "millrace.yaml").write_text(f"version: 1\nname: modes\nenvironments:\n  dev:\n    {connections}\n")
    (tmp_path / "copies").mkdir()
    (tmp_path / "copies" / "src.yaml").write_text(
        """from: src
to: dst.raw
defaults: {mode: incremental, cursor: at}
tables:
  t: {lookback: 2d}
  public.t: {as: whole, mode: truncate}
  '"public".t': {as: versions, mode: snapshot, soft_delete: v = 'gone'}
  'PUBLIC.t': {as: day, mode: backfill, from: 2026-01-02, to: 2026-01-03}
"""
    )
    with open_house(tmp_path) as house:
        first = house.run(house.plan(), show_as="silent")
        assert first.exit_code == 0, first
    execute(source, "update t set v = 'gone', at = at + interval '1 second' where id in (3, 30)")
    with open_house(tmp_path) as house:
        told = {step.label: found for step, found in house.explain(house.plan()) if not isinstance(found, Exception)}
        assert {label: found.publishes.split(" · ")[0] for label, found in told.items()} == {
            "raw.t": "merge",
            "raw.whole": "all rows deleted and loaded",
            "raw.versions": "new versions of changed rows",
            "raw.day": "rows that differ in the interval",
        }
        assert house.run(house.plan(), show_as="silent").exit_code == 0
    query = "select id, v from raw.{} {} order by 1"
    assert rows(target, query.format("versions", "where id in (3, 30) and valid_to is null")) == []
    assert (
        rows(target, query.format("t", ""))
        == rows(target, query.format("whole", ""))
        == rows(source, "select id, v from t order by 1")
    )
    assert len(rows(target, query.format("day", ""))) == 24
    with open_house(tmp_path) as house:
        name = AssetId("raw", "versions")
        assert [(one.good, one.recorded) for one in verify(house, [name], 10)] == [(True, True)]  # of current versions
        found = compare(source, "t", target, "raw.versions", trusted_urls=True).difference  # of these too
        assert (found.only_left, found.differing, found.only_right, found.missing_left) == (2, 0, 0, ())
        execute(target, "update raw.versions set v = 'by hand' where id = 9 and valid_to is null")
        assert not verify(house, [name], 10)[0].good
        assert verify(house, [name], 10, repair=True)[0].good
        assert rows(target, "select v from raw.versions where id = 9 order by valid_from") == [("by hand",), ("v9",)]
    execute(source, "delete from t where id in (31, 50)")
    with open_house(tmp_path, interval=("2026-01-02", "2026-01-03")) as house:
        assert house.run(house.plan(["raw.t"]), show_as="silent").exit_code == 0
        with pytest.raises(UsageError, match=r"raw\.whole is not copied by a cursor, so --from and --to say nothing"):
            house.plan(["raw.whole"])
    assert rows(target, "select id from raw.t where id in (31, 50)") == [(50,)]
    with open_house(tmp_path) as house:
        ((_, found),) = house.explain(house.plan(["raw.t"]))
        assert not isinstance(found, Exception)
        assert (found.fresh, found.reason) == (True, "nothing changed")  # its position stands
