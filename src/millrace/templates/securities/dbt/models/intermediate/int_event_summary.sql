-- Per security and event code: how many events, when, and when last touched. Withdrawn ones do not count.
select
  isin, mic, event_code, count(distinct event_id) as events, min(date1) as first_date, max(date1) as last_date,
  max(changed_at) as last_changed_at
from {{ ref('stg_edi_690') }}
where not is_deleted
group by isin, mic, event_code
