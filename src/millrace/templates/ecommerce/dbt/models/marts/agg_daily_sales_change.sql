-- Each day's sales beside those of the day before and of the week before. Days without orders are here, with 0; what
-- lies before the first day is null, and so is a percentage of nothing.
with sales as (
  select order_date, sum(total_orders) as total_orders, sum(total_revenue) as total_revenue
  from {{ ref('agg_daily_sales') }}
  group by order_date
),

spine as (
  select cast(unnest(generate_series(min(order_date), max(order_date), interval 1 day)) as date) as order_date
  from sales
),

days as (
  select
    spine.order_date,
    cast(coalesce(sales.total_orders, 0) as bigint) as total_orders,
    cast(coalesce(sales.total_revenue, 0) as decimal(38, 2)) as total_revenue
  from spine
  left join sales on sales.order_date = spine.order_date
),

compared as (
  select
    order_date,
    total_orders,
    lag(total_orders) over (order by order_date) as orders_day_before,
    lag(total_orders, 7) over (order by order_date) as orders_week_before,
    total_revenue,
    lag(total_revenue) over (order by order_date) as revenue_day_before,
    lag(total_revenue, 7) over (order by order_date) as revenue_week_before
  from days
)

select
  *,
  cast(round(100.0 * (total_revenue - revenue_day_before) / nullif(revenue_day_before, 0), 2) as decimal(18, 2))
    as revenue_day_change_pct,
  cast(round(100.0 * (total_revenue - revenue_week_before) / nullif(revenue_week_before, 0), 2) as decimal(18, 2))
    as revenue_week_change_pct
from compared
