"""Row versions tell that a table was not touched, and never that it was not when it was."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import psycopg
import pytest

from millrace.core.names import TableRef
from millrace.core.position import Whole, position_from_json
from millrace.core.segment import Segment
from millrace.postgres.heap import heap_of, touched
from millrace.postgres.reader import PostgresReader
from millrace.postgres.session import database_from_url

pytestmark = [pytest.mark.servers]


class Table:
    """One table `t` and positions of it."""

    def __init__(self, url: str, ddl: str = "create table t (id int primary key, v text, n numeric)") -> None:
        self.url = url
        self.reader = PostgresReader(database_from_url(url, "SRC"))
        self.execute(ddl, "insert into t select i, 'v' || i, i / 3.0 from generate_series(1, 500) as i")

    def execute(self, *statements: str) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement)

    def position(self, **options: Any) -> Whole:
        with self.reader.snapshot() as snap:
            source = self.reader.source(TableRef("public", "t"), connection=snap.connection, **options)
            whole = Segment.whole()
            digest = self.reader.digest(source, [whole], snap)[whole.id]
            found = position_from_json(Whole(digest, snap.state, heap_of(source, snap)).to_json())
            assert isinstance(found, Whole)
            return found

    def touched(self, position: Whole, **options: Any) -> str:
        with self.reader.snapshot() as snap:
            source = self.reader.source(TableRef("public", "t"), connection=snap.connection, **options)
            return touched(source, position, snap)


@pytest.fixture(params=["db15", "db18"])
def t(request: pytest.FixtureRequest) -> Table:
    return Table(request.getfixturevalue(request.param))


@pytest.mark.parametrize(
    "change",
    [
        "insert into t values (501)",
        "update t set v = 'x' where id = 7",
        "update t set v = v where id = 7",
        "delete from t where id = 7",
        "with gone as (delete from t where id = 7) insert into t values (501)",
        "do $$ begin begin insert into t values (501); exception when others then null; end; end $$",
        "begin; truncate t; insert into t select i from generate_series(1, 500) as i; commit",
    ],
)
def test_what_was_written_is_seen(t: Table, change: str) -> None:
    before = t.position()
    assert t.touched(before) == "no"
    t.execute(change)
    assert t.touched(before) != "no"
    if "truncate" not in change:
        assert t.touched(before) == "yes"


def test_what_changes_no_row_is_not(t: Table) -> None:
    before = t.position()
    t.execute("begin; update t set v = 'x'; rollback", "vacuum (freeze, analyze) t", "begin; lock table t; commit")
    with psycopg.connect(t.url) as other:
        other.execute("select * from t where id = 7 for update")
        assert t.touched(before) == "no"
        other.execute("update t set v = 'x' where id = 7")
        assert t.touched(before) == "no", "not committed: not seen by any reader"
    assert t.touched(before) == "yes"


def test_who_wrote_while_the_position_was_taken_makes_it_unknown(t: Table) -> None:
    with psycopg.connect(t.url) as late:
        late.execute("update t set v = 'late' where id = 7")
        t.execute("update t set v = 'early' where id = 8")
        before = t.position()  # holds `early`, whose id is not below the oldest running one
        assert t.touched(before) == "unknown"
        late.commit()
    assert t.touched(before) != "no"


def test_a_prepared_delete_is_seen_when_it_commits(t: Table) -> None:
    with psycopg.connect(t.url) as late:
        late.execute("delete from t where id = 7")
        before = t.position()
        assert t.touched(before) == "no"
        late.commit()
    assert t.touched(before) == "yes"


@pytest.mark.parametrize(
    "change",
    [
        "alter table t add column w int default 7",
        "alter table t drop column n",
        "alter table t drop column n; alter table t add column n numeric default 7",
        "vacuum full t",
        "alter table t rename to u; create table t (id int primary key, v text, n numeric)",
    ],
)
def test_another_table_or_file_is_unknown(t: Table, change: str) -> None:
    before = t.position()
    for statement in change.split("; "):
        t.execute(statement)
    assert t.touched(before) == "unknown"


def test_where_row_versions_say_nothing(db18: str) -> None:
    t = Table(db18)
    before = t.position()
    assert before.heap is not None
    assert t.position(where="id < 100").heap is None
    assert t.touched(before, where="id < 100") == "unknown"
    assert t.touched(replace(before, heap="another life of the server")) == "unknown"
    assert t.touched(Whole(before.digest, before.snapshot)) == "unknown", "a position of an older version"
    far = int((before.snapshot or "").split(":")[0]) - (1 << 31)
    assert t.touched(replace(before, snapshot=f"{far}:{far}:")) == "unknown", "ids have gone round"
    for column in ("mood", "regclass", "money", "mood[]", "positive", "int generated always as (id * 2) virtual"):
        t.execute(
            "drop table t cascade; drop type if exists mood cascade; drop domain if exists positive",
            "create type mood as enum ('calm', 'wild'); create domain positive as mood",
            f"create table t (id int primary key, c {column})",
        )
        assert t.position().heap is None, column
    t.execute("drop table t cascade", "create table t (id int) partition by range (id)")
    assert t.position().heap is None
