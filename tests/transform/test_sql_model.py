from __future__ import annotations

import pytest

from millrace.core.names import AssetId
from millrace.errors import ProjectError
from millrace.transform.sql_model import KeyFilter, bind, parse_model, restrict

ORDERS = AssetId("bronze", "orders")
CUSTOMERS = AssetId("bronze", "customers")
ODD = AssetId("bronze", "Odd Table")

TEXT = """-- orders, cleaned
with o as (select * from bronze.orders where updated_at > $start), silver as (select 1)
select o.*, bronze.customers.name, date_trunc('day', o.created_at) as day
from o join bronze.customers using (customer_id)
where exists (select 1 from bronze."Odd Table" z where z.id = o.id)
union all by name select * from o;
-- the end
"""


def test_inputs_are_tables_of_layers_not_ctes() -> None:
    model = parse_model("models/silver/orders.sql", TEXT)
    assert model.inputs == (ORDERS, CUSTOMERS, ODD)
    assert model.parameters == ("start",)
    assert not model.dated
    assert model.sql == TEXT[: TEXT.index(";")]


@pytest.mark.parametrize(
    ("text", "inputs"),
    [
        ("from a.b", ["a.b"]),
        ("from a.b select x limit 3", ["a.b"]),
        ("select * from A.B, a.b", ["a.b"]),
        ('select * from a."B", "c d".e', ["a.B", "c d.e"]),
        ("with b as (select 1) select * from a.b join b on true", ["a.b"]),
        ("with recursive r as (select 1 x union all select x + 1 from r where x < 5) select * from r", []),
        ("with a as (select 1), b as (select * from a) select * from b", []),
        ("with Q as (select 1) select * from q, (with z as (from q) select * from z)", []),
        ("select (select max(x) from a.b) from range(3), (select * from a.c)", ["a.b", "a.c"]),
        ("select * from a.b asof join a.c using (t) qualify row_number() over () = 1", ["a.b", "a.c"]),
        ("(select * from a.b) union (select * from a.c) order by all", ["a.b", "a.c"]),
    ],
)
def test_inputs(text: str, inputs: list[str]) -> None:
    found = parse_model("m.sql", text).inputs
    assert sorted(str(asset) for asset in found) == inputs


@pytest.mark.parametrize(
    ("text", "dated"), [("select $now", True), ("select $today", True), ("select $start, $end", False)]
)
def test_the_runs_time_makes_a_model_dated(text: str, dated: bool) -> None:
    assert parse_model("m.sql", text).dated is dated


WRONG = [
    ("selec 1", "does not parse", "1:7"),
    ("select 1 from a.b\nwhere", "does not parse at 'where'", "2:1"),
    ("select 1,\n 'a", "not closed", "2:3"),
    ("select * from a.b c join (", "does not parse", "1:26"),
    ("", "empty", "1"),
    ("-- nothing\n;", "empty", "1"),
    ("select 1;\n\n  select 2", "2 statements", "3:3"),
    ("  drop table a.b", "not a SELECT but DROP", "1:3"),
    ("insert into a.b select 1", "not a SELECT but INSERT", "1:1"),
    ("copy (select 1) to 'x'", "not a SELECT but COPY", "1:1"),
    ("attach 'x'", "not a SELECT but ATTACH", "1:1"),
    ("set x = 1", "not a SELECT but SET", "1:1"),
    ("call foo()", "not a SELECT but CALL", "1:1"),
    ("summarize a.b", "not a SELECT but SUMMARIZE", "1:1"),
    ("with x as (insert into a.b select 1) select 1", "holds INSERT", "1:26"),
    ("select x into y from a.b", "holds INTO", "1:15"),
    ("select *\nfrom orders", "reads 'orders', which no layer has", "2:6"),
    ("with a as (select * from a) select * from a", "reads 'a'", "1:26"),
    ("with a as (select * from b), b as (select 1) select * from a", "reads 'b'", "1:26"),
    ("select * from 'file.parquet'", "which no layer has", "1:15"),
    ("select * from a.b.c", "three parts", "1:19"),
    ("select * from read_parquet('x')", "read_parquet", "1:15"),
    ("select * from\n read_csv('x')", "read_csv", "2:2"),
    ("select getenv('HOME')", "getenv", "1:8"),
    ("select 1, now()", r"reads the clock \(now\)", "1:11"),
    ("select\n current_date", r"reads the clock \(current_date\)", "2:2"),
    ("select $noww", "unknown parameter", "1:8"),
    ("select $1", "unknown parameter", "1:8"),
]


@pytest.mark.parametrize(("text", "words", "place"), WRONG)
def test_what_is_wrong_is_said_with_its_place(text: str, words: str, place: str) -> None:
    with pytest.raises(ProjectError, match=words) as caught:
        parse_model("models/silver/m.sql", text)
    assert str(caught.value.where) == f"models/silver/m.sql:{place}"


def test_a_near_parameter_is_named() -> None:
    with pytest.raises(ProjectError) as caught:
        parse_model("m.sql", "select $noww")
    assert caught.value.hint == 'did you mean "now"?'


def test_names_are_replaced_where_they_stand() -> None:
    model = parse_model("m.sql", TEXT)
    found = bind(model, {CUSTOMERS: '"in"."c"', ODD: '"q"'})
    assert found == model.sql.replace("join bronze.customers using", 'join "in"."c" as "customers" using').replace(
        "bronze.customers.name", '"customers".name'
    ).replace('bronze."Odd Table" z', '"q" z')
    assert bind(model, {}) == model.sql


def test_a_restricted_model_reads_only_the_changed_keys() -> None:
    model = parse_model("m.sql", "select id, sum(x) as x from bronze.orders o group by id")
    assert restrict(model, {ORDERS: KeyFilter('"changed"', ("id", 'o"k'))}) == (
        'select id, sum(x) as x from (from "bronze"."orders" as changed semi join "changed" as keys'
        ' on changed."id" is not distinct from keys."id" and changed."o""k" is not distinct from keys."o""k")'
        " o group by id"
    )


@pytest.mark.parametrize(
    ("sql", "columns"),
    [
        (
            'select id, o.total, "a b", count(*) as n, cast(x as date) as "Day" from bronze.orders o',
            ["id", "total", "a b", "n", "Day"],
        ),
        ("with x as (select * from bronze.orders) select id from x", ["id"]),
        ("select *, id from bronze.orders", None),
        ("select o.* from bronze.orders o", None),
        ("select id, count(*) from bronze.orders", None),
        ("select columns('a.*') as x from bronze.orders", None),
        ("select unnest(items) as x from bronze.orders", None),
        ("select id from bronze.orders union all select id from bronze.old", None),
        ("from bronze.orders", None),
    ],
)
def test_columns_are_said_where_the_text_says_them_all(sql, columns):
    found = parse_model("m.sql", sql).columns
    assert found == (None if columns is None else tuple(columns))
