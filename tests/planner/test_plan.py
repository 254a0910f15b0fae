"""Plans: the steps of a project, their order, groups, specs and fingerprints."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

from millrace.core.names import AssetId, TableRef
from millrace.errors import ProjectError
from millrace.planner import loaded
from millrace.steps.spec import CopySpec

from .conftest import FILES


@dataclass(frozen=True)
class Relation:
    schema: str
    name: str


@dataclass(frozen=True)
class Graph:
    models: tuple[Relation, ...]
    sources: tuple[Relation, ...] = ()


def test_the_order_of_the_shop(plan):
    made = plan()
    assert [step.key for step in made.steps] == [
        "copy:raw_data.stock",
        "copy:bronze.orders",
        "copy:bronze.customers",
        "copy:bronze.products",
        "model:silver.customers",
        "model:silver.orders",
        "model:gold.top",
        "load:silver.orders",
        "load:silver.customers",
        "dbt:shop",
        "gate:marts.fct_orders",
        "page:sales",
    ]
    assert [step.key for step in made.group("warehouse")] == [
        "load:silver.orders",
        "load:silver.customers",
        "dbt:shop",
        "gate:marts.fct_orders",
    ]
    assert all(step.group == step.key for step in made.steps if step.group != "warehouse")
    json.dumps([step.to_json() for step in made.steps])


def test_what_the_steps_know(plan):
    made = plan()
    orders = made["copy:bronze.orders"]
    assert orders.target == "lake"
    assert CopySpec.from_json(orders.spec["copy"]) == CopySpec(
        "shop_db",
        TableRef(None, "orders"),
        AssetId("bronze", "orders"),
        mode="incremental",
        key=("order_id",),
        cursor="updated_at",
        max_delete=0.1,
    )
    assert orders.spec["checks"] == {"unique": [{"columns": ["order_id"]}]}
    stock = made["copy:raw_data.stock"]
    assert (stock.target, stock.assets) == ("connection:edi", (AssetId("raw_data", "stock"),))
    assert CopySpec.from_json(stock.spec["copy"]).key == ("code", "거래소")
    model = made["model:silver.orders"]
    assert model.spec == {
        "path": "models/silver/orders.sql",
        "kind": "upsert",
        "key": ["order_id"],
        "checks": {"not_null": [{"column": "order_id"}]},
        "contract": {
            "bad_rows": "block",
            "max_bad": 0.001,
            "new_columns": "evolve",
            "type_changes": "evolve",
            "place": "models/silver/orders.yaml",
        },
    }
    assert (model.inputs, model.target, model.dated) == ((AssetId("bronze", "orders"),), "lake", False)
    assert made["model:gold.top"].dated
    load = made["load:silver.orders"]
    assert load.assets == (loaded(AssetId("silver", "orders")),) == (AssetId("warehouse/silver", "orders"),)
    assert (load.inputs, load.target) == ((AssetId("silver", "orders"),), "warehouse")
    assert load.spec == {
        "source": {"layer": "silver", "name": "orders"},
        "table": {"layer": "silver", "name": "orders"},
    }
    dbt = made["dbt:shop"]
    assert (dbt.label, dbt.target) == ("marts", "warehouse")
    assert dbt.assets == (AssetId("staging", "stg_orders"), AssetId("marts", "fct_orders"))
    assert dbt.inputs == (AssetId("warehouse/silver", "orders"), AssetId("warehouse/silver", "customers"))
    column = {
        "asset": "marts.fct_orders",
        "column": "order_id",
        "use": "any",
        "place": ["dashboards/sales.yaml", 3, 19, 8],
        "lines": ["3 | table: {columns: [order_id]}", "  |                   ^^^^^^^^"],
    }
    assert dbt.spec == {"path": "dbt", "models": ["staging.stg_orders", "marts.fct_orders"], "shown": [column]}
    gate = made["gate:marts.fct_orders"]
    assert (gate.assets, gate.inputs, gate.after) == ((), (AssetId("marts", "fct_orders"),), ("dbt:shop",))
    assert gate.spec == {"checks": {"not_null": [{"column": "order_id"}]}, "path": "checks/all.yaml"}
    page = made["page:sales"]
    assert (page.assets, page.target) == ((AssetId("pages", "sales"),), "pages")
    assert (page.inputs, page.after) == ((AssetId("marts", "fct_orders"),), ("gate:marts.fct_orders",))
    dashboard = page.spec["dashboard"]
    assert (dashboard["asset"], dashboard["table"]) == ("marts.fct_orders", {"columns": ["order_id"]})
    assert page.spec["columns"] == [column]
    assert page.label == "pages/sales.html"


def changed(plan, changes, **options) -> set[str]:
    """Return the keys of the steps whose fingerprint a change of files changes."""
    before = {step.key: step.code for step in plan(**options).steps}
    return {step.key for step in plan(changes, **options).steps if before.get(step.key) != step.code}


def test_fingerprints_follow_the_files(plan):
    shop_db = """\
# a comment
from: shop_db
to: bronze
defaults: {mode: incremental, cursor: updated_at}
tables:
  orders:    {key: order_id, max_delete: 0.9, workers: 4}
  customers: {key: customer_id, where: 'true'}
  products:  {key: product_id, mode: full}
"""
    assert changed(plan, {"copies/shop_db.yaml": shop_db}) == {"copy:bronze.customers"}
    assert changed(plan, {"models/silver/orders.sql": "select 1 as order_id from bronze.orders"}) == {
        "model:silver.orders"
    }
    described = "kind: upsert\nkey: order_id\nchecks: {not_null: order_id}\ndescription: Orders.\n"
    assert changed(plan, {"models/silver/orders.yaml": described}) == set()
    assert changed(plan, {"models/silver/orders.yaml": "kind: full\nchecks: {not_null: order_id}\n"}) == {
        "model:silver.orders"
    }
    assert changed(plan, {"dbt/models/x.sql": "select 1"}) == {"dbt:shop"}
    assert changed(plan, {"dashboards/sales.yaml": "title: S\nasset: marts.fct_orders\ntable: {columns: [a]}\n"}) == {
        "page:sales"
    }
    # which rows an asset has is decided by bad_rows alone: the rest of a contract asks for no new load
    for contract, moved in (
        ("bad_rows: quarantine", True),
        ("bad_rows: block, max_bad: 0, new_columns: freeze", False),
    ):
        text = shop_db.replace(", where: 'true'", f", contract: {{{contract}}}")
        assert changed(plan, {"copies/shop_db.yaml": text}) == ({"copy:bronze.customers"} if moved else set())
    assert changed(plan, {"models/silver/orders.yaml": f"{described}contract: {{bad_rows: quarantine}}\n"}) == {
        "model:silver.orders"
    }
    # a changed check is changed code of what it guards, else it would wait for the next data
    assert changed(plan, {"checks/all.yaml": "marts.fct_orders: {not_null: [order_id, a]}\n"}) == {
        "copy:bronze.orders",
        "dbt:shop",
        "gate:marts.fct_orders",
    }


def test_without_dbt(plan):
    made = plan({"dashboards/sales.yaml": None, "checks/all.yaml": None}, dbt=None)
    assert {step.kind for step in made.steps} == {"copy", "model"}


def test_an_unknown_input(plan):
    with pytest.raises(ProjectError) as error:
        plan({"models/gold/top.sql": "select *\n-- from silver.order\nfrom silver.order o\n"})
    assert str(error.value) == (
        "gold.top reads silver.order, which nothing makes\n"
        "  models/gold/top.sql:3:6\n"
        "  3 | from silver.order o\n"
        '    |      ^^^^^^^^^^^^ did you mean "silver.orders"?'
    )
    assert error.value.exit_code == 2


def test_models_that_do_not_parse_are_told_with_their_lines_all_at_once(plan):
    broken = {
        "models/gold/top.sql": "select from where\n",
        "models/silver/orders.sql": "select a b c from bronze.orders\n",
    }
    with pytest.raises(ProjectError) as error:
        plan(broken)
    found = [error.value, *error.value.others]
    assert [one.where.file for one in found] == ["models/silver/orders.sql", "models/gold/top.sql"]
    assert all("^" in str(one) for one in found)


def test_a_cycle(plan):
    with pytest.raises(ProjectError) as error:
        plan(
            {
                "models/silver/orders.sql": "select *\nfrom gold.top\n",
                "models/gold/top.sql": "select * from silver.customers join silver.orders using (id)\n",
            }
        )
    assert str(error.value) == (
        "assets are made from each other: gold.top → silver.orders → gold.top\n"
        "  models/gold/top.sql:1:37\n"
        "  1 | select * from silver.customers join silver.orders using (id)\n"
        "    |                                     ^^^^^^^^^^^^^\n"
        "  silver.orders reads gold.top at models/silver/orders.sql:2:6"
    )


def test_a_model_that_reads_itself(plan):
    with pytest.raises(ProjectError) as error:
        plan({"models/silver/orders.sql": "select * from silver.orders\n"})
    assert str(error.value).startswith("silver.orders is made from itself\n  models/silver/orders.sql:1:15\n")


def test_models_read_only_the_lake(plan):
    with pytest.raises(ProjectError) as error:
        plan({"models/gold/top.sql": 'select * from "marts"."fct_orders"\n'})
    assert str(error.value) == (
        "gold.top reads marts.fct_orders, which lives in the warehouse\n"
        "  models/gold/top.sql:1:15\n"
        '  1 | select * from "marts"."fct_orders"\n'
        "    |               ^^^^^^^^^^^^^^^^^^^^\n"
        "  models read assets of the lake"
    )
    with pytest.raises(ProjectError, match=r"gold\.top reads raw_data\.stock, which lives in connection edi"):
        plan({"models/gold/top.sql": "select * from raw_data.stock\n"})


def test_checks_of_what_nothing_makes(plan):
    with pytest.raises(ProjectError) as error:
        plan({"checks/all.yaml": "marts.fct_order: {not_null: order_id}\n"})
    assert str(error.value) == (
        "checks of marts.fct_order, which nothing makes\n"
        "  checks/all.yaml:1:1\n"
        "  1 | marts.fct_order: {not_null: order_id}\n"
        '    | ^^^^^^^^^^^^^^^ did you mean "marts.fct_orders"?'
    )
    with pytest.raises(
        ProjectError, match=r"a relationship of marts\.fct_orders goes to marts\.dim, which nothing makes"
    ):
        plan({"checks/all.yaml": "marts.fct_orders: {relationships: {a: marts.dim.id}}\n"})


def test_a_dashboard_of_what_nothing_makes(plan):
    charts = "charts: [{title: T, kind: bar, x: a, y: b, asset: marts.fct_ordres}]\n"
    with pytest.raises(ProjectError) as error:
        plan({"dashboards/sales.yaml": "title: Sales\nasset: marts.fct_orders\n" + charts})
    assert str(error.value) == (
        "the dashboard sales reads marts.fct_ordres, which nothing makes\n"
        "  dashboards/sales.yaml:3:51\n"
        "  3 | charts: [{title: T, kind: bar, x: a, y: b, asset: marts.fct_ordres}]\n"
        '    |                                                   ^^^^^^^^^^^^^^^^ did you mean "marts.fct_orders"?'
    )
    with pytest.raises(ProjectError, match=r"reads silver\.orders, which does not live in the warehouse"):
        plan({"dashboards/sales.yaml": "title: S\nasset: silver.orders\ntable: {columns: [a]}\n"})


def test_dbt_sources_and_models_must_fit_the_project(plan):
    with pytest.raises(ProjectError) as error:
        plan(dbt=Graph((Relation("marts", "fct_orders"),), (Relation("silver", "order"),)))
    assert str(error.value) == (
        "the dbt source silver.order is not an asset of the lake\n"
        "  dbt/dbt_project.yml\n"
        '  did you mean "silver.orders"?'
    )
    with pytest.raises(ProjectError) as error:
        plan(dbt=Graph((Relation("silver", "Orders"),)))
    assert str(error.value) == (
        "two assets are named silver.Orders\n  dbt/dbt_project.yml\n  dbt makes it, and models/silver/orders.sql:1:1"
    )


def test_hostile_names(plan):
    copies = '''\
from: shop_db
to: edi."Odd ""schema"""
tables:
  ? '"x"";drop table t;--"'
  : {mode: full}
  ? '"한글 표"'
  : {}
  ? '"a.b"'
  : {}
'''
    models = {"models/silver/한글.sql": 'select * from bronze."Ünï cödé"\n'}
    bronze = "from: shop_db\nto: bronze\ntables:\n  ? '\"Ünï cödé\"'\n  :\n"
    made = plan({"copies/edi.yaml": copies, "copies/more.yaml": bronze, **models})
    keys = [step.key for step in made.steps]
    assert 'copy:Odd "schema".x";drop table t;--' in keys
    assert 'copy:Odd "schema".한글 표' in keys
    assert 'copy:Odd "schema".a.b' in keys
    assert made["model:silver.한글"].inputs == (AssetId("bronze", "Ünï cödé"),)
    spec = CopySpec.from_json(made['copy:Odd "schema".x";drop table t;--'].spec["copy"])
    assert spec.table == TableRef(None, 'x";drop table t;--')
    assert spec.asset == AssetId('Odd "schema"', 'x";drop table t;--')


@pytest.mark.parametrize(
    ("file", "old", "new", "says"),
    [
        (
            "copies/edi.yaml",
            "where: is_active}",
            "where: is_active, mode: snapshot, contract: {bad_rows: quarantine}}",
            "rows of tables in a database cannot be set aside in mode snapshot yet",
        ),
        (
            "copies/edi.yaml",
            "where: is_active}",
            "where: is_active, checks: {expression: [code > '', 'list_sum([code]) > 1']}}",
            "is nothing for PostgreSQL, where it is checked: list_sum",
        ),
        (
            "copies/edi.yaml",
            "where: is_active}",
            "where: is_active, checks: {relationships: {code: bronze.orders.order_id}}}",
            "goes to bronze.orders, which is not in the same database",
        ),
        (
            "copies/edi.yaml",
            "where: is_active}",
            "where: is_active, proof: count, contract: {bad_rows: quarantine}}",
            "rows that are only counted cannot be set aside yet",
        ),
        (
            "copies/edi.yaml",
            "where: is_active}",
            "where: is_active, contract: {bad_rows: quarantine, type_changes: quarantine}}",
            "type_changes: quarantine is not built for tables in a database",
        ),
        (
            "copies/shop_db.yaml",
            "max_delete: 0.1}",
            "max_delete: 0.1, contract: {new_columns: quarantine}}",
            "sets rows aside, which bad_rows does not allow",
        ),
    ],
)
def test_what_would_be_ignored_is_refused(plan, file, old, new, says):
    """A promise in a file that nothing keeps is worse than an error."""
    with pytest.raises(ProjectError, match=says) as error:
        plan({file: FILES[file].replace(old, new)})
    assert str(error.value.where).startswith(f"{file}:")
