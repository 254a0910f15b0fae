"""Bad rows of copies from PostgreSQL to PostgreSQL: set aside with their reason, counted, fixed, replayed, dropped."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from doors import execute, leftovers, rows
from psycopg import sql

from millrace.app import open_house
from millrace.app.quarantine import drop, entries, held, replay
from millrace.cli.main import main
from millrace.core.names import AssetId, TableRef
from millrace.core.staged import LedgerEntry
from millrace.engine.records import RunResult
from millrace.engine.session import RunOptions
from millrace.errors import UsageError
from millrace.postgres.digest import row_hash
from millrace.postgres.reader import PostgresReader
from millrace.postgres.session import database_from_url

pytestmark = pytest.mark.servers

ORDERS = AssetId("raw", "orders")
MANIFEST = """
version: 1
name: shop
environments:
  dev:
    connections:
      shop_db: {type: postgres, url: "${env:SHOP_DB_URL}"}
      reports: {type: postgres, url: "${env:REPORTS_URL}"}
"""
COPIES = """
from: shop_db
to: reports.raw
tables:
  orders:
    mode: %s
    segment_rows: 1000
    contract: {bad_rows: quarantine%s}
    checks: {between: {amount: [0, 1000000]}, in_set: {status: [paid, open]}, not_null: [customer], row_count: {min: 1}}
"""
SOURCE = (
    "create type mood as enum ('sad', 'ok')",
    (
        "create table orders (order_id bigint primary key, customer text, amount numeric(12,2), status char(5) not null,"
        " updated_at timestamptz not null, mood mood, tags text[], extra jsonb, ratio float8, raw bytea,"
        " twice numeric generated always as (amount * 2) stored)"
    ),
    (
        "insert into orders select i, 'c' || i % 7, i, 'paid', '2026-01-01'::timestamptz + i * interval '1 s', 'ok',"
        " array['a,b', null, '\"'], jsonb_build_object('n', i), i / 7.0, decode('00ff', 'hex')"
        " from generate_series(1, 2000) i"
    ),
    "update orders set amount = -12.50, status = 'lost' where order_id = 17",
    "update orders set customer = null, extra = null where order_id = 40",
)
MODES = {"incremental": "incremental\n    cursor: updated_at", "append": "append\n    cursor: updated_at"}
ALL = set(range(1, 2001))
NAMES = "order_id, customer, amount, status, updated_at, mood, tags, extra, ratio, raw, twice"


class Shop:
    """A project that copies one table into another database, run in this process."""

    def __init__(self, folder: Path, source: str, target: str) -> None:
        self.folder, self.source, self.target = folder, source, target
        execute(source, *SOURCE)
        execute(target, "create role reports_reader")
        self.write("millrace.yaml", MANIFEST)

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")

    def copies(self, mode: str, contract: str = "") -> None:
        self.write("copies/shop_db.yaml", COPIES % (MODES.get(mode, mode), contract))

    def touch(self, change: str, where: str) -> None:
        execute(self.source, f"update orders set {change}, updated_at = clock_timestamp() where {where}")

    def run(self, full_refresh: bool = False) -> RunResult:
        with open_house(self.folder, full_refresh=full_refresh) as house:
            return house.run(house.plan(), options=RunOptions(full_refresh=full_refresh), show_as="silent")

    def good(self, full_refresh: bool = False) -> LedgerEntry | None:
        (step,) = self.run(full_refresh).steps
        assert step.error is None, step.error
        return step.entries[0] if step.entries else None

    def ids(self) -> set[int]:
        return {row[0] for row in rows(self.target, "select order_id from raw.orders")}

    def entries(self) -> dict[str, tuple[str, str]]:
        query = "select key[1], status, reason from _millrace.quarantine order by 1"
        return {key: (status, reason) for key, status, reason in rows(self.target, query)}

    def statuses(self) -> dict[str, str]:
        return {key: status for key, (status, _) in self.entries().items()}

    def sums(self) -> None:
        """Every row of the source is in the target or, as it is there, in quarantine; replayed ones are in both."""
        source = {
            row[0]: row[1]
            for row in rows(self.source, f"select order_id, to_jsonb(o) from (select {NAMES} from orders) o")
        }
        target = {
            row[0]: row[1]
            for row in rows(self.target, f"select order_id, to_jsonb(o) from (select {NAMES} from raw.orders) o")
        }
        texts = ", ".join(f"'{name}', {name}::text" for name in NAMES.split(", "))
        kept = rows(self.target, "select key[1]::int, row, status from _millrace.quarantine")
        here = {
            row[0]: row[1] for row in rows(self.source, f"select order_id, jsonb_build_object({texts}) from orders")
        }
        for key, row, status in kept:
            assert {**row, "status": row["status"].strip()} == here[key]
            assert (key in target) == (status == "replayed")
            target[key] = source[key]
        assert target == source


@pytest.fixture
def shop(db15: str, other18: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("SHOP_DB_URL", db15)
    monkeypatch.setenv("REPORTS_URL", other18)
    found = Shop(tmp_path, db15, other18)
    yield found
    execute(other18, "drop owned by reports_reader", "drop role reports_reader")


@pytest.fixture
def millrace(shop: Shop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.chdir(shop.folder)

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["millrace", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out + said.err

    return run


@pytest.mark.parametrize("mode", ["full", "incremental", "append", "truncate"])
def test_bad_rows_are_set_aside(shop: Shop, mode: str) -> None:
    shop.copies(mode)
    (step,) = shop.run().steps
    assert (step.status, step.message, step.error) == ("published", "2 rows → quarantine", None)
    assert shop.ids() == ALL - {17, 40}
    assert shop.entries() == {
        "17": ("open", "amount is -12.50, must be in 0 … 1,000,000; status is lost, must be paid, open"),
        "40": ("open", "customer is null"),
    }
    (entry,) = step.entries
    assert (entry.quarantined, entry.rows) == (2, 1998)
    assert all(check.passed for check in step.checks)
    shop.sums()
    assert shop.run()["copy:raw.orders"].status == "fresh", "a run with rows in quarantine is followed by a no-op"
    execute(
        shop.target,
        "create view paid as select order_id from raw.orders",
        "grant select on raw.orders to reports_reader",
    )
    # the source changes: an entry is mended, a good row turns bad, a bad one is new
    shop.touch("amount = 17, status = 'paid'", "order_id = 17")
    shop.touch("amount = -5", "order_id = 5")
    shop.touch("amount = 6", "order_id = 6")
    execute(
        shop.source,
        "insert into orders (order_id, customer, amount, status, updated_at) values (2001, 'x', -1, 'paid', clock_timestamp())",
    )
    shop.good()
    if mode == "append":
        assert shop.statuses() == {"40": "open", "2001": "open"}, "append only adds: 5 stays as it was"
        assert shop.ids() == ALL - {40}
    else:
        assert shop.statuses() == {"40": "open", "5": "open", "2001": "open"}
        assert shop.ids() == ALL - {40, 5}, "the good old version of 5 goes: else a full load would differ"
        shop.sums()
        assert rows(
            shop.target, "select has_table_privilege('reports_reader', 'raw.orders', 'select'), count(*) > 9 from paid"
        ) == [(True, True)]
    assert shop.run()["copy:raw.orders"].status == "fresh"
    assert leftovers(shop.target) == []


def test_entries_are_replayed_and_dropped(shop: Shop, millrace: Any) -> None:
    shop.copies("full")
    shop.good()
    code, text = millrace("quarantine", "replay", "raw.orders", "--set", "amount=7")
    assert code == 1
    assert "nothing of raw.orders was replayed: 2 rows still break the contract" in text
    assert "status is lost, must be paid, open" in text
    with open_house(shop.folder) as house:
        (waiting,) = (one for one in entries(house, ORDERS) if one.key["order_id"] == "17")
        result = replay(house, ORDERS, [waiting.id[:6]], {"amount": "7.50", "status": "paid"})
        assert result.errors == ()
        (entry,) = result.steps[0].entries
        assert (entry.rows, entry.quarantined, entry.level) == (1999, 1, "table")
        with pytest.raises(UsageError, match="is replayed already"):
            raise replay(house, ORDERS, [waiting.id], {}).errors[0]
        with pytest.raises(UsageError, match="does not fit its column"):
            raise replay(house, ORDERS, [], {"amount": "much"}).errors[0]
    found = rows(shop.target, "select amount::text, twice::text, status from raw.orders where order_id = 17")
    assert found == [("7.50", "15.00", "paid ")]
    shop.sums()
    assert shop.run()["copy:raw.orders"].status == "fresh", "the source's bad row undoes nothing"
    shop.touch("amount = 1", "order_id = 3")
    assert shop.good() is not None
    assert (shop.statuses(), len(shop.ids())) == ({"17": "replayed", "40": "open"}, 1999)
    shop.good(full_refresh=True)
    assert rows(shop.target, "select amount::text from raw.orders where order_id = 17") == [("7.50",)]
    with open_house(shop.folder) as house:
        assert drop(house, ORDERS, []).errors == ()
        (sums,) = held(house)
        assert sums.to_json() | {"since": None} == {
            "asset": "raw.orders", "open": 0, "replayed": 1, "dropped": 1, "since": None, "reasons": {},
            "source_rows": 2000, "source_compared": True, "asset_rows": 1999, "digests_agree": True,
        }  # fmt: skip
    text = "".join(millrace("quarantine", *told)[1] for told in (["list"], ["show", "raw.orders", waiting.id]))
    assert "source 2,000 rows = 1,999 in raw.orders (1 mended) + 0 in quarantine + 1 dropped (digests agree)" in text
    assert "7.50" in text
    assert millrace("verify", "raw.orders")[0] == 0
    # stricter rules open a fix again; rules that all rows hold bring them back
    text = (shop.folder / "copies/shop_db.yaml").read_text()
    shop.write("copies/shop_db.yaml", text.replace("[0, 1000000]", "[8, 1000000]"))
    shop.good()
    assert shop.statuses() == {"17": "open", "40": "dropped", **dict.fromkeys(map(str, (1, 2, 3, 4, 5, 6, 7)), "open")}
    shop.write(
        "copies/shop_db.yaml", text.replace("[0, 1000000]", "[-100, 1000000]").replace("paid, open", "paid, lost")
    )
    shop.good()
    assert (shop.statuses(), len(shop.ids())) == ({"40": "dropped"}, 1999)
    shop.sums()
    shop.touch("customer = 'x'", "order_id = 40")
    shop.good()
    assert (shop.statuses(), shop.ids()) == ({}, ALL)


POINTS = ("postgres.publish.before_commit", "postgres.publish.after_commit")


def test_killed_between_stage_and_publish(shop: Shop) -> None:
    shop.copies("full")

    def killed(point: str) -> None:
        command = [sys.executable, "-m", "millrace", "run", "--project", str(shop.folder)]
        done = subprocess.run(command, env={**os.environ, "MILLRACE_KILL_AT": point}, capture_output=True, check=False)
        assert done.returncode < 0, (point, done.stderr)

    for number, point in enumerate(POINTS):
        killed(point)
        if number < 1:
            assert rows(shop.target, "select to_regclass('raw.orders')") == [(None,)]
            assert rows(shop.target, "select count(*) from _millrace.quarantine") == [(0,)]
    shop.good()
    assert (shop.statuses(), shop.ids()) == ({"17": "open", "40": "open"}, ALL - {17, 40})
    shop.touch("amount = -5", "order_id = 5")
    shop.touch("amount = 17, status = 'paid'", "order_id = 17")
    for point in POINTS[:1]:
        killed(point)
        assert (shop.statuses(), shop.ids()) == ({"17": "open", "40": "open"}, ALL - {17, 40})
    shop.good()
    assert (shop.statuses(), shop.ids()) == ({"5": "open", "40": "open"}, ALL - {5, 40})
    shop.sums()
    assert leftovers(shop.target) == []


def test_bad_rows_block_without_a_contract_and_too_many_with_one(shop: Shop, millrace: Any) -> None:
    shop.copies("full", ", max_bad: 0")
    (error,) = shop.run().errors
    assert "raw.orders was not published: 2 of 2,000 rows broke the contract and max_bad is 0" in str(error)
    assert "amount -12.50 (order_id 17)" in str(error)
    text = (shop.folder / "copies/shop_db.yaml").read_text()
    shop.write("copies/shop_db.yaml", text.replace("    contract: {bad_rows: quarantine, max_bad: 0}\n", ""))
    (error,) = shop.run().errors
    assert (error.code, error.hint) == (
        "GateFailed",
        "to set such rows aside: contract: {bad_rows: quarantine} in copies/shop_db.yaml:5",
    )
    assert "1 of 2,000 rows has amount outside 0 … 1,000,000" in str(error)
    assert rows(shop.target, "select to_regclass('raw.orders')") == [(None,)]
    execute(shop.source, "create table customers (name text primary key)", "insert into customers values ('c1')")
    shop.write("copies/customers.yaml", "from: shop_db\nto: reports.raw\ntables: {customers: {}}\n")
    shop.write("copies/shop_db.yaml", shop_checks("{row_count: {max: 1}}"))
    shop.run()
    checks = (
        "{not_null: [order_id], unique: [[status, order_id]], row_count: {min: 2000}, schema: {order_id: bigint,"
        " amount: 'decimal(12,2)', ratio: double}, expression: [sum(amount) > 0, \"regexp_matches(status, '^[a-z]')\","
        " {sql: 'ratio <> ratio', severity: warn}], freshness: {column: updated_at, max_age: 5000w},"
        " between: {ratio: {min: 1, severity: warn}}, in_set: {mood: [ok]},"
        " relationships: {customer: {to: raw.customers.name, severity: warn}}}"
    )
    shop.write("copies/shop_db.yaml", shop_checks(checks))
    step = shop.run()["copy:raw.orders"]
    assert step.error is None
    assert {check.name: check.failing for check in step.checks if not check.passed} == {
        "expression(ratio <> ratio)": 2000,
        "between(ratio)": 6,
        "relationships(customer → raw.customers.name)": 1713,
    }
    shop.touch("mood = 'sad'", "order_id = 9")
    (error,) = shop.run().errors
    assert "raw.orders was not published: 1 of 2,000 rows has mood outside ok" in str(error)
    assert rows(shop.target, "select mood::text from raw.orders where order_id = 9") == [("ok",)]
    shop.write("copies/shop_db.yaml", shop_checks("{expression: ['approx_quantile(amount, 0.5) > 1']}"))
    assert "PostgreSQL does not understand a check" in str(shop.run().errors[0])


def shop_checks(checks: str) -> str:
    return f"from: shop_db\nto: reports.raw\ntables:\n  orders: {{checks: {checks}}}\n"


def test_the_scrub_knows_rows_in_quarantine(shop: Shop, millrace: Any) -> None:
    shop.copies("incremental")
    shop.good()
    with open_house(shop.folder) as house:
        (waiting,) = (one for one in entries(house, ORDERS) if one.key["order_id"] == "17")
        assert replay(house, ORDERS, [waiting.id], {"amount": "7.50", "status": "paid"}).errors == ()
    execute(
        shop.target,
        "update raw.orders set amount = 99 where order_id = 300",
        "delete from raw.orders where order_id = 301",
    )
    execute(shop.source, "delete from orders where order_id = 40")
    code, text = millrace("verify", "raw.orders")
    assert code == 1
    assert "1 differs · 1 only left · 1 only right" in text
    code, text = millrace("verify", "raw.orders", "--repair")
    assert code == 0, text
    assert (shop.statuses(), len(shop.ids())) == ({"17": "replayed"}, 1999)
    shop.sums()
    assert rows(shop.target, "select amount::text from raw.orders where order_id in (17, 300) order by 1") == [
        ("300.00",),
        ("7.50",),
    ]


def test_a_column_that_came_leaves_entries_as_they_are(shop: Shop) -> None:
    shop.copies("full")
    shop.good()
    with open_house(shop.folder) as house:
        (waiting,) = (one for one in entries(house, ORDERS) if one.key["order_id"] == "17")
        assert replay(house, ORDERS, [waiting.id], {"amount": "7.50", "status": "paid"}).errors == ()
    execute(shop.source, "alter table orders add column more int default 3")
    shop.good()
    assert shop.statuses() == {"17": "replayed", "40": "open"}
    assert rows(shop.target, "select amount::text, more from raw.orders where order_id = 17") == [("7.50", 3)]
    assert shop.run()["copy:raw.orders"].status == "fresh"
    shop.touch("amount = -1", "order_id = 9")
    entry = shop.good()
    assert entry is not None
    assert (entry.counts.deleted, entry.rows) == (1, 1998)
    execute(shop.target, "drop table raw.orders")
    shop.good()
    assert (shop.statuses(), len(shop.ids())) == ({"17": "replayed", "40": "open", "9": "open"}, 1998)


@pytest.mark.parametrize("mode", ["append", "incremental"])
def test_columns_that_come_and_change_are_checked_in_the_rows_that_stay(shop: Shop, mode: str) -> None:
    shop.copies(mode)
    shop.good()
    execute(shop.source, "alter table orders add column more int", "alter table orders alter column extra type text")
    new = "select 3000 + g, 'new', 5, 'open', clock_timestamp(), 'ok', null, 'x', 1, null from generate_series(1, 2) g"
    execute(
        shop.source,
        f"insert into orders (order_id, customer, amount, status, updated_at, mood, tags, extra, ratio, raw) {new}",
    )
    assert shop.good() is not None
    assert shop.statuses() == {"17": "open", "40": "open"}
    assert rows(shop.target, "select extra, more from raw.orders where order_id in (7, 3001) order by 1") == [
        ("x", None),
        ('{"n": 7}', None),
    ]


@pytest.fixture
def encodings(shop: Shop) -> Any:
    """Databases that know no encoding, and few characters."""
    made = "encoding '{}' locale 'C' template template0"
    execute(shop.source, f"create database ascii {made.format('SQL_ASCII')}")
    execute(shop.target, f"create database latin {made.format('LATIN1')}")
    unchecked, latin = (
        urlsplit(url)._replace(path=f"/{name}").geturl()
        for url, name in ((shop.source, "ascii"), (shop.target, "latin"))
    )
    execute(
        unchecked,
        'create table orders (order_id int primary key, name text, "Other" json, tags text[])',
        "insert into orders select i, 'n' || i, null, array['a', null] from generate_series(1, 3000) i",
        "update orders set name = convert_from('\\xff41', 'SQL_ASCII') where order_id in (7, 1234)",
        'update orders set "Other" = to_json(name) where order_id = 7',
    )
    execute(shop.source, "update orders set customer = '漢字' where order_id = 9")
    yield unchecked, latin
    execute(shop.source, "drop database ascii with (force)")
    execute(shop.target, "drop database latin with (force)")


def test_texts_that_cannot_be_carried_are_named(
    shop: Shop, encodings: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing() -> tuple[str, list[str]]:
        shop.write("copies/shop_db.yaml", shop_checks("{}"))
        (error,) = shop.run().errors
        assert error.code == "ContractBroken", str(error)
        assert "orders in shop_db" in str(error)
        return str(error).splitlines()[0], sorted(error.detail)

    unchecked, latin = encodings
    monkeypatch.setenv("SHOP_DB_URL", unchecked)
    assert failing() == (
        '2 rows have texts that cannot be carried: invalid byte sequence for encoding "UTF8"',
        ["order_id 1234: name", 'order_id 7: name, "Other"'],
    )
    assert leftovers(shop.target) == []
    monkeypatch.setenv("SHOP_DB_URL", shop.source)
    monkeypatch.setenv("REPORTS_URL", latin)
    message, rows_named = failing()
    assert message.startswith("1 row has a text that cannot be carried: character with byte sequence 0x")
    assert rows_named == ["order_id 9: customer"]


UNREADABLE = "select key[1], status, reason, convert_from(bytes, 'UTF8')::jsonb from _millrace.quarantine order by 1"


@pytest.mark.parametrize("mode", ["full", "truncate"])
def test_texts_that_cannot_be_carried_are_set_aside(
    shop: Shop, encodings: tuple[str, str], millrace: Any, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    unchecked, _ = encodings
    monkeypatch.setenv("SHOP_DB_URL", unchecked)

    def copies(contract: str) -> None:
        contract = f"{{bad_rows: quarantine{contract}}}"
        text = f"from: shop_db\nto: reports.raw\ntables:\n  orders: {{mode: {mode}, contract: {contract}}}\n"
        shop.write("copies/shop_db.yaml", text)

    copies(", max_bad: 0")
    (error,) = shop.run().errors
    assert "raw.orders was not published: 2 of 3,000 rows broke the contract and max_bad is 0" in str(error)
    assert 'order_id 7: name, "Other"' in str(error)
    assert leftovers(shop.target) == []
    copies("")
    (step,) = shop.run().steps
    assert (step.status, step.message, step.error) == ("published", "2 rows → quarantine", None)
    assert (step.entries[0].rows, step.entries[0].quarantined, step.entries[0].level) == (2998, 2, "table")
    assert shop.ids() == set(range(1, 3001)) - {7, 1234}
    why = "holds bytes that are no text"
    one = {"encoding": "SQL_ASCII", "columns": {"name": "ff41"}}
    two = {"encoding": "SQL_ASCII", "columns": {"name": "ff41", "Other": "22ff4122"}}
    assert rows(shop.target, UNREADABLE) == [
        ("1234", "open", f"name {why}", one),
        ("7", "open", f'name {why}; "Other" {why}', two),
    ]
    with open_house(shop.folder) as house:
        (sums,) = held(house)
        assert (sums.balance.source, sums.balance.asset, sums.balance.agree) == (3000, 2998, True)
    assert shop.run()["copy:raw.orders"].status == "fresh"
    text = millrace("quarantine", "show", "raw.orders")[1]
    assert f"name {why}" in text
    assert millrace("verify", "raw.orders")[0] == 0
    # other rows change, a bad one takes other bytes, one is new, one is mended
    execute(unchecked, "update orders set name = 'x' where order_id = 5")
    shop.good()
    assert rows(shop.target, "select name from raw.orders where order_id = 5") == [("x",)]
    assert len(rows(shop.target, UNREADABLE)) == 2
    execute(unchecked, "update orders set name = convert_from('\\xfe', 'SQL_ASCII') where order_id in (1234, 8)")
    shop.good()
    assert [(row[0], row[3]["columns"]["name"]) for row in rows(shop.target, UNREADABLE)] == [
        ("1234", "fe"), ("7", "ff41"), ("8", "fe"),
    ]  # fmt: skip
    assert 8 not in shop.ids(), "the good old version goes"
    code, text = millrace("quarantine", "replay", "raw.orders")
    assert code == 1
    assert "name cannot be held by the table as it is: --set name=…" in text
    with open_house(shop.folder) as house:
        (waiting,) = (entry for entry in entries(house, ORDERS) if entry.key["order_id"] == "8")
        assert waiting.row["name"] == "\\xfe"
        assert replay(house, ORDERS, [waiting.id], {"name": "eight"}).errors == ()
        (given_up,) = (entry for entry in entries(house, ORDERS) if entry.key["order_id"] == "1234")
        assert drop(house, ORDERS, [given_up.id]).errors == ()
        (sums,) = held(house)
        assert (sums.balance.source, sums.balance.asset, sums.balance.agree) == (3000, 2998, True)
    assert rows(shop.target, "select name from raw.orders where order_id = 8") == [("eight",)]
    assert shop.run()["copy:raw.orders"].status == "fresh"
    execute(unchecked, "update orders set name = 'y', \"Other\" = null where order_id = 7")
    shop.good()
    assert [(row[0], row[1]) for row in rows(shop.target, UNREADABLE)] == [("1234", "dropped"), ("8", "replayed")]
    assert rows(shop.target, "select name from raw.orders where order_id in (7, 8) order by order_id") == [
        ("y",),
        ("eight",),
    ]
    execute(unchecked, "update orders set name = 'z' where order_id = 8", "delete from orders where order_id = 1234")
    shop.good()
    assert rows(shop.target, UNREADABLE) == []
    assert shop.ids() == set(range(1, 3001)) - {1234}
    assert leftovers(shop.target) == []


def test_characters_that_the_target_lacks_are_set_aside(
    shop: Shop, encodings: tuple[str, str], millrace: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, latin = encodings
    monkeypatch.setenv("REPORTS_URL", latin)

    shop.copies("full")
    shop.good()
    assert rows(latin, "select key[1], reason from _millrace.quarantine order by 1") == [
        ("17", "amount is -12.50, must be in 0 ... 1,000,000; status is lost, must be paid, open"),
        ("40", "customer is null"),
        ("9", "customer holds characters that LATIN1 lacks"),
    ]
    source = PostgresReader(database_from_url(shop.source, "shop"))
    with source.snapshot() as snap:
        columns = source.source(TableRef("public", "orders"), connection=snap.connection).columns
        query = sql.SQL("select {} from orders where order_id = 9").format(row_hash(columns))
        assert snap.connection.execute(query).fetchall() == rows(
            latin, "select digest from _millrace.quarantine where bytes is not null"
        )
    assert shop.run()["copy:raw.orders"].status == "fresh"
    _, text = millrace("quarantine", "show", "raw.orders")
    assert "customer holds characters that LATIN1 lacks" in text
    with open_house(shop.folder) as house:
        (waiting,) = (one for one in entries(house, ORDERS) if one.key["order_id"] == "9")
        assert waiting.row["customer"] == "漢字"
    shop.copies("incremental")
    (error,) = shop.run().errors
    assert "which only a table's copy in mode full or truncate knows" in str(error)
    shop.copies("full")
    shop.touch("customer = 'é'", "order_id = 9")
    shop.good()
    assert rows(latin, "select customer from raw.orders where order_id = 9") == [("é",)]
    assert rows(latin, "select count(*) from _millrace.quarantine") == [(2,)]
