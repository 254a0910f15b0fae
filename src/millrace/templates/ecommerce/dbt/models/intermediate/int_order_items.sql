-- One row per order line: what it brought and what it cost. A product nobody knows costs null, not nothing.
select
  orders.order_id,
  orders.product_id,
  orders.quantity,
  orders.amount,
  products.unit_cost,
  products.unit_cost * orders.quantity as cost,
  orders.amount - products.unit_cost * orders.quantity as profit
from {{ ref('stg_orders') }} as orders
left join {{ ref('stg_products') }} as products on products.product_id = orders.product_id
