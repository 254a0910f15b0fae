{#- Schemas are exactly as the project names them, not `<target schema>_<name>`. -#}
{% macro generate_schema_name(custom_schema_name, node) -%}
  {{ (custom_schema_name or target.schema) | trim }}
{%- endmacro %}
