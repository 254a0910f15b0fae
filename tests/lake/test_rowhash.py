"""The digest recomputed from Arrow and Parquet against the servers' own record hash."""

from __future__ import annotations

import datetime as dt
import decimal
import math
import random
import struct
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql

from millrace.core.digest import Digest
from millrace.core.schema import Column, Kind, Schema
from millrace.errors import ContractBroken
from millrace.lake import filehash, lookup3, rowhash
from millrace.testing.servers import PostgresServer

# name: PostgreSQL type, expression in the record, hashed, Arrow type in the file
UTC = pa.timestamp("us", "UTC")
TYPES: dict[str, tuple[str, str, str, pa.DataType]] = {
    "bool": ("bool", "{}", "bool", pa.bool_()),
    "int2": ("int2", "{}", "int", pa.int16()),
    "int4": ("int4", "{}", "int", pa.int32()),
    "int8": ("int8", "{}", "int", pa.int64()),
    "float4": ("float4", "float8send({}::float8)", "float8", pa.float32()),
    "float8": ("float8", "float8send({})", "float8", pa.float64()),
    "text": ("text", '{} collate "C"', "text", pa.string()),
    "large": ("text", '{} collate "C"', "text", pa.large_string()),
    "label": ("text", '{} collate "C"', "text", pa.dictionary(pa.int32(), pa.string())),
    "bytea": ("bytea", "{}", "bytes", pa.binary()),
    "uuid": ("uuid", "{}", "uuid", pa.binary(16)),
    "uuid_text": ("uuid", "{}", "uuid", pa.string()),
    "date": ("date", "{}", "date", pa.date32()),
    "time": ("time", "{}", "time", pa.string()),
    "time64": ("time", "{}", "time", pa.time64("us")),
    "timestamp": ("timestamp", "{}", "timestamp", UTC),
    "timestamptz": ("timestamptz", "{}", "timestamp", UTC),
    "money_amount": ("numeric(12,2)", "{}::text", "text", pa.decimal128(12, 2)),
    "rate": ("numeric(10,9)", "{}::text", "text", pa.decimal128(10, 9)),
    "fraction": ("numeric(8,8)", "{}::text", "text", pa.decimal128(8, 8)),
    "whole": ("numeric(5,0)", "{}::text", "text", pa.decimal128(5, 0)),
    "long": ("numeric(18,4)", "{}::text", "text", pa.decimal128(18, 4)),
    "longer": ("numeric(20,0)", "{}::text", "text", pa.decimal128(20, 0)),
    "widest": ("numeric(38,10)", "{}::text", "text", pa.decimal128(38, 10)),
    "tiny": ("numeric(38,38)", "{}::text", "text", pa.decimal128(38, 38)),
    "free": ("numeric", "{}::text", "text", pa.string()),
    "document": ("jsonb", "{}::text", "text", pa.string()),
    "span": ("interval", "{}::text", "text", pa.string()),
}

Value = tuple[str, Any]  # what the server is given, and what Arrow is given


def _schema(kinds: Sequence[str]) -> Schema:
    return Schema(
        tuple(Column(f"c{n}", TYPES[kind][0], Kind.TEXT, hashed=TYPES[kind][2]) for n, kind in enumerate(kinds))
    )


def _arrow(kinds: Sequence[str], rows: Sequence[Sequence[Value | None]]) -> pa.Table:
    columns = []
    for place, kind in enumerate(kinds):
        values = [None if row[place] is None else row[place][1] for row in rows]
        made = TYPES[kind][3]
        columns.append(
            pa.array(values, made.value_type).dictionary_encode()
            if pa.types.is_dictionary(made)
            else pa.array(values, made)
        )
    return pa.table(columns, names=[f"c{n}" for n in range(len(kinds))])


def _server_digest(
    connection: psycopg.Connection[Any], kinds: Sequence[str], rows: Sequence[Sequence[Value | None]]
) -> Digest:
    """Return the server's digest of rows given as text."""
    names = [sql.Identifier(f"c{n}") for n in range(len(kinds))]
    columns = sql.SQL(", ").join(
        sql.SQL("{} {}").format(name, sql.SQL(TYPES[kind][0])) for name, kind in zip(names, kinds, strict=True)
    )
    record = sql.SQL(", ").join(sql.SQL(TYPES[k][1]).format(name) for name, k in zip(names, kinds, strict=True))
    with connection.transaction(force_rollback=True), connection.cursor() as cursor:
        cursor.execute(sql.SQL("create temporary table t ({})").format(columns))
        with cursor.copy("copy t from stdin") as copy:
            for row in rows:
                copy.write_row([None if value is None else value[0] for value in row])
        row = sql.SQL("hash_record_extended(row(int8send(hash_record_extended(row({}), 7))), 7)").format(record)
        query = sql.SQL("select count(*), coalesce(sum({}), 0) from t").format(row)
        found = cursor.execute(query).fetchone()
    assert found is not None
    return Digest(found[0], int(found[1]), _schema(kinds).shape)


def _file_digest(
    folder: Path, kinds: Sequence[str], rows: Sequence[Sequence[Value | None]], group: int = 1000
) -> Digest:
    path = folder / "rows.parquet"
    pq.write_table(_arrow(kinds, rows), path, row_group_size=group, compression="zstd")
    return filehash.digest_files([str(path)], _schema(kinds))


@pytest.fixture(params=["pg15", "pg18"])
def server(request: pytest.FixtureRequest) -> Iterator[psycopg.Connection[Any]]:
    running: PostgresServer = request.getfixturevalue(request.param)
    with psycopg.connect(running.url(), autocommit=True) as connection:
        connection.execute("set timezone = 'UTC'")
        yield connection


# --- random tables -------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)


def _pairs(strategy: st.SearchStrategy[Any], text: Callable[[Any], str] = str) -> st.SearchStrategy[Value]:
    return strategy.map(lambda value: (text(value), value))


def _decimals(precision: int, scale: int) -> st.SearchStrategy[Value]:
    most = 10**precision - 1
    exact = decimal.Context(prec=60)
    numbers = st.integers(-most, most) | st.integers(-105, 105).filter(lambda number: abs(number) <= most)
    return numbers.map(lambda number: exact.scaleb(decimal.Decimal(number), -scale)).map(lambda d: (f"{d:f}", d))


def _float_text(value: float) -> str:
    return {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, "NaN" if math.isnan(value) else repr(value))


def _timestamps() -> st.SearchStrategy[Value]:
    low, high = dt.datetime(1, 1, 2), dt.datetime(9999, 12, 30)
    return st.datetimes(low, high).map(lambda t: (t.isoformat(" "), t.replace(tzinfo=dt.UTC)))


def _time_text(value: dt.time) -> str:
    text = value.isoformat()
    return text.rstrip("0") if "." in text else text


STRATEGIES: dict[str, st.SearchStrategy[Value]] = {
    "bool": _pairs(st.booleans()),
    "int2": _pairs(st.integers(-(2**15), 2**15 - 1)),
    "int4": _pairs(st.integers(-(2**31), 2**31 - 1)),
    "int8": _pairs(st.integers(-(2**63), 2**63 - 1)),
    "float4": _pairs(st.floats(width=32).filter(lambda value: not math.isnan(value)) | st.just(math.nan), _float_text),
    "float8": _pairs(st.floats().filter(lambda value: not math.isnan(value)) | st.just(math.nan), _float_text),
    "text": _pairs(TEXT),
    "large": _pairs(TEXT),
    "label": _pairs(st.sampled_from(["", "page_view", "로그인", "a rather long label of a category"])),
    "bytea": _pairs(st.binary(max_size=30), lambda value: "\\x" + value.hex()),
    "uuid": st.uuids().map(lambda value: (str(value), value.bytes)),
    "uuid_text": st.uuids().map(lambda value: (str(value), str(value))),
    "date": _pairs(st.dates()),
    "time": (_pairs(st.times(), _time_text) | st.just("24:00:00").map(lambda t: (t, t))).map(lambda p: (p[0], p[0])),
    "time64": _pairs(st.times(), _time_text),
    "timestamp": _timestamps(),
    "timestamptz": _timestamps(),
    "money_amount": _decimals(12, 2),
    "rate": _decimals(10, 9),
    "fraction": _decimals(8, 8),
    "whole": _decimals(5, 0),
    "long": _decimals(18, 4),
    "longer": _decimals(20, 0),
    "widest": _decimals(38, 10),
    "tiny": _decimals(38, 38),
    "free": st.sampled_from(["1.0", "1.00", "NaN", "-5", "0.00000001"]).map(lambda t: (t, t)),
    "document": st.sampled_from(['{"a": 1}', "null", '["한글", 1.50]']).map(lambda t: (t, t)),
    "span": st.sampled_from(["1 mon", "30 days", "-01:00:00"]).map(lambda t: (t, t)),
}


def test_every_type_has_a_strategy() -> None:
    assert STRATEGIES.keys() == TYPES.keys()


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[str], list[list[Value | None]]]:
    kinds = draw(st.lists(st.sampled_from(sorted(TYPES)), min_size=1, max_size=8))
    row = st.tuples(*(st.none() | STRATEGIES[kind] for kind in kinds))
    return kinds, [list(found) for found in draw(st.lists(row, max_size=30))]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(table=tables())
def test_random_tables_have_the_servers_digest(
    server: psycopg.Connection[Any], tmp_path: Path, table: tuple[list[str], list[list[Value | None]]]
) -> None:
    kinds, rows = table
    assert _file_digest(tmp_path, kinds, rows, group=7) == _server_digest(server, kinds, rows)


@pytest.mark.parametrize("kind", sorted(TYPES))
def test_each_type_over_many_rows(server: psycopg.Connection[Any], tmp_path: Path, kind: str) -> None:
    @settings(max_examples=1, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.none() | STRATEGIES[kind], min_size=60, max_size=60))
    def check(values: list[Value | None]) -> None:
        rows = [[value] for value in values * 5]
        assert _file_digest(tmp_path, [kind], rows, group=100) == _server_digest(server, [kind], rows)

    check()


# --- values that naive digests confuse -----------------------------------------------------------------------------

SINGLES: dict[str, tuple[str, Value | None, Value | None]] = {
    "a month and thirty days": ("span", ("1 mon", "1 mon"), ("30 days", "30 days")),
    "minus zero": ("float8", ("-0", -0.0), ("0", 0.0)),
    "minus zero in float4": ("float4", ("-0", -0.0), ("0", 0.0)),
    "scale": ("free", ("1.0", "1.0"), ("1.00", "1.00")),
    "sign": ("money_amount", ("5", decimal.Decimal("5.00")), ("-5", decimal.Decimal("-5.00"))),
    "not a number and infinity": ("free", ("NaN", "NaN"), ("Infinity", "Infinity")),
    "the same as floats": ("float8", ("NaN", math.nan), ("Infinity", math.inf)),
    "null and zero": ("float8", None, ("0", 0.0)),
    "null and integer zero": ("int8", None, ("0", 0)),
    "null and nothing": ("text", None, ("", "")),
    "trailing blank": ("text", ("a", "a"), ("a ", "a ")),
    "last byte": ("text", ("abcdefghijkl", "abcdefghijkl"), ("abcdefghijkm", "abcdefghijkm")),
}


@pytest.mark.parametrize("case", sorted(SINGLES))
def test_values_that_look_alike_differ_on_both_sides(
    server: psycopg.Connection[Any], tmp_path: Path, case: str
) -> None:
    kind, one, other = SINGLES[case]
    digests = []
    for value in (one, other):
        found = _file_digest(tmp_path, [kind], [[value]])
        assert found == _server_digest(server, [kind], [[value]])
        digests.append(found)
    assert digests[0] != digests[1]


def test_values_swapped_between_two_rows_differ(server: psycopg.Connection[Any], tmp_path: Path) -> None:
    kinds = ["int8", "text"]
    straight: list[list[Value | None]] = [[("1", 1), ("a", "a")], [("2", 2), ("b", "b")]]
    crossed: list[list[Value | None]] = [[("1", 1), ("b", "b")], [("2", 2), ("a", "a")]]
    assert _file_digest(tmp_path, kinds, straight) == _server_digest(server, kinds, straight)
    assert _file_digest(tmp_path, kinds, crossed) == _server_digest(server, kinds, crossed)
    assert _file_digest(tmp_path, kinds, straight) == _file_digest(tmp_path, kinds, straight[::-1])  # order is free
    assert _file_digest(tmp_path, kinds, straight) != _file_digest(tmp_path, kinds, crossed)


def test_equal_enum_labels_with_other_oids_are_equal(db15: str, db18: str, tmp_path: Path) -> None:
    digests = set()
    for url, before in ((db15, 0), (db18, 3)):
        with psycopg.connect(url, autocommit=True) as connection:
            for number in range(before):
                connection.execute(sql.SQL("create type {} as enum ('x')").format(sql.Identifier(f"other{number}")))
            connection.execute("create type mood as enum ('sad', 'happy')")
            query = (
                "select sum(hash_record_extended(row(int8send(hash_record_extended(row(m::text), 7))), 7))"
                " from unnest('{sad,happy}'::mood[]) m"
            )
            found = connection.execute(query).fetchone()
            assert found is not None
            digests.add(int(found[0]))
    schema = Schema((Column("m", "mood", Kind.TEXT, hashed="text"),))
    digests.add(rowhash.digest_table(pa.table({"m": ["sad", "happy"]}), schema).total)
    assert len(digests) == 1


# --- shapes of Arrow data ------------------------------------------------------------------------------------------

TEXTS = ["", "a", "ab", "abc", "abcd" * 3, "x" * 11, "y" * 13, "z" * 100, None, "한글 텍스트가 조금 길다", "q" * 5000]


def _expected(values: Sequence[str | None]) -> int:
    """The plain-integer reference, itself held against the server by the other tests."""
    total = 0
    for value in values:
        inner = 0 if value is None else lookup3.hash_value(value.encode())
        one = lookup3.hash_value(inner.to_bytes(8, "big"))
        total += one - (1 << 64 if one >> 63 else 0)
    return total


ONE_TEXT = Schema((Column("t", "text", Kind.TEXT, hashed="text"),))


def test_the_plain_reference_is_the_servers(server: psycopg.Connection[Any]) -> None:
    rows: list[list[Value | None]] = [[None if text is None else (text, text)] for text in TEXTS]
    assert _expected(TEXTS) == _server_digest(server, ["text"], rows).total


@pytest.mark.parametrize("repeat", [1, 3, 40])
@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())],
    ids=str,
)
def test_sliced_and_shuffled_text(kind: pa.DataType, repeat: int) -> None:
    values = TEXTS * repeat
    random.Random(7).shuffle(values)
    array = pa.array(values, pa.string())
    array = array.dictionary_encode() if pa.types.is_dictionary(kind) else array.cast(kind)
    batch = pa.record_batch([array], names=["t"])
    for start in (0, 1, 5, len(values) - 1, len(values)):
        for length in (0, 1, 4, len(values)):
            part = batch.slice(start, length)
            assert rowhash.digest_table(part, ONE_TEXT) == Digest(
                part.num_rows, _expected(values[start : start + length]), ONE_TEXT.shape
            )


def test_every_length_at_the_end_of_the_buffer() -> None:
    for length in range(40):
        for first in range(14):
            values = ["f" * first, "e" * length]
            assert rowhash.digest_table(pa.table({"t": values}), ONE_TEXT).total == _expected(values)


def test_slices_of_fixed_width_columns(server: psycopg.Connection[Any]) -> None:
    kinds = ["int8", "uuid", "bool", "money_amount", "widest", "timestamp", "date", "time64", "float4"]
    stamp = dt.datetime(1969, 12, 31, 23, 59, 59, 999999)
    rows: list[list[Value | None]] = []
    for n in range(20):
        one = uuid.UUID(int=n << 64)
        rows.append(
            [
                (str(-n), -n),
                (str(one), one.bytes),
                (str(n % 3 == 0), n % 3 == 0),
                (f"-0.{n:02}", decimal.Decimal(f"-0.{n:02}")),
                (f"-{n}0000000000000000000000.5", decimal.Decimal(f"-{n}0000000000000000000000.5")),
                (stamp.isoformat(), stamp.replace(tzinfo=dt.UTC)),
                (f"1999-12-{n + 1:02}", dt.date(1999, 12, n + 1)),
                (f"23:59:{n:02}", dt.time(23, 59, n)),
                (repr(n / 4), n / 4),
            ]
        )
        if n % 4 == 1:
            rows[-1] = [None] * len(kinds)
    table = _arrow(kinds, rows)
    for start, length in ((0, 20), (3, 9), (13, 7)):
        found = rowhash.digest_table(table.slice(start, length), _schema(kinds))
        assert found == _server_digest(server, kinds, rows[start : start + length])


def test_small_files_are_hashed_together_whatever_columns_they_have(tmp_path: Path) -> None:
    schema = Schema(
        (
            Column("id", "bigint", Kind.INT64, hashed="int"),
            Column("name", "text", Kind.TEXT, hashed="text"),
        )
    )
    tables = [
        pa.table({"id": pa.array([1, 2], pa.int64()), "name": ["a", None]}),
        pa.table({"id": pa.array([3], pa.int32()), "name": ["a"]}),
        pa.table({"name": ["b"], "id": pa.array([4], pa.int64()), "_millrace_seq": [1]}),
        pa.table({"id": pa.array([5], pa.int64())}),
        pa.table({"other": [1, 2, 3]}),
    ]
    paths = [str(tmp_path / f"{number}.parquet") for number in range(len(tables))]
    for path, table in zip(paths, tables, strict=True):
        pq.write_table(table, path)
    wanted = pa.table(
        {"id": pa.array([1, 2, 3, 4, 5, None, None, None], pa.int64()), "name": [*"a", None, *"ab", *[None] * 4]}
    )
    assert filehash.digest_files(paths, schema) == rowhash.digest_table(wanted, schema)
    assert filehash.digest_files(paths, schema) == Digest.sum(
        (filehash.digest_files([path], schema) for path in paths), schema.shape
    )


def test_missing_own_and_null_columns(tmp_path: Path) -> None:
    schema = Schema((*ONE_TEXT.columns, Column("later", "text", Kind.TEXT, hashed="text")))
    table = pa.table({"_millrace_seq": [1, 2], "t": ["a", "b"]})
    path = tmp_path / "old.parquet"
    pq.write_table(table, path)
    full = pa.table({"t": ["a", "b"], "later": pa.nulls(2, pa.string())})
    assert filehash.digest_files([str(path)], schema) == rowhash.digest_table(full, schema)
    assert rowhash.digest_table(full.set_column(1, "later", pa.nulls(2)), schema) == rowhash.digest_table(full, schema)
    alone = Schema((schema.columns[1],))
    assert filehash.digest_files([str(path)], alone) == rowhash.digest_table(full, alone)


def test_empty_files_and_no_files(tmp_path: Path) -> None:
    path = tmp_path / "empty.parquet"
    pq.write_table(pa.table({"t": pa.array([], pa.string())}), path)
    assert filehash.digest_files([str(path)], ONE_TEXT) == Digest(0, 0, ONE_TEXT.shape)
    assert filehash.digest_files([], ONE_TEXT) == Digest(0, 0, ONE_TEXT.shape)


def test_many_parts_and_threads_add_up(tmp_path: Path) -> None:
    values = [f"row {n}" * (n % 9) for n in range(5_000)]
    paths = []
    for number in range(3):
        path = tmp_path / f"{number}.parquet"
        pq.write_table(pa.table({"t": values[number::3]}), path, row_group_size=170)
        paths.append(str(path))
    expected = Digest(len(values), _expected(values), ONE_TEXT.shape)
    assert filehash.digest_files(paths, ONE_TEXT, threads=2) == expected
    assert filehash.digest_files(paths, ONE_TEXT, threads=1) == expected


def test_nan_payloads_are_told_apart() -> None:
    schema = Schema((Column("x", "float8", Kind.FLOAT64, hashed="float8"),))
    quiet, signed = (struct.unpack("<d", struct.pack("<Q", bits))[0] for bits in (0x7FF8 << 48, 0xFFF8 << 48))
    digests = {
        rowhash.digest_table(pa.table({"x": pa.array([x], pa.float64())}), schema).total for x in (quiet, signed)
    }
    assert len(digests) == 2


def test_extension_types_are_read_through() -> None:
    storage = pa.array(['{"a": 1}', None])
    json = pa.ExtensionArray.from_storage(pa.json_(), storage)
    assert rowhash.digest_table(pa.table({"t": json}), ONE_TEXT) == rowhash.digest_table(
        pa.table({"t": storage}), ONE_TEXT
    )


def test_what_has_no_exact_text_is_refused() -> None:
    with pytest.raises(ContractBroken, match="column t cannot be digested"):
        rowhash.digest_table(pa.table({"t": [1.5]}), ONE_TEXT)
    with pytest.raises(ContractBroken, match="no known hash"):
        rowhash.digest_table(pa.table({"t": ["a"]}), Schema((Column("t", "point", Kind.TEXT),)))


def test_zero_and_small_decimals_beside_wide_ones(server: psycopg.Connection[Any], tmp_path: Path) -> None:
    kinds = ["widest", "tiny", "longer"]
    texts = [("0.0000000000", "0", "0"), ("-0.0000000001", "0", "-7")]
    texts += [("9" * 28 + ".5000000000", "-0." + "9" * 38, "9" * 20), ("-12.0000000000", "0." + "0" * 37 + "1", "10")]
    rows: list[list[Value | None]] = [[(text, decimal.Decimal(text)) for text in row] for row in texts]
    assert _file_digest(tmp_path, kinds, rows) == _server_digest(server, kinds, rows)
