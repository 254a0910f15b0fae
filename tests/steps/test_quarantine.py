"""Bad rows of copies and models in a real project: set aside with their reason, counted, fixed, replayed, dropped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pyarrow.parquet as pq
import pytest

from millrace.app import open_house
from millrace.app.quarantine import drop, replay
from millrace.cli.main import main
from millrace.core.names import AssetId
from millrace.core.quarantine import Entry
from millrace.engine.records import RunResult
from millrace.engine.session import RunOptions
from millrace.errors import UsageError
from millrace.lake.target import LakeTarget

BRONZE, SILVER = AssetId("bronze", "orders"), AssetId("silver", "orders")
MANIFEST = """
version: 1
name: shop
layers: {bronze: lake, silver: lake}
environments:
  dev:
    connections: {shop_db: {type: postgres, url: "${env:SHOP_DB_URL}"}}
    lake: ./lake
"""
COPIES = """
from: shop_db
to: bronze
tables:
  orders:
    mode: %s
    contract: {bad_rows: quarantine%s}
    checks: {between: {amount: [0, 1000000]}, in_set: {status: [paid, open]}, not_null: [customer], row_count: {min: 1}}
"""
ORDERS = """
create table orders (order_id bigint primary key, customer text, amount numeric(12,2), status text not null,
  updated_at timestamptz not null);
insert into orders select i, 'c' || i %% 7, i, 'paid', '2026-01-01'::timestamptz + i * interval '1 s'
  from generate_series(1, %d) i;
update orders set amount = -12.50, status = 'lost' where order_id = 17;
update orders set customer = null where order_id = 40;
"""
MODES = {"incremental": "incremental\n    cursor: updated_at", "full": "full"}


class Shop:
    """A project over one table, run in this process."""

    def __init__(self, folder: Path, url: str, rows: int = 200) -> None:
        self.folder = folder
        self.lake = LakeTarget(folder / "lake")
        self.source = psycopg.connect(url, autocommit=True)
        self.source.execute(ORDERS % rows)  # type: ignore[call-overload]
        self.write("millrace.yaml", MANIFEST)

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")

    def copies(self, mode: str, contract: str = "") -> None:
        self.write("copies/shop_db.yaml", COPIES % (MODES[mode], contract))

    def execute(self, text: str) -> None:
        self.source.execute(text)  # type: ignore[call-overload]

    def touch(self, change: str, where: str) -> None:
        """Change rows as their application does: with a new time."""
        self.execute(f"update orders set {change}, updated_at = now() where {where}")

    def run(self, full_refresh: bool = False) -> RunResult:
        with open_house(self.folder, full_refresh=full_refresh) as house:
            return house.run(house.plan(), options=RunOptions(full_refresh=full_refresh), show_as="silent")

    def rows(self, asset: AssetId = BRONZE) -> dict[int, dict[str, Any]]:
        """Return what the asset's files hold, by order."""
        found = [row for path in self.lake.files(asset) for row in pq.read_table(path, partitioning=None).to_pylist()]
        assert len({row["order_id"] for row in found}) == len(found)
        return {row["order_id"]: row for row in found}

    def ids(self, asset: AssetId = BRONZE) -> set[int]:
        return set(self.rows(asset))

    def amount(self, order: int, asset: AssetId = BRONZE) -> str | None:
        return str(self.rows(asset)[order]["amount"]) if order in self.rows(asset) else None

    def entries(self, asset: AssetId = BRONZE) -> dict[str | None, Entry]:
        return {entry.key["order_id"]: entry for entry in self.lake.entries(asset)}

    def statuses(self, asset: AssetId = BRONZE) -> dict[str | None, str]:
        return {key: entry.status for key, entry in self.entries(asset).items()}


@pytest.fixture
def shop(db18: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    monkeypatch.setenv("SHOP_DB_URL", db18)
    found = Shop(tmp_path, db18)
    yield found
    found.source.close()


ALL = set(range(1, 201))


@pytest.mark.parametrize("mode", ["full", "incremental"])
def test_bad_rows_of_a_copy_are_set_aside(shop: Shop, mode: str) -> None:
    shop.copies(mode)
    (step,) = shop.run().steps
    assert (step.status, step.message, step.error) == ("published", "2 rows → quarantine", None)
    assert shop.ids() == ALL - {17, 40}
    bad = shop.entries()
    assert bad["17"].reason == "amount is -12.50, must be in 0 … 1,000,000; status is lost, must be paid, open"
    assert (bad["17"].rule, bad["17"].column) == ("between(amount)", "amount")
    assert bad["40"].reason == "customer is null"
    balance = shop.lake.balance(BRONZE)
    assert (balance.source, balance.asset, balance.open, balance.agree) == (200, 198, 2, True)
    (entry,) = step.entries
    assert (entry.quarantined, entry.rows) == (2, 198)
    assert all(check.passed for check in step.checks)
    assert shop.run()["copy:bronze.orders"].status == "fresh", "a run with rows in quarantine is followed by a no-op"


@pytest.mark.parametrize("mode", ["full", "incremental"])
def test_sources_that_change_settle_their_entries(shop: Shop, mode: str) -> None:
    shop.copies(mode)
    shop.run()
    first = shop.entries()
    shop.touch("amount = 1", "order_id = 3")
    shop.run()
    assert {key: entry.id for key, entry in shop.entries().items()} == {key: entry.id for key, entry in first.items()}
    shop.touch("amount = 17, status = 'paid'", "order_id = 17")
    shop.touch("amount = -5", "order_id = 5")
    shop.run()
    assert shop.ids() == ALL - {5, 40}, "the good old version of 5 goes, or a full load would differ"
    assert shop.statuses() == {"5": "open", "40": "open"}
    assert shop.lake.balance(BRONZE).agree
    shop.run(full_refresh=True)
    assert (shop.ids(), shop.statuses()) == (ALL - {5, 40}, {"5": "open", "40": "open"})
    assert shop.entries()["40"].id == first["40"].id


def test_too_many_bad_rows_stop_the_publish(shop: Shop) -> None:
    shop.copies("incremental")
    shop.run()
    shop.touch("amount = -1", "order_id between 50 and 60")
    result = shop.run()
    (error,) = result.errors
    text = str(error)
    assert "bronze.orders was not published: 11 of 12 rows broke the contract and max_bad is 0.001 (10 rows)" in text
    assert "amount -1.00 (order_id 50)" in text
    assert text.count("(order_id 5") == 3, "three examples"
    assert "the last good version (" in text
    assert "copies/shop_db.yaml:8" in text
    assert shop.ids() == ALL - {17, 40}
    shop.copies("incremental", ", max_bad: 1")
    assert shop.run().exit_code == 0, "and it is not asked to read everything anew"
    assert len(shop.entries()) == 13


def test_rows_that_were_dealt_with_do_not_count_as_bad(shop: Shop) -> None:
    shop.copies("full")
    shop.run()
    with open_house(shop.folder) as house:
        drop(house, BRONZE, [])
    shop.touch("amount = -1", "order_id between 51 and 60")
    assert shop.run().exit_code == 0, "ten are allowed; the two that were given up are none of them"
    assert len(shop.entries()) == 12
    shop.touch("amount = 1, status = 'paid', customer = 'a'", "order_id in (17, 40)")
    shop.touch("amount = -1", "order_id in (61, 62)")
    (error,) = shop.run().errors
    assert "12 of 200 rows broke the contract" in str(error)


def test_none_may_be_bad(shop: Shop) -> None:
    shop.copies("full", ", max_bad: 0")
    (error,) = shop.run().errors
    assert "2 of 200 rows broke the contract and max_bad is 0" in str(error)
    assert shop.lake.ledger(BRONZE) is None


def test_without_a_contract_bad_rows_block(shop: Shop) -> None:
    shop.copies("full")
    text = (shop.folder / "copies/shop_db.yaml").read_text()
    shop.write("copies/shop_db.yaml", text.replace("    contract: {bad_rows: quarantine}\n", ""))
    (error,) = shop.run().errors
    assert (error.code, error.hint) == (
        "GateFailed",
        "to set such rows aside: contract: {bad_rows: quarantine} in copies/shop_db.yaml:5",
    )
    assert shop.lake.ledger(BRONZE) is None
    shop.touch("amount = -1", "order_id between 50 and 60")
    (error,) = shop.run().errors
    assert (error.code, error.hint) == ("GateFailed", None), "more than quarantine would take"


def test_table_rules_gate_as_before(shop: Shop) -> None:
    shop.copies("full")
    text = (shop.folder / "copies/shop_db.yaml").read_text()
    shop.write("copies/shop_db.yaml", text.replace("row_count: {min: 1}", "row_count: {min: 199}"))
    (error,) = shop.run().errors
    assert ("198 rows, wanted at least 199" in str(error), error.hint) == (True, None)
    assert shop.lake.ledger(BRONZE) is None


MODEL = "select order_id, customer, amount, status, amount / 10 as tenth from bronze.orders\n"
OPTIONS = "kind: %s\nkey: order_id\ncontract: {bad_rows: quarantine}\nchecks: {expression: [%s], between: {amount: [0, 150]}}\n"


@pytest.mark.parametrize("kind", ["full", "upsert"])
def test_bad_rows_of_a_model(shop: Shop, kind: str) -> None:
    shop.execute("delete from orders where order_id > 155")
    shop.copies("incremental")
    shop.write("models/silver/orders.sql", MODEL)
    shop.write("models/silver/orders.yaml", OPTIONS % (kind, "tenth < 14.9"))
    result = shop.run()
    step = result["model:silver.orders"]
    assert (step.status, step.message) == ("published", "7 rows → quarantine")
    assert shop.ids(SILVER) == set(range(1, 149)) - {17, 40}
    assert shop.entries(SILVER)["149"].reason == "tenth < 14.9 does not hold: tenth 14.9"
    assert shop.entries(SILVER)["149"].rule == "expression(tenth < 14.9)"
    assert shop.entries(SILVER)["151"].reason.startswith("amount is 151.00, must be in 0 … 150; tenth < 14.9 does not")
    assert shop.lake.balance(SILVER).agree
    assert shop.run().counts == {"fresh": 2}
    shop.touch("amount = 1", "order_id = 151")
    shop.touch("amount = 149.5", "order_id = 20")
    shop.run()
    assert shop.ids(SILVER) == (set(range(1, 149)) | {151}) - {17, 20, 40}
    assert set(shop.entries(SILVER)) == {"20", "149", "150", "152", "153", "154", "155"}
    assert shop.lake.balance(SILVER).agree
    shop.execute("delete from orders where order_id = 152")
    shop.run(full_refresh=True)
    assert set(shop.entries(SILVER)) == {"20", "149", "150", "153", "154", "155"}, "its row is gone"


FROZEN = ", new_columns: freeze, type_changes: freeze"


def test_frozen_columns(shop: Shop) -> None:
    shop.copies("incremental", FROZEN)
    text = (shop.folder / "copies/shop_db.yaml").read_text()
    text = text[: text.index("    checks")]
    shop.write("copies/shop_db.yaml", text)
    assert shop.run().exit_code == 0
    changes = {
        "add column coupon text": "new: coupon (text)",
        "drop column coupon, drop column customer": "dropped or renamed: customer (text)",
        "add column customer text, alter column amount type text": "retyped: amount: numeric(12,2) → text",
    }
    for change, told in changes.items():
        shop.execute(f"alter table orders {change}")
        (error,) = shop.run().errors
        assert (error.code, told in error.detail) == ("ContractBroken", True), error
        assert "copies/shop_db.yaml:8" in (error.hint or "")
        assert shop.lake.ledger(BRONZE).seq == 1  # type: ignore[union-attr]
    shop.write("copies/shop_db.yaml", text.replace("freeze", "evolve"))
    assert shop.run().exit_code == 0, "evolve: taken as they are"
    assert len(shop.ids()) == 200


def replayed(shop: Shop, *ids: str, asset: AssetId = BRONZE, **changes: str) -> RunResult:
    with open_house(shop.folder) as house:
        return replay(house, asset, ids, changes)


@pytest.mark.parametrize("mode", ["full", "incremental"])
def test_a_fix_is_replayed_and_stays(shop: Shop, mode: str) -> None:
    shop.copies(mode)
    shop.write("models/silver/orders.sql", MODEL)
    shop.write("models/silver/orders.yaml", "kind: upsert\nkey: order_id\n")
    shop.run()
    (step,) = replayed(shop, shop.entries()["17"].id[:6], amount="12.50", status="paid").steps
    assert (step.status, step.error) == ("published", None)
    assert (shop.amount(17), shop.amount(17, SILVER)) == ("12.50", None)
    assert shop.statuses() == {"17": "replayed", "40": "open"}
    balance = shop.lake.balance(BRONZE)
    assert (balance.source, balance.asset, balance.agree) == (200, 199, True)
    result = shop.run()
    assert result["copy:bronze.orders"].status == "fresh", "the source has not moved"
    assert shop.amount(17, SILVER) == "12.50", "what is made from it follows"
    shop.touch("amount = 5.5", "order_id = 5")
    for full_refresh in (False, True):
        assert shop.run(full_refresh)["copy:bronze.orders"].status == "published"
        assert (shop.amount(17), shop.amount(5)) == ("12.50", "5.50"), "the unchanged bad row undoes nothing"
        assert shop.lake.balance(BRONZE).agree
    shop.touch("amount = 17", "order_id = 17")
    shop.run()
    assert (shop.amount(17), shop.statuses()) == (None, {"17": "open", "40": "open"}), (
        "another bad version: another row"
    )
    shop.touch("status = 'paid'", "order_id = 17")
    shop.run()
    assert (shop.amount(17), shop.statuses()) == ("17.00", {"40": "open"})


def test_what_still_breaks_the_rules_stays_open(shop: Shop) -> None:
    shop.copies("incremental")
    shop.run()
    seq = shop.lake.ledger(BRONZE).seq  # type: ignore[union-attr]
    (error,) = replayed(shop, status="paid").errors
    assert error.code == "ContractBroken"
    assert "nothing of bronze.orders was replayed: 2 rows still break the contract" in str(error)
    assert "amount is -12.50, must be in 0 … 1,000,000" in str(error)
    assert shop.lake.ledger(BRONZE).seq == seq  # type: ignore[union-attr]
    (step,) = replayed(shop, customer="somebody").steps
    assert any(note.startswith("stays open: ") and "amount is -12.50" in note for note in step.notes)
    assert shop.statuses() == {"17": "open", "40": "replayed"}
    for wrong, why in (
        ({"amount": "1.005"}, "does not fit"),
        ({"order_id": "7"}, "in the key"),
        ({"amont": "1"}, "no column"),
    ):
        (error,) = replayed(shop, **wrong).errors
        assert (error.code, why in str(error)) == ("UsageError", True)
    (error,) = replayed(shop, shop.entries()["40"].id).errors
    assert "is replayed already" in str(error)
    (error,) = replayed(shop, "zzz").errors
    assert error.code == "NotFound"


def test_stricter_rules_open_a_replayed_entry_again(shop: Shop) -> None:
    shop.copies("full")
    shop.run()
    replayed(shop, shop.entries()["17"].id, amount="500000", status="paid")
    assert shop.amount(17) == "500000.00"
    text = (shop.folder / "copies/shop_db.yaml").read_text()
    shop.write("copies/shop_db.yaml", text.replace("1000000", "1000"))
    assert shop.run().exit_code == 0
    assert (shop.amount(17), shop.statuses()) == (None, {"17": "open", "40": "open"})


def test_dropped_entries_ask_no_more(shop: Shop) -> None:
    shop.copies("incremental")
    shop.run()
    with open_house(shop.folder) as house:
        (step,) = drop(house, BRONZE, [shop.entries()["17"].id]).steps
    assert (step.status, step.entries[0].quarantined, step.entries[0].level) == (
        "published",
        1,
        "table",
    )
    assert shop.run().counts == {"fresh": 1}
    shop.touch("amount = 5.5", "order_id = 5")
    shop.run()
    shop.run(full_refresh=True)
    assert (shop.statuses(), shop.ids()) == ({"17": "dropped", "40": "open"}, ALL - {17, 40})
    assert shop.lake.balance(BRONZE).agree
    shop.touch("amount = 17, status = 'paid'", "order_id = 17")
    shop.run()
    assert (shop.statuses(), shop.ids()) == ({"40": "open"}, ALL - {40})


def test_rows_of_a_model_are_not_replayed(shop: Shop) -> None:
    shop.execute("delete from orders where order_id > 155")
    shop.copies("incremental")
    shop.write("models/silver/orders.sql", MODEL)
    shop.write("models/silver/orders.yaml", OPTIONS % ("full", "tenth < 14.9"))
    shop.run()
    with pytest.raises(UsageError, match="made by a model"):
        replayed(shop, asset=SILVER)
    with open_house(shop.folder) as house:
        drop(house, SILVER, [])
    assert set(shop.statuses(SILVER).values()) == {"dropped"}
    shop.touch("amount = 5.5", "order_id = 5")
    shop.run()
    assert set(shop.statuses(SILVER).values()) == {"dropped"}, "kept by key and digest"


def test_the_command(shop: Shop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`millrace quarantine` through the real command line, in this process."""
    monkeypatch.chdir(shop.folder)

    def millrace(*arguments: str) -> tuple[int | str | None, str, str]:
        monkeypatch.setattr("sys.argv", ["millrace", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, *capsys.readouterr()

    shop.copies("incremental")
    _, out, _ = millrace("run")
    assert "2 rows → quarantine" in out
    assert "published 1 · 2 rows in quarantine: millrace quarantine list" in out
    sums = "source 200 rows = 198 in bronze.orders + 2 in quarantine (digests agree)"
    _, out, _ = millrace("quarantine", "list")
    assert "between(amount) 1, not_null(customer) 1" in out
    assert sums in out
    (held,) = json.loads(millrace("quarantine", "list", "--json")[1])
    assert (held["open"], held["source_rows"], held["asset_rows"], held["digests_agree"]) == (2, 200, 198, True)
    bad = {
        one["key"]["order_id"]: one for one in json.loads(millrace("quarantine", "show", "bronze.orders", "--json")[1])
    }
    assert bad["17"]["row"]["amount"] == "-12.50"
    _, out, _ = millrace("quarantine", "show", "bronze.orders")
    assert ("amount is -12.50" in out, sums in out) == (True, True)
    entry = bad["17"]["entry"]
    code, out, err = millrace("quarantine", "replay", "bronze.orders", entry)
    assert (code, out, "nothing of bronze.orders was replayed" in err) == (1, "", True)
    code, out, err = millrace(
        "quarantine", "replay", "bronze.orders", entry, "--set", "amount=1", "--set", "status=paid"
    )
    assert (code, err) == (0, "")
    assert "read 200 rows = 199 in bronze.orders (1 mended) + 1 in quarantine (digests agree)" in out
    assert "replayed as" in millrace("quarantine", "show", "bronze.orders", entry[:5])[1]
    assert "1 in quarantine" in millrace("status")[1]
    assert millrace("quarantine", "drop", "bronze.orders")[0] == 2, "all of them only when it is said"
    assert millrace("quarantine", "drop", "bronze.orders", "--all")[0] == 0
    assert "in quarantine" not in millrace("status")[1]
    for wrong, told in (
        (("show", "bronze.order"), 'did you mean "bronze.orders"?'),
        (("replay", "bronze.orders", "--set", "amount"), "takes column=value"),
        (("drop", "bronze.orders", entry), "is replayed already"),
    ):
        code, _, err = millrace("quarantine", *wrong)
        assert code in (1, 2)
        assert told in err


def killed(shop: Shop, point: str, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "millrace", *arguments],
        cwd=shop.folder,
        env={**os.environ, "MILLRACE_KILL_AT": point},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr


def kept(shop: Shop) -> list[str]:
    """Return the names of the quarantine's files, after what killed runs left was collected."""
    shop.lake.gc(lambda run: False)
    return sorted(path.name for path in shop.lake.folder(BRONZE).quarantine.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    "point",
    # the second file is the first without its bad rows
    ["lake.stage.file:2", "lake.stage.closed", "lake.publish.before_commit", "lake.publish.after_commit"],
)
def test_killed_with_rows_in_quarantine(shop: Shop, point: str) -> None:
    shop.copies("incremental")
    killed(shop, point, "run")
    assert (shop.lake.ledger(BRONZE) is not None) == (point == "lake.publish.after_commit")
    assert shop.run().exit_code == 0
    assert (shop.ids(), shop.statuses()) == (ALL - {17, 40}, {"17": "open", "40": "open"})
    assert shop.lake.balance(BRONZE).agree
    assert shop.run().counts == {"fresh": 1}
    assert len(kept(shop)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("point", ["lake.publish.before_commit", "lake.publish.after_commit"])
def test_killed_while_an_entry_is_replayed(shop: Shop, point: str) -> None:
    shop.copies("incremental")
    shop.run()
    asked = (
        "quarantine",
        "replay",
        "bronze.orders",
        "--set",
        "amount=1",
        "--set",
        "status=paid",
        "--set",
        "customer=a",
    )
    killed(shop, point, *asked)
    committed = point == "lake.publish.after_commit"
    assert set(shop.statuses().values()) == ({"replayed"} if committed else {"open"})
    assert shop.ids() == (ALL if committed else ALL - {17, 40}), "the rows and their entries are one"
    result = replayed(shop, amount="1", status="paid", customer="a")
    assert [error.code for error in result.errors] == (["NotFound"] if committed else [])
    assert (shop.ids(), set(shop.statuses().values())) == (ALL, {"replayed"})
    assert shop.run().counts == {"fresh": 1}
    assert len(kept(shop)) == 2, "the first load's, and the replay's"


def test_new_columns_leave_what_was_decided(shop: Shop) -> None:
    """A row is the same when the columns that it had are; the fixed one takes the new column from its source row."""
    shop.copies("incremental")
    shop.run()
    first = shop.entries()
    replayed(shop, first["17"].id, amount="12.50", status="paid")
    with open_house(shop.folder) as house:
        drop(house, BRONZE, [first["40"].id])
    shop.execute("alter table orders add column coupon text; update orders set coupon = 'k' || order_id")
    assert shop.run().exit_code == 0
    assert {key: (entry.status, entry.id) for key, entry in shop.entries().items()} == {
        "17": ("replayed", first["17"].id),
        "40": ("dropped", first["40"].id),
    }
    fixed = shop.rows()[17]
    assert (str(fixed["amount"]), fixed["status"], fixed["coupon"]) == ("12.50", "paid", "k17")
    assert shop.lake.balance(BRONZE).agree
    shop.execute("alter table orders drop column coupon")
    assert shop.run().exit_code == 0
    assert shop.statuses() == {"17": "open", "40": "open"}, "a column went: nobody can tell whether the row is the same"
