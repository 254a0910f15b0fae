"""The page of a real run: where its figures come from, and a dashboard that asks for what is not there."""

from __future__ import annotations

import re
from datetime import timedelta
from html import unescape
from pathlib import Path

import pytest

from millrace.core.names import AssetId
from millrace.lake.target import LakeTarget

from .house import Bases, House

pytestmark = [pytest.mark.servers, pytest.mark.slow]


def foot(house: House) -> dict[str, str]:
    """Return the rows of the page's foot as text, by asset."""
    html = (house.folder / "pages/days.html").read_text()
    rows = re.findall(r'<th scope="row">(.*?)</th>(.*?)</tr>', html.partition("<footer")[2], re.DOTALL)
    return {name: " ".join(unescape(re.sub(r"<[^>]*>", " ", cells)).split()) for name, cells in rows}


def test_the_foot_names_each_load_with_its_proof_and_checks(bases: Bases, tmp_path: Path) -> None:
    with bases.copy("dbt", tmp_path, ran=True) as house:
        before = foot(house)
        assert list(before) == ["marts.agg_days", "1 other dbt model", "silver.orders", "bronze.orders"]
        assert "equal to the source, every row none none" in before["bronze.orders"]
        checks, copies = house.folder / "checks/marts.yaml", house.folder / "copies/shop_db.yaml"
        checks.write_text(
            checks.read_text() + "  between: {orders: {min: 2, max: 3, severity: warn}}\n"
            "bronze.orders: {between: {amount: {min: 0}}}\n"
        )
        copies.write_text(
            copies.read_text().replace("{key: order_id}", "{key: order_id, contract: {bad_rows: quarantine}}")
        )
        house.source("update orders set amount = -1, updated_at = now() where order_id in (7, 8)")
        assert house.again()["page:days"] == "published"
        after = foot(house)
        assert re.match(r"\d+ 2 \S+ \S+ UTC built from the loads below 2 of 3 passed between", after["marts.agg_days"])
        assert after["1 other dbt model"].endswith("1 of 1 passed –")
        assert after["silver.orders"].startswith("598 2 ")
        assert "equal to the query's result, in the warehouse too" in after["silver.orders"]
        assert (
            "equal to the source: 600 rows = 598 here + 2 in quarantine 1 of 1 passed 2 waiting"
            in after["bronze.orders"]
        )
        assert "2 rows in quarantine" in (house.folder / "pages/days.html").read_text().partition("</header>")[0]
        # newer loads that the page does not show leave it as it is: it says what its figures come from
        house.source("update orders set quantity = 2, updated_at = now() where order_id = 9")
        house.again("copy:bronze.orders")
        assert house.again("page:days") == {"page:days": "fresh"}
        assert again_titled(house, "Some days") == after
        LakeTarget(house.folder / "lake").vacuum(AssetId("bronze", "orders"), timedelta(0), versions=1)
        assert (
            again_titled(house, "Other days")["bronze.orders"]
            == "– 2 not known what was proven is no longer kept none –"
        )
        # a load that was a replay was compared with what it brought, not with the source
        replayed = house.run("quarantine", "replay", "bronze.orders", "--set", "amount=1")
        assert replayed.code == 0, replayed.all
        house.again()
        assert "this load: equal to the rows mended in quarantine, every row; 60" in foot(house)["bronze.orders"]
        assert "(2 mended)" in foot(house)["bronze.orders"]


def again_titled(house: House, title: str) -> dict[str, str]:
    """Make the page anew, and nothing else."""
    dashboard = house.folder / "dashboards/days.yaml"
    dashboard.write_text(re.sub("title: .*", f"title: {title}", dashboard.read_text(), count=1))
    assert house.again("page:days") == {"page:days": "published"}
    return foot(house)


def test_a_missing_column_stops_the_warehouse_and_the_page(bases: Bases, tmp_path: Path) -> None:
    with bases.copy("dbt", tmp_path, ran=True) as house:
        before = house.state()
        dashboard, model = house.folder / "dashboards/days.yaml", house.folder / "dbt/models/marts/agg_days.sql"
        good, text = dashboard.read_text(), model.read_text()
        # the model loses what the page shows: nothing of the warehouse is published
        model.write_text(text.replace("as revenue", "as revenues"))
        failed = house.run()
        assert failed.code == 2
        assert 'marts.agg_days has no column "revenue"' in failed.all
        assert "dashboards/days.yaml:5:34" in failed.all
        assert 'did you mean "revenues"?' in failed.all
        assert house.state() == before
        assert house.leftovers() == []
        # the dashboard alone is wrong: the page stays
        model.write_text(text)
        dashboard.write_text(good.replace("y: revenue", "y: revenu"))
        failed = house.run()
        assert failed.code == 2
        assert "dashboards/days.yaml:6:64" in failed.all
        assert house.state() == before
        # and one of an asset that nothing makes is refused before anything runs
        dashboard.write_text(good.replace("asset: marts.agg_days", "asset: marts.agg_day"))
        failed = house.run()
        assert failed.code == 2
        assert "dashboards/days.yaml:3:8" in failed.all
        assert 'did you mean "marts.agg_days"?' in failed.all
        dashboard.write_text(good)
        house.again()
        assert house.state() == before
