"""Random tables of random types, values and names, copied between two servers and compared by their ordered text rows."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from every_type import copy, execute, quoted, text
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from psycopg import sql

from millrace.testing.servers import PostgresServer

CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
TEXTS = st.text(CHARACTERS, max_size=12) | st.sampled_from(["", r"\.", r"\N", "NULL", "\r\n", "\\", "{}", '"', "'"])
NAME = st.text(CHARACTERS, min_size=1, max_size=15)  # at most 60 bytes
FLOATS = st.floats().map(repr)
NUMBERS = (
    st.decimals(allow_infinity=True)
    .filter(lambda found: not found.is_snan())
    .map(str)
    .map(lambda x: x.lstrip("-") if "NaN" in x else x)
)
INTERVALS = st.tuples(*[st.integers(-(10**5), 10**5)] * 3).map(lambda x: f"{x[0]} mons {x[1]} days {x[2]} us")
MOMENTS = st.one_of(
    st.sampled_from(["infinity", "-infinity", "4713-11-25 00:00:00 BC", "294276-12-31 23:59:59.999999"]),
    st.datetimes().map(lambda found: found.isoformat()),
)
DAYS = st.one_of(st.sampled_from(["infinity", "4713-01-01 BC", "5874897-12-31"]), st.dates().map(str))
TIMES = st.one_of(st.just("24:00"), st.times().map(str))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(CHARACTERS, max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(CHARACTERS, max_size=3), inner, max_size=3),
    max_leaves=5,
).map(lambda found: json.dumps(found, ensure_ascii=False))


def arrays(elements: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Return array literals of one or two dimensions, with nulls and bounds of their own."""

    def literal(found: tuple[list[str | None], int, bool]) -> str:
        items, low, two = found
        words = ["NULL" if one is None else '"' + one.replace("\\", "\\\\").replace('"', '\\"') + '"' for one in items]
        if not words:
            return "{}"
        if two:
            return f"[{low}:{low + len(words) - 1}][3:3]={{{','.join(f'{{{word}}}' for word in words)}}}"
        return f"[{low}:{low + len(words) - 1}]={{{','.join(words)}}}"

    return st.tuples(st.lists(st.none() | elements, max_size=3), st.integers(-3, 3), st.booleans()).map(literal)


def ranges(low: int, high: int) -> st.SearchStrategy[str]:
    bounds = st.tuples(st.none() | st.integers(low, high), st.none() | st.integers(low, high))

    def literal(found: tuple[int | None, int | None]) -> str:
        one, two = found if None in found else sorted(found)  # type: ignore[type-var]
        return f"[{'' if one is None else one},{'' if two is None else two}]"

    return st.just("empty") | bounds.map(literal)


RANDOM: dict[str, st.SearchStrategy[str]] = {
    "text": TEXTS,
    "varchar(12)": TEXTS,
    "char(12)": TEXTS,
    "text[]": arrays(TEXTS),
    "bool": st.sampled_from(["t", "f"]),
    "int2": st.integers(-(2**15), 2**15 - 1).map(str),
    "int8": st.integers(-(2**63), 2**63 - 1).map(str),
    "int4[]": arrays(st.integers(-(2**31), 2**31 - 1).map(str)),
    "float8": FLOATS,
    "float4": st.floats(width=32).map(repr),
    "numeric": NUMBERS,
    "numeric[]": arrays(NUMBERS),
    "money": st.integers(-(2**52), 2**52).map(str),
    "bytea": st.binary(max_size=20).map(lambda found: "\\x" + found.hex()),
    "uuid": st.uuids().map(str),
    "date": DAYS,
    "time": TIMES,
    "timetz": TIMES.map(lambda found: found + "+13:45"),
    "timestamp": MOMENTS,
    "timestamptz": MOMENTS,
    "interval": INTERVALS,
    "interval[]": arrays(INTERVALS),
    "json": JSON,
    "jsonb": JSON,
    "inet": st.ip_addresses().map(str),
    "varbit": st.text("01", max_size=20),
    "point": st.tuples(FLOATS, FLOATS).map(lambda found: f"({found[0]},{found[1]})"),
    "int8range": ranges(-(2**40), 2**40),
    "nummultirange": ranges(-9, 9).map(lambda found: "{}" if found == "empty" else f"{{{found}}}"),
    "tsvector": st.sampled_from(["'a b':1A c:2", "", "'it''s'"]),
    "random_mood": st.sampled_from(["", "it's", "행복"]),
    "random_pair": st.sampled_from(['(1,"a,""b")', "(,)", '(,"")']),
    "random_word": TEXTS,
}


@st.composite
def tables(draw: st.DrawFn) -> tuple[str, list[tuple[str, str]], list[list[str | None]]]:
    """Return a name, columns of (name, type), and rows of literals."""
    kinds = draw(st.lists(st.sampled_from(sorted(RANDOM)), min_size=1, max_size=8))
    names = draw(st.lists(NAME, min_size=len(kinds) + 2, max_size=len(kinds) + 2, unique=True))
    row = st.tuples(*(st.none() | RANDOM[kind] for kind in kinds))
    rows = [list(one) for one in draw(st.lists(row, max_size=6))]
    return names[0], list(zip(["key", *names[2:]], ["int", *kinds], strict=True)), rows


SYSTEM = {"tableoid", "xmin", "cmin", "xmax", "cmax", "ctid", "key"}


@pytest.fixture(scope="module")
def playground(pg15: PostgresServer, pg18: PostgresServer) -> Iterator[tuple[str, str]]:
    """One database on each server, with the types that random tables use in the first one only."""
    name = f"t_{uuid.uuid4().hex[:12]}"
    for server in (pg15, pg18):
        execute(server.url(), f"create database {name}")
    execute(
        pg18.url(name),
        "create type random_mood as enum ('', 'it''s', '행복')",
        "create type random_pair as (a int, b text)",
        "create domain random_word as text check (length(value) < 99)",
    )
    yield pg18.url(name), pg15.url(name)
    for server in (pg15, pg18):
        execute(server.url(), f"drop database {name} with (force)")


@settings(
    max_examples=12,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    phases=[Phase.generate],  # a failure is shown as it was found: shrinking would copy a hundred tables
)
@given(table=tables())
def test_random_tables_arrive_as_they_are(playground: tuple[str, str], table: Any) -> None:
    source, target = playground
    name, columns, rows = table
    assume(not SYSTEM.intersection(column for column, _ in columns[1:]))
    full = f"public.{quoted(name)}"
    made = ", ".join(f"{quoted(column)} {kind}" for column, kind in columns)
    with psycopg.connect(source, autocommit=True) as connection:
        connection.execute(f"create table {full} ({made}, primary key (key))".encode())
        values = sql.SQL(", ").join(sql.SQL("%s::" + kind) for _, kind in columns)  # type: ignore[arg-type]
        for number, row in enumerate(rows):
            connection.execute(sql.SQL("insert into {} values ({})").format(sql.SQL(full), values), [number, *row])
    try:
        copy(source, target, full, segment_rows=3)
        assert text(source, full) == text(target, full)
        execute(source, f"delete from {full} where key = 0", f"update {full} set key = key + 10 where key = 2")
        copy(source, target, full, segment_rows=3, allow_deletes=True)
        assert text(source, full) == text(target, full)
    finally:
        for url in playground:
            execute(url, f"drop table if exists {full}")
