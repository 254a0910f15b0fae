"""Projects that are right: what is read, merged and found."""

from __future__ import annotations

from pathlib import Path

import pytest

from millrace.core.names import AssetId, TableRef
from millrace.errors import NotFound, ProjectError, UsageError
from millrace.project import find_project, load_project
from millrace.quality.rules import parse_checks


def test_the_shop_of_the_documentation(write):
    project = load_project(write(), environ={})
    assert (project.name, project.environment, project.dbt) == ("shop", "dev", "dbt")
    assert project.layers["marts"] == "warehouse"
    orders, customers, products = project.copies
    assert orders.asset == AssetId("bronze", "orders")
    assert (orders.source, orders.table, orders.target) == ("shop_db", TableRef(None, "orders"), "lake")
    assert (orders.options.mode, orders.options.cursor, orders.options.key) == (
        "incremental",
        "updated_at",
        ("order_id",),
    )
    assert orders.options.contract.bad_rows == "quarantine"
    assert customers.options.mode == "incremental"
    assert (products.options.mode, products.options.cursor) == ("full", None)
    assert str(orders.place) == "copies/shop_db.yaml:5:3"
    model = {str(one.asset): one for one in project.models}["silver.orders"]
    assert (model.options.kind, model.options.key, model.options_file) == (
        "upsert",
        ("order_id",),
        "models/silver/orders.yaml",
    )
    assert project.pipeline("daily_ecommerce_pipeline").select == ("+marts.*",)
    assert [one.name for one in project.dashboards] == ["daily_sales"]


def test_the_template_of_the_package_is_right():
    project = load_project(Path(__file__).parents[2] / "src/millrace/templates/ecommerce", environ={})
    names = ("orders", "customers", "products", "clickstream")
    assert {str(one.asset) for one in project.copies} == {f"bronze.{name}" for name in names}


def test_copies_into_another_database(write):
    securities = '''\
from: edi_source
to: edi_target.raw_data
defaults: {mode: full_sync, contract: {new_columns: freeze, max_bad: 0.5}}
tables:
  edi_690:      {key: [eventcd, eventid, optionid, serialid, scexhid, sedolid], cursor: changed, mode: incremental_sync}
  stock_master: {key: [stock_code, exchange], where: "is_active", contract: {bad_rows: block}}
  ? '"한글"."종목 ""마스터"""'
  : {as: 종목, key: [코드, 거래소, 구분, 일자]}
  plain:
'''
    names = ', edi_source: {type: postgres, url: "${env:A}"}, edi_target: {type: postgres, url: "${env:B}"}}'
    root = write({"copies/securities.yaml": securities, "millrace.yaml": ("}}\n", "}" + names + "\n")})
    copies = {str(one.asset): one for one in load_project(root, environ={}).copies if one.source == "edi_source"}
    assert list(copies) == ["raw_data.edi_690", "raw_data.stock_master", "raw_data.종목", "raw_data.plain"]
    assert {one.target for one in copies.values()} == {"connection:edi_target"}
    assert copies["raw_data.edi_690"].options.mode == "incremental"
    assert copies["raw_data.edi_690"].options.cursor == "changed"
    assert copies["raw_data.stock_master"].options.where == "is_active"
    assert copies["raw_data.stock_master"].options.contract.model_dump(exclude_none=True) == {
        "new_columns": "freeze",
        "max_bad": 0.5,
        "bad_rows": "block",
    }
    assert copies["raw_data.종목"].table == TableRef("한글", '종목 "마스터"')
    assert copies["raw_data.plain"].options.mode == "full"


def test_environments_lie_over_each_other(write):
    prod = load_project(write(), "prod", environ={})
    assert prod.settings.lake == "s3://shop-lake"
    assert prod.settings.engine == "spark"
    assert prod.settings.warehouse.type == "postgres"
    assert list(prod.settings.connections) == ["shop_db"]
    dev = load_project(write(), environ={})
    assert dev.lake_path() == str(dev.root / "lake")
    assert dev.warehouse_path() == str(dev.root / "warehouse")
    assert dev.state_url() is None


def test_places_that_come_later_fail_when_they_are_opened(write):
    prod = load_project(write(), "prod", environ={})
    with pytest.raises(ProjectError) as error:
        prod.lake_path()
    assert str(error.value) == (
        "engine spark is not built yet\n"
        "  millrace.yaml:15:13\n"
        "  15 |     engine: spark\n"
        "     |             ^^^^^\n"
        "  leave it out: models run on this machine"
    )
    assert prod.warehouse_path() is None
    assert prod.warehouse_in_postgres
    with pytest.raises(ProjectError, match="variable WAREHOUSE_URL is not set"):
        prod.warehouse_url()
    local = load_project(write({"millrace.yaml": ("engine: spark", "engine: local")}), "prod", environ={})
    with pytest.raises(ProjectError, match="a lake at a URL is not built yet"):
        local.lake_path()


def test_an_embedded_connection(write):
    project = load_project(write({"millrace.yaml": ('url: "${env:SHOP_DB_URL}"', "embedded: ./pg")}), environ={})
    assert project.connection("shop_db").embedded == "./pg"
    with pytest.raises(ProjectError, match="connection shop_db of environment dev is not embedded: only a database"):
        load_project(
            write({"millrace.yaml": ('url: "${env:SHOP_DB_URL}"', 'url: "${env:X}", seed: a.sql')}), environ={}
        )
    with pytest.raises(NotFound, match="connection shop_db is embedded: it has no URL"):
        project.connection_url("shop_db")


def test_the_choice_of_the_environment(write):
    root = write()
    assert load_project(root, environ={"MILLRACE_ENV": "prod"}).environment == "prod"
    assert load_project(root, "dev", environ={"MILLRACE_ENV": "prod"}).environment == "dev"
    with pytest.raises(UsageError) as error:
        load_project(root, "prd", environ={})
    assert str(error.value) == 'unknown environment "prd" in --env\n  did you mean "prod"?'
    with pytest.raises(UsageError, match='unknown environment "x" in MILLRACE_ENV'):
        load_project(root, environ={"MILLRACE_ENV": "x"})
    only = write({"millrace.yaml": ("  dev:", "  test:"), "copies/shop_db.yaml": None}) / "millrace.yaml"
    text = only.read_text().replace("extends: dev", "extends: test")
    only.write_text(text)
    assert load_project(only.parent, environ={}).environment == "test"


def test_the_nearest_folder_above(write, tmp_path):
    root = write()
    assert find_project(root / "models" / "silver") == root
    with pytest.raises(ProjectError) as error:
        find_project(tmp_path)
    assert str(error.value) == f"no millrace.yaml in {tmp_path} or above it\n  make a project: millrace init NAME"
    with pytest.raises(ProjectError, match="there is no folder"):
        find_project(tmp_path / "none")


def test_a_project_of_a_newer_version(write):
    with pytest.raises(ProjectError) as error:
        load_project(write({"millrace.yaml": ("version: 1", "version: 7\nbrand_new: true")}), environ={})
    assert str(error.value) == (
        "the project has version 7, this version of Millrace knows up to 1\n"
        "  millrace.yaml:1:10\n"
        "  1 | version: 7\n"
        "    |          ^\n"
        "  use the newer version of Millrace here"
    )


def test_checks_read_like_the_quality_room_reads_them(write):
    checks = """\
marts.all:
  severity: warn
  row_count: {min: 1, max: 9}
  not_null: [a, {column: b, severity: block}]
  unique: [a, [a, b], {columns: [c], severity: block}]
  between: {a: [0, null], b: {min: 2024-01-01, max: 2024-12-31, severity: block}}
  in_set: {s: [a, no, 1, true], t: {values: [x]}}
  expression: ["a > b", {sql: a < 9, name: sane}]
  relationships: {a: marts.other.id, b: {to: marts.other.id}}
  freshness: {column: at, max_age: 1.5d}
  schema: {a: bigint}
marts.short: {not_null: a, unique: a, expression: a > 0}
"""
    project = load_project(write({"checks/more.yaml": checks}), environ={})
    known = {str(one.asset): one.checks for one in project.checks}
    rules = parse_checks(known["marts.all"].to_json(), AssetId("marts", "all"))
    assert {rule.name: rule.severity for rule in rules} == {
        "row_count": "warn",
        "not_null(a)": "warn",
        "not_null(b)": "block",
        "unique(a)": "warn",
        "unique(a, b)": "warn",
        "unique(c)": "block",
        "between(a)": "warn",
        "between(b)": "block",
        "in_set(s)": "warn",
        "in_set(t)": "warn",
        "expression(a > b)": "warn",
        "expression(sane)": "warn",
        "relationships(a → marts.other.id)": "warn",
        "relationships(b → marts.other.id)": "warn",
        "freshness(at)": "warn",
        "schema": "warn",
    }
    (in_set,) = [rule for rule in rules if rule.name == "in_set(s)"]
    assert in_set.values == ("a", "no", 1, True)
    assert len(parse_checks(known["marts.short"].to_json(), AssetId("marts", "short"))) == 3


def test_files_behind_an_asset(write):
    root = write({"checks/silver.yaml": "silver.customers: {not_null: customer_id}\n"})
    project = load_project(root, environ={})
    asset = AssetId("silver", "customers")
    assert project.files_of(asset) == ("models/silver/customers.sql", "checks/silver.yaml")
    before = project.fingerprint_of(asset)
    assert load_project(root, environ={}).fingerprint_of(asset) == before
    (root / "models/silver/customers.sql").write_text("select 1 as customer_id from bronze.customers")
    assert load_project(root, environ={}).fingerprint_of(asset) != before


def test_the_bundle_is_the_files_and_not_what_runs_leave(write):
    root = write()
    before = load_project(root, environ={}).bundle
    for left in ("dbt/target/manifest.json", "dbt/logs/dbt.log", "lake/x", ".env", "models/silver/.orders.sql.swp"):
        (root / left).parent.mkdir(parents=True, exist_ok=True)
        (root / left).write_text("x")
    assert load_project(root, environ={}).bundle == before
    (root / "dbt/models").mkdir()
    (root / "dbt/models/a.sql").write_text("select 1")
    assert load_project(root, environ={}).bundle != before
