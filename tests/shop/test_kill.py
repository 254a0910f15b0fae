"""Killed at each named point, in first loads and in later ones: one more run ends in the rows of an undisturbed one."""

from __future__ import annotations

from pathlib import Path

import pytest

from .house import CHANGES, Bases, House

pytestmark = [pytest.mark.servers, pytest.mark.slow]

ORDERS, CUSTOMERS, MODEL, PAGE = "copy:bronze.orders", "copy:bronze.customers", "model:silver.orders", "page:days"
LOAD, DBT, GATE = "load:silver.orders", "dbt:dbt", "gate:marts.agg_days"

FIRST = [
    ("lake.stage.file:2", ORDERS),
    ("lake.stage.closed", ORDERS),
    ("engine.staged", ORDERS),
    ("lake.prove", ORDERS),
    ("engine.proven", ORDERS),
    ("engine.before_publish", ORDERS),
    ("lake.publish.before_commit", ORDERS),
    ("lake.publish.after_commit", ORDERS),
    ("engine.after_publish", ORDERS),
    ("engine.done", ORDERS),
    ("lake.publish.after_commit:4", MODEL),
]
LATER = [
    ("lake.stage.closed", ORDERS),
    ("lake.publish.before_commit", ORDERS),
    ("lake.publish.after_commit", ORDERS),
    ("lake.publish.before_commit:2", CUSTOMERS),
    ("lake.publish.after_commit:2", CUSTOMERS),
    ("lake.stage.closed:4", MODEL),
    ("lake.prove:4", MODEL),
    ("lake.publish.before_commit:4", MODEL),
    ("lake.publish.after_commit:4", MODEL),
    ("engine.after_publish:4", MODEL),
]


def killed(house: House, point: str, step: str) -> None:
    done = house.run(MILLRACE_KILL_AT=point)
    assert done.code == -9, done.all
    assert house.reached() == step


def as_if_nothing_had_happened(house: House, bases: Bases, kind: str, *, changed: bool) -> None:
    """Exactly one more run."""
    print(house.again())  # pytest shows it with a failure
    assert house.state() == bases.undisturbed(kind, changed=changed)
    assert house.leftovers() == []
    assert set(house.again().values()) == {"fresh"}


@pytest.mark.parametrize(("point", "step"), FIRST)
def test_a_first_load_into_the_lake(bases: Bases, tmp_path: Path, point: str, step: str) -> None:
    with bases.copy("lake", tmp_path, ran=False) as house:
        killed(house, point, step)
        as_if_nothing_had_happened(house, bases, "lake", changed=False)


@pytest.mark.parametrize(("point", "step"), LATER)
def test_changes_in_the_lake(bases: Bases, tmp_path: Path, point: str, step: str) -> None:
    with bases.copy("lake", tmp_path, ran=True) as house:
        house.source(CHANGES)
        killed(house, point, step)
        as_if_nothing_had_happened(house, bases, "lake", changed=True)


@pytest.mark.parametrize(
    ("point", "step"),
    [
        ("warehouse.stage.cloned", LOAD),
        ("warehouse.publish.after_commit", GATE),
    ],
)
def test_a_first_load_into_the_warehouse(bases: Bases, tmp_path: Path, point: str, step: str) -> None:
    with bases.copy("dbt", tmp_path, ran=False) as house:
        killed(house, point, step)
        as_if_nothing_had_happened(house, bases, "dbt", changed=False)


@pytest.mark.parametrize(
    ("point", "step"),
    [
        ("warehouse.stage.member", LOAD),
        ("warehouse.stage.member:2", DBT),
        ("warehouse.prove:2", DBT),
        ("warehouse.publish.before_commit", GATE),
        ("warehouse.publish.after_commit", GATE),
        ("engine.after_publish:3", GATE),
        ("pages.publish.replaced", PAGE),
        ("pages.publish.after_commit", PAGE),
    ],
)
def test_changes_in_the_warehouse(bases: Bases, tmp_path: Path, point: str, step: str) -> None:
    with bases.copy("dbt", tmp_path, ran=True) as house:
        house.source(CHANGES)
        killed(house, point, step)
        as_if_nothing_had_happened(house, bases, "dbt", changed=True)
