-- Customers, and an inferred member for each id that only orders know: no order loses its customer.
select customer_id, customer_name, customer_segment, region, false as is_inferred
from {{ ref('stg_customers') }}
union all
select distinct orders.customer_id, '(unknown)', '(unknown)', '(unknown)', true
from {{ ref('stg_orders') }} as orders
where not exists (select 1 from {{ ref('stg_customers') }} as known where known.customer_id = orders.customer_id)
