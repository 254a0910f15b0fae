"""Every type of PostgreSQL with the values that break copies, and helpers that compare tables without our digest."""

from __future__ import annotations

from typing import Any

import psycopg
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


def execute(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True, client_encoding="utf8") as connection:
        for statement in statements:
            connection.execute(statement.encode())


def fetch(url: str, query: Any) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True, client_encoding="utf8") as connection:
        connection.execute(
            "set extra_float_digits = 3; set timezone = 'UTC'; set datestyle = 'ISO'; set intervalstyle = 'postgres';"
            "set lc_monetary = 'C'; set bytea_output = 'hex'; set search_path = ''; set quote_all_identifiers = off"
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


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
