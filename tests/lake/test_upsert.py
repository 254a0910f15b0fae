"""Upserts: what they rewrite, what they leave, what they prove, and what they tell readers of changes."""

from __future__ import annotations

import json
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from millrace.core.position import Cursor
from millrace.core.schema import Column, Kind, Schema
from millrace.core.staged import Staged
from millrace.errors import ContractBroken, GuardRefused, KeyInvalid, ProofFailed, SeqMoved, StepFailed
from millrace.lake.rowhash import digest_table


class Changing:
    """A lake with upserts."""

    def __init__(self, lake, table, tmp_path):
        self.lake, self.table, self.scratch = lake, table, tmp_path

    def file(self, data, name="changes"):
        path = self.scratch / f"{name}.parquet"
        pq.write_table(data, path)
        return path

    def stage(self, load, data, deletes=(), **options):
        request = self.lake.request(load, "upsert")
        paths = [self.file(data)] if data is not None else []
        gone = [self.file(pa.table({"id": pa.array(list(deletes), pa.int64())}), "deletes")] if deletes else []
        if "expected" not in options:
            options["expected"] = {"changes": digest_table(data, self.lake.schema)} if data is not None else {}
        options = {"position": Cursor("id", "9"), "deletes": gone, **options}
        with duckdb.connect() as connection:
            return self.lake.target.upsert(request, paths, self.lake.schema, connection, **options)

    def put(self, load, data, deletes=(), **options):
        return self.lake.publish(self.stage(load, data, deletes, **options))


@pytest.fixture
def many(lake, tmp_path):
    """Three files: keys 0-9, 10-19 and 20-29."""
    changing = Changing(lake, rows_table, tmp_path)
    lake.put(1, rows_table(range(10)))
    lake.put(2, rows_table(range(10, 20)), "append")
    lake.put(3, rows_table(range(20, 30)), "append")
    return changing


def rows_table(keys, name="old", price="1.00"):
    keys = list(keys)
    return pa.table(
        {
            "id": pa.array(keys, pa.int64()),
            "name": pa.array([f"{name} {key}" for key in keys], pa.string()),
            "price": pa.array([Decimal(price)] * len(keys), pa.decimal128(12, 2)),
        }
    )


def content(data):
    return sorted((tuple(row.values()) for row in data.to_pylist()), key=repr)


def test_an_upsert_rewrites_only_touched_files(many):
    lake = many.lake
    before = lake.target.files(lake.asset)
    entry = many.put(4, rows_table([3, 4, 35], "new"))
    after = lake.target.files(lake.asset)
    assert len(set(before) & set(after)) == 2
    assert (entry.seq, entry.rows, entry.level) == (4, 31, "applied")
    assert entry.counts.to_json() == {"inserted": 1, "updated": 2, "deleted": 0}
    wanted = pa.concat_tables([rows_table([*range(3), *range(5, 30)]), rows_table([3, 4, 35], "new")])
    assert lake.rows() == content(wanted)
    assert entry.digest == digest_table(wanted, lake.schema)
    found = pq.read_table([Path(file) for file in after], partitioning=None).to_pylist()
    seqs = {row["id"]: row["_millrace_seq"] for row in found}
    assert {seqs[key] for key in (3, 4, 35)} == {4}
    assert (seqs[0], seqs[10], seqs[20]) == (1, 2, 3)
    assert DeltaTable(lake.target.folder(lake.asset).path).to_pyarrow_table().num_rows == 31


def test_what_does_not_really_change_rewrites_nothing(many):
    lake = many.lake
    before = lake.target.files(lake.asset)
    entry = many.put(4, rows_table(range(30)))
    assert lake.target.files(lake.asset) == before
    assert (entry.seq, entry.rows, entry.level, entry.counts.updated) == (4, 30, "applied", 0)
    entry = many.put(5, pa.concat_tables([rows_table(range(20)), rows_table([25], "new")]))
    assert len(set(before) & set(lake.target.files(lake.asset))) == 2
    assert entry.counts.updated == 1


def test_deletes(many):
    lake = many.lake
    entry = many.put(4, rows_table([11, 40], "new"), deletes=[*range(10), 12, 99])
    assert entry.counts.to_json() == {"inserted": 1, "updated": 1, "deleted": 11}
    assert {row[0] for row in lake.rows()} == {10, 11, *range(13, 30), 40}
    assert entry.rows == len(lake.rows())
    entry = many.put(5, None, deletes=[*range(50)])
    assert (entry.rows, lake.rows(), lake.target.files(lake.asset)) == (0, [], [])
    entry = many.put(6, rows_table([1]))
    assert (entry.rows, entry.counts.inserted) == (1, 1)


def test_changes_are_kept_with_before_images(many):
    lake = many.lake
    many.put(4, rows_table([3, 35], "new"), deletes=[20])
    lake.publish(lake.target.open_stage(lake.request(5, "position")).close(Cursor("id", "9")))
    lake.put(6, rows_table([50]), "append")
    upsert, position, append = lake.target.changes(lake.asset, 3)
    assert [change.seq for change in (upsert, position, append)] == [4, 5, 6]
    columns = ["id", "name", "_millrace_change"]
    (before,), (after,) = upsert.before, upsert.after
    assert content(pq.read_table(before, columns=columns)) == [(20, "old 20", "delete"), (3, "old 3", "update")]
    assert content(pq.read_table(after, columns=columns)) == [(3, "new 3", "update"), (35, "new 35", "insert")]
    assert (position.before, position.after, append.before) == ((), (), ())
    assert content(pq.read_table(append.after[0], columns=["id"], partitioning=None)) == [(50,)]
    assert lake.target.changes(lake.asset, 6) == []
    assert lake.target.changes(lake.asset, 0) is None, "the first load replaced everything"
    assert lake.target.changes(lake.asset, 7) is None, "the table was restored to an older load"
    lake.put(7, rows_table([1]))
    assert lake.target.changes(lake.asset, 5) is None


def test_the_first_upsert_makes_the_table(lake, tmp_path):
    many = Changing(lake, rows_table, tmp_path)
    entry = many.put(1, rows_table(range(5)))
    assert (entry.seq, entry.rows, entry.level) == (1, 5, "table")
    entry = many.put(2, rows_table([7]))
    assert (entry.seq, entry.rows) == (2, 6)


def test_bad_keys(many):
    lake = many.lake
    with pytest.raises(KeyInvalid, match="more than one") as caught:
        many.stage(4, rows_table([1, 1, 2]))
    assert "id = 1 (2 rows)" in str(caught.value)
    nulls = rows_table([1, 2]).set_column(0, "id", pa.array([1, None], pa.int64()))
    with pytest.raises(KeyInvalid, match="1 rows have a null"):
        many.stage(4, nulls)
    with pytest.raises(KeyInvalid, match="changed and deleted"):
        many.stage(4, rows_table([1]), deletes=[1])
    lake.schema = replace(lake.schema, key=())
    with pytest.raises(KeyInvalid, match="has no key"):
        many.stage(4, rows_table([1]))
    lake.target.gc(lambda run: False)
    assert len(lake.everything()) == 6, "three files and three manifests"


def test_columns_must_be_the_tables(many):
    with pytest.raises(ContractBroken, match="name of the changes is missing"):
        many.stage(4, rows_table([1]).drop_columns(["name"]), expected={})
    with pytest.raises(ContractBroken, match="id of the changes is string"):
        many.stage(4, rows_table([1]).set_column(0, "id", pa.array(["1"])), expected={})
    extra = Column("more", "text", Kind.TEXT, hashed="text")
    many.lake.schema = Schema((*many.lake.schema.columns, extra), ("id",))
    with pytest.raises(ContractBroken, match="not those of its changes"):
        many.stage(4, rows_table([1]).append_column("more", pa.array(["x"])))


def test_proof_sees_a_wrong_rewrite(many):
    lake = many.lake
    folder = lake.target.folder(lake.asset)

    def broken(change, match):
        staged = many.stage(4, rows_table([3, 35], "new"), deletes=[20])
        with pytest.raises(ProofFailed, match=match):
            lake.target.prove(change(staged) or staged)

    def edit(staged, place, rewrite):
        file = staged.detail["files"][place]
        path = folder.path / file["name"]
        pq.write_table(rewrite(pq.read_table(path, partitioning=None)), path)
        files = [*staged.detail["files"]]
        files[place] = {**file, "size": path.stat().st_size, "rows": pq.read_metadata(path).num_rows}
        return replace(staged, detail={**staged.detail, "files": files})

    def renamed(data):
        names = ["x", *data["name"].to_pylist()[1:]]
        return data.set_column(1, "name", pa.array(names))

    broken(lambda staged: edit(staged, 0, renamed), "not what the source holds")
    broken(lambda staged: edit(staged, 0, lambda data: data.slice(1)), "not what the source holds")
    broken(lambda staged: replace(staged, expected={"x": digest_table(rows_table([9]), lake.schema)}), "source holds")
    broken(lambda staged: (folder.changes / staged.detail["images"]["after"]["name"]).unlink(), "changes are not whole")
    staged = many.stage(4, rows_table([3, 35], "new"), deletes=[20])
    assert staged == Staged.from_json(json.loads(json.dumps(staged.to_json())))
    assert lake.target.prove(staged).level == "applied"


def test_an_upsert_that_missed_a_publish_is_refused(many):
    lake = many.lake
    staged = many.stage(4, rows_table([3], "new"))
    proof = lake.target.prove(staged)
    lake.put(5, rows_table([60]), "append")
    with pytest.raises(SeqMoved):
        lake.target.publish([staged], [proof], {lake.asset: 3})
    request = lake.request(6, "upsert", base=3)
    with pytest.raises(SeqMoved):
        lake.target.upsert(request, [], lake.schema, None, position=Cursor("id", None))


def test_files_that_optimize_rewrote(many):
    lake = many.lake
    staged = many.stage(4, rows_table([3], "new"))
    proof = lake.target.prove(staged)
    folder = lake.target.folder(lake.asset).path
    DeltaTable(folder).optimize.compact()
    with pytest.raises(SeqMoved, match="rewritten by something else"):
        lake.target.publish([staged], [proof], {lake.asset: 3})
    DeltaTable(folder).vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    assert len(lake.rows()) == 30
    entry = many.put(5, rows_table([3], "new"))
    assert (entry.rows, len(lake.target.files(lake.asset))) == (30, 1)
    DeltaTable(folder).delete("id = 5")
    with pytest.raises(GuardRefused):
        many.stage(6, rows_table([3], "newer"))


def test_floats_and_nulls_are_compared_exactly(lake, tmp_path):
    many = Changing(lake, None, tmp_path)
    lake.schema = Schema(
        (Column("id", "bigint", Kind.INT64, hashed="int"), Column("f", "float8", Kind.FLOAT64, hashed="float8")),
        ("id",),
    )

    def data(*values):
        return pa.table({"id": pa.array(range(len(values)), pa.int64()), "f": pa.array(values, pa.float64())})

    lake.put(1, data(0.0, float("nan"), None, 1.5))
    assert many.put(2, data(0.0, float("nan"), None, 1.5)).counts.updated == 0
    assert many.put(3, data(-0.0, None, float("nan"), 1.5)).counts.updated == 3
    assert [str(row[1]) for row in lake.rows()] == ["-0.0", "None", "nan", "1.5"]


def test_hostile_names_in_keys_and_columns(lake, tmp_path):
    many = Changing(lake, None, tmp_path)
    names = ['k"; drop table t; --', "filename", "{columns}", "한글 select", "t"]
    columns = tuple(Column(name, "text", Kind.TEXT, hashed="text") for name in names)
    lake.schema = Schema(columns, (names[0], names[1]))

    def data(*rows):
        return pa.table({name: [row[place] for row in rows] for place, name in enumerate(names)})

    lake.put(1, data("abcde", "fghij"))
    entry = many.put(2, data("abxyz", "klmno"))
    assert (entry.counts.updated, entry.counts.inserted) == (1, 1)
    assert lake.rows() == [tuple("abxyz"), tuple("fghij"), tuple("klmno")]


def test_without_hashes_rows_are_counted(many):
    lake = many.lake
    bare = Schema(tuple(replace(column, hashed="") for column in lake.schema.columns), ("id",))
    lake.schema = bare
    staged = many.stage(4, rows_table([3, 35], "new"), expected={})
    proof = lake.target.prove(staged)
    assert (proof.level, proof.digest) == ("none", None)
    assert lake.publish(staged).rows == 31


def test_a_torn_change_file_is_a_clear_error(many, tmp_path):
    lake = many.lake
    path = many.file(rows_table(range(1000)))
    whole = path.read_bytes()
    path.write_bytes(whole[:200] + b"\xff" * 400 + whole[600:])
    with duckdb.connect() as connection, pytest.raises(StepFailed, match="upserting bronze"):
        lake.target.upsert(lake.request(4, "upsert"), [path], lake.schema, connection, position=Cursor("id", None))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    loads=st.lists(
        st.tuples(st.dictionaries(st.integers(0, 12), st.sampled_from("abc")), st.sets(st.integers(0, 12))), max_size=4
    )
)
def test_any_series_of_upserts_ends_in_the_rows_of_a_dictionary(lake, tmp_path_factory, loads):
    from millrace.lake.target import LakeTarget

    lake = type(lake)(LakeTarget(tmp_path_factory.mktemp("lake") / "lake"))
    many = Changing(lake, None, lake.target.root.parent)
    wanted: dict[int, str] = {}
    for number, (changes, deletes) in enumerate(loads, 1):
        deletes = deletes - set(changes)
        data = pa.table(
            {
                "id": pa.array(list(changes), pa.int64()),
                "name": pa.array(list(changes.values()), pa.string()),
                "price": pa.array([None] * len(changes), pa.decimal128(12, 2)),
            }
        )
        entry = many.put(number, data, deletes if number > 1 else ())
        wanted = {key: value for key, value in wanted.items() if key not in deletes or number == 1} | changes
        assert {row[0]: row[1] for row in lake.rows()} == wanted
        assert entry.rows == len(wanted)
