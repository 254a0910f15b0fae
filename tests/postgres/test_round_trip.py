"""Every type from server to server by the public way, compared as the servers print it: never by our own digest.

Named after the cases that break copies: 01 NaN and infinity, 02 far times, 03 intervals, 04 numerics, 05 daylight
saving, 06 encodings, 07 naughty texts, 08 user types, 09 generated columns and sequences, 10 names, 11 size, 25 objects.
"""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from psycopg import sql

from millrace.app import CopyOptions, copy_table

# column: type, values as SQL; a null stands in every column's last row
BUILT_IN: dict[str, tuple[str, tuple[str, ...]]] = {
    "c_bool": ("boolean", ("true", "false")),
    "c_int2": ("smallint", ("-32768", "32767")),
    "c_int4": ("integer", ("-2147483648", "2147483647")),
    "c_int8": ("bigint", ("-9223372036854775808", "9223372036854775807")),
    "c_float4": ("real", ("'NaN'", "'Infinity'", "'-Infinity'", "'-0'", "1e-45", "3.4028235e38", "0.1")),
    "c_float8": ("double precision", ("'NaN'", "'Infinity'", "'-Infinity'", "'-0'", "5e-324", "0.1::float8 + 0.2")),
    "c_numeric": (
        "numeric",
        ("'NaN'", "'Infinity'", "'-Infinity'", "1e1000", "-1.50", "1.5", "1e-1000", "5", "-5", "0.000"),
    ),
    "c_numeric_wide": ("numeric(210,10)", ("1e199 + 0.0000000001", "'NaN'", "-0.5")),
    "c_numeric_12_2": ("numeric(12,2)", ("9999999999.99", "'NaN'", "-1.10")),
    "c_numeric_round": ("numeric(3,-2)", ("12300", "-500")),
    "c_money": ("money", ("'92233720368547758.07'", "'-1.05'")),
    "c_text": (
        "text",
        (
            "''",
            r"E'\n\r\t\b\v\\'",
            r"'\.'",
            r"'\N'",
            "'NULL'",
            "'\"a\",''b'''",
            "'행복 😀 e\u0301'",
            "repeat('x', 70000)",
            "E'\\u200b\\ufeff'",
        ),
    ),
    "c_varchar": ("varchar(9)", ("'a  '", "''")),
    "c_char": ("char(5)", ("'a'", "''", "' b '")),
    "c_char1": ('"char"', ("'x'", "''")),
    "c_name": ("name", ("'a name'", "repeat('n', 63)")),
    "c_bytea": ("bytea", (r"'\x'", r"'\x00ff5c27'", "decode(repeat('00', 3000), 'hex')")),
    "c_uuid": ("uuid", ("'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'",)),
    "c_date": (
        "date",
        ("'infinity'", "'-infinity'", "'4713-01-01 BC'", "'5874897-12-31'", "'2024-02-29'", "'0001-12-31 BC'"),
    ),
    "c_time": ("time", ("'24:00:00'", "'00:00'", "'23:59:59.999999'")),
    "c_time_3": ("time(3)", ("'12:00:00.123'",)),
    "c_timetz": ("timetz", ("'24:00:00+15:59:59'", "'01:30-07:30'", "'00:00Z'")),
    "c_timestamp": (
        "timestamp",
        (
            "'infinity'",
            "'-infinity'",
            "'4713-11-24 00:00 BC'",
            "'294276-12-31 23:59:59.999999'",
            "'2024-06-30 23:59:60'",
        ),
    ),
    "c_timestamptz": (
        "timestamptz",
        (
            "'infinity'",
            "'-infinity'",
            "'4713-11-24 00:00+00 BC'",
            "'294276-12-31 23:59:59.999999+00'",
            "'2024-11-03 01:30 America/New_York'::timestamptz",
            "'2024-11-03 05:30+00'",
            "'2024-11-03 06:30+00'",
        ),
    ),
    "c_interval": (
        "interval",
        (
            "'1 mon'",
            "'30 days'",
            "'720:00:00'",
            "'-1 day +23:00'",
            "'1 year -1 mon 3 days -0.000001 sec'",
            "'178000000 years'",
        ),
    ),
    "c_interval_part": ("interval day to second(2)", ("'1 day 2.345 s'",)),
    "c_json": ("json", ("""'{"b": 1, "a": [1.00, null], "b": 2}'""", "'\"\\u0000\"'", "' 1e400 '")),
    "c_jsonb": ("jsonb", ("""'{"b": 1, "a": [1.00, null, "행복"], "b": 2}'""", "'1e400'", "'null'")),
    "c_jsonpath": ("jsonpath", ("'$.a[*] ? (@ > 1)'",)),
    "c_inet": ("inet", ("'10.0.0.1'", "'10.0.0.1/8'", "'::1/128'", "'fe80::/10'")),
    "c_cidr": ("cidr", ("'10.0.0.0/8'", "'::/0'")),
    "c_macaddr": ("macaddr", ("'08:00:2b:01:02:03'",)),
    "c_macaddr8": ("macaddr8", ("'08:00:2b:01:02:03:04:05'",)),
    "c_bit": ("bit(9)", ("B'101010101'",)),
    "c_varbit": ("varbit", ("B''", "B'1'", "repeat('10', 999)::varbit")),
    "c_point": ("point", ("'(1e300,-0)'", "'(NaN,Infinity)'")),
    "c_line": ("line", ("'{1,-1,0}'",)),
    "c_lseg": ("lseg", ("'[(0,0),(1,0.1)]'",)),
    "c_box": ("box", ("'(1,1),(0,0)'",)),
    "c_path": ("path", ("'[(0,0),(1,1)]'", "'((0,0),(1,1))'")),
    "c_polygon": ("polygon", ("'((0,0),(1,1),(2,0))'",)),
    "c_circle": ("circle", ("'<(0,0),1.5>'",)),
    "c_tsvector": ("tsvector", ("'''a b'':1A,3 c:2B'", "''")),
    "c_tsquery": ("tsquery", ("'a & !b:*AB <2> c'", "''")),
    "c_int4range": ("int4range", ("'[1,5)'", "'empty'", "'(,)'")),
    "c_numrange": ("numrange", ("'(1.50,2.5]'", "'[-Infinity,NaN]'")),
    "c_tstzrange": ("tstzrange", ("'[2024-01-01 00:00+00,infinity)'",)),
    "c_daterange": ("daterange", ("'[0044-03-15 BC,)'",)),
    "c_multirange": ("nummultirange", ("'{}'", "'{[1.10,2),(3,)}'")),
    "c_tsmultirange": ("tsmultirange", ("'{[2024-01-01,2024-02-01),[2024-03-01,)}'",)),
    "c_oid": ("oid", ("4294967295", "0")),
    "c_xid": ("xid", ("'4294967295'",)),
    "c_xid8": ("xid8", ("'18446744073709551615'",)),
    "c_cid": ("cid", ("'7'",)),
    "c_tid": ("tid", ("'(4294967295,65535)'",)),
    "c_pg_lsn": ("pg_lsn", ("'FFFFFFFF/FFFFFFFF'",)),
    "c_snapshot": ("pg_snapshot", ("'10:20:10,14,15'",)),
    "c_txid_snapshot": ("txid_snapshot", ("'10:20:10,14,15'",)),
    "c_regclass": ("regclass", ("'pg_class'",)),
    "c_regtype": ("regtype", ("'integer'", "'text[]'")),
    "c_refcursor": ("refcursor", ("'cur'",)),
    "c_int_array": ("integer[]", ("'{}'", "'[-1:1][5:6]={{1,2},{3,NULL},{5,6}}'", "'{NULL}'")),
    "c_text_array": ("text[]", ("""'{"", "NULL", NULL, "a\\\\\\"b,{}", " "}'""",)),
    "c_char_array": ("char(3)[]", ("'{a,\"\"}'",)),
    "c_numeric_array": ("numeric(10,3)[]", ("'{1.5,NaN}'",)),
    "c_time_array": ("timestamptz[]", ("'{infinity,2024-01-01 00:00+00}'",)),
    "c_range_array": ("int4range[]", ("'{\"[1,2)\",empty,NULL}'",)),
    "c_point_array": ("point[]", ('\'{"(1,2)","(3,4)"}\'',)),
    "c_money_array": ("money[]", ("'{1.10,-2}'",)),
    "c_interval_array": ("interval[]", ("'{1 mon,30 days}'",)),
    "c_json_array": ("json[]", ("""'{"{\\"a\\": 1}",null}'""",)),
    "c_bytea_array": ("bytea[]", (r"""'{"\\x00","\\x5c"}'""",)),
}

USER_TYPES = """
create schema app;
create schema ext;
create extension hstore schema ext; create extension citext; create extension ltree schema ext;
create extension cube; create extension isn; create extension seg;
create type app.mood as enum ('sad', 'it''s ok', '행복', '');
create domain app.score as numeric(5,2) default 1 not null check (value >= 0) constraint top check (value <= 100);
create domain app.code as char(4) collate "C" check (value ~ '^[a-z]');
create domain app.moods as app.mood[];
create type app.inner_pair as (a int, "B b" app.mood);
create type app.pair as (p app.inner_pair, t text[], n numeric, c char(3), at timestamptz);
create domain app.checked_pair as app.pair check ((value).n > 0);
create type app."Odd ""type"" " as enum ('a', 'b');
create function app.gap(a float8, b float8) returns float8 language sql immutable as 'select a - b';
create type app.span as range (subtype = float8, subtype_diff = app.gap, multirange_type_name = app.spans);
create type app.word_range as range (subtype = text, collation = "C");
"""

USER: dict[str, tuple[str, tuple[str, ...]]] = {
    "u_enum": ("app.mood", ("'sad'", "'행복'", "''")),
    "u_odd": ('app."Odd ""type"" "', ("'a'",)),
    "u_enum_array": ("app.mood[]", ("'[0:1]={sad,\"it''s ok\"}'", "'{}'")),
    "u_code": ("app.code", ("'ab'",)),
    "u_code_array": ("app.code[]", ("'{ab,c}'",)),
    "u_moods": ("app.moods", ("'{sad,NULL}'",)),
    "u_inner": ("app.inner_pair", ("row(1,'sad')", "row(null,null)")),
    "u_pair": ("app.pair", ("row(row(1,'행복'),'{a,NULL,\"\"}',1.50,'x','infinity')",)),
    "u_pair_array": ("app.pair[]", ("array[row(row(1,'sad'),'{}',1e1000,'','2024-01-01')::app.pair, null]",)),
    "u_checked_pair": ("app.checked_pair", ("row(null,null,2,null,null)",)),
    "u_span": ("app.span", ("'[0.1,Infinity]'", "'empty'")),
    "u_spans": ("app.spans", ("'{[1,2),[3,4]}'",)),
    "u_word_range": ("app.word_range", ("'[a,b)'",)),
    "u_enum_as_key": ("app.mood", ("'sad'",)),
    "e_hstore": ("ext.hstore", ('\'a=>1,"b c"=>NULL,""=>""\'',)),
    "e_citext": ("citext", ("'MixedCase'",)),
    "e_citext_array": ("citext[]", ("'{A,a}'",)),
    "e_ltree": ("ext.ltree", ("'Top.Science.A_1'",)),
    "e_lquery": ("ext.lquery", ("'*.a@*{1,2}'",)),
    "e_ltxtquery": ("ext.ltxtquery", ("'a & !b'",)),
    "e_cube": ("cube", ("'(1,2),(3,4.5)'",)),
    "e_isbn": ("isbn13", ("'978-0-393-04002-9'",)),
    "e_seg": ("seg", ("'1.50 .. 2'",)),
}
SCORE = ("s_score", "app.score")  # a domain that is NOT NULL: no null row


def execute(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def fetch(url: str, query: Any) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "set extra_float_digits = 3; set timezone = 'UTC'; set datestyle = 'ISO'; set intervalstyle = 'postgres';"
            "set lc_monetary = 'C'; set bytea_output = 'hex'; set search_path = ''"
        )
        return connection.execute(query).fetchall()


def fill(url: str, types: dict[str, tuple[str, tuple[str, ...]]], name: str = "public.every") -> None:
    columns = ", ".join(f"{column} {kind}" for column, (kind, _) in types.items())
    rows = max(len(values) for _, values in types.values()) + 1
    lines = []
    for number in range(rows):
        values = [f"({values[number]})::{kind}" if number < len(values) else "null" for kind, values in types.values()]
        lines.append(f"({number}, {', '.join(values)})")
    execute(
        url,
        f"create table {name} (id int primary key, {columns})",
        f"insert into {name} values {', '.join(lines)}",
    )


def copy(source: str, target: str, table: str, into: str | None = None, **options: Any) -> Any:
    return copy_table(source, table, target, into or table, CopyOptions(**options), trusted_urls=True)


def text(url: str, table: str) -> list[tuple[Any, ...]]:
    return fetch(url, f'select t::text from {table} t order by t::text collate pg_catalog."C"'.encode())


def types_of(url: str, table: str) -> list[tuple[Any, ...]]:
    query = "select attname, format_type(atttypid, atttypmod), attnotnull, attidentity, attgenerated from pg_attribute"
    return fetch(url, f"{query} where attrelid = '{table}'::regclass and attnum > 0 order by attnum".encode())


def sent(url: str, table: str, columns: list[str]) -> list[tuple[Any, ...]]:
    """Return each row's bytes on the wire, without types of the user's: their OIDs differ."""
    row = sql.SQL(", ").join(map(sql.Identifier, columns))
    query = sql.SQL("select pg_catalog.record_send(row({})) from {} order by id").format(row, sql.SQL(table))
    return fetch(url, query)


WAYS = ["15 to 18", "18 to 15", "18 to 18"]


@pytest.fixture
def ends(request: pytest.FixtureRequest) -> tuple[str, str]:
    one, two = {"15 to 18": ("db15", "db18"), "18 to 15": ("db18", "db15"), "18 to 18": ("db18", "other18")}[
        request.param
    ]
    return request.getfixturevalue(one), request.getfixturevalue(two)


TEXT_ONLY = {
    "c_tsquery",
    "c_money",
    "c_money_array",
    "c_regclass",
    "c_regtype",
    "c_refcursor",
}  # a table with one goes as text


@pytest.mark.parametrize("ends", WAYS, indirect=True)
def test_case_01_to_04_and_07_every_built_in_type(ends: tuple[str, str]) -> None:
    source, target = ends
    fill(source, BUILT_IN)
    fill(source, {name: found for name, found in BUILT_IN.items() if name not in TEXT_ONLY}, "public.binary")
    columns = [name for name in BUILT_IN if "reg" not in name]
    for table, names in (("public.every", columns), ("public.binary", [n for n in columns if n not in TEXT_ONLY])):
        copy(source, target, table)
        assert text(source, table) == text(target, table)
        assert types_of(source, table) == types_of(target, table)
        assert sent(source, table, names) == sent(target, table, names)


@pytest.mark.parametrize("ends", WAYS, indirect=True)
def test_case_08_user_types_are_made_and_filled(ends: tuple[str, str]) -> None:
    source, target = ends
    execute(source, USER_TYPES)
    fill(source, USER)
    execute(source, "alter table public.every add s_score app.score not null default 7.5")
    copy(source, target, "public.every")
    assert text(source, "public.every") == text(target, "public.every")
    assert types_of(source, "public.every") == types_of(target, "public.every")


OBJECTS = """
create schema app; create schema "order";
create sequence app.shared start 7;
create function app.bare(text) returns text language sql immutable as 'select lower($1)';
create table app.t (
    id bigint generated always as identity (increment 5 start 100 minvalue 100 maxvalue 1000 cache 3 cycle) primary key,
    serial serial, small smallserial, down int generated by default as identity (increment -2),
    shared int default nextval('app.shared'),
    n numeric(8,2) default 1.5 not null check (n > 0), m int default 2,
    at timestamptz default now(), word text collate "C" default 'it''s', list int[] default '{1,2}',
    twice numeric generated always as (n * 2) stored, lowered text generated always as (app.bare(word)) stored,
    span int4range, rest int,
    constraint "Odd name" unique (n, word) deferrable initially deferred,
    constraint no_overlap exclude using gist (span with &&),
    constraint called check (app.bare(word) <> 'x'), check (m > 0) no inherit
);
alter table app.t add constraint old check (m > 50) not valid;
create index on app.t (lower(word) text_pattern_ops desc nulls last) where n > 1;
create unique index "Idx" on app.t (word) include (m) with (fillfactor = 70);
create index by_function on app.t (app.bare(word));
create index by_brin on app.t using brin (n);
comment on table app.t is 'a table''s comment';
comment on column app.t.n is 'Ünïcode; drop table t';
insert into app.t (n, word, m, down, serial, small, span)
    select i, 'w' || i, i, -2 * i, i * 10, i, int4range(i, i + 1) from generate_series(51, 110) i;
"""


def objects(url: str, table: str = "app.t") -> dict[str, list[Any]]:
    """Return what belongs to a table, as the server prints it."""
    oid = f"'{table}'::regclass"
    asked = {
        "columns": f"""select a.attname, a.attnotnull, a.attidentity, a.attgenerated, pg_get_expr(d.adbin, d.adrelid),
            pg_get_serial_sequence('{table}', a.attname), col_description({oid}, a.attnum)
            from pg_attribute a left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
            where a.attrelid = {oid} and a.attnum > 0 order by a.attnum""",
        "constraints": f"""select conname, pg_get_constraintdef(oid), convalidated from pg_constraint
            where conrelid = {oid} and contype <> 'n' order by 1""",
        "indexes": f"select pg_get_indexdef(indexrelid) from pg_index where indrelid = {oid} order by 1",
        "comment": f"select obj_description({oid}, 'pg_class')",
        "sequences": f"""select a.attname, s.seqstart, s.seqincrement, s.seqmin, s.seqmax, s.seqcache, s.seqcycle, s.seqtypid
            from pg_attribute a join pg_sequence s on s.seqrelid = pg_get_serial_sequence('{table}', a.attname)::regclass
            where a.attrelid = {oid} and a.attnum > 0 order by a.attnum""",
    }
    return {name: fetch(url, query.encode()) for name, query in asked.items()}


@pytest.mark.parametrize("ends", ["15 to 18", "18 to 15"], indirect=True)
def test_case_09_what_belongs_to_a_table(ends: tuple[str, str]) -> None:
    source, target = ends
    execute(source, OBJECTS)
    execute(
        target,
        "create schema app",
        "create function app.bare(text) returns text language sql immutable as 'select lower($1)'",
        "create sequence app.shared",
    )
    copy(source, target, "app.t")
    assert text(source, "app.t") == text(target, "app.t")
    wanted, found = objects(source), objects(target)
    for part, facts in wanted.items():
        assert found[part] == facts
    new = "insert into app.t (word, m) values ('new', 151) returning id, serial, small, down, twice, lowered"
    ((identity, serial, small, down, *computed),) = fetch(target, new.encode())
    assert (identity, serial, small, down, *computed) == (400, 1101, 111, -222, 3, "new")
    names = "select relname from pg_class where relnamespace = 'app'::regnamespace and relname ~ '_[is][0-9]'"
    assert fetch(target, names.encode()) == []


def test_case_09_what_the_target_cannot_make_is_left_out_and_said(db15: str, db18: str) -> None:
    execute(db15, OBJECTS)
    outcome = copy(db15, db18, "app.t")
    assert text(db15, "app.t") == text(db18, "app.t")
    assert outcome.message == (
        "left out: expression of lowered (now a plain column), "
        'default of shared (relation "app.shared" does not exist), constraint called (schema "app" does not exist), '
        'index by_function (schema "app" does not exist)'
    )
    wanted, found = objects(db15), objects(db18)
    columns = {one[0]: one for one in wanted["columns"]}
    assert [one[0] for one in found["columns"] if one != columns[one[0]]] == ["shared", "lowered"]
    assert len(found["constraints"]) == len(wanted["constraints"]) - 1
    assert len(found["indexes"]) == len(wanted["indexes"]) - 1
