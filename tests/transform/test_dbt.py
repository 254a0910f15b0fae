from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from millrace.core.names import AssetId, load_id
from millrace.core.ports import StageRequest
from millrace.core.schema import Schema
from millrace.duck.warehouse import WarehouseTarget
from millrace.errors import GateFailed, Interrupted, NotFound, ProjectError, StepFailed
from millrace.transform import dbt
from millrace.transform.dbt import build, graph
from millrace.transform.dbt_process import DbtEvent, DbtOptions, DbtProcess

PROJECT = {
    "dbt_project.yml": """
name: shop
version: "1.0"
profile: "shop profile"
models:
  shop:
    staging: {+schema: staging, +materialized: view}
    marts: {+schema: marts, +materialized: table}
""",
    "macros/schema.sql": "{% macro generate_schema_name(name, node) -%} {{ (name or target.schema) | trim }} {%- endmacro %}",
    "models/sources.yml": """
sources:
  - name: silver
    tables:
      - name: orders
        columns:
          - {name: order_id, data_tests: [not_null, unique]}
""",
    "models/staging/stg_orders.sql": "select order_id, amount, day, load_id from {{ source('silver', 'orders') }}",
    "models/staging/eph.sql": "{{ config(materialized='ephemeral') }} select * from {{ ref('stg_orders') }}",
    "models/marts/agg_daily_sales.sql": "select day, sum(amount) as revenue, count(*) as orders from {{ ref('eph') }} group by day",
    "models/marts/fct_orders.sql": """
{{ config(materialized='incremental', unique_key='order_id', incremental_strategy='merge') }}
select * from {{ ref('stg_orders') }}
{% if is_incremental() %} where load_id >= (select coalesce(max(t.load_id), 0) from {{ this }} t) {% endif %}
""",
    "models/marts/log.sql": """
{{ config(materialized='incremental', incremental_strategy='append') }}
select count(*) as orders from {{ ref('stg_orders') }}
""",
    "models/marts/marts.yml": """
models:
  - name: fct_orders
    description: one row per order
    columns:
      - {name: order_id, data_tests: [unique]}
      - {name: amount, data_tests: [{dbt_utils_free: {}}]}
""".replace("[{dbt_utils_free: {}}]", "[not_null]"),
    "tests/no_negative.sql": "select * from {{ ref('fct_orders') }} where amount < 0",
}
MADE = [
    AssetId("marts", "agg_daily_sales"),
    AssetId("marts", "fct_orders"),
    AssetId("marts", "log"),
    AssetId("staging", "stg_orders"),
]


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with a parse in it: starting dbt cold for each test would cost seconds."""
    root = tmp_path_factory.mktemp("warm")
    write(root / "dbt")
    graph(root / "dbt", root / "cache")
    return root


@pytest.fixture
def place(tmp_path: Path, warm: Path) -> Path:
    shutil.copytree(warm, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    # the browser and the servers of other tests in this worker are none of dbt's
    before = set(psutil.Process().children(recursive=True))
    yield
    left = [p for p in psutil.Process().children(recursive=True) if p not in before]
    assert [p.cmdline() for p in left if p.status() != psutil.STATUS_ZOMBIE] == []


def write(folder: Path, **changes: str) -> None:
    for name, text in PROJECT.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def silver(target: WarehouseTarget, run: str, query: str) -> None:
    connection = target.clone(run).connect()
    connection.execute("create schema if not exists silver")
    connection.execute(f"create or replace table silver.orders as {query}")
    connection.close()


ORDERS = "select i as order_id, 1.5 * i as amount, date '2024-01-01' + (i % 3)::int as day, {load} as load_id from range({low}, {high}) r(i)"


def run(place: Path, target: WarehouseTarget, name: str, query: str, **more: Any) -> Any:
    """One run as the step does it: clone, table, dbt in a savepoint, members, publish."""
    clone = target.clone(name)
    silver(target, name, query)
    load = load_id(name, "dbt:shop", "warehouse")
    found = graph(place / "dbt", place / "cache")
    requests = [
        StageRequest(a, load, name, "dbt:shop", e.seq if (e := target.ledger(a)) else 0, "member", Schema(()), {})
        for a in found.assets
    ]
    try:
        with clone.savepoint(load):
            result = build(place / "dbt", clone.folder, place / "cache", DbtOptions(inherit=[clone.owner], **more))
            result.check()
            staged = target.stage_results(clone, requests)
    except Exception:
        target.drop_run(name)
        raise
    target.publish(staged, [target.prove(one) for one in staged], {one.asset: one.base for one in staged})
    return result


def seed(target: WarehouseTarget) -> None:
    """Publish a warehouse without dbt."""
    silver(target, "r0", "select 1 as order_id")
    asset = AssetId("silver", "orders")
    one = target.stage_results(target.clone("r0"), [StageRequest(asset, 1, "r0", "load", 0, "member", Schema(()), {})])
    target.publish(one, [target.prove(one[0])], {asset: 0})


def read(target: WarehouseTarget, query: str) -> list[tuple[Any, ...]]:
    connection = target.reader()
    assert connection is not None
    try:
        return list(connection.execute(query).fetchall())
    finally:
        connection.close()


def test_the_graph(place: Path) -> None:
    found = graph(place / "dbt", place / "cache")
    assert sorted(found.assets) == MADE
    assert found.inputs == (AssetId("silver", "orders"),)
    models = {model.name: model for model in found.models}
    assert models["agg_daily_sales"].inputs == (AssetId("staging", "stg_orders"),)  # through the ephemeral one
    fct = models["fct_orders"]
    assert (fct.schema, fct.materialized, fct.unique_key, fct.description) == (
        "marts",
        "incremental",
        ("order_id",),
        "one row per order",
    )
    assert len(fct.tests) == 3
    assert [(source.schema, source.name) for source in found.sources] == [("silver", "orders")]
    tests = {test.name: test for test in found.tests}
    assert tests["no_negative"].assets == (AssetId("marts", "fct_orders"),)
    assert tests["source_unique_silver_orders_order_id"].assets == (AssetId("silver", "orders"),)


def test_dbt_is_not_started_when_nothing_changed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = graph(place / "dbt", place / "cache")
    monkeypatch.setattr(dbt, "run_dbt", lambda *_, **__: pytest.fail("dbt was started"))
    (place / "dbt" / "target").mkdir()
    (place / "dbt" / "target" / "x.json").write_text("{}")
    assert graph(place / "dbt", place / "cache") == first
    (place / "dbt" / "models" / "marts" / "log.sql").write_text("select 1 as x")
    with pytest.raises(pytest.fail.Exception):
        graph(place / "dbt", place / "cache")


def test_what_a_run_gives_does_not_start_dbt(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "dbt" / "models" / "marts" / "log.sql").write_text("select '{{ env_var('MILLRACE_NOW') }}' as x")
    first = graph(place / "dbt", place / "cache", environment={"MILLRACE_NOW": "1"})
    monkeypatch.setattr(dbt, "run_dbt", lambda *_, **__: pytest.fail("dbt was started"))
    assert graph(place / "dbt", place / "cache", environment={"MILLRACE_NOW": "2"}) == first


@pytest.mark.slow
def test_a_variable_of_the_environment_is_part_of_the_graph(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "dbt" / "models" / "marts" / "log.sql").write_text(
        "{{ config(schema=env_var('SHOP_SCHEMA', 'a')) }} select 1 as x"
    )
    assert AssetId("a", "log") in graph(place / "dbt", place / "cache").assets
    monkeypatch.setenv("SHOP_SCHEMA", "hush-hush")
    assert AssetId("hush-hush", "log") in graph(place / "dbt", place / "cache").assets


def test_incremental_models_carry_on_in_clones_of_clones(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DBT_TARGET_PATH", "DBT_PROFILES_DIR"):  # settings of the user's own dbt do not reach ours
        monkeypatch.setenv(name, str(place / "elsewhere"))
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    target = WarehouseTarget(place / "warehouse")
    before = sorted(str(p) for p in (place / "dbt").rglob("*"))
    events: list[DbtEvent] = []
    result = run(place, target, "r1", ORDERS.format(low=0, high=100, load=1), on_event=events.append)
    assert {node.status for node in result.nodes} == {"success", "pass"}
    assert (len(result.models), len(result.tests)) == (4, 5)
    assert [event.index for event in events if event.kind == "start"] == list(range(1, 10))
    assert {event.total for event in events if event.kind == "start"} == {9}
    later = ORDERS.format(low=90, high=120, load=2).replace("1.5", "2.5")
    run(place, target, "r2", later, process=DbtProcess())  # one that was started before
    assert read(target, "select count(*), count(distinct order_id), max(load_id) from marts.fct_orders") == [
        (120, 120, 2)
    ]
    assert read(target, "select sum(amount) from marts.fct_orders where order_id >= 90")[0][0] == 2.5 * sum(
        range(90, 120)
    )
    assert read(target, "select count(*) from marts.log") == [(2,)]
    entry = target.ledger(AssetId("marts", "fct_orders"))
    assert entry is not None
    assert (entry.seq, entry.rows, entry.level) == (2, 120, "none")
    assert entry.digest is not None
    run(place, target, "r3", ORDERS.format(low=0, high=5, load=4), full_refresh=True)
    assert read(target, "select count(*) from marts.fct_orders") == [(5,)]
    assert sorted(str(p) for p in (place / "dbt").rglob("*")) == before  # nothing lands in the user's folder
    assert not (place / "elsewhere").exists()
    assert sorted(p.name for p in target.current().parent.iterdir()) == [".owner", "stage.json", "warehouse.duckdb"]  # type: ignore[union-attr]


def test_a_failed_test_leaves_the_old_warehouse(place: Path) -> None:
    target = WarehouseTarget(place / "warehouse")
    seed(target)
    before = target.current()
    with pytest.raises(GateFailed, match="dbt test no_negative failed: 4 failing rows") as caught:
        run(place, target, "r2", ORDERS.format(low=-4, high=0, load=2))
    assert str(caught.value.where) == "dbt/tests/no_negative.sql"
    assert "configured to fail if != 0" in caught.value.detail[0]
    assert target.current() == before
    assert [p.name for p in target._layout.folders()] == ["000001"]
    assert read(target, "select count(*) from silver.orders") == [(1,)]


@pytest.mark.slow
def test_a_failed_model_is_named_with_its_file_and_dbts_words(place: Path) -> None:
    target = WarehouseTarget(place / "warehouse")
    with pytest.raises(StepFailed, match="dbt model stg_orders failed") as caught:
        run(place, target, "r1", "select 1 as order_id")
    assert str(caught.value.where) == "dbt/models/staging/stg_orders.sql"
    assert any('"amount" not found' in line for line in caught.value.detail)
    assert target.current() is None


BROKEN = {
    "jinja": (
        "models/marts/log.sql",
        "select 1 as x\n\nfrom {{ ref('stg_orders' }}",
        "dbt/models/marts/log.sql:3",
        "unexpected '}'",
    ),
    "missing ref": ("models/marts/log.sql", "select * from {{ ref('nope') }}", "dbt/models/marts/log.sql", "nope"),
    "yaml": ("models/marts/marts.yml", "models:\n  - name: [", "dbt/models/marts/marts.yml:3", "Syntax error"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_project_is_one_clear_error(place: Path, case: str) -> None:
    name, text, where, words = BROKEN[case]
    (place / "dbt" / name).write_text(text)
    with pytest.raises(ProjectError, match="dbt cannot read the project") as caught:
        graph(place / "dbt", place / "cache")
    assert str(caught.value.where).startswith(where)
    assert words in "\n".join(caught.value.detail)


def test_a_process_that_is_never_asked_ends_at_once() -> None:
    process = DbtProcess()
    begin = time.monotonic()
    process.end()
    assert time.monotonic() - begin < 9, "it need not be killed"


def test_dbt_project_yml_is_checked_before_dbt_starts(place: Path) -> None:
    (place / "dbt" / "dbt_project.yml").write_text("name: shop\n models: [")
    with pytest.raises(ProjectError, match="not YAML") as caught:
        graph(place / "dbt", place / "cache")
    assert str(caught.value.where) == "dbt/dbt_project.yml:2:8"
    (place / "dbt" / "dbt_project.yml").unlink()
    with pytest.raises(NotFound, match="no dbt project"):
        graph(place / "dbt", place / "cache")


@pytest.mark.slow
def test_a_torn_partial_parse_is_no_obstacle(place: Path) -> None:
    parsed = place / "cache" / "target" / "partial_parse.msgpack"
    os.truncate(parsed, parsed.stat().st_size // 2)
    target = WarehouseTarget(place / "warehouse")
    run(place, target, "r1", ORDERS.format(low=0, high=10, load=1))
    assert read(target, "select count(*) from marts.fct_orders") == [(10,)]


@pytest.mark.slow
def test_stopping_ends_dbt(place: Path) -> None:
    target = WarehouseTarget(place / "warehouse")
    started: list[str] = []
    begin = time.monotonic()
    with pytest.raises(Interrupted):
        run(
            place,
            target,
            "r1",
            ORDERS.format(low=0, high=10, load=1),
            on_event=lambda event: started.append(event.name),
            stopping=lambda: time.monotonic() - begin > 1,
        )
    assert time.monotonic() - begin < 20
    assert target._layout.folders() == []


CHILD = """
import sys
from pathlib import Path
from millrace.duck.warehouse import WarehouseTarget
from millrace.transform.dbt import build
from millrace.transform.dbt_process import DbtOptions
place = Path(sys.argv[1])
clone = WarehouseTarget(place / "warehouse").clone("killed")
with clone.savepoint(7):
    print("go", flush=True)
    options = DbtOptions(inherit=[clone.owner], on_event=lambda e: print(e.name, flush=True))
    build(place / "dbt", clone.folder, place / "cache", options)
"""


@pytest.mark.slow
def test_a_killed_build_is_undone_and_leaves_no_process(place: Path) -> None:
    target = WarehouseTarget(place / "warehouse")
    seed(target)
    silver(target, "killed", ORDERS.format(low=0, high=10, load=1))
    target.clone("killed").release()
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(place)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "go\n"
    while child.stdout.readline() != "log\n":  # the append has begun
        pass
    (runner,) = psutil.Process(child.pid).children()
    child.send_signal(signal.SIGKILL)
    child.wait(60)
    child.stdout.close()
    runner.wait(10)
    run(place, target, "killed", ORDERS.format(low=0, high=10, load=1))
    assert read(target, "select count(*) from marts.log") == [(1,)]
    target.gc(lambda _: False)
    assert [p.name for p in target._layout.folders()] == ["000001", "000002"]
