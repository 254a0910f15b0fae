"""A shop in a folder with dbt, and plans of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from millrace.core.plan import Plan
from millrace.planner import plan_with_reasons
from millrace.project import ModelFile, Project, load_project
from millrace.transform.sql_model import SqlModel, parse_model

FILES = {
    "millrace.yaml": """\
version: 1
name: shop
layers: {bronze: lake, silver: lake, gold: lake, staging: warehouse, marts: warehouse}
environments:
  dev:
    connections: {shop_db: {type: postgres, url: "${env:SHOP}"}, edi: {type: postgres, url: "${env:EDI}"}}
    lake: ./lake
    warehouse: {type: duckdb, path: ./warehouse}
pipelines:
  daily: {select: ["+marts.*"]}
  broken: {select: ["silver.orders", "marst.*"]}
""",
    "copies/shop_db.yaml": """\
from: shop_db
to: bronze
defaults: {mode: incremental, cursor: updated_at}
tables:
  orders:    {key: order_id, max_delete: 0.1}
  customers: {key: customer_id}
  products:  {key: product_id, mode: full}
""",
    "copies/edi.yaml": "from: shop_db\nto: edi.raw_data\ntables:\n  stock: {key: [code, 거래소], where: is_active}\n",
    "models/silver/orders.sql": "select * from bronze.orders\n",
    "models/silver/orders.yaml": "kind: upsert\nkey: order_id\nchecks: {not_null: order_id}\n",
    "models/silver/customers.sql": "select * from bronze.customers\n",
    "models/gold/top.sql": "select c.*, $today as day\nfrom silver.customers c\njoin silver.orders o using (customer_id)\n",
    "checks/all.yaml": "marts.fct_orders: {not_null: order_id}\nbronze.orders: {unique: order_id}\n",
    "dashboards/sales.yaml": "title: Sales\nasset: marts.fct_orders\ntable: {columns: [order_id]}\n",
    "dbt/dbt_project.yml": "name: shop\n",
}


@dataclass(frozen=True)
class Relation:
    schema: str
    name: str


@dataclass(frozen=True)
class Graph:
    models: tuple[Relation, ...] = (Relation("staging", "stg_orders"), Relation("marts", "fct_orders"))
    sources: tuple[Relation, ...] = (Relation("silver", "orders"), Relation("silver", "customers"))


def inputs_of(model: ModelFile) -> SqlModel:
    return parse_model(model.file, model.text)


Shop = Callable[..., Project]


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    """Write the shop with some files changed (None removes one) and load it."""

    def make(changes: Mapping[str, str | None] | None = None) -> Project:
        root = tmp_path / "shop"
        for name, text in {**FILES, **(changes or {})}.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if text is None:
                path.unlink(missing_ok=True)
            else:
                path.write_text(text, encoding="utf-8")
        return load_project(root, environ={})

    return make


@pytest.fixture
def plan(shop: Shop) -> Callable[..., Plan]:
    """Plan the shop: changes of files, then what `build_plan` takes."""

    def make(changes: Mapping[str, str | None] | None = None, *, dbt: object = Graph(), **options: object) -> Plan:
        return plan_with_reasons(shop(changes), dbt, inputs_of=inputs_of, **options)[0]

    return make
