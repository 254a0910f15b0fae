{#- "Now" is the run's logical time, so that a run for an earlier day gives that day's result. -#}
{% macro logical_time() -%}
  cast('{{ var("logical_time", run_started_at.strftime("%Y-%m-%d %H:%M:%S")) }}' as timestamp)
{%- endmacro %}
