{#- The feed's texts as what they mean; an empty text is nothing. -#}
{% macro edi_date(column) -%} to_date(nullif(trim({{ column }}), ''), 'YYYY/MM/DD') {%- endmacro %}
{% macro edi_time(column) -%} cast(to_timestamp({{ column }}, 'YYYY/MM/DD HH24:MI:SS') as timestamp) {%- endmacro %}
{% macro day_of(column) -%} to_date(nullif(trim({{ column }}), ''), 'YYYYMMDD') {%- endmacro %}
{% macro edi_number(column, type) -%} cast(nullif(trim({{ column }}), '') as {{ type }}) {%- endmacro %}
