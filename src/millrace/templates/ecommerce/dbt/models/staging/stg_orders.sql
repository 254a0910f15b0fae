-- loaded_at is when the row was loaded, not when somebody asks.
select
  order_id,
  customer_id,
  product_id,
  cast(order_date as date) as order_date,
  cast(amount as decimal(12, 2)) as amount,
  cast(quantity as integer) as quantity,
  status,
  _millrace_loaded_at as loaded_at,
  _millrace_seq as load_seq,
  brings_revenue
from {{ source('silver', 'orders') }}
where order_id is not null and amount > 0
