"""`step KEY --phase`: every door in a process of its own ends like one process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from filetarget import Shop

from millrace.errors import GateFailed, TargetBusy, UsageError

CHILD = Path(__file__).with_name("filetarget.py")
ALL = {
    "bronze.customers": (1, ["ann", "bob"]),
    "bronze.orders": (1, ["one", "two", "three"]),
    "silver.orders": (1, ["ONE", "TWO", "THREE", "ANN", "BOB"]),
}
RUN = "cafe0001"


def door(shop: Shop, key: str, phase: str, environment: dict[str, str] | None = None) -> dict[str, Any]:
    shop.save()
    done = subprocess.run(
        [sys.executable, CHILD, str(shop.root), json.dumps({"key": key, "phase": phase, "run": RUN})],
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return {"code": done.returncode, **(json.loads(done.stdout.splitlines()[-1]) if done.stdout.strip() else {})}


def here(shop: Shop, key: str, phase: str):
    outcomes = shop.engine().phase(shop.plan, key, RUN, phase)
    return next(outcome for outcome in outcomes if outcome.key == key)


def test_three_processes_end_like_one(shop: Shop) -> None:
    for step in shop.steps:
        seen = [door(shop, step.key, phase)["status"] for phase in ("stage", "prove", "publish")]
        assert seen == ["staged", "proven", "published"]
    assert shop.state() == ALL
    assert shop.lake.leftovers() == []
    journal = shop.journal()
    assert journal.run(RUN).status == "done"
    row = journal.last("model:silver.orders")
    assert row is not None
    assert (row.phase, row.rows, row.entries[0].run) == ("published", 5, RUN)
    assert [step.status for step in shop.run().steps] == ["fresh"] * 3


@pytest.mark.slow
def test_a_group_in_processes_is_published_by_its_last_member(shop: Shop) -> None:
    shop.together()
    for step in shop.steps:
        assert door(shop, step.key, "stage")["status"] == "staged"
        assert door(shop, step.key, "prove")["status"] == "proven"
        if step is not shop.steps[-1]:
            answer = door(shop, step.key, "publish")
            assert (answer["code"], answer["status"]) == (0, "proven")
            assert "silver.orders (waiting)" in answer["message"]
    assert shop.state() == {}
    assert [door(shop, step.key, "publish")["status"] for step in reversed(shop.steps)] == ["passed"] + [
        "published"
    ] * 3
    assert shop.state() == ALL
    assert shop.lake.leftovers() == []
    assert shop.journal().run(RUN).status == "done"


def test_all_phases_in_one_call(shop: Shop) -> None:
    for step in shop.steps:
        assert here(shop, step.key, None).status == "published"
    assert shop.state() == ALL


def test_fresh_steps_stay_fresh_in_all_phases(shop: Shop) -> None:
    shop.run()
    key = shop.steps[0].key
    assert [here(shop, key, phase).status for phase in ("stage", "prove", "publish")] == ["fresh"] * 3


def test_doors_are_taken_in_order(shop: Shop) -> None:
    key = shop.steps[0].key
    with pytest.raises(UsageError, match=r"bronze\.orders is not staged in run cafe0001: it is waiting") as caught:
        here(shop, key, "prove")
    assert "--phase stage" in str(caught.value)
    here(shop, key, "stage")
    with pytest.raises(UsageError, match="is not proven in run cafe0001: it is staged"):
        here(shop, key, "publish")
    with pytest.raises(UsageError, match="no phase 'proof'"):
        here(shop, key, "proof")
    with pytest.raises(UsageError) as caught:
        here(shop, "copy:bronze.order", "stage")
    assert 'did you mean "copy:bronze.orders"?' in str(caught.value)


@pytest.mark.parametrize(
    ("phase", "point"),
    [("stage", "file.stage.row"), ("stage", "engine.staged"), ("prove", "file.prove"), ("prove", "engine.proven"),
     ("publish", "engine.before_publish"), ("publish", "file.publish.before_commit"),
     ("publish", "file.publish.after_commit"), ("publish", "engine.after_publish")],
)  # fmt: skip
@pytest.mark.slow
def test_a_killed_phase_is_called_again(shop: Shop, phase: str, point: str) -> None:
    shop.steps = shop.steps[:1]
    key = shop.steps[0].key
    for name in ("stage", "prove", "publish"):
        if name == phase:
            assert door(shop, key, name, {"MILLRACE_KILL_AT": point})["code"] == -signal.SIGKILL
        assert door(shop, key, name)["code"] == 0
    assert shop.state() == {"bronze.orders": ALL["bronze.orders"]}
    assert shop.lake.leftovers() == []


def test_another_run_leaves_stages_between_phases_alone(shop: Shop) -> None:
    here(shop, shop.steps[0].key, "stage")
    shop.steps, everything = shop.steps[1:2], shop.steps
    shop.run()
    shop.steps = everything
    assert here(shop, shop.steps[0].key, "prove").status == "proven"
    assert here(shop, shop.steps[0].key, "publish").status == "published"


def test_discard_drops_what_the_group_staged(shop: Shop) -> None:
    shop.together()
    shop.orders.write_text("bad\n")
    for step in shop.steps:
        here(shop, step.key, "stage")
        outcome = here(shop, step.key, "prove")
    assert isinstance(outcome.error, GateFailed)
    assert (
        here(shop, shop.steps[0].key, "publish").message
        == "published with its group, which waits for silver.orders (failed)"
    )
    assert shop.lake.leftovers() != []
    assert here(shop, shop.steps[0].key, "discard").status == "discarded"
    assert shop.lake.leftovers() == []
    assert shop.state() == {}
    assert shop.journal().run(RUN).status == "failed"


def test_a_failed_gate_can_be_proven_again(shop: Shop) -> None:
    shop.together()
    shop.failing(2, "TransientFailure", times=3, door="prove")
    for step in shop.steps:
        here(shop, step.key, "stage")
        here(shop, step.key, "prove")
    assert here(shop, shop.steps[2].key, "prove").status == "proven"
    assert here(shop, shop.steps[3].key, "prove").status == "proven"
    assert here(shop, shop.steps[1].key, "publish").status == "published"
    assert shop.state() == ALL


def test_a_phase_names_the_living_run_that_is_at_it(shop: Shop) -> None:
    engine = shop.engine()
    from millrace.engine.leases import Leases

    with Leases(engine.journal, "beef0001") as leases:
        leases.acquire([f"shop/dev/{shop.steps[0].key}"], "x")
        with pytest.raises(TargetBusy, match="by run beef\\n"):
            engine.phase(shop.plan, shop.steps[0].key, RUN, "stage")
