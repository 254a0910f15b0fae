-- No join loses an order: every sum over them is the sum of the orders.
with orders as (
  select count(*) as orders, sum(amount) as gross, sum(case when brings_revenue then amount else 0 end) as revenue
  from {{ ref('stg_orders') }}
),

others as (
  select 'fct_orders' as found_in, count(*) as orders, sum(order_amount) as gross,
    sum(case when brings_revenue then order_amount else 0 end) as revenue
  from {{ ref('fct_orders') }}
  union all
  select 'agg_daily_sales', sum(total_orders), sum(gross_revenue), sum(total_revenue) from {{ ref('agg_daily_sales') }}
  union all
  select 'silver.daily_sales', sum(order_count), sum(gross_revenue), sum(total_revenue)
  from {{ source('silver', 'daily_sales') }}
  union all
  select 'silver.customer_segments', sum(orders), sum(gross_revenue), sum(revenue)
  from {{ source('silver', 'customer_segments') }}
)

select others.*
from others
cross join orders
where others.orders is distinct from orders.orders
   or others.gross is distinct from orders.gross
   or others.revenue is distinct from orders.revenue
