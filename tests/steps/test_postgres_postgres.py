"""Copying from PostgreSQL to PostgreSQL on two real servers, 15 and 18, both ways."""

from __future__ import annotations

import pytest
from doors import Copy, execute, leftovers, rows, table

from millrace.core.position import Whole
from millrace.core.staged import Counts

ORDERS = (
    "create table t (id bigint primary key, name text not null, amount numeric(12,2), at timestamptz, tags text[], "
    "data jsonb, f float8)",
    "insert into t select i, 'row ' || i, i * 1.10, timestamptz '2026-01-01' + i * interval '1 minute', "
    "array['a', i::text], jsonb_build_object('i', i), case i % 7 when 0 then 'NaN' when 1 then '-0' else i / 3.0 end "
    "from generate_series(1, 3000) i",
)


@pytest.fixture(params=["15 to 18", "18 to 15"])
def urls(request: pytest.FixtureRequest) -> tuple[str, str]:
    one, two = request.getfixturevalue("db15"), request.getfixturevalue("db18")
    return (one, two) if request.param == "15 to 18" else (two, one)


@pytest.fixture
def copy(urls: tuple[str, str]) -> Copy:
    execute(urls[0], *ORDERS)
    return Copy(*urls, segment_rows=500)


def equal(copy: Copy) -> bool:
    return table(copy.urls[0]) == table(copy.urls[1])


def test_first_load(copy: Copy) -> None:
    assert not copy.fresh().fresh
    entry = copy.run()
    assert entry is not None
    assert equal(copy)
    assert (entry.seq, entry.level, entry.rows, entry.counts) == (1, "table", 3000, Counts(3000))
    assert isinstance(entry.position, Whole)
    assert entry.position.digest == entry.digest
    assert copy.target.ledger(copy.spec.asset) == entry
    assert copy.ctx.report.rows >= 3000
    assert leftovers(copy.urls[0]) == leftovers(copy.urls[1]) == []
    assert copy.fresh().reason == "source digest unchanged"
    columns = "select attname, format_type(atttypid, atttypmod), attnotnull from pg_attribute where attrelid = 't'::regclass and attnum > 0"
    assert rows(copy.urls[0], columns) == rows(copy.urls[1], columns)
    assert rows(
        copy.urls[1], "select conname, contype from pg_constraint where conrelid = 't'::regclass and contype = 'p'"
    ) == [("t_pkey", "p")]
