"""Differences of two tables, on servers of different majors."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg import sql

from millrace.core.names import TableRef
from millrace.errors import ContractBroken, KeyInvalid, MillraceError, NotFound
from millrace.postgres.diff import ColumnDiff, RowDiff, TableDiff, _merge, diff
from millrace.postgres.session import Database, database_from_url

T = TableRef("public", "t")


class Pair:
    """A table on two servers."""

    def __init__(
        self, left: psycopg.Connection, right: psycopg.Connection, databases: tuple[Database, Database]
    ) -> None:
        self.left, self.right, self.databases = left, right, databases

    def both(self, statement: str) -> None:
        for connection in (self.left, self.right):
            connection.execute(statement)  # type: ignore[call-overload]

    def diff(self, key: tuple[str, ...] = (), limit: int = 20, **options: object) -> TableDiff:
        return diff((self.databases[0], T), (self.databases[1], T), key, limit, **options)  # type: ignore[arg-type]


@pytest.fixture
def pair(db15: str, db18: str) -> Iterator[Pair]:
    databases = (database_from_url(db15, "SRC"), database_from_url(db18, "DST"))
    with psycopg.connect(db15, autocommit=True) as left, psycopg.connect(db18, autocommit=True) as right:
        yield Pair(left, right, databases)


ORDERS = (
    "create table t (id int primary key, name text, balance numeric(12,2));"
    "insert into t select g * 3, 'name ' || g, g * 1.5 from generate_series(1, 2000) g"
)


def counts(found: TableDiff) -> tuple[int, int, int, int, int, int]:
    return (found.rows_left, found.rows_right, found.equal, found.differing, found.only_left, found.only_right)


def test_equal(pair: Pair) -> None:
    pair.both(ORDERS)
    found = pair.diff()
    assert counts(found) == (2000, 2000, 2000, 0, 0, 0)
    assert found.same
    assert found.key == ()
    assert found.left == "public.t in SRC"


def test_one_value(pair: Pair) -> None:
    pair.both(ORDERS)
    pair.right.execute("update t set balance = 1200 where id = 2997")
    found = pair.diff(segment_rows=100)
    assert counts(found) == (2000, 2000, 1999, 1, 0, 0)
    assert found.rows == (RowDiff((("id", "2997"),), None, (ColumnDiff("balance", "1498.50", "1200.00"),)),)
    assert not found.same


@pytest.mark.parametrize("segment_rows", [10, 100, 100_000])
def test_all_kinds_of_differences(pair: Pair, segment_rows: int) -> None:
    pair.both(ORDERS)
    pair.left.execute("delete from t where id in (3, 6000); insert into t values (-5, 'left', 0)")
    pair.right.execute("delete from t where id between 300 and 330; insert into t values (900000, 'right', null)")
    pair.right.execute("update t set name = null where id = 600; update t set balance = 1 where id in (33, 3333)")
    found = pair.diff(segment_rows=segment_rows)
    assert counts(found) == (1999, 1990, 1984, 3, 12, 3)
    assert found.equal + found.differing + found.only_left == found.rows_left
    assert found.equal + found.differing + found.only_right == found.rows_right
    keys = [int(row.key[0][1]) for row in found.rows]
    assert keys == sorted(keys)
    assert [row.only for row in found.rows[:3]] == ["left", "right", None]
    assert found.rows[0].columns == (
        ColumnDiff("id", "-5", None),
        ColumnDiff("name", "left", None),
        ColumnDiff("balance", "0.00", None),
    )
    assert json.loads(json.dumps(found.to_json()))["differing"] == 3


def test_limit(pair: Pair) -> None:
    pair.both(ORDERS)
    pair.right.execute("update t set name = 'x'")
    found = pair.diff(limit=5)
    assert (found.differing, len(found.rows)) == (2000, 5)
    assert pair.diff(limit=0).rows == ()


def test_keys_of_texts(pair: Pair) -> None:
    pair.both(
        "create table t (code varchar(20), market char(3), day date, note text, primary key (code, market, day));"
        "insert into t select chr(44032 + g) || g || chr(65536 + g) || '''\"\\', 'KR', date '2026-01-01' + g % 5, 'n'"
        " from generate_series(1, 500) g; insert into t values ('B', 'US', '2026-01-01', 'n'), ('a', 'US', '2026-01-01', 'n')"
    )
    pair.right.execute("update t set note = 'm' where code like '%17%'; delete from t where code = 'B'")
    pair.left.execute("delete from t where code = 'a'")
    found = pair.diff(segment_rows=40)
    changed = pair.left.execute("select count(*) from t where code like '%17%'").fetchone()
    assert changed is not None
    assert counts(found)[3:] == (changed[0], 1, 1)
    assert {row.only for row in found.rows} == {None, "left", "right"}
    assert all(row.columns[0].left == "n" for row in found.rows if row.only is None)
    assert [row.key[1] for row in found.rows if row.only == "left"] == [("market", "US ")]


def test_text_keys_of_another_encoding(pair: Pair) -> None:
    name = sql.Identifier("latin_" + pair.left.info.dbname)
    pair.left.execute(sql.SQL("create database {} encoding 'WIN1252' template template0").format(name))
    try:
        url = psycopg.conninfo.make_conninfo(pair.left.info.dsn, dbname="latin_" + pair.left.info.dbname)
        make = "create table t (k text primary key, v int); insert into t select chr(g), g from generate_series(192, 255) g; insert into t values ('€', 1), ('„', 2), ('ž', 3)"
        with psycopg.connect(url, autocommit=True, client_encoding="utf8") as latin:
            latin.execute("create table t (k text primary key, v int)")
            pair.right.execute(make)
            rows = pair.right.execute("select k, v from t").fetchall()
            latin.cursor().executemany("insert into t values (%s, %s)", rows)
            latin.execute("update t set v = 100 where k in ('€', 'ü'); delete from t where k = 'ž'")
        found = diff((database_from_url(url, "LATIN"), T), (pair.databases[1], T))
        assert counts(found) == (66, 67, 64, 2, 0, 1)
    finally:
        pair.left.execute(sql.SQL("drop database {} with (force)").format(name))


def test_missing_columns_and_other_types(pair: Pair) -> None:
    pair.left.execute(
        "create table t (id int primary key, amount int, gone text, same text); insert into t values (1, 5, 'g', 's'), (2, 6, 'g', 's')"
    )
    pair.right.execute(
        "create table t (same varchar(9), id bigint primary key, amount text, extra int); insert into t values ('s', 1, '5', 1), ('s', 2, '7', 1)"
    )
    found = pair.diff()
    assert (found.missing_left, found.missing_right) == (("extra",), ("gone",))
    assert found.types == (
        ("id", "integer", "bigint"),
        ("amount", "integer", "text"),
        ("same", "text", "character varying(9)"),
    )
    assert counts(found) == (2, 2, 1, 1, 0, 0)
    assert found.rows[0].columns == (ColumnDiff("amount", "6", "7"),)
    assert not found.same


def test_key_of_another_type(pair: Pair) -> None:
    pair.left.execute(
        "create table t (id int primary key, v int); insert into t select g, g from generate_series(1, 50) g"
    )
    pair.right.execute(
        "create table t (id text primary key, v int); insert into t select g::text, g from generate_series(2, 50) g; insert into t values ('abc', 1)"
    )
    found = pair.diff()
    assert counts(found) == (50, 50, 49, 0, 1, 1)
    assert {row.key[0][1] for row in found.rows} == {"1", "abc"}


def test_columns_in_another_order_are_equal(pair: Pair) -> None:
    pair.left.execute("create table t (a int primary key, b text); insert into t values (1, 'x')")
    pair.right.execute("create table t (b text, a int primary key); insert into t values ('x', 1)")
    assert pair.diff().same


def test_without_a_key(pair: Pair) -> None:
    pair.both("create table t (a int, b int); insert into t values (1, 1), (1, 1), (2, 2)")
    assert pair.diff().same
    pair.right.execute("update t set b = 3 where a = 2")
    with pytest.raises(KeyInvalid, match="no key tells"):
        pair.diff()
    with pytest.raises(KeyInvalid, match="stands for more than one row"):
        pair.diff(("a",))
    with pytest.raises(KeyInvalid, match="does not have"):
        pair.diff(("c",))


def test_condition(pair: Pair) -> None:
    pair.both(ORDERS)
    pair.right.execute("update t set name = 'x' where id > 3000")
    assert pair.diff(where="id <= 3000").same
    assert pair.diff(where="id between 2995 and 3005").differing == 1


def test_float_zeros_and_hidden_differences(pair: Pair) -> None:
    pair.both(
        "create table t (id int primary key, f float8, i interval, n numeric); insert into t values (1, 0, '1 mon', 1.0)"
    )
    pair.right.execute("update t set f = '-0', i = '30 days', n = 1.00")
    found = pair.diff()
    assert found.rows[0].columns == (
        ColumnDiff("f", "0", "-0"),
        ColumnDiff("i", "1 mon", "30 days"),
        ColumnDiff("n", "1.0", "1.00"),
    )


def test_empty_sides(pair: Pair) -> None:
    pair.both("create table t (id int primary key)")
    assert pair.diff().same
    pair.left.execute("insert into t values (1), (2)")
    assert counts(pair.diff()) == (2, 0, 0, 0, 2, 0)


def test_errors(pair: Pair) -> None:
    pair.left.execute("create table t (a int)")
    with pytest.raises(NotFound, match="DST"):
        pair.diff()
    pair.right.execute("create table t (b int)")
    with pytest.raises(ContractBroken, match="no column in common"):
        pair.diff()


def test_memory_is_bounded(pair: Pair) -> None:
    """All rows differ: keys and hashes are streamed, so no list of them is built."""
    import tracemalloc

    pair.both("create table t (id int primary key, x int); insert into t select g, 1 from generate_series(1, 60000) g")
    pair.right.execute("update t set x = 2")
    tracemalloc.start()
    try:
        found = pair.diff(limit=3)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.differing == 60_000
    assert peak < 15_000_000


def test_a_failing_side_ends_the_other(pair: Pair) -> None:
    pair.left.execute("create view t as select 1 as id, pg_sleep(60)::text as x")
    pair.right.execute("create view t as select 1 / (random() * 0)::int as id, '' as x")
    start = time.monotonic()
    with pytest.raises(MillraceError, match="could not digest"):
        pair.diff()
    assert time.monotonic() - start < 30


KEYED = st.dictionaries(st.integers(0, 30), st.integers(0, 2), max_size=20)


@given(left=KEYED, right=KEYED)
def test_merge_finds_what_sets_find(left: dict[int, int], right: dict[int, int]) -> None:
    def rows(side: dict[int, int]) -> Iterator[tuple[tuple[int], int]]:
        return iter([((key,), value) for key, value in sorted(side.items())])

    found = list(_merge(rows(left), rows(right)))
    assert {key[0] for key, side in found if side == "left"} == left.keys() - right.keys()
    assert {key[0] for key, side in found if side == "right"} == right.keys() - left.keys()
    assert {key[0] for key, side in found if side is None} == {
        k for k in left.keys() & right.keys() if left[k] != right[k]
    }
    assert [key for key, _ in found] == sorted(key for key, _ in found)
