"""The target's doors with more than one table, two ledgers in one database, and names of parts of a new table."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from millrace.core.names import AssetId
from millrace.core.staged import Proof, Staged
from millrace.errors import GuardRefused, NewerFormat, ProofFailed, SeqMoved
from millrace.postgres.session import database_from_url
from millrace.postgres.target import PostgresTarget

STEPS = Path(__file__).parents[1] / "steps"
sys.path.insert(0, str(STEPS))
from doors import Copy, execute, leftovers, rows  # noqa: E402


@pytest.fixture
def two(db15: str, db18: str) -> tuple[Copy, Copy]:
    execute(
        db15,
        "create table a (id int primary key, v text)",
        "create table b (id bigint generated always as identity primary key, v text)",
        "insert into a select i, 'a' || i from generate_series(1, 100) i",
        "insert into b (v) select 'b' || i from generate_series(1, 50) i",
    )
    one, other = Copy(db15, db18, table="a"), Copy(db15, db18, table="b")
    other.target = one.target
    return one, other


def staged(copies: tuple[Copy, Copy]) -> tuple[list[Staged], list[Proof], dict[AssetId, int]]:
    found = [one for copy in copies for one in copy.stage()]
    return found, [copies[0].target.prove(one) for one in found], {one.asset: one.base for one in found}


def test_a_group_becomes_visible_at_once(two: tuple[Copy, Copy]) -> None:
    everything, proofs, expect = staged(two)
    url = two[0].urls[1]
    assert len(list(two[0].target.stages())) == 2
    entries = two[0].target.publish(everything, proofs, expect)
    assert [(entry.asset.name, entry.rows) for entry in entries] == [("a", 100), ("b", 50)]
    assert rows(url, "select (select count(*) from a), (select count(*) from b)") == [(100, 50)]
    assert rows(url, "select pg_get_serial_sequence('b', 'id'), nextval('b_id_seq')") == [("public.b_id_seq", 51)]
    assert leftovers(url) == []


def test_a_group_is_refused_at_once(two: tuple[Copy, Copy]) -> None:
    everything, proofs, expect = staged(two)
    url = two[0].urls[1]
    execute(url, "create table b (mine int)")
    with pytest.raises(GuardRefused):
        two[0].target.publish(everything, proofs, expect)
    assert rows(url, "select to_regclass('a')") == [(None,)]
    assert two[0].target.ledger(AssetId("public", "a")) is None
    for one in everything:
        two[0].target.discard(one)
        two[0].target.discard(one)
    assert leftovers(url) == []


def test_what_is_not_proven_is_not_published(two: tuple[Copy, Copy]) -> None:
    everything, proofs, expect = staged(two)
    target = two[0].target
    with pytest.raises(ProofFailed, match="was not proven"):
        target.publish(everything, proofs[:1], expect)
    with pytest.raises(SeqMoved):
        target.publish(everything, proofs, {**expect, everything[0].asset: 4})
    for one in everything:
        target.discard(one)


def test_a_stage_that_differs_is_not_proven(two: tuple[Copy, Copy]) -> None:
    (one,) = two[0].stage()
    execute(two[0].urls[1], f"update {one.place} set v = 'changed' where id = 5")
    with pytest.raises(ProofFailed, match="is not what the source holds"):
        two[0].target.prove(one)
    two[0].target.discard(one)
    assert leftovers(two[0].urls[1]) == []


def test_a_staged_value_survives_json(two: tuple[Copy, Copy]) -> None:
    (one,) = two[0].stage()
    same = Staged.from_json(one.to_json())
    elsewhere = PostgresTarget(database_from_url(two[0].urls[1], "DST"), "dst")
    proof = Proof.from_json(elsewhere.prove(same).to_json())
    (entry,) = elsewhere.publish([same], [proof], {same.asset: 0})
    assert entry.rows == 100
    two[0].target.discard(one)
    assert leftovers(two[0].urls[1]) == []


def test_names_that_are_taken_do_not_stop_a_publish(two: tuple[Copy, Copy]) -> None:
    url = two[1].urls[1]
    execute(url, "create table b_pkey (i int)", "create sequence b_id_seq")
    assert two[1].run() is not None
    assert rows(url, "select count(*) from b") == [(50,)]
    assert rows(url, "insert into b (v) values ('x') returning id") == [(51,)]


def test_two_ledgers_in_one_database(two: tuple[Copy, Copy]) -> None:
    one = two[0]
    other = Copy(*one.urls, replace(one.spec, asset=AssetId("other", "a")))
    other.target = PostgresTarget(database_from_url(one.urls[1], "DST"), "dst", "_other")
    (left,) = other.stage()
    assert one.run() is not None
    assert one.target.gc(lambda run: False) == []
    assert other.publish((left,), other.prove((left,))).seq == 1
    assert rows(one.urls[1], "select count(*) from other.a") == [(100,)]


def test_newer_stages_and_ledgers_are_refused(two: tuple[Copy, Copy]) -> None:
    one = two[0]
    (left,) = one.stage()
    execute(one.urls[1], "update _millrace.stage set staged = jsonb_set(staged, '{format}', '9')")
    with pytest.raises(NewerFormat):
        list(one.target.stages())
    execute(one.urls[1], "update _millrace.format set version = 9")
    for call in (one.run, one.fresh, lambda: one.target.gc(lambda run: False), lambda: one.target.discard(left)):
        with pytest.raises(NewerFormat):
            call()
    one.target._stop_heart(left)


def test_a_target_without_a_ledger_is_only_looked_at(db18: str) -> None:
    target = PostgresTarget(database_from_url(db18, "DST"), "dst")
    assert target.ledger(AssetId("public", "t")) is None
    assert list(target.stages()) == []
    assert target.gc(lambda run: False) == []
    with psycopg.connect(db18) as connection:
        found: Any = connection.execute("select 1 from pg_namespace where nspname like '%millrace%'").fetchone()
    assert found is None
    assert importlib.util.find_spec("millrace.postgres.target") is not None
