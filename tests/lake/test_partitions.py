"""Assets whose files are split by columns: where rows lie, what other readers see, what upserts rewrite."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, QueryBuilder

from millrace.core.names import AssetId
from millrace.core.position import Whole
from millrace.core.schema import Column, Kind, Schema
from millrace.core.segment import Segment
from millrace.errors import ContractBroken, GuardRefused, ProofFailed
from millrace.lake import partitions
from millrace.lake.rowhash import digest_table
from millrace.lake.target import LakeTarget

ASSET = AssetId("silver", "sales")
SCHEMA = Schema(
    (
        Column("id", "BIGINT", Kind.INT64, hashed="int"),
        Column("region", "VARCHAR", Kind.TEXT, hashed="text"),
        Column("day", "DATE", Kind.DATE, hashed="date"),
        Column("hour", "INTEGER", Kind.INT32, hashed="int"),
        Column("paid", "BOOLEAN", Kind.BOOL, hashed="bool"),
        Column("note", "VARCHAR", Kind.TEXT, hashed="text"),
        Column("at", "TIMESTAMP", Kind.TIMESTAMP, hashed="timestamp"),
    ),
    ("id",),
)
ARROW = pa.schema(
    [
        ("id", pa.int64()),
        ("region", pa.string()),
        ("day", pa.date32()),
        ("hour", pa.int32()),
        ("paid", pa.bool_()),
        ("note", pa.string()),
        ("at", pa.timestamp("us", "UTC")),
    ]
)
DAY = dt.date(2024, 1, 1)
ODD = ["a b", "서울", "x/y=z%20", "[*]?'\"", None, "plain", "..", "NULL", partitions.NULL, "a%20b", "Plain", "\x00\n"]


def sales(*found):
    """Return rows of (id, region) or (id, region, hour)."""
    rows = [(key, region, DAY, hour[0] if hour else 7, bool(key % 2), None, None) for key, region, *hour in found]
    return pa.Table.from_pylist([dict(zip(ARROW.names, row, strict=True)) for row in rows], schema=ARROW)


def sorted_by(data, by):
    return data.sort_by([(name, "ascending") for name in by]) if by else data


class Split:
    """A lake, and what a step does with an asset that is split."""

    def __init__(self, lake, scratch):
        self.lake, self.scratch = lake, scratch
        lake.asset, lake.schema = ASSET, SCHEMA
        self.target: LakeTarget = lake.target
        self.folder: Path = lake.target.folder(ASSET).path

    def request(self, load, by, how="replace"):
        return replace(self.lake.request(load, how), partitions=tuple(by))

    def stage(self, load, data, by=("region",), how="replace"):
        stage = self.target.open_stage(self.request(load, by, how))
        stage.write(Segment.whole(), sorted_by(data, by).to_reader(), digest_table(data, SCHEMA))
        return stage.close(Whole())

    def put(self, load, data, by=("region",), how="replace"):
        return self.lake.publish(self.stage(load, data, by, how))

    def upsert(self, load, data, deletes=()):
        files = [self.scratch / "changes.parquet", self.scratch / "deletes.parquet"]
        pq.write_table(data, files[0])
        pq.write_table(pa.table({"id": pa.array(deletes, pa.int64())}), files[1])
        with duckdb.connect() as connection:
            staged = self.target.upsert(
                self.request(load, ()),
                [files[0]],
                SCHEMA,
                connection,
                position=Whole(),
                expected={"changes": digest_table(data, SCHEMA)},
                deletes=[files[1]] if deletes else [],
            )
        return self.lake.publish(staged)

    def parts(self):
        """Return the values of the table's files, by Delta, and what their rows have."""
        found = []
        for file in self.added():
            rows = pq.read_table(self.folder / file["name"], partitioning=None)
            found.append((file["values"], sorted(rows["id"].to_pylist())))
        return sorted(found, key=repr)

    def added(self):
        actions = pa.table(DeltaTable(self.folder).get_add_actions()).to_pylist()
        return [{"name": unquote(one["path"]), "values": one["partition"]} for one in actions]

    def all_readers(self):
        """Return the rows, which every reader of the table sees alike."""
        names = ", ".join(f'"{name}"' for name in ARROW.names)
        ours = sorted(self.lake.rows(), key=repr)
        delta = DeltaTable(self.folder)
        theirs = delta.to_pyarrow_table(columns=ARROW.names).to_pylist()
        assert sorted((tuple(row.values()) for row in theirs), key=repr) == ours
        query = QueryBuilder().register("sales", delta).execute(f"select {names} from sales")
        assert sorted((tuple(row.values()) for row in pa.table(query.read_all()).to_pylist()), key=repr) == ours
        if not (files := self.target.files(ASSET)):
            return ours
        with duckdb.connect() as connection:
            found = connection.execute(
                f"select {names} from read_parquet(?, hive_partitioning = false) where day = '2024-01-01'", [files]
            ).fetchall()
            nulls = connection.execute(
                "select count(*) from read_parquet(?, hive_partitioning = false) where region is null", [files]
            ).fetchall()
        assert sorted(found, key=repr) == ours
        assert nulls == [(sum(row[1] is None for row in ours),)]
        return ours


@pytest.fixture
def split(lake, tmp_path):
    return Split(lake, tmp_path)


def test_any_value_is_a_folder_that_all_readers_read_alike(split):
    """Nulls, slashes, percent signs, what DuckDB takes for a pattern: in the path, in the log, and in both again."""
    data = sales(*enumerate(ODD))
    entry = split.put(1, data, ["region", "day", "hour", "paid"])
    assert (entry.rows, entry.digest) == (len(ODD), digest_table(data, SCHEMA))
    assert DeltaTable(split.folder).metadata().partition_columns == ["region", "day", "hour", "paid"]
    assert (split.folder / "region=a%20b/day=2024-01-01/hour=7/paid=false/1-1.parquet").parent.is_dir()
    wanted = {(value, DAY, 7, bool(key % 2)) for key, value in enumerate(ODD)}
    assert {tuple(one["values"].values()) for one in split.added()} == wanted
    assert len(split.all_readers()) == len(ODD)
    delta = DeltaTable(split.folder)
    for value in [value for value in ODD if value is not None]:
        assert len(delta.file_uris(file_pruning_predicate=[("region", "=", value)])) == 1
        assert delta.to_pyarrow_table(filters=[("region", "=", value)])["region"].to_pylist() == [value]

    moved = sales(*((key, ODD[(key + 1) % len(ODD)]) for key in range(len(ODD))))
    entry = split.upsert(2, moved)
    assert (entry.counts.updated, entry.rows, entry.digest) == (len(ODD), len(ODD), digest_table(moved, SCHEMA))
    assert [row[:2] for row in split.all_readers()] == sorted(
        ((row["id"], row["region"]) for row in moved.to_pylist()), key=repr
    )
    assert len(split.added()) == len(ODD), "the files they left are out of the log, however their paths are written"
    split.target.vacuum(ASSET, retain=dt.timedelta(0), versions=1)
    assert len(list(split.folder.rglob("*.parquet"))) == len(ODD) + 2, "and the two images"
    assert len(split.all_readers()) == len(ODD)


def test_an_upsert_keeps_rows_in_their_partition_and_touches_no_other(split):
    split.put(1, sales((1, "a"), (2, "a"), (3, "b"), (4, "c"), (5, "c"), (6, None)))
    before = set(split.target.files(ASSET))
    entry = split.upsert(2, sales((1, "b"), (2, "a", 8), (7, "d"), (8, None)), deletes=[3])
    assert entry.counts.to_json() == {"inserted": 2, "updated": 2, "deleted": 1}
    assert split.parts() == [
        ({"region": "a"}, [2]),
        ({"region": "b"}, [1]),
        ({"region": "c"}, [4, 5]),
        ({"region": "d"}, [7]),
        ({"region": None}, [6]),
        ({"region": None}, [8]),
    ]
    assert len(before & set(split.target.files(ASSET))) == 2, "files of c and of nulls were not touched"
    rows = split.all_readers()
    assert entry.digest == digest_table(
        pa.Table.from_pylist([dict(zip(ARROW.names, row, strict=True)) for row in rows], ARROW), SCHEMA
    )
    (change,) = split.target.changes(ASSET, 1)
    assert sorted(pq.read_table(change.before[0])["id"].to_pylist()) == [1, 2, 3]

    split.upsert(3, sales(), deletes=[1, 2, 4, 5, 6, 7, 8])
    assert split.parts() == []
    split.target.vacuum(ASSET, retain=dt.timedelta(0), versions=1)
    assert not list(split.folder.glob("region=*")), "folders without files are gone"
    split.upsert(4, sales((9, "a")))
    assert split.parts() == [({"region": "a"}, [9])]


@pytest.mark.parametrize("rows", [[], [(1, "a"), (2, "b")]])
def test_another_split_replaces_the_table_in_one_commit(split, rows):
    split.put(1, sales(*rows), [])
    for load, by in ((2, ["day", "hour"]), (3, ["region"]), (4, [])):
        split.put(load, sales(*rows), by)
        delta = DeltaTable(split.folder)
        assert (delta.version(), delta.metadata().partition_columns) == (load - 1, by)
        log = (split.folder / f"_delta_log/{load - 1:020}.json").read_text()
        kinds = [next(iter(json.loads(line))) for line in log.splitlines()]
        assert kinds.count("metaData") == 1
        assert kinds.count("add") == (len(rows) if by == ["region"] else min(len(rows), 1))
        assert [row[:2] for row in split.all_readers()] == rows
    assert split.target.partitions(ASSET) == ()
    assert split.target.changes(ASSET, 3) is None


def test_rows_under_wrong_folders_are_not_published(split):
    staged = split.stage(1, sales((1, "aa"), (2, None)))
    one, other = (split.folder / file["name"] for file in staged.detail["files"])
    one.rename(split.folder / "between")
    other.rename(one)
    (split.folder / "between").rename(other)
    for file in staged.detail["files"]:
        file["size"] = (split.folder / file["name"]).stat().st_size
    with pytest.raises(ProofFailed, match="has other values in region than its folder says"):
        split.target.prove(staged)


@pytest.mark.parametrize(
    ("row", "by", "says"),
    [
        ((1, ""), ["region"], "empty text cannot be a partition"),
        ((1, "x" * 200), ["region"], "region: a value is too long for a partition"),
        ((1, "a"), ["regin"], r"no column regin to be split by(.|\n)*did you mean \"region\""),
        ((1, "a"), ["at"], r"cannot be split by at, which is TIMESTAMP(.|\n)*as date\) as at_date"),
    ],
)
def test_what_no_folder_can_be_is_refused(split, row, by, says):
    with pytest.raises(ContractBroken, match=says):
        split.put(1, sales((2, "b"), row), by)
    assert not list(split.folder.rglob("*.parquet"))


def test_dates_beyond_the_calendar_and_too_many_partitions_are_refused(split, monkeypatch):
    far = sales((1, "a")).set_column(2, ARROW.field("day"), pa.array([2**31 - 1], pa.int32()).cast(pa.date32()))
    with pytest.raises(ContractBroken, match=r"silver\.sales\.day: a date outside of the years"):
        split.put(1, far, ["day"])
    monkeypatch.setattr(partitions, "MOST", 3)
    with pytest.raises(ContractBroken, match=r"more than 3 partitions \(region\)"):
        split.put(1, sales(*enumerate("abcd")))
    assert split.put(1, sales(*enumerate("abc"))).rows == 3


def test_what_a_killed_attempt_left_is_taken_over_or_dropped_with_its_folders(split):
    data = sales((1, "a"), (2, "b"))
    stage = split.target.open_stage(split.request(1, ["region"]))
    stage.write(Segment.whole(), data.to_reader(), digest_table(data, SCHEMA))
    other = split.target.open_stage(split.request(2, ["day"]))
    assert not other.done(), "its files lie in other folders"
    again = split.target.open_stage(split.request(3, ["region"]))
    assert list(again.done()) == ["all"]
    assert split.lake.publish(again.close(Whole())).rows == 2
    assert sorted(split.target.gc(lambda run: False))
    assert sorted(str(path.relative_to(split.folder)) for path in split.folder.rglob("*.parquet")) == [
        "region=a/3-1.parquet",
        "region=b/3-2.parquet",
    ]
    split.target.discard(split.stage(4, sales((1, "z"))))
    assert not (split.folder / "region=z").exists()


def test_files_that_others_compacted_are_not_mixed_with_ours(split):
    """They lack the partition columns: read beside ours, all their rows would have nulls there."""
    split.put(1, sales((1, "a"), (2, "b")))
    split.upsert(2, sales((3, "a")))
    before = split.all_readers()
    DeltaTable(split.folder).optimize.compact()
    assert len(DeltaTable(split.folder).file_uris()) == 2
    assert split.all_readers() == before
    with pytest.raises(GuardRefused, match="without their partition columns") as caught:
        split.upsert(3, sales((4, "b")))
    DeltaTable(split.folder).restore(int(str(caught.value).partition("restore version ")[2].split()[0]))
    split.upsert(3, sales((4, "b")))
    DeltaTable(split.folder).optimize.compact()
    assert split.put(4, sales((1, "a"))).rows == 1
    assert [row[0] for row in split.all_readers()] == [1]
