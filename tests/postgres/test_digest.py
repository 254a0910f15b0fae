"""The row digest sees what PostgreSQL's own hash does not, and is equal on both majors for equal rows."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql

from millrace.core.digest import Digest
from millrace.core.names import TableRef
from millrace.errors import ContractBroken
from millrace.postgres.catalog import describe
from millrace.postgres.digest import digest_of, digest_query, shape
from millrace.postgres.session import Connection, connect, database_from_url, translated


@pytest.fixture(params=["15", "18"])
def db(request: pytest.FixtureRequest) -> Iterator[Connection]:
    url = request.getfixturevalue(f"db{request.param}")
    with connect(database_from_url(url, "SRC")) as connection:
        yield connection


def digest(connection: Connection, table: str = "t") -> Digest:
    found = describe(connection, TableRef.parse(table), label="SRC")
    row = connection.execute(digest_query(found.identifier, found.columns)).fetchone()
    assert row is not None
    return digest_of(row, shape(found.columns))


def of_value(connection: Connection, type_text: str, value: str) -> Digest:
    connection.execute(
        sql.SQL(f"create table t (id int primary key, x {type_text}); insert into t values (1, {value})")
    )
    try:
        return digest(connection)
    finally:
        connection.execute("drop table t")


DIFFERENT = [
    ("interval", "'1 mon'", "'30 days'"),
    ("interval", "'1 day'", "'24 hours'"),
    ("float8", "'-0'", "'0'"),
    ("float4", "'-0'", "'0'"),
    ("numeric", "1.0", "1.00"),
    ("numeric", "5", "-5"),
    ("numeric", "'NaN'", "'Infinity'"),
    ("numeric", "'-Infinity'", "'Infinity'"),
    ("float8", "'NaN'", "'Infinity'"),
    ("float8", "'-Infinity'", "'Infinity'"),
    ("float8", "null", "0"),
    ("int", "null", "0"),
    ("int8", "5", "-5"),
    ("int8", "1", "4294967297"),
    ("text", "null", "''"),
    ("text", "'a'", "'a '"),
    ("text", "'A'", "'a'"),
    ("varchar", "'가'", "'각'"),
    ("bpchar", "'a'", "'a '"),
    ("boolean", "false", "null"),
    ("boolean", "false", "true"),
    ("date", "'infinity'", "'-infinity'"),
    ("timestamp", "'infinity'", "'294276-12-31 23:59:59.999999'"),
    ("timestamptz", "'2024-11-03 01:30-04'", "'2024-11-03 01:30-05'"),
    ("time", "'24:00'", "'00:00'"),
    ("timetz", "'12:00+00'", "'13:00+01'"),
    ("json", "'{\"a\":1}'", "'{\"a\": 1}'"),
    ("jsonb", "'1.0'", "'1'"),
    ("bytea", "'\\x00'", "'\\x0000'"),
    ("bytea", "''", "null"),
    ("inet", "'10.0.0.1/8'", "'10.0.0.1'"),
    ("int[]", "'{1,2}'", "'{{1,2}}'"),
    ("int[]", "'[0:1]={1,2}'", "'{1,2}'"),
    ("text[]", "'{NULL}'", "'{\"NULL\"}'"),
    ("bit(3)", "'101'", "'111'"),
    ("point", "'(1,2)'", "'(2,1)'"),
    ("money", "1.00", "-1.00"),
    ("tsvector", "'a:1'", "'a:2'"),
    ("numrange", "'[1,2)'", "'[1.0,2)'"),
]
EQUAL = [
    ("timestamptz", "'2024-11-03 01:30-04'", "'2024-11-03 05:30+00'"),
    ("jsonb", '\'{"b":1, "a":2}\'', '\'{"a":2,"b":1}\''),
    ("char(5)", "'a'", "'a  '"),
    ("int4range", "'[1,3)'", "'[1,2]'"),
]


def test_pairs(db: Connection) -> None:
    cases = [(*case, False) for case in DIFFERENT] + [(*case, True) for case in EQUAL]
    found = [(name, a, b, of_value(db, name, a) == of_value(db, name, b)) for name, a, b, _ in cases]
    assert found == cases


def test_swapped_values_are_seen(db: Connection) -> None:
    db.execute("create table t (id int, a text, b text); create table u (like t); create table w (like t)")
    db.execute("insert into t values (1, 'x', 'q'), (2, 'y', 'q'); insert into u values (1, 'y', 'q'), (2, 'x', 'q')")
    db.execute("insert into w values (1, 'q', 'x'), (2, 'q', 'y')")
    assert len({digest(db, name) for name in "tuw"}) == 3


def test_a_swap_is_seen_whatever_the_values(db: Connection) -> None:
    """the record hash is linear: without the outer hash 191 of these 300 sums are equal."""
    db.execute("create table t (n int, id int, a text, b int)")
    db.execute(
        "insert into t select n, i, 'v' || (n * 2 + i), n * 7 + i from generate_series(1, 300) n, generate_series(0, 1) i"
    )
    db.execute("create table u as select t.n, t.id, o.a, t.b from t join t o on o.n = t.n and o.id = 1 - t.id")
    columns = describe(db, TableRef.parse("t"), label="SRC").columns
    group = sql.SQL("n")
    sums = [
        {
            part: total
            for part, _, total in db.execute(digest_query(sql.Identifier(name), columns, group=group)).fetchall()
        }
        for name in ("t", "u")
    ]
    assert [part for part in sums[0] if sums[0][part] == sums[1][part]] == []


def test_order_does_not_matter_and_equal_rows_do_not_cancel(db: Connection) -> None:
    db.execute(
        "create table t (a int); create table u (a int); insert into t values (1), (2); insert into u values (2), (1)"
    )
    assert digest(db, "t") == digest(db, "u")
    db.execute("insert into t values (3), (3); insert into u values (4), (4)")
    assert digest(db, "t") != digest(db, "u")


def test_totals_above_64_bits_are_exact(db: Connection) -> None:
    db.execute("create table t (a int); insert into t select 1 from generate_series(1, 1000)")
    many = digest(db)
    db.execute("truncate t; insert into t values (1)")
    one = digest(db)
    assert (many.rows, many.total) == (1000, 1000 * one.total)
    assert abs(many.total) > 1 << 63


def test_empty_table_and_table_without_columns(db: Connection) -> None:
    db.execute("create table t (a int); create table u ()")
    assert digest(db) == Digest(0, 0, digest(db).shape)
    assert digest(db, "u").rows == 0


def test_groups(db: Connection) -> None:
    db.execute("create table t (a int, b text); insert into t select g, 'x' || g from generate_series(1, 100) g")
    found = describe(db, TableRef.parse("t"), label="SRC")
    group = sql.SQL("case when a % 4 < 3 then a % 4 end")
    rows = db.execute(digest_query(found.identifier, found.columns, sql.SQL("a <= 90"), group)).fetchall()
    assert {row[0]: row[1] for row in rows} == {0: 22, 1: 23, 2: 23}


def test_nondeterministic_collation_does_not_matter(db15: str) -> None:
    with connect(database_from_url(db15, "SRC")) as connection:
        connection.execute(
            "create collation ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false);"
            "create table t (x text collate ci); insert into t values ('Abc')"
        )
        upper = digest(connection)
        connection.execute("update t set x = 'abc'")
        assert digest(connection) != upper


EVERY_TYPE = """
create extension hstore; create extension citext;
create type pair as (a int, b mood); create domain cents as numeric(12,2);
create domain short as varchar(5); create domain list as int[];
create table t (
    id bigint primary key, b boolean, i2 int2, i4 int4, f4 float4, f8 float8, n numeric, n2 numeric(12,2), t text,
    v varchar(20), c char(6), bp bpchar, ch "char", nm name, by bytea, u uuid, d date, ti time, tz timetz, ts timestamp,
    tstz timestamptz, iv interval, j json, jb jsonb, m mood, p pair, ps pair[], ms mood[], dom cents, sh short,
    li list, ai int[], at text[], af float8[], r int4range, tr tstzrange, mr int4multirange, tv tsvector, tq tsquery,
    hs hstore, ct citext, ip inet, ci cidr, ma macaddr, bi bit(4), vb varbit, po point, pg polygon, mo money, o oid,
    lsn pg_lsn, jp jsonpath
);
insert into t select g, g % 2 = 0, g, g * -7, g / 3.0, g / 7.0, g * 1.10, g * 1.5, '한글 ''q" \\ ' || g || E'\\n',
    'v' || g, 'c' || g, 'b ', 'x', 'name', decode('00ff', 'hex'), ('00000000-0000-4000-8000-' || lpad(g::text, 12, '0'))::uuid,
    date '2020-01-01' + g, time '00:00' + g * interval '1 s', '12:00+09', timestamp '2020-01-01' + g * interval '1 us',
    timestamptz '2020-01-01 00:00+00' - g * interval '1 day', g * interval '1 mon 2 days 3 s', '{"a": 1.0}', '{"a": 1.0}',
    'ok', row(g::int, 'sad'::mood)::pair, array[row(g::int, 'ok'::mood)::pair], '{ok,sad}', g, 'sh', '{1,2}', array[g, null], array['a,b', null, '"', ''],
    array[0.1, 'NaN', '-0', 'Infinity'], int4range(g, g + 5), tstzrange('2020-01-01 00:00+09', null),
    int4multirange(int4range(1, 3), int4range(5, 9)), 'a:1 b:2A', 'a & b', 'a=>1, b=>NULL', 'CiText', '10.0.0.1',
    '10.0.0.0/8', '08:00:2b:01:02:03', '1010', '10', '(1.5,-2)', '((0,0),(1,1),(1,0))', 12.34, g, '0/16B3748', '$.a'
    from generate_series(1, 50) g;
insert into t (id) values (1000);
insert into t (id, f4, f8, n, d, ts, tstz, ti, i2, i4, dom) values
    (-9223372036854775808, 'NaN', '-Infinity', 'NaN', 'infinity', '-infinity', 'infinity', '24:00', -32768, -2147483648, 'NaN'),
    (9223372036854775807, 1e-45, 5e-324, 'Infinity', '4713-01-01 BC', '294276-12-31 23:59:59.999999',
     '4713-01-01 BC', '00:00', 32767, 2147483647, -0.01),
    (0, '-0', '-0', 1e1000, '5874897-12-31', '4713-01-01 00:00 BC', '294276-01-01', '23:59:59.999999', 0, 0, 0);
"""


def make_every_type(url: str, oids_used: int) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for number in range(oids_used):  # so that mood and pair have other OIDs on the two servers
            connection.execute(sql.SQL("create type spare{} as enum ('x')").format(sql.SQL(str(number))))
        connection.execute("create type mood as enum ('sad', 'ok')")
        connection.execute(EVERY_TYPE)


def test_equal_rows_on_15_and_18_digest_the_same(db15: str, db18: str) -> None:
    make_every_type(db15, 0)
    make_every_type(db18, 7)
    with connect(database_from_url(db15, "A")) as one, connect(database_from_url(db18, "B")) as two:
        mood = "select 'mood'::regtype::oid::int8"
        assert one.execute(mood).fetchone() != two.execute(mood).fetchone()
        columns = describe(one, TableRef.parse("t"), label="A").columns
        for column in columns:  # column by column, so that a failure names the type
            query = digest_query(sql.Identifier("t"), [column])
            assert (column.name, one.execute(query).fetchone()) == (column.name, two.execute(query).fetchone())
        assert digest(one) == digest(two)
        assert digest(one).rows == 54


def test_enum_label_changes_are_seen(db: Connection) -> None:
    db.execute("create type mood as enum ('sad', 'ok'); create table t (m mood); insert into t values ('ok')")
    before = digest(db)
    db.execute("alter type mood rename value 'ok' to 'fine'")
    assert digest(db) != before


def test_other_encodings_hash_as_utf8(db15: str, db18: str, pg15) -> None:  # type: ignore[no-untyped-def]
    make = "create type m as enum ('größe'); create table t (id int, x text, c char(9), m m, a text[], j jsonb)"
    fill = "insert into t values (1, 'naïve €', 'é', 'größe', '{ü}', '{\"ä\": \"ö\"}')"
    with psycopg.connect(db15, autocommit=True) as admin:
        name = sql.Identifier("latin_" + admin.info.dbname)
        admin.execute(sql.SQL("create database {} encoding 'WIN1252' template template0").format(name))
        try:
            url = psycopg.conninfo.make_conninfo(db15, dbname="latin_" + admin.info.dbname)
            with connect(database_from_url(url, "A")) as one, connect(database_from_url(db18, "B")) as two:
                for connection in (one, two):
                    connection.execute(make)
                    connection.execute(sql.SQL(fill))
                assert digest(one) == digest(two)
                two.execute("update t set x = 'naive €'")
                assert digest(one) != digest(two)
        finally:
            admin.execute(sql.SQL("drop database {} with (force)").format(name))


def test_sql_ascii_holds_bytes(db15: str, db18: str) -> None:
    with psycopg.connect(db15, autocommit=True) as admin:
        database = "ascii_" + admin.info.dbname
        admin.execute(
            sql.SQL("create database {} encoding 'SQL_ASCII' template template0").format(sql.Identifier(database))
        )
        try:
            url = psycopg.conninfo.make_conninfo(db15, dbname=database)
            with connect(database_from_url(url, "A")) as one, connect(database_from_url(db18, "B")) as two:
                for connection in (one, two):
                    connection.execute("create table t (x text, a text[]); insert into t values ('한글', '{é}')")
                assert digest(one) == digest(two)
                one.execute("insert into t values (E'\\xff', null)")
                with pytest.raises(ContractBroken), translated("A", "digest t", connection=one):
                    digest(one)
        finally:
            admin.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(database)))
