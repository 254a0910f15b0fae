"""Selection, pipelines, and why a step is in a plan."""

from __future__ import annotations

import pytest

from millrace.errors import ProjectError, UsageError
from millrace.planner import explain, plan_with_reasons
from millrace.transform.sql_model import parse_model

WAREHOUSE = ["load:silver.orders", "load:silver.customers", "dbt:shop", "gate:marts.fct_orders"]
CASES = {
    ("silver.orders",): ["model:silver.orders"],
    ("bronze.*",): ["copy:bronze.orders", "copy:bronze.customers", "copy:bronze.products"],
    ("bronze",): ["copy:bronze.orders", "copy:bronze.customers", "copy:bronze.products"],
    ("*.orders",): ["copy:bronze.orders", "model:silver.orders"],
    ("copy:*orders",): ["copy:bronze.orders"],
    ("+silver.orders",): ["copy:bronze.orders", "model:silver.orders"],
    ("+gold.top",): [
        "copy:bronze.orders",
        "copy:bronze.customers",
        "model:silver.customers",
        "model:silver.orders",
        "model:gold.top",
    ],
    ("bronze.customers+",): [
        "copy:bronze.customers",
        "model:silver.customers",
        "model:gold.top",
        *WAREHOUSE,
        "page:sales",
    ],
    ("+silver.customers+",): [
        "copy:bronze.customers",
        "model:silver.customers",
        "model:gold.top",
        *WAREHOUSE,
        "page:sales",
    ],
    ("marts.fct_orders",): WAREHOUSE,
    ("staging.*",): WAREHOUSE,
    ("dbt:shop",): WAREHOUSE,
    ("load:*",): WAREHOUSE,
    ("+marts.*",): [
        "copy:bronze.orders",
        "copy:bronze.customers",
        "model:silver.customers",
        "model:silver.orders",
        *WAREHOUSE,
    ],
    ("page:*",): ["page:sales"],
    ("pages.sales",): ["page:sales"],
    ("raw_data.stock", "gold.top"): ["copy:raw_data.stock", "model:gold.top"],
}


@pytest.mark.parametrize("selectors", CASES, ids=" ".join)
def test_what_is_selected(plan, selectors):
    assert [step.key for step in plan(select=selectors).steps] == CASES[selectors]


def test_a_pipeline_and_its_narrowing(plan):
    daily = [step.key for step in plan(pipeline="daily").steps]
    assert daily == CASES["+marts.*",]
    assert [step.key for step in plan(pipeline="daily", select=["bronze.*"]).steps] == daily[:2]
    with pytest.raises(UsageError) as error:
        plan(pipeline="daily", select=["gold.top"])
    assert str(error.value) == "nothing of gold.top is in pipeline daily\n  select without --pipeline"


@pytest.mark.parametrize(
    ("selector", "text"),
    [
        ("bronze.order", 'nothing is named "bronze.order"\n  --select\n  did you mean "bronze.orders"?'),
        ("+marst.*", 'nothing matches "marst.*"\n  --select\n  did you mean "marts"?'),
        (
            "cpy:*",
            'nothing matches "cpy:*"\n  --select\n  a name is layer.asset; marts.* is all of a layer, +x is x with',
        ),
        ("+", 'nothing is named ""'),
        ("", 'nothing is named ""'),
        ("marts.[", 'nothing matches "marts.["'),
    ],
)
def test_selectors_that_name_nothing(plan, selector, text):
    with pytest.raises(UsageError) as error:
        plan(select=[selector])
    assert str(error.value).startswith(text)


def test_a_pipeline_that_names_nothing(plan):
    with pytest.raises(ProjectError) as error:
        plan(pipeline="broken")
    assert str(error.value) == (
        'nothing matches "marst.*" in pipeline broken\n'
        "  millrace.yaml:11:38\n"
        '  11 |   broken: {select: ["silver.orders", "marst.*"]}\n'
        '     |                                      ^^^^^^^^^ did you mean "marts"?'
    )
    with pytest.raises(UsageError) as error:
        plan(pipeline="dayly")
    assert str(error.value) == 'no pipeline dayly in millrace.yaml\n  did you mean "daily"?'


def test_steps_wait_only_for_steps_of_the_plan(plan):
    assert plan(select=["page:sales"])["page:sales"].after == ()
    assert plan(select=["marts.*+"])["page:sales"].after == ("gate:marts.fct_orders",)


def test_why(shop):
    from types import SimpleNamespace as Space

    graph = Space(models=[Space(schema="marts", name="fct_orders")], sources=[Space(schema="silver", name="orders")])
    plan, why = plan_with_reasons(
        shop(),
        graph,
        inputs_of=lambda model: parse_model(model.file, model.text),
        select=["+silver.orders+"],
    )
    told = explain(plan, why)
    assert {one.key: one.why for one in told} == {
        "copy:bronze.orders": "silver.orders needs it",
        "model:silver.orders": "selected by +silver.orders+",
        "model:gold.top": "it reads silver.orders",
        "load:silver.orders": "it reads silver.orders",
        "dbt:shop": "it reads warehouse/silver.orders",
        "gate:marts.fct_orders": "it reads marts",
        "page:sales": "it reads marts",
    }
    by_key = {one.key: one for one in told}
    assert [one.number for one in told] == list(range(1, 8))
    assert (by_key["dbt:shop"].group, by_key["dbt:shop"].together) == ("warehouse", 3)
    assert (by_key["page:sales"].group, by_key["page:sales"].together) == ("", 1)
    assert by_key["page:sales"].needs == ("dbt:shop", "gate:marts.fct_orders")
    assert by_key["model:gold.top"].needs == ("model:silver.orders",)
    assert by_key["model:gold.top"].reads == ("silver.customers", "silver.orders")
    assert by_key["gate:marts.fct_orders"].to_json()["needs"] == ["dbt:shop"]
