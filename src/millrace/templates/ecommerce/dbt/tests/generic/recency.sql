{#- Compares dates: an order of yesterday is recent all day long. Days are the only datepart. -#}
{% test recency(model, field, datepart="day", interval=1) %}
{% if datepart != "day" %}{{ exceptions.raise_compiler_error("recency counts days, not " ~ datepart) }}{% endif %}
select max(cast({{ field }} as date)) as newest
from {{ model }}
having max(cast({{ field }} as date)) < cast({{ logical_time() }} as date) - {{ interval }}
{% endtest %}
