{{ config(
    materialized='incremental',
    unique_key=['event_code', 'event_id', 'option_id', 'serial_id', 'listing_id', 'sedol_id'],
    incremental_strategy='delete+insert',
    on_schema_change='append_new_columns'
) }}
-- One row for each event, option and listing. A load brings what changed since the last one, and looks again at rows
-- whose security nobody knew. A withdrawn event stays, marked.
select
  e.event_code, e.event_id, e.option_id, e.serial_id, e.listing_id, e.sedol_id,
  coalesce(s.security_key, '(unknown)') as security_key, e.isin, e.mic, e.is_deleted,
  e.date1 as ex_date, e.date2 as record_date, case when e.date3_type = 'Paydate' then e.date3 end as pay_date,
  e.pay_type, e.priority, e.ratio_old, e.ratio_new, e.currency,
  case when e.rate1_type = 'GrossDividend' then e.rate1 end as gross_amount, e.created_on, e.changed_at
from {{ ref('stg_edi_690') }} as e
left join {{ ref('dim_securities') }} as s on s.isin = e.isin and s.exchange = e.mic and s.is_current
{% if is_incremental() %}
where e.changed_at >= (select coalesce(max(t.changed_at), timestamp '1900-01-01') from {{ this }} as t)
   or (e.event_code, e.event_id) in (
     select t.event_code, t.event_id from {{ this }} as t where t.security_key = '(unknown)')
{% endif %}
