select product_id, product_name, category, unit_cost, updated_at
from bronze.products
