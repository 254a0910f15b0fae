from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from millrace.core.names import AssetId
from millrace.core.schema import Kind
from millrace.duck import engine, inputs
from millrace.errors import ContractBroken, StepFailed
from millrace.lake.rowhash import digest_table
from millrace.transform.sql_model import KeyFilter, parse_model, restrict
from millrace.transform.sql_run import run_model, write_parquet


@pytest.fixture
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    found = engine.connect()
    found.execute("create schema bronze")
    found.execute(
        "create table bronze.orders as select i as id, i % 3 as customer, i * 1.5::decimal(12,2) as amount from range(10) r(i)"
    )
    yield found
    found.close()


def run(connection: duckdb.DuckDBPyConnection, text: str, parameters: dict[str, Any] | None = None) -> pa.Table:
    return run_model(connection, parse_model("models/silver/m.sql", text), parameters).reader.read_all()


def test_a_model_is_a_stream_with_a_schema(connection: duckdb.DuckDBPyConnection) -> None:
    model = parse_model(
        "m.sql",
        "select customer, sum(amount) as total, count(*) as n from bronze.orders group by all order by 1 -- end",
    )
    result = run_model(connection, model, key=["customer"])
    assert result.schema.key == ("customer",)
    assert [(c.name, c.kind, c.hashed) for c in result.schema.columns] == [
        ("customer", Kind.INT64, "int"),
        ("total", Kind.DECIMAL, "text"),
        ("n", Kind.INT64, "int"),
    ]
    assert (result.schema["total"].precision, result.schema["total"].scale) == (38, 2)
    table = result.reader.read_all()
    assert table.to_pylist()[0] == {"customer": 0, "total": Decimal("27.00"), "n": 4}
    assert digest_table(table, result.schema).rows == 3


EVERY = """select true as bo, 1::tinyint as i1, 2::smallint as i2, 3::integer as i4, 4::bigint as i8, 5::ubigint as u8, 6::hugeint as h,
 1.5::float as f4, 2.5::double as f8, 1.20::decimal(9,2) as d, 'x' as t, 'ab'::blob as b, date '2024-02-29' as dd, time '10:00' as ti,
 timestamp '2024-01-01 10:00' as ts, timestamptz '2024-01-01 10:00+09' as tz, uuid '0123e4567-e89b-12d3-a456-426614174000'[2:] as u,
 interval 1 month as iv, [1, null] as l, {'a': 'x'} as s, '101'::bit as bi, 'a'::enum('a') as e, timestamp_s '2024-01-01' as sec"""


def test_every_type_that_leaves_a_model_can_be_digested(connection: duckdb.DuckDBPyConnection) -> None:
    text = EVERY.replace(
        "uuid '0123e4567-e89b-12d3-a456-426614174000'[2:]", "uuid '123e4567-e89b-12d3-a456-426614174000'"
    )
    result = run_model(connection, parse_model("m.sql", text))
    table = result.reader.read_all()
    row = table.to_pylist()[0]
    assert (row["h"], row["u8"], row["d"], row["iv"], row["ti"]) == (6, 5, Decimal("1.20"), "1 month", "10:00:00")
    assert (row["l"], row["s"], row["bi"], row["e"]) == ("[1,null]", '{"a":"x"}', "101", "a")
    assert row["tz"] == datetime(2024, 1, 1, 1, tzinfo=UTC)
    assert {str(t) for t in table.schema.types} <= {
        "bool",
        "int16",
        "int32",
        "int64",
        "float",
        "double",
        "decimal128(9, 2)",
        "string",
        "binary",
        "date32[day]",
        "timestamp[us]",
        "timestamp[us, tz=UTC]",
    }
    assert digest_table(table, result.schema).rows == 1


def test_a_sum_that_does_not_fit_is_an_error_with_its_place(connection: duckdb.DuckDBPyConnection) -> None:
    with pytest.raises(StepFailed, match="the model failed") as caught:
        run(connection, "select sum(9223372036854775807) as s\nfrom bronze.orders")
    assert "cast the sum" in (caught.value.hint or "")


def test_errors_name_the_line_of_the_file(connection: duckdb.DuckDBPyConnection) -> None:
    with pytest.raises(StepFailed) as caught:
        run(connection, "-- one\nselect id,\n  nope\nfrom bronze.orders")
    assert str(caught.value.where) == "models/silver/m.sql:3:3"
    assert 'Referenced column "nope" not found' in caught.value.detail[0]
    with pytest.raises(StepFailed) as caught:
        run(connection, "select id,\n  cast('x' || id as int) as y\nfrom bronze.orders")
    assert str(caught.value.where) == "models/silver/m.sql:2:3"
    assert "Could not convert string 'x" in caught.value.detail[0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("select null as x", "column x has no type"),
        ("select 1 as a, 2 as A", "two columns A"),
        ("select timestamp_ns '2024-01-01' as t", "nanoseconds"),
    ],
)
def test_columns_that_no_layer_keeps_are_refused(connection: duckdb.DuckDBPyConnection, text: str, words: str) -> None:
    with pytest.raises(ContractBroken, match=words):
        run(connection, text)


def test_a_missing_key_is_refused(connection: duckdb.DuckDBPyConnection) -> None:
    with pytest.raises(ContractBroken, match="no column id"):
        run_model(connection, parse_model("m.sql", "select 1 as a"), key=["id"])


def test_the_clock_is_the_runs(connection: duckdb.DuckDBPyConnection) -> None:
    values = {"now": datetime(2024, 2, 29, 23, 30, tzinfo=UTC), "today": date(2024, 2, 29), "start": None}
    table = run(connection, "select $now as n, $today as d, $now::date = $today as same", values)
    assert table.to_pylist() == [{"n": values["now"], "d": values["today"], "same": True}]
    with pytest.raises(StepFailed, match=r"needs \$end"):
        run(connection, "select $end as e", values)


def test_an_empty_result_keeps_its_schema(connection: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    result = run_model(connection, parse_model("m.sql", "select * from bronze.orders where false"))
    assert write_parquet(result, tmp_path / "a.parquet") == 0
    again = run_model(connection, parse_model("m.sql", "select * from bronze.orders"), batch_rows=4)
    assert write_parquet(again, tmp_path / "b.parquet") == 10
    assert connection.execute("select sum(id) from read_parquet(?)", [str(tmp_path / "b.parquet")]).fetchall() == [
        (45,)
    ]


def test_a_restricted_model_gives_exactly_the_changed_keys(connection: duckdb.DuckDBPyConnection) -> None:
    model = parse_model("m.sql", "select customer, sum(amount) as total from bronze.orders group by customer")
    connection.execute("create table changed as select * from (values (1), (1), (7)) t(customer)")
    sql = restrict(model, {AssetId("bronze", "orders"): KeyFilter('"changed"', ("customer",))})
    whole = {row["customer"]: row["total"] for row in run(connection, model.sql).to_pylist()}
    part = run_model(connection, model, sql=sql).reader.read_all().to_pylist()
    assert part == [{"customer": 1, "total": whole[1]}]  # 7 has no rows: its output was deleted


def test_a_model_reads_a_lakes_files_under_its_own_names(connection: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    path = tmp_path / "it's.parquet"
    connection.execute(
        f"copy (select i as id, timestamptz '2024-01-01 00:00+00' as at, 9 as _millrace_seq from range(3) r(i)) to '{str(path).replace(chr(39), chr(39) * 2)}'"
    )
    schema = run_model(connection, parse_model("m.sql", "select 1::bigint as id, timestamp '2024-01-01' as at")).schema
    asset = AssetId("bronze", 'Odd "T"')
    inputs.attach(connection, asset, [str(path)], schema)
    model = parse_model("m.sql", 'select * from bronze."Odd ""T"""')
    assert model.inputs == (asset,)
    found = run_model(connection, model)
    assert found.schema.names == ("id", "at")
    assert found.schema["at"].kind is Kind.TIMESTAMP
    assert found.reader.read_all().num_rows == 3
    inputs.attach(connection, asset, [], schema)
    assert run_model(connection, model).reader.read_all().num_rows == 0
    assert inputs.keys(connection, "changed keys", [str(path)], ["id"]) == '"memory"."main"."changed keys"'
    assert connection.execute('select count(*) from "changed keys"').fetchall() == [(3,)]
    with pytest.raises(StepFailed, match=r"reading bronze\.Gone"):
        inputs.attach(connection, AssetId("bronze", "Gone"), [str(tmp_path / "gone.parquet")], schema)
