{#- Compares dates: an order of yesterday is recent all day long. -#}
{% test recency(model, field, interval=1) %}
select max(cast({{ field }} as date)) as newest
from {{ model }}
having max(cast({{ field }} as date)) < cast({{ logical_time() }} as date) - {{ interval }}
{% endtest %}
