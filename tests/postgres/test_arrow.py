"""PostgreSQL to Arrow: exact values, the snapshot, the guard, and errors without secrets."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from decimal import Decimal
from urllib.parse import quote

import psycopg
import pytest
from psycopg import sql

from millrace.core.names import TableRef
from millrace.core.segment import Segment
from millrace.errors import (
    AuthenticationFailed,
    ConnectionRefused,
    ContractBroken,
    MillraceError,
    NotFound,
    PermissionMissing,
    TransientFailure,
)
from millrace.postgres.reader import PostgresReader
from millrace.postgres.session import database_from_url

pa = pytest.importorskip("pyarrow")
arrow = pytest.importorskip("millrace.postgres.arrow")

T = TableRef("public", "t")
PASSWORD = 'p@ss:/%"'


@pytest.fixture(params=["15", "18"])
def url(request: pytest.FixtureRequest) -> str:
    found: str = request.getfixturevalue(f"db{request.param}")
    return found


@pytest.fixture
def reader(url: str) -> PostgresReader:
    return PostgresReader(database_from_url(url, "SRC"))


@pytest.fixture
def writer(url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


def test_values_are_exact(reader: PostgresReader, writer: psycopg.Connection) -> None:
    writer.execute(
        """
        create type mood as enum ('sad', 'ok'); create domain cents as numeric(12,2);
        create table t (id int8 primary key, b bool, i2 int2, i4 int4, f4 float4, f8 float8, n numeric(38,6), d cents,
            big numeric, t text, c char(4), v varchar(9), by bytea, u uuid, day date, ti time, ts timestamp, tz timestamptz,
            iv interval, jb jsonb, m mood, ai int[], mo money, o oid, ip inet, "odd ""name" text);
        insert into t values (9223372036854775807, true, -32768, 2147483647, 1.5, 5e-324,
            12345678901234567890123456789012.345678, -0.01, 'NaN', '한글 😀', 'x', 'v', '\\x00ff',
            '12345678-1234-4234-8234-123456789abc', '0001-01-01', '23:59:59.999999', '9999-12-31 23:59:59.999999',
            '2024-11-03 01:30:00.000001-07', '1 mon 2 days', '{"a": 1.0}', 'ok', '{{1,2},{3,null}}', 1.5, 4294967295,
            '10.0.0.1', 'y');
        insert into t (id, c) values (1, null)
        """
    )
    with reader.snapshot() as snap:
        source = reader.source(T, connection=snap.connection)
        arrow.check_arrow(snap.connection, source)
        table = reader.read(source, Segment.whole(), snap).read_all()
    assert table.schema == arrow.arrow_schema(source.columns)
    assert table.schema.field("d").type == pa.decimal128(12, 2)
    rows = {row["id"]: row for row in table.to_pylist()}
    assert set(rows[1].values()) == {1, None}
    utc = dt.UTC
    assert rows[9223372036854775807] == {
        "id": 9223372036854775807, "b": True, "i2": -32768, "i4": 2147483647, "f4": 1.5, "f8": 5e-324,
        "n": Decimal("12345678901234567890123456789012.345678"), "d": Decimal("-0.01"), "big": "NaN",
        "t": "한글 😀", "c": "x   ", "v": "v", "by": b"\x00\xff", "u": "12345678-1234-4234-8234-123456789abc",
        "day": dt.date(1, 1, 1), "ti": dt.time(23, 59, 59, 999999),
        "ts": dt.datetime(9999, 12, 31, 23, 59, 59, 999999), "tz": dt.datetime(2024, 11, 3, 8, 30, 0, 1, tzinfo=utc),
        "iv": "1 mon 2 days", "jb": '{"a": 1.0}', "m": "ok", "ai": "{{1,2},{3,NULL}}", "mo": "$1.50", "o": "4294967295",
        "ip": "10.0.0.1/32", 'odd "name': "y",
    }  # fmt: skip


def test_texts_equal_those_of_the_digest(reader: PostgresReader, writer: psycopg.Connection, url: str) -> None:
    """Session settings of the database do not reach the text of a value."""
    name = sql.Identifier(writer.info.dbname)
    for setting in (
        "timezone = 'Asia/Seoul'",
        "intervalstyle = 'iso_8601'",
        "datestyle = 'SQL, DMY'",
        "extra_float_digits = -3",
    ):
        writer.execute(sql.SQL("alter database {} set ").format(name) + sql.SQL(setting))
    writer.execute(
        "create table t (a tstzrange, b interval, c float8[], d timestamptz[]); insert into t values ('[2024-01-02 00:00+00,)', '1 mon', '{0.1}', '{2024-01-02 00:00+00}')"
    )
    with reader.snapshot() as snap:
        rows = reader.read(T, Segment.whole(), snap).read_all().to_pylist()
    assert rows == [{"a": '["2024-01-02 00:00:00+00",)', "b": "1 mon", "c": "{0.1}", "d": '{"2024-01-02 00:00:00+00"}'}]


def test_segments_and_snapshot(reader: PostgresReader, writer: psycopg.Connection) -> None:
    writer.execute(
        "create table t (id int primary key, x text); insert into t select g, repeat('x', 100) from generate_series(1, 3000) g"
    )
    with reader.snapshot() as snap:
        source = reader.source(T, connection=snap.connection)
        writer.execute("delete from t where id % 2 = 0; insert into t values (9999, 'new')")
        segments = reader.segments(source, snap, None, 700)
        assert len(segments) > 3
        ids = [row for segment in segments for row in reader.read(source, segment, snap).read_all()["id"].to_pylist()]
        assert sorted(ids) == list(range(1, 3001))
    with reader.snapshot() as snap, pytest.raises(TransientFailure):
        list(arrow.read_arrow(reader.database, "select 1", "00000000-00000000-9"))


def test_batch_size(reader: PostgresReader, writer: psycopg.Connection) -> None:
    query = "select repeat('x', 1000) as x from generate_series(1, 2000)"
    small = list(arrow.read_arrow(reader.database, query, batch_bytes=64 << 10))
    assert len(small) > 20
    assert sum(batch.num_rows for batch in small) == 2000
    assert len(list(arrow.read_arrow(reader.database, query))) < 5


def test_a_reader_that_is_left_ends_its_connection(reader: PostgresReader, writer: psycopg.Connection) -> None:
    batches = arrow.read_arrow(
        reader.database, "select repeat('x', 1000) from generate_series(1, 100000)", batch_bytes=1 << 16
    )
    next(batches)
    batches.close()
    count = (
        "select count(*) from pg_stat_activity where application_name like 'millrace%' and datname = current_database()"
    )
    for _ in range(200):
        if writer.execute(count).fetchone() == (0,):
            return
    pytest.fail("the connection is left")


def test_refused_values(reader: PostgresReader, writer: psycopg.Connection) -> None:
    writer.execute("create table t (id int, day date, n numeric(5,2), ti time)")
    writer.execute(
        "insert into t values (1, '2020-01-01', 1, '10:00'), (2, 'infinity', 'NaN', '10:00'), (3, '10000-01-01', 1, '24:00')"
    )
    with reader.snapshot() as snap:
        source = reader.source(T, connection=snap.connection)
        with pytest.raises(ContractBroken, match="Parquet files cannot hold") as caught:
            arrow.check_arrow(snap.connection, source)
        assert [line.split(":")[0] for line in caught.value.detail] == [
            "day (date)",
            "n (numeric(5,2))",
            "ti (time without time zone)",
        ]
        assert "2 rows" in caught.value.detail[0]
        assert "NaN" in caught.value.detail[1]
        arrow.check_arrow(snap.connection, reader.source(T, where="id = 1", connection=snap.connection))


def test_errors(reader: PostgresReader, writer: psycopg.Connection, url: str) -> None:
    with pytest.raises(NotFound) as caught:
        list(arrow.read_arrow(reader.database, "select * from nope"))
    assert "select" not in str(caught.value)
    with pytest.raises(MillraceError, match="could not read rows") as failed:
        list(arrow.read_arrow(reader.database, "select 1 / (g - 5000) from generate_series(1, 10000) g"))
    assert type(failed.value) is MillraceError
    assert "division by zero" in str(failed.value)
    writer.execute("create table t (id int); drop role if exists blind; create role blind login")
    try:
        blind = database_from_url(psycopg.conninfo.make_conninfo(url, user="blind"), "SRC")
        with pytest.raises(PermissionMissing) as denied:
            list(arrow.read_arrow(blind, "select * from t"))
        assert denied.value.hint == "GRANT SELECT ON t TO blind;"
    finally:
        writer.execute("drop role blind")


def test_killed_in_the_middle(reader: PostgresReader, writer: psycopg.Connection) -> None:
    batches = arrow.read_arrow(
        reader.database, "select repeat('x', 1000) from generate_series(1, 200000)", batch_bytes=1 << 16
    )
    next(batches)
    writer.execute("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'millrace read'")
    with pytest.raises(TransientFailure):
        list(batches)


def test_connection_errors_hold_no_secret(url: str) -> None:
    secret = quote(PASSWORD, safe="")
    with pytest.raises(ConnectionRefused) as caught:
        list(arrow.read_arrow(database_from_url(f"postgresql://reader:{secret}@127.0.0.1:1/shop", "SRC"), "select 1"))
    assert PASSWORD not in repr(caught.value) + str(caught.value) + str(vars(caught.value))
    assert "SRC (host 127.0.0.1, port 1, user reader, database shop)" in str(caught.value)
    with pytest.raises(AuthenticationFailed):
        list(
            arrow.read_arrow(
                database_from_url(psycopg.conninfo.make_conninfo(url, user="nobody here"), "SRC"), "select 1"
            )
        )
