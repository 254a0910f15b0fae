select customer_id, customer_name, customer_segment, region, updated_at
from {{ source('silver', 'customers') }}
