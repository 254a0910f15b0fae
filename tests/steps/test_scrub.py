"""The rotating scrub: what an incremental load cannot see is found and mended, spread over runs by a logical clock."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from millrace.app import open_house
from millrace.app.quarantine import replay
from millrace.core.position import Cursor, position_from_json
from millrace.core.scrub import Scrub, told_due
from millrace.core.segment import Segment
from millrace.core.staged import LedgerEntry
from millrace.errors import GuardRefused
from millrace.steps.routes import postgres_lake

from .test_postgres_lake import ASSET, INCREMENTAL, Bench, publish
from .test_quarantine import BRONZE, Shop

START = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
DAY = 86_400.0


def at(days: float) -> str:
    """Return a logical time."""
    return (START + dt.timedelta(days=days)).isoformat(timespec="seconds")


# --- when what is due ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("hours", "most"), [(1, 2), (24, 8), (72, 24)])
def test_every_part_is_proven_within_the_interval_and_little_in_each_run(hours: int, most: int) -> None:
    state = Scrub.whole(at(0), proven=True).split([Segment.bucket(n, 32) for n in range(32)], 320_000)
    for run in range(1, 60 * 24 // hours):
        now = at(run * hours / 24)
        due = state.due(now, 7 * DAY)
        assert len(due) <= most
        oldest = min(dt.datetime.fromisoformat(time or "") for time in state.proven)
        assert dt.datetime.fromisoformat(now) - oldest <= dt.timedelta(days=7, hours=1)
        state = position_from_json(Cursor("c", "1", scrub=state.after(due, now)).to_json()).scrub  # type: ignore[union-attr, assignment]
        assert state is not None
    assert state.share(dt.datetime.fromisoformat(now) - dt.timedelta(days=7)) == 1


def test_after_a_pause_all_is_due_and_before_the_first_slot_nothing() -> None:
    state = Scrub.whole(at(0), proven=True).split([Segment.range(None, 10), Segment.range(10, None)], 20)
    assert state.due(at(0.01), 7 * DAY) == () == state.due(at(-3), 7 * DAY)
    assert state.due(at(30), 7 * DAY) == (0, 1)
    assert (told_due(state, at(0), 7 * DAY), told_due(state, at(0), None)) == ("scrub due in 4 days", "")
    assert told_due(state, at(30), 7 * DAY) == "scrub of the whole table"


def test_a_table_that_grows_is_split_anew_and_no_part_becomes_younger() -> None:
    state = (
        Scrub.whole(at(0), proven=True).split([Segment.range(None, 10), Segment.range(10, None)], 20).after([0], at(1))
    )
    finer = state.split([Segment.range(None, 5), Segment.range(5, 12), Segment.range(12, None)], 40)
    assert finer.proven == (at(1), at(0), at(0))
    assert finer.segments()[1] == Segment.range(5, 12, 13)
    buckets = Scrub.whole(at(0), proven=False).split([Segment.bucket(n, 2) for n in range(2)], 4).after([1], at(1))
    assert buckets.split([Segment.bucket(n, 4) for n in range(4)], 8).proven == (None, at(1), None, at(1))
    assert not state.outgrown(25, 10)
    assert state.outgrown(31, 100)


# --- into the lake -------------------------------------------------------------------------------------------------


@pytest.fixture
def bench(db18: str, tmp_path: Path) -> Iterator[Bench]:
    found = Bench(db18, tmp_path)
    yield found
    found.source.close()


def run(bench: Bench, days: float, **options: Any) -> tuple[LedgerEntry, list[str]]:
    """Make one incremental load of parts of some 100 rows at a logical time; returns its entry and notes."""
    spec = bench.spec(**{**INCREMENTAL, "segment_rows": 2_500, **options})
    step, ctx = bench.context(spec, logical_time=at(days))
    try:
        staged = postgres_lake.stage(spec, bench.reader, bench.lake, step, ctx)
    finally:
        ctx.close()
    return publish(bench.lake, staged)[0], ctx.report.notes


def scrub_of(entry: LedgerEntry) -> Scrub:
    assert isinstance(entry.position, Cursor)
    assert entry.position.scrub is not None
    return entry.position.scrub


def test_case_16_rows_deleted_at_the_source_go_within_the_interval(bench: Bench) -> None:
    bench.events(1_000)
    bench.execute("delete from events where id = 500")
    run(bench, 0)
    bench.execute("delete from events where id in (3, 700)")
    assert run(bench, 0.1)[1] == [], "not due yet, and no change says that rows are gone"
    assert bench.lake_rows(["id"]) != bench.source_rows(["id"])
    notes = []
    spec = bench.spec(**INCREMENTAL, segment_rows=2_500)
    step, killed = bench.context(spec, logical_time=at(0.9))
    postgres_lake.stage(spec, bench.reader, bench.lake, step, killed)  # never published: nothing counts as compared
    assert killed.report.notes[0].startswith("scrub: ")
    killed.close()
    for day in range(1, 8):
        fresh = postgres_lake.fresh(spec, bench.reader, bench.lake, now=at(day))
        assert not fresh.fresh
        assert "segments is due" in fresh.reason
        entry, said = run(bench, day)
        notes += said
        assert 1 <= scrub_of(entry).proven.count(at(day)) <= 3
    assert sum(note.endswith("1 row deleted at the source") for note in notes) == 2
    assert sum(note.endswith("equal") for note in notes) == len(notes) - 2 == 5
    bench.assert_equal()
    assert scrub_of(entry).since is not None
    assert scrub_of(entry).since >= at(1)
    assert (entry.level, entry.rows, entry.counts.deleted) == ("applied", 997, entry.counts.deleted)


def test_case_15_a_late_commit_that_no_snapshot_shows_is_found(bench: Bench) -> None:
    """A cursor value that lies in the past, in a source whose row versions say nothing: a view."""
    bench.events(300)
    bench.execute("alter table events rename to hidden; create view events as select * from hidden")
    run(bench, 0, key=("id",))
    with psycopg.connect(bench.url) as late:
        late.execute("insert into hidden (id, note, updated_at) values (5000, 'late', '2020-01-01')")
        bench.execute("insert into hidden (id, note, updated_at) values (5001, 'in time', '2027-01-01')")
        assert run(bench, 0.1, key=("id",))[0].rows == 301
        late.commit()
    assert run(bench, 0.2, key=("id",))[0].rows == 301
    entry, notes = run(bench, 20, key=("id",))
    assert (notes, entry.level, entry.rows) == (["scrub: the whole table, 1 row missing"], "table", 302)
    bench.assert_equal()


def test_files_that_changed_on_the_disk_are_mended_and_the_books_agree(bench: Bench) -> None:
    bench.events(600)
    run(bench, 0)
    (path,) = bench.lake.files(ASSET)
    table = pq.read_table(path)
    at_note = table.schema.get_field_index("note")
    spoilt = pc.if_else(pc.equal(table["id"], 77), pa.scalar("spoilt"), table["note"])
    Path(path).unlink()
    pq.write_table(table.set_column(at_note, table.schema.field("note"), spoilt), path)
    bench.execute("update events set note = 'new', updated_at = '2026-06-01' where id in (78, 500)")
    entry, notes = run(bench, 20)
    assert notes == ["scrub: the whole table, 1 row changed"]
    assert (entry.level, entry.counts.updated) == ("table", 3)
    bench.assert_equal()
    assert bench.lake.manifest(ASSET).whole
    assert entry.digest == postgres_lake._whole_digest(*_source(bench)), "reckoned upon what was found"


def _source(bench: Bench) -> Any:
    context = bench.reader.snapshot()
    snap = context.__enter__()
    bench.contexts = [context]  # type: ignore[attr-defined]
    return bench.reader.source(bench.spec().table, connection=snap.connection), snap


def test_a_scrub_that_would_delete_too_much_is_refused_and_never_is_never(bench: Bench) -> None:
    bench.events(100)
    run(bench, 0)
    bench.execute("delete from events where id > 10 and id < 99")
    assert run(bench, 20, verify=None)[1] == []
    with pytest.raises(GuardRefused, match="would lose 88 of its 100 rows"):
        run(bench, 20)
    entry, notes = run(bench, 20, allow_deletes=True)
    assert (notes, entry.rows) == (["scrub: the whole table, 88 rows deleted at the source"], 12)
    bench.assert_equal()


def test_several_versions_of_a_row_and_text_keys(bench: Bench) -> None:
    bench.execute("create table events (id text, note text, amount numeric(12,2), user_id int, updated_at timestamp)")
    bench.execute("insert into events select 'k' || i, 'n', i, 1, '2026-01-01' from generate_series(1, 400) i")
    bench.execute("insert into events select 'k' || i, 'newer', i, 1, '2026-01-02' from generate_series(1, 100) i")
    run(bench, 0, key=("id",))
    bench.execute("delete from events where id = 'k7' or (id = 'k9' and note = 'newer')")
    bench.execute("insert into events values ('k300', 'newest', 1, 1, '2026-01-03')")
    entry, notes = run(bench, 20, key=("id",))
    assert notes[-1] == "scrub: the whole table, 1 row changed, 1 row deleted at the source"
    assert len(scrub_of(entry).proven) == 8
    assert scrub_of(entry).how == "bucket"
    newest = "id || updated_at in (select id || max(updated_at) from events group by id)"
    columns = ["id", "note"]
    assert bench.lake_rows(columns) == bench.source_rows(columns, newest)
    assert run(bench, 40, key=("id",))[1][-1] == "scrub: the whole table, equal"


def test_a_table_that_something_else_wrote_to_is_refused(bench: Bench) -> None:
    import deltalake

    bench.events(10)
    run(bench, 0)
    deltalake.DeltaTable(bench.lake.folder(ASSET).path).delete("id = 3")
    with pytest.raises(GuardRefused, match="written to by something other than Millrace"):
        run(bench, 20)


# --- with a quarantine ---------------------------------------------------------------------------------------------


@pytest.fixture
def shop(db18: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    monkeypatch.setenv("SHOP_DB_URL", db18)
    found = Shop(tmp_path, db18)
    found.copies("incremental")
    path = tmp_path / "copies/shop_db.yaml"
    path.write_text(path.read_text().replace("    mode:", "    verify: {every: 2d}\n    segment_rows: 500\n    mode:"))
    yield found
    found.source.close()


def house_run(shop: Shop, days: float) -> Any:
    with open_house(shop.folder) as house:
        (step,) = house.run(house.plan(), show_as="silent", logical_time=at(days)).steps
    return step


def test_rows_in_quarantine_count_as_dealt_with_in_every_part(shop: Shop) -> None:
    house_run(shop, 0)
    with open_house(shop.folder) as house:
        (entry,) = [one for one in shop.lake.entries(BRONZE) if one.key["order_id"] == "17"]
        replay(house, BRONZE, [entry.id], {"amount": "12.50", "status": "paid"})
    assert house_run(shop, 0.01).status == "fresh"
    step = house_run(shop, 10)
    assert (step.status, step.message) == ("published", "scrub: the whole table, equal")
    assert (step.entries[0].level, shop.statuses(), shop.amount(17)) == (
        "table", {"17": "replayed", "40": "open"}, "12.50",
    )  # fmt: skip
    # the parts with both differ now: bad rows that are read again are no new ones, and the fixed row stays
    shop.execute("delete from orders where order_id in (18, 41)")
    assert house_run(shop, 20).message == ("1 row → quarantine; scrub: the whole table, 2 rows deleted at the source")
    assert (shop.statuses(), shop.amount(17), len(shop.ids())) == ({"17": "replayed", "40": "open"}, "12.50", 197)
    assert shop.lake.balance(BRONZE).agree
    # rows in quarantine that are gone at the source are gone here, the fixed one too
    shop.execute("delete from orders where order_id in (17, 40)")
    assert house_run(shop, 30).message == "scrub: the whole table, 1 row deleted at the source"
    assert (shop.statuses(), shop.amount(17), len(shop.ids())) == ({}, None, 196)
