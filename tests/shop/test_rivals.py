"""Two runs at once, and one that slept while another took its place: the data is right, and the loser says who won."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from .house import CHANGES, Bases, Child, Done, House

pytestmark = [pytest.mark.servers, pytest.mark.slow]

TTL = {"MILLRACE_LEASE_TTL": "1"}


def named(done: Done, house: House, first: Child) -> None:
    """The refusal says which run is there, where, which process, and since when."""
    assert done.code == 1, done.all
    run = house.journal("select id from runs order by started limit 1 offset (select count(*) - 2 from runs)")[0][0]
    assert f"run {run[:4]}\n" in done.all
    assert f"on {socket.gethostname()}, pid {first.pid}, since 2" in done.all


def settled(house: House, bases: Bases, kind: str) -> None:
    """At most one more run, and nothing is left."""
    assert house.state() == bases.undisturbed(kind, changed=True)
    house.again()
    assert house.state() == bases.undisturbed(kind, changed=True), "nothing is applied twice"
    assert house.leftovers() == []


@pytest.mark.parametrize(
    ("kind", "point"),
    [
        ("lake", "lake.stage.closed"),
        ("lake", "lake.publish.before_commit:4"),
        ("postgres", "postgres.stage.closed"),
        ("dbt", "warehouse.stage.member"),
    ],
)
def test_the_second_of_two_runs_refuses(bases: Bases, tmp_path: Path, kind: str, point: str) -> None:
    with bases.copy(kind, tmp_path, ran=True) as house:
        house.source(CHANGES)
        first = house.start(MILLRACE_PAUSE_AT=point).paused()
        second = house.run()
        named(second, house, first)
        done = first.resumed()
        assert done.code == 0, done.all
        settled(house, bases, kind)


@pytest.mark.parametrize(
    ("kind", "point"),
    [
        ("lake", "engine.before_publish"),
        ("lake", "engine.before_publish:4"),
        ("lake", "lake.publish.before_commit"),
        ("postgres", "engine.before_publish"),
        ("postgres", "postgres.publish.before_commit"),
        ("dbt", "engine.before_publish:3"),
        ("dbt", "warehouse.stage.member:2"),
    ],
)
def test_a_zombie_is_refused(bases: Bases, tmp_path: Path, kind: str, point: str) -> None:
    with bases.copy(kind, tmp_path, ran=True) as house:
        house.source(CHANGES)
        zombie = house.start(**TTL, MILLRACE_PAUSE_AT=point).paused()
        time.sleep(1.2)
        house.ok(**TTL)
        won = house.state()
        assert won == bases.undisturbed(kind, changed=True)
        done = zombie.resumed()
        assert done.code == 1, done.all
        assert "Traceback" not in done.all
        assert any(words in done.all for words in ("taken over", "another run", "by run", "someone else")), done.all
        assert house.state() == won
        assert zombie.strays() == []
        settled(house, bases, kind)
