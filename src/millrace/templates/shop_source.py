"""Fill a PostgreSQL database with the synthetic shop: customers, products and orders, the same for the same seed."""

from __future__ import annotations

import datetime as dt
from importlib.resources import files
from typing import Any

import psycopg

CUSTOMERS = """
insert into customers
select i, 'Customer ' || i,
  (array['New','Regular','Premium','VIP'])[1 + greatest(0, pg_temp.pick(i, %(seed)s + 1, 10) - 6)],
  (array['Seoul','Busan','Incheon','Daegu','Jeju'])[1 + pg_temp.pick(i, %(seed)s + 2, 5)],
  %(end)s::timestamptz - make_interval(days => 400) + make_interval(secs => i)
from generate_series(1, %(customers)s) as i
"""

PRODUCTS = """
insert into products
select i, 'Product ' || i,
  (array['Books','Electronics','Garden','Grocery','Toys','Clothing'])[1 + pg_temp.pick(i, %(seed)s + 3, 6)],
  round((2 + pg_temp.pick(i, %(seed)s + 4, 6000) / 100.0)::numeric, 2),
  %(end)s::timestamptz - make_interval(days => 400) + make_interval(secs => i)
from generate_series(1, %(products)s) as i
"""

# Orders spread over a year and growing. One in 2,000 names a customer nobody knows; one in
# 300 was touched long after its day, as cancellations and returns are.
ORDERS = """
insert into orders
select o.i, case when pg_temp.pick(o.i, %(seed)s + 5, 2000) = 0 then 900000 + o.i %% 7
                 else 1 + pg_temp.pick(o.i, %(seed)s + 6, %(customers)s) end,
  p.product_id, o.day,
  round(p.unit_cost * o.quantity * (1.15 + pg_temp.pick(o.i, %(seed)s + 7, 60) / 100.0), 2),
  o.quantity,
  case when o.late then 'cancelled'
       when o.day >= %(end)s::date - 2 then (array['pending','processing'])[1 + pg_temp.pick(o.i, %(seed)s + 8, 2)]
       when pg_temp.pick(o.i, %(seed)s + 9, 20) = 0 then 'cancelled'
       else (array['shipped','delivered','delivered'])[1 + pg_temp.pick(o.i, %(seed)s + 10, 3)] end,
  case when o.late then %(end)s::timestamptz - make_interval(secs => pg_temp.pick(o.i, %(seed)s + 11, 80000))
       else least(o.day + make_interval(secs => pg_temp.pick(o.i, %(seed)s + 12, 86400)),
                  %(end)s::timestamptz - interval '1 second') end
from (
  select i,
    (%(end)s::timestamptz at time zone 'UTC')::date - 1
      - floor(365 * (1 - sqrt((i - 0.5)::float8 / %(orders)s)))::int as day,
    1 + pg_temp.pick(i, %(seed)s + 14, 4)::int as quantity,
    pg_temp.pick(i, %(seed)s + 15, 300) = 0 as late,
    1 + pg_temp.pick(i, %(seed)s + 16, %(products)s) as product_id
  from generate_series(1, %(orders)s) as i
) as o
join products as p using (product_id)
order by o.i
"""

# Rows that no shop means: amounts of nothing and less, quantities out of bounds, a status nobody knows; in turn.
BAD_ROWS = """
update orders as o set
  amount = case bad.kind when 0 then -o.amount when 2 then 0 else o.amount end,
  quantity = case bad.kind when 1 then 1000 when 4 then 0 else o.quantity end,
  status = case bad.kind when 3 then 'lost' else o.status end
from (
  select (n - 1) %% 5 as kind, n * (%(orders)s / %(bad)s) as order_id from generate_series(1, %(bad)s) as n
) as bad
where o.order_id = bad.order_id
"""

# What a day brings: its own orders, and a touch to one in 500 of those before it, most of them long past.
NEW_ORDERS = """
insert into orders
select before.last + i,
  case when pg_temp.pick(before.last + i, %(seed)s + 5, 200) = 0 then 900000 + i %% 7
       else 1 + pg_temp.pick(before.last + i, %(seed)s + 6, %(customers)s) end,
  p.product_id, %(day)s::date,
  round(p.unit_cost * (1 + i %% 4) * (1.15 + pg_temp.pick(before.last + i, %(seed)s + 7, 60) / 100.0), 2),
  (1 + i %% 4)::int, 'pending',
  (%(day)s::date + make_interval(secs => pg_temp.pick(before.last + i, %(seed)s + 12, 86400))) at time zone 'UTC'
from (select max(order_id) as last from orders) as before
cross join generate_series(1, %(orders)s::bigint) as i
join products as p on p.product_id = 1 + pg_temp.pick(before.last + i, %(seed)s + 16, %(products)s)
order by i
"""

LATE_UPDATES = """
update orders set
  status = case when pg_temp.pick(order_id, %(seed)s + 17, 3) = 0 then 'cancelled' else 'delivered' end,
  updated_at = (%(day)s::date + make_interval(secs => pg_temp.pick(order_id, %(seed)s + 18, 86400))) at time zone 'UTC'
where order_date < %(day)s::date
  and pg_temp.pick(order_id + (%(day)s::date - date '2000-01-01'), %(seed)s + 19, 500) = 0
"""


def fill(
    connection: psycopg.Connection[Any],
    *,
    orders: int = 100_000,
    seed: int = 42,
    end: dt.date | None = None,
    bad_rows: bool | int = False,
) -> None:
    """Create and fill `customers`, `products` and `orders` in the connection's database.

    Args:
        connection: an open connection whose user may create tables.
        orders: number of orders; there is one customer for 12 orders and 500 products at the most.
        seed: same seed, same data.
        end: the day after the last order's day; default: today in UTC.
        bad_rows: how many orders are bad ones; True: one in 5,000, and at least one of each of the five kinds.
    """
    day = end or dt.datetime.now(dt.UTC).date()
    bad = max(5, orders // 5000) if bad_rows is True else int(bad_rows)
    values = {
        "orders": orders,
        "customers": max(10, orders // 12),
        "products": min(500, max(5, orders // 20)),
        "seed": seed,
        "end": dt.datetime(day.year, day.month, day.day, tzinfo=dt.UTC),
        "bad": bad,
    }
    with connection.transaction():
        connection.execute("set local timezone = 'UTC'")
        connection.execute(_text("shop_source.sql"))
        connection.execute(_text("shop_pick.sql"))
        for statement in (CUSTOMERS, PRODUCTS, ORDERS, *([BAD_ROWS] if bad else [])):
            connection.execute(statement, values)
    for table in ("customers", "products", "orders"):
        connection.execute(psycopg.sql.SQL("analyze {}").format(psycopg.sql.Identifier(table)))


def next_day(connection: psycopg.Connection[Any], day: dt.date, *, orders: int | None = None, seed: int = 42) -> int:
    """Let a day happen in a shop that `fill` made: its orders come in, and some older ones are touched.

    Args:
        connection: an open connection whose user may change the tables.
        day: after all days of the shop.
        orders: the day's new orders; default: one for 300 of those before, and at least 10.
        seed: same seed and shop, same day.

    Returns:
        How many older orders were touched: delivered or cancelled on that day.
    """
    with connection.transaction():
        connection.execute("set local timezone = 'UTC'")
        connection.execute(_text("shop_pick.sql"))
        row = connection.execute(
            "select count(*), (select count(*) from customers), (select count(*) from products) from orders"
        ).fetchone()
        assert row is not None  # noqa: S101 - an aggregate gives one row
        values = {"day": day, "seed": seed, "customers": row[1], "products": row[2]}
        values["orders"] = max(10, row[0] // 300) if orders is None else orders
        touched = connection.execute(LATE_UPDATES, values).rowcount
        connection.execute(NEW_ORDERS, values)
    return touched


def rename_customer(
    connection: psycopg.Connection[Any],
    customer_id: int = 7,
    name: str = "Customer Seven",
    at: dt.datetime | None = None,
) -> None:
    """Give a customer another name.

    Args:
        connection: an open connection whose user may change the table.
        customer_id: who.
        name: the new name.
        at: when; default: now.
    """
    connection.execute(
        "update customers set customer_name = %s, updated_at = %s where customer_id = %s",
        (name, at or dt.datetime.now(dt.UTC), customer_id),
    )


def _text(name: str) -> str:
    return files(__package__).joinpath(name).read_text("utf-8")
