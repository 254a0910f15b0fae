"""Each injury of the demo says no where nobody mended it, and where what mends it is switched off.

That they end well is shown by the demo itself: tests/cli/test_demo.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from millrace.cli.demo_shop import Shop
from millrace.cli.injuries import BadRow, BrokenModel, ChangedByHand, KilledCopy, LateCommit, add_copy

from .house import Bases

pytestmark = [pytest.mark.servers, pytest.mark.slow]


@pytest.fixture
def shop(bases: Bases, tmp_path: Path) -> Iterator[Shop]:
    with bases.copy("shop", tmp_path, ran=True) as house:
        yield Shop(house.folder, house.url, environment={"SHOP_DB_URL": house.url})


def test_a_killed_copy_that_keeps_no_segment(shop: Shop) -> None:
    injury = KilledCopy()
    assert "segments of reports.orders copied" in injury.hurt(shop)
    assert injury.whole
    assert injury.result(shop).text == "reports.orders is not there"
    shop.source("delete from _millrace.segment")  # nothing says any more which rows are whole
    injury.answer(shop)
    found = injury.result(shop)
    assert not found.ok
    assert found.text.startswith("0 segments kept")
    assert "all 3,000 rows equal" in found.text


def test_a_late_commit_that_no_run_looks_for(shop: Shop) -> None:
    injury = LateCommit()
    assert injury.hurt(shop).endswith("finds 0 rows")
    assert not injury.result(shop).ok
    manifest = max(shop.folder.glob("lake/bronze/orders/_millrace/loads/*.json"), key=lambda file: file.stat().st_mtime)
    position = json.loads(manifest.read_text())
    position["entry"]["position"]["snapshot"] = None  # nothing says any more which transactions were open
    manifest.write_text(json.dumps(position))
    injury.answer(shop)
    assert not injury.result(shop).ok, "by the cursor alone it is never seen"


def test_a_bad_row_that_is_set_aside_and_not_mended_or_let_in(shop: Shop) -> None:
    injury = BadRow()
    injury.hurt(shop)
    assert injury.result(shop).text == "order 474 not in quarantine"
    shop.millrace("run", "--select", "bronze.orders")
    assert "order 474 open: quantity is 500" in injury.result(shop).text
    injury.answer(shop)
    assert injury.result(shop).ok
    copies = shop.folder / "copies/shop_db.yaml"
    copies.write_text(copies.read_text().replace("quantity: [1, 100]", "quantity: [1, 9999]"))
    shop.millrace("run", "--select", "bronze.orders", "--full-refresh")
    assert not injury.result(shop).ok


def test_a_broken_model_that_no_check_stops(shop: Shop) -> None:
    injury = BrokenModel()
    injury.hurt(shop)
    assert injury.result(shop).text == "no check stopped it"
    options = shop.folder / injury.path.with_suffix(".yaml")
    options.write_text("description: Nothing is asked of it.\n")
    shop.millrace("run", "--select", "silver.daily_sales")
    assert "it was published" in injury.result(shop).text
    BrokenModel().tidy(shop)  # as the demo after one that was killed
    assert "orders.quantity" not in (shop.folder / injury.path).read_text()


def test_a_changed_value_that_is_not_repaired_or_with_everything_else(shop: Shop) -> None:
    injury = ChangedByHand()
    add_copy(shop)
    shop.millrace("run", "--select", "reports.orders")
    injury.hurt(shop)
    assert "1 row of reports.orders still not as at the source" in injury.result(shop).text
    injury.answer(shop)
    assert injury.result(shop).ok
    shop.source("update reports.orders set amount = amount")  # as a copy of the whole table would write it
    found = injury.result(shop)
    assert not found.ok
    assert "3,000 rows written" in found.text
