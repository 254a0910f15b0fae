"""Freshness by the ledger: every reason in its words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from millrace.core.names import AssetId
from millrace.core.plan import Freshness, Step
from millrace.core.position import Versions
from millrace.core.staged import LedgerEntry
from millrace.planner import judge

ORDERS, CUSTOMERS = AssetId("silver", "orders"), AssetId("silver", "customers")
STEP = Step("model:gold.top", "model", "gold.top", (AssetId("gold", "top"),), inputs=(ORDERS, CUSTOMERS), code="c1")
NOW = {"silver.orders": 3, "silver.customers": 1}
ENTRY = LedgerEntry(
    asset=AssetId("gold", "top"),
    seq=7,
    load=1,
    position=Versions(NOW),
    inputs=NOW,
    digest=None,
    level="none",
    time="2026-11-20T06:00:00Z",
    code="c1",
    date="2026-11-20",
)


@pytest.mark.parametrize(
    ("entry", "step", "versions", "date", "upstream", "reason"),
    [
        (ENTRY, STEP, NOW, "2026-11-20", False, "nothing changed"),
        (ENTRY, STEP, NOW, "2026-11-21", False, "nothing changed"),
        (None, STEP, NOW, None, False, "never published"),
        (ENTRY, replace(STEP, code="c2"), NOW, None, False, "code changed"),
        (ENTRY, STEP, NOW | {"silver.orders": 4}, None, False, "silver.orders changed (3 → 4)"),
        (
            ENTRY,
            STEP,
            {"silver.orders": 4, "silver.customers": 2},
            None,
            True,
            "silver.orders changed (3 → 4) and 1 more",
        ),
        (replace(ENTRY, inputs={"silver.orders": 3}), STEP, NOW, None, False, "silver.customers is new"),
        (ENTRY, STEP, {"silver.orders": 3}, None, False, "nothing changed"),
        (ENTRY, replace(STEP, dated=True), NOW, "2026-11-21", False, "the date changed (2026-11-20 → 2026-11-21)"),
        (ENTRY, replace(STEP, dated=True), NOW, "2026-11-20", False, "nothing changed"),
        (ENTRY, STEP, NOW, None, True, "an input changes"),
        (ENTRY, STEP, NOW, None, ["silver.orders"], "silver.orders changes"),
        (ENTRY, STEP, NOW, None, ["silver.orders", "silver.customers"], "silver.orders and 1 more change"),
        (ENTRY, STEP, NOW, None, [], "nothing changed"),
    ],
)
def test_reasons(entry, step, versions, date, upstream, reason):
    assert judge(entry, step, versions, date, upstream) == Freshness(reason == "nothing changed", reason)
