"""How types are hashed, travel to Arrow and through COPY BINARY."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from psycopg import sql

from millrace.core.names import TableRef
from millrace.core.schema import Kind
from millrace.lake.table import arrow_type
from millrace.postgres import types
from millrace.postgres.catalog import PgColumn, columns_of_query, describe
from millrace.postgres.session import Connection, connect, database_from_url
from millrace.postgres.types import arrow_expression, arrow_guard, binary_safe, column_guard, hashed, kind, wire


@pytest.fixture
def db(db15: str) -> Iterator[Connection]:
    with connect(database_from_url(db15, "SRC")) as connection:
        connection.execute(
            "create extension hstore; create extension citext; create type mood as enum ('sad', 'ok');"
            "create type pair as (a int, b mood); create domain small as int4; create domain pairs as pair[];"
            "create type span as range (subtype = float8)"
        )
        yield connection


def column(db: Connection, type_text: str) -> PgColumn:
    return columns_of_query(db, sql.SQL("select null::" + type_text + " as x"), label="SRC")[0]


CASES = [
    ("boolean", "bool", Kind.BOOL, True),
    ("smallint", "int", Kind.INT16, True),
    ("integer", "int", Kind.INT32, True),
    ("bigint", "int", Kind.INT64, True),
    ("real", "float8", Kind.FLOAT32, True),
    ("double precision", "float8", Kind.FLOAT64, True),
    ("numeric(12,2)", "text", Kind.DECIMAL, True),
    ("numeric(38,38)", "text", Kind.DECIMAL, True),
    ("numeric(39,2)", "text", Kind.TEXT, True),
    ("numeric(3,-2)", "text", Kind.TEXT, True),
    ("numeric(3,5)", "text", Kind.TEXT, True),
    ("numeric", "text", Kind.TEXT, True),
    ("text", "text", Kind.TEXT, True),
    ("varchar(5)", "text", Kind.TEXT, True),
    ("char(5)", "text", Kind.TEXT, True),
    ('"char"', "text", Kind.TEXT, True),
    ("name", "text", Kind.TEXT, True),
    ("bytea", "bytes", Kind.BYTES, True),
    ("uuid", "uuid", Kind.TEXT, True),
    ("date", "date", Kind.DATE, True),
    ("time", "time", Kind.TIME, True),
    ("timetz", "text", Kind.TEXT, True),
    ("timestamp", "timestamp", Kind.TIMESTAMP, True),
    ("timestamptz(3)", "timestamp", Kind.TIMESTAMPTZ, True),
    ("interval", "text", Kind.TEXT, True),
    ("json", "text", Kind.TEXT, True),
    ("jsonb", "text", Kind.TEXT, True),
    ("xml", "text", Kind.TEXT, False),
    ("money", "text", Kind.TEXT, False),
    ("bit(3)", "text", Kind.TEXT, True),
    ("point", "text", Kind.TEXT, True),
    ("inet", "text", Kind.TEXT, True),
    ("tsvector", "text", Kind.TEXT, True),
    ("tsquery", "text", Kind.TEXT, False),
    ("int4range", "text", Kind.TEXT, True),
    ("int4multirange", "text", Kind.TEXT, True),
    ("integer[]", "text", Kind.TEXT, True),
    ("text[]", "text", Kind.TEXT, True),
    ("money[]", "text", Kind.TEXT, False),
    ("mood", "text", Kind.TEXT, True),
    ("mood[]", "text", Kind.TEXT, False),
    ("pair", "text", Kind.TEXT, False),
    ("pairs", "text", Kind.TEXT, False),
    ("span", "text", Kind.TEXT, False),
    ("hstore", "text", Kind.TEXT, True),
    ("citext", "text", Kind.TEXT, True),
    ("regclass", "text", Kind.TEXT, False),
    ("oid", "text", Kind.TEXT, True),
    ("aclitem", "text", Kind.TEXT, False),
]


def test_each_type(db: Connection) -> None:
    found = [(name, column(db, name)) for name, *_ in CASES]
    assert [(name, hashed(c), kind(c), binary_safe(c)) for name, c in found] == CASES


PAGE = Path(__file__).parents[2] / "docs" / "reference" / "types.md"
DELTA = {
    pa.bool_(): "boolean",
    pa.int16(): "short",
    pa.int32(): "integer",
    pa.int64(): "long",
    pa.float32(): "float",
    pa.float64(): "double",
    pa.string(): "string",
    pa.binary(): "binary",
    pa.date32(): "date",
    pa.timestamp("us", "UTC"): "timestamp",
}


def test_the_page_of_types_is_what_the_code_does(db: Connection, tmp_path: Path) -> None:
    """Each type that docs/reference/types.md names has the mapping that it says, and no type is left out."""
    db.execute("create extension ltree; create extension cube")
    engine = duckdb.connect()
    names = set()
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("| `") or "domain" in cells[0]:
            continue
        for text in re.findall('`([a-z"][^`]+)`', cells[0]):
            if text == "vector":  # PostgreSQL 15 of the distribution has it not
                continue
            found = column(db, text)
            names.add(found.base_name)
            lies = arrow_type(found.column())
            kinds = "decimal" if pa.types.is_decimal(lies) else DELTA[lies]
            empty = pa.table({"x": pa.array([], lies)})  # noqa: F841 - the engine reads it by its name
            ((_, duck, *_),) = engine.execute("describe select * from empty").fetchall()
            unfit = column_guard(found) is not None and kind(found) is not Kind.TIME
            said = (text, wire([found]), kinds, duck.partition("(")[0], unfit)
            assert said == (text, cells[1], cells[2].split(",")[0], cells[3], bool(cells[4])), line
    assert set(types._BINARY) | set(types._KINDS) <= names | {"bpchar"}


def test_a_domain_is_its_base_type(db: Connection) -> None:
    db.execute("create domain smaller as small; create table t (x smaller, d timestamptz)")
    x = describe(db, TableRef.parse("t"), label="SRC")["x"]
    assert (hashed(x), kind(x), binary_safe(x)) == ("int", Kind.INT32, True)
    assert arrow_expression(x).as_string(db) == '"x"::pg_catalog."int4"'


def test_char_keeps_its_padding(db: Connection) -> None:
    db.execute("create domain code as char(4); create table t (a char(4), b code); insert into t values ('x', 'y ')")
    found = describe(db, TableRef.parse("t"), label="SRC").columns
    query = sql.SQL("select {}, {} from t").format(*map(arrow_expression, found))
    assert db.execute(query).fetchone() == ("x   ", "y   ")


GUARDED = [
    ("date", "'infinity'"),
    ("date", "'-infinity'"),
    ("date", "'0044-03-15 BC'"),
    ("date", "'10000-01-01'"),
    ("timestamp", "'infinity'"),
    ("timestamp", "'294276-01-01'"),
    ("timestamptz", "'-infinity'"),
    ("timestamptz", "'10000-01-01 00:00+00'"),
    ("time", "'24:00'"),
    ("numeric(5,2)", "'NaN'"),
]
HELD = [
    ("date", "'0001-01-01'"),
    ("date", "'9999-12-31'"),
    ("timestamp", "'9999-12-31 23:59:59.999999'"),
    ("timestamptz", "'0001-01-01 00:00+00'"),
    ("time", "'23:59:59.999999'"),
    ("numeric(5,2)", "999.99"),
    ("date", "null"),
    ("numeric", "'NaN'"),  # travels as text
    ("float8", "'NaN'"),
]


def held(db: Connection, type_text: str, value: str) -> bool:
    db.execute(sql.SQL(f"create table t (id int, x {type_text}); insert into t values (1, {value})"))
    try:
        guard = arrow_guard(describe(db, TableRef.parse("t"), label="SRC").columns)
        return guard is None or not db.execute(sql.SQL("select id from t where {}").format(guard)).fetchall()
    finally:
        db.execute("drop table t")


def test_guard_for_arrow(db: Connection) -> None:
    cases = [(*case, False) for case in GUARDED] + [(*case, True) for case in HELD]
    assert [(name, value, held(db, name, value)) for name, value, _ in cases] == cases


def test_no_guard_is_needed(db: Connection) -> None:
    db.execute("create table t (id int, x text)")
    assert arrow_guard(describe(db, TableRef.parse("t"), label="SRC").columns) is None
