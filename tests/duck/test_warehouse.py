from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import duckdb
import pytest

from millrace.core.digest import Digest
from millrace.core.names import AssetId
from millrace.core.position import Versions
from millrace.core.schema import Schema
from millrace.core.staged import CheckResult, LedgerEntry, Staged
from millrace.duck import engine, ledger
from millrace.duck.layout import FILE
from millrace.duck.warehouse import WarehouseTarget
from millrace.errors import GateFailed, NewerFormat, ProofFailed, SeqMoved, StepFailed, TargetBusy

from .conftest import ORDERS, SCHEMA, request

Parquet = Callable[..., list[str]]
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def target(tmp_path: Path) -> WarehouseTarget:
    return WarehouseTarget(tmp_path / "warehouse")


def publish(target: WarehouseTarget, run: str, files: list[str]) -> LedgerEntry:
    entry = target.ledger(ORDERS)
    base = entry.seq if entry else 0
    staged = target.load(target.clone(run), ORDERS, files, SCHEMA, request(run, base))
    return target.publish([staged], [target.prove(staged)], {ORDERS: base})[0]


def read(target: WarehouseTarget, query: str = 'select count(*), sum(id) from "silver"."orders"') -> tuple[Any, ...]:
    connection = target.reader()
    assert connection is not None
    try:
        return tuple(connection.execute(query).fetchall()[0])
    finally:
        connection.close()


def tidy(target: WarehouseTarget, published: Sequence[str]) -> None:
    """Nothing lies in the folder but the published files and the warehouse's own."""
    assert sorted(path.name for path in target.root.iterdir()) == sorted([".lock", ".next", "CURRENT", *published])
    for name in published:
        assert sorted(path.name for path in (target.root / name).iterdir()) == [".owner", "stage.json", FILE]


def test_the_first_publish_makes_the_warehouse(target: WarehouseTarget, parquet: Parquet) -> None:
    assert target.current() is None
    assert target.reader() is None
    assert target.ledger(ORDERS) is None
    entry = publish(target, "r1", parquet(0, 100))
    assert (entry.seq, entry.rows, entry.level, entry.position) == (1, 100, "transfer", Versions({"bronze.orders": 1}))
    assert target.ledger(ORDERS) == entry
    assert read(target) == (100, 4950)
    assert read(target, "select typeof(amount), typeof(_millrace_seq) from silver.orders") == (
        "DECIMAL(12,2)",
        "INTEGER",
    )
    tidy(target, ["000001"])


def test_later_publishes_keep_what_they_do_not_touch_and_the_last_two_files(
    target: WarehouseTarget, parquet: Parquet
) -> None:
    other = AssetId("silver", "customers")
    clone = target.clone("r0")
    staged = target.load(clone, other, parquet(0, 7, "c"), SCHEMA, request("r0", 0, other))
    target.publish([staged], [target.prove(staged)], {other: 0})
    for number in range(1, 5):
        assert publish(target, f"r{number}", parquet(0, number * 10)).seq == number
    assert read(target) == (40, 780)
    assert read(target, "select count(*) from silver.customers") == (7,)
    assert read(target, "select count(*), max(seq) from _millrace.history where asset = 'silver.orders'") == (4, 4)
    tidy(target, ["000004", "000005"])


def test_a_clone_is_one_per_run_and_comes_from_the_published_file(target: WarehouseTarget, parquet: Parquet) -> None:
    publish(target, "r1", parquet(0, 10))
    one, again, other = target.clone("r2"), target.clone("r2"), target.clone("r3")
    assert one.folder == again.folder != other.folder
    assert one.base == other.base == "000001"
    assert {staged.asset for staged in target.stages()} == set()
    target.drop_run("r2")
    assert target.clone("r2").folder.name == "000004"  # numbers are never used again


def test_staged_things_pass_through_json(target: WarehouseTarget, parquet: Parquet) -> None:
    staged = target.load(target.clone("r1"), ORDERS, parquet(0, 10), SCHEMA, request("r1", 0))
    again = Staged.from_json(staged.to_json())
    assert again == staged
    assert list(target.stages()) == [staged]
    assert target.prove(again).digest == Digest.sum(
        staged.expected.values(), next(iter(staged.expected.values())).shape
    )


def test_a_load_that_the_clone_has_is_kept(target: WarehouseTarget, parquet: Parquet) -> None:
    clone = target.clone("r1")
    files = parquet(0, 10)
    staged = target.load(clone, ORDERS, files, SCHEMA, request("r1", 0))
    Path(files[0]).unlink()
    assert target.load(clone, ORDERS, files, SCHEMA, request("r1", 0)) == staged
    with pytest.raises(StepFailed, match=r"loading silver\.orders failed"):
        target.load(clone, ORDERS, files, SCHEMA, request("r1", 0, inputs={"bronze.orders": 2}))


def test_no_files_make_an_empty_table(target: WarehouseTarget) -> None:
    publish(target, "r1", [])
    assert read(target) == (0, None)
    connection = target.reader()
    assert connection is not None
    assert [str(row[1]) for row in connection.execute("describe silver.orders").fetchall()] == [
        "BIGINT",
        "DECIMAL(12,2)",
    ]
    connection.close()


def test_a_load_replaces_a_view_of_its_name(target: WarehouseTarget, parquet: Parquet) -> None:
    clone = target.clone("r1")
    connection = clone.connect()
    connection.execute("create schema silver")
    connection.execute("create view silver.orders as select 1 as id")
    connection.close()
    target.load(clone, ORDERS, parquet(0, 5), SCHEMA, request("r1", 0))
    connection = clone.connect()
    assert connection.execute("select count(*) from silver.orders").fetchall() == [(5,)]
    connection.close()


@pytest.mark.parametrize("layer", ["warehouse", "select", 'q"q', "main"])
def test_layers_with_odd_names(target: WarehouseTarget, parquet: Parquet, layer: str) -> None:
    asset = AssetId(layer, 'or"ders; --')
    staged = target.load(target.clone("r1"), asset, parquet(0, 5), SCHEMA, request("r1", 0, asset))
    target.publish([staged], [target.prove(staged)], {asset: 0})
    assert target.ledger(asset) is not None
    assert read(target, engine.fill("select count(*) from {t}", t=target.relation(asset))) == (5,)


def test_a_lakes_asset_lies_under_its_own_name(target: WarehouseTarget, parquet: Parquet) -> None:
    asset = AssetId("warehouse/silver", "orders")
    staged = target.load(target.clone("r1"), asset, parquet(0, 5), SCHEMA, request("r1", 0, asset))
    target.publish([staged], [target.prove(staged)], {asset: 0})
    assert target.ledger(asset) is not None
    assert target.ledger(ORDERS) is None
    assert read(target) == (5, 10)


def test_a_table_that_is_not_its_files_is_not_proven(target: WarehouseTarget, parquet: Parquet) -> None:
    clone = target.clone("r1")
    staged = target.load(clone, ORDERS, parquet(0, 10), SCHEMA, request("r1", 0))
    connection = clone.connect()
    connection.execute("update silver.orders set amount = amount + 0.01 where id = 3")
    connection.close()
    with pytest.raises(ProofFailed, match="not what its files hold"):
        target.prove(staged)


def test_files_that_are_not_what_the_ledger_says_are_not_loaded(target: WarehouseTarget, parquet: Parquet) -> None:
    with pytest.raises(ProofFailed, match="10 rows, its ledger says 11"):
        target.load(target.clone("r1"), ORDERS, parquet(0, 10), SCHEMA, request("r1", 0), count=11)
    assert list(target.stages()) == []


def test_torn_and_missing_files_are_clear(target: WarehouseTarget, parquet: Parquet) -> None:
    files = parquet(0, 1000)
    os.truncate(files[0], 100)
    with pytest.raises(StepFailed, match=r"loading silver\.orders failed"):
        target.load(target.clone("r1"), ORDERS, files, SCHEMA, request("r1", 0))
    missing = Schema((*SCHEMA.columns, SCHEMA.columns[0].__class__("gone", "text", SCHEMA.columns[0].kind)))
    with pytest.raises(StepFailed, match="have no column gone"):
        target.load(target.clone("r1"), ORDERS, parquet(0, 3), missing, request("r1", 0))


def test_what_a_tool_made_is_recorded_and_not_called_proven(target: WarehouseTarget, parquet: Parquet) -> None:
    clone = target.clone("r1")
    loaded = target.load(clone, ORDERS, parquet(0, 10), SCHEMA, request("r1", 0))
    connection = clone.connect()
    connection.execute("create schema marts")
    connection.execute("create table marts.totals as select sum(amount) as total from silver.orders")
    connection.execute("create view marts.all_orders as select * from silver.orders")
    connection.close()
    assets = [AssetId("marts", "totals"), AssetId("marts", "all_orders")]
    requests = [request("r1", 0, asset, "dbt:marts", schema=Schema(())) for asset in assets]
    made = target.stage_results(clone, requests, {assets[0]: {"tests": 2}})
    assert [one.rows for one in made] == [1, 10]
    assert made[0].schema.names == ("total",)
    assert made[0].detail["tests"] == 2
    assert clone.staged(made[0].load) == made
    group = [loaded, *made]
    proofs = [target.prove(one) for one in group]
    assert [proof.level for proof in proofs] == ["transfer", "none", "none"]
    entries = target.publish(group, proofs, {one.asset: 0 for one in group})
    assert [entry.seq for entry in entries] == [1, 1, 1]
    assert read(target, "select count(*) from marts.all_orders") == (10,)
    with pytest.raises(StepFailed, match=r"marts\.nope was not made"):
        target.stage_results(target.clone("r2"), [request("r2", 0, AssetId("marts", "nope"), "dbt:marts")])


def test_a_member_without_a_proof_is_not_published(target: WarehouseTarget, parquet: Parquet) -> None:
    staged = target.load(target.clone("r1"), ORDERS, parquet(0, 10), SCHEMA, request("r1", 0))
    with pytest.raises(ProofFailed, match="has no proof"):
        target.publish([staged], [], {ORDERS: 0})
    assert target.current() is None


def test_a_publish_is_adopted_not_repeated(target: WarehouseTarget, parquet: Parquet) -> None:
    staged = target.load(target.clone("r1"), ORDERS, parquet(0, 10), SCHEMA, request("r1", 0))
    proof = target.prove(staged)
    first = target.publish([staged], [proof], {ORDERS: 0})
    assert target.publish([staged], [proof], {ORDERS: 0}) == first
    publish(target, "r2", parquet(0, 20))
    assert target.publish([staged], [proof], {ORDERS: 0}) == first  # still mine, though no longer the last
    assert read(target) == (20, 190)


def test_someone_elses_publish_refuses_the_clone(target: WarehouseTarget, parquet: Parquet) -> None:
    publish(target, "r1", parquet(0, 10))
    staged = target.load(target.clone("slow"), ORDERS, parquet(0, 11), SCHEMA, request("slow", 1))
    proof = target.prove(staged)
    publish(target, "r2", parquet(0, 20))
    with pytest.raises(SeqMoved, match="someone else published"):
        target.publish([staged], [proof], {ORDERS: 1})
    with pytest.raises(SeqMoved):
        target.clone("slow")
    target.discard(staged)
    target.discard(staged)
    assert target.clone("slow").base == target.root.joinpath("CURRENT").read_text().strip()
    target.drop_run("slow")
    assert read(target) == (20, 190)
    tidy(target, ["000001", "000003"])


def test_every_assets_seq_is_compared(target: WarehouseTarget, parquet: Parquet) -> None:
    publish(target, "r1", parquet(0, 10))
    staged = target.load(target.clone("r2"), ORDERS, parquet(0, 11), SCHEMA, request("r2", 1))
    with pytest.raises(SeqMoved, match="the warehouse is at 1"):
        target.publish([staged], [target.prove(staged)], {ORDERS: 0})


def test_an_outdated_clone_without_members_is_made_anew(target: WarehouseTarget, parquet: Parquet) -> None:
    old = target.clone("r1")
    publish(target, "r2", parquet(0, 10))
    new = target.clone("r1")
    assert (old.base, new.base) == (None, "000002")
    with pytest.raises(SeqMoved, match="is gone"):
        old.connect()


def test_the_published_file_cannot_be_opened_as_a_clone(target: WarehouseTarget, parquet: Parquet) -> None:
    clone = target.clone("r1")
    staged = target.load(clone, ORDERS, parquet(0, 10), SCHEMA, request("r1", 0))
    target.publish([staged], [target.prove(staged)], {ORDERS: 0})
    with pytest.raises(SeqMoved):
        clone.connect()
    with pytest.raises(SeqMoved):
        target.prove(staged)


def test_a_failed_gate_leaves_the_old_warehouse(target: WarehouseTarget, parquet: Parquet) -> None:
    publish(target, "r1", parquet(0, 10))
    before = target.current()
    staged = target.load(target.clone("r2"), ORDERS, parquet(0, 99), SCHEMA, request("r2", 1))
    try:
        raise GateFailed("a test failed")
    except GateFailed:
        target.discard(staged)
    assert target.current() == before
    assert publish(target, "r3", parquet(0, 12)).seq == 2
    tidy(target, ["000001", "000003"])


def test_checks_are_published_with_what_they_looked_at(target: WarehouseTarget, parquet: Parquet) -> None:
    def checked(
        run: str, step: str, passed: bool, *, anew: bool = False, commit: bool = True
    ) -> list[tuple[str, bool]]:
        result = CheckResult(f"of {step}", ORDERS, passed, blocking=False, failing=3, sample=("7",))
        clone = target.clone(run)
        target.note_checks(clone, step, [result], anew=anew)
        if commit:
            publish(target, run, parquet(0, 10))
        connection = target.reader()
        assert connection is not None
        with connection:
            return [(check.name, check.passed) for check in ledger.checks(connection)]

    assert checked("a", "dbt:shop", True) == [("of dbt:shop", True)]
    assert checked("b", "gate:silver.orders", False) == [("of dbt:shop", True), ("of gate:silver.orders", False)]
    assert checked("c", "gate:silver.orders", True) == [("of dbt:shop", True), ("of gate:silver.orders", True)]
    assert checked("d", "dbt:shop", False, commit=False) == [("of dbt:shop", True), ("of gate:silver.orders", True)]
    target.drop_run("d")
    assert checked("e", "dbt:shop", False, anew=True) == [("of dbt:shop", False)]
    connection = target.reader()
    assert connection is not None
    with connection:
        second = ledger.at(connection, str(ORDERS), 2)
        assert second is not None
        assert (second.seq, second.run) == (2, "b")
        assert ledger.at(connection, str(ORDERS), 9) is None


def test_gc_drops_dead_runs_and_never_what_is_published(target: WarehouseTarget, parquet: Parquet) -> None:
    publish(target, "r1", parquet(0, 10))
    target.load(target.clone("dead"), ORDERS, parquet(0, 99), SCHEMA, request("dead", 1))
    alive = target.clone("alive")
    (alive.folder / (FILE + ".wal")).write_bytes(b"")
    (target.root / "000009").mkdir()  # killed before its note was written
    (target.root / "CURRENT.tmp").write_text("0000")
    shutil.copytree(target.root / "000001", target.root / ".drop-000077-x")
    assert set(target.gc(lambda run: run == "alive")) == {"000002", "000009"}
    assert read(target) == (10, 45)
    assert alive.folder.exists()
    assert target.gc(lambda _: False) == ("000003",)
    tidy(target, ["000001"])
    assert WarehouseTarget(target.root / "nowhere").gc(lambda _: False) == ()


def test_a_savepoint_undoes_what_was_not_recorded(target: WarehouseTarget, parquet: Parquet) -> None:
    clone = target.clone("r1")
    target.load(clone, ORDERS, parquet(0, 10), SCHEMA, request("r1", 0))
    asset = AssetId("marts", "log")
    wanted = request("r1", 0, asset, "dbt:marts", schema=Schema(()))

    def build() -> None:
        connection = clone.connect()
        connection.execute("create schema if not exists marts")
        connection.execute("create table if not exists marts.log (id bigint)")
        connection.execute("insert into marts.log select id from silver.orders")
        connection.close()

    def fail() -> None:
        with clone.savepoint(wanted.load):
            build()
            raise ValueError("dbt failed")

    with pytest.raises(ValueError, match="dbt failed"):
        fail()
    assert target.clone("r1") == clone
    with clone.savepoint(wanted.load):
        build()
        made = target.stage_results(clone, [wanted])
    assert made[0].rows == 10
    assert sorted(path.name for path in clone.folder.iterdir()) == [".owner", "stage.json", FILE]


def test_a_ledger_of_a_newer_version_is_refused(target: WarehouseTarget, parquet: Parquet) -> None:
    publish(target, "r1", parquet(0, 10))
    clone = target.clone("r2")
    connection = clone.connect()
    connection.execute("update warehouse._millrace.ledger set entry = replace(entry, '\"format\": 1', '\"format\": 9')")
    with pytest.raises(NewerFormat, match="format 9"):
        ledger.read(connection)
    connection.close()


def test_a_pointer_that_is_not_a_number_is_refused(target: WarehouseTarget) -> None:
    target.root.mkdir()
    (target.root / "CURRENT").write_text("../../etc")
    with pytest.raises(StepFailed, match="not a folder's number"):
        target.current()


READER = """
import sys, duckdb
connection = duckdb.connect(sys.argv[1], read_only=True)
print(connection.execute("select count(*) from silver.orders").fetchall(), flush=True)
sys.stdin.readline()
print(connection.execute("select count(*), sum(id) from silver.orders").fetchall(), flush=True)
"""


def test_a_reader_neither_blocks_nor_is_blocked(target: WarehouseTarget, parquet: Parquet) -> None:
    publish(target, "r1", parquet(0, 10))
    first = target.current()
    with subprocess.Popen(
        [sys.executable, "-c", READER, str(first)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "[(10,)]\n"
        for number in range(2, 6):
            publish(target, f"r{number}", parquet(0, number * 10))
        assert first is not None
        assert not first.exists()  # it was removed; the reader keeps it
        out, _ = reader.communicate("\n", timeout=60)
    assert out == "[(10, 45)]\n"
    assert read(target) == (50, 1225)


POINTS = [
    "warehouse.stage.cloned",
    "warehouse.stage.member",
    "warehouse.prove",
    "warehouse.publish.before_commit",
    "warehouse.publish.after_commit",
]


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("again", ["same run", "new run"])
def test_killed_anywhere_one_more_run_ends_the_same(
    target: WarehouseTarget, parquet: Parquet, child: Start, point: str, again: str
) -> None:
    publish(target, "r1", parquet(0, 10))
    target.gc(lambda _: False)
    arguments = [str(target.root), "killed", *parquet(0, 1000)]
    killed = child(arguments, {"MILLRACE_KILL_AT": point})
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    published = point.endswith("after_commit")
    assert read(target) == ((1000, 499500) if published else (10, 45))
    if again == "new run":
        target.gc(lambda _: False)
        arguments[1] = "next"
    after = child(arguments)
    out, err = after.communicate(timeout=60)
    assert (after.returncode, out, err) == (0, "", "")
    assert read(target) == (1000, 499500)
    entry = target.ledger(ORDERS)
    assert entry is not None
    assert entry.seq == (3 if published and again == "new run" else 2)
    assert target.gc(lambda _: False) == ()
    tidy(target, sorted(path.name for path in target._layout.folders())[-2:])


def _stopped(process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T":
            return
        time.sleep(0.02)
    raise AssertionError("the child did not stop")


@pytest.mark.parametrize("point", POINTS[:3])
@pytest.mark.parametrize("dropped", [False, True])
def test_a_zombie_that_wakes_is_refused(
    target: WarehouseTarget, parquet: Parquet, child: Start, point: str, dropped: bool
) -> None:
    publish(target, "r1", parquet(0, 10))
    zombie = child([str(target.root), "zombie", *parquet(0, 1000)], {"MILLRACE_PAUSE_AT": point})
    _stopped(zombie)
    if dropped:
        target.gc(lambda _: False)
    publish(target, "r2", parquet(0, 20))
    zombie.send_signal(signal.SIGCONT)
    out, err = zombie.communicate(timeout=60)
    assert zombie.returncode == 1, err
    assert out.startswith("SeqMoved"), out
    assert read(target) == (20, 190)
    target.gc(lambda _: False)
    tidy(target, ["000001", "000003"])


def test_a_publisher_that_sleeps_under_the_lock_is_named_and_then_counts(
    target: WarehouseTarget, parquet: Parquet, child: Start
) -> None:
    publish(target, "r1", parquet(0, 10))
    sleeper = child([str(target.root), "sleeper", *parquet(0, 1000)], {"MILLRACE_PAUSE_AT": POINTS[3]})
    _stopped(sleeper)
    with pytest.raises(TargetBusy) as caught, target._layout.lock(0.2):
        pass
    assert f"pid {sleeper.pid} " in caught.value.detail[0]
    sleeper.send_signal(signal.SIGCONT)
    sleeper.communicate(timeout=60)
    assert sleeper.returncode == 0
    assert read(target) == (1000, 499500)


def test_a_run_belongs_to_one_process_at_a_time(target: WarehouseTarget, parquet: Parquet, child: Start) -> None:
    first = child([str(target.root), "both", *parquet(0, 1000)], {"MILLRACE_PAUSE_AT": "warehouse.stage.member"})
    _stopped(first)
    with pytest.raises(TargetBusy) as caught:
        target.clone("both")
    assert f"pid {first.pid} " in caught.value.detail[0]
    first.kill()
    first.communicate(timeout=60)
    staged = target.load(target.clone("both"), ORDERS, parquet(0, 1000), SCHEMA, request("both", 0))
    target.publish([staged], [target.prove(staged)], {ORDERS: 0})
    assert read(target) == (1000, 499500)
    tidy(target, ["000001"])


def test_of_two_racing_publishers_one_wins(target: WarehouseTarget, parquet: Parquet, child: Start) -> None:
    publish(target, "r1", parquet(0, 10))
    racers = [
        child([str(target.root), f"race{n}", *parquet(0, 1000 + n)], {"MILLRACE_PAUSE_AT": "warehouse.prove"})
        for n in (0, 1)
    ]
    for racer in racers:
        _stopped(racer)
    for racer in racers:
        racer.send_signal(signal.SIGCONT)
    outcomes = [(*racer.communicate(timeout=60), racer.returncode) for racer in racers]
    assert sorted((out.split(":")[0], err, code) for out, err, code in outcomes) == [("", "", 0), ("SeqMoved", "", 1)]
    assert read(target)[0] in (1000, 1001)
    assert target.ledger(ORDERS).seq == 2  # type: ignore[union-attr]
    target.gc(lambda _: False)
    assert len(target._layout.folders()) == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
@pytest.mark.root
def test_a_full_disk_leaves_the_old_warehouse(tmp_path: Path, parquet: Parquet) -> None:
    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(place)], check=False).returncode:
        pytest.skip("tmpfs cannot be mounted here")
    try:
        target = WarehouseTarget(place / "warehouse")
        publish(target, "r1", parquet(0, 10))
        with pytest.raises(StepFailed, match="the disk is full"):
            target.load(
                target.clone("r2"), ORDERS, parquet(0, 3_000_000, factor="hash(i) % 1000000"), SCHEMA, request("r2", 1)
            )
        target.drop_run("r2")
        assert publish(target, "r3", parquet(0, 12)).seq == 2
        (place / "filler").write_bytes(b"x" * (shutil.disk_usage(place).free - 100_000))
        with pytest.raises(StepFailed, match="the disk is full"):
            target.clone("r4")
        assert read(target) == (12, 66)
        (place / "filler").unlink()
        assert publish(target, "r5", parquet(0, 13)).seq == 3
        target.gc(lambda _: False)
        tidy(target, [path.name for path in target._layout.folders()])
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_steps_in_several_threads_share_one_clone(target: WarehouseTarget, parquet: Parquet) -> None:
    assets = [AssetId("silver", f"t{number}") for number in range(6)]
    files = parquet(0, 500)

    def one(asset: AssetId) -> Staged:
        return target.load(target.clone("r1"), asset, files, SCHEMA, request("r1", 0, asset))

    with ThreadPoolExecutor(6) as pool:
        staged = list(pool.map(one, assets))
    assert sorted(found.asset for found in target.stages()) == assets
    entries = target.publish(staged, [target.prove(found) for found in staged], dict.fromkeys(assets, 0))
    assert [entry.rows for entry in entries] == [500] * 6
    tidy(target, ["000001"])


def test_a_second_warehouse_object_in_the_process_sees_the_same(target: WarehouseTarget, parquet: Parquet) -> None:
    clone = target.clone("r1")
    other = WarehouseTarget(target.root)
    assert other.clone("r1").folder == clone.folder
    staged = other.load(other.clone("r1"), ORDERS, parquet(0, 10), SCHEMA, request("r1", 0))
    target.publish([staged], [target.prove(staged)], {ORDERS: 0})
    assert other.ledger(ORDERS) is not None
    connection = other.reader()
    assert connection is not None
    with pytest.raises(duckdb.Error, match="read-only"):
        connection.execute("create table x (a int)")
    connection.close()
