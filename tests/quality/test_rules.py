"""What the files may say about an asset, and what is said when they do it wrong."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from millrace.core.names import AssetId
from millrace.errors import Place, ProjectError
from millrace.quality.rules import (
    Between,
    Expression,
    Freshness,
    HasSchema,
    InSet,
    NotNull,
    Relationship,
    RowCount,
    Unique,
    parse_age,
    parse_checks,
)

ORDERS = AssetId("silver", "orders")


def test_the_whole_vocabulary() -> None:
    """Each rule is read in its short form, in the order of the file."""
    rules = parse_checks(
        {
            "row_count": {"min": 1, "max": 100},
            "not_null": ["order_id", "amount"],
            "unique": ["order_id", ["day", "region"]],
            "between": {"amount": [0, 1e6], "quantity": [1, None]},
            "in_set": {"status": ["new", "paid"]},
            "expression": ["total  >=\n net"],
            "relationships": {"customer_id": "silver.customers.id"},
            "freshness": {"column": "updated_at", "max_age": "36h"},
            "schema": {"order_id": "bigint", "amount": "decimal(12,2)"},
        },
        ORDERS,
    )
    assert rules == (
        RowCount(ORDERS, 1, 100),
        NotNull(ORDERS, "order_id"),
        NotNull(ORDERS, "amount"),
        Unique(ORDERS, ("order_id",)),
        Unique(ORDERS, ("day", "region")),
        Between(ORDERS, "amount", 0, 1e6),
        Between(ORDERS, "quantity", 1, None),
        InSet(ORDERS, "status", ("new", "paid")),
        Expression(ORDERS, "total >= net"),
        Relationship(ORDERS, "customer_id", AssetId("silver", "customers"), "id"),
        Freshness(ORDERS, "updated_at", dt.timedelta(hours=36)),
        HasSchema(ORDERS, (("order_id", "bigint"), ("amount", "decimal(12,2)"))),
    )
    assert [rule.name for rule in rules[3:5]] == ["unique(order_id)", "unique(day, region)"]
    assert {rule.severity for rule in rules} == {"block"}


def test_severity_of_one_rule_and_of_all() -> None:
    """A rule's own severity beats the asset's default, wherever the default stands."""
    rules = parse_checks(
        {
            "not_null": ["a", {"column": "b", "severity": "block"}],
            "unique": [{"columns": ["a", "b"]}],
            "between": {"a": {"min": 0, "severity": "block"}},
            "in_set": {"a": {"values": [1], "severity": "block"}},
            "expression": {"sql": "a > 0", "name": "positive", "severity": "block"},
            "relationships": {"a": {"to": "x.y.z", "severity": "block"}},
            "row_count": {"min": 1, "severity": "block"},
            "severity": "warn",
        },
        ORDERS,
    )
    assert [rule.severity for rule in rules] == ["warn", "block", "warn", *["block"] * 5]
    assert rules[5].name == "expression(positive)"


@pytest.mark.parametrize(
    ("checks", "what", "hint"),
    [
        ({"not_nul": ["a"]}, 'unknown check "not_nul"', 'did you mean "not_null"?'),
        ({"zzz": 1}, 'unknown check "zzz"', "known checks: row_count"),
        ({"between": {"a": {"mni": 1}}}, 'unknown option "mni" of between(a)', 'did you mean "min"?'),
        ({"between": {"a": [1]}}, "takes two bounds", ""),
        ({"between": {"a": [2, 1]}}, "2 is above 1", ""),
        ({"between": {"a": [2, "x"]}}, "bounds of two kinds", ""),
        ({"between": {"a": [None, None]}}, "has no bound", ""),
        ({"between": {"a": [float("nan"), 1]}}, "finite numbers", "null for no bound"),
        ({"between": ["a"]}, "takes a mapping by column, not a list", ""),
        ({"in_set": {"a": "x"}}, "takes a list of values", ""),
        ({"in_set": {"a": ["x", None]}}, "lists null", "not_null"),
        ({"in_set": {"a": [["x"]]}}, "numbers, texts and dates, not a list", ""),
        ({"not_null": 5}, "takes a list, not the number 5", ""),
        ({"not_null": [5]}, "names a column, not the number 5", ""),
        ({"unique": [[]]}, "takes a column or a list of columns", ""),
        ({"expression": [""]}, "SQL boolean as text", ""),
        ({"row_count": {"min": -1}}, "whole numbers from 0", ""),
        ({"row_count": {"min": True}}, "whole numbers from 0", ""),
        ({"row_count": {}}, "has no bound", ""),
        ({"freshness": {"column": "a"}}, "needs a max_age", "36h"),
        ({"freshness": {"column": "a", "max_age": "2 months"}}, "needs a max_age", "36h"),
        ({"freshness": {"max_age": "2h"}}, "names a column, not nothing", ""),
        ({"relationships": {"a": "customers.id"}}, "does not name a column", "layer.asset.column"),
        ({"relationships": {"a": {"severity": "warn"}}}, "needs to", ""),
        ({"schema": {"a": 5}}, "takes a type as text", ""),
        ({"severity": "error"}, "unknown severity 'error'", "block or warn"),
        (["not_null"], "a mapping of rules, not a list", ""),
    ],
)
def test_wrong_checks_are_named(checks: Any, what: str, hint: str) -> None:
    """The error names the rule, the asset, the place, and what would be right."""
    with pytest.raises(ProjectError) as caught:
        parse_checks(checks, ORDERS, Place("checks/silver.yaml", 3, 5))
    assert what in caught.value.what
    assert "silver.orders" in caught.value.what
    assert hint in (caught.value.hint or "")
    assert "checks/silver.yaml:3:5" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("36h", 129_600), ("1.5 d", 129_600), ("1w", 604_800)]
)
def test_ages(text: str, seconds: int) -> None:
    """Spans have a number and a unit."""
    assert parse_age(text).total_seconds() == seconds
