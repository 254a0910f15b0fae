"""A shop in a folder, as the documentation's example writes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

MILLRACE = """\
version: 1
name: shop
owners: {team: data-team, email: data-alerts@company.com}
layers: {bronze: lake, silver: lake, gold: lake, staging: warehouse, marts: warehouse}
environments:
  dev:
    connections: {shop_db: {type: postgres, url: "${env:SHOP_DB_URL}"}}
    lake: ./lake
    warehouse: {type: duckdb, path: ./warehouse}
  prod:
    extends: dev
    lake: s3://shop-lake
    warehouse: {type: postgres, url: "${env:WAREHOUSE_URL}"}
    state: "${env:STATE_URL}"
    engine: spark
pipelines:
  daily_ecommerce_pipeline: {schedule: "0 6 * * *", select: ["+marts.*"], retries: 2, retry_delay: 5m, deadline: 2h}
"""

COPIES = """\
from: shop_db
to: bronze                                  # any layer, or connection.schema
defaults: {mode: incremental, cursor: updated_at}
tables:
  orders:    {key: order_id, contract: {new_columns: evolve, type_changes: freeze, bad_rows: quarantine}}
  customers: {key: customer_id}
  products:  {key: product_id, mode: full}
"""

FILES = {
    "millrace.yaml": MILLRACE,
    "copies/shop_db.yaml": COPIES,
    "models/silver/orders.sql": "select order_id, amount from bronze.orders\n",
    "models/silver/orders.yaml": "kind: upsert\nkey: order_id\nchecks: {not_null: [order_id], unique: order_id}\n",
    "models/silver/customers.sql": "select customer_id from bronze.customers\n",
    "checks/marts.yaml": "marts.agg_daily_sales:\n  row_count: {min: 1}\n  between: {margin: [-100, 100]}\n",
    "dashboards/daily_sales.yaml": (
        "title: Daily sales\nasset: marts.agg_daily_sales\ndate: order_date\n"
        "kpis:\n  - {label: Revenue, measure: total_revenue, unit: USD}\n"
    ),
    "dbt/dbt_project.yml": "name: shop\n",
}

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write the shop, with some files changed: None removes one; a pair (old, new) replaces text in it."""

    def make(changes: Mapping[str, str | tuple[str, str] | None] | None = None) -> Path:
        files: dict[str, str] = dict(FILES)
        for name, change in (changes or {}).items():
            if change is None:
                del files[name]
            elif isinstance(change, tuple):
                assert change[0] in files[name], f"{change[0]!r} is not in {name}"
                files[name] = files[name].replace(change[0], change[1], 1)
            else:
                files[name] = change
        root = tmp_path / "shop"
        for name, text in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return root

    return make
