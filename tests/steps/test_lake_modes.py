"""Modes backfill and snapshot into the lake, on a real server: what each does to an asset that is there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from millrace.app import open_house
from millrace.app.quarantine import replay
from millrace.app.verify import verify
from millrace.cli.main import main
from millrace.core.names import AssetId
from millrace.core.position import Cursor, Whole
from millrace.core.staged import Counts, LedgerEntry, Staged
from millrace.errors import ContractBroken, GuardRefused, KeyInvalid, ProofFailed, UsageError
from millrace.steps.routes import postgres_lake

from .test_postgres_lake import ASSET, INCREMENTAL, Bench
from .test_quarantine import BRONZE, Shop, killed


class Lake(Bench):
    """A bench whose loads are proven as the step proves them."""

    notes: list[str]

    def stage(self, **options: Any) -> tuple[Staged, ...]:
        spec = self.spec(**options)
        step, ctx = self.context(spec)
        try:
            return postgres_lake.stage(spec, self.reader, self.lake, step, ctx)
        finally:
            self.notes = ctx.report.notes
            ctx.close()

    def load(self, **options: Any) -> LedgerEntry | None:
        staged = self.stage(**options)
        if not staged:
            return None
        return self.publish(staged[0])

    def publish(self, staged: Staged) -> LedgerEntry:
        _, ctx = self.context(self.spec())
        try:
            proof = postgres_lake.prove(self.lake, staged, ctx.scratch())
        finally:
            ctx.close()
        (entry,) = self.lake.publish([staged], [proof], {ASSET: staged.base})
        return entry

    def note(self, *ids: int) -> dict[int, str | None]:
        found = [row for path in self.lake.files(ASSET) for row in pq.read_table(path, partitioning=None).to_pylist()]
        assert len({row["id"] for row in found}) == len(found)
        return {row["id"]: row["note"] for row in found if row["id"] in ids}


@pytest.fixture
def lake(db18: str, tmp_path: Path) -> Iterator[Lake]:
    found = Lake(db18, tmp_path)
    yield found
    found.source.close()


# backfill

DAY: dict[str, Any] = {
    "mode": "backfill",
    "cursor": "updated_at",
    "start": "2026-02-01 00:05:00",  # ids 300 to 599
    "end": "2026-02-01 00:10:00",
    "segment_rows": 2_500,
}


def test_backfill(lake: Lake) -> None:
    lake.events(1_000)
    first = lake.load(**INCREMENTAL)
    assert first is not None
    assert isinstance(first.position, Cursor)
    assert lake.fresh(**DAY).reason == "the interval is equal"
    assert lake.load(**DAY) is None
    lake.execute("update events set note = 'new' where id in (310, 800)")
    lake.execute("delete from events where id in (320, 900)")
    lake.execute("update events set updated_at = '2026-02-01 00:20', note = 'left' where id = 330")
    lake.execute("update events set updated_at = '2026-02-01 00:06', note = 'came' where id = 700")
    lake.execute("insert into events (id, updated_at, note) values (5000, '2026-02-01 00:07', 'late')")
    found = lake.fresh(**DAY)
    assert (found.fresh, found.reason, found.publishes, found.proves) == (
        False,
        "the interval differs",
        "rows that differ in the interval",
        "transfer, applied",
    )
    (killed,) = lake.stage(**DAY)  # and never published: nothing changed
    assert lake.note(310, 320) == {310: None, 320: None}
    wrong = {**killed.detail, "interval": {**killed.detail["interval"], "end": "2026-02-01 00:10:02+00"}}
    with pytest.raises(ProofFailed, match="the interval would not be what the source holds"):
        lake.publish(replace(killed, detail=wrong))
    entry = lake.load(**DAY)
    assert entry is not None
    assert (entry.level, entry.counts, entry.position) == ("applied", Counts(1, 3, 1), first.position)
    assert entry.rows == 1_000
    assert lake.note(310, 320, 330, 700, 800, 900, 5000) == {
        310: "new",
        330: "left",  # not lost
        700: "came",
        800: lake.note(800)[800],
        900: None,
        5000: "late",
    }
    assert lake.note(800)[800] != "new"
    (change,) = lake.lake.changes(ASSET, first.seq) or ()
    before, after = (pq.read_table(path).to_pylist() for path in (*change.before, *change.after))
    assert sorted((row["id"], row["_millrace_change"]) for row in before) == [
        (310, "update"),
        (320, "delete"),
        (330, "update"),
        (700, "update"),
    ]
    assert {row["id"]: row["note"] for row in before} == {310: None, 320: None, 330: None, 700: None}
    assert {row["id"]: row["note"] for row in after} == {310: "new", 330: "left", 700: "came", 5000: "late"}
    assert lake.fresh(**DAY).fresh
    lake.load(**INCREMENTAL)  # goes on from its own position
    assert lake.note(800) == {800: "new"}
    lake.execute("update events set note = 'newer' where id = 310")
    assert lake.load(**DAY) is not None
    assert lake.notes == ["1 of 3 segments differs"]
    lake.execute("delete from events where id between 300 and 599")
    with pytest.raises(GuardRefused, match=r"would lose 298 of 300 rows"):
        lake.load(**DAY)
    entry = lake.load(**DAY, allow_deletes=True)
    assert entry is not None
    assert entry.counts == Counts(0, 0, 298)


def test_a_backfill_makes_an_asset_and_the_position_is_open(lake: Lake) -> None:
    lake.events(1_000)
    lake.execute("insert into events (id, updated_at) values (5000, null)")
    entry = lake.load(**DAY)
    assert entry is not None
    assert (entry.level, entry.rows, entry.position) == ("applied", 300, Whole())
    assert lake.fresh(**DAY).fresh
    assert lake.fresh(**INCREMENTAL).reason == "no position by updated_at yet"
    lake.load(**INCREMENTAL)
    lake.assert_equal(("id", "note"))
    lake.execute("alter table events add extra int default 1")
    with pytest.raises(ContractBroken, match=r"the columns of bronze\.events changed, so an interval of it"):
        lake.load(**DAY)


CURSORS = [
    ("v numeric(8,2)", "i + 0.25", "29.255", "39.255", None),
    ("v float4", "i + 0.1", "30.1", "40.1", None),
    ("v date", "date '2026-01-01' + i", "2026-01-31", "2026-02-10", None),
    ("v timestamp", "timestamp '2026-01-01' + i * interval '1 h'", "2026-01-02 06:00+09", "2026-01-02 16:00", None),
    ("v char(10)", "to_char(date '2026-01-01' + i, 'YYYY/MM/DD')", "2026-01-31", "20260210", "date"),
]


@pytest.mark.parametrize(("column", "value", "start", "end", "form"), CURSORS)
def test_cursors_of_an_interval(lake: Lake, column: str, value: str, start: str, end: str, form: str | None) -> None:
    lake.execute(f"create table events (id int, {column}, note text)")
    lake.execute(f"insert into events select i, {value}, 'old' from generate_series(1, 100) i")
    if form:
        lake.execute("insert into events values (200, '2026-02-1x', 'odd'), (201, null, 'null')")
    grows = {"mode": "incremental", "cursor": "v", "cursor_format": form, "key": ("id",)}
    lake.load(**grows)
    lake.execute("update events set note = 'new'")
    day = {**grows, "mode": "backfill", "start": start, "end": end}
    entry = lake.load(**day)
    assert entry is not None
    assert entry.counts == Counts(0, 10)
    notes = lake.note(*range(300))
    assert {name for name, note in notes.items() if note == "new"} == set(range(30, 40))
    assert lake.fresh(**day).fresh
    entry = lake.load(**{**day, "end": None})
    assert entry is not None
    assert entry.counts == Counts(0, 61)


def test_intervals_that_cannot_be_told(lake: Lake) -> None:
    lake.execute("create table events (id int primary key, v numeric, note text, day date)")
    lake.execute("insert into events select i, i, 'old', '2026-01-02' from generate_series(1, 10) i")
    grows = {"mode": "incremental", "cursor": "v"}
    lake.load(**grows)
    with pytest.raises(UsageError, match="the cursor v is numeric, which has no order in the lake"):
        lake.load(mode="backfill", cursor="v", start="3", end="5")
    with pytest.raises(UsageError, match="the interval is empty"):
        lake.load(mode="backfill", cursor="id", start="5", end="5")
    with pytest.raises(UsageError, match="2026-01-02 12:00 is no bound of the cursor day, which is a date"):
        lake.load(mode="backfill", cursor="day", start="2026-01-01", end="2026-01-02 12:00")


# snapshot


class History(Lake):
    """An asset of versions of a small table."""

    def small(self) -> None:
        self.execute("create table events (id int primary key, v text, n numeric(9,2))")
        self.execute("insert into events select i, 'v' || i, i from generate_series(1, 100) i; analyze events")

    def snap(self, **options: Any) -> LedgerEntry | None:
        return self.load(mode="snapshot", segment_rows=500, **options)

    def versions(self, *ids: int) -> list[tuple[int, str, Any, Any]]:
        found = [row for path in self.lake.files(ASSET) for row in pq.read_table(path, partitioning=None).to_pylist()]
        rows = [(row["id"], row["v"], row["valid_from"], row["valid_to"]) for row in found]
        return sorted((row for row in rows if not ids or row[0] in ids), key=lambda row: (row[0], row[2]))


@pytest.fixture
def history(db18: str, tmp_path: Path) -> Iterator[History]:
    found = History(db18, tmp_path)
    yield found
    found.source.close()


def test_snapshot(history: History) -> None:
    history.small()
    first = history.snap()
    assert first is not None
    assert (first.level, first.rows, first.counts) == ("table", 100, Counts(100))
    assert len({row[2:] for row in history.versions()}) == 1
    began = history.versions()[0][2]
    assert history.fresh(mode="snapshot").fresh
    history.execute("update events set v = 'new' where id = 1; delete from events where id = 2")
    history.execute("insert into events values (101, 'a', 1); update events set v = v where id < 50")
    found = history.fresh(mode="snapshot")
    assert (found.fresh, found.publishes, found.proves) == (False, "new versions of changed rows", "transfer, table")
    (killed,) = history.stage(mode="snapshot")  # and never published
    assert len(history.versions()) == 100
    source = {**killed.detail["versions"]["source"], "rows": 99}
    with pytest.raises(ProofFailed, match="its current versions would not be what the source holds"):
        history.publish(replace(killed, detail={**killed.detail, "versions": {"source": source}}))
    entry = history.snap()
    assert entry is not None
    assert (entry.level, entry.rows, entry.counts) == ("table", 102, Counts(1, 1, 1))
    (_, _, old, end), new = history.versions(1)
    assert (old, new) == (began, (1, "new", end, None))
    assert history.versions(2, 101) == [(2, "v2", began, end), (101, "a", end, None)]
    assert sum(row[2:] == (began, None) for row in history.versions()) == 98
    (change,) = history.lake.changes(ASSET, first.seq) or ()
    before, after = (pq.read_table(path).to_pylist() for path in (*change.before, *change.after))
    told = [
        sorted((row["id"], row["v"], row["valid_to"], row["_millrace_change"]) for row in side)
        for side in (before, after)
    ]
    assert told[0] == [(1, "v1", None, "update"), (2, "v2", None, "update")]
    assert [row[:2] + row[3:] for row in sorted(told[1], key=str)] == [
        (1, "new", "insert"),
        (1, "v1", "update"),
        (101, "a", "insert"),
        (2, "v2", "update"),
    ]
    history.execute("insert into events values (2, 'v2', 2)")  # it comes back
    history.execute("update events set v = 'v1' where id = 1")
    entry = history.snap()
    assert entry is not None
    assert entry.counts == Counts(1, 1, 0)
    assert [row[1] for row in history.versions(1)] == ["v1", "new", "v1"]
    assert [row[3] is None for row in history.versions(2)] == [False, True]
    assert history.versions(2)[0] == (2, "v2", began, end)
    history.execute("update events set v = v")  # row versions, no change
    entry = history.snap()
    assert entry is not None
    assert (entry.level, entry.counts, entry.rows) == ("table", Counts(), 104)
    history.execute("delete from events where id > 20")
    with pytest.raises(GuardRefused, match=r"would lose 81 of 101 rows"):
        history.snap()
    entry = history.snap(soft_delete="v = 'v5'", allow_deletes=True)
    assert entry is not None
    assert entry.counts == Counts(0, 0, 82)
    assert [row[3] is None for row in history.versions(5)] == [False]


def test_snapshot_is_not_led_astray(history: History) -> None:
    history.small()
    history.load(mode="full")
    with pytest.raises(ContractBroken, match="is no asset of versions"):
        history.snap()
    history.execute("alter table events rename n to valid_to")
    with pytest.raises(UsageError, match="has a column valid_to, which mode snapshot adds itself"):
        history.snap()
    history.execute("alter table events rename valid_to to n")
    with pytest.raises(KeyInvalid):
        history.snap(key=("n", "v", "n"))


def test_versions_are_not_thrown_away(history: History) -> None:
    history.small()
    history.snap()
    (entry,) = (history.lake.ledger(ASSET),)
    assert entry is not None
    with pytest.raises(GuardRefused, match="holds versions, which mode full would throw away"):
        history.load(mode="full")
    history.execute("alter table events add more int default 3")
    with pytest.raises(ContractBroken, match="its versions have the old ones") as caught:
        history.snap(full_refresh=True)
    assert "new: more (integer)" in str(caught.value)
    assert history.snap(select="id, v, n", key=("id",), full_refresh=True) is not None  # compared, and all are equal
    assert len(history.versions()) == 100


def test_a_key_of_minus_zero(history: History) -> None:
    history.execute("create table events (id float8 primary key, v text, at int)")
    history.execute("insert into events values (0, 'a', 1), (1, 'b', 2)")
    history.snap()
    history.execute("update events set id = '-0' where id = 0")
    assert history.snap() is not None
    assert [(str(row[0]), row[3] is None) for row in history.versions(0)] == [("0.0", False), ("-0.0", True)]
    assert history.fresh(mode="snapshot").fresh


def test_an_interval_with_a_key_of_minus_zero(lake: Lake) -> None:
    lake.execute("create table events (id float8 primary key, note text, at int)")
    lake.execute("insert into events values (0, 'a', 1), (1, 'b', 2)")
    day = {"mode": "backfill", "cursor": "at", "start": "0", "end": "9"}
    lake.load(**day)
    lake.execute("update events set id = '-0' where id = 0")
    entry = lake.load(**day)
    assert entry is not None
    assert entry.counts == Counts(0, 1)
    assert sorted(map(str, lake.note(0))) == ["-0.0"]


# in a project


VERSIONS = AssetId("bronze", "order_versions")


@pytest.fixture
def shop(db18: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    monkeypatch.setenv("SHOP_DB_URL", db18)
    monkeypatch.chdir(tmp_path)
    found = Shop(tmp_path, db18)
    found.copies("incremental")
    more = "  public.orders: {as: order_versions, mode: snapshot}\n"
    found.write("copies/shop_db.yaml", (tmp_path / "copies/shop_db.yaml").read_text() + more)
    yield found
    found.source.close()


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def millrace(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["millrace", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), *capsys.readouterr()

    return call


DAYS = ("--select", "bronze.orders", "--from", "2026-01-01", "--to", "2026-01-02")


def test_a_backfill_with_rows_in_quarantine(shop: Shop, millrace: Command) -> None:
    assert shop.run().exit_code == 0
    assert shop.statuses() == {"17": "open", "40": "open"}
    with open_house(shop.folder) as house:
        replay(house, BRONZE, [shop.entries()["40"].id], {"customer": "mended", "updated_at": "2027-01-01 00:00:00+00"})
    with open_house(shop.folder, interval=("2026-01-01", "2026-01-02")) as house:
        ((_, found),) = house.explain(house.plan(["bronze.orders"]))
        assert not isinstance(found, Exception)
        assert (found.fresh, found.reason) == (True, "the interval is equal")
    shop.execute("update orders set amount = -1 where order_id = 50")  # without a new time
    shop.execute("update orders set amount = 17, status = 'paid' where order_id = 17")
    shop.execute("delete from orders where order_id = 60")
    killed(shop, "lake.publish.before_commit", "run", *DAYS)
    assert shop.statuses() == {"17": "open", "40": "replayed"}
    assert 60 in shop.ids()
    code, out, _ = millrace("run", *DAYS, "--json")
    assert code == 0
    assert json.loads(out)["steps"][0]["entries"][0]["level"] == "applied"
    assert shop.statuses() == {"50": "open", "40": "replayed"}
    assert {17, 40, 50, 60} & shop.ids() == {17, 40}
    assert shop.rows()[40]["customer"] == "mended"
    assert shop.lake.balance(BRONZE).agree
    assert millrace("run", "--select", "bronze.orders")[0] == 0
    assert shop.statuses() == {"50": "open", "40": "replayed"}


def test_versions_are_compared_and_repaired(shop: Shop, millrace: Command) -> None:
    killed(shop, "lake.publish.before_commit", "run", "--select", "bronze.order_versions")
    assert shop.lake.ledger(VERSIONS) is None
    assert shop.run().exit_code == 0
    shop.execute("update orders set amount = 1 where order_id in (3, 4); delete from orders where order_id = 5")
    assert shop.run().exit_code == 0
    with open_house(shop.folder) as house:
        assert [(one.good, one.recorded) for one in verify(house, [VERSIONS], 10)] == [(True, True)]
    code, out, _ = millrace("diff", "shop_db", "orders", "lake", "bronze.order_versions", "--stats")
    assert (code, "199 rows · 199 equal" in out) == (0, True), out
    shop.execute("update orders set amount = 2 where order_id = 3")
    code, out, _ = millrace("diff", "shop_db", "orders", "lake", "bronze.order_versions", "--json")
    assert code == 1
    told = json.loads(out)
    assert (told["differing"], told["only_left"], told["only_right"]) == (1, 0, 0)
    assert told["right"] == "the current versions of bronze.order_versions in the lake"
    with open_house(shop.folder) as house:
        assert not verify(house, [VERSIONS], 10)[0].good
        assert verify(house, [VERSIONS], 10, repair=True)[0].good
        assert verify(house, [VERSIONS], 10)[0].good
    entry = shop.lake.ledger(VERSIONS)
    assert entry is not None
    assert entry.rows == 203
    text = (
        (shop.folder / "copies/shop_db.yaml")
        .read_text()
        .replace("mode: snapshot", "mode: snapshot, contract: {bad_rows: quarantine}")
    )
    shop.write("copies/shop_db.yaml", text)
    code, _, err = millrace("validate")
    assert (code, "rows cannot be set aside in mode snapshot yet" in err) == (2, True), err
