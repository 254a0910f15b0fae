select customer_id, customer_name, customer_segment, region, updated_at
from bronze.customers
