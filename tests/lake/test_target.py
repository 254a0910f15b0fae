"""A lake through its three doors: what is staged is hidden, what is proven is exact, what is published is published once."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from millrace.core.digest import Digest
from millrace.core.names import AssetId
from millrace.core.position import Cursor, Versions, Whole
from millrace.core.schema import Column, Kind, Schema
from millrace.core.segment import Segment
from millrace.core.staged import Staged
from millrace.errors import (
    ContractBroken,
    GuardRefused,
    NewerFormat,
    NotFound,
    ProofFailed,
    SeqMoved,
    StepFailed,
    UsageError,
)
from millrace.lake.rowhash import digest_table
from millrace.lake.target import LakeTarget

ONE = [(1, "a", "1.00"), (2, "b", "2.50")]
TWO = [(1, "a", "1.00"), (3, None, None)]


def rows(data):
    return sorted([(key, name, None if price is None else Decimal(price)) for key, name, price in data], key=repr)


@pytest.fixture
def table():
    from decimal import Decimal

    def make(data):
        columns = list(zip(*data, strict=True)) if data else [(), (), ()]
        prices = [None if price is None else Decimal(str(price)) for price in columns[2]]
        return pa.table(
            {
                "id": pa.array(columns[0], pa.int64()),
                "name": pa.array(columns[1], pa.string()),
                "price": pa.array(prices, pa.decimal128(12, 2)),
            }
        )

    return make


def test_a_load_is_hidden_then_visible(lake, table):
    assert lake.target.ledger(lake.asset) is None
    staged = lake.stage(11, table(ONE))
    assert lake.target.ledger(lake.asset) is None
    assert not (lake.target.folder(lake.asset).path / "_delta_log").exists()
    assert staged == Staged.from_json(json.loads(json.dumps(staged.to_json())))
    assert list(lake.target.stages()) == [staged]
    proof = lake.target.prove(staged)
    assert proof.level == "transfer"
    assert proof.digest == digest_table(table(ONE), lake.schema)
    (entry,) = lake.target.publish([staged], [proof], {lake.asset: 0})
    assert (entry.seq, entry.load, entry.rows, entry.level) == (1, 11, 2, "table")
    assert entry == lake.target.ledger(lake.asset)
    assert lake.rows() == rows(ONE)
    assert list(lake.target.stages()) == []
    assert lake.target.schema(lake.asset) == lake.schema


def test_delta_sees_the_same_table(lake, table):
    lake.put(11, table(ONE))
    lake.put(12, table(TWO), "append")
    delta = DeltaTable(lake.target.folder(lake.asset).path)
    assert (delta.protocol().min_reader_version, delta.protocol().min_writer_version) == (1, 2)
    assert delta.transaction_version("millrace") == 2
    assert delta.transaction_version("millrace.load") == 12
    found = delta.to_pyarrow_table()
    assert found.num_rows == 4
    assert sorted(set(found["_millrace_seq"].to_pylist())) == [1, 2]
    assert found.schema.field("_millrace_loaded_at").type == pa.timestamp("us", "UTC")


def test_replace_append_and_position(lake, table):
    lake.put(11, table(ONE))
    entry = lake.put(12, table(TWO))
    assert (entry.seq, entry.rows, entry.counts.inserted, entry.counts.deleted) == (2, 2, 2, 2)
    assert lake.rows() == rows(TWO)
    entry = lake.put(13, table([(9, "x", "0.01")]), "append")
    assert (entry.seq, entry.rows) == (3, 3)
    assert entry.digest == digest_table(table([*TWO, (9, "x", "0.01")]), lake.schema)
    files = lake.target.files(lake.asset)
    stage = lake.target.open_stage(lake.request(14, "position"))
    entry = lake.publish(stage.close(Cursor("id", "9")))
    assert (entry.seq, entry.position, entry.rows) == (4, Cursor("id", "9"), 3)
    assert lake.target.files(lake.asset) == files
    assert lake.rows(1) == rows(ONE)
    assert lake.rows(2) == rows(TWO)
    with pytest.raises(NotFound, match="no load 7"):
        lake.target.files(lake.asset, 7)


def test_an_empty_load_makes_an_empty_table(lake, table):
    entry = lake.put(11, table([]))
    assert (entry.rows, lake.target.files(lake.asset), entry.level) == (0, [], "table")
    lake.put(12, table(ONE))
    assert lake.put(13, table([])).counts.deleted == 2
    assert lake.rows() == []


def test_columns_may_change_with_a_replace(lake, table):
    lake.put(11, table(ONE))
    lake.schema = Schema((Column("id", "text", Kind.TEXT, hashed="text"), Column("n", "int", Kind.INT32, hashed="int")))
    data = pa.table({"id": ["x"], "n": pa.array([7], pa.int32())})
    entry = lake.put(12, data)
    assert entry.seq == 2
    assert lake.rows() == [("x", 7)]
    assert lake.target.schema(lake.asset, 1).names == ("id", "name", "price")
    delta = DeltaTable(lake.target.folder(lake.asset).path)
    assert delta.transaction_version("millrace") == 2
    assert [field.name for field in delta.schema().fields][:2] == ["id", "n"]
    lake.schema = Schema((Column("id", "text", Kind.TEXT, hashed="text"),))
    with pytest.raises(SeqMoved, match="columns"):
        lake.put(13, pa.table({"id": ["y"]}), "append")


def test_a_second_publish_of_a_load_is_adopted(lake, table):
    staged = lake.stage(11, table(ONE))
    proof = lake.target.prove(staged)
    first = lake.target.publish([staged], [proof], {lake.asset: 0})
    assert lake.target.publish([staged], [proof], {lake.asset: 0}) == first
    assert lake.rows() == rows(ONE)


def test_the_loser_of_two_stages_is_refused(lake, table):
    left, right = lake.stage(11, table(ONE)), lake.stage(12, table(TWO))
    lake.publish(left)
    with pytest.raises(SeqMoved, match="another run"):
        lake.publish(right)
    assert lake.rows() == rows(ONE)
    lake.target.discard(right)
    lake.target.discard(right)
    assert lake.everything() == ["11-1.parquet", "_millrace/loads/1-11.json"]


def test_publishing_needs_a_proof(lake, table):
    staged = lake.stage(11, table(ONE))
    with pytest.raises(ProofFailed, match="no proof"):
        lake.target.publish([staged], [], {lake.asset: 0})


def test_proof_sees_what_is_wrong(lake, table):
    def failing(change, match):
        staged = lake.stage(21, table(ONE))
        path = lake.target.folder(lake.asset).path / staged.detail["files"][0]["name"]
        staged = change(staged, path) or staged
        with pytest.raises(ProofFailed, match=match):
            lake.target.prove(staged)
        lake.target.discard(staged)

    def resized(staged, path):
        file = {**staged.detail["files"][0], "size": path.stat().st_size}
        return replace(staged, detail={**staged.detail, "files": [file]})

    def edited(staged, path):
        data = pq.read_table(path)
        pq.write_table(data.set_column(1, "name", pa.array(["a", "c"])), path)
        return resized(staged, path)

    def nulls(staged, path):
        data = pq.read_table(path)
        loose = pa.schema([field.with_nullable(True) for field in data.schema])
        pq.write_table(data.cast(loose).set_column(0, "id", pa.array([1, None], pa.int64())), path)
        return resized(staged, path)

    def retyped(staged, path):
        data = pq.read_table(path)
        pq.write_table(data.set_column(1, "name", pa.array([1, 2])), path)
        return resized(staged, path)

    def shorter(staged, path):
        pq.write_table(pq.read_table(path).slice(0, 1), path)
        return resized(staged, path)

    def truncate(path):
        path.write_bytes(path.read_bytes()[:-9])

    failing(edited, "not what the source holds")
    failing(nulls, "1 nulls in id")
    failing(retyped, "other columns")
    failing(shorter, "has 1 rows, 2 were written")
    failing(lambda staged, path: path.unlink(), "is missing")
    failing(lambda staged, path: truncate(path), "bytes")
    failing(lambda staged, path: replace(staged, expected={"all": Digest(2, 0, staged.schema.shape)}), "digest 0")
    failing(lambda staged, path: replace(staged, expected={"all": Digest(2, 0, "other")}), "different|types")
    assert lake.everything() == []


def test_rows_alone_are_compared_without_hashes(lake, table):
    lake.schema = Schema(tuple(replace(column, hashed="") for column in lake.schema.columns), ("id",))
    stage = lake.target.open_stage(lake.request(11))
    stage.write(Segment.whole(), table(ONE).to_reader())
    staged = stage.close(Versions({"bronze.x": 1}))
    proof = lake.target.prove(staged)
    assert (proof.level, proof.digest) == ("none", None)
    entry = lake.publish(staged)
    assert (entry.level, entry.rows) == ("none", 2)


@pytest.mark.parametrize(
    "name",
    [
        "../../etc",
        "a/b",
        "..",
        ".",
        "a.b",
        "x" * 63,
        "한국어" * 7,
        'na"me',
        "*?[x]",
        "new\nline",
        "~2f",
        "-",
        "CON",
        "x" * 400,
        "%2e%2e",
    ],
)
def test_hostile_names_stay_below_the_root(tmp_path, lake, table, name):
    lake.asset = AssetId("bronze", name)
    lake.put(11, table(ONE))
    folder = lake.target.folder(lake.asset).path
    assert folder.parent == tmp_path / "lake" / "bronze"
    assert folder.resolve() == folder
    assert lake.rows() == rows(ONE)
    files = lake.target.files(lake.asset)
    assert duckdb.execute("select count(*) from read_parquet(?)", [files]).fetchone() == (2,)
    assert lake.target.assets() == [lake.asset]
    lake.put(12, table(TWO))
    assert lake.rows(1) == rows(ONE)
    assert [path.name for path in tmp_path.iterdir()] == ["lake"]


def test_names_do_not_meet(lake):
    names = ["a/b", "a~2fb", "a_b", "a.b", "A.b", "x" * 400, "x" * 401]
    assert len({lake.target.folder(AssetId("bronze", name)).path for name in names}) == len(names)
    with pytest.raises(UsageError):
        lake.target.folder(AssetId("bronze", ""))


def test_hostile_columns_are_kept(lake):
    names = ['qu"ote', "한글", "a, ;{}()\n\t=", "select", "x" * 63]
    lake.schema = Schema(tuple(Column(name, "text", Kind.TEXT, hashed="text") for name in names))
    data = pa.table({name: [f"{name} 1", None] for name in names})
    lake.put(11, data)
    assert lake.rows() == sorted([tuple(f"{name} 1" for name in names), (None,) * 5], key=repr)
    assert [field.name for field in DeltaTable(lake.target.folder(lake.asset).path).schema().fields][:5] == names


def test_columns_that_no_delta_table_can_have(lake):
    for names, match in [(["Id", "id"], "case"), (["_millrace_seq"], "own"), ([], "one column")]:
        lake.schema = Schema(tuple(Column(name, "text", Kind.TEXT) for name in names))
        with pytest.raises(ContractBroken, match=match):
            lake.target.open_stage(lake.request(11))


def test_rows_that_do_not_fit_leave_nothing(lake, table):
    stage = lake.target.open_stage(lake.request(11))
    wrong = [
        (table(ONE).drop_columns(["name"]), "lack the column 'name'"),
        (table(ONE).append_column("more", pa.array([1, 2])), "no column 'more'"),
        (table(ONE).set_column(0, "id", pa.array(["x", "1"])), "bronze.orders.id"),
        (table(ONE).set_column(2, "price", pa.array([Decimal("1.001"), None])), "bronze.orders.price"),
    ]
    for data, match in wrong:
        with pytest.raises(ContractBroken, match=match):
            stage.write(Segment.whole(), data.to_reader())
    assert [name for name in lake.everything() if name.endswith("parquet")] == []


def test_timestamps_without_a_zone_keep_their_type_in_the_schema(lake):
    from datetime import UTC, datetime

    lake.schema = Schema((Column("t", "timestamp without time zone", Kind.TIMESTAMP, hashed="timestamp"),))
    data = pa.table({"t": pa.array([datetime(2024, 11, 3, 1, 30)], pa.timestamp("us"))})
    lake.put(11, data)
    assert lake.rows() == [(datetime(2024, 11, 3, 1, 30, tzinfo=UTC),)]
    assert lake.target.schema(lake.asset)["t"].type == "timestamp without time zone"


def test_statistics_prune(lake, table):
    lake.put(11, table(ONE))
    lake.put(12, table([(70, "z", "123456.78")]), "append")
    actions = pa.table(DeltaTable(lake.target.folder(lake.asset).path).get_add_actions(flatten=True)).to_pylist()
    assert sorted(action["min.id"] for action in actions) == [1, 70]
    assert sorted(str(action["max.price"]) for action in actions) == ["123456.78", "2.50"]
    assert {action["num_records"] for action in actions} == {1, 2}
    assert {action["null_count.id"] for action in actions} == {0}  # texts without a dictionary have none: lake.table


def test_a_foreign_table_is_not_taken(lake, table):
    folder = lake.target.folder(lake.asset).path
    write_deltalake(folder, table(ONE))
    assert lake.target.ledger(lake.asset) is None
    with pytest.raises(GuardRefused, match="did not write") as caught:
        lake.stage(11, table(TWO))
    assert "--replace" in str(caught.value)
    stage = lake.target.open_stage(lake.request(11), replace=True)
    stage.write(Segment.whole(), table(TWO).to_reader(), digest_table(table(TWO), lake.schema))
    lake.publish(stage.close(Whole()))
    assert lake.rows() == rows(TWO)


def test_a_foreign_table_with_partitions_is_replaced_whole(lake, table):
    folder = lake.target.folder(lake.asset).path
    own = table(ONE).append_column("_millrace_seq", pa.array([1, 1]))
    own = own.append_column("_millrace_loaded_at", pa.array([1, 1], pa.timestamp("us", "UTC")))
    write_deltalake(folder, own, partition_by=["name"])
    stage = lake.target.open_stage(lake.request(11), replace=True)
    stage.write(Segment.whole(), table(TWO).to_reader())
    lake.publish(stage.close(Whole()))
    assert lake.rows() == rows(TWO)
    delta = DeltaTable(folder)
    assert delta.metadata().partition_columns == []
    assert sorted(delta.to_pyarrow_table()["id"].to_pylist()) == [1, 3]


def test_foreign_rows_are_seen_and_foreign_upkeep_is_not_minded(lake, table):
    lake.put(11, table(ONE))
    lake.put(12, table(TWO), "append")
    folder = lake.target.folder(lake.asset).path
    staged = lake.stage(13, table([(5, "five", "5")]), "append")
    DeltaTable(folder).optimize.compact()
    DeltaTable(folder).vacuum(dry_run=False)
    lake.publish(staged)
    assert lake.rows() == rows([*ONE, *TWO, (5, "five", "5")])

    write_deltalake(folder, pq.read_table(lake.target.files(lake.asset)[-1], partitioning=None), mode="append")
    assert len(lake.rows()) == 5, "reading is pinned to our last load"
    with pytest.raises(GuardRefused, match="other than Millrace") as caught:
        lake.put(14, table(ONE))
    assert "WRITE by delta-rs" in str(caught.value)
    version = int(str(caught.value).partition("restore version ")[2].split()[0])
    DeltaTable(folder).restore(version)
    lake.put(15, table(ONE))
    assert lake.rows() == rows(ONE)


def test_a_newer_ledger_is_refused(lake, table):
    lake.put(11, table(ONE))
    manifest = lake.target.folder(lake.asset).manifest(1, 11)
    data = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**data, "format": 99}))
    with pytest.raises(NewerFormat, match="format 99"):
        lake.target.ledger(lake.asset)
    data["entry"]["format"] = 98
    manifest.write_text(json.dumps(data))
    with pytest.raises(NewerFormat, match="format 98"):
        lake.target.ledger(lake.asset)


def test_a_lost_manifest_is_a_clear_error(lake, table):
    lake.put(11, table(ONE))
    manifest = lake.target.folder(lake.asset).manifest(1, 11)
    manifest.unlink()
    with pytest.raises(StepFailed, match=r"manifest of bronze\.orders is missing"):
        lake.target.ledger(lake.asset)
    lake.target.gc(lambda run: False)
    assert lake.everything() == ["11-1.parquet"]
    manifest.write_text("{torn")
    with pytest.raises(StepFailed, match="cannot be read"):
        lake.target.ledger(lake.asset)


def test_a_folder_of_another_asset_is_seen(lake, table):
    lake.put(11, table(ONE))
    folder = lake.target.folder(lake.asset).path
    folder.rename(folder.with_name("ORDERS"))
    with pytest.raises(StepFailed, match=r"holds bronze\.orders"):
        lake.target.ledger(AssetId("bronze", "ORDERS"))


def test_a_lake_is_local():
    with pytest.raises(UsageError, match="local disk"):
        LakeTarget("s3://bucket/lake")


def test_importing_the_target_loads_no_driver():
    code = "import sys, millrace.lake.target, millrace.lake.query; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"pyarrow", "deltalake", "numpy", "duckdb"} & {name.partition(".")[0] for name in done.stdout.split()}


def test_a_missing_extra_is_named():
    code = (
        "import sys, importlib.util as u\nfind = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'deltalake' else find(name, *a)\n"
        "from millrace.lake.target import LakeTarget\nLakeTarget('x')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "a Delta lake needs the extra 'lake'" in done.stderr


def test_extra_files_of_a_faster_writer(lake, table):
    stage = lake.target.open_stage(lake.request(11))
    segment = Segment.whole()
    path = stage.new_file(segment)
    data = pa.Table.from_batches([stage.conform(batch) for batch in table(ONE).to_batches()])
    pq.write_table(data, path)
    with pytest.raises(ProofFailed, match="3 rows of all were written"):
        stage.add_file(path, segment, None, 3)
    path = stage.new_file(segment)
    pq.write_table(data, path)
    assert stage.add_file(path, segment, digest_table(table(ONE), lake.schema), 2) == 2
    entry = lake.publish(stage.close(Whole()))
    assert (entry.level, lake.rows()) == ("table", rows(ONE))


def test_own_columns_say_which_load(lake, table):
    lake.put(11, table(ONE))
    lake.put(12, table([(9, "x", "1")]), "append")
    found = pq.read_table([Path(file) for file in lake.target.files(lake.asset)], partitioning=None).to_pylist()
    assert {(row["id"], row["_millrace_seq"]) for row in found} == {(1, 1), (2, 1), (9, 2)}
    assert len({row["_millrace_loaded_at"] for row in found}) == 2
