"""The shop's synthetic data: the same for the same seed, with the faults it promises and no others."""

from __future__ import annotations

import datetime as dt
import json
from collections import Counter
from pathlib import Path
from typing import Any

import psycopg
import pytest

from millrace.templates.shop_events import write_events
from millrace.templates.shop_source import fill, next_day, rename_customer

END = dt.date(2026, 3, 10)
WHOLE = """
select (select md5(string_agg(t::text, '|' order by customer_id)) from customers t),
  (select md5(string_agg(t::text, '|' order by product_id)) from products t),
  (select md5(string_agg(t::text, '|' order by order_id)) from orders t)
"""


@pytest.mark.servers
def test_the_database(db18: str, other18: str) -> None:
    with psycopg.connect(db18, autocommit=True) as one, psycopg.connect(other18, autocommit=True) as other:
        for connection in (one, other):
            connection.execute("set timezone = 'UTC'")
            fill(connection, orders=2000, end=END, bad_rows=True)
        assert one.execute(WHOLE).fetchone() == other.execute(WHOLE).fetchone()

        bad = "amount <= 0 or quantity not between 1 and 100 or status = 'lost'"
        kinds = one.execute(
            f"select sign(amount), quantity, status = 'lost' from orders where {bad}".encode()
        ).fetchall()
        assert len(kinds) == 5
        assert {(-1, False), (0, False), (1, True)} <= {(sign, lost) for sign, _, lost in kinds}
        assert {0, 1000} <= {quantity for _, quantity, _ in kinds}
        unknown = "select count(*) from orders where customer_id not in (select customer_id from customers)"
        assert one.execute(unknown).fetchone() != (0,)
        late = one.execute(
            "select count(*) filter (where status = 'cancelled'), count(*) from orders"
            " where updated_at >= %s and order_date < %s",
            (END - dt.timedelta(days=1), END - dt.timedelta(days=30)),
        ).fetchone()
        assert late is not None
        assert late[0] == late[1] > 0, "orders of long ago were cancelled yesterday"
        newest = one.execute("select max(order_date), max(updated_at) < %s from orders", (END,)).fetchone()
        assert newest == (END - dt.timedelta(days=1), True)

        touched = {next_day(connection, END) for connection in (one, other)}
        rename_customer(one, 7, "Customer Seven", dt.datetime(2026, 3, 10, 9, tzinfo=dt.UTC))
        rename_customer(other, 7, "Customer Seven", dt.datetime(2026, 3, 10, 9, tzinfo=dt.UTC))
        assert one.execute(WHOLE).fetchone() == other.execute(WHOLE).fetchone()
        changed = "select count(*) filter (where order_date = %(d)s), count(*) filter (where order_date < %(d)s) from orders where updated_at >= %(d)s"
        assert one.execute(changed, {"d": END}).fetchone() == (10, *touched)
        assert touched != {0}


def test_the_clickstream(tmp_path: Path) -> None:
    landed = write_events(tmp_path / "a", events=9000, end=END)
    assert write_events(tmp_path / "b", events=9000, end=END) == landed
    files = sorted((tmp_path / "a").rglob("*.jsonl"))
    assert [path.relative_to(tmp_path / "a").as_posix() for path in files] == [
        f"clickstream/2026-03-{day:02}/part-{part}.jsonl" for day in (7, 8, 9) for part in (1, 2)
    ]
    assert [path.read_bytes() for path in files] == [
        path.read_bytes() for path in sorted((tmp_path / "b").rglob("*.jsonl"))
    ]
    assert write_events(tmp_path / "c", events=9000, end=END, seed=7).events == landed.events
    assert files[0].read_bytes() != (tmp_path / "c" / files[0].relative_to(tmp_path / "a")).read_bytes()

    counts, forms, days = Counter[str](), Counter[str](), dict[str, set[str]]()
    for path in files:
        assert path.read_bytes().endswith(b"\n") == (path.stem == "part-1"), "a day ends in a half line"
        for line in path.read_text().splitlines():
            counts["lines"] += 1
            event = _read(line)
            if event is None:
                counts["unreadable"] += 1
            elif event["event_id"] is None or event["user_id"] is None:
                counts["without_id"] += 1
            elif not 2022 <= _year(event["timestamp"], forms) <= 2026:
                counts["wrong_clock"] += 1
            elif event["event_id"] in days:
                counts["repeated"] += 1
                days[event["event_id"]].add(path.parent.name)
            else:
                days[event["event_id"]] = {path.parent.name}
    assert {name: getattr(landed, name) for name in counts} == counts
    assert landed.events == len(days)
    assert min(counts.values()) >= 2
    assert set(forms) == {"seconds", "milliseconds", "text"}
    assert sum(len(seen) > 1 for seen in days.values()) > 5, "some come again a day later"


def _read(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _year(time: int | str, forms: Counter[str]) -> int:
    if isinstance(time, str):
        forms["text"] += 1
        return dt.datetime.fromisoformat(time).astimezone(dt.UTC).year
    forms["milliseconds" if abs(time) > 10**11 else "seconds"] += 1
    return dt.datetime.fromtimestamp(time / 1000 if abs(time) > 10**11 else time, dt.UTC).year
