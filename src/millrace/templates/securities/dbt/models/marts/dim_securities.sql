-- Every version of a security that a run has seen, from the snapshot; and one for those that nobody knows.
select
  dbt_scd_id as version_key, security_key, stock_code, exchange, ticker, name_ko, name_en, isin, sector, listed_on,
  dbt_valid_from as valid_from, dbt_valid_to as valid_to, dbt_valid_to is null as is_current
from {{ ref('stock_master') }}
union all
select
  '(unknown)', '(unknown)', '(unknown)', '(unknown)', null, '(unknown)', '(unknown)', null, '(unknown)', null,
  timestamptz '1900-01-01 00:00:00+00', null, true
