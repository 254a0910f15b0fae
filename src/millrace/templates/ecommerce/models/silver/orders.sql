select
  order_id,
  customer_id,
  product_id,
  order_date,
  amount,
  quantity,
  lower(trim(status)) as status,
  updated_at
from bronze.orders
