"""Keys that do not tell rows apart are refused, with examples."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from millrace.core.names import TableRef
from millrace.errors import KeyInvalid
from millrace.postgres.keys import check_key, proven
from millrace.postgres.session import Connection, connect, database_from_url
from millrace.postgres.source import Source, open_source


@pytest.fixture
def db(db18: str) -> Iterator[Connection]:
    with connect(database_from_url(db18, "SRC")) as connection:
        yield connection


def source(db: Connection, name: str = "t", **options: str) -> Source:
    return open_source(db, TableRef.parse(name), label="SRC", **options)


def test_good_keys(db: Connection) -> None:
    db.execute(
        "create table t (a int primary key, b text, c char(3)); insert into t values (1, 'x', 'q'), (2, 'x', 'r')"
    )
    for key in (["a"], ["c"], ["b", "c"], ["a", "b"]):
        check_key(db, source(db), key)


def test_no_key_and_wrong_columns(db: Connection) -> None:
    db.execute("create table t (order_id int)")
    with pytest.raises(KeyInvalid, match="no primary key"):
        check_key(db, source(db), [])
    with pytest.raises(KeyInvalid, match="column orderid") as caught:
        check_key(db, source(db), ["orderid"])
    assert caught.value.hint == 'did you mean "order_id"?'
    with pytest.raises(KeyInvalid, match="twice"):
        check_key(db, source(db), ["order_id", "order_id"])


def test_nulls(db: Connection) -> None:
    db.execute(
        "create table t (a int, b text); insert into t values (1, 'x'), (2, null), (null, 'y'), (null, null), (3, null)"
    )
    with pytest.raises(KeyInvalid, match="4 rows have a null") as caught:
        check_key(db, source(db), ["a", "b"])
    assert len(caught.value.detail) == 3
    assert "a = 2, b = null" in caught.value.detail
    check_key(db, source(db, where="a is not null and b is not null"), ["a", "b"])


def test_duplicates(db: Connection) -> None:
    db.execute("create table t (a int, b numeric); insert into t select g % 5, 1 from generate_series(1, 12) g")
    with pytest.raises(KeyInvalid, match=r"5 keys \(a\) of public.t stand for more than one row") as caught:
        check_key(db, source(db), ["a"])
    assert len(caught.value.detail) == 3
    assert caught.value.detail[0].endswith(("2 rows", "3 rows"))
    db.execute("truncate t; insert into t values (1, 1.0), (1, 1.00), (2, 1)")
    with pytest.raises(KeyInvalid, match=r"1 key .* stands for"):
        check_key(db, source(db), ["a", "b"])


def test_type_without_equality(db: Connection) -> None:
    db.execute("create table t (a json)")
    with pytest.raises(KeyInvalid, match="no equality") as caught:
        check_key(db, source(db), ["a"])
    assert caught.value.detail == ("a: json",)


def test_what_an_index_proves(db: Connection) -> None:
    db.execute(
        """
        create table t (a int primary key, b int not null, c int, d int not null, e int not null);
        create unique index on t (b); create unique index on t (c); create unique index on t (d) where d > 0;
        create unique index on t ((e + 0)); create table child () inherits (t); create table u (a int primary key);
        create view v as select * from u
        """
    )
    db.execute("alter table child no inherit t")
    t = source(db)
    found = {name: proven(t, t.pick([name])) for name in t.names}
    assert found == {"a": True, "b": True, "c": False, "d": False, "e": False}
    assert proven(t, t.pick(["a", "c"])) is False  # c may be null
    assert proven(t, t.pick(["d", "a"])) is True
    v = source(db, "v")
    assert not proven(v, v.pick(["a"]))
    query = source(db, select="select a from t union all select a from t")
    assert not proven(query, query.pick(["a"]))


def test_an_inheritance_parent_proves_nothing(db: Connection) -> None:
    db.execute(
        "create table t (a int primary key); create table c () inherits (t); insert into t values (1); insert into c values (1)"
    )
    with pytest.raises(KeyInvalid):
        check_key(db, source(db), ["a"])


def test_a_not_null_that_is_not_valid_proves_nothing(db: Connection) -> None:
    db.execute("create table t (a int unique); insert into t values (1), (null), (null)")
    db.execute("alter table t add constraint present not null a not valid")
    assert not proven(source(db), source(db).pick(["a"]))
    with pytest.raises(KeyInvalid, match="null"):
        check_key(db, source(db), ["a"])
