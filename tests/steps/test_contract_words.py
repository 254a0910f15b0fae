"""Each kind of change of a column under each word of a contract, into the lake."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lakes import Lake

from millrace.core.names import AssetId
from millrace.core.schema import Kind
from millrace.errors import MillraceError

pytestmark = pytest.mark.servers

START = "(id int primary key, a int, b varchar(5)); insert into {0} select i, i, 'b' || i from generate_series(1, 50) i"
CHANGES = {
    "new": "add column c text; update {0} set c = 'x' where id in (3, 4)",
    "dropped": "drop column b",
    "renamed": "rename column b to c",
    "retyped": "alter column a type text; update {0} set a = '07' where id = 3; update {0} set a = 'x' where id = 4",
    "widened": "alter column a type bigint; update {0} set a = 9000000000 where id = 3",
}
A, B, C, LONG, TEXT = ("a", Kind.INT32), ("b", Kind.TEXT), ("c", Kind.TEXT), ("a", Kind.INT64), ("a", Kind.TEXT)
# what becomes of it: columns besides the key, rows in the asset, what the line says; or the error
Found = tuple[list[tuple[str, Kind]], int, str] | str
WORDS: dict[str, dict[str, Found]] = {
    "evolve": {
        "new": ([A, B, C], 50, ""),
        "dropped": ([A], 50, ""),
        "renamed": ([A, C], 50, ""),
        "retyped": ([TEXT, B], 50, ""),
        "widened": ([LONG, B], 50, ""),
    },
    "freeze": {
        "new": "new: c (text)",
        "dropped": "dropped or renamed: b (character varying(5))",
        "renamed": "new: c (character varying(5))",
        "retyped": "retyped: a: integer → text",
        "widened": "retyped: a: integer → bigint",
    },
    "discard": {
        "new": ([A, B], 50, "left out by the contract: c"),
        "dropped": ([A], 50, ""),
        "renamed": ([A], 50, "left out by the contract: c"),
        "retyped": ([A, B], 50, "2 values of a became null: no integer"),
        "widened": ([A, B], 50, "1 value of a became null: no integer"),
    },
    "quarantine": {
        "new": ([A, B], 48, "2 rows → quarantine"),
        "dropped": ([A], 50, ""),
        "renamed": "new column c: b1 (id 1)",
        "retyped": ([A, B], 48, "2 rows → quarantine"),
        "widened": ([A, B], 49, "1 row → quarantine"),
    },
}
REASONS = {
    "new": {"3": "new column c: x", "4": "new column c: x"},
    "retyped": {"3": "a is 07, no integer", "4": "a is x, no integer"},
    "widened": {"3": "a is 9000000000, no integer"},
}


def project(lake: Lake, word: str, more: str = "") -> None:
    rows = "bad_rows: quarantine, " if word == "quarantine" else ""
    tables = "".join(f"  {name}: {{}}\n" for name in CHANGES)
    contract = f"{{{rows}new_columns: {word}, type_changes: {word}}}"
    text = f"from: src\nto: bronze\ndefaults: {{contract: {contract}{more}}}\ntables:\n{tables}"
    (lake.folder / "copies/src.yaml").write_text(text)


def start(lake: Lake) -> None:
    for name in CHANGES:
        lake.execute(*(f"create table {name} {START}".format(name).split("; ")))


def change(lake: Lake) -> None:
    for name, text in CHANGES.items():
        lake.execute(*(f"alter table {name} {text}".format(name).split("; ")))


def outcomes(lake: Lake) -> dict[str, Any]:
    return {step.label.partition(".")[2]: step for step in lake.run().steps}


@pytest.mark.parametrize("word", WORDS)
def test_case_20_columns_under_each_word(lake: Lake, word: str) -> None:
    start(lake)
    project(lake, word)
    assert {step.status for step in outcomes(lake).values()} == {"published"}
    change(lake)
    found = outcomes(lake)
    for name, wanted in WORDS[word].items():
        step, asset = found[name], AssetId("bronze", name)
        if isinstance(wanted, str):
            assert wanted in str(step.error), name
            assert [column.name for column in lake.lake.schema(asset).columns] == ["id", "a", "b"], (
                "the last good version"
            )
            continue
        assert step.error is None, (name, step.error)
        columns, rows, said = wanted
        assert [(one.name, one.kind) for one in lake.lake.schema(asset).columns][1:] == columns, name
        assert (lake.lake.balance(asset).asset, said in step.message) == (rows, True), (name, step.message)
        assert lake.lake.balance(asset).agree is not False
        if word == "quarantine":
            entries = lake.lake.entries(asset)
            assert {one.key["id"]: one.reason for one in entries} == REASONS.get(name, {})
    again = {name: step.status for name, step in outcomes(lake).items() if not isinstance(WORDS[word][name], str)}
    assert set(again.values()) <= {"fresh"}, again
    if word == "quarantine":  # somebody decides
        project(lake, "evolve")
        outcomes(lake)
        for name in CHANGES:
            assert lake.lake.balance(AssetId("bronze", name)).asset == 50
            assert lake.lake.entries(AssetId("bronze", name)) == []


def test_columns_swapped_made_again_generated_and_keys(lake: Lake) -> None:
    lake.execute("create table t (id int primary key, a int, b int, g int generated always as (a + 1) stored)")
    lake.execute("insert into t select i, i, -i from generate_series(1, 50) i", "create view w as select * from t")
    words = "bad_rows: quarantine, new_columns: quarantine, type_changes: quarantine"
    lake.copy("mode: incremental, cursor: id, verify: never", words)
    lake.good()
    lake.execute("alter table t rename a to c", "alter table t rename b to a", "alter table t rename c to b")
    assert lake.good() == "published: "
    assert (lake.rows()[7]["a"], lake.rows()[7]["b"], lake.rows()[7]["g"]) == (-7, 7, 8)
    assert lake.run().steps[0].status == "fresh"
    lake.execute("drop view w", "alter table t drop column a", "alter table t add column a text default '5'")
    lake.execute("update t set a = 'five' where id = 9")
    assert lake.good() == "published: 1 row → quarantine"
    assert (lake.rows()[7]["a"], lake.entries()["9"].reason) == (5, "a is five, no integer")
    assert lake.run().steps[0].status == "fresh"
    assert lake.verified()
    lake.execute("update t set a = '9' where id = 9")
    assert (lake.good(), lake.rows()[9]["a"]) == ("published: ", 9)
    assert lake.entries() == {}
    lake.execute(
        "alter table t drop column g",
        "alter table t add column g bigint generated always as (b::bigint * 1000000000) stored",
    )
    with pytest.raises(MillraceError, match="48 of 50 rows broke the contract") as caught:
        lake.good()
    assert "g is 50000000000, no integer (id 50)" in str(caught.value) or "g is 3000000000, no integer" in str(
        caught.value
    )
    lake.execute("alter table t alter id type bigint")
    with pytest.raises(MillraceError, match="column id was integer and is bigint: a key or cursor cannot be converted"):
        lake.good()


@pytest.fixture
def lake(db18: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lake]:
    monkeypatch.setenv("SRC", db18)
    found = Lake(tmp_path, db18)
    yield found
    found.source.close()
