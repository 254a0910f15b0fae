"""What time brings: checkpoints, cleaned logs, vacuums, others' commits between look and commit."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from millrace.core import events
from millrace.core.position import Whole
from millrace.core.schema import Column, Kind, Schema
from millrace.core.segment import Segment
from millrace.errors import CommitUnknown, NotFound, SeqMoved, StepFailed
from millrace.lake import query

EVERY = Schema(
    (
        Column("id", "bigint", Kind.INT64, nullable=False, hashed="int"),
        Column("b", "boolean", Kind.BOOL, hashed="bool"),
        Column("i2", "smallint", Kind.INT16, hashed="int"),
        Column("i4", "integer", Kind.INT32, hashed="int"),
        Column("f4", "real", Kind.FLOAT32, hashed="float8"),
        Column("f8", "double precision", Kind.FLOAT64, hashed="float8"),
        Column("d", "numeric(12,2)", Kind.DECIMAL, precision=12, scale=2, hashed="text"),
        Column("wide", "numeric(38,10)", Kind.DECIMAL, precision=38, scale=10, hashed="text"),
        Column("free", "numeric", Kind.DECIMAL, hashed="text"),
        Column("text 한글 \"'{}", "text", Kind.TEXT, hashed="text"),
        Column("bytes", "bytea", Kind.BYTES, hashed="bytes"),
        Column("day", "date", Kind.DATE, hashed="date"),
        Column("at", "time", Kind.TIME, hashed="text"),
        Column("naive", "timestamp", Kind.TIMESTAMP, hashed="timestamp"),
        Column("ts", "timestamptz", Kind.TIMESTAMPTZ, hashed="timestamp"),
    ),
    ("id",),
)


def every() -> pa.Table:
    from datetime import date
    from decimal import Decimal

    big = Decimal("1234567890123456789012345678.0123456789")
    first, last = datetime(1, 1, 1), datetime(9999, 12, 31, 23, 59, 59, 999999)
    values = {
        "id": pa.array([1, 2, 3], pa.int64()),
        "b": pa.array([True, None, False]),
        "i2": pa.array([-32768, 32767, None], pa.int16()),
        "i4": pa.array([-(2**31), 2**31 - 1, None], pa.int32()),
        "f4": pa.array([float("nan"), -0.0, float("inf")], pa.float32()),
        "f8": pa.array([float("nan"), -0.0, float("-inf")], pa.float64()),
        "d": pa.array([Decimal("1.00"), Decimal("-9999999999.99"), None], pa.decimal128(12, 2)),
        "wide": pa.array([big, -big, None], pa.decimal128(38, 10)),
        "free": pa.array(["1E+1000", "NaN", None]),
        EVERY.names[9]: pa.array(["", "x" * 100, "\x00\n\U0001f600"]),
        "bytes": pa.array([b"", b"\x00\xff", None], pa.binary()),
        "day": pa.array([date(1, 1, 1), date(9999, 12, 31), None]),
        "at": pa.array(["24:00:00", "00:00:00.000001", None]),
        "naive": pa.array([first, last, None], pa.timestamp("us")),
        "ts": pa.array([first, last, None], pa.timestamp("us", "UTC")),
    }
    return pa.table(values)


def test_every_type_survives_checkpoints_and_a_cleaned_log(lake):
    lake.schema = EVERY
    lake.put(1, every())
    folder = lake.target.folder(lake.asset).path
    DeltaTable(folder).alter.set_table_properties(
        {"delta.checkpointInterval": "3", "delta.logRetentionDuration": "interval 0 days"}
    )
    for load in range(2, 9):
        lake.put(load, every(), "append")
    assert list((folder / "_delta_log").glob("*.checkpoint.parquet")), "the test must have met a checkpoint"
    DeltaTable(folder).create_checkpoint()
    DeltaTable(folder).cleanup_metadata()
    assert not (folder / "_delta_log" / f"{0:020d}.json").exists(), "the test must have met a cleaned log"
    entry = lake.target.ledger(lake.asset)
    assert (entry.seq, entry.load, entry.rows) == (8, 8, 24)
    assert len(lake.target.files(lake.asset)) == 8
    lake.put(9, every())
    assert len(lake.rows()) == 3
    assert DeltaTable(folder).to_pyarrow_table().num_rows == 3
    lake.target.gc(lambda run: False)
    assert len(lake.rows()) == 3
    with pytest.raises((NotFound, StepFailed)):
        lake.target.files(lake.asset, 1)


def test_an_upkeep_commit_in_between_is_gone_round(lake, part):
    lake.put(1, part(0))
    lake.put(2, part(1), "append")
    staged = lake.stage(3, part(2), "append")
    folder = lake.target.folder(lake.asset).path
    seen = []

    def compact(point):
        if point == "lake.publish.before_commit":
            seen.append(point)
            if len(seen) == 1:
                DeltaTable(folder).optimize.compact()

    end = events.listen(compact)
    try:
        entry = lake.publish(staged)
    finally:
        end()
    assert len(seen) == 2
    assert (entry.seq, len(lake.rows())) == (3, 150)
    manifest = json.loads(lake.target.folder(lake.asset).manifest(3, 3).read_text())
    assert manifest["version"] == DeltaTable(folder).version() == 3


def test_a_publish_in_between_is_seen_by_the_commit(lake, part):
    lake.put(1, part(0))
    mine, other = lake.stage(3, part(2)), lake.stage(4, part(3))
    proof = lake.target.prove(other)
    ends = []

    def publish(point):
        if point == "lake.publish.before_commit":
            ends.pop()()
            lake.target.publish([other], [proof], {lake.asset: 1})

    ends.append(events.listen(publish))
    with pytest.raises(SeqMoved):
        lake.publish(mine)
    assert lake.target.ledger(lake.asset).load == 4
    assert len(lake.rows()) == 50


def test_an_error_after_the_commit_is_no_error(lake, part):
    """The library writes a checkpoint after the commit, and fails when it cannot: the commit stands."""
    lake.put(1, part(0))
    folder = lake.target.folder(lake.asset)
    DeltaTable(folder.path).alter.set_table_properties({"delta.checkpointInterval": "1"})
    blocked = folder.log / f"{2:020d}.checkpoint.parquet"
    blocked.mkdir()
    (blocked / "in the way").touch()
    assert lake.put(2, part(1)).seq == 2
    assert lake.target.ledger(lake.asset).load == 2
    assert list(lake.target.stages()) == []


def test_a_log_that_cannot_be_read_after_the_commit(lake, part):
    lake.put(1, part(0))
    folder = lake.target.folder(lake.asset)
    DeltaTable(folder.path).alter.set_table_properties({"delta.checkpointInterval": "1"})
    staged = lake.stage(2, part(1))
    proof = lake.target.prove(staged)
    blocked = folder.log / f"{2:020d}.checkpoint.parquet"
    base = folder.log / f"{1:020d}.checkpoint.parquet"
    whole = base.read_bytes()

    def tear(point):
        if point == "lake.publish.before_commit":
            blocked.mkdir()
            (blocked / "in the way").touch()
            base.write_bytes(b"torn")

    end = events.listen(tear)
    try:
        with pytest.raises(CommitUnknown) as caught:
            lake.target.publish([staged], [proof], {lake.asset: 1})
    finally:
        end()
    assert "ledger decides" in str(caught.value)
    base.write_bytes(whole)
    assert lake.target.publish([staged], [proof], {lake.asset: 1})[0].seq == 2


def test_vacuum_keeps_what_may_be_read(lake, part):
    for load in range(1, 5):
        lake.put(load, part(load % 4))
    lake.put(5, part(1), "append")
    wanted = {seq: lake.rows(seq) for seq in range(1, 6)}
    assert lake.target.vacuum(lake.asset) == []
    assert lake.target.vacuum(lake.asset, timedelta(0), versions=3) == [
        "bronze/orders/1-1.parquet", "bronze/orders/2-1.parquet",
        "bronze/orders/_millrace/loads/1-1.json", "bronze/orders/_millrace/loads/2-2.json",
    ]  # fmt: skip
    assert [lake.rows(seq) == wanted[seq] for seq in (3, 4, 5)] == [True] * 3
    with pytest.raises(NotFound):
        lake.rows(2)
    assert lake.target.gc(lambda run: False) == []
    lake.target.vacuum(lake.asset, timedelta(0), versions=0)
    assert lake.rows() == wanted[5]
    assert lake.target.gc(lambda run: False) == []
    assert lake.put(6, part(0)).seq == 6


def test_vacuum_by_age(lake, part):
    for load in range(1, 4):
        lake.put(load, part(0))
    folder = lake.target.folder(lake.asset)
    for load, days in ((2, 30), (3, 8)):
        path = folder.manifest(load, load)
        data = json.loads(path.read_text())
        data["entry"]["time"] = (datetime.now(UTC) - timedelta(days=days)).isoformat()
        path.write_text(json.dumps(data))
    assert lake.target.vacuum(lake.asset, timedelta(days=9), versions=1) == [
        "bronze/orders/1-1.parquet",
        "bronze/orders/_millrace/loads/1-1.json",
    ]
    assert len(lake.rows(2)) == 50


def test_gc_touches_nothing_that_is_not_certainly_ours(lake, part):
    lake.put(1, part(0))
    lake.put(2, part(1))
    folder = lake.target.folder(lake.asset)
    (folder.path / "notes.txt").write_text("mine")
    (folder.path / "part-0001.parquet").write_bytes(b"x")
    (folder.path / "99-1.parquet").write_bytes(b"an orphan")
    (folder.stages / f".5.json.{2**22 + 1}").write_text("half")
    (folder.stages / f".6.json.{os.getpid()}").write_text("half")
    assert lake.target.gc(lambda run: False) == [
        f"bronze/orders/_millrace/stages/.5.json.{2**22 + 1}",
        "bronze/orders/99-1.parquet",
    ]
    folder.log.rename(folder.path / "lost")
    assert lake.target.gc(lambda run: False) == []
    assert (folder.path / "1-1.parquet").exists()


def test_a_foreign_tables_files_are_not_leftovers(lake, part):
    folder = lake.target.folder(lake.asset)
    write_deltalake(folder.path, part(0))
    name = DeltaTable(folder.path).get_add_actions().column("path").to_pylist()[0]
    (folder.path / "_millrace").mkdir()
    assert lake.target.gc(lambda run: False) == []
    assert (folder.path / name).exists()


def test_the_order_of_gc_and_a_stage_that_opens_meanwhile(lake, part):
    lake.put(1, part(0))
    lake.target.open_stage(lake.request(2))
    opened = []

    def live(run):
        if not opened:
            stage = lake.target.open_stage(lake.request(3))
            stage.write(Segment.whole(), part(1).to_reader())
            opened.append(stage)
        return run != "run2"

    assert lake.target.gc(live) == ["bronze/orders/_millrace/stages/2.json"]
    assert lake.publish(opened[0].close(Whole())).rows == 50


def test_views(lake, part):
    assert query.views(lake.target) == []
    lake.put(1, part(0))
    lake.asset = replace(lake.asset, layer="silver")
    lake.put(2, part(0).slice(0, 0))
    found = query.views(lake.target)
    assert [(layer, name, len(files)) for layer, name, files in found] == [
        ("bronze", "orders", 1),
        ("silver", "orders", 0),
    ]
    assert query.views(lake.target, [lake.asset]) == [("silver", "orders", [])]
