"""The PostgreSQL warehouse without a tool: what a generation is, what a publish keeps, refuses and leaves. Read by plain SQL."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import psycopg
import pytest

from millrace.core.names import AssetId, load_id
from millrace.core.ports import StageRequest
from millrace.core.schema import Schema
from millrace.core.staged import LedgerEntry, Staged
from millrace.errors import (
    ContractBroken,
    GuardRefused,
    NotFound,
    PermissionMissing,
    ProjectError,
    SeqMoved,
    TransientFailure,
)
from millrace.postgres.generations import Generation
from millrace.postgres.session import database_from_url
from millrace.postgres.warehouse import PostgresWarehouse

pytestmark = pytest.mark.servers

FACTS = AssetId("marts", "fact_events")
SUMMARY = AssetId("staging", "요약")
FIRST = "create table {marts}.fact_events as select 1 as id, 2.50::numeric(12,2) as amount, 'x'::text as note"
VIEW = 'create view {staging}."요약" as select count(*) as events from {marts}.fact_events'


class Place:
    """A warehouse, and a hand that builds in it as a tool would."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.warehouse = PostgresWarehouse(database_from_url(url, "dwh"))
        self.runs = 0

    def do(self, text: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url, autocommit=True) as connection:
            done = connection.execute(text.encode())
            return done.fetchall() if done.description else []

    def build(
        self, *statements: str, carried: tuple[AssetId, ...] = (), run: str = ""
    ) -> tuple[Generation, tuple[Staged, ...]]:
        """Make a generation by hand."""
        self.runs += 1
        run = run or f"run{self.runs}"
        made = self.warehouse.begin(run, ["marts", "staging"], carried, {})
        names = {name: f'"{name}{made.suffix}"' for name in made.schemas}
        for text in statements:
            self.do(text.format(**names))
        return made, self.warehouse.stage_results(made, [self.request(asset, run) for asset in (FACTS, SUMMARY)])

    def request(self, asset: AssetId, run: str) -> StageRequest:
        entry = self.warehouse.ledger(asset)
        base = entry.seq if entry else 0
        return StageRequest(asset, load_id(run, "dbt:x", "warehouse"), run, "dbt:x", base, "member", Schema(()), {})

    def publish(self, staged: tuple[Staged, ...]) -> tuple[LedgerEntry, ...]:
        expect: Mapping[AssetId, int] = {one.asset: one.base for one in staged}
        return tuple(self.warehouse.publish(staged, self.warehouse.prove_all(staged), expect))

    def hidden(self) -> list[str]:
        found = self.do("select nspname from pg_namespace where nspname ~ '__[0-9]{6}$' order by 1")
        return [name for (name,) in found]


@pytest.fixture
def place(db15: str) -> Place:
    made = Place(db15)
    _, staged = made.build(FIRST, VIEW)
    assert made.hidden() == ["marts__000001", "staging__000001"]
    assert made.do("select 1 from pg_namespace where nspname in ('marts', 'staging')") == []  # nothing to be seen yet
    entries = made.publish(staged)
    assert [(entry.asset, entry.seq, entry.rows) for entry in entries] == [(FACTS, 1, 1), (SUMMARY, 1, 1)]
    assert made.publish(staged) == entries  # a second call adopts
    return made


def test_a_publish_keeps_grants_and_views_of_others_and_carries_tables(place: Place) -> None:
    place.do("create role reader_of_marts") if not place.do(
        "select 1 from pg_roles where rolname = 'reader_of_marts'"
    ) else None
    place.do("grant select on marts.fact_events to reader_of_marts")
    place.do("create schema bi; create view bi.amounts as select id, amount from marts.fact_events")
    place.do("create index by_id on marts__000001.fact_events (id)")
    # an incremental model: the old rows are there, one is added; a new column comes first in the table
    made, staged = place.build(
        "alter table {marts}.fact_events add column day date",
        "insert into {marts}.fact_events values (2, 3, 'y')",
        VIEW,
        carried=(FACTS, AssetId("marts", "never_made")),
    )
    assert place.do(f"select indexdef ~ '\\(id\\)' from pg_indexes where schemaname = 'marts{made.suffix}'") == [
        (True,)
    ]
    assert place.do("select count(*) from bi.amounts") == [(1,)]  # not published yet
    place.publish(staged)
    assert place.do("select * from bi.amounts order by 1")[1][0] == 2
    assert place.do("select * from staging.요약") == [(2,)]
    columns = place.do(
        "select attname from pg_attribute where attrelid = 'marts.fact_events'::regclass order by attnum"
    )
    assert [name for (name,) in columns] == ["id", "amount", "note", "day"]
    assert place.do("select has_table_privilege('reader_of_marts', 'marts.fact_events', 'select')") == [(True,)]

    dropped = place.warehouse.gc(lambda _run: False)
    assert dropped == ["generation 000001 (marts__000001, staging__000001)"]
    assert place.hidden() == ["marts__000002", "staging__000002"]
    assert place.do("select count(*) from bi.amounts") == [(2,)]


def test_columns_that_readers_see_are_kept_or_block(place: Place) -> None:
    # in another order and with one more, they are the same to readers
    _, staged = place.build(
        "create table {marts}.fact_events as select now() as at, 'x'::text as note, 1 as id, 2.50::numeric(12,2) as amount",
        VIEW,
    )
    place.publish(staged)
    _, staged = place.build(
        "create table {marts}.fact_events as select 1::bigint as id, 2.5::numeric(14,2) as amount, now() as at", VIEW
    )
    with pytest.raises(ContractBroken) as caught:
        place.warehouse.prove_all(staged)
    assert caught.value.detail == (
        "marts.fact_events: column id was integer, is bigint",
        "marts.fact_events: column amount was numeric(12,2), is numeric(14,2)",
        "marts.fact_events: column note (text) is gone",
    )
    assert "drop view marts.fact_events;" in str(caught.value)
    with pytest.raises(ContractBroken):  # the publish looks again, and leaves all as it was
        place.publish(staged)
    assert place.do("select note, amount from marts.fact_events")[0][0] == "x"
    place.do("drop view marts.fact_events")  # what the hint says
    place.publish(staged)
    assert place.do("select pg_typeof(id)::text from marts.fact_events") == [("bigint",)]


def test_what_is_not_ours_is_not_replaced(place: Place) -> None:
    _, staged = place.build(FIRST, VIEW)
    place.do("drop view marts.fact_events; create table marts.fact_events (id int)")
    with pytest.raises(GuardRefused, match="is a table that Millrace did not make") as caught:
        place.publish(staged)
    assert "alter table marts.fact_events rename" in str(caught.value)
    with pytest.raises(NotFound, match=r"dbt reads raw\.t, which was not copied into the warehouse's database"):
        place.warehouse.begin("other", ["marts"], [], {AssetId("raw", "t"): 1})
    with pytest.raises(ProjectError, match=r"68 bytes, PostgreSQL allows 63"):
        place.warehouse.begin("other", ["가" * 20], [], {})
    assert len(place.hidden()) == 4
    place.do("create role builder login; create schema ledger authorization builder")
    place.do("create schema ledger_stage authorization builder")
    poor = PostgresWarehouse(
        database_from_url(place.url.replace("postgres@", "builder@"), "dwh"), ledger_schema="ledger"
    )
    with pytest.raises(PermissionMissing, match="builder may not make a generation") as denied:
        poor.begin("other", ["marts"], [], {})
    assert f"GRANT CREATE ON DATABASE {place.url.rpartition('/')[2]} TO builder;" in str(denied.value)
    place.do("drop owned by builder; drop role builder")


def test_the_second_of_two_publishes_is_refused_and_gc_leaves_what_others_use(place: Place) -> None:
    _, slow = place.build(FIRST, VIEW)
    _, fast = place.build(FIRST, VIEW)
    place.publish(fast)
    with pytest.raises(SeqMoved):
        place.publish(slow)
    place.do("create view public.mine as select * from marts__000001.fact_events")  # somebody looked behind the views
    assert [one.run for one in place.warehouse.stages()] == ["run2", "run2"]
    place.warehouse.gc(lambda run: run == "run2")
    assert place.hidden() == [
        "marts__000001",
        "marts__000002",
        "marts__000003",
        "staging__000002",
        "staging__000003",
    ]
    place.do("drop view public.mine")
    assert len(place.warehouse.gc(lambda _run: False)) == 2
    assert place.hidden() == ["marts__000003", "staging__000003"]
    _, again = place.build(FIRST, VIEW, run="again")
    place.warehouse.discard(again[0])
    assert place.hidden() == ["marts__000003", "staging__000003"]
    first, _ = place.build(FIRST, VIEW, run="again")
    second, _ = place.build(FIRST, VIEW, run="again")  # a broken-off build of the same run is dropped
    assert second.number > first.number
    assert place.hidden() == ["marts__000003", second.hidden[0], "staging__000003", second.hidden[1]]


def test_readers_are_waited_for_and_named(place: Place) -> None:
    _, staged = place.build(FIRST, VIEW)
    with psycopg.connect(place.url, application_name="tableau") as reader:
        reader.execute("select * from marts.fact_events")
        place.warehouse.patience = 0.3
        with pytest.raises(TransientFailure, match="others are reading them") as caught:
            place.publish(staged)
        assert "(tableau, idle in transaction, in its transaction for" in caught.value.detail[0]
        assert "marts.fact_events" in caught.value.detail[0]
        assert place.do("select seq from _millrace.ledger where name = 'fact_events'") == [(1,)]
        place.warehouse.patience = 20.0
        threading.Timer(0.5, reader.rollback).start()
        place.publish(staged)
    assert place.do("select seq from _millrace.ledger where name = 'fact_events'") == [(2,)]


def test_readers_see_one_version_at_a_time_and_lose_no_query(place: Place) -> None:
    """Both views in one query, from three sessions at once, through publishes that each drop the generation before."""
    text = "select (select max(id) from marts.fact_events), (select events from staging.요약)"
    seen: set[tuple[int, int]] = set()
    failed: list[psycopg.Error] = []
    done = threading.Event()

    def read() -> None:
        with psycopg.connect(place.url, autocommit=True) as connection:
            while not done.is_set():
                try:
                    seen.add(connection.execute(text.encode()).fetchone())  # type: ignore[arg-type]
                except psycopg.Error as error:
                    failed.append(error)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for version in range(2, 8):
        table = "create table {marts}.fact_events as select i as id, 1.00::numeric(12,2) as amount, 'x'::text as note"
        _, staged = place.build(f"{table} from generate_series(1, {version}) as i", VIEW)
        place.publish(staged)
        place.warehouse.gc(lambda _run: False)
    done.set()
    for reader in readers:
        reader.join()
    assert failed == []
    assert seen <= {(version, version) for version in range(1, 8)}
    assert len(seen) > 2
    place.warehouse.gc(lambda _run: False)
    assert len(place.hidden()) == 2
