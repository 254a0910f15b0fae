"""`millrace step KEY --phase …`, each phase in a process of its own, ends like one run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from .house import CHANGES, Bases, House

pytestmark = [pytest.mark.servers, pytest.mark.slow]

RUN = "5eed0001"
STEPS = {"lake": "copy:bronze.orders", "postgres": "copy:raw.orders"}
GROUP = ("load:silver.orders", "dbt:dbt", "gate:marts.agg_days")


def phase(house: House, key: str, name: str, **environment: str) -> list[tuple[str, str]]:
    out = house.ok("step", key, "--run", RUN, "--phase", name, "--json", **environment)
    return [(outcome["key"], outcome["status"]) for outcome in json.loads(out)]


def only(state: dict[str, Any], words: str) -> dict[str, Any]:
    return {name: rows for name, rows in state.items() if name.startswith(words)}


@pytest.mark.parametrize("kind", ["lake", "postgres"])
def test_three_processes_end_like_one_run(bases: Bases, tmp_path: Path, kind: str) -> None:
    key = STEPS[kind]
    name = {"lake": "lake bronze.orders", "postgres": "postgres raw.orders"}[kind]
    with bases.copy(kind, tmp_path, ran=True) as house:
        house.source(CHANGES)
        before = house.state()
        assert phase(house, key, "stage") == [(key, "staged")]
        assert house.state() == before
        assert phase(house, key, "prove") == [(key, "proven")]
        assert house.state() == before
        assert phase(house, key, "publish") == [(key, "published")]
        assert only(house.state(), name) == only(bases.undisturbed(kind, changed=True), name)
        after = house.state()
        assert phase(house, key, "publish") == [(key, "published")], "an orchestrator may repeat a task"
        assert house.state() == after
        assert house.leftovers() == []
        house.again()  # the other steps
        assert house.state() == bases.undisturbed(kind, changed=True)


@pytest.mark.parametrize("kind", ["lake", "postgres"])
def test_discard_leaves_nothing(bases: Bases, tmp_path: Path, kind: str) -> None:
    key = STEPS[kind]
    with bases.copy(kind, tmp_path, ran=True) as house:
        house.source(CHANGES)
        before = house.state()
        phase(house, key, "stage")
        assert house.leftovers() != []
        phase(house, key, "prove")
        assert phase(house, key, "discard") == [(key, "discarded")]
        assert house.state() == before
        assert house.leftovers() == []
        refused = house.run("step", key, "--run", RUN, "--phase", "publish")
        assert refused.code == 2, refused.all
        assert "is not proven" in refused.err


@pytest.mark.parametrize(
    ("kind", "name", "point"),
    [
        ("lake", "stage", "lake.stage.closed"),
        ("lake", "publish", "lake.publish.after_commit"),
        ("postgres", "publish", "postgres.publish.after_commit"),
    ],
)
def test_a_killed_phase_is_repeated(bases: Bases, tmp_path: Path, kind: str, name: str, point: str) -> None:
    """An orchestrator runs the phase again that was killed, and goes on."""
    key = STEPS[kind]
    wanted = {"lake": "lake bronze.orders", "postgres": "postgres raw.orders"}[kind]
    with bases.copy(kind, tmp_path, ran=True) as house:
        house.source(CHANGES)
        for one in ("stage", "prove", "publish"):
            if one == name:
                done = house.run("step", key, "--run", RUN, "--phase", one, MILLRACE_KILL_AT=point)
                assert done.code == -9, done.all
            phase(house, key, one)
        assert only(house.state(), wanted) == only(bases.undisturbed(kind, changed=True), wanted)
        assert house.leftovers() == []


def test_a_warehouse_group(bases: Bases, tmp_path: Path) -> None:
    """Each member is a task of its own; the last publish makes all of them visible at once."""
    with bases.copy("dbt", tmp_path, ran=True) as house:
        house.source(CHANGES)
        house.again("+silver.orders")
        before = house.state()
        for key in GROUP:
            phase(house, key, "stage")
            phase(house, key, "prove")
            assert house.state() == before
        assert phase(house, GROUP[0], "publish")[0][1] == "published"
        assert only(house.state(), "warehouse") == only(bases.undisturbed("dbt", changed=True), "warehouse")
        assert phase(house, GROUP[1], "publish")[0] == (GROUP[1], "published"), "its task comes later, and is done"
        house.ok("step", "page:days", "--run", RUN)  # all phases in one process
        assert house.state() == bases.undisturbed("dbt", changed=True)
        assert house.leftovers() == []


def test_a_warehouse_group_is_discarded(bases: Bases, tmp_path: Path) -> None:
    with bases.copy("dbt", tmp_path, ran=True) as house:
        house.source(CHANGES)
        house.again("+silver.orders")
        before = house.state()
        phase(house, GROUP[0], "stage")
        assert house.leftovers() != []
        phase(house, GROUP[0], "discard")
        assert house.leftovers() == []
        assert house.state() == before
