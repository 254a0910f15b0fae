"""Copying from PostgreSQL to PostgreSQL on two real servers, 15 and 18, both ways."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from doors import Copy, execute, leftovers, rows, table

from millrace.core.names import AssetId
from millrace.core.position import Cursor, Whole
from millrace.core.staged import Counts
from millrace.errors import (
    ContractBroken,
    GuardRefused,
    Interrupted,
    KeyInvalid,
    NotFound,
    PermissionMissing,
    ProofFailed,
    SeqMoved,
    TargetBusy,
    UsageError,
)
from millrace.postgres.heap import UNTOUCHED

CREATE = """create table t (id bigint primary key, name text not null, amount numeric(12,2), at timestamptz,
    tags text[], data jsonb, f float8)"""
FILL = """insert into t select i, 'row ' || i, i * 1.10, timestamptz '2026-01-01' + i * interval '1 minute',
    array['a', i::text], jsonb_build_object('i', i), case i % 7 when 0 then 'NaN' when 1 then '-0' else i / 3.0 end
    from generate_series(1, 3000) i"""


@pytest.fixture(params=["15 to 18", "18 to 15"])
def urls(request: pytest.FixtureRequest) -> tuple[str, str]:
    one, two = request.getfixturevalue("db15"), request.getfixturevalue("db18")
    return (one, two) if request.param == "15 to 18" else (two, one)


@pytest.fixture
def copy(urls: tuple[str, str]) -> Copy:
    execute(urls[0], CREATE, FILL)
    return Copy(*urls, segment_rows=500)


@pytest.fixture
def pair(db18: str, other18: str) -> Copy:
    """Two databases of one server: for what does not depend on versions."""
    execute(db18, CREATE, FILL)
    return Copy(db18, other18, segment_rows=500)


def equal(copy: Copy, source: str = "public.t", target: str = "public.t") -> bool:
    return table(copy.urls[0], source) == table(copy.urls[1], target)


def clean(copy: Copy) -> bool:
    return leftovers(copy.urls[0]) == leftovers(copy.urls[1]) == []


def staged_rows(copy: Copy) -> int:
    return copy.ctx.report.rows


# the first load


def test_first_load(copy: Copy) -> None:
    assert not copy.fresh().fresh
    entry = copy.run()
    assert entry is not None
    assert equal(copy)
    assert (entry.seq, entry.level, entry.rows, entry.counts) == (1, "table", 3000, Counts(3000))
    assert isinstance(entry.position, Whole)
    assert entry.position.digest == entry.digest
    assert copy.target.ledger(copy.spec.asset) == entry
    assert staged_rows(copy) >= 3000
    assert clean(copy)
    assert copy.fresh().reason == UNTOUCHED
    columns = """select attname, format_type(atttypid, atttypmod), attnotnull from pg_attribute
        where attrelid = 't'::regclass and attnum > 0 order by attnum"""
    assert rows(copy.urls[0], columns) == rows(copy.urls[1], columns)
    keys = (
        "select conname, pg_get_constraintdef(oid) from pg_constraint where conrelid = 't'::regclass and contype = 'p'"
    )
    assert rows(copy.urls[1], keys) == [("t_pkey", "PRIMARY KEY (id)")]


def test_nothing_changed_stages_nothing(pair: Copy) -> None:
    pair.run()
    assert pair.run() is None
    assert pair.ctx.report.notes == ["nothing changed"]
    assert staged_rows(pair) == 0
    assert clean(pair)


def test_empty_source(pair: Copy) -> None:
    execute(pair.urls[0], "truncate t")
    entry = pair.run()
    assert entry is not None
    assert entry.rows == 0
    assert rows(pair.urls[1], "select count(*) from t") == [(0,)]
    assert pair.fresh().fresh


def test_hostile_names(urls: tuple[str, str]) -> None:
    schema, name, column = 'My "S"; drop', "주문" * 7 + "x" * 21, 'sel"ect%s'
    quoted = f'"{schema.replace(chr(34), chr(34) * 2)}"."{name}"'
    execute(
        urls[0],
        f'create schema "{schema.replace(chr(34), chr(34) * 2)}"',
        f'create table {quoted} ("user" int, "{column.replace(chr(34), chr(34) * 2)}" text, "{{}}" text, primary key ("user", "{{}}"))',
        f"insert into {quoted} select i, 'it''s %s {{}} \\ ' || chr(10), 'k' || i from generate_series(1, 100) i",
    )
    copy = Copy(*urls, table=quoted, segment_rows=30)
    copy.run()
    assert equal(copy, quoted, quoted)
    execute(urls[0], f"""update {quoted} set "{column.replace(chr(34), chr(34) * 2)}" = null where "user" = 7""")
    entry = copy.run()
    assert entry is not None
    assert entry.counts == Counts(0, 1, 0)
    assert equal(copy, quoted, quoted)
    assert clean(copy)


def test_types(urls: tuple[str, str]) -> None:
    execute(
        urls[0],
        "create schema app",
        "create type app.mood as enum ('sad', 'it''s ok', '행복')",
        """create table t (id int generated always as identity primary key, mood app.mood, moods app.mood[], c char(4),
            v varchar(7) collate "C", n numeric, i interval, b bytea, u uuid, j json, r int4range, bits bit varying(9),
            doubled int generated always as (id * 2) stored, d date, ip inet, p point, i2 interval day to second(2),
            nn numeric(10,3)[])""",
        """insert into t (mood, moods, c, v, n, i, b, u, j, r, bits, d, ip, p, i2, nn)
            select 'it''s ok', '{행복,sad}', 'ab', 'x', '1.50', '1 mon', '\\x00ff', gen_random_uuid(), '{"a": 1}',
            '[1,5)', '1011', 'infinity', '10.0.0.1/8', '(1,2)', '1 day 2.345 s', '{1.5,NaN}'
            from generate_series(1, 200)""",
        "insert into t (n, d) values ('NaN', '4713-01-01 BC'), ('-Infinity', null)",
    )
    copy = Copy(*urls, segment_rows=50)
    copy.run()
    assert equal(copy)
    columns = """select attname, format_type(atttypid, atttypmod), attnotnull, attidentity, attgenerated
        from pg_attribute where attrelid = 't'::regclass and attnum > 0 order by attnum"""
    assert rows(copy.urls[0], columns) == rows(copy.urls[1], columns)
    assert rows(copy.urls[1], "insert into t (c) values ('new') returning id, doubled") == [(203, 406)]
    execute(urls[0], "update t set mood = 'sad', i = '30 days', n = '1.5' where id = 9")
    entry = copy.run()
    assert entry is not None
    assert entry.counts == Counts(0, 1, 1)
    assert equal(copy)
    assert clean(copy)


def test_the_plan_says_how_the_bytes_travel(pair: Copy) -> None:
    assert pair.fresh().publishes == "new table, renamed in place · binary"
    execute(pair.urls[0], "alter table t add price money")
    assert pair.fresh().publishes == "new table, renamed in place · text"


def test_missing_type_is_named(pair: Copy) -> None:
    execute(pair.urls[0], "create table other (a int)", "alter table t add p other")
    with pytest.raises(ContractBroken, match=r"no type public\.other, which column p needs"):
        pair.run()
    assert clean(pair)
    assert rows(pair.urls[1], "select to_regclass('t')") == [(None,)]


def test_where_select_and_count(pair: Copy) -> None:
    spec: dict[str, Any] = {"where": "id <= 1000", "count": "select count(*) from t where id <= 1000"}
    part = pair.with_(**spec)
    assert part.run() is not None
    assert rows(pair.urls[1], "select count(*), max(id) from t") == [(1000, 1000)]
    query = Copy(
        *pair.urls, into="public.q", select="select id, upper(name) as name from t where id > 2990", key=("id",)
    )
    assert query.run() is not None
    assert rows(pair.urls[1], "select count(*), min(name) from q") == [(10, "ROW 2991")]
    wrong = pair.with_(where="id <= 1001", count="select count(*) from t")
    with pytest.raises(ProofFailed, match=r"count query says 3,000 rows, 1,001 were read"):
        wrong.run()
    assert clean(pair)


def test_view_and_partitioned_source(pair: Copy) -> None:
    execute(
        pair.urls[0],
        "create view v as select id, name from t",
        "create table p (k text primary key, n int) partition by hash (k)",
        "create table p0 partition of p for values with (modulus 2, remainder 0)",
        "create table p1 partition of p for values with (modulus 2, remainder 1)",
        "insert into p select 'k' || i, i from generate_series(1, 1000) i",
    )
    assert Copy(*pair.urls, table="v", into="public.v", key=("id",), segment_rows=500).run() is not None
    assert equal(pair, "v", "v")
    parts = Copy(*pair.urls, table="p", into="public.p", segment_rows=100)
    parts.run()
    assert equal(pair, "p", "p")
    execute(pair.urls[0], "delete from p where n = 5", "update p set n = -1 where n = 6")
    entry = parts.run()
    assert entry is not None
    assert entry.counts == Counts(0, 1, 1)
    assert equal(pair, "p", "p")
    assert clean(pair)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ("alter table t drop constraint t_pkey", KeyInvalid, "no primary key and no key was named"),
        ("drop table t", NotFound, "there is no table public.t"),
    ],
)
def test_bad_sources(pair: Copy, change: str, error: type[Exception], text: str) -> None:
    execute(pair.urls[0], change)
    with pytest.raises(error, match=text):
        pair.run()
    assert clean(pair)


def test_bad_keys(pair: Copy) -> None:
    execute(pair.urls[0], "update t set at = null where id = 5", "update t set name = 'row 1' where id = 2")
    with pytest.raises(KeyInvalid, match="two rows have the same") as caught:
        pair.with_(key=("name",)).run()
    assert caught.value.detail == ("Key (name)=(row 1) is duplicated.",)  # not the hidden table's index
    with pytest.raises(KeyInvalid, match="holds nulls") as caught:
        pair.with_(key=("id", "at")).run()
    assert caught.value.detail == ("at is null",)
    with pytest.raises(KeyInvalid, match="nam"):
        pair.with_(key=("nam",)).run()
    assert clean(pair)
    assert rows(pair.urls[1], "select to_regclass('t')") == [(None,)]


# full sync


def test_sync_moves_what_differs(copy: Copy) -> None:
    copy.run()
    source, target = copy.urls
    execute(
        target,
        "create view public.names as select id, name from t",
        "create role reader" if not rows(target, "select 1 from pg_roles where rolname = 'reader'") else "select 1",
        "grant select on t to reader",
        "create table child (t_id bigint references t)",
        "insert into child values (1)",
    )
    execute(
        source,
        "update t set amount = 7.0, f = 0.0 where id = 100",  # a float's -0 becomes 0
        "delete from t where id between 120 and 129",
        "insert into t (id, name) values (-5, 'new')",
    )
    with psycopg.connect(target) as reading:
        assert reading.execute("select count(*) from t").fetchone() == (3000,)
        entry = copy.run()
        assert reading.execute("select count(*) from names").fetchone() == (2991,)
    assert entry is not None
    assert (entry.seq, entry.level, entry.counts) == (2, "table", Counts(1, 1, 10))
    assert equal(copy)
    assert any(note.startswith("3 of 1") and note.endswith(" segments differ") for note in copy.ctx.report.notes)
    assert staged_rows(copy) < 100
    assert rows(target, "select has_table_privilege('reader', 't', 'select')") == [(True,)]
    assert copy.fresh().fresh
    assert clean(copy)
    execute(target, "drop view names", "drop table child", "revoke all on t from reader")


def test_only_rows_that_were_written_move(pair: Copy) -> None:
    """Changes all over the table: row versions tell which rows; segments where they cannot tell, or not alone."""
    pair.run()
    spread = "update t set name = name || '!' where id % 100 = 0"
    execute(pair.urls[0], spread, "insert into t (id, name) values (-7, 'new')")
    entry = pair.run()
    assert entry is not None
    assert (entry.counts, entry.level) == (Counts(1, 30, 0), "table")
    assert staged_rows(pair) <= 32  # the end of a binary COPY counts as one
    assert pair.ctx.report.notes == ["31 rows written since the last copy, no other by the row versions"]
    assert equal(pair)

    execute(pair.urls[0], spread, "delete from t where id = 5", "update t set id = -8 where id = 6")
    entry = pair.run()
    assert entry is not None
    assert entry.counts == Counts(1, 30, 2)
    assert "segments differ" in pair.ctx.report.notes[-1]
    assert equal(pair)

    execute(pair.urls[0], spread)
    execute(pair.urls[1], "update t set name = 'by hand' where id = 7")
    entry = pair.run()
    assert entry is not None
    assert entry.counts == Counts(0, 31, 0)
    assert equal(pair)

    execute(pair.urls[0], spread)
    staged = pair.stage()
    execute(pair.urls[1], "update t set name = 'by hand, meanwhile' where id = 8")
    with pytest.raises(ProofFailed, match=r"all rows of .* would not equal the source"):
        pair.publish(staged, pair.prove(staged))
    assert pair.with_().run() is not None
    assert equal(pair)
    execute(pair.urls[0], "update t set name = name")  # more than segments would move
    assert pair.run() is not None
    assert "no row differs" in pair.ctx.report.notes[-1]
    assert pair.fresh().fresh
    assert clean(pair)


def test_sync_repairs_the_target(pair: Copy) -> None:
    pair.run()
    execute(pair.urls[1], "delete from t where id > 2900", "update t set data = null where id = 3")
    execute(pair.urls[1], "insert into t (id, name) values (9999, 'stray')")
    assert pair.fresh().reason == "source and target differ"
    counts = pair.dry_run()
    assert counts == Counts(100, 1, 1)
    assert rows(pair.urls[1], "select count(*) from t") == [(2901,)]
    entry = pair.run()
    assert entry is not None
    assert entry.counts == counts
    assert equal(pair)


def test_dry_run_of_a_first_load_makes_nothing(pair: Copy) -> None:
    assert pair.dry_run() == Counts(inserted=3000)
    assert rows(pair.urls[1], "select nspname from pg_namespace where nspname like '%millrace%'") == []


def test_writers_do_not_stop_readers_and_locks_are_waited_for(pair: Copy) -> None:
    pair.run()
    execute(pair.urls[0], "update t set name = 'changed' where id = 1")
    with psycopg.connect(pair.urls[1]) as writer:
        writer.execute("update t set name = 'by hand' where id = 2")
        timer = threading.Timer(1.5, writer.rollback)
        timer.start()
        entry = pair.run()
        timer.join()
    assert entry is not None
    assert entry.counts == Counts(0, 1, 0)


def test_a_change_of_the_target_meanwhile_is_refused(pair: Copy) -> None:
    pair.run()
    execute(pair.urls[0], "update t set name = 'changed' where id = 1")
    staged = pair.stage()
    proofs = pair.prove(staged)
    execute(pair.urls[1], "update t set name = 'by hand' where id = 2900")
    with pytest.raises(ProofFailed, match="would not equal the source"):
        pair.publish(staged, proofs)
    execute(pair.urls[1], "alter table t add extra int")
    assert rows(pair.urls[1], "select name from t where id = 1") == [("row 1",)]
    execute(pair.urls[1], "alter table t alter name type varchar")
    with pytest.raises(ContractBroken, match="was altered"):
        pair.publish(staged, proofs)
    pair.target.discard(staged[0])
    assert clean(pair)


def test_swapped_values_and_changed_keys(pair: Copy) -> None:
    pair.run()
    execute(
        pair.urls[0],
        "update t set name = (select name from t u where u.id = case t.id when 10 then 11 else 10 end) where id in (10, 11)",
        "update t set id = 5000 where id = 20",
    )
    entry = pair.run()
    assert entry is not None
    assert entry.counts == Counts(1, 2, 1)
    assert equal(pair)


def test_rows_that_exchange_unique_values(pair: Copy) -> None:
    pair.run()
    execute(pair.urls[1], "create unique index on t (name)")
    execute(
        pair.urls[0],
        "update t set name = 'row ' || (case id when 1 then 2 when 2 then 3 else 1 end) where id < 4",
        "insert into t (id, name) values (7777, 'new')",
        "delete from t where id = 9",
    )
    entry = pair.run()
    assert entry is not None
    assert entry.counts == Counts(1, 3, 1)
    assert equal(pair)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("alter table t alter amount type numeric(14,2)", r"column amount is numeric\(12,2\) .* numeric\(14,2\)"),
        ("alter table t drop data", "has no column data, which the source has with type jsonb"),
        ("alter table t add extra int not null", r"column extra \(integer, NOT NULL\)"),
        ("alter table t rename to u; create view t as select * from u", "is not a table"),
    ],
)
def test_target_that_does_not_fit(pair: Copy, change: str, text: str) -> None:
    execute(pair.urls[1], CREATE, change)
    with pytest.raises(ContractBroken, match=text):
        pair.run()
    assert clean(pair)


def test_target_with_more_columns(pair: Copy) -> None:
    execute(pair.urls[1], CREATE, "alter table t add loaded timestamptz not null default now()")
    entry = pair.run()
    assert entry is not None
    assert entry.counts == Counts(3000)
    assert pair.fresh().fresh


# guards


def test_first_contact_needs_replace(pair: Copy) -> None:
    execute(pair.urls[1], CREATE, "insert into t (id, name) values (1, 'mine'), (2, 'mine too')")
    with pytest.raises(GuardRefused, match="rows that Millrace did not write") as caught:
        pair.run()
    assert "--replace" in str(caught.value)
    assert rows(pair.urls[1], "select count(*) from t") == [(2,)]
    entry = pair.with_(replace=True).run()
    assert entry is not None
    assert entry.counts == Counts(2998, 2, 0)
    assert equal(pair)
    assert clean(pair)


def test_a_table_is_not_copied_onto_itself(pair: Copy) -> None:
    source = pair.urls[0]
    for spec in (pair.spec, replace(pair.spec, replace=True)):
        onto_itself = Copy(source, source.replace("127.0.0.1", "localhost"), spec)
        for look in (onto_itself.run, onto_itself.dry_run):
            with pytest.raises(UsageError, match=r"source and target are the same table: public\.t") as caught:
                look()
            assert "--replace" not in str(caught.value)
    elsewhere = Copy(source, source, replace(pair.spec, asset=AssetId("public", "t2")))
    assert elsewhere.run() is not None  # another table of the same database


def test_first_contact_with_an_equal_table_publishes_the_position(pair: Copy) -> None:
    pair.run()
    execute(pair.urls[1], "drop schema _millrace cascade", "drop schema _millrace_stage cascade")
    again = pair.with_(replace=True)
    entry = again.run()
    assert entry is not None
    assert (entry.seq, entry.counts, entry.level, entry.rows) == (1, Counts(), "table", 3000)
    assert pair.fresh().fresh
    assert clean(pair)


def test_deletes_are_limited(pair: Copy) -> None:
    pair.run()
    execute(pair.urls[0], "delete from t where id > 1000")
    with pytest.raises(GuardRefused, match=r"lose 2,000 of 3,000 rows, more than max_delete \(50%\)") as caught:
        pair.run()
    assert "--allow-deletes" in str(caught.value)
    with pytest.raises(GuardRefused, match="lose 2,000"):
        pair.dry_run()
    assert rows(pair.urls[1], "select count(*) from t") == [(3000,)]
    assert clean(pair)
    entry = pair.with_(allow_deletes=True).run()
    assert entry is not None
    assert entry.counts == Counts(0, 0, 2000)
    execute(pair.urls[0], "delete from t where id > 700")
    assert pair.with_(max_delete=0.3).run() is not None


def test_a_table_made_meanwhile_is_not_touched(pair: Copy) -> None:
    staged = pair.stage()
    proofs = pair.prove(staged)
    execute(pair.urls[1], "create table t (mine int)", "insert into t values (1)")
    with pytest.raises(GuardRefused, match="was made in DST by someone else"):
        pair.publish(staged, proofs)
    pair.target.discard(staged[0])
    assert rows(pair.urls[1], "select * from t") == [(1,)]
    assert clean(pair)


# rights


def test_missing_rights_name_the_grant(pair: Copy, pg18: Any) -> None:
    name = rows(pair.urls[1], "select current_database()")[0][0]
    execute(
        pair.urls[1],
        "drop role if exists writer",
        "create role writer login",
        "revoke create on schema public from public",
        f"revoke create on database {name} from public",
    )
    limited = Copy(pair.urls[0], pg18.url(name, "writer"), pair.spec)

    def refused(*grants: str) -> str:
        execute(pair.urls[1], *grants)
        with pytest.raises(PermissionMissing) as caught:
            limited.run()
        return str(caught.value)

    assert "GRANT USAGE, CREATE ON SCHEMA public TO writer;" in refused()
    assert f"GRANT CREATE ON DATABASE {name} TO writer;" in refused("grant usage, create on schema public to writer")
    assert rows(pair.urls[1], "select nspname from pg_namespace where nspname like '%millrace%'") == []
    execute(pair.urls[1], f"grant create on database {name} to writer")
    assert limited.run() is not None
    assert equal(pair)
    execute(
        pair.urls[1],
        "reassign owned by writer to postgres",
        "revoke all on t from writer",
        "grant select on t to writer",
    )
    execute(pair.urls[0], "update t set name = 'x' where id = 1")
    assert "may not use the ledger" in refused()
    ledger = "grant usage, create on schema _millrace, _millrace_stage to writer"
    tables = "grant all on all tables in schema _millrace to writer"
    assert "GRANT SELECT, INSERT, UPDATE, DELETE ON public.t TO writer;" in refused(ledger, tables)
    execute(pair.urls[1], "grant all on t to writer")
    assert limited.run() is not None
    assert equal(pair)
    execute(pair.urls[1], "drop owned by writer", "drop role writer")
    assert clean(pair)


def test_a_type_that_may_not_be_made_is_named(pair: Copy, pg18: Any) -> None:
    name = rows(pair.urls[1], "select current_database()")[0][0]
    execute(pair.urls[0], "create type mood as enum ('sad')", "alter table t add feeling mood")
    execute(
        pair.urls[1],
        "drop role if exists mover",
        "create role mover login",
        "create schema mine authorization mover",
        f"grant create on database {name} to mover",
        "revoke create on schema public from public",
    )
    limited = Copy(pair.urls[0], pg18.url(name, "mover"), into="mine.t")
    with pytest.raises(PermissionMissing, match=r"make the type public\.mood, which column feeling needs") as caught:
        limited.run()
    assert caught.value.hint == (
        "GRANT CREATE ON SCHEMA public TO mover; or run it there first: "
        """create type "public"."mood" as enum ('sad');"""
    )
    assert clean(pair)
    execute(pair.urls[1], "drop owned by mover", "drop role mover")


# incremental


CHANGES = "create table t (id int primary key, v text, changed timestamp)"


@pytest.fixture
def changing(urls: tuple[str, str]) -> Copy:
    execute(
        urls[0],
        CHANGES,
        "insert into t select i, 'v' || i, timestamp '2026-01-01' + (i / 10) * interval '1 hour' from generate_series(1, 1000) i",
    )
    return Copy(*urls, mode="incremental", cursor="changed", segment_rows=200)


def test_incremental(changing: Copy) -> None:
    first = changing.run()
    assert first is not None
    assert isinstance(first.position, Cursor)
    assert first.position.value == "2026-01-05 04:00:00"
    assert first.level == "table"
    found = changing.fresh()
    assert (found.fresh, found.reason) == (True, "nothing changed")
    execute(
        changing.urls[0],
        "insert into t values (2000, 'tie', '2026-01-05 04:00'), (2001, 'null', null), (2002, 'later', '2026-01-06')",
        "update t set v = 'changed', changed = '2026-01-07' where id = 3",
        "update t set v = 'unseen by the cursor' where id = 4",
    )
    assert changing.dry_run() == Counts(3, 2, 0)
    entry = changing.run()
    assert entry is not None
    assert (entry.counts, entry.level) == (Counts(3, 2, 0), "applied")
    assert equal(changing)
    assert staged_rows(changing) < 20
    assert changing.fresh().fresh
    assert clean(changing)
    execute(changing.urls[0], "update t set v = 'moves', changed = '2026-01-08' where id = 5")
    assert changing.fresh().rows == 1  # not those at the highest value or without one, which are read each time


def test_the_first_incremental_copy_after_a_full_one_says_why_it_compares_all(changing: Copy) -> None:
    changing.with_(mode="full", cursor=None).run()
    execute(changing.urls[0], "update t set v = 'x', changed = '2026-02-01' where id = 3")
    changing.run()
    (note,) = changing.ctx.report.notes
    assert (
        note
        == "no position by changed yet, so all was compared: 1 row written since the last copy, no other by the row versions"
    )
    execute(changing.urls[0], "update t set v = 'y', changed = '2026-02-02' where id = 3")
    changing.run()
    assert changing.ctx.report.notes == []


def test_late_commits_are_brought(changing: Copy) -> None:
    with psycopg.connect(changing.urls[0]) as late:
        late.execute("insert into t values (5000, 'late', '2020-01-01')")
        changing.run()
        late.commit()
    assert not changing.fresh().fresh
    entry = changing.run()
    assert entry is not None
    assert entry.counts.inserted == 1
    assert equal(changing)
    assert changing.fresh().fresh


def test_deletes_are_found_by_a_full_refresh(changing: Copy) -> None:
    changing.run()
    execute(changing.urls[0], "delete from t where id = 7")
    changing.run()
    assert not equal(changing)
    entry = changing.with_(full_refresh=True).run()
    assert entry is not None
    assert entry.counts == Counts(0, 0, 1)
    assert isinstance(entry.position, Cursor)
    assert equal(changing)


def test_versions_of_a_row_end_in_the_newest(pair: Copy) -> None:
    source, target = pair.urls
    execute(
        source,
        "create table log (id int, v text, changed int)",
        "insert into log select i, 'v', 1 from generate_series(1, 10) i",
        "insert into log values (3, 'second', 2), (4, 'none', null)",
    )
    copy = Copy(source, target, table="log", into="public.log", key=("id",), mode="incremental", cursor="changed")

    def newest() -> bool:
        wanted = "select distinct on (id) * from log order by id, changed desc nulls last"
        return rows(target, "select * from log order by id") == rows(source, wanted)

    assert copy.dry_run() == Counts(10, 0, 0)
    copy.run()
    assert copy.ctx.report.notes == ["2 rows left out: a newer one by changed has their key"]
    assert newest()
    with psycopg.connect(source) as late:
        late.execute("insert into log values (3, 'older, but committed late', 5)")
        execute(source, "insert into log values (3, 'newest', 9), (3, 'newer', 7), (11, 'b', 7), (11, 'a', 6)")
        entry = copy.run()
        assert entry is not None
        assert entry.counts == Counts(1, 1, 0)
        assert newest()
        late.commit()
    assert copy.dry_run() == Counts(0, 0, 0)
    assert copy.run() is not None
    assert newest()
    assert rows(target, "select v from log where id in (3, 11) order by id") == [("newest",), ("b",)]
    assert copy.fresh().fresh
    execute(target, "update log set v = 'by hand' where id = 1")
    entry = copy.with_(full_refresh=True).run()  # says the same as the way by position
    assert entry is not None
    assert entry.counts == Counts(0, 1, 0)
    assert newest()
    execute(source, "insert into log values (null, 'no key', 10)")
    for other in (copy, copy.with_(full_refresh=True)):
        with pytest.raises(KeyInvalid, match=r"1 row has a null in the key \(id\) of public\.log"):
            other.run()
    assert clean(pair)


def test_modes_that_keep_no_newest_refuse_a_key_that_occurs_twice(pair: Copy) -> None:
    source, target = pair.urls
    execute(source, "create table log (id int, changed int)", "insert into log values (1, 1)")
    copy = Copy(source, target, table="log", into="public.log", key=("id",), mode="append", cursor="changed")
    no_cursor = copy.with_(mode="incremental", cursor=None, asset=AssetId("public", "other"))
    copy.run()
    no_cursor.run()
    execute(source, "insert into log values (2, 2), (2, 3)")
    for one in (copy, no_cursor):
        with pytest.raises(KeyInvalid, match="two rows have the same"):
            one.run()
    assert rows(target, "select * from log") == rows(target, "select * from other") == [(1, 1)]
    assert clean(pair)


def test_incremental_without_cursor_deletes_nothing(pair: Copy) -> None:
    copy = pair.with_(mode="incremental")
    copy.run()
    execute(pair.urls[0], "delete from t where id = 1", "update t set name = 'x' where id = 2")
    execute(pair.urls[0], "insert into t (id, name) values (4000, 'y')")
    assert copy.dry_run() == Counts(1, 1, 0)
    entry = copy.run()
    assert entry is not None
    assert (entry.counts, entry.level) == (Counts(1, 1, 0), "applied")
    assert rows(pair.urls[1], "select count(*) from t") == [(3001,)]
    assert copy.fresh().fresh


def test_append_adds_only(changing: Copy) -> None:
    copy = changing.with_(mode="append")
    copy.run()
    execute(
        changing.urls[0],
        "update t set v = 'changed', changed = '2027-01-01' where id = 1",
        "insert into t values (9000, 'new', '2027-01-01')",
    )
    entry = copy.run()
    assert entry is not None
    assert entry.counts == Counts(1, 0, 0)
    assert rows(changing.urls[1], "select v from t where id in (1, 9000) order by id") == [("v1",), ("new",)]
    assert copy.fresh().fresh
    assert clean(changing)


def test_an_emptied_target_is_loaded_anew(changing: Copy) -> None:
    changing.run()
    execute(changing.urls[1], "truncate t")
    assert not changing.fresh().fresh
    entry = changing.run()
    assert entry is not None
    assert entry.counts == Counts(1000)
    execute(changing.urls[1], "drop table t")
    assert changing.fresh().reason == "the target table is missing"
    entry = changing.run()
    assert entry is not None
    assert (entry.seq, entry.counts) == (3, Counts(1000))
    assert equal(changing)


def test_unknown_cursor_column(changing: Copy) -> None:
    with pytest.raises(NotFound, match="chnged"):
        changing.with_(cursor="chnged").run()


# races and interruptions


def test_the_second_of_two_publishes_is_refused(pair: Copy) -> None:
    pair.run()
    execute(pair.urls[0], "update t set name = 'x' where id = 1")
    other = Copy(*pair.urls, pair.spec)
    staged = pair.stage()
    with pytest.raises(TargetBusy, match="is being loaded by run") as caught:
        other.stage()
    assert f"by run {pair.ctx.run[:4]}\n" in str(caught.value)
    entry = pair.publish(staged, pair.prove(staged))
    again = pair.publish(staged, ())  # the same load is adopted
    assert again == entry
    stale = staged[0].from_json({**staged[0].to_json(), "load": "12345"})
    with pytest.raises(SeqMoved, match="published by someone else"):
        pair.target.publish([stale], pair.prove(()), {stale.asset: stale.base})
    assert clean(pair)


def test_two_first_runs_at_once(pair: Copy) -> None:
    copies = [Copy(*pair.urls, pair.spec) for _ in range(4)]
    results: list[Any] = []

    def run(copy: Copy) -> None:
        try:
            results.append(copy.run())
        except (TargetBusy, SeqMoved, GuardRefused) as error:
            results.append(error)

    threads = [threading.Thread(target=run, args=(copy,)) for copy in copies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seqs = [entry.seq for entry in results if not isinstance(entry, Exception) and entry is not None]
    assert seqs == [1], results
    assert equal(pair)
    assert clean(pair)


def test_an_interrupted_stage_is_resumed(pair: Copy) -> None:
    def stopping() -> bool:
        return len(rows(pair.urls[1], "select 1 from _millrace.segment")) >= 3

    one = pair.with_(workers=1)
    with pytest.raises(Interrupted):
        one.stage(stopping=stopping)
    execute(pair.urls[0], "update t set name = 'changed meanwhile' where id = 1")
    entry = one.run()
    assert entry is not None
    assert any(note.startswith("2 of ") and "segments kept from run" in note for note in one.ctx.report.notes), (
        one.ctx.report.notes
    )
    assert equal(pair)
    assert clean(pair)


def test_a_stage_for_something_else_is_dropped(pair: Copy) -> None:
    one = pair.with_(workers=1)
    with pytest.raises(Interrupted):
        one.stage(stopping=lambda: bool(rows(pair.urls[1], "select 1 from _millrace.segment")))
    other = pair.with_(where="id < 100")
    assert other.run() is not None
    assert not any("kept" in note for note in other.ctx.report.notes)
    assert rows(pair.urls[1], "select count(*) from t") == [(99,)]
    assert clean(pair)


def test_gc(pair: Copy) -> None:
    one = pair.with_(workers=1)
    with pytest.raises(Interrupted):
        one.stage(stopping=lambda: bool(rows(pair.urls[1], "select 1 from _millrace.segment")))
    execute(pair.urls[1], "create table _millrace_stage.orphan (i int)")
    run = one.ctx.run
    assert one.target.gc(lambda other: other == run) == ["table orphan without a stage"]
    assert one.target.gc(lambda other: False) == [f"stage of public.t (run {run[:4]})"]
    assert clean(pair)
    staged = pair.stage()
    assert list(pair.target.stages()) == list(staged)
    assert pair.target.gc(lambda other: False) == []  # its owner lives
    pair.target.discard(staged[0])
    assert clean(pair)
