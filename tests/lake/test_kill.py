"""Killed anywhere, raced, asleep: one more run ends in the rows of an undisturbed run, and nothing is left."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from dataclasses import replace

import pyarrow as pa
import pytest

from millrace.core.position import Whole
from millrace.core.segment import Segment
from millrace.errors import SeqMoved, StepFailed, TargetBusy
from millrace.lake.rowhash import digest_table

POINTS = [
    "lake.stage.file",
    "lake.stage.file:3",
    "lake.stage.closed",
    "lake.prove",
    "lake.publish.before_commit",
    "lake.publish.after_commit",
]
ALL = list(range(200))


def killed(process: subprocess.Popen[str]) -> None:
    _, error = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, error


def stopped(process: subprocess.Popen[str]) -> None:
    """Wait until a process has stopped itself."""
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status), process.stderr and process.stderr.read()


def keys(lake) -> list[int]:
    return [row[0] for row in sorted(lake.rows())]


def nothing_left(lake, loads: int) -> None:
    lake.target.gc(lambda run: False)
    assert not lake.target.gc(lambda run: False), "a second look finds nothing more"
    names = lake.everything()
    listed = {path.rpartition("/")[2] for seq in range(1, loads + 1) for path in lake.target.files(lake.asset, seq)}
    assert {name for name in names if not name.startswith("_millrace")} == listed
    assert [name for name in names if name.startswith("_millrace")] == sorted(
        name for name in names if name.startswith("_millrace/loads/")
    )
    assert len([name for name in names if name.startswith("_millrace/loads/")]) == loads


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize(("retry", "base"), [(True, 0), (False, 1)], ids=["same run, new table", "another run"])
def test_killed_then_run_again(lake, child, part, point, retry, base):
    if base:
        lake.put(1, part(0))
    killed(child("load_parts", 7, MILLRACE_KILL_AT=point))
    if base and point != "lake.publish.after_commit":
        assert keys(lake) == ALL[:50], "the last good version stays"
    entry = lake.load_parts(7 if retry else 8)
    assert keys(lake) == ALL
    committed = point == "lake.publish.after_commit"
    assert entry.seq == base + 1 + (committed and not retry)
    if point == "lake.stage.file:3" or (point in POINTS[2:5]):
        assert lake.kept, "whole segments are taken over"
    nothing_left(lake, entry.seq)
    assert keys(lake) == ALL


def test_segments_that_changed_meanwhile_are_written_again(lake, child, part):
    killed(child("load_parts", 7, MILLRACE_KILL_AT="lake.prove"))
    stage = lake.target.open_stage(lake.request(8))
    done = stage.done()
    assert len(done) == 4
    assert len(list(lake.target.stages())) == 1
    stage.drop(["range:1", "range:2", "never heard of"])
    other = part(0).set_column(1, "name", pa.array(["other"] * 50))
    stage.write(Segment("range:1", "range", 1), other.to_reader(), digest_table(other, lake.schema))
    lake.publish(stage.close(Whole()))
    assert sorted({row[1] for row in lake.rows() if row[0] < 50}) == sorted(
        {"other", *(f"name {key}" for key in range(50))}
    )
    assert len(lake.rows()) == 150
    nothing_left(lake, 1)


def test_what_is_not_confirmed_is_not_taken(lake, child, part):
    killed(child("load_parts", 7, MILLRACE_KILL_AT="lake.prove"))
    for load in (7, 8):
        stage = lake.target.open_stage(lake.request(load))
        stage.write(Segment.whole(), part(3).to_reader(), digest_table(part(3), lake.schema))
        staged = stage.close(Whole())
        assert staged.rows == 50
        lake.target.prove(staged)


def test_a_stage_upon_another_version_is_not_taken(lake, child, part):
    killed(child("load_parts", 7, MILLRACE_KILL_AT="lake.prove"))
    lake.put(1, part(0))
    for load in (7, 8):
        assert lake.target.open_stage(lake.request(load)).done() == {}
    lake.schema = replace(lake.schema, key=())
    assert lake.target.open_stage(lake.request(9, base=0)).done() == {}


def test_gc_leaves_live_runs_alone(lake, child):
    killed(child("load_parts", 7, "first", MILLRACE_KILL_AT="lake.publish.before_commit"))
    killed(child("load_parts", 8, "second", MILLRACE_KILL_AT="lake.stage.closed"))
    before = lake.everything()
    assert lake.target.gc(lambda run: True) == []
    assert lake.everything() == before
    dropped = lake.target.gc(lambda run: run == "first")
    assert all("/8" in name for name in dropped)
    (staged,) = lake.target.stages()
    assert staged.run == "first"
    lake.publish(staged)
    assert keys(lake) == ALL
    nothing_left(lake, 1)


@pytest.mark.slow
@pytest.mark.parametrize("base", [0, 1])
def test_two_racing_processes(lake, child, part, base):
    """Both are stopped right before their commits and let go at once: exactly one is published."""
    if base:
        lake.put(1, part(0))
    processes = [child("load_parts", load, MILLRACE_PAUSE_AT="lake.publish.before_commit") for load in (7, 8)]
    for process in processes:
        stopped(process)
    for process in processes:
        process.send_signal(signal.SIGCONT)
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert sorted(process.returncode for process in processes) == [0, 1]
    assert "SeqMoved" in "".join(errors)
    assert keys(lake) == ALL
    assert lake.target.ledger(lake.asset).seq == base + 1
    nothing_left(lake, base + 1)


@pytest.mark.parametrize("base", [0, 1])
def test_racing_threads(lake, together, part, base):
    if base:
        lake.put(1, part(1))
    staged = [lake.stage(load, part(0)) for load in range(10, 14)]
    proofs = [lake.target.prove(one) for one in staged]
    results = together(
        *[
            lambda one=one, proof=proof: lake.target.publish([one], [proof], {lake.asset: base})
            for one, proof in zip(staged, proofs, strict=True)
        ]
    )
    assert len([result for result in results if isinstance(result, SeqMoved)]) == 3, results
    assert keys(lake) == list(range(50))
    nothing_left(lake, base + 1)


def test_racing_replacements_of_the_columns(lake, together, part):
    lake.put(1, part(1))
    lake.schema = replace(lake.schema, columns=lake.schema.columns[:2])
    data = part(0).drop_columns(["price"])
    staged = [lake.stage(load, data) for load in range(10, 14)]
    proofs = [lake.target.prove(one) for one in staged]
    results = together(
        *[
            lambda one=one, proof=proof: lake.target.publish([one], [proof], {lake.asset: 1})
            for one, proof in zip(staged, proofs, strict=True)
        ]
    )
    assert len([result for result in results if isinstance(result, SeqMoved)]) == 3, results
    assert keys(lake) == list(range(50))
    nothing_left(lake, 2)


def test_a_zombie_that_wakes_later_is_refused(lake, child, part):
    zombie = child("load_parts", 7, MILLRACE_PAUSE_AT="lake.publish.before_commit")
    stopped(zombie)
    lake.load_parts(8)
    lake.put(9, part(0), "append")
    assert lake.target.gc(lambda run: False) == [], "somebody still holds the table"
    zombie.send_signal(signal.SIGCONT)
    _, error = zombie.communicate(timeout=60)
    assert zombie.returncode == 1
    assert "SeqMoved" in error
    assert len(lake.rows()) == 250
    nothing_left(lake, 2)


def test_a_zombie_whose_files_were_cleaned_up_is_refused(lake, child, part):
    zombie = child("load_parts", 7, MILLRACE_PAUSE_AT="lake.prove")
    stopped(zombie)
    lake.target.gc(lambda run: False)
    zombie.send_signal(signal.SIGCONT)
    _, error = zombie.communicate(timeout=60)
    assert "ProofFailed" in error
    assert lake.target.ledger(lake.asset) is None
    staged = lake.stage(8, part(0))
    proof = lake.target.prove(staged)
    lake.target.discard(staged)
    with pytest.raises(SeqMoved, match="given up"):
        lake.target.publish([staged], [proof], {lake.asset: 0})
    assert lake.target.ledger(lake.asset) is None
    nothing_left(lake, 0)


def test_a_lock_that_is_held_says_so(lake, part):
    folder = lake.target.folder(lake.asset)
    with folder.lock(), pytest.raises(TargetBusy, match="publishes"), folder.lock(exclusive=True, wait=0.05):
        pass
    with folder.lock(), folder.lock():
        pass


@pytest.mark.parametrize(
    "point", ["lake.stage.file:2", "lake.stage.closed", "lake.publish.before_commit", "lake.publish.after_commit"]
)
def test_a_killed_upsert(lake, child, part, point):
    lake.put(1, part(0))
    lake.put(2, part(1), "append")
    killed(child("upsert_part", 7, MILLRACE_KILL_AT=point))
    entry = lake.upsert_part(7)
    assert (entry.seq, entry.rows, entry.counts.updated) == (3, 101, 10)
    assert sorted(row[0] for row in lake.rows()) == [*range(100), 500]
    assert len([row for row in lake.rows() if row[1] == "changed"]) == 11
    lake.target.gc(lambda run: False)
    names = [name for name in lake.everything() if "stages" in name or "changes" in name]
    assert names == ["_millrace/changes/3-7.after.parquet", "_millrace/changes/3-7.before.parquet"]
    data = [name for name in lake.everything() if not name.startswith("_millrace")]
    assert len(data) == 4, "two old files, the rewritten one and the inserts"


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk: run as root")
def test_a_full_disk(tmp_path, lake, part):
    lake.target.root.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(lake.target.root)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"no small disk can be mounted here: {done.stderr.strip()}")
    try:
        lake.put(1, part(0))
        wide = pa.table(
            {
                "id": range(4000),
                "name": [os.urandom(300).hex() for _ in range(4000)],
                "price": pa.nulls(4000, pa.decimal128(12, 2)),
            }
        )
        with pytest.raises(StepFailed, match="the disk is full") as caught:
            lake.stage(2, wide)
        assert "free some space" in str(caught.value)
        assert keys(lake) == list(range(50))
        lake.target.gc(lambda run: False)
        assert lake.put(3, part(1), "append").rows == 100
        staged = lake.stage(4, part(2), "append")
        proof = lake.target.prove(staged)
        filler = lake.target.root / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(b"x" * 512):
                pass
        with pytest.raises(StepFailed, match="the disk is full"):
            lake.target.publish([staged], [proof], {lake.asset: 2})
        assert len(keys(lake)) == 100
        filler.unlink()
        lake.target.publish([staged], [proof], {lake.asset: 2})
        assert len(keys(lake)) == 150
    finally:
        subprocess.run(["umount", str(lake.target.root)], check=False)
