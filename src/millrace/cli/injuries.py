"""The demo's injuries: done to a real shop, answered by the real command line, their results read from the data.

No injury ends well because a command said so: `result` reads rows, files and the journal. Of a shop that was hurt and
not mended it says so; the tests hold every injury to that.
"""

from __future__ import annotations

import hashlib
import json
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import psycopg

from millrace.cli import show
from millrace.cli.demo_shop import Shop, typed
from millrace.core.names import AssetId, short_run
from millrace.errors import MillraceError, StepFailed
from millrace.lake.target import LakeTarget

if TYPE_CHECKING:
    from millrace.core.quarantine import Entry

COPY = """\
# The orders in a second schema. Small segments, so that a kill finds some of them whole.
from: shop_db
to: shop_db.reports
tables:
  orders: {{key: order_id, segment_rows: {rows}}}
"""
SEGMENTS = 10
DIFFERENT = """
select count(*) from orders as s full join reports.orders as t using (order_id)
where row(s.*) is distinct from row(t.*)
"""


@dataclass(frozen=True, slots=True)
class Result:
    """What the data say: whether an injury ended as promised, one line about it, and perhaps one more."""

    ok: bool
    text: str
    more: str = ""


class Injury(Protocol):
    """Something that goes wrong, and what Millrace does about it."""

    title: str

    def hurt(self, shop: Shop) -> str:
        """Do it; returns one line that says what was done."""

    def answer(self, shop: Shop) -> None:
        """Let Millrace work."""

    def result(self, shop: Shop) -> Result:
        """Read from the data how it ended."""

    def look(self, shop: Shop) -> Sequence[str]:
        """Return the arguments of a command that looks closer."""

    def tidy(self, shop: Shop) -> None:
        """Take back what is not the source's."""


class KilledCopy:
    """kill −9 in the middle of a copy."""

    title = "kill −9 in the middle of a copy"

    def __init__(self) -> None:
        self.whole: list[str] = []
        self.planned = 0

    def hurt(self, shop: Shop) -> str:
        """Kill a first copy of the orders into `reports` once some segments are whole."""
        shop.source("drop table if exists reports.orders")
        add_copy(shop)
        at = f"postgres.stage.segment:{SEGMENTS // 2 - 1}"
        shop.millrace("run", "--select", "reports.orders", kill_at=at, code=-signal.SIGKILL)
        found = shop.source(
            "select g.xid::text, json_array_length(s.plan::json) from _millrace.segment as g"
            " join _millrace.stage as s using (layer, name) where (layer, name) = ('reports', 'orders')"
        )
        self.whole = [xid for xid, _ in found]
        self.planned = found[0][1] if found else 0
        return f"the process died with {len(self.whole)} of {self.planned} segments of reports.orders copied"

    def answer(self, shop: Shop) -> None:
        """Run again; nothing is cleaned up before."""
        shop.millrace("run", "--select", "reports.orders")

    def result(self, shop: Shop) -> Result:
        """Segments of the killed process were kept if rows that its transactions wrote are still there."""
        if shop.source("select to_regclass('reports.orders')") == [(None,)]:
            return Result(False, "reports.orders is not there")
        ((kept, rows),) = shop.source(
            "select count(distinct xmin::text) filter (where xmin::text = any(%s)), count(*) from reports.orders",
            self.whole,
        )
        ((different,),) = shop.source(DIFFERENT)
        text = f"{kept} segments kept, {self.planned - kept} copied by the next run; "
        text += f"{rows:,} rows, {different:,} differ" if different else f"all {rows:,} rows equal"
        return Result(bool(self.whole) and kept == len(self.whole) and not different, text)

    def look(self, shop: Shop) -> Sequence[str]:
        """Compare the tables."""
        return ("diff", "shop_db", "orders", "shop_db", "reports.orders")

    def tidy(self, shop: Shop) -> None:
        """Leave the copy: the last injury needs it."""


class LateCommit:
    """A transaction that commits after the run that should have seen it."""

    title = "a transaction that commits late, with an old cursor value"
    order, other = 471, 472
    copied = "select * from bronze.orders where order_id = 471"

    def hurt(self, shop: Shop) -> str:
        """Commit a change after a run has read past its cursor value."""
        with psycopg.connect(shop.url) as late:
            late.execute(
                "update orders set amount = amount + 1, updated_at = now() - interval '3 days' where order_id = %s",
                (self.order,),
            )
            shop.source("update orders set amount = amount + 1, updated_at = now() where order_id = %s", self.other)
            shop.millrace("run", "--select", "bronze.orders")
            late.commit()
        ((seen,),) = shop.asked("select max(updated_at) from bronze.orders")
        ((found,),) = shop.source("select count(*) from orders where updated_at > %s", seen)
        return f"order {self.order}, updated_at 3 days old: updated_at > last seen finds {show.count(found, 'row')}"

    def answer(self, shop: Shop) -> None:
        """Run as always."""
        shop.millrace("run", "--select", "bronze.orders")

    def result(self, shop: Shop) -> Result:
        """The lake's order is the source's."""
        ((wanted,),) = shop.source("select amount from orders where order_id = %s", self.order)
        ((found,),) = shop.asked("select amount from bronze.orders where order_id = 471")
        if found != wanted:
            return Result(False, f"amount {found} in bronze.orders, {wanted} at the source")
        return Result(True, f"the next run brought it: amount {found} in both")

    def look(self, shop: Shop) -> Sequence[str]:
        """Show the order in the lake."""
        return ("query", self.copied)

    def tidy(self, shop: Shop) -> None:
        """Nothing: the change is the source's."""


class BadRow:
    """A row that breaks a rule, among many that do not."""

    title = "a bad row among many"
    asset, order = AssetId("bronze", "orders"), 474

    def hurt(self, shop: Shop) -> str:
        """Give an order a quantity that the contract of `bronze.orders` does not allow."""
        ((quantity, rows),) = shop.source(
            "update orders set quantity = quantity + 5000, updated_at = now() where order_id = %s"
            " returning quantity, (select count(*) from orders)",
            self.order,
        )
        return f"order {self.order} of {rows:,} gets quantity {quantity}"

    def answer(self, shop: Shop) -> None:
        """Run, and mend the row in quarantine."""
        shop.millrace("run", "--select", str(self.asset))
        found = [entry.id for entry in self._entries(shop)]
        shop.millrace("quarantine", "replay", str(self.asset), *found, "--set", "quantity=2")

    def result(self, shop: Shop) -> Result:
        """The row is in quarantine with its reason, mended in the lake, and no other is missing."""
        found = self._entries(shop)
        if not self.mended(shop):
            told = ", ".join(f"{entry.status}: {entry.reason}" for entry in found) or "not in quarantine"
            return Result(False, f"order {self.order} {told}")
        everything = LakeTarget(shop.folder / "lake").entries(self.asset)
        ((rows,),) = shop.source("select count(*) from orders")
        ((there,),) = shop.asked("select count(*) from bronze.orders")
        waiting = sum(entry.status != "replayed" for entry in everything)
        fixed = len(everything) - waiting
        if rows != there + waiting:
            deleted = "; rows deleted there are found by: millrace run --full-refresh" if rows < there + waiting else ""
            return Result(False, f"{rows:,} rows at the source, {there + waiting:,} were read{deleted}")
        told = f"sum      {rows:,} source rows = {there:,} in bronze ({fixed:,} mended) + {waiting:,} in quarantine"
        return Result(True, f"{found[0].reason}: set aside, set to 2, replayed", told)

    def mended(self, shop: Shop) -> bool:
        """Whether the fixed row stands in the asset."""
        there = shop.asked("select quantity from bronze.orders where order_id = 474")
        return [entry.status for entry in self._entries(shop)] == ["replayed"] and there == [(2,)]

    def _entries(self, shop: Shop) -> list[Entry]:
        entries = LakeTarget(shop.folder / "lake").entries(self.asset)
        return [entry for entry in entries if entry.key == {"order_id": str(self.order)}]

    def look(self, shop: Shop) -> Sequence[str]:
        """Show its entry."""
        return ("quarantine", "show", str(self.asset), *(entry.id for entry in self._entries(shop)))

    def tidy(self, shop: Shop) -> None:
        """Nothing: the row is mended where it is used."""


class BrokenModel:
    """A change of a model that would more than double the revenue."""

    title = "a broken model"
    path = Path("models/silver/daily_sales.sql")
    key = "model:silver.daily_sales"
    whole, broken = "sum(orders.amount) filter", "sum(orders.amount * orders.quantity) filter"

    def __init__(self) -> None:
        self.before: tuple[Any, ...] = ()

    def hurt(self, shop: Shop) -> str:
        """Multiply an order's amount with its quantity, as if it were the price of one."""
        self.before = self._seen(shop)
        if not self._replace(shop, self.whole, self.broken):
            raise StepFailed(f"{self.path} has no sum of amounts to break")
        return f"{self.path} multiplies amount by quantity once more"

    def answer(self, shop: Shop) -> None:
        """Run the model and what is made of it, to the page."""
        shop.millrace("run", "--select", "silver.daily_sales+", code=None)

    def result(self, shop: Shop) -> Result:
        """What readers see is what they saw before, and the journal says which check stopped the publish."""
        now = self._seen(shop)
        if now != self.before:
            return Result(False, f"it was published: revenue {now[0]:,.0f} USD, before {self.before[0]:,.0f} USD")
        step = shop.last(self.key)
        error = dict(step.error) if step is not None and step.error else {}
        if error.get("code") != "GateFailed":
            return Result(False, "no check stopped it")
        what = str(error["what"]).partition(": ")[2]
        return Result(True, f"stopped: {what}", f"seen     page and warehouse as before: {now[1]:,.2f} USD")

    def _seen(self, shop: Shop) -> tuple[Any, ...]:
        """Return what readers see: the revenue of the model and of the warehouse, and the page."""
        ((model, warehouse),) = shop.asked(
            "select (select sum(total_revenue) from silver.daily_sales),"
            " (select sum(total_revenue) from marts.agg_daily_sales)"
        )
        return model, warehouse, hashlib.sha256((shop.folder / "pages" / "daily_sales.html").read_bytes()).hexdigest()

    def look(self, shop: Shop) -> Sequence[str]:
        """Show the steps of that run."""
        step = shop.last(self.key)
        return ("runs", short_run(step.run)) if step is not None else ("runs",)

    def tidy(self, shop: Shop) -> None:
        """Put the model back, also for a demo that was killed."""
        self._replace(shop, self.broken, self.whole)

    def _replace(self, shop: Shop, old: str, new: str) -> bool:
        file = shop.folder / self.path
        text = file.read_text("utf-8") if file.exists() else ""
        if old in text:
            file.write_text(text.replace(old, new), encoding="utf-8")
        return old in text


class ChangedByHand:
    """A value that somebody changes in the target."""

    title = "a value changed by hand in a PostgreSQL target"
    order = 473

    def __init__(self) -> None:
        self.values: list[str] = []
        self.found: dict[str, Any] = {}

    def hurt(self, shop: Shop) -> str:
        """Change an amount in `reports.orders`, behind Millrace's back."""
        if shop.source(DIFFERENT) != [(0,)]:
            shop.millrace("run", "--select", "reports.orders")
        self.values = [shop.source("select amount::text from orders where order_id = %s", self.order)[0][0]]
        ((changed,),) = shop.source(
            "update reports.orders set amount = amount + 1000 where order_id = %s returning amount::text", self.order
        )
        self.values.append(changed)
        return f"reports.orders: amount of order {self.order} set from {self.values[0]} to {self.values[1]}"

    def answer(self, shop: Shop) -> None:
        """Look for it, and copy again."""
        self.found = json.loads(
            shop.millrace("diff", "shop_db", "orders", "shop_db", "reports.orders", "--json", code=1)
        )
        shop.millrace("run", "--select", "reports.orders")

    def result(self, shop: Shop) -> Result:
        """`diff` named the one row, all rows are equal again, and that row alone was written."""
        ((different,),) = shop.source(DIFFERENT)
        if different:
            return Result(False, f"{show.count(different, 'row')} of reports.orders still not as at the source")
        named = [(row["key"], row["columns"]) for row in self.found.get("rows", ())]
        left, right = self.values
        if named != [({"order_id": str(self.order)}, {"amount": {"left": left, "right": right}})]:
            return Result(False, f"diff found {named or 'nothing'}")
        ((written,),) = shop.source(
            "select count(*) from reports.orders where xmin = (select xmin from reports.orders where order_id = %s)",
            self.order,
        )
        step = shop.last("copy:reports.orders")
        moved = step.message.removesuffix(" differs").removesuffix(" differ") if step is not None else "no segment"
        text = f"named by diff; {moved} read, {show.count(written, 'row')} written, all equal again"
        return Result(written == 1, text)

    def look(self, shop: Shop) -> Sequence[str]:
        """Show the run that repaired it."""
        step = shop.last("copy:reports.orders")
        return ("runs", short_run(step.run)) if step is not None else ("runs",)

    def tidy(self, shop: Shop) -> None:
        """Nothing: it is repaired."""


def add_copy(shop: Shop) -> None:
    """Add the copy into the schema `reports` to the project."""
    ((rows,),) = shop.source("select count(*) from orders")
    text = COPY.format(rows=max(1, rows // SEGMENTS))
    (shop.folder / "copies" / "reports.yaml").write_text(text, encoding="utf-8")


def all_injuries() -> tuple[Injury, ...]:
    """Return the injuries in the order in which the demo shows them."""
    return (KilledCopy(), LateCommit(), BadRow(), BrokenModel(), ChangedByHand())


def play(injury: Injury, shop: Shop, number: int, command: str) -> Result:
    """Show one injury: what was done, what became of it, and the command to look closer.

    Args:
        command: how `millrace` is called in the shop's folder.
    """
    show.out(show.painted(f" {number}  {injury.title}", "bold"))
    try:
        show.out(f" injury   {injury.hurt(shop)}")
        show.flush()
        injury.answer(shop)
        result = injury.result(shop)
    except (MillraceError, psycopg.Error, OSError, ValueError) as error:
        result = Result(False, str(error).splitlines()[0])
    finally:
        injury.tidy(shop)
    if result.ok:
        show.out(f" {show.painted('result', 'green')}   {result.text}")
        if result.more:
            show.out(f" {result.more}")
    else:
        show.out(f" {show.painted('result', 'red')}   not as promised: {result.text}")
    show.out(show.painted(f" look     {command} {typed(injury.look(shop))}", "grey"))
    show.out()
    return result
