"""Values that a lake cannot hold: their rows are set aside, the others published, and the sums are proven."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from lakes import Lake, T

from millrace.app import open_house
from millrace.app.quarantine import replay
from millrace.errors import MillraceError

pytestmark = pytest.mark.servers

TABLE = """
create table t (id int primary key, d date not null, n numeric(8, 2), v text, changed timestamptz, gone bool);
insert into t select i, date '2026-01-01' + i, i, 'v' || i, '2026-01-01'::timestamptz + i * interval '1 s', false
  from generate_series(1, 300) i;
update t set d = 'infinity' where id = 3;
update t set n = 'NaN', d = '4713-01-01 BC' where id = 4;
"""


@pytest.fixture
def lake(db18: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lake]:
    monkeypatch.setenv("SRC", db18)
    found = Lake(tmp_path, db18)
    found.execute(TABLE)
    yield found
    found.source.close()


MODES = {
    "full": "mode: full",
    "incremental": "mode: incremental, cursor: changed, soft_delete: gone, verify: never",
    "scrubbed": "mode: incremental, cursor: changed, verify: {every: 1s}",
}


@pytest.mark.parametrize("mode", MODES)
def test_rows_with_values_that_do_not_fit_are_set_aside(lake: Lake, mode: str) -> None:
    lake.copy(MODES[mode])
    assert lake.good() == "published: 2 rows → quarantine"
    assert (lake.rows().keys() & {3, 4}, lake.sums()) == (set(), (300, 298, 2, 0))
    bad = lake.entries()
    assert bad["3"].reason == "d is infinity, a lake takes the years 0001 to 9999"
    assert (
        bad["4"].reason
        == "d is 4713-01-01 BC, a lake takes the years 0001 to 9999; n is NaN, a lake takes finite decimals"
    )
    assert (bad["4"].rule, bad["4"].column, bad["4"].row["v"]) == ("fits", "d", "v4")
    assert json.loads(bad["4"].bytes or b"") == {"d": "4713-01-01 BC", "n": "NaN"}
    if mode != "scrubbed":
        assert lake.run().steps[0].status == "fresh"
    assert lake.verified()
    lake.execute(
        "update t set d = '2026-05-05', changed = now() where id = 3",
        "update t set d = '-infinity', changed = now() where id = 4",
        "update t set d = 'infinity', changed = now(), gone = id = 7 where id in (7, 8)",
    )
    assert lake.good().startswith("published: ")
    away = {"4", "8"} if mode == "incremental" else {"4", "7", "8"}
    assert lake.entries().keys() == away
    assert str(lake.rows()[3]["d"]) == "2026-05-05", "mended at the source: it comes by itself"
    assert lake.rows().keys().isdisjoint({4, 7, 8})
    assert lake.entries()["4"].id != bad["4"].id, "another value is another row"
    assert lake.verified() or mode == "incremental"
    lake.good(full_refresh=True)
    assert lake.entries().keys() == away
    assert lake.sums()[0] == (299 if mode == "incremental" else 300)


def test_a_scrub_finds_values_that_came_without_a_new_cursor(lake: Lake) -> None:
    lake.copy("mode: incremental, cursor: changed, verify: {every: 1s}")
    lake.good()
    lake.execute("alter table t set (autovacuum_enabled = off)", "update t set d = 'infinity' where id = 9")
    lake.good()
    assert lake.entries().keys() == {"3", "4", "9"}
    assert 9 not in lake.rows()


def test_such_rows_are_replayed_with_values_or_not_at_all(lake: Lake) -> None:
    lake.copy("mode: full")
    lake.good()
    with open_house(lake.folder) as house:
        (step,) = replay(house, T, ["" + lake.entries()["4"].id], {"n": "1.50"}).steps
    assert "d is 4713-01-01 BC" in str(step.error)
    with open_house(lake.folder) as house:
        replay(house, T, [lake.entries()["4"].id], {"n": "1.50", "d": "2026-02-02"})
    assert (str(lake.rows()[4]["n"]), lake.sums()) == ("1.50", (300, 299, 1, 1))
    assert lake.run().steps[0].status == "fresh"
    lake.execute("update t set v = 'other' where id = 9")
    lake.good()
    assert lake.sums() == (300, 299, 1, 1)
    assert lake.verified()
    lake.execute("update t set n = 2 where id = 4")
    lake.good()
    assert (lake.entries()["4"].status, lake.sums()) == ("open", (300, 298, 2, 0))


def test_keys_blocks_and_too_many(lake: Lake) -> None:
    lake.copy("mode: full", "bad_rows: block")
    with pytest.raises(MillraceError, match="values that a lake cannot hold") as caught:
        lake.good()
    assert "contract: {bad_rows: quarantine}" in str(caught.value)
    lake.copy("mode: full, checks: {between: {n: [0, 299]}}")
    lake.execute("update t set d = 'infinity' where id between 50 and 60")
    with pytest.raises(MillraceError) as caught:
        lake.good()
    text = str(caught.value)
    assert "14 of 300 rows broke the contract and max_bad is 0.001 (10 rows)" in text
    assert "fits(d): 13 rows do not fit the lake" in text
    assert "d is infinity, a lake takes the years 0001 to 9999 (id 3)" in text
    assert "between(n)" in text
    lake.copy("mode: full, checks: {between: {n: [0, 299]}}", "bad_rows: quarantine, max_bad: 0.1")
    lake.good()
    assert lake.sums() == (300, 286, 14, 0)
    lake.execute("alter table t drop constraint t_pkey", "alter table t alter n set not null")
    lake.copy("mode: full, key: n")
    with pytest.raises(MillraceError, match="values that a lake cannot hold"):
        lake.good()
