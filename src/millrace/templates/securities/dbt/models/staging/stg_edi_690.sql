-- One row for each event, option and listing, typed. A withdrawn row stays in the feed; its actflag says so (look the
-- flag's values up in the provider's table).
select
  eventcd as event_code, eventid as event_id, optionid as option_id, serialid as serial_id, scexhid as listing_id,
  sedolid as sedol_id, actflag as action_flag, coalesce(actflag in ('D', 'C'), false) as is_deleted,
  {{ edi_time('changed') }} as changed_at,
  {{ day_of('created') }} as created_on, isin, issuername as issuer_name, sectycd as security_type, mic, localcode as local_code,
  date1type as date1_type, {{ edi_date('date1') }} as date1, date2type as date2_type, {{ edi_date('date2') }} as date2,
  date3type as date3_type, {{ edi_date('date3') }} as date3, paytype as pay_type,
  -- a number that arrives as text, like 1.0
  cast({{ edi_number('priority', 'numeric') }} as integer) as priority,
  {{ edi_number('ratioold', 'numeric(18,7)') }} as ratio_old, {{ edi_number('rationew', 'numeric(18,7)') }} as ratio_new,
  currency, rate1type as rate1_type, {{ edi_number('rate1', 'numeric(18,5)') }} as rate1, field1name as field1_name, field1
from {{ source('raw_data', 'edi_690') }}
