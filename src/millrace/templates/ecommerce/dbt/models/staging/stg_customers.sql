select customer_id, customer_name, customer_segment, region
from {{ source('silver', 'customers') }}
