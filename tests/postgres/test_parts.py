"""Which segments are copied together, and the predicates of many segments, against rows of a real server."""

from __future__ import annotations

from itertools import pairwise

import pytest

from millrace.core.names import TableRef
from millrace.core.segment import Segment
from millrace.postgres.catalog import describe
from millrace.postgres.parts import OR_LIMIT, any_of, gathered, joined
from millrace.postgres.session import connect, database_from_url
from millrace.postgres.source import open_source


def ranges(*bounds: int | None) -> list[Segment]:
    return [Segment.range(lower, upper, 10) for lower, upper in pairwise(bounds)]


def test_neighbours_are_joined() -> None:
    assert joined(ranges(None, 10, 20, None)) == [Segment.range(None, None, 30)]
    assert joined([*ranges(0, 10, 20), *ranges(30, 40)]) == [Segment.range(0, 20, 20), Segment.range(30, 40, 10)]
    buckets = [Segment.bucket(number, 4) for number in (0, 1)]
    assert joined(buckets) == buckets


def test_parts_are_about_as_large_as_wanted() -> None:
    parts = gathered(ranges(*range(0, 1010, 10)), 100, 2)
    assert [len(part.segments) for part in parts] == [10] * 10
    assert len({part.id for part in parts}) == 10
    assert [part.rows for part in parts] == [100] * 10
    buckets = [Segment.bucket(number, 8, 10) for number in (1, 2, 5, 6, 7)]
    assert [len(part.segments) for part in gathered(buckets, 1, 2)] == [3, 2]
    assert gathered([Segment.bucket(3, 8)], 1, 2)[0].id == "bucket:3/8"
    pages = [Segment.pages(0, 5), Segment.pages(5, None)]
    assert [part.id for part in gathered(pages, 1, 2)] == [segment.id for segment in pages]
    assert gathered([], 1, 1) == []


def test_a_parts_name_tells_its_segments() -> None:
    one, other = ranges(0, 10, 20, 30), [*ranges(0, 10, 20), *ranges(30, 40)]
    assert gathered(one, 1000, 1)[0].id != gathered(other, 1000, 1)[0].id


@pytest.mark.parametrize("every", [2, 3, 50])
def test_predicates_select_exactly_their_rows(db15: str, every: int) -> None:
    with connect(database_from_url(db15, "DB")) as connection:
        connection.execute("create table t (id bigint primary key)")
        connection.execute("insert into t select i from generate_series(-100, 1100) i")
        connection.execute("insert into t values (-9223372036854775808), (9223372036854775807)")
        relation = describe(connection, TableRef("public", "t"), label="DB")
        source = open_source(connection, TableRef("public", "t"), label="DB")
        segments = [
            segment for place, segment in enumerate(ranges(None, *range(0, 1000, 10), None)) if place % every == 0
        ]
        assert (len(segments) > OR_LIMIT) == (every < 4)
        found = {row[0] for row in connection.execute(source.select(predicate=any_of(segments, relation.columns)))}
        wanted = {
            number
            for (number,) in connection.execute("select id from t")
            if any((s.lower is None or number >= s.lower) and (s.upper is None or number < s.upper) for s in segments)
        }
        assert found == wanted
        assert len(found) > 10
        buckets = [Segment.bucket(number, 64) for number in range(0, 64, every)]
        some = source.select(predicate=any_of(buckets, relation.columns))
        rest = [Segment.bucket(number, 64) for number in range(64) if number % every]
        others = source.select(predicate=any_of(rest, relation.columns))
        one, two = (len(connection.execute(query).fetchall()) for query in (some, others))
        assert one
        assert two
        assert one + two == 1203
        assert any_of([Segment.bucket(number, 64) for number in range(64)], relation.columns) is None
        assert connection.execute(source.select(predicate=any_of([], relation.columns))).fetchall() == []
