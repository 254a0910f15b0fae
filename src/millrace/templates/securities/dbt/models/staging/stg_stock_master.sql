-- One row for each stock and exchange, typed.
select
  exchange || ':' || stock_code as security_key, stock_code, exchange, ticker, trim(name_ko) as name_ko,
  trim(name_en) as name_en, isin, sector, {{ day_of('listed_date') }} as listed_on,
  {{ day_of('delisted_date') }} as delisted_on, is_active, updated_at
from {{ source('raw_data', 'stock_master') }}
