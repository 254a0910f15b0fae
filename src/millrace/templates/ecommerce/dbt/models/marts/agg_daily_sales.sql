-- Sums and counts are exact; ratios are computed from them last. Orders of every status count, revenue leaves some out.
-- An order is one row of fct_orders: its test has held before this runs.
with totals as (
  select
    order_date,
    category,
    region,
    customer_segment,
    count(order_id) as total_orders,
    count(case when brings_revenue then order_id end) as revenue_orders,
    count(distinct customer_id) as unique_customers,
    cast(sum(quantity) as bigint) as total_quantity,
    cast(coalesce(sum(case when brings_revenue then order_amount end), 0) as decimal(38, 2)) as total_revenue,
    cast(sum(order_amount) as decimal(38, 2)) as gross_revenue,
    cast(coalesce(sum(case when brings_revenue then profit_amount end), 0) as decimal(38, 2)) as total_profit
  from {{ ref('fct_orders') }}
  group by order_date, category, region, customer_segment
)

select
  order_date,
  category,
  region,
  customer_segment,
  total_orders,
  unique_customers,
  total_quantity,
  total_revenue,
  gross_revenue,
  cast(1.0 * total_revenue / nullif(revenue_orders, 0) as decimal(18, 4)) as avg_order_value,
  total_profit,
  cast(round(100.0 * total_profit / nullif(total_revenue, 0), 2) as decimal(18, 2)) as profit_margin_pct,
  {{ logical_time() }} as updated_at
from totals
