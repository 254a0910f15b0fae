"""Checks run on a real DuckDB, and the gate says what is wrong."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from millrace.core.names import AssetId
from millrace.core.staged import CheckResult, score
from millrace.errors import GateFailed, NotFound, ProjectError
from millrace.quality.gate import enforce, run_checks
from millrace.quality.rules import parse_checks

duckdb = pytest.importorskip("duckdb")

ORDERS = AssetId("silver", "orders")
NOW = dt.datetime(2026, 11, 20, 6, tzinfo=dt.UTC)
Check = Callable[..., tuple[CheckResult, ...]]


class Engine:
    """A DuckDB that counts the queries it is asked."""

    def __init__(self) -> None:
        self.connection = duckdb.connect()
        self.connection.execute("set timezone = 'UTC'")
        self.asked: list[str] = []

    def query(self, text: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        """Run one query."""
        self.asked.append(text)
        return list(self.connection.execute(text, list(parameters)).fetchall())

    def check(
        self, checks: dict[str, Any], relation: str | Sequence[str] = ("silver", "orders"), **options: Any
    ) -> tuple[CheckResult, ...]:
        """Run checks of silver.orders."""
        return run_checks(parse_checks(checks, ORDERS), self.query, relation, now=NOW, **options)


@pytest.fixture
def engine() -> Iterator[Engine]:
    """A DuckDB with orders: one null, one negative, one NaN, one doubled, one orphan."""
    made = Engine()
    made.connection.execute(
        """
        create schema silver;
        create table silver.customers as select 1 as id union all select 2;
        create table silver.orders (order_id bigint, customer_id int, amount decimal(12,2), weight double, status varchar,
            size enum('s', 'm', 'l'), day date, updated_at timestamp, seen timestamptz);
        insert into silver.orders values
            (1, 1, 10.00, 1.5, 'paid', 's', date '2026-11-18', timestamp '2026-11-18 06:00', '2026-11-18 06:00+00'),
            (2, 2, -5.00, 'nan', 'paid', 'm', date '2026-11-19', timestamp '2026-11-19 06:00', '2026-11-19 15:00+09'),
            (2, 2, 20.00, 2.5, 'lost', 'l', date 'infinity', 'infinity', 'infinity'),
            (3, 9, null, null, null, null, null, null, null),
            (null, null, 30.00, 2.5, 'new', 's', date '2026-11-19', null, null);
        """
    )
    yield made
    made.connection.close()


def test_row_rules_take_one_scan(engine: Engine) -> None:
    """Rows that hold: one description and one scan, whatever the number of rules."""
    results = engine.check(
        {
            "row_count": {"min": 5, "max": 5},
            "not_null": ["weight"],
            "between": {"amount": [-5, 30], "day": ["2026-11-18", None]},
            "in_set": {"status": ["paid", "lost", "new"], "size": ["s", "m", "l"], "customer_id": [1, 2, 9]},
            "expression": ["amount < 100 or amount is null", "sum(amount) = 55"],
            "freshness": {"column": "seen", "max_age": "24h"},
            "severity": "warn",
        }
    )
    assert [result.passed for result in results] == [True, False, True, True, True, True, True, True, True, True]
    assert [query.split()[0] for query in engine.asked] == ["DESCRIBE", "SELECT", "SELECT"]  # the third: a sample
    assert results[1].failing == 1
    assert results[1].detail == "1 of 5 rows has no weight"
    assert results[1].sample == ("weight null (order_id 3, customer_id 9, amount null)",)
    assert not results[1].blocking
    assert score(results) == 0.9
    enforce(results)  # a warning stops nothing


def test_bounds_are_allowed_and_nulls_pass(engine: Engine) -> None:
    """A range is closed, a null passes it, NaN does not; the sample tells the row by its key."""
    (amount, weight, low) = engine.check(
        {"between": {"amount": [0, 1_000_000], "weight": [0, 2.5]}}, key=["order_id"]
    ) + (engine.check({"between": {"weight": [0, None]}}))
    assert (amount.failing, weight.failing, low.failing) == (1, 1, 1)
    assert amount.detail == "1 of 5 rows has amount outside 0 … 1,000,000"
    assert amount.sample == ("amount -5.00 (order_id 2)",)
    assert weight.sample == ("weight nan (order_id 2)",)


def test_numbers_that_lie_as_text_are_compared_as_numbers(engine: Engine) -> None:
    """As texts 40 would lie between 1 and 5; what is no number breaks the range, a null does not, texts stay texts."""
    engine.connection.execute(
        "create table v as select * from (values ('1.50'), ('40'), ('-3'), ('x'), ('NaN'), (null)) t(v)"
    )
    results = engine.check({"between": {"v": [1, 5]}}, "v") + engine.check({"between": {"v": [None, 40.0]}}, "v")
    assert [result.failing for result in results] == [4, 2]
    assert engine.check({"between": {"v": ["-", "5"]}}, "v")[0].failing == 2


def test_sets(engine: Engine) -> None:
    """Values outside a set are counted in text, enums and numbers."""
    results = engine.check({"in_set": {"status": ["paid"], "size": ["s", "xl"], "customer_id": [1, 2]}})
    assert [result.failing for result in results] == [2, 2, 1]
    assert sorted(text.partition(" (")[0] for text in results[0].sample) == ["status lost", "status new"]


def test_literals_of_a_text_column(engine: Engine) -> None:
    """Numbers in a list fit a column of digits, and quotes stay values."""
    engine.connection.execute("create table codes as select * from (values ('1'), ('2'), ('it''s'), ('true')) t(code)")
    results = engine.check({"in_set": {"code": [1, 2, "it's", True]}}, "codes")
    assert results[0].passed
    hostile = engine.check({"in_set": {"code": ["'); drop table codes; --", "\\'"]}}, "codes")
    assert hostile[0].failing == 4


def test_unique(engine: Engine) -> None:
    """Rows beyond the first of a value fail; nulls are not compared."""
    one, pair = engine.check({"unique": ["order_id", ["order_id", "status"]]})
    assert (one.failing, one.passed) == (1, False)
    assert one.detail == "1 value of order_id occurs more than once, 1 of 5 rows is too many"
    assert one.sample == ("order_id 2 2 times",)
    assert pair.passed
    engine.connection.execute('create table t as select 1 as times, 2 as "times_" from range(3)')
    (odd,) = engine.check({"unique": [["times", "times_"]]}, "t")
    assert odd.failing == 2
    assert odd.sample == ("times 1, times_ 2 3 times",)


def test_relationships(engine: Engine) -> None:
    """A value without a partner fails, a null passes; another place may be named."""
    checks = {"relationships": {"customer_id": "silver.customers.id"}}
    (result,) = engine.check(checks)
    assert result.failing == 1
    assert result.detail == "1 of 5 rows has customer_id without a partner in silver.customers.id"
    assert result.sample == ("customer_id 9 in 1 row",)
    engine.connection.execute("create table elsewhere as select * from range(10) t(id)")
    (result,) = engine.check(checks, relations=lambda asset: ["elsewhere"])
    assert result.passed


def test_expressions(engine: Engine) -> None:
    """False fails, null passes; with an aggregate the whole table is asked."""
    results = engine.check({"expression": ["amount > 0", {"sql": "count(*) = 4", "name": "four"}, "sum(amount) > 0"]})
    assert [result.passed for result in results] == [False, False, True]
    assert results[0].detail == "1 of 5 rows breaks amount > 0"
    assert results[0].sample == ("amount -5.00 (order_id 2, customer_id 2)",)
    assert results[1].detail == "count(*) = 4 is false"
    assert results[1].failing is None


def test_expressions_use_the_logical_time(engine: Engine) -> None:
    """`$now` and `$today` are the run's; the clock is refused, since its result could not be made again."""
    results = engine.check(
        {"expression": ["isinf(seen) or seen <= $now", "isinf(day) or day < $today", "max(updated_at) > $now"]}
    )
    assert [result.passed for result in results] == [True, True, True]
    (result,) = engine.check({"expression": ["isinf(day) or day < $today - 1"]})
    assert result.failing == 2
    for clock in ("now()", "current_date", "today()", "get_current_timestamp()", "$start"):
        with pytest.raises(ProjectError, match=r"an expression of silver\.orders uses") as caught:
            engine.check({"expression": [f"seen < {clock}"]})
        assert "$now" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("column", "age", "passed"),
    [
        ("updated_at", "24h", True),
        ("updated_at", "86399s", False),
        ("seen", "24h", True),
        ("seen", "23h", False),
        ("day", "30h", True),
        ("day", "29h", False),
    ],
)
def test_freshness(engine: Engine, column: str, age: str, passed: bool) -> None:
    """The newest finite value counts, at the logical time; dates from midnight, times without a zone as UTC."""
    for zone in ("UTC", "Asia/Seoul"):
        engine.connection.execute(f"set timezone = '{zone}'")
        (result,) = engine.check({"freshness": {"column": column, "max_age": age}})
        assert result.passed is passed
    if column == "updated_at" and not passed:
        assert result.detail == "the newest updated_at is 2026-11-19 06:00 UTC, 24 h old, wanted at most 24 h"


def test_freshness_needs_times(engine: Engine) -> None:
    """A column of numbers has no age."""
    with pytest.raises(ProjectError, match="dates or times, amount is DECIMAL"):
        engine.check({"freshness": {"column": "amount", "max_age": "1h"}})


def test_schema(engine: Engine) -> None:
    """Types are compared by meaning; sizes only where they are named."""
    (good,) = engine.check({"schema": {"ORDER_ID": "int8", "amount": "decimal(12, 2)", "status": "text"}})
    assert good.passed
    (wide,) = engine.check({"schema": {"amount": "decimal", "seen": "timestamp with time zone"}})
    assert wide.passed
    (bad,) = engine.check({"schema": {"amount": "decimal(10,2)", "gone": "int", "day": "timestamp", "order_id": "int"}})
    assert bad.detail == "4 of 4 columns do not fit"
    assert bad.sample[:2] == ("amount is DECIMAL(12,2), wanted decimal(10,2)", "gone is missing")
    with pytest.raises(ProjectError, match='the type "bigitn"'):
        engine.check({"schema": {"order_id": "bigitn"}})


def test_empty_table(engine: Engine) -> None:
    """Rules about rows hold on no rows, counts are 0, nothing is fresh."""
    engine.connection.execute("delete from silver.orders")
    results = engine.check(
        {
            "row_count": {"min": 1},
            "freshness": {"column": "day", "max_age": "1w"},
            "not_null": ["order_id"],
            "unique": ["order_id"],
            "between": {"weight": [0, 1]},
            "in_set": {"size": ["s"]},
            "expression": ["amount > 0", "sum(amount) > 0"],
            "relationships": {"customer_id": "silver.customers.id"},
            "schema": {"day": "date"},
        }
    )
    assert [result.passed for result in results] == [False, False, *[True] * 8]
    assert results[0].detail == "0 rows, wanted at least 1"
    assert results[1].detail == "no row has a day, so nothing is fresh"


@pytest.mark.parametrize(
    "checks",
    [
        {"not_null": ["amout"]},
        {"between": {"amout": [0, 1]}},
        {"in_set": {"amout": [1]}},
        {"unique": [["order_id", "amout"]]},
        {"relationships": {"amout": "silver.customers.id"}},
        {"freshness": {"column": "amout", "max_age": "1h"}},
        {"expression": ["amout > 0"]},
    ],
)
def test_unknown_column(engine: Engine, checks: dict[str, Any]) -> None:
    """A column that is not there is an error that names it and the nearest."""
    with pytest.raises(NotFound) as caught:
        engine.check(checks)
    assert '"amout", which silver.orders does not have' in caught.value.what
    assert caught.value.hint == 'did you mean "amount"?'


@pytest.mark.parametrize(
    "sql", ["amount >", "amount > 0; drop table silver.orders", "select 1", "drop table silver.orders", "-- nothing"]
)
def test_expressions_that_are_none(engine: Engine, sql: str) -> None:
    """Only one SQL boolean is taken."""
    with pytest.raises(ProjectError, match=r"an expression of silver\.orders"):
        engine.check({"expression": [sql]})


def test_hostile_names(engine: Engine) -> None:
    """Quotes, spaces, Hangul and reserved words are names like any other; case does not matter."""
    names = ['a"b', "주문 번호", "select", "x;--"]
    listed = ", ".join('"' + name.replace('"', '""') + '" int' for name in names)
    engine.connection.execute(f'create schema "o""dd"; create table "o""dd"."t;--" ({listed})')
    engine.connection.execute('insert into "o""dd"."t;--" values (1, null, 3, 4), (1, 2, 3, 4)')
    results = engine.check(
        {
            "not_null": names,
            "unique": [names],
            "between": {name: [0, 9] for name in names},
            "relationships": {'A"B': "x.y.x;--"},
        },
        ('o"dd', "t;--"),
        key=['a"b'],
        relations=lambda asset: ('o"dd', "t;--"),
    )
    assert [result.failing for result in results] == [0, 1, 0, 0, 0, 0, 0, 0, 0, 2]


def test_long_and_odd_values_in_samples(engine: Engine) -> None:
    """A sample stays one line: long values are cut, odd ones shown with quotes."""
    engine.connection.execute(
        "create table texts as select * from (values ('x' || repeat('y', 90)), (e'a\\nb'), ('')) t(v)"
    )
    (result,) = engine.check({"in_set": {"v": ["z"]}}, "texts", key=["v"])
    assert result.sample == ("v ''", "v 'a\\nb'", f"v x{'y' * 58}…")


def test_sample_is_at_most_five(engine: Engine) -> None:
    """Five rows are enough to see what is wrong, always the same ones."""
    engine.connection.execute("create table many as select range as id, -range as v from range(1, 100)")
    (result,) = engine.check({"between": {"v": [0, 1]}}, "many", key=["id"])
    assert result.failing == 99
    assert result.sample == tuple(f"v -{number} (id {number})" for number in range(1, 6))


def test_gate_names_what_failed(engine: Engine) -> None:
    """One failed check: asset, how many of how many, a sample, what stays."""
    results = engine.check({"between": {"amount": [0, None]}, "not_null": [{"column": "status", "severity": "warn"}]})
    with pytest.raises(GateFailed) as caught:
        enforce(results, last_good="2026-11-20 06:00")
    assert str(caught.value).splitlines() == [
        "silver.orders was not published: 1 of 5 rows has amount below 0",
        "  check between(amount)",
        "  amount -5.00 (order_id 2, customer_id 2)",
        "  the last good version (2026-11-20 06:00) stays",
    ]


def test_gate_names_all_that_failed(engine: Engine) -> None:
    """Several failed checks: each with its figures and sample."""
    results = engine.check({"unique": ["order_id"], "not_null": ["status"], "row_count": {"min": 1}})
    with pytest.raises(GateFailed) as caught:
        enforce(results)
    lines = str(caught.value).splitlines()
    assert lines[0] == "silver.orders was not published: 2 of 3 checks failed"
    assert lines[1].startswith("  unique(order_id): 1 value of order_id occurs more than once")
    assert lines[2] == "    order_id 2 2 times"
    assert lines[-1] == "  nothing was published before"


def test_results_survive_json(engine: Engine) -> None:
    """Results are JSON, as the ledger and the journal keep them."""
    for result in engine.check({"unique": ["order_id"], "freshness": {"column": "day", "max_age": "1d"}}):
        assert result.to_json()["asset"] == ["silver", "orders"]
