-- Sales by day, category and region. Left joins: an order whose customer or product nobody knows counts too.
select
  orders.order_date,
  coalesce(products.category, '(unknown)') as category,
  coalesce(customers.region, '(unknown)') as region,
  count(orders.order_id) as order_count,
  coalesce(sum(orders.amount) filter (where orders.brings_revenue), 0) as total_revenue,
  cast(
    1.0 * sum(orders.amount) filter (where orders.brings_revenue) / nullif(count(*) filter (where orders.brings_revenue), 0)
    as decimal(18, 4)
  ) as avg_order_value,
  count(distinct orders.customer_id) as unique_customers,
  sum(orders.amount) as gross_revenue
from silver.orders as orders
left join silver.products as products using (product_id)
left join silver.customers as customers using (customer_id)
group by all
order by all
