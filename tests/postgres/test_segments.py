"""Segments cover every row exactly once, one by one and grouped in one scan."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from psycopg import sql

from millrace.core.digest import Digest
from millrace.core.names import TableRef
from millrace.core.segment import Segment
from millrace.errors import KeyInvalid, MillraceError
from millrace.postgres.reader import digest_segments
from millrace.postgres.segments import bucket_expression, group_expression, key_segments, page_segments, predicate
from millrace.postgres.session import Connection, connect, database_from_url
from millrace.postgres.source import Source, open_source


@pytest.fixture(params=["15", "18"])
def db(request: pytest.FixtureRequest) -> Iterator[Connection]:
    url = request.getfixturevalue(f"db{request.param}")
    with connect(database_from_url(url, "SRC")) as connection:
        connection.execute(
            "create table t (id int primary key, code text not null, n numeric, filler text);"
            "insert into t select g * g, '코드' || g, g * 1.10, repeat('x', 50) from generate_series(-5000, -1) g;"
            "insert into t values (-2147483648, 'low', 1, ''), (2147483647, 'high', null, null)"
        )
        yield connection


def source(db: Connection, **options: str) -> Source:
    return open_source(db, TableRef.parse("t"), label="SRC", **options)


def grouped(db: Connection, of: Source, segments: list[Segment], key: list[str]) -> dict[str, Digest]:
    return dict(digest_segments(db, of, segments, key))


def one_by_one(db: Connection, of: Source, segments: list[Segment], key: list[str]) -> dict[str, Digest]:
    return {name: d for segment in segments for name, d in digest_segments(db, of, [segment], key)}


def whole(db: Connection, of: Source) -> Digest:
    return dict(digest_segments(db, of, [Segment.whole()]))["all"]


@pytest.mark.parametrize("key", [["id"], ["code"], ["id", "code"], ["n"]])
def test_key_segments_cover_all(db: Connection, key: list[str]) -> None:
    of = source(db)
    segments = key_segments(db, of, of.pick(key), 700)
    assert len(segments) >= 4
    found = grouped(db, of, segments, key)
    assert found == one_by_one(db, of, segments, key)
    assert Digest.sum(found.values(), whole(db, of).shape) == whole(db, of)
    assert max(d.rows for d in found.values()) < 3000  # roughly even, though the keys are squares


def test_some_of_the_segments(db: Connection) -> None:
    of = source(db)
    for key in (["id"], ["code"]):
        segments = key_segments(db, of, of.pick(key), 500)
        everything = grouped(db, of, segments, key)
        for some in (segments[1:3] + segments[-1:], segments[:1] + segments[4:6], segments[::-2], segments[2:3]):
            assert grouped(db, of, some, key) == {segment.id: everything[segment.id] for segment in some}


def test_pages_cover_all(db: Connection) -> None:
    of = source(db)
    assert of.relation is not None
    segments = page_segments(of.relation, 1000)
    assert len(segments) in (4, 5, 6)
    assert (segments[0].lower, segments[-1].upper) == (0, None)
    found = grouped(db, of, segments, [])
    assert Digest.sum(found.values(), whole(db, of).shape) == whole(db, of)
    assert all(found[segment.id].rows > 0 for segment in segments)
    plan = db.execute(sql.SQL("explain {}").format(of.select(predicate=predicate(segments[1])))).fetchall()
    assert "Tid Range Scan" in str(plan)


def test_pages_of_empty_and_small_tables(db: Connection) -> None:
    db.execute("truncate t")
    relation = source(db).relation
    assert relation is not None
    assert [segment.id for segment in page_segments(relation, 1000)] == ["pages:0-"]


def test_ids_name_the_same_rows_again(db: Connection) -> None:
    of = source(db)
    first = key_segments(db, of, of.pick(["id"]), 700)
    again = [Segment.from_json(segment.to_json()) for segment in first]
    assert grouped(db, of, first, ["id"]) == grouped(db, of, again, ["id"])


def test_ranges_without_a_heap_of_its_own(db: Connection) -> None:
    db.execute("create view seen as select * from t where id > 0")
    of = open_source(db, TableRef.parse("seen"), label="SRC")
    segments = key_segments(db, of, of.pick(["id"]), 1000)
    assert len(segments) > 3
    assert Digest.sum(grouped(db, of, segments, ["id"]).values(), whole(db, of).shape) == whole(db, of)


def test_condition_holds_in_every_segment(db: Connection) -> None:
    of = source(db, where="id < 1000000")
    segments = key_segments(db, of, of.pick(["id"]), 200)
    found = grouped(db, of, segments, ["id"])
    assert sum(d.rows for d in found.values()) == 1000
    assert grouped(db, of, [Segment.pages(0, 10), Segment.pages(10, None)], [])["pages:0-10"].rows < 1000


def test_bad_requests(db: Connection) -> None:
    of = source(db)
    with pytest.raises(KeyInvalid):
        key_segments(db, of, (), 10)
    with pytest.raises(MillraceError, match="power of two"):
        bucket_expression(of.pick(["id"]), 3)
    with pytest.raises(MillraceError, match="cannot be grouped"):
        group_expression([Segment.pages(0, 1), Segment.pages(1, None)], ())
    with pytest.raises(MillraceError, match="overlap"):
        group_expression([Segment.range(None, 5), Segment.range(4, None)], of.pick(["id"]))
    with pytest.raises(MillraceError, match="integer key"):
        predicate(Segment.range(1, 2), of.pick(["code"]))


def test_buckets_are_the_same_on_both_servers(db15: str, db18: str) -> None:
    found = []
    for url in (db15, db18):
        with connect(database_from_url(url, "SRC")) as connection:
            connection.execute(
                "create table t (a text, b numeric(9,2)); insert into t select '키' || g, g from generate_series(1, 500) g"
            )
            of = source(connection)
            segments = [Segment.bucket(number, 8) for number in range(8)]
            found.append(grouped(connection, of, segments, ["a", "b"]))
    assert found[0] == found[1]
    assert all(d.rows > 30 for d in found[0].values())
