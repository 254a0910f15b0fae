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


def fill(
    connection: psycopg.Connection[Any], *, orders: int = 100_000, seed: int = 42, end: dt.date | None = None
) -> None:
    """Create and fill `customers`, `products` and `orders` in the connection's database.

    Args:
        connection: an open connection whose user may create tables.
        orders: number of orders; there is one customer for 12 orders and 500 products at the most.
        seed: same seed, same data.
        end: the day after the last order's day; default: today in UTC.
    """
    day = end or dt.datetime.now(dt.UTC).date()
    values = {
        "orders": orders,
        "customers": max(10, orders // 12),
        "products": min(500, max(5, orders // 20)),
        "seed": seed,
        "end": dt.datetime(day.year, day.month, day.day, tzinfo=dt.UTC),
    }
    with connection.transaction():
        connection.execute("set local timezone = 'UTC'")
        connection.execute(files(__package__).joinpath("shop_source.sql").read_text())
        for statement in (CUSTOMERS, PRODUCTS, ORDERS):
            connection.execute(statement, values)
    for table in ("customers", "products", "orders"):
        connection.execute(psycopg.sql.SQL("analyze {}").format(psycopg.sql.Identifier(table)))
