"""Projects that are wrong: each error's exact text, its place, and what would be right."""

from __future__ import annotations

import contextlib

import pytest

from millrace.errors import MillraceError, ProjectError
from millrace.project import load_project


def refused(root, environment=None) -> ProjectError:
    with pytest.raises(ProjectError) as caught:
        load_project(root, environment, environ={})
    return caught.value


COPIES = "copies/shop_db.yaml"
EXACT = {
    "unknown key": (
        COPIES,
        ("{key: customer_id}", "{key: customer_id, curser: updated_at}"),
        """\
unknown key "curser" in table customers
  copies/shop_db.yaml:6:33
  6 |   customers: {key: customer_id, curser: updated_at}
    |                                 ^^^^^^ did you mean "cursor"?""",
    ),
    "unknown key deep inside": (
        COPIES,
        ("bad_rows", "badrows"),
        """\
unknown key "badrows" in contract of table orders
  copies/shop_db.yaml:5:84
  5 | …    {key: order_id, contract: {new_columns: evolve, type_changes: freeze, badrows: quarantine}}
    |                                                                            ^^^^^^^ did you mean "bad_rows"?""",
    ),
    "duplicate key": (
        COPIES,
        ("customers:", "orders:   "),
        """\
key "orders" stands twice
  copies/shop_db.yaml:6:3
  6 |   orders:    {key: customer_id}
    |   ^^^^^^ first on line 5""",
    ),
    "wrong type": (
        COPIES,
        ("{key: customer_id}", "{key: customer_id, max_delete: half}"),
        """\
"max_delete" in table customers must be a number, not the text "half"
  copies/shop_db.yaml:6:45
  6 |   customers: {key: customer_id, max_delete: half}
    |                                             ^^^^""",
    ),
    "out of range": (
        COPIES,
        ("{key: customer_id}", "{max_delete: 50}"),
        """\
"max_delete" in table customers must be at most 1, not the number 50
  copies/shop_db.yaml:6:27
  6 |   customers: {max_delete: 50}
    |                           ^^""",
    ),
    "a word that is none of the known": (
        COPIES,
        ("mode: full", "mode: fulll"),
        """\
"mode" in table products must be full, incremental, append, truncate, snapshot or backfill, not the text "fulll"
  copies/shop_db.yaml:7:38
  7 |   products:  {key: product_id, mode: fulll}
    |                                      ^^^^^ did you mean "full"?""",
    ),
    "files of a kind that is not known": (
        COPIES,
        ("mode: full", "stage: cvs"),
        """\
"stage" in table products must be csv, parquet or direct, not the text "cvs"
  copies/shop_db.yaml:7:39
  7 |   products:  {key: product_id, stage: cvs}
    |                                       ^^^ did you mean "csv"?""",
    ),
    "an unknown key of files between source and target": (
        COPIES,
        ("mode: full", "stage: {file: csv, dir: /big}"),
        """\
unknown key "dir" in stage of table products
  copies/shop_db.yaml:7:51
  7 |   products:  {key: product_id, stage: {file: csv, dir: /big}}
    |                                                   ^^^ known here: file, folder""",
    ),
    "files between source and lake": (
        COPIES,
        ("mode: full", "stage: file"),
        """\
table products goes into the lake, where Parquet files are staged anyway, in the lake itself
  copies/shop_db.yaml:7:32
  7 |   products:  {key: product_id, stage: file}
    |                                ^^^^^
  leave stage out, or stage: parquet""",
    ),
    "a backfill without an interval": (
        COPIES,
        ("mode: full", "mode: backfill, cursor: day"),
        """\
table products is a backfill and has neither from nor to
  copies/shop_db.yaml:7:32
  7 |   products:  {key: product_id, mode: backfill, cursor: day}
    |                                ^^^^
  cursor: updated_at, from: 2026-01-01, to: 2026-02-01""",
    ),
    "an interval without a backfill": (
        COPIES,
        ("mode: full", "mode: full, to: 2026-02-01"),
        """\
table products: "to" says nothing in mode full
  copies/shop_db.yaml:7:44
  7 |   products:  {key: product_id, mode: full, to: 2026-02-01}
    |                                            ^^
  mode: backfill, or millrace run --from … --to …""",
    ),
    "rows of the lake only counted": (
        COPIES,
        ("mode: full", "mode: full, proof: count"),
        """\
table products: rows of the lake that are only counted are not built yet
  copies/shop_db.yaml:7:51
  7 |   products:  {key: product_id, mode: full, proof: count}
    |                                                   ^^^^^
  leave proof out: a copy into the lake compares every row""",
    ),
    "a number for a name": (
        COPIES,
        ("key: product_id", "key: [product_id, 7]"),
        """\
item 2 of key of table products must be a text, not the number 7
  copies/shop_db.yaml:7:33
  7 |   products:  {key: [product_id, 7], mode: full}
    |                                 ^""",
    ),
    "the same key column twice": (
        COPIES,
        ("key: product_id", "key: [a, a]"),
        """\
"a" stands twice in key of table products
  copies/shop_db.yaml:7:20
  7 |   products:  {key: [a, a], mode: full}
    |                    ^^^^^^""",
    ),
    "incremental without a cursor": (
        COPIES,
        (", cursor: updated_at}", "}"),
        """\
table orders is incremental and names no cursor column
  copies/shop_db.yaml:5:3
  5 |   orders:    {key: order_id, contract: {new_columns: evolve, type_changes: freeze, bad_rows: qu…
    |   ^^^^^^
  cursor: updated_at, or mode: full""",
    ),
    "missing key": (
        COPIES,
        ("from: shop_db\n", ""),
        """\
missing key "from" in copies/shop_db.yaml
  copies/shop_db.yaml""",
    ),
    "unknown connection": (
        COPIES,
        ("from: shop_db", "from: shopdb"),
        """\
unknown connection "shopdb" in environment dev
  copies/shop_db.yaml:1:7
  1 | from: shopdb
    |       ^^^^^^ did you mean "shop_db"?""",
    ),
    "unknown layer": (
        COPIES,
        ("to: bronze", "to: bronce"),
        """\
unknown layer "bronce"
  copies/shop_db.yaml:2:5
  2 | to: bronce                                  # any layer, or connection.schema
    |     ^^^^^^ did you mean "bronze"?""",
    ),
    "a layer of the warehouse": (
        COPIES,
        ("to: bronze", "to: marts"),
        """\
layer marts is bound to the warehouse; copies go to a layer of the lake or to connection.schema
  copies/shop_db.yaml:2:5
  2 | to: marts                                  # any layer, or connection.schema
    |     ^^^^^""",
    ),
    "unknown connection as a target": (
        COPIES,
        ("to: bronze", "to: shop_dd.raw"),
        """\
unknown connection "shop_dd" in environment dev
  copies/shop_db.yaml:2:5
  2 | to: shop_dd.raw                                  # any layer, or connection.schema
    |     ^^^^^^^^^^^ did you mean "shop_db"?""",
    ),
    "not a table name": (
        COPIES,
        ("  products: ", "  a b: "),
        """\
not a table name: 'a b'
  copies/shop_db.yaml:7:3
  7 |   a b:  {key: product_id, mode: full}
    |   ^^^
  write an SQL name: public.orders, or "Odd"."name" with quotes""",
    ),
    "two statements": (
        COPIES,
        ("{key: customer_id}", "{where: 'true; drop table customers'}"),
        """\
"where" of table customers must be one statement, not 2
  copies/shop_db.yaml:6:22
  6 |   customers: {where: 'true; drop table customers'}
    |                      ^^^^^^^^^^^^^^^^^^^^^^^^^^^^""",
    ),
    "a tab": (
        COPIES,
        ("  products", "\tproducts"),
        """\
a tab where YAML wants spaces
  copies/shop_db.yaml:7:1
  7 |  products:  {key: product_id, mode: full}
    | ^
  indent with spaces""",
    ),
    "a colon too many": (
        COPIES,
        ("from: shop_db", "from: shop: db"),
        """\
not valid YAML: a colon where none is allowed
  copies/shop_db.yaml:1:11
  1 | from: shop: db
    |           ^
  quote a text that holds ": \"""",
    ),
    "a second document": (
        COPIES,
        ("tables:", "---\ntables:"),
        """\
a second document in the file
  copies/shop_db.yaml:4:1
  4 | ---
    | ^
  one file holds one document: remove the ---""",
    ),
    "a list where a mapping is wanted": (
        COPIES,
        "- orders\n",
        """\
copies/shop_db.yaml must be a mapping (key: value), not a list
  copies/shop_db.yaml:1:1
  1 | - orders
    | ^""",
    ),
    "a tag": (
        COPIES,
        ("from: shop_db", "from: !!python/object/apply:os.system [id]"),
        """\
tags like !!python/object/apply:os.system are not used here
  copies/shop_db.yaml:1:7
  1 | from: !!python/object/apply:os.system [id]
    |       ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^""",
    ),
    "an environment that extends nothing": (
        "millrace.yaml",
        ("extends: dev", "extends: def"),
        """\
environment prod extends "def", which does not exist
  millrace.yaml:11:14
  11 |     extends: def
     |              ^^^ did you mean "dev"?""",
    ),
    "environments in a circle": (
        "millrace.yaml",
        ("  dev:\n", "  dev:\n    extends: prod\n"),
        """\
environments extend each other: dev → prod → dev
  millrace.yaml:7:14
  7 |     extends: prod
    |              ^^^^""",
    ),
    "a connection of an unknown type": (
        "millrace.yaml",
        ("type: postgres,", "type: postgresql,"),
        """\
"type" in connection shop_db of environment dev must be postgres or files, not the text "postgresql"
  millrace.yaml:7:35
  7 |     connections: {shop_db: {type: postgresql, url: "${env:SHOP_DB_URL}"}}
    |                                   ^^^^^^^^^^ did you mean "postgres"?""",
    ),
    "a connection without a url": (
        "millrace.yaml",
        (', url: "${env:SHOP_DB_URL}"}', "}"),
        """\
connection shop_db of environment dev needs a "url"
  millrace.yaml:7:28
  7 |     connections: {shop_db: {type: postgres}}
    |                            ^^^^^^^^^^^^^^^^
  url: "${env:NAME}\"""",
    ),
    "a variable without a source": (
        "millrace.yaml",
        ("env:SHOP_DB_URL", "SHOP_DB_URL"),
        """\
"${SHOP_DB_URL}" names no source
  millrace.yaml:7:50
  7 |     connections: {shop_db: {type: postgres, url: "${SHOP_DB_URL}"}}
    |                                                  ^^^^^^^^^^^^^^^^
  write ${env:SHOP_DB_URL} for an environment variable""",
    ),
    "a bad schedule": (
        "millrace.yaml",
        ("0 6 * * *", "every day"),
        """\
"every day" is not a schedule
  millrace.yaml:17:40
  17 |   daily_ecommerce_pipeline: {schedule: "every day", select: ["+marts.*"], retries: 2, retry_del…
     |                                        ^^^^^^^^^^^
  five cron fields, minute hour day month weekday: "0 6 * * *" is every day at 6""",
    ),
    "a bad duration": (
        "millrace.yaml",
        ("5m", "5 minutes"),
        '"5 minutes" is not a duration',
    ),
    "a layer without its place": (
        "millrace.yaml",
        ("    lake: ./lake\n", ""),
        """\
layer bronze is bound to the lake, and environment dev has no "lake"
  millrace.yaml:4:18
  4 | layers: {bronze: lake, silver: lake, gold: lake, staging: warehouse, marts: warehouse}
    |                  ^^^^""",
    ),
    "a reserved layer": (
        "millrace.yaml",
        ("{bronze:", "{pages:"),
        """\
"pages" cannot be a layer: the name is taken
  millrace.yaml:4:10
  4 | layers: {pages: lake, silver: lake, gold: lake, staging: warehouse, marts: warehouse}
    |          ^^^^^""",
    ),
    "upsert without a key": (
        "models/silver/orders.yaml",
        ("key: order_id\n", ""),
        """\
kind upsert needs a key
  models/silver/orders.yaml:1:7
  1 | kind: upsert
    |       ^^^^^^
  key: order_id, or a list of columns""",
    ),
    "a kind that comes later": (
        "models/silver/orders.yaml",
        ("upsert", "interval"),
        """\
"kind" interval is not built yet: use full or upsert
  models/silver/orders.yaml:1:7
  1 | kind: interval
    |       ^^^^^^^^""",
    ),
    "an unknown check": (
        "checks/marts.yaml",
        ("row_count", "rowcount"),
        """\
unknown key "rowcount" in marts.agg_daily_sales
  checks/marts.yaml:2:3
  2 |   rowcount: {min: 1}
    |   ^^^^^^^^ did you mean "row_count"?""",
    ),
    "bounds the wrong way round": (
        "checks/marts.yaml",
        ("[-100, 100]", "[100, -100]"),
        """\
margin of between of marts.agg_daily_sales can never hold: 100 is above -100
  checks/marts.yaml:3:21
  3 |   between: {margin: [100, -100]}
    |                     ^^^^^^^^^^^""",
    ),
    "checks of something that is no asset": (
        "checks/marts.yaml",
        ("marts.agg_daily_sales", "agg_daily_sales"),
        """\
"agg_daily_sales" is not an asset
  checks/marts.yaml:1:1
  1 | agg_daily_sales:
    | ^^^^^^^^^^^^^^^
  assets are named layer.name, like marts.fct_orders""",
    ),
    "a dashboard without a date": (
        "dashboards/daily_sales.yaml",
        ("date: order_date\n", ""),
        """\
kpis need a date column
  dashboards/daily_sales.yaml:3:1
  3 | kpis:
    | ^^^^
  date: order_date""",
    ),
    "an empty model": ("models/silver/orders.sql", " \n", "the model is empty\n  models/silver/orders.sql"),
    "an empty manifest": ("millrace.yaml", "", 'missing key "version" in millrace.yaml\n  millrace.yaml'),
    "an older version": (
        "millrace.yaml",
        ("version: 1", "version: 0"),
        """\
"version" must be 1, not 0
  millrace.yaml:1:10
  1 | version: 0
    |          ^""",
    ),
}


@pytest.mark.parametrize("name", EXACT)
def test_the_exact_text(write, name):
    file, change, text = EXACT[name]
    error = refused(write({file: change}))
    assert str(error).split("\nerror: ")[0][: len(text)] == text
    assert error.exit_code == 2


FILES = {
    "a folder that is no layer": (
        {"models/silvr/x.sql": "select 1"},
        (
            'folder models/silvr is not a layer of the lake: "silvr" is not in layers of millrace.yaml\n'
            '  models/silvr\n  did you mean "silver"?'
        ),
    ),
    "a model in the warehouse": (
        {"models/marts/x.sql": "select 1"},
        (
            'folder models/marts is not a layer of the lake: "marts" is bound to the warehouse\n'
            "  models/marts\n  tables of the warehouse are made by dbt"
        ),
    ),
    "options without a model": (
        {"models/silver/custmers.yaml": "kind: full"},
        (
            "there is no model custmers.sql beside custmers.yaml\n  models/silver/custmers.yaml\n"
            '  did you mean "customers"?'
        ),
    ),
    "a Python model": (
        {"models/silver/sessions.py": "x = 1"},
        "Python models are not built yet\n  models/silver/sessions.py",
    ),
    "a file ending in yml": ({"copies/x.yml": "from: a"}, "x.yml must end in .yaml\n  copies/x.yml"),
    "a copy and a model of one name": (
        {"models/bronze/orders.sql": "select 1 as x"},
        "two assets are named bronze.orders\n  models/bronze/orders.sql\n  also at copies/shop_db.yaml:5:3",
    ),
    "two copies of one name": (
        {"copies/zweit.yaml": "from: shop_db\nto: bronze\ntables:\n  public.orders:\n"},
        (
            "two assets are named bronze.orders\n  copies/zweit.yaml:4:3\n  4 |   public.orders:\n"
            "    |   ^^^^^^^^^^^^^\n  also at copies/shop_db.yaml:5:3"
        ),
    ),
    "names that differ by case": (
        {"models/silver/Orders.sql": "select 1 as x"},
        (
            "assets silver.Orders and silver.orders have names that differ only by case\n  models/silver/orders.sql\n"
            "  also at models/silver/Orders.sql:1:1"
        ),
    ),
    "checks in two places": (
        {"checks/silver.yaml": "silver.orders: {not_null: amount}\n"},
        (
            "checks of silver.orders stand in two places\n  checks/silver.yaml:1:1\n"
            "  1 | silver.orders: {not_null: amount}\n    | ^^^^^^^^^^^^^\n  also at models/silver/orders.yaml:3:1"
        ),
    ),
    "a dbt folder without a project": (
        {"dbt/dbt_project.yml": None, "dbt/models/x.sql": "select 1"},
        "the folder dbt holds no dbt project\n  dbt/dbt_project.yml",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_files_in_the_wrong_place(write, name):
    changes, text = FILES[name]
    assert str(refused(write(changes))) == text


def test_all_errors_at_once_and_no_more_than_ten(write):
    error = refused(
        write(
            {
                COPIES: ("{key: customer_id}", "{keyy: customer_id, mode: fast}"),
                "models/silver/orders.yaml": ("upsert", "upsrt"),
                "checks/marts.yaml": ("row_count", "rows"),
            }
        )
    )
    text = str(error)
    assert [line for line in ["", *text.splitlines()] if line.startswith("error:")] == [
        'error: "mode" in table customers must be full, incremental, append, truncate, snapshot or backfill, not the text "fast"',
        'error: "kind" in models/silver/orders.yaml must be full or upsert, not the text "upsrt"',
        'error: unknown key "rows" in marts.agg_daily_sales',
    ]
    assert text.startswith('unknown key "keyy" in table customers\n')
    many = "".join(f"  k{index}: 1\n" for index in range(30))
    error = refused(write({COPIES: f"from: shop_db\nto: bronze\ntables: {{a: {{}}}}\n{many.replace('  ', '')}"}))
    assert len(error.others) == 9


def test_a_mark_under_hangul_and_a_long_line(write):
    tables = "from: shop_db\nto: bronze\ntables:\n  종목: {설명: 1}\n  b: {where: '" + "x" * 120 + "', curser: a}\n"
    error = refused(write({COPIES: tables}))
    assert str(error).splitlines()[1:4] == [
        "  copies/shop_db.yaml:4:8",
        "  4 |   종목: {설명: 1}",
        "    |          ^^^^",
    ]
    (other,) = error.others
    line, mark = other.detail
    assert len(line) <= 104
    assert line[mark.index("^") : mark.rindex("^") + 1] == "curser"


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ('"../../etc"', "'.'"),
        ('"a/b"', "'/'"),
        ('"a\\nb"', "'\\n'"),
        ('"a\\u0007"', "'\\x07'"),
        ('"' + "한" * 22 + '"', "longer than 63 bytes"),
        ('"_millrace"', "are taken"),
        ('" a"', "space"),
    ],
)
def test_hostile_names_need_another_in_the_lake(write, name, cause):
    key = '"' + name.replace('"', '\\"') + '"'
    head = "from: shop_db\nto: bronze\ntables:\n"
    error = refused(write({COPIES: f"{head}  {key}: {{}}\n"}))
    assert cause in error.what
    assert error.hint == "name the asset: as: other_name"
    assert all(c.isprintable() for line in str(error).splitlines() for c in line)
    project = load_project(write({COPIES: f"{head}  {key}: {{as: odd}}\n"}), environ={})
    assert str(project.copies[0].asset) == "bronze.odd"


def test_broken_bytes_and_bombs(write):
    root = write()
    path = root / COPIES
    path.write_bytes(b"from: shop_db\nto: \xff\n")
    assert str(refused(root)) == "the file is not UTF-8\n  copies/shop_db.yaml:2\n  save it as UTF-8"
    path.write_text("from: \x07bell\n")
    assert refused(root).what == "a character that YAML does not allow: U+0007"
    path.write_text("a: &a [*a]\n")
    assert refused(root).what == "an alias that holds itself"
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
    path.write_text(bomb)
    assert refused(root).what == "more than 50,000 values in one file"
    path.write_text("a: " + "[" * 5000)
    assert refused(root).what == "the file is nested too deeply"
    path.write_text("a: " + "9" * 9000 + "\n")
    assert 'unknown key "a"' in str(refused(root))
    path.write_text("﻿" + "from: nobody\nto: bronze\ntables: {a: {}}\n", encoding="utf-8")
    assert str(refused(root).where) == "copies/shop_db.yaml:1:7"


def test_words_that_yaml_takes_for_booleans_and_times_are_texts(write):
    checks = "marts.x:\n  in_set: {country: [no, se, on], at: [12:30], day: [2024-01-01], code: [007]}\n"
    project = load_project(write({"checks/marts.yaml": checks}), environ={})
    found = {str(one.asset): one.checks.in_set for one in project.checks}["marts.x"]
    assert {name: rule.values for name, rule in found.items()} == {
        "country": ("no", "se", "on"),
        "at": ("12:30",),
        "day": ("2024-01-01",),
        "code": ("007",),
    }


def test_every_error_is_one_of_ours(write):
    """Cut the files at every place: never anything but one clear error, or a project."""
    root = write()
    for file in ("millrace.yaml", COPIES, "checks/marts.yaml", "dashboards/daily_sales.yaml"):
        whole = (root / file).read_text()
        for end in range(0, len(whole), 7):
            (root / file).write_text(whole[:end])
            with contextlib.suppress(MillraceError):
                load_project(root, environ={})
        (root / file).write_text(whole)
    load_project(root, environ={})


def test_nothing_in_an_error_steers_the_terminal(write):
    error = refused(write({"millrace.yaml": ("0 6 * * *", "0\u2028\u202e6 * *")}))
    assert all(c.isprintable() for line in str(error).split("\n") for c in line)
    assert str(error.where) == "millrace.yaml:17:40"
