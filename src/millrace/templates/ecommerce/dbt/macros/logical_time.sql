{#- "Now" is the run's logical time, so that a run for an earlier day gives that day's result. -#}
{% macro logical_time() -%}
  cast('{{ env_var("MILLRACE_LOGICAL_TIME", run_started_at.strftime("%Y-%m-%d %H:%M:%S")) }}' as timestamp)
{%- endmacro %}

{#- So are the times at which a snapshot finds rows gone. -#}
{% macro default__snapshot_get_time() -%}
  {{ logical_time() }} at time zone 'UTC'
{%- endmacro %}
