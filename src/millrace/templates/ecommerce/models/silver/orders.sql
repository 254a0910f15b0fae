select
  order_id,
  customer_id,
  product_id,
  order_date,
  amount,
  quantity,
  lower(trim(status)) as status,
  updated_at,
  -- orders of every status count; revenue leaves these out, here and in the marts
  lower(trim(status)) not in ('cancelled') as brings_revenue
from bronze.orders
