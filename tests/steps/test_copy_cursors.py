"""Incremental copies without holes: cursors of every kind, and cases 14 to 20 of what breaks syncing."""

from __future__ import annotations

import psycopg
import pytest
from doors import Copy, execute, leftovers, rows, table

from millrace.core.names import AssetId
from millrace.core.position import Cursor
from millrace.core.staged import Counts
from millrace.errors import ContractBroken, GuardRefused, KeyInvalid, MillraceError, ProofFailed, UsageError


@pytest.fixture
def pair(db15: str, other18: str) -> Copy:
    execute(
        db15,
        "create table t (id int primary key, v text, changed timestamp)",
        "insert into t select i, 'v' || i, timestamp '2026-01-01' + (i / 10) * interval '1 hour' "
        "from generate_series(1, 100) i",
    )
    return Copy(db15, other18, mode="incremental", cursor="changed")


def equal(copy: Copy) -> bool:
    return table(copy.urls[0]) == table(copy.urls[1])


def counts(copy: Copy) -> Counts | None:
    entry = copy.run()
    return None if entry is None else entry.counts


def position(copy: Copy) -> str | None:
    entry = copy.target.ledger(copy.spec.asset)
    assert entry is not None
    assert isinstance(entry.position, Cursor)
    return entry.position.value


# kinds of cursors


@pytest.mark.parametrize(
    ("form", "old", "new", "odd"),
    [
        ("yyyymmdd", "20260131", "20260201", "2026-2-1"),
        ("date", "2026/01/31", "2026-02-01", ""),
        ("datetime", "2026/01/31 23:59:59", "2026-02-01 00:00:00.5", "yesterday"),
        ("timestamp", "2026-01-31T10:00:00", "2026-01-31 10:00:01", "2026-01-31"),
    ],
)
def test_text_cursors(pair: Copy, form: str, old: str, new: str, odd: str) -> None:
    source = pair.urls[0]
    execute(
        source,
        "create table w as select id, v, changed::text as changed from t with no data",
        f"insert into w select i, 'v', '{old}' from generate_series(1, 20) i",
        "create view t2 as select * from w",
        "drop table t",
        "alter view t2 rename to t",  # a view has no row versions that would find what the cursor does not
    )
    copy = pair.with_(key=("id",), cursor_format=form)
    with pytest.raises(UsageError, match=r"the cursor changed of public\.t is text: the order of texts") as caught:
        pair.with_(key=("id",)).run()
    assert "cursor_format: yyyymmdd, date, datetime or timestamp" in str(caught.value)
    assert counts(copy) == Counts(20)
    execute(source, f"insert into w values (21, 'new', '{new}'), (22, 'odd', '{odd}')", "delete from w where id = 1")
    assert not copy.fresh().fresh
    assert counts(copy) == Counts(2)
    assert copy.ctx.report.notes[-1] == f"1 row has a changed that is no {form}, like '{odd}': read again each time"
    assert position(copy) == new.replace("/", "-").replace("T", " ")
    assert copy.fresh().fresh
    execute(source, f"insert into w values (23, 'older', '{old}')")  # what the cursor cannot see …
    assert copy.fresh().fresh
    back = copy.with_(lookback="30d")
    assert counts(back) == Counts(1)  # … is seen by looking back
    assert back.fresh().fresh
    execute(source, f"update w set v = 'odd too' where changed = '{odd}'")
    assert back.fresh().rows is not None
    assert counts(back) == Counts(0, 1)
    assert leftovers(copy.urls[1]) == []


@pytest.mark.parametrize(
    ("kind", "old", "new", "lookback"),
    [
        ("date", "2026-01-31", "2026-02-01", "1d"),
        ("bigint", "1000", "1001", "1"),
        ("timestamptz", "2026-01-31", "2026-02-01", "24h"),
    ],
)
def test_dates_numbers_and_lookback(pair: Copy, kind: str, old: str, new: str, lookback: str) -> None:
    source = pair.urls[0]
    execute(source, f"create table w (id int, changed {kind})", "drop table t", "create view t as select * from w")
    execute(source, f"insert into w values (1, '{old}'), (2, '{new}')")
    copy = pair.with_(key=("id",))
    assert counts(copy) == Counts(2)
    execute(source, f"insert into w values (3, '{old}')")
    assert copy.fresh().fresh
    back = copy.with_(lookback=lookback)
    assert not back.fresh().fresh
    assert back.dry_run() == counts(back) == Counts(1)
    assert back.fresh().fresh
    wrong = "1" if lookback.endswith(("d", "h")) else "1d"
    with pytest.raises(UsageError, match="and its lookback is a"):
        copy.with_(lookback=wrong).run()


def test_no_date_to_look_back_from(pair: Copy) -> None:
    execute(pair.urls[0], "alter table t alter changed type text using '20269999'")
    copy = pair.with_(cursor_format="yyyymmdd")
    assert counts(copy) == Counts(100)
    with pytest.raises(ContractBroken, match="the highest value of the cursor changed is 20269999, which is no date"):
        copy.with_(lookback="1d").run()


# cases that break syncing, by their numbers


def test_case_14_ties_at_the_boundary(pair: Copy) -> None:
    source = pair.urls[0]
    execute(source, "alter table t rename to w", "create view t as select * from w")
    copy = pair.with_(key=("id",))
    copy.run()
    execute(source, "insert into w select 200 + i, 'tie', (select max(changed) from w) from generate_series(1, 5) i")
    assert counts(copy) == Counts(5)  # none lost, none twice
    assert equal(copy)
    assert copy.fresh().fresh


def test_case_15_a_late_commit_with_an_older_cursor(pair: Copy) -> None:
    with psycopg.connect(pair.urls[0]) as late:
        late.execute("insert into t values (500, 'late', '2020-01-01')")
        pair.run()
        execute(pair.urls[0], "insert into t values (501, 'new', '2027-01-01')")
        assert counts(pair) == Counts(1)
        late.commit()
    assert counts(pair) == Counts(1)
    assert equal(pair)


def test_case_16_deleted_rows_stay_until_a_full_refresh(pair: Copy) -> None:
    pair.run()
    execute(pair.urls[0], "delete from t where id = 1")
    pair.run()
    assert rows(pair.urls[1], "select id from t where id = 1") == [(1,)]
    assert counts(pair.with_(full_refresh=True)) == Counts(0, 0, 1)
    assert equal(pair)


def test_case_17_a_changed_key(pair: Copy) -> None:
    pair.run()
    execute(pair.urls[0], "update t set id = 999, changed = '2027-01-01' where id = 7")
    assert counts(pair) == Counts(1)  # the new row comes; the old one is a deleted row, which no cursor sees
    assert rows(pair.urls[1], "select id from t where v = 'v7' order by 1") == [(7,), (999,)]
    assert counts(pair.with_(full_refresh=True)) == Counts(0, 0, 1)
    assert equal(pair)


def test_case_18_duplicates_in_a_batch_and_a_composite_key(pair: Copy) -> None:
    source, target = pair.urls
    execute(source, "drop table t", "create table t (a int, b text, v text, changed int)")
    execute(source, "insert into t values (1, 'x', 'one', 1), (1, 'y', 'two', 1)")
    copy = pair.with_(key=("a", "b"))
    copy.run()
    execute(
        source,
        "insert into t values (1, 'x', 'newer', 3), (1, 'x', 'newest', 4), (1, 'x', 'late', 2), (2, 'x', 'z', 4)",
    )
    assert counts(copy) == Counts(1, 1)
    assert copy.ctx.report.notes == ["3 rows left out: a newer one by changed has their key"]
    assert rows(target, "select a, b, v from t order by 1, 2") == [(1, "x", "newest"), (1, "y", "two"), (2, "x", "z")]


def test_case_19_a_null_in_the_key(pair: Copy) -> None:
    source, target = pair.urls
    execute(source, "alter table t drop constraint t_pkey, alter id drop not null")
    copy = pair.with_(key=("id",))
    copy.run()
    execute(source, "insert into t values (null, 'x', '2027-01-01')")
    for _ in range(3):
        with pytest.raises(KeyInvalid, match="1 row has a null in the key"):
            copy.run()
        assert rows(target, "select count(*) from t") == [(100,)]


def test_values_that_changed_without_a_row_version(pair: Copy) -> None:
    source = pair.urls[0]
    execute(source, "create table other as select id + 200 as id, v, timestamp '2025-01-01' as changed from t")
    pair.run()
    assert pair.fresh().fresh
    execute(source, "alter table t drop column changed, drop column v", "alter table t add column v text default 'new'")
    execute(source, "alter table t add column changed timestamp default '2025-05-05'")
    assert not pair.fresh().fresh
    assert counts(pair) == Counts(0, 100)
    assert equal(pair)
    assert pair.fresh().fresh
    execute(source, "alter table t rename to gone", "alter table other rename to t")  # with rows below the position
    assert not pair.with_(key=("id",)).fresh().fresh
    assert counts(pair.with_(key=("id",))) == Counts(100)
    assert len(table(pair.urls[1])) == 200, "an incremental copy deletes nothing"


def test_case_20_a_changed_column_is_named(pair: Copy) -> None:
    source, target = pair.urls
    pair.run()
    execute(source, "alter table t alter id type bigint", "insert into t values (3000000000, 'big', '2027-01-01')")
    with pytest.raises(ContractBroken, match="column id is bigint in the source and integer in"):
        pair.run()
    execute(target, "alter table t alter id type bigint")
    assert counts(pair) == Counts(1)
    execute(source, "alter table t add extra int default 5")
    with pytest.raises(ContractBroken, match="no column extra, which the source has with type integer"):
        pair.run()
    execute(target, "alter table t add extra int")
    assert counts(pair) == Counts(0, 101)  # though no row version is new: the default stands in the catalogue
    assert pair.ctx.report.notes == ["the columns changed, so all was compared: 1 of 1 segments differs"]
    execute(source, "alter table t drop v", "alter table t add v text default 'again'")
    assert counts(pair.with_(full_refresh=True)) == Counts(0, 101)
    assert rows(source, "select id, v, extra from t order by 1") == rows(
        target, "select id, v, extra from t order by 1"
    )


# rows that are marked as deleted


def test_soft_delete(pair: Copy) -> None:
    source, target = pair.urls
    execute(source, "alter table t add actflag char(1)", "update t set actflag = 'D' where id = 1")
    copy = pair.with_(soft_delete="actflag = 'D'")
    assert counts(copy) == Counts(99)
    assert copy.fresh().fresh
    execute(
        source,
        "update t set actflag = 'D', changed = '2027-01-01' where id in (2, 3)",
        "update t set actflag = 'U', changed = '2027-01-01' where id in (1, 4)",
        "insert into t values (101, 'never seen', '2027-01-01', 'D')",
    )
    execute(target, "create function deny() returns trigger language plpgsql as 'begin return null; end'")
    assert copy.dry_run() == Counts(1, 1, 2)
    entry = copy.run()
    assert entry is not None
    assert (entry.counts, entry.level) == (Counts(1, 1, 2), "applied")
    kept = "select id, v, actflag from t where actflag is distinct from 'D' order by 1"
    assert rows(source, kept) == rows(target, "select id, v, actflag from t order by 1")
    assert copy.fresh().fresh
    full = copy.with_(mode="full")
    assert full.dry_run() == Counts()
    execute(source, "delete from t where id = 10", "update t set actflag = 'D', changed = '2027-01-01' where id = 11")
    execute(target, "update t set v = 'by hand' where id = 12")
    entry = copy.with_(verify_all=True).run()  # the scrub leaves the marked ones out too
    assert entry is not None
    assert (entry.counts, entry.level) == (Counts(0, 1, 2), "table")
    execute(
        source,
        "insert into t values (10, 'again', '2027-01-01')",
        "update t set actflag = 'U', changed = '2027-01-01' where id = 11",
    )
    assert counts(copy) == Counts(2)
    execute(source, "update t set actflag = 'D', changed = '2027-01-02' where id > 30")
    with pytest.raises(GuardRefused, match="would lose 70 of 98 rows"):
        copy.run()
    execute(target, "create trigger keep before delete on t for each row execute function deny()")
    with pytest.raises(ProofFailed, match="70 rows were to be deleted"):
        copy.with_(allow_deletes=True).run()
    execute(target, "drop trigger keep on t")
    assert counts(copy.with_(allow_deletes=True)) == Counts(0, 0, 70)
    versions = Copy(*pair.urls, into="public.h", mode="snapshot", soft_delete="actflag = 'D'")
    assert counts(versions) == Counts(28)
    execute(source, "update t set actflag = 'D' where id = 1")
    assert counts(versions) == Counts(0, 0, 1)
    assert leftovers(target) == []


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("pg_sleep(9) is null", "calls pg_sleep"),
        ("id in (select 1)", "compares columns with literals"),
        ("t.id = 1", "a qualified name"),
        ("v", "names the column v, which is text"),
        ("actflg = 'D'", "actflg"),
        ("true) or (true", "cannot be parsed"),
        ("true; delete from t", "cannot be parsed"),
    ],
)
def test_soft_delete_is_a_plain_comparison(pair: Copy, text: str, error: str) -> None:
    with pytest.raises(MillraceError, match=error):
        pair.with_(soft_delete=text).run()


def test_soft_delete_by_a_column(pair: Copy) -> None:
    execute(pair.urls[0], "alter table t add gone bool, add gone_at timestamptz")
    execute(pair.urls[0], "update t set gone = id = 1, gone_at = case when id = 2 then now() end")
    for column, left in (("gone", 1), ("gone_at", 2)):
        copy = pair.with_(mode="full", soft_delete=column, asset=AssetId("public", column))
        assert counts(copy) == Counts(99)
        assert rows(pair.urls[1], f"select id from {column} where id = {left}") == []
