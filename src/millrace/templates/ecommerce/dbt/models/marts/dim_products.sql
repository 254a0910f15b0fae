-- Products, and an inferred member for each id that only orders know.
select product_id, product_name, category, unit_cost, false as is_inferred
from {{ ref('stg_products') }}
union all
select distinct orders.product_id, '(unknown)', '(unknown)', cast(null as decimal(12, 2)), true
from {{ ref('stg_orders') }} as orders
where not exists (select 1 from {{ ref('stg_products') }} as known where known.product_id = orders.product_id)
