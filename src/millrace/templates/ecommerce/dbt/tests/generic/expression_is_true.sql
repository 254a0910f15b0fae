{% test expression_is_true(model, expression, column_name=None) %}
select *
from {{ model }}
where not coalesce(({% if column_name %}{{ column_name }} {% endif %}{{ expression }}), true)
{% endtest %}
