{{ config(materialized='incremental', unique_key='order_id', incremental_strategy='merge',
          on_schema_change='append_new_columns',
          post_hook="delete from {{ this }} as done where not exists (
            select 1 from {{ ref('stg_orders') }} as orders where orders.order_id = done.order_id)") }}
-- Orders changed since the last load, and those whose customer or product was not known then; orders that are no more,
-- or that are in quarantine now, go. Names are as of the load.
select
  orders.order_id,
  orders.order_date,
  orders.customer_id,
  customers.customer_name,
  customers.customer_segment,
  customers.region,
  orders.product_id,
  products.product_name,
  products.category,
  orders.quantity,
  orders.amount as order_amount,
  cast(items.cost as decimal(18, 2)) as cost_amount,
  cast(items.profit as decimal(18, 2)) as profit_amount,
  orders.status,
  orders.loaded_at,
  orders.load_seq,
  orders.brings_revenue
from {{ ref('stg_orders') }} as orders
left join {{ ref('dim_customers') }} as customers on customers.customer_id = orders.customer_id
left join {{ ref('dim_products') }} as products on products.product_id = orders.product_id
left join {{ ref('int_order_items') }} as items on items.order_id = orders.order_id
{% if is_incremental() %}
where (
     orders.load_seq > (select coalesce(max(done.load_seq), 0) - {{ var('lookback_loads') }} from {{ this }} as done)
     and not exists (
       select 1 from {{ this }} as done where done.order_id = orders.order_id and done.load_seq = orders.load_seq)
   )
   or orders.order_id in (
     select done.order_id from {{ this }} as done
     where done.customer_name = '(unknown)' or done.product_name = '(unknown)'
   )
{% endif %}
