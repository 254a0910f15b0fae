"""Expressions mean in PostgreSQL what they mean in DuckDB, or are refused."""

from __future__ import annotations

import datetime as dt
from typing import Any

import duckdb
import psycopg
import pytest

from millrace.core.names import AssetId
from millrace.errors import ProjectError
from millrace.quality import portable, sql
from millrace.quality.rules import Between, Expression, InSet, parse_checks

ASSET = AssetId("raw", "v")
COLUMNS = {
    "id": ("bigint", "BIGINT"),
    "a": ("int", "INTEGER"),
    "f": ("float8", "DOUBLE"),
    "r": ("real", "FLOAT"),
    "n": ("numeric(12,2)", "DECIMAL(12,2)"),
    "t": ("text", "VARCHAR"),
    "s": ("timestamp", "TIMESTAMP"),
    "x": ("bytea", "BLOB"),
}
VALUES: dict[str, list[Any]] = {
    "a": [None, 0, 5, -5, 7],
    "f": [None, 2.5, -2.5, 3.5, 2.4999999999999996, 1234567890123457.0, float("nan"), float("inf")],
    "r": [None, 0.0, 0.1, -1.5, float("nan")],
    "n": [None, "2.50", "-2.50", "100.00"],
    "t": [None, "abc", "a%c", "a_c", "a\\c", "a.b", "a\nb", "12", "가나", "٣", "x@y.z", " b", ""],
    "s": [None, dt.datetime(2026, 1, 4, 23, 59, 59, 999999), dt.datetime(2026, 1, 1)],
    "x": [None, b"\x00\xff"],
}
SAME = [
    *["t like 'a%'", r"t like 'a\%c'", r"t like 'a\_c'", r"t like 'a\\c'", r"t not like 'a\c'", r"t ilike 'A\%C'"],
    *["t like 'a!%c' escape '!'", "t like 'a%' and not (t like 'a_c' or t is null)"],
    *["regexp_matches(t, 'a.b')", r"regexp_matches(t, '^\w+$')", r"regexp_matches(t, '^\d+$')"],
    *[r"regexp_matches(t, '\bb')", r"regexp_matches(t, '^[\w.]+@[^\s@]+$')", r"regexp_matches(t, 'A\.B', 'i')"],
    *[r"regexp_replace(t, '\W', '', 'g') = 'ab'", r"regexp_matches(t, '[.]')"],
    *[
        "round(f) = 2",
        "round(f) = 3",
        "round(f) = f",
        "round(a / 2) = 3",
        "round(n) = -3",
        "a / 2 = 2.5",
        "a // 2 = -3",
    ],
    *["r = 0.1", "0.1 >= r", "r in (0.1, 7)", "r between -1.5 and 0.1", "r * 2 = 0.2", "r > f", "f::real <> 2.4"],
    *["extract(second from s) = 59", "date_part('second', s) = 59", "extract(epoch from s) > 1767571199.5"],
    *["strftime(s, '%Y-%m-%d %H:%M:%S') = '2026-01-01 00:00:00'", "t || a = 'abc5'", "f < 3"],
]
OTHER = [
    *[
        "t similar to 'a.*'",
        "(a, n) = (5, 2.5)",
        "(a, n) in ((5, 2.5))",
        "try_cast(t as int) > 0",
        "format('{}', t) = t",
    ],
    *["n // 2 = 1", "substring(t, -1) = 'c'", "strftime(s, '%I %p') = '11 PM'", "strftime(s, 'Q%m') = 'Q01'"],
    *["f::text = '2.5'", "x::varchar = ''", "f || '' = '2.5'", "concat(f, t) = ''", "regexp_matches(t, '(?s)a.b')"],
]


def _parsed(text: str) -> Expression:
    (rule,) = parse_checks({"expression": [text]}, ASSET)
    assert isinstance(rule, Expression)
    return rule


@pytest.mark.servers
def test_expressions_find_the_same_rows_in_both_engines(db15: str) -> None:
    rows = [
        (row, *(values[(row * step + row // 7) % len(values)] for step, values in enumerate(VALUES.values(), 1)))
        for row in range(300)
    ]
    table = sql.Table(ASSET, ("v",), {name: kinds[1] for name, kinds in COLUMNS.items()}, dt.datetime.now(dt.UTC))
    ranges = parse_checks({"between": {"r": [0, 0.1], "t": [1, 11.5]}, "in_set": {"r": [0.1]}}, ASSET)
    with psycopg.connect(db15, autocommit=True) as postgres, duckdb.connect() as duck:
        postgres.execute(f"create table v ({', '.join(f'{name} {one[0]}' for name, one in COLUMNS.items())})")
        duck.execute(f"create table v ({', '.join(f'{name} {one[1]}' for name, one in COLUMNS.items())})")
        postgres.cursor().executemany(f"insert into v values ({', '.join(['%s'] * len(COLUMNS))})", rows)
        duck.executemany(f"insert into v values ({', '.join(['?'] * len(COLUMNS))})", rows)
        for rule in [*map(_parsed, SAME), *ranges]:
            assert isinstance(rule, Expression | Between | InSet)
            there = duck.execute(f"select id from v where {sql.text(sql.broken(rule, table))} order by id").fetchall()
            here = postgres.execute(f"select id from v where {portable.broken(rule, table)} order by id").fetchall()
            assert here == there, rule.name
            counted = postgres.execute(portable.query(sql.count_broken([rule], table), table.types)).fetchone()
            assert counted == (len(rows), len(there)), rule.name


@pytest.mark.parametrize("text", OTHER)
def test_what_means_something_else_in_postgres_is_refused(text: str) -> None:
    table = sql.Table(ASSET, ("v",), {name: kinds[1] for name, kinds in COLUMNS.items()}, dt.datetime.now(dt.UTC))
    for write in (
        lambda: portable.broken(_parsed(text), table),
        lambda: portable.query(sql.count_broken([_parsed(text)], table), table.types),
    ):
        with pytest.raises(ProjectError, match="in PostgreSQL uses what"):
            write()
