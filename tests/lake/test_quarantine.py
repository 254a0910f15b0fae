"""Rows set aside: visible with their load, counted in its proof, carried from load to load until they are settled."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from datetime import timedelta

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from millrace.core.position import Whole
from millrace.core.segment import Segment
from millrace.errors import ContractBroken, ProofFailed
from millrace.lake import quarantine
from millrace.lake.quarantine import FIX, REASON, RULE, SOURCE, STATUS, packed
from millrace.lake.rowhash import digest_table
from millrace.lake.target import LakeTarget

from .conftest import SCHEMA, Lake, table

GOOD = [(1, "one", "1.00"), (2, "two", "2.00")]
BAD = [(8, "eight", "-8.00"), (9, None, "9.00")]


def bad_table(rows, source: str | None = None) -> pa.Table:
    found = table(rows)
    count = found.num_rows
    found = found.append_column(REASON, pa.array([f"row {row[0]} is bad" for row in rows], pa.string()))
    found = found.append_column(RULE, pa.array(["between(price)"] * count, pa.string()))
    return found.append_column(SOURCE, pa.array([source] * count, pa.string()))


def load(lake: Lake, number: int, good, bad, how: str = "replace"):
    """Stage a whole source: its digest is that of all rows, good and bad."""
    stage = lake.target.open_stage(lake.request(number, how))
    stage.write(Segment.whole(), table(good).to_reader())
    stage.set_aside(bad_table(bad))
    return stage.close(Whole(), {"all": digest_table(table([*good, *bad]), lake.schema)})


def upsert(lake: Lake, number: int, good, bad, tmp_path, **options):
    path = tmp_path / f"changes-{number}.parquet"
    pq.write_table(table(good), path)
    with duckdb.connect() as connection:
        return lake.target.upsert(
            lake.request(number, "upsert"),
            [path],
            lake.schema,
            connection,
            position=Whole(),
            expected={"changes": digest_table(table([*good, *bad]), lake.schema)},
            bad=bad_table(bad),
            **options,
        )


def change(lake: Lake, number: int, ids: dict[str, str], fixed: pa.Table | None = None):
    """Give entries another status by a load of their own, as replay and drop do."""
    stage = lake.target.open_stage(lake.request(number, "append" if fixed is not None else "position"))
    state = stage.quarantined()
    statuses = [ids.get(name, old) for name, old in zip(names(state), state.column(STATUS).to_pylist(), strict=True)]
    state = state.set_column(state.schema.get_field_index(STATUS), STATUS, pa.array(statuses))
    if fixed is not None:
        known = zip(names(state), state.column(FIX).to_pylist(), strict=True)
        fixes = [packed(fixed) if ids.get(name) == "replayed" else old for name, old in known]
        state = state.set_column(state.schema.get_field_index(FIX), FIX, pa.array(fixes, pa.binary()))
        stage.write(Segment.whole(), fixed.to_reader(), digest_table(fixed, lake.schema))
    stage.put_state(state)
    return lake.publish(stage.close(Whole()))


def names(state: pa.Table) -> list[str]:
    return state.column("_millrace_entry").to_pylist()


def keyed(lake: Lake) -> dict[int, tuple[str, str]]:
    return {entry.row["id"]: (entry.status, entry.id) for entry in lake.target.entries(lake.asset)}


def test_rows_are_set_aside_with_their_load(lake):
    staged = load(lake, 1, GOOD, BAD)
    assert lake.target.ledger(lake.asset) is None, "nothing is visible before the publish"
    entry = lake.publish(staged)
    assert [row[0] for row in lake.rows()] == [1, 2]
    assert (entry.rows, entry.quarantined, entry.level) == (2, 2, "table")
    assert lake.target.ledger(lake.asset) == entry
    first, second = lake.target.entries(lake.asset)
    assert (first.status, first.rule, first.reason, first.key) == (
        "open",
        "between(price)",
        "row 8 is bad",
        {"id": "8"},
    )
    assert (first.run, len(first.id)) == ("run1", 12)
    assert second.row == {"id": 9, "name": None, "price": table(BAD).column("price")[1].as_py()}, "as it came"
    assert int(first.digest) + int(second.digest) == digest_table(table(BAD), SCHEMA).total
    found = lake.target.balance(lake.asset)
    assert (found.source, found.asset, found.open, found.agree) == (4, 2, 2, True)


def test_the_proof_counts_what_was_set_aside(lake):
    """Whatever is neither in the files nor in quarantine is missed; so is what the quarantine's file does not hold."""
    lost = lake.target.open_stage(lake.request(1))
    lost.write(Segment.whole(), table(GOOD).to_reader())
    lost.set_aside(bad_table(BAD[:1]))
    staged = lost.close(Whole(), {"all": digest_table(table([*GOOD, *BAD]), lake.schema)})
    with pytest.raises(ProofFailed, match="not what the source holds"):
        lake.target.prove(staged)
    staged = load(lake, 2, GOOD, BAD)
    path = lake.target.folder(lake.asset).quarantine / staged.detail["quarantine"]["file"]
    held = pq.read_table(path)
    pq.write_table(held.slice(0, 1), path)
    with pytest.raises(ProofFailed, match="quarantine's file has"):
        lake.target.prove(staged)
    other = held.set_column(0, "id", pa.array([8, 10]))
    pq.write_table(other, path, compression="zstd", version="2.6")
    staged = replace(
        staged,
        detail={**staged.detail, "quarantine": {**staged.detail["quarantine"], "size": path.stat().st_size}},
    )
    with pytest.raises(ProofFailed, match="does not hold"):
        lake.target.prove(staged)
    path.unlink()
    with pytest.raises(ProofFailed, match="is missing"):
        lake.target.prove(staged)


def test_entries_live_as_long_as_their_rows(lake):
    lake.publish(load(lake, 1, GOOD, BAD))
    folder = lake.target.folder(lake.asset)
    first = {path.name for path in folder.quarantine.iterdir()}
    before = keyed(lake)
    lake.publish(load(lake, 2, [*GOOD, (3, "three", "3.00")], BAD))
    assert {path.name for path in folder.quarantine.iterdir()} == first, "unchanged: the same file"
    assert keyed(lake) == before
    change(lake, 3, {before[8][1]: "dropped"})
    assert keyed(lake)[8] == ("dropped", before[8][1])
    assert (lake.target.ledger(lake.asset).quarantined, lake.target.ledger(lake.asset).rows) == (1, 3)
    entry = lake.publish(load(lake, 4, GOOD, [BAD[0], (9, None, "9.50")]))
    after = keyed(lake)
    assert after[8] == ("dropped", before[8][1]), "given up for good"
    assert (after[9][0], after[9][1] != before[9][1]) == ("open", True), "another row: another entry"
    assert entry.quarantined == 1
    lake.publish(load(lake, 5, [*GOOD, (8, "eight", "8.00"), (9, "nine", "9.00")], []))
    assert lake.target.quarantine(lake.asset) is None
    assert lake.target.balance(lake.asset).source == 4


def test_a_replayed_fix_stays_in_a_full_load(lake):
    lake.publish(load(lake, 1, GOOD, BAD))
    first = keyed(lake)[8][1]
    change(lake, 2, {first: "replayed"}, table([(8, "eight", "8.00")]))
    assert [row[0] for row in lake.rows()] == [1, 2, 8]
    for number in (3, 4):
        entry = lake.publish(load(lake, number, GOOD, BAD))
        assert [str(row[2]) for row in lake.rows()] == ["1.00", "2.00", "8.00"], "the unchanged bad row undoes nothing"
        found = lake.target.balance(lake.asset)
        assert (found.source, found.asset, found.open, found.replayed, found.agree) == (4, 3, 1, 1, True)
    assert (entry.rows, entry.level) == (3, "table")
    (replayed, _) = lake.target.entries(lake.asset)
    assert replayed.fix is not None
    assert str(replayed.fix["price"]) == "8.00"
    lake.publish(load(lake, 5, GOOD, [(8, "eight", "-7.00")]))
    assert [row[0] for row in lake.rows()] == [1, 2], "the source's row changed: the fix is of another row"
    assert keyed(lake)[8][0] == "open"


def test_upserts_settle_the_keys_that_they_bring(lake, tmp_path):
    lake.publish(load(lake, 1, [*GOOD, (3, "three", "3.00")], BAD))
    old = keyed(lake)
    change(lake, 2, {old[8][1]: "replayed"}, table([(8, "eight", "8.00")]))
    # 2 becomes bad: its good old version goes; 9 becomes good; 8 comes again as it was: its fix stays
    entry = lake.publish(upsert(lake, 3, [(9, "nine", "9.00")], [(2, "two", "-2.00"), BAD[0]], tmp_path))
    assert [(row[0], str(row[2])) for row in lake.rows()] == [
        (1, "1.00"),
        (3, "3.00"),
        (8, "8.00"),
        (9, "9.00"),
    ]
    assert {key: status for key, (status, _) in keyed(lake).items()} == {2: "open", 8: "replayed"}
    assert keyed(lake)[8][1] == old[8][1]
    assert (entry.quarantined, entry.rows, entry.level) == (1, 4, "applied")
    found = lake.target.balance(lake.asset)
    assert (found.source, found.agree) == (5, True)
    lake.publish(upsert(lake, 4, [], [(8, "eight", "-9.00")], tmp_path))
    assert [row[0] for row in lake.rows()] == [1, 3, 9], "another bad version: the fix of the older one goes"
    assert {key: status for key, (status, _) in keyed(lake).items()} == {2: "open", 8: "open"}
    assert len(lake.target.entries(lake.asset)) == 2
    lake.publish(upsert(lake, 5, [(1, "uno", "1.00")], [], tmp_path))
    assert {key: status for key, (status, _) in keyed(lake).items()} == {2: "open", 8: "open"}, "other keys stay"
    lake.publish(upsert(lake, 6, [(2, "two", "2.00")], [], tmp_path, whole=True))
    assert lake.target.quarantine(lake.asset) is None, "all rows were read, and none of them is bad"
    assert lake.target.balance(lake.asset).source == 4


def test_an_upsert_that_loses_a_bad_row_is_not_proven(lake, tmp_path):
    lake.publish(load(lake, 1, GOOD, []))
    staged = upsert(lake, 2, [(3, "three", "3.00")], [(2, "two", "-2.00")], tmp_path)
    facts = {**staged.detail["quarantine"], "load": staged.detail["quarantine"]["out"]}
    with pytest.raises(ProofFailed, match="not what the source holds"):
        lake.target.prove(replace(staged, detail={**staged.detail, "quarantine": facts}))
    lake.publish(staged)
    assert [row[0] for row in lake.rows()] == [1, 3]


def test_a_null_is_a_key_like_any_other(lake, tmp_path):
    """A model gives all rows without a key when it gives one: those that it gives no more are gone."""
    lake.schema = replace(SCHEMA, columns=(replace(SCHEMA.columns[0], nullable=True), *SCHEMA.columns[1:]))
    lake.publish(load(lake, 1, GOOD, [(None, "x", "-1.00"), (None, "y", "-1.00")]))
    first = {entry.row["name"]: entry.id for entry in lake.target.entries(lake.asset)}
    lake.publish(upsert(lake, 2, GOOD[:1], [(None, "x", "-1.00"), (None, "z", "-1.00")], tmp_path))
    found = {entry.row["name"]: entry.id for entry in lake.target.entries(lake.asset)}
    assert (set(found), found["x"]) == ({"x", "z"}, first["x"])
    assert lake.target.balance(lake.asset).agree


def test_equal_rows_without_a_key_are_entries_each(lake):
    lake.schema = replace(SCHEMA, key=())
    lake.publish(load(lake, 1, GOOD, [BAD[0], BAD[0]], "append"))
    first = [entry.id for entry in lake.target.entries(lake.asset)]
    assert len(set(first)) == 2
    lake.publish(load(lake, 2, GOOD, [BAD[0]], "append"))
    assert len({entry.id for entry in lake.target.entries(lake.asset)}) == 3, "what is appended is new"
    lake.publish(load(lake, 3, GOOD, [BAD[0], BAD[0]]))
    assert len(lake.target.entries(lake.asset)) == 2


def test_loads_that_say_nothing_leave_the_quarantine_alone(lake, tmp_path):
    lake.publish(load(lake, 1, GOOD, BAD))
    lake.put(2, table([(5, "five", "5.00")]), "append")
    assert len(lake.target.entries(lake.asset)) == 2
    lake.put(3, table(GOOD))
    assert lake.target.quarantine(lake.asset) is None, "everything is new"
    assert len(lake.target.entries(lake.asset, 2)) == 2, "an older version has its own"


def test_cleaning_up_keeps_what_loads_name(lake):
    lake.publish(load(lake, 1, GOOD, BAD))
    lake.publish(load(lake, 2, [GOOD[0]], BAD))
    staged = load(lake, 3, GOOD, BAD[:1])
    folder = lake.target.folder(lake.asset)

    def files() -> list[str]:
        return sorted(path.name for path in folder.quarantine.iterdir())

    assert files() == ["1-1.quarantine.parquet", "3-3.quarantine.parquet"]
    assert not lake.target.gc(lambda run: True)
    lake.target.discard(staged)
    assert files() == ["1-1.quarantine.parquet"]
    load(lake, 4, GOOD, BAD[:1])
    lake.target.gc(lambda run: False)
    assert files() == ["1-1.quarantine.parquet"]
    lake.target.vacuum(lake.asset, retain=timedelta(0), versions=1)
    assert files() == ["1-1.quarantine.parquet"], "the newest load still names it"
    lake.publish(load(lake, 5, GOOD, []))
    lake.target.vacuum(lake.asset, retain=timedelta(0), versions=1)
    assert files() == []


def test_manifests_of_before_are_read(lake):
    lake.put(1, table(GOOD))
    folder = lake.target.folder(lake.asset)
    path = folder.manifest(1, 1)
    data = json.loads(path.read_text())
    del data["quarantine"], data["entry"]["quarantined"]
    path.write_text(json.dumps(data))
    assert lake.target.ledger(lake.asset).quarantined == 0
    assert lake.target.entries(lake.asset) == []
    lake.publish(load(lake, 2, GOOD, BAD))
    assert len(lake.target.entries(lake.asset)) == 2


def test_rows_that_do_not_fit_are_refused(lake):
    stage = lake.target.open_stage(lake.request(1))
    with pytest.raises(ContractBroken, match="lack the column _millrace_reason"):
        stage.set_aside(table(BAD))
    with pytest.raises(ContractBroken, match="lack the column name"):
        stage.set_aside(bad_table(BAD).drop_columns(["name"]))
    wrong = replace(SCHEMA, columns=(*SCHEMA.columns, replace(SCHEMA.columns[1], name=REASON)))
    with pytest.raises(ContractBroken, match="quarantine's own"):
        quarantine.bad_schema(wrong)


class Meaning:
    """What source, asset and quarantine should hold: dictionaries by key, and the rules in their plainest form."""

    def __init__(self, choose: random.Random) -> None:
        self.choose = choose
        self.source: dict[int, tuple] = {}
        self.seen: dict[int, tuple] = {}
        self.entries: dict[int, tuple[str, tuple, tuple | None]] = {}

    def change(self, keys) -> None:
        for key in keys:
            self.source[key] = (key, self.choose.choice(["a", None]), self.choose.choice(["-2.00", "-1.00", "1.00"]))

    def loaded(self, keys) -> None:
        for key in keys:
            row = self.seen[key] = self.source[key]
            if row[2][0] != "-":
                self.entries.pop(key, None)
            elif key not in self.entries or self.entries[key][1] != row:
                self.entries[key] = ("open", row, None)

    @property
    def asset(self) -> dict[int, tuple]:
        good = {key: row for key, row in self.seen.items() if row[2][0] != "-"}
        return good | {key: fix for key, (status, _, fix) in self.entries.items() if status == "replayed"}


def parted(rows) -> tuple[list[tuple], list[tuple]]:
    return [row for row in rows if row[2][0] != "-"], [row for row in rows if row[2][0] == "-"]


@pytest.mark.parametrize("seed", range(4))
def test_any_sequence_of_loads_means_what_it_says(tmp_path, seed):
    """Full loads, merges of changed and unchanged rows, replays and drops in any order, against the plain meaning."""
    choose = random.Random(seed)
    lake, meant = Lake(LakeTarget(tmp_path / "lake")), Meaning(choose)
    for number in range(1, 10):
        waiting = sorted(key for key, (status, _, _) in meant.entries.items() if status == "open")
        act = (
            choose.choice(["full", "merge", "merge", *(["replay", "drop"] if waiting else [])])
            if meant.seen
            else "full"
        )
        if act == "full":
            meant.change(choose.sample(range(8), 3 if meant.seen else 8))
            gone = choose.choice(sorted(meant.source))
            meant.source.pop(gone)
            meant.entries.pop(gone, None)
            meant.seen = {}
            meant.loaded(sorted(meant.source))
            lake.publish(load(lake, number, *parted(meant.source.values())))
        elif act == "merge":
            meant.change(choose.sample(range(8), 2))
            keys = {key for key, row in meant.source.items() if meant.seen.get(key) != row}
            keys |= set(choose.sample(sorted(meant.source), 2))  # read again, as rows of the newest cursor value are
            meant.loaded(sorted(keys))
            lake.publish(upsert(lake, number, *parted([meant.source[key] for key in sorted(keys)]), tmp_path))
        else:
            key = choose.choice(waiting)
            fix = (key, "fixed", "5.00") if act == "replay" else None
            status = "replayed" if act == "replay" else "dropped"
            meant.entries[key] = (status, meant.entries[key][1], fix)
            change(lake, number, {keyed(lake)[key][1]: status}, table([fix]) if fix else None)
        assert {row[0]: (*row[:2], str(row[2])) for row in lake.rows()} == meant.asset, (number, act)
        held = [(entry.row["id"], entry.status) for entry in lake.target.entries(lake.asset)]
        assert sorted(held) == sorted((key, status) for key, (status, _, _) in meant.entries.items()), (number, act)
        found = lake.target.balance(lake.asset)
        assert (found.source, found.asset) == (len(meant.seen), len(meant.asset))
        assert found.agree or not held
