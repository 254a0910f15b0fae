"""PostgreSQL to a Delta lake: what is published equals the source, by this file's own comparison of texts."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pyarrow.parquet as pq
import pytest
from psycopg import sql

from millrace.core.names import AssetId, TableRef
from millrace.core.plan import Step
from millrace.core.position import Cursor, Whole
from millrace.core.staged import Counts, LedgerEntry, Staged
from millrace.errors import ContractBroken, GuardRefused, Interrupted, KeyInvalid, NotFound, ProofFailed, UsageError
from millrace.lake.target import LakeTarget
from millrace.postgres.heap import UNTOUCHED
from millrace.postgres.reader import PostgresReader
from millrace.postgres.session import database_from_url
from millrace.steps.routes import postgres_lake
from millrace.steps.spec import CopySpec

from .context import StepContext

ASSET = AssetId("bronze", "events")
EVENTS = """
create table events as select i::bigint id, (i % 97)::int user_id,
    (array['page_view','add_to_cart','로그인'])[1 + i % 3] event_type, (i % 1000 - 500)::numeric(12,2) / 8 loose,
    ((i % 1000 - 500)::numeric / 7)::numeric(12,2) amount, timestamptz '2026-01-01' + i * interval '7 s' created_at,
    timestamp '2026-01-01 12:00' - i * interval '1 day' happened, date '2000-01-01' + i day_on, time '00:00:01.5' at_time,
    jsonb_build_object('product', i % 50, 'ref', md5(i::text)) properties, case when i % 10 = 0 then null else 'note ' || i end note,
    i % 2 = 0 flag, (i / 3.0)::float8 score, (i / 3.0)::real rough, md5(i::text)::uuid token, decode(md5(i::text), 'hex') raw,
    interval '1 day' * i span, array[i, i + 1] pair, timestamptz '2026-02-01' + i * interval '1 s' updated_at
from generate_series(1, {rows}) i
"""


def publish(target: LakeTarget, staged: Sequence[Staged]) -> Sequence[LedgerEntry]:
    """Prove and publish what was staged, as the engine does."""
    proofs = [target.prove(item) for item in staged]
    return target.publish(staged, proofs, {item.asset: item.base for item in staged})


class Bench:
    """One source table, one lake, one step."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.folder = folder
        self.lake = LakeTarget(folder / "lake")
        self.reader = PostgresReader(database_from_url(url, "shop_db"))
        self.source = psycopg.connect(url, autocommit=True)
        self.runs = 0

    def execute(self, text: str) -> None:
        self.source.execute(text)  # type: ignore[call-overload]

    def events(self, rows: int) -> None:
        self.execute(EVENTS.format(rows=rows))
        self.execute("alter table events add primary key (id); analyze events")

    def spec(self, **options: Any) -> CopySpec:
        return CopySpec("shop_db", TableRef("public", "events"), ASSET, **{"segment_rows": 1_000, **options})

    def context(self, spec: CopySpec, run: str | None = None, **more: Any) -> tuple[Step, StepContext]:
        self.runs += 1
        step = Step(f"copy:{ASSET}", "copy", str(ASSET), (ASSET,), target="lake", spec=spec.to_json())
        return step, StepContext(step, {"lake": self.lake}, run=run or f"0000{self.runs:04x}", **more)

    def run(self, run: str | None = None, **options: Any) -> tuple[LedgerEntry, StepContext]:
        spec = self.spec(**options)
        step, ctx = self.context(spec, run)
        try:
            staged = postgres_lake.stage(spec, self.reader, self.lake, step, ctx)
        finally:
            ctx.close()
        return publish(self.lake, staged)[0], ctx

    def fresh(self, **options: Any) -> Any:
        now = "2026-11-20T06:00:00Z"
        return postgres_lake.fresh(self.spec(**options), self.reader, self.lake, now=now)

    def lake_rows(self, columns: Sequence[str]) -> list[tuple[str | None, ...]]:
        """Return the lake's rows as sorted texts, by Arrow and this file only."""
        found = []
        for path in self.lake.files(ASSET):
            for row in pq.read_table(path, columns=list(columns)).to_pylist():
                found.append(tuple(_text(row[name]) for name in columns))
        return sorted(found, key=repr)

    def source_rows(self, columns: Sequence[str], where: str = "true") -> list[tuple[str | None, ...]]:
        """Return the source's rows as sorted texts, as PostgreSQL prints them."""
        self.execute("set timezone = 'UTC'")
        names = sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(name)) for name in columns)
        query = sql.SQL("select {} from events where {}").format(names, sql.SQL(where))  # type: ignore[arg-type]
        return sorted((tuple(row) for row in self.source.execute(query)), key=repr)

    def assert_equal(self, columns: Sequence[str] = ("id", "note", "amount", "user_id")) -> None:
        assert self.lake_rows(columns) == self.source_rows(columns)


def _text(value: Any) -> str | None:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, bytes):
        return "\\x" + value.hex()
    return None if value is None else str(value)


@pytest.fixture(params=["db15", "db18"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    found = Bench(request.getfixturevalue(request.param), tmp_path)
    yield found
    found.source.close()


@pytest.fixture
def bench15(db15: str, tmp_path: Path) -> Iterator[Bench]:
    found = Bench(db15, tmp_path)
    yield found
    found.source.close()


EXACT = ["id", "user_id", "event_type", "loose", "amount", "day_on", "at_time", "properties", "note", "flag", "raw"]
EXACT += ["span", "pair", "token"]


# --- mode full -----------------------------------------------------------------------------------------------------


def test_a_first_load_holds_every_row(bench: Bench) -> None:
    bench.events(5_000)
    entry, ctx = bench.run()
    assert (entry.seq, entry.rows, entry.level) == (1, 5_000, "table")
    assert bench.lake_rows(EXACT) == bench.source_rows(EXACT)
    assert len(bench.lake.files(ASSET)) >= 4
    assert ctx.report.rows == 5_000
    assert isinstance(entry.position, Whole)
    assert entry.position.digest == entry.digest


def test_an_unchanged_source_is_fresh_and_a_changed_one_replaces(bench15: Bench) -> None:
    bench15.events(2_000)
    assert bench15.fresh().reason == "never published"
    bench15.run()
    assert bench15.fresh().fresh
    assert bench15.fresh().reason == UNTOUCHED
    assert not bench15.fresh(full_refresh=True).fresh
    bench15.execute("update events set amount = -amount where id = 7; delete from events where id = 8")
    assert not bench15.fresh().fresh
    entry, _ = bench15.run()
    assert (entry.seq, entry.rows) == (2, 1_999)
    bench15.assert_equal()
    assert bench15.fresh().fresh


def test_changed_columns_are_not_fresh(bench15: Bench) -> None:
    bench15.events(100)
    bench15.run()
    bench15.execute("alter table events alter user_id type bigint")
    assert not bench15.fresh().fresh
    bench15.run()
    assert bench15.lake.schema(ASSET)["user_id"].type == "bigint"
    bench15.assert_equal()


def test_an_empty_table_and_one_without_a_key(bench15: Bench) -> None:
    bench15.execute("create table events (id int, note text, amount numeric, user_id int)")
    entry, _ = bench15.run()
    assert entry.rows == 0
    assert bench15.fresh().fresh
    bench15.execute("insert into events values (1, 'a', 1.50, null), (1, 'a', 1.50, null)")
    entry, _ = bench15.run()
    assert entry.rows == 2
    bench15.assert_equal()


def test_view_where_select_and_count(bench15: Bench) -> None:
    bench15.events(3_000)
    bench15.execute("alter table events rename to base; create view events as select * from base")
    bench15.run(where="id <= 1500", count="select count(*) from base where id <= 1500")
    assert bench15.lake_rows(["id"]) == bench15.source_rows(["id"], "id <= 1500")
    bench15.run(select="select id, note from base where id > 100", key=("id",))
    assert bench15.lake_rows(["id", "note"]) == bench15.source_rows(["id", "note"], "id > 100")
    with pytest.raises(ProofFailed, match="count query"):
        bench15.run(count="select 3")


def test_losing_most_rows_is_refused(bench15: Bench) -> None:
    bench15.events(1_000)
    bench15.run()
    bench15.execute("delete from events where id > 100")
    with pytest.raises(GuardRefused, match="would lose 900 of its 1,000 rows") as refused:
        bench15.run()
    assert "--allow-deletes" in str(refused.value)
    assert bench15.lake.ledger(ASSET).seq == 1  # type: ignore[union-attr]
    bench15.run(allow_deletes=True)
    bench15.assert_equal()


# --- values that a lake cannot hold --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "bad", "shown"),
    [
        ("timestamptz", "infinity", "infinity"),
        ("timestamptz", "-infinity", "-infinity"),
        ("timestamp", "294276-12-31 23:59:59", "294276-12-31 23:59:59"),
        ("timestamp", "0044-03-15 12:00 BC", "0044-03-15 12:00:00 BC"),
        ("date", "infinity", "infinity"),
        ("date", "10000-01-01", "10000-01-01"),
        ("numeric(12,2)", "NaN", "NaN"),
        ("numeric(38,38)", "NaN", "NaN"),
    ],
)
def test_rows_that_cannot_be_held_are_named(bench: Bench, kind: str, bad: str, shown: str) -> None:
    bench.execute(f"create table events (id int primary key, v {kind})")
    bench.execute(f"insert into events values (1, null), (2, '{bad}'), (3, null), (4, '{bad}')")
    with pytest.raises(ContractBroken) as broken:
        bench.run()
    text = str(broken.value)
    assert "  v (" in text
    assert "2 rows" in text
    assert f"{shown} (id 2)" in text
    assert bench.lake.ledger(ASSET) is None
    bench.run(select="id, v::text as v")
    assert bench.lake_rows(["id", "v"]) == bench.source_rows(["id", "v"])


def test_odd_values_are_held_exactly(bench: Bench) -> None:
    bench.execute(
        """create type mood as enum ('sad', 'gut "x"'); create domain cents as numeric(8,2);
        create table events (id int primary key, t time, n numeric, big numeric(38,0), tiny numeric(38,38), m mood, c cents,
            ch char(5), i interval, a int[], p point, r int4range, b bit(3), o oid, mon money, j json, tz timetz, net inet)"""
    )
    bench.execute(
        """insert into events values
        (1, '24:00', 'NaN', 99999999999999999999999999999999999999, 0.00000000000000000000000000000000000001, 'sad', -0.01,
         'a', '1 mon', '{{1,2},{3,4}}', '(1,2)', '[1,3)', '101', 4294967295, 12.34, '{"a":  1}', '10:00+03', '10.0.0.1/8'),
        (2, '00:00', '1e200', -99999999999999999999999999999999999999, -0.99999999999999999999999999999999999999, 'gut "x"', 0,
         'abcde', '30 days', '{}', null, 'empty', '000', 0, -0.01, 'null', '10:00', '::1'),
        (3, null, 1.0, 0, 0, null, null, '', null, null, null, null, null, null, null, null, null, null)"""
    )
    bench.run()
    columns = ["id", "t", "n", "m", "c", "i", "a", "p", "r", "b", "o", "mon", "j", "tz", "net", "big"]
    bench.execute("set lc_monetary = 'C'")
    assert bench.lake_rows(columns) == bench.source_rows(columns)
    tiny = [f"{row['tiny']:f}" for path in bench.lake.files(ASSET) for row in pq.read_table(path).to_pylist()]
    assert sorted(tiny) == sorted(row[0] for row in bench.source_rows(["tiny"]))


def test_hostile_names(bench15: Bench) -> None:
    bench15.execute('create table "Ev""il; drop" ("i d" int primary key, "x"";--" text, "select" int, "한글.열" text)')
    bench15.execute("""insert into "Ev""il; drop" values (1, 'a', 2, 'b')""")
    spec = CopySpec("shop_db", TableRef("public", 'Ev"il; drop'), ASSET)
    step, ctx = bench15.context(spec)
    publish(bench15.lake, postgres_lake.stage(spec, bench15.reader, bench15.lake, step, ctx))
    assert bench15.lake_rows(["i d", 'x";--', "select"]) == [("1", "a", "2")]


# --- stopping and going on -----------------------------------------------------------------------------------------


def test_an_interrupted_copy_goes_on(bench15: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench15.events(6_000)
    spec = bench15.spec(workers=1)
    step, ctx = bench15.context(spec, "0000aaaa")
    monkeypatch.setattr(ctx, "stopping", lambda: ctx.report.rows >= 2_000)
    with pytest.raises(Interrupted):
        postgres_lake.stage(spec, bench15.reader, bench15.lake, step, ctx)
    assert bench15.lake.ledger(ASSET) is None
    entry, again = bench15.run("0000aaaa")
    assert entry.rows == 6_000
    bench15.assert_equal()
    assert not again.report.notes or "kept" in again.report.notes[0]


CHILD = """
import os, sys
from pathlib import Path
from millrace.core.names import AssetId, TableRef
from millrace.core.plan import Step
from millrace.lake.target import LakeTarget
from millrace.postgres.reader import PostgresReader
from millrace.postgres.session import database_from_url
from millrace.steps.routes import postgres_lake
from millrace.steps.spec import CopySpec
from millrace.testing.killpoints import arm
sys.path.insert(0, sys.argv[3])
from context import StepContext
arm(os.environ)
asset = AssetId("bronze", "events")
mode, cursor = sys.argv[4], "updated_at" if sys.argv[4] == "incremental" else None
spec = CopySpec("shop_db", TableRef("public", "events"), asset, mode=mode, cursor=cursor, segment_rows=1000)
lake = LakeTarget(Path(sys.argv[2]) / "lake")
step = Step(f"copy:{asset}", "copy", str(asset), (asset,), target="lake", spec=spec.to_json())
ctx = StepContext(step, {"lake": lake}, run="0000dddd")
reader = PostgresReader(database_from_url(sys.argv[1], "shop_db"))
staged = postgres_lake.stage(spec, reader, lake, step, ctx)
lake.publish(staged, [lake.prove(one) for one in staged], {asset: staged[0].base})
"""


def _child(bench: Bench, point: str, mode: str = "full") -> int:
    command = [sys.executable, "-c", CHILD, bench.url, str(bench.folder), str(Path(__file__).parent), mode]
    return subprocess.run(command, check=False, env={**os.environ, "MILLRACE_KILL_AT": point}).returncode


def _segments(bench: Bench) -> int:
    """Return how many whole segments the stage's descriptor lists."""
    stage = bench.lake.folder(ASSET).stages
    import json

    return sum(len(json.loads(path.read_text())["segments"]) for path in stage.glob("*.json"))


@pytest.mark.parametrize("run", ["0000dddd", "0000eeee"])
def test_a_killed_copy_keeps_what_still_agrees(bench15: Bench, run: str) -> None:
    bench15.events(6_000)
    assert _child(bench15, "lake.stage.file:4") == -9
    whole = _segments(bench15)
    assert whole >= 1
    entry, ctx = bench15.run(run)
    assert entry.rows == 6_000
    assert f"{whole} of " in ctx.report.notes[0]
    bench15.assert_equal()
    bench15.lake.gc(lambda run: False)
    assert len(bench15.lake.folder(ASSET).data_files()) == len(bench15.lake.files(ASSET))


def test_segments_that_changed_meanwhile_are_copied_again(bench15: Bench) -> None:
    bench15.events(6_000)
    assert _child(bench15, "lake.stage.file:4") == -9
    whole = _segments(bench15)
    bench15.execute("update events set note = 'changed' where id in (1, 2)")  # leaves the first pages
    _, ctx = bench15.run("0000dddd")
    assert f"{whole - 1} of " in ctx.report.notes[0]
    bench15.assert_equal()


@pytest.mark.parametrize(
    "point", ["lake.stage.closed", "lake.prove", "lake.publish.before_commit", "lake.publish.after_commit"]
)
def test_killed_at_any_door_the_next_run_ends_right(bench15: Bench, point: str) -> None:
    bench15.events(3_000)
    assert _child(bench15, point) == -9
    entry, _ = bench15.run("0000eeee")
    assert entry.rows == 3_000
    bench15.assert_equal()
    bench15.lake.gc(lambda run: False)
    assert len(bench15.lake.folder(ASSET).data_files()) >= len(bench15.lake.files(ASSET))


@pytest.mark.parametrize("exchange", [False, True])
def test_a_file_with_other_values_is_not_published(bench15: Bench, exchange: bool) -> None:
    bench15.events(2_000)
    spec = bench15.spec()
    step, ctx = bench15.context(spec)
    staged = postgres_lake.stage(spec, bench15.reader, bench15.lake, step, ctx)[0]
    path = Path(bench15.lake.staged_files(staged)[0])
    table = pq.read_table(path)
    at = table.schema.get_field_index("note")
    notes = table.column("note").to_pylist()
    notes[0], notes[1] = (notes[1], notes[0]) if exchange else (notes[0], "other")
    pq.write_table(table.set_column(at, table.schema.field("note"), [notes]), path)
    # The size is made to fit, so that only the rows can tell.
    files = [{**file, "size": (path.parent / file["name"]).stat().st_size} for file in staged.detail["files"]]
    with pytest.raises(ProofFailed, match="not what the source holds"):
        bench15.lake.prove(replace(staged, detail={**staged.detail, "files": files}))
    with pytest.raises(ProofFailed):
        publish(bench15.lake, [staged])
    assert bench15.lake.ledger(ASSET) is None


def test_rows_change_while_they_are_copied(bench15: Bench) -> None:
    bench15.events(6_000)
    bench15.execute("alter table events add total int default 1")
    spec = bench15.spec(workers=1)
    step, ctx = bench15.context(spec)
    moved = ctx.report.moved
    calls = []

    def disturb(rows: int, size: int) -> None:
        moved(rows, size)
        calls.append(rows)
        with psycopg.connect(bench15.url, autocommit=True) as other:  # what one loses the other gains
            other.execute(
                "update events set total = total + case when id = %s then 5 else -5 end where id in (%s, %s)",
                [1, 1, 5_999],
            )

    ctx.report.moved = disturb  # type: ignore[method-assign]
    publish(bench15.lake, postgres_lake.stage(spec, bench15.reader, bench15.lake, step, ctx))
    assert calls
    assert sum(int(row[0] or 0) for row in bench15.lake_rows(["total"])) == 6_000


# --- what is refused -----------------------------------------------------------------------------------------------


def test_missing_things_are_named(bench15: Bench) -> None:
    bench15.events(10)
    with pytest.raises(NotFound, match="updated_att"):
        bench15.run(mode="incremental", cursor="updated_att")
    with pytest.raises(KeyInvalid, match="idd"):
        bench15.run(key=("idd",))
    spec = CopySpec("shop_db", TableRef("public", "event"), ASSET)
    step, ctx = bench15.context(spec)
    with pytest.raises(NotFound):
        postgres_lake.stage(spec, bench15.reader, bench15.lake, step, ctx)


def test_keys_that_are_none(bench15: Bench) -> None:
    bench15.execute("create table events (id int, amount int, updated_at timestamptz)")
    with pytest.raises(KeyInvalid, match="no primary key"):
        bench15.run(mode="incremental", cursor="updated_at")
    bench15.execute("insert into events values (1, 1, now()), (1, 2, now()), (null, 3, now())")
    with pytest.raises(KeyInvalid, match="a null in the key"):
        bench15.run(key=("id",))
    bench15.execute("delete from events where id is null")
    with pytest.raises(KeyInvalid, match="more than one row"):
        bench15.run(key=("id",))


# --- incremental and append ----------------------------------------------------------------------------------------

INCREMENTAL: dict[str, Any] = {"mode": "incremental", "cursor": "updated_at"}


def _position(bench: Bench) -> Cursor:
    entry = bench.lake.ledger(ASSET)
    assert entry is not None
    assert isinstance(entry.position, Cursor)
    return entry.position


def test_changes_are_merged(bench: Bench) -> None:
    bench.events(3_000)
    entry, _ = bench.run(**INCREMENTAL)
    assert (entry.seq, entry.rows) == (1, 3_000)
    assert bench.fresh(**INCREMENTAL).fresh
    bench.execute("update events set note = 'new', updated_at = '2026-03-01' where id % 500 = 0")
    bench.execute("insert into events (id, note, amount, updated_at) values (9000, 'more', -0.5, '2026-03-01')")
    found = bench.fresh(**INCREMENTAL)
    assert (found.fresh, found.publishes, found.proves) == (False, "merge", "applied · scrub due in 3 hours")
    entry, ctx = bench.run(**INCREMENTAL)
    assert (entry.seq, entry.level) == (2, "applied")
    assert (entry.counts.inserted, entry.counts.updated) == (1, 6)
    assert ctx.report.rows < 100
    bench.assert_equal()
    assert _position(bench).value == "2026-03-01 00:00:00+00"
    assert bench.fresh(**INCREMENTAL).fresh


def test_ties_at_the_boundary_and_late_commits_are_brought(bench: Bench) -> None:
    bench.events(1_000)
    with psycopg.connect(bench.url) as late:
        late.execute("insert into events (id, note, updated_at) values (5000, 'late', '2020-01-01')")
        bench.run(**INCREMENTAL)
        late.commit()
    bench.execute(
        """insert into events (id, note, updated_at)
        select 5001, 'tie', max(updated_at) from events union all select 5002, 'no cursor', null"""
    )
    assert not bench.fresh(**INCREMENTAL).fresh
    entry, _ = bench.run(**INCREMENTAL)
    assert entry.counts.inserted == 3
    bench.assert_equal()
    assert bench.fresh(**INCREMENTAL).fresh


def test_a_run_without_changes_publishes_no_rows(bench15: Bench) -> None:
    bench15.events(1_000)
    bench15.run(**INCREMENTAL)
    before = bench15.lake.files(ASSET)
    entry, _ = bench15.run(**INCREMENTAL)
    assert entry.counts.inserted + entry.counts.updated == 0
    assert bench15.lake.files(ASSET) == before
    bench15.assert_equal()


def test_versions_of_a_row_end_in_the_newest(bench: Bench) -> None:
    bench.execute("create table events (id int, user_id int, note text, amount int, updated_at timestamptz)")
    bench.execute("insert into events select i, 0, 'first', i, '2026-01-01' from generate_series(1, 300) i")
    bench.execute("insert into events select i, 0, 'second', i, '2026-01-02' from generate_series(1, 300, 2) i")
    options = {**INCREMENTAL, "key": ("id",)}
    newest = "(id, updated_at) in (select id, max(updated_at) from events group by id)"
    columns = ["id", "note"]
    _, ctx = bench.run(**options)
    assert ctx.report.notes == ["150 rows left out: a newer one by updated_at has their key"]
    assert bench.lake_rows(columns) == bench.source_rows(columns, newest)
    with psycopg.connect(bench.url) as late:
        late.execute("insert into events values (1, 0, 'older, but committed late', 1, '2026-01-01 12:00')")
        late.execute("insert into events values (2, 0, 'newer', 1, '2026-01-03'), (2, 0, 'newest', 1, '2026-01-04')")
        bench.run(**options)
        late.commit()
    bench.run(**options)
    assert bench.lake_rows(columns) == bench.source_rows(columns, newest)
    assert ("2", "newest") in bench.lake_rows(columns)
    assert bench.fresh(**options).fresh


def test_changed_columns_and_another_cursor_read_everything(bench15: Bench) -> None:
    bench15.events(500)
    bench15.run(**INCREMENTAL)
    bench15.execute("alter table events add extra text default 'x'")
    assert bench15.fresh(**INCREMENTAL).reason == "the columns changed"
    entry, _ = bench15.run(**INCREMENTAL)
    assert entry.rows == 500
    bench15.assert_equal(["id", "extra"])
    assert bench15.fresh(mode="incremental", cursor="created_at").reason == "the cursor changed"
    bench15.run(mode="incremental", cursor="created_at")
    assert _position(bench15).column == "created_at"
    bench15.assert_equal(["id", "extra"])


def test_an_emptied_source_keeps_the_position(bench15: Bench) -> None:
    bench15.events(200)
    bench15.run(**INCREMENTAL)
    value = _position(bench15).value
    bench15.execute("truncate events")
    bench15.run(**INCREMENTAL)
    assert _position(bench15).value == value
    assert len(bench15.lake_rows(["id"])) == 200  # deletes are not tracked by a cursor


def test_append_adds_new_rows_once(bench15: Bench) -> None:
    bench15.events(1_000)
    options = {"mode": "append", "cursor": "updated_at"}
    bench15.run(**options)
    bench15.execute("insert into events (id, note, updated_at) select 5001, 'tie', max(updated_at) from events")
    bench15.run(**options)
    assert len(bench15.lake_rows(["id"])) == 1_001
    bench15.assert_equal()
    assert bench15.fresh(**options).fresh


def test_append_without_key_adds_everything_each_time(bench15: Bench) -> None:
    bench15.execute("create table events (id int, note text); insert into events values (1, 'a'), (1, 'a'), (2, null)")
    bench15.run(mode="append")
    bench15.run(mode="append")
    assert len(bench15.lake_rows(["id"])) == 6
    with pytest.raises(KeyInvalid):
        bench15.run(mode="append", cursor="id")


def test_truncate_replaces_everything_in_one_commit(bench15: Bench) -> None:
    bench15.execute("create table events (id int, note text); insert into events values (1, 'a'), (1, 'a'), (2, null)")
    bench15.run(mode="truncate")
    before = set(bench15.lake.files(ASSET))
    bench15.execute("update events set note = 'b' where id = 2")
    entry, _ = bench15.run(mode="truncate")
    assert (entry.seq, entry.level, entry.rows) == (2, "table", 3)
    assert not before & set(bench15.lake.files(ASSET))
    bench15.assert_equal(("id", "note"))
    assert bench15.fresh(mode="truncate").fresh


def test_a_text_cursor_into_the_lake(bench15: Bench) -> None:
    bench15.execute("create table w (id int, changed text); insert into w values (1, '20260131'), (2, '20260130')")
    bench15.execute("create view events as select * from w")
    options = {"mode": "incremental", "cursor": "changed", "key": ("id",), "cursor_format": "yyyymmdd"}
    with pytest.raises(UsageError, match="declare how it is written"):
        bench15.run(**{**options, "cursor_format": None})
    entry, _ = bench15.run(**options)
    assert entry.position.value == "20260131"  # type: ignore[union-attr]
    bench15.execute("insert into w values (3, '20260201'), (4, '1.2.2026'), (5, '20260130')")
    _, ctx = bench15.run(**options)
    assert ctx.report.notes == ["1 row has a changed that is no yyyymmdd, like '1.2.2026': read again each time"]
    assert [row[0] for row in bench15.lake_rows(["id"])] == ["1", "2", "3", "4"]
    bench15.run(**options, lookback="2d")
    bench15.assert_equal(("id", "changed"))
    assert bench15.fresh(**options, lookback="2d").fresh


def test_soft_delete_into_the_lake(bench15: Bench) -> None:
    bench15.events(200)
    bench15.execute("alter table events add actflag char(2)")
    options = {**INCREMENTAL, "soft_delete": "actflag = 'D'"}
    names = ("id", "note", "amount", "user_id")
    bench15.run(**options)
    bench15.execute("update events set actflag = 'D', updated_at = '2027-01-01' where id in (5, 6)")
    bench15.execute("update events set note = 'x', updated_at = '2027-01-01' where id = 7")
    entry, _ = bench15.run(**options)
    assert (entry.counts, entry.rows) == (Counts(0, 1, 2), 198)
    assert bench15.lake_rows(names) == bench15.source_rows(names, "actflag is distinct from 'D'")
    assert bench15.fresh(**options).fresh
    bench15.execute("update events set actflag = null, updated_at = '2027-01-02' where id = 5")
    bench15.execute("update events set actflag = 'D' where id = 8; delete from events where id = 9")
    entry, ctx = bench15.run(**options, verify_all=True)  # the scrub leaves the marked ones out too
    assert entry.counts == Counts(1, 0, 2)
    assert bench15.lake_rows(names) == bench15.source_rows(names, "actflag is distinct from 'D'"), ctx.report.notes
    entry, _ = bench15.run(**options, full_refresh=True)
    assert entry.rows == 197
    bench15.execute("update events set actflag = 'D', updated_at = '2027-01-03'")
    with pytest.raises(GuardRefused, match="are marked as deleted"):
        bench15.run(**options)


def test_cases_14_to_18_into_the_lake(bench15: Bench) -> None:
    bench15.execute(
        "create table w (a int, b text, v text, changed int); insert into w values (1, 'x', 'v', 1), (2, 'x', 'v', 2)"
    )
    bench15.execute("create view events as select * from w")  # no row versions: what the cursor misses stays missed
    options = {"mode": "incremental", "cursor": "changed", "key": ("a", "b")}
    names = ("a", "b", "v")
    bench15.run(**options)
    bench15.execute("insert into w values (3, 'x', 'case 14: a tie', 2)")
    assert bench15.run(**options)[0].counts == Counts(1)
    assert bench15.fresh(**options).fresh
    bench15.execute("insert into w values (1, 'x', 'case 18: newest', 5), (1, 'x', 'newer', 4), (4, 'y', 'new', 5)")
    entry, ctx = bench15.run(**options)
    assert (entry.counts, ctx.report.notes) == (Counts(1, 1), ["2 rows left out: a newer one by changed has their key"])
    bench15.execute("delete from w where a = 3")  # case 16: stays until everything is read, or the scrub finds it
    bench15.execute("update w set a = 40, changed = 6 where a = 4")  # case 17: comes, and the old row stays
    assert bench15.run(**options)[0].counts == Counts(1)
    assert [row[0] for row in bench15.lake_rows(names)] == ["1", "2", "3", "4", "40"]
    assert bench15.run(**options, full_refresh=True)[0].rows == 3
    assert bench15.lake_rows(names) == [("1", "x", "case 18: newest"), ("2", "x", "v"), ("40", "y", "new")]


def test_killed_while_merging_the_next_run_ends_right(bench15: Bench) -> None:
    bench15.events(3_000)
    bench15.run(**INCREMENTAL)
    bench15.execute("update events set note = 'new', updated_at = '2026-03-01' where id % 100 = 0")
    for point in ("lake.stage.file", "lake.stage.closed", "lake.prove", "lake.publish.before_commit"):
        assert _child(bench15, point, "incremental") == -9
        assert bench15.lake.ledger(ASSET).seq == 1  # type: ignore[union-attr]
    assert _child(bench15, "lake.publish.after_commit", "incremental") == -9
    assert bench15.fresh(**INCREMENTAL).fresh
    bench15.assert_equal()


def test_a_null_in_the_key_of_changes_is_refused(bench15: Bench) -> None:
    bench15.execute("create table events (id int, note text, amount int, user_id int, updated_at int)")
    bench15.execute("insert into events values (1, 'a', 1, 1, 1)")
    options = {**INCREMENTAL, "key": ("id",)}
    bench15.run(**options)
    bench15.execute("insert into events values (null, 'b', 1, 1, 2)")
    with pytest.raises(KeyInvalid, match="1 row has a null in the key"):
        bench15.run(**options)
    bench15.execute("update events set id = 2 where id is null")
    bench15.run(**options)
    bench15.assert_equal()
