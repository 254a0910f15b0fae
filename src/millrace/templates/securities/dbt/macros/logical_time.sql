{#- "Now" is the run's logical time: here it is when a snapshot finds rows gone. -#}
{% macro logical_time() -%}
  cast('{{ env_var("MILLRACE_LOGICAL_TIME", run_started_at.strftime("%Y-%m-%d %H:%M:%S")) }}' as timestamp)
{%- endmacro %}

{% macro postgres__snapshot_get_time() -%}
  {{ logical_time() }}
{%- endmacro %}
