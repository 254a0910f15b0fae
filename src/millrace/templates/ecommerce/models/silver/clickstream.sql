-- One row per event, as it was first seen: in the order of the files' names and lines. Times come in seconds, in
-- milliseconds (above 10^11) or as ISO 8601 with a zone; what cannot be read so has no time.
with numbers as (
  select
    *,
    try_cast("timestamp" as decimal(20, 6)) as number,
    regexp_matches("timestamp", ':\d\d(\.\d+)?(Z|[+-]\d\d(:?\d\d)?)$') as has_zone
  from bronze.clickstream
),

events as (
  select
    * exclude ("timestamp"),
    case
      when number is not null and abs(number) < 1e14
        then make_timestamptz(cast(number * case when abs(number) > 1e11 then 1000 else 1000000 end as bigint))
      when has_zone then try_cast("timestamp" as timestamptz)
    end as "timestamp"
  from numbers
)

select
  event_id,
  user_id,
  session_id,
  event_type,
  page_url,
  json_extract_string(properties, '$.product_id') as product_id,
  cast("timestamp" as date) as event_date,
  cast(hour("timestamp") as integer) as event_hour,
  "timestamp"
from events
qualify event_id is null or row_number() over (partition by event_id order by user_id is null, _file, _line) = 1
