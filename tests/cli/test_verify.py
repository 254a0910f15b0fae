"""`millrace verify` and `millrace diff` with an asset of the lake, through the real command line, in this process."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from millrace.cli.main import main
from millrace.core.names import AssetId
from millrace.lake.target import LakeTarget

PROJECT = """
version: 1
name: shop
layers: {bronze: lake}
environments:
  dev:
    connections:
      shop_db: {type: postgres, url: "${env:SHOP_DB_URL}"}
      reports: {type: postgres, url: "${env:REPORTS_URL}"}
    lake: ./lake
"""
LAKE = """
from: shop_db
to: bronze
defaults: {segment_rows: 2500}
tables:
  orders: {mode: incremental, cursor: updated_at}
  items: {mode: full}
"""
DATABASE = """
from: shop_db
to: reports.public
tables:
  orders: {as: copied, mode: incremental, cursor: updated_at, segment_rows: 2500}
"""
TABLES = """
create table orders (id int primary key, amount numeric(12,2), note text, ok boolean, updated_at timestamptz not null);
insert into orders select i, i * 1.25, '주문 ' || i, i % 3 = 0, timestamptz '2026-01-01' + i * interval '1 s'
  from generate_series(1, 1000) i;
create table items (code text primary key, price float8); insert into items select 'c' || i, i / 7.0 from generate_series(1, 50) i;
analyze orders
"""
DEADLOCKS = """
create sequence tries;
create function deadlock() returns trigger language plpgsql as $$ begin
  if nextval('tries') = 1 then raise 'deadlock detected' using errcode = '40P01'; end if;
  return null;
end $$;
create trigger deadlock after update on copied for each statement execute function deadlock()
"""
Millrace = Callable[..., tuple[int, str, str]]


@pytest.fixture
def millrace(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Millrace:
    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["millrace", *arguments])
        with pytest.raises(SystemExit) as found:
            main()
        seen = capsys.readouterr()
        return int(found.value.code or 0), seen.out, seen.err

    return call


@pytest.fixture
def source(db15: str, db18: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[psycopg.Connection[Any]]:
    monkeypatch.setenv("SHOP_DB_URL", db15)
    monkeypatch.setenv("REPORTS_URL", db18)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "copies").mkdir()
    (tmp_path / "millrace.yaml").write_text(PROJECT)
    with psycopg.connect(db15, autocommit=True) as connection:
        connection.execute(TABLES)
        yield connection


def spoil(folder: Path, asset: AssetId, row: int, note: str) -> None:
    """Change a value in a file of the lake, as a fault of a disk would."""
    for path in LakeTarget(folder / "lake").files(asset):
        table = pq.read_table(path, partitioning=None)
        changed = pc.if_else(pc.equal(table["id"], row), pa.scalar(note), table["note"])
        at = table.schema.get_field_index("note")
        Path(path).unlink()
        pq.write_table(table.set_column(at, table.schema.field("note"), changed), path)


def test_the_lake_is_verified_repaired_and_recorded(
    source: psycopg.Connection[Any], millrace: Millrace, tmp_path: Path
) -> None:
    (tmp_path / "copies/shop.yaml").write_text(LAKE)
    assert millrace("run")[0] == 0
    source.execute("update orders set note = 'new', updated_at = '2026-06-01' where id = 1")
    assert millrace("run")[0] == 0
    levels = [one["published"]["level"] for one in json.loads(millrace("status", "--json")[1])]
    assert levels == ["table", "applied"] or levels == ["applied", "table"]

    assert "compared since 20" in millrace("status")[1]

    code, out, err = millrace("verify")
    assert (code, err) == (0, "")
    assert [line.split()[:3] for line in out.splitlines()] == [
        ["bronze.orders", "equal", "1,000"], ["bronze.items", "equal", "50"],
    ]  # fmt: skip
    told = {one["asset"]: one for one in json.loads(millrace("status", "--json")[1])}
    assert told["bronze.orders"]["published"]["level"] == "table"
    assert told["bronze.orders"]["compared"]["share"] == 1

    # what changed since the last load is no difference, what is gone or spoilt is
    source.execute("insert into orders values (2000, 1, 'late', true, '2026-07-01')")
    source.execute("delete from orders where id = 500")
    spoil(tmp_path, AssetId("bronze", "orders"), 77, "spoilt")
    source.execute("delete from items where code = 'c9'")
    code, out, err = millrace("verify", "bronze.orders", "--json")
    (found,) = json.loads(out)
    difference = found["difference"]
    assert (code, err, found["good"], difference["behind"]) == (1, "", False, 1)
    assert [difference[name] for name in ("differing", "only_left", "only_right", "equal")] == [1, 0, 1, 998]
    spoilt, gone = difference["rows"]
    assert spoilt == {"key": {"id": "77"}, "only": None, "columns": {"note": {"left": "주문 77", "right": "spoilt"}}}
    assert (gone["key"], gone["only"]) == ({"id": "500"}, "right")
    assert gone["columns"]["amount"] == {"left": None, "right": "625.00"}

    code, out, _ = millrace("verify")
    assert code == 1
    assert " bronze.orders  differs from public.orders in shop_db, 1 row changed since the last load" in out
    assert " id = 77   note  주문 77  →  spoilt" in out or "id = 77" in out
    assert " code = c9   only right" in out
    assert " to make it equal: millrace verify bronze.items --repair" in out

    # what could not be compared is another failure than what differs
    source.execute("alter table items rename to gone")
    assert millrace("verify")[0] == 1
    source.execute("alter table gone rename to items")
    failed, differing, *_ = json.loads(millrace("runs", "--json")[1])
    assert (failed["status"], differing["status"]) == ("failed", "differs")
    assert [step["phase"] for step in json.loads(millrace("runs", failed["run"], "--json")[1])["steps"]] == [
        "differs", "failed",
    ]  # fmt: skip

    code, out, err = millrace("verify", "--repair")
    assert (code, err) == (0, "")
    assert "repaired  scrub: the whole table, 1 row changed, 1 row deleted at the source" in out
    code, out, _ = millrace("verify")
    assert (code, out.count("equal"), "1,000 rows" in out, "49 rows" in out) == (0, 2, True, True)

    code, out, _ = millrace("diff", "shop_db", "orders", "lake", "bronze.orders")
    assert (code, out.startswith(" 1,000 rows · 1,000 equal")) == (0, True)
    source.execute("update orders set amount = 7 where id = 3")
    code, out, _ = millrace("diff", "shop_db", "orders", "lake", "bronze.orders")
    assert (code, "id = 3" in out, "7.00" in out) == (1, True, True)
    columns = json.loads(millrace("diff", "shop_db", "orders", "lake", "bronze.orders", "--stats", "--json")[1])[
        "statistics"
    ]
    assert [columns[name]["left"] == columns[name]["right"] for name in ("id", "amount", "note")] == [True, False, True]
    code, _, err = millrace("diff", "shop_db", "orders", "lake", "bronze.orders", "--repair")
    assert (code, "millrace verify bronze.orders --repair" in err) == (2, True)
    (tmp_path / "copies/shop.yaml").write_text(LAKE.replace("incremental", "append"))
    assert " bronze.orders  left out: mode append\n" in millrace("verify")[1]


def test_a_recorded_proof_makes_nothing_run_again(
    source: psycopg.Connection[Any], millrace: Millrace, tmp_path: Path
) -> None:
    (tmp_path / "copies/shop.yaml").write_text(LAKE)
    (tmp_path / "millrace.yaml").write_text(PROJECT.replace("{bronze: lake}", "{bronze: lake, silver: lake}"))
    (tmp_path / "models/silver").mkdir(parents=True)
    (tmp_path / "models/silver/sums.sql").write_text("select sum(amount) as total from bronze.orders")
    assert millrace("run")[0] == 0
    before = json.loads(millrace("status", "--json")[1])
    assert millrace("verify")[0] == 0
    after = {one["asset"]: one for one in json.loads(millrace("status", "--json")[1])}
    seqs = {one["asset"]: one["published"]["seq"] for one in before}
    assert after["bronze.orders"]["published"]["seq"] == seqs["bronze.orders"] + 1
    assert after["silver.sums"]["behind"] == []
    code, out, _ = millrace("run")
    assert (code, " fresh 3" in out, "published" in out) == (0, True, False)
    source.execute("update orders set amount = 0, updated_at = '2026-08-01' where id = 5")
    assert "published 2" in millrace("run")[1]


def test_a_table_of_a_database_is_verified_and_repaired(
    source: psycopg.Connection[Any], millrace: Millrace, tmp_path: Path, db18: str
) -> None:
    (tmp_path / "copies/reports.yaml").write_text(DATABASE)
    assert millrace("run")[0] == 0
    source.execute("insert into orders values (2000, 1, 'late', true, '2026-07-01')")
    with psycopg.connect(db18, autocommit=True) as target:
        target.execute("update copied set note = 'by hand' where id = 5; delete from copied where id = 6")
    asset = json.loads(millrace("status", "--json")[1])[0]["asset"]
    code, out, err = millrace("verify", asset)
    assert (code, err) == (1, "")
    assert "1 differs · 1 only left · 0 only right" in out
    assert "1 row changed since the last load" in out
    assert "by hand" in out
    with psycopg.connect(db18, autocommit=True) as target:
        target.execute(DEADLOCKS)
    code, out, _ = millrace("verify", asset, "--repair")
    assert (code, "repaired  scrub: the whole table, 1 row missing, 1 row changed" in out) == (0, True)
    with psycopg.connect(db18, autocommit=True) as target:
        assert target.execute("select last_value from tries").fetchone() == (2,)  # the second attempt went through
        target.execute("drop function deadlock cascade")
    assert [millrace("verify", asset)[0], json.loads(millrace("status", "--json")[1])[0]["published"]["level"]] == [
        0,
        "table",
    ]
    with psycopg.connect(db18, autocommit=True) as target:  # the newest row, which every load looks at, is no late one
        target.execute("delete from copied where id = 2000")
    code, out, _ = millrace("verify", asset)
    assert (code, "id = 2000   only left" in out) == (1, True)
    assert millrace("verify", asset, "--repair")[0] == 0
    with psycopg.connect(db18, autocommit=True) as target:
        target.execute("delete from copied where id > 100")
        source.execute("delete from orders where id < 900")
    assert millrace("verify", asset, "--repair")[0] == 1, "max_delete holds"
    assert millrace("verify", asset, "--repair", "--allow-deletes")[0] == 0
    assert millrace("verify", asset)[0] == 0
    code, _, err = millrace("verify", "bronze.none")
    assert (code, "nothing makes bronze.none" in err) == (1, True)
    arguments = ("diff", "shop_db", "orders", "reports", "copied")
    with psycopg.connect(db18, autocommit=True) as target:
        target.execute("update copied set amount = null where id = 999")
    code, out, _ = millrace(*arguments, "--stats", "--json")
    found = json.loads(out)
    assert (code, found["statistics"]["amount"]["right"]["nulls"], found["statistics"]["note"]["left"]) == (
        1, 1, {"rows": 102, "nulls": 0, "min": "late", "max": "주문 999", "sum": None},
    )  # fmt: skip
    shown = [line.split()[:5] for line in millrace(*arguments, "--stats")[1].splitlines()]
    assert ["amount", "left", "102", "0", "1.00"] in shown
    assert ["id", "both", "102", "0", "900"] in shown
    code, _, err = millrace(*arguments, "--repair")
    assert (code, "made by a copy with other options" in err) == (2, True)
    assert millrace("copy", "shop_db", "items", "reports", "items")[0] == 0
    with psycopg.connect(db18, autocommit=True) as target:
        target.execute("delete from items where code = 'c1'; create table foreign_items as select * from items")
    code, out, _ = millrace("diff", "shop_db", "items", "reports", "items", "--repair")
    assert (code, "code = c1   only left" in out, "repaired: " in out) == (0, True, True)
    assert millrace("diff", "shop_db", "items", "reports", "items")[0] == 0
    code, _, err = millrace("diff", "shop_db", "items", "reports", "foreign_items", "--repair")
    assert (code, "was not made by Millrace" in err) == (2, True)
