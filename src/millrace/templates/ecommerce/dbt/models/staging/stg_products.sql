select product_id, product_name, category, cast(unit_cost as decimal(12, 2)) as unit_cost, updated_at
from {{ source('silver', 'products') }}
