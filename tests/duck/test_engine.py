from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from millrace.duck import engine
from millrace.duck.digest import digest
from millrace.duck.engine import Fragment, fill, identifier, qualified
from millrace.errors import MillraceError, Place, StepFailed, TargetBusy


@pytest.mark.parametrize("name", ['a"b', "select", "한글", "x;drop table t;--", "a b\n", "MixedCase", "é" * 63])
def test_hostile_names_are_names(name: str) -> None:
    connection = engine.connect()
    connection.execute(fill("create schema {s}", s=qualified(name)))
    connection.execute(fill("create table {t} as select 1 as {c}", t=qualified(name, name), c=identifier(name)))
    assert engine.rows(connection, "select schema_name, table_name from duckdb_tables()") == [(name, name)]
    assert connection.execute(fill("select {c} from {t}", c=identifier(name), t=qualified(name, name))).fetchall() == [
        (1,)
    ]


def test_a_name_with_nul_is_refused() -> None:
    with pytest.raises(StepFailed, match="NUL"):
        identifier("a\0b")


def test_statements_take_fragments_only() -> None:
    with pytest.raises(TypeError, match="table must be a Fragment"):
        fill("select * from {table}", table="t; drop table t")  # type: ignore[arg-type]


def test_a_connection_has_limits_and_utc_and_no_network(tmp_path: Path) -> None:
    connection = engine.connect(memory_limit="200MB", threads=1, scratch=tmp_path / "spill")
    settings = dict(engine.rows(connection, "select name, value from duckdb_settings()"))
    assert settings["threads"] == "1"
    assert settings["memory_limit"] == "190.7 MiB"
    assert settings["temp_directory"] == str(tmp_path / "spill")
    assert settings["autoinstall_known_extensions"] == settings["autoload_known_extensions"] == "false"
    for one in (connection, connection.cursor()):
        assert engine.rows(one, "select cast(timestamptz '2024-01-01 00:00:00+09' as varchar)") == [
            ("2023-12-31 15:00:00+00",)
        ]


def test_errors_say_line_and_column_of_the_file() -> None:
    connection = engine.connect()
    with pytest.raises(StepFailed) as caught, engine.translated(Place("models/silver/a.sql", 1), "silver.a"):
        connection.execute("select 1,\n  nope from (select 1 as x)").fetchall()
    assert str(caught.value.where) == "models/silver/a.sql:2:3"
    assert caught.value.detail[0] == 'Binder Error: Referenced column "nope" not found in FROM clause!'
    assert "LINE" not in str(caught.value)


def test_errors_of_a_part_of_a_file_count_from_its_first_line() -> None:
    connection = engine.connect()
    with pytest.raises(StepFailed) as caught, engine.translated(Place("a.sql", 5), "a"):
        connection.execute("selec 1")
    assert str(caught.value.where) == "a.sql:5:1"


def test_too_little_memory_is_said_in_our_words() -> None:
    connection = engine.connect(memory_limit="20MB", threads=1)
    with (
        pytest.raises(StepFailed, match=r"silver\.a needs more memory than its limit") as caught,
        engine.translated(None, "silver.a"),
    ):
        connection.execute("select list(i) from range(20_000_000) t(i)").fetchall()
    assert "memory_limit" in (caught.value.hint or "")


def test_a_second_writer_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.duckdb"
    connection = engine.connect(path)
    code = (
        "import sys; from millrace.duck.engine import connect\n"
        "from millrace.errors import MillraceError\n"
        "try: connect(sys.argv[1])\n"
        "except MillraceError as error: print(error.code, error)"
    )
    found = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    connection.close()
    assert found.stdout.startswith(TargetBusy.__name__)
    assert "(pid " in found.stdout


def test_a_file_that_is_not_a_database_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "a.duckdb"
    path.write_bytes(b"x" * 5000)
    with pytest.raises(MillraceError, match="opening the database failed"):
        engine.connect(path)


def _digest(query: str) -> object:
    return digest(engine.connect(), Fragment(f"({query})"))


DIFFERENT = {
    "negative zero": ("select -0.0::double as a", "select 0.0::double as a"),
    "interval": ("select interval 1 month as a", "select interval 30 days as a"),
    "nan": ("select 'nan'::double as a", "select 'inf'::double as a"),
    "null": ("select null::bigint as a", "select 0::bigint as a"),
    "sign": ("select 5::decimal(5,2) as a", "select -5::decimal(5,2) as a"),
    "swapped rows": ("select * from (values (1,'a'),(2,'b')) t(a,b)", "select * from (values (1,'b'),(2,'a')) t(a,b)"),
    "swapped columns": ("select 1 as a, 2 as b", "select 2 as a, 1 as b"),
    "twice": ("select unnest([1,1,2]) as a", "select unnest([1,2,2]) as a"),
    "nested zero": ("select [-0.0::double] as a", "select [0.0::double] as a"),
    "nested null": ("select {'x': null::varchar} as a", "select {'x': 'null'} as a"),
    "names": ("select 1 as a", "select 1 as b"),
    "types": ("select 1::integer as a", "select 1::bigint as a"),
    "empty text": ("select '' as a", "select null::varchar as a"),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_the_digest_sees(case: str) -> None:
    left, right = DIFFERENT[case]
    assert _digest(left) != _digest(right)


def test_the_digest_is_free_of_order_and_exact() -> None:
    rows = "select i, i / 3.0::double as f, 'x' || i as t from range(100000) r(i)"
    assert _digest(rows) == _digest(f"{rows} order by hash(i)")
    assert _digest(f"{rows} limit 0").rows == 0  # type: ignore[attr-defined]
