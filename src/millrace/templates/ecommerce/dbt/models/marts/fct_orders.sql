{{ config(materialized='incremental', unique_key='order_id', incremental_strategy='merge',
          on_schema_change='append_new_columns',
          post_hook="delete from {{ this }} as done where not exists (
            select 1 from {{ ref('stg_orders') }} as orders where orders.order_id = done.order_id)") }}
-- Orders that are not here as they were loaded last, and those whose customer or product was not known then, however
-- long ago: nothing is lost. Orders that are no more, or that are in quarantine now, go. Names are as of the load.
with orders as (
  select * from {{ ref('stg_orders') }} as stg
  {% if is_incremental() %}
  where not exists (
    select 1 from {{ this }} as done
    where done.order_id = stg.order_id and done.load_seq = stg.load_seq
      and done.customer_name is distinct from '(unknown)' and done.product_name is distinct from '(unknown)'
  )
  {% endif %}
)

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
from orders
left join {{ ref('dim_customers') }} as customers on customers.customer_id = orders.customer_id
left join {{ ref('dim_products') }} as products on products.product_id = orders.product_id
left join {{ ref('int_order_items') }} as items on items.order_id = orders.order_id
