"""A run of the warehouse in a process of its own: `child.py ROOT RUN FILE [FILE …]`, killed or paused by its points."""

from __future__ import annotations

import os
import sys

from millrace.core.names import AssetId, load_id
from millrace.core.ports import StageRequest
from millrace.core.schema import Column, Kind, Schema
from millrace.duck.warehouse import WarehouseTarget
from millrace.errors import MillraceError
from millrace.testing.killpoints import arm

ORDERS = AssetId("silver", "orders")
SCHEMA = Schema(
    (Column("id", "BIGINT", Kind.INT64), Column("amount", "DECIMAL(12,2)", Kind.DECIMAL, True, 12, 2)), ("id",)
)


def run(root: str, run: str, files: list[str]) -> int:
    """Load, prove and publish; an earlier publish of the same load is adopted."""
    target = WarehouseTarget(root)
    load = load_id(run, "load:silver.orders", "warehouse")
    entry = target.ledger(ORDERS)
    if entry is not None and entry.load == load:
        target.gc(lambda _: False)
        return 0
    base = 0 if entry is None else entry.seq
    request = StageRequest(ORDERS, load, run, "load:silver.orders", base, "member", SCHEMA, {"bronze.orders": 1})
    staged = target.load(target.clone(run), ORDERS, files, SCHEMA, request)
    proof = target.prove(staged)
    try:
        target.publish([staged], [proof], {ORDERS: base})
    except MillraceError:
        target.discard(staged)
        raise
    return 0


if __name__ == "__main__":
    arm(os.environ)
    try:
        sys.exit(run(sys.argv[1], sys.argv[2], sys.argv[3:]))
    except MillraceError as error:
        print(f"{error.code}: {error}")
        sys.exit(1)
