"""Every type into a Delta lake by a project's run, compared with what the server prints; what does not fit is refused."""

from __future__ import annotations

import math
import struct
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable
from every_type import BUILT_IN, USER, USER_TYPES, execute, fetch, fill

from millrace.app import open_house
from millrace.errors import ContractBroken

MANIFEST = """\
version: 1
name: types
layers: {{bronze: lake}}
environments:
  dev:
    connections:
      src: {{type: postgres, url: "{url}"}}
    lake: ./lake
pipelines:
  nightly: {{}}
"""
UNFIT = {
    "c_date": ("'infinity'", "'-infinity'", "'4713-01-01 BC'", "'5874897-12-31'", "'0001-12-31 BC'"),
    "c_timestamp": ("'infinity'", "'-infinity'", "'4713-11-24 00:00 BC'", "'294276-12-31 23:59:59.999999'"),
    "c_timestamptz": (
        "'infinity'",
        "'-infinity'",
        "'4713-11-24 00:00+00 BC'",
        "'294276-12-31 23:59:59.999999+00'",
    ),
    "c_numeric_12_2": ("'NaN'",),
}
READ = {  # what a lake's value is, read from the server's text
    "c_bool": lambda text: text == "t",
    "c_int2": int,
    "c_int4": int,
    "c_int8": int,
    "c_float4": lambda text: struct.unpack("f", struct.pack("f", float(text)))[0],
    "c_float8": float,
    "c_numeric_12_2": Decimal,
    "c_bytea": lambda text: bytes.fromhex(text[2:]),
    "c_date": date.fromisoformat,
    "c_timestamp": lambda text: datetime.fromisoformat(text).replace(tzinfo=UTC),
    "c_timestamptz": datetime.fromisoformat,
}


def project(folder: Path, url: str, tables: str) -> Path:
    (folder / "copies").mkdir(parents=True)
    (folder / "millrace.yaml").write_text(MANIFEST.format(url=url), encoding="utf-8")
    (folder / "copies" / "src.yaml").write_text(f"from: src\nto: bronze\ntables:\n{tables}", encoding="utf-8")
    return folder


def run(folder: Path) -> Any:
    with open_house(folder) as house:
        return house.run(house.plan())


def same(left: Any, right: Any) -> bool:
    """Say whether two values are one, NaN, the sign of zero and the scale of a decimal included."""
    if isinstance(left, float) and isinstance(right, float):
        return math.isnan(left) == math.isnan(right) and (
            math.isnan(left) or (left == right and math.copysign(1, left) == math.copysign(1, right))
        )
    return type(left) is type(right) and str(left) == str(right)


@pytest.mark.parametrize("server", ["db15", "db18"])
def test_case_01_to_08_every_type_into_the_lake(server: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    url = request.getfixturevalue(server)
    execute(url, USER_TYPES)
    types = {
        name: (kind, tuple(value for value in values if value not in UNFIT.get(name, ())))
        for name, (kind, values) in {**BUILT_IN, **USER}.items()
    }
    fill(url, types)
    result = run(project(tmp_path, url, "  every: {key: id}\n"))
    assert [step.error for step in result.steps] == [None]
    lake = {row["id"]: row for row in DeltaTable(tmp_path / "lake/bronze/every").to_pyarrow_table().to_pylist()}
    printed = ", ".join(f"case when {name}::text is not null then {_printed(name)} end" for name in types)
    rows = fetch(url, f"select id, {printed} from public.every".encode())
    assert len(rows) == len(lake) > 8
    for number, *found in rows:
        for name, text in zip(types, found, strict=True):
            wanted = None if text is None else READ.get(name, str)(text)
            assert same(lake[number][name], wanted), (name, number)


def _printed(name: str) -> str:
    """Return the expression of a value's text; the cast to text cuts padding, and shows the mask of an inet."""
    return f"{name}::text" if name == "c_inet" else f"format('%s', {name})"


def test_case_02_values_that_a_lake_cannot_hold_stop_the_copy(db15: str, tmp_path: Path) -> None:
    types = {name: (BUILT_IN[name][0], values) for name, values in UNFIT.items()}
    fill(db15, types)
    ((step,), *_) = (run(project(tmp_path / "all", db15, "  every: {key: id}\n")).steps,)
    assert isinstance(step.error, ContractBroken)
    assert [line.partition(" (id")[0] for line in step.error.detail] == [
        "c_date (date): 5 rows, like infinity",
        "c_timestamp (timestamp without time zone): 4 rows, like infinity",
        "c_timestamptz (timestamp with time zone): 4 rows, like infinity",
        "c_numeric_12_2 (numeric(12,2)): 1 row, like NaN",
    ]
    assert all("(id 0)" in line for line in step.error.detail)
    assert not (tmp_path / "all/lake/bronze/every/_delta_log").exists()
    select = ", ".join(f"{name}::text as {name}" for name in types)
    folder = project(tmp_path / "text", db15, f"  every: {{key: id, select: 'id, {select}'}}\n")
    assert [step.error for step in run(folder).steps] == [None]
    lake = DeltaTable(folder / "lake/bronze/every").to_pyarrow_table().to_pylist()
    names = ", ".join(f"{name}::text" for name in types)
    wanted = fetch(db15, f"select id, {names} from public.every order by id".encode())
    assert sorted((tuple(row[name] for name in ("id", *types)) for row in lake), key=lambda row: row[0]) == wanted
