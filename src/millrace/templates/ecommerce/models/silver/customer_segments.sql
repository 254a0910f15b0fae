-- Orders and revenue of each customer segment, day by day.
select
  orders.order_date,
  coalesce(customers.customer_segment, '(unknown)') as customer_segment,
  count(orders.order_id) as orders,
  coalesce(sum(orders.amount) filter (where orders.brings_revenue), 0) as revenue,
  sum(orders.amount) as gross_revenue
from silver.orders as orders
left join silver.customers as customers using (customer_id)
group by all
order by all
