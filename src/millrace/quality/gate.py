"""Run checks on a staged relation, and stop the publish when one that blocks has failed.

All rules about single rows, the row count and the newest times of a table are seen in one scan; uniqueness and
relationships are one query each; samples are only fetched for what failed.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlglot import exp

from millrace.core.names import AssetId
from millrace.core.staged import CheckResult
from millrace.errors import GateFailed, NotFound
from millrace.quality import sql
from millrace.quality.rules import (
    Between,
    Expression,
    Freshness,
    HasSchema,
    InSet,
    NotNull,
    Relationship,
    RowCount,
    RowRule,
    Rule,
    Scalar,
    Unique,
)

Query = Callable[[str, Sequence[Any]], Sequence[Sequence[Any]]]
"""Runs one SELECT with bound parameters and returns its rows; its errors are the caller's, already translated."""

Relations = Callable[[AssetId], Sequence[str]]
"""Where another asset lies in the same engine, part by part."""

SHOWN = 60  # characters of a value in a sample: one line of a terminal holds it


def run_checks(
    rules: Sequence[Rule],
    query: Query,
    relation: str | Sequence[str],
    *,
    key: Sequence[str] = (),
    now: dt.datetime | None = None,
    relations: Relations | None = None,
) -> tuple[CheckResult, ...]:
    """Run the rules of one asset on a relation.

    Args:
        rules: of one asset, as `parse_checks` returns them.
        query: runs SQL in DuckDB's dialect.
        relation: where the asset lies: a table's name, or (schema, table).
        key: columns that tell rows apart in samples.
        now: the run's logical time, for freshness; without a zone it is UTC. Default: the clock.
        relations: where other assets lie, for relationships; by default schema.table as the asset is named.

    Returns:
        one result per rule, in the rules' order.

    Raises:
        NotFound: a rule names a column that is not there.
        ProjectError: an expression or a type cannot be read.
    """
    if not rules:
        return ()
    parts = (relation,) if isinstance(relation, str) else tuple(relation)
    runner = _Runner(rules[0].asset, query, parts, key, now or dt.datetime.now(dt.UTC), relations or _by_name)
    return runner.run(rules)


def enforce(results: Sequence[CheckResult], last_good: str | None = None, hint: str | None = None) -> None:
    """Stop here when a blocking check failed.

    Args:
        results: of one or more assets.
        last_good: when the version was published that stays, if there is one.
        hint: what else may be done.

    Raises:
        GateFailed: names the asset, how many of how many rows, a sample, and what stays.
    """
    failed = [result for result in results if result.blocking and not result.passed]
    if not failed:
        return
    asset = failed[0].asset
    detail: list[str] = []
    if len(failed) == 1:
        what = f"{asset} was not published: {failed[0].detail}"
        detail += failed[0].sample
    else:
        ran = sum(result.asset == asset for result in results)
        mine = sum(result.asset == asset for result in failed)
        what = f"{asset} was not published: {mine} of {ran} {_plural('check', ran)} failed"
        for result in failed:
            name = result.name if result.asset == asset else f"{result.asset} {result.name}"
            detail.append(f"{name}: {result.detail}")
            detail += (f"  {line}" for line in result.sample)
    detail.append(f"the last good version ({last_good}) stays" if last_good else "nothing was published before")
    where = f"check {failed[0].name}" if len(failed) == 1 else None
    raise GateFailed(what, where=where, detail=detail, hint=hint)


def reason(rule: RowRule, row: Mapping[str, Any]) -> str:
    """Return why a row breaks a rule, in one sentence: `amount is -12.50, must be in 0 … 1,000,000`.

    Args:
        rule: a rule that the row breaks.
        row: its values by column.
    """
    values = {name.lower(): value for name, value in row.items()}
    parts = said_of(rule, list(row))
    return "".join(_value(values.get(part.column.lower())) if isinstance(part, sql.Value) else part for part in parts)


def said_of(rule: RowRule, names: Sequence[str]) -> list[str | sql.Value]:
    """Return the sentence of `reason` in parts: texts, and the columns whose values stand between them.

    Args:
        rule: a rule.
        names: the columns that there are.
    """
    match rule:
        case NotNull():
            return [f"{rule.column} is null"]
        case Between():
            if rule.low is None or rule.high is None:
                wanted = f"at most {_bound(rule.high)}" if rule.low is None else f"at least {_bound(rule.low)}"
            else:
                wanted = f"in {_bound(rule.low)} … {_bound(rule.high)}"
            return [f"{rule.column} is ", sql.Value(rule.column), f", must be {wanted}"]
        case InSet():
            return [f"{rule.column} is ", sql.Value(rule.column), f", must be {_listed(rule)}"]
        case Expression():
            known = {name.lower() for name in names}
            parts: list[str | sql.Value] = [f"{rule.label or rule.sql} does not hold"]
            for name in sql.columns_of(rule):
                if name.lower() in known:
                    parts += [f"{', ' if len(parts) > 1 else ': '}{name} ", sql.Value(name)]
            return parts


def _listed(rule: InSet) -> str:
    values = [str(value) for value in rule.values]
    return ", ".join(values if len(values) <= 6 else [*values[:5], f"… ({len(values)} values)"])


def _by_name(asset: AssetId) -> tuple[str, str]:
    return (asset.layer, asset.name)


class _Runner:
    """Runs the rules of one asset on one relation."""

    def __init__(
        self,
        asset: AssetId,
        query: Query,
        relation: tuple[str, ...],
        key: Sequence[str],
        now: dt.datetime,
        relations: Relations,
    ) -> None:
        self.query = query
        self.now = now
        self.relations = relations
        self.table = self.describe(asset, relation)
        self.key = tuple(self.table.column(name, "key") for name in key)
        self.rows = 0
        self.figures: dict[int, Any] = {}

    def describe(self, asset: AssetId, relation: Sequence[str]) -> sql.Table:
        """Return a relation with its columns."""
        types = {str(row[0]): str(row[1]) for row in self.query(sql.describe(relation), ())}
        if not types:
            raise NotFound(f"{asset} has no columns to check", where=".".join(relation))
        return sql.Table(asset, tuple(relation), types, self.now)

    def run(self, rules: Sequence[Rule]) -> tuple[CheckResult, ...]:
        """Return one result per rule."""
        self.scan(rules)
        return tuple(self.result(number, rule) for number, rule in enumerate(rules))

    def scan(self, rules: Sequence[Rule]) -> None:
        """Take all figures that one scan of the table can give."""
        wanted: dict[int, exp.Expr] = {}
        for number, rule in enumerate(rules):
            match rule:
                case Expression() if sql.is_aggregate(parsed := sql.parse_expression(rule, self.table)):
                    wanted[number] = parsed
                case NotNull() | Between() | InSet() | Expression():
                    wanted[number] = sql.count_where(sql.broken(rule, self.table))
                case Freshness():
                    name = self.table.column(rule.column, rule.name)
                    wanted[number] = sql.newest(name, self.table)
        rows = self.query(sql.scan([sql.count_where(), *wanted.values()], self.table), ())
        self.rows = int(rows[0][0])
        self.figures = dict(zip(wanted, rows[0][1:], strict=True))

    def result(self, number: int, rule: Rule) -> CheckResult:
        """Return one rule's result from the figures, or from queries of its own."""
        match rule:
            case RowCount():
                return self.row_count(rule)
            case Freshness():
                return self.freshness(rule, self.figures[number])
            case HasSchema():
                return self.schema(rule)
            case Unique():
                return self.unique(rule)
            case Relationship():
                return self.relationship(rule)
            case Expression() if sql.is_aggregate(sql.parse_expression(rule, self.table)):
                held = self.figures[number]
                said = "nothing to say on no rows" if held is None else "true" if held else "false"
                return _made(rule, held is None or bool(held), None, f"{rule.sql} is {said}")
        return self.row_rule(rule, int(self.figures[number]))

    def row_rule(self, rule: RowRule, failing: int) -> CheckResult:
        """Return the result of a rule that single rows break, with a few of them."""
        subject = f"{failing:,} of {self.rows:,} {_plural('row', self.rows)}"
        match rule:
            case NotNull():
                detail = f"{subject} {_have(failing)} no {rule.column}"
            case Between():
                detail = f"{subject} {_have(failing)} {rule.column} {_range(rule.low, rule.high)}"
            case InSet():
                detail = f"{subject} {_have(failing)} {rule.column} outside {_listed(rule)}"
            case Expression():
                detail = f"{subject} {'breaks' if failing == 1 else 'break'} {rule.label or rule.sql}"
        return _made(rule, not failing, failing, detail, self.sample(rule) if failing else ())

    def sample(self, rule: RowRule) -> tuple[str, ...]:
        """Return a few rows that break a rule: the values it speaks of, and what tells the row apart."""
        if isinstance(rule, Expression):
            named = [found.name for found in sql.parse_expression(rule, self.table).find_all(exp.Column)]
            known = {name.lower(): name for name in self.table.types}
            about = list(dict.fromkeys(known[name.lower()] for name in named if name.lower() in known))
        else:
            about = [self.table.column(rule.column, rule.name)]
        others = [name for name in self.key or tuple(self.table.types)[:3] if name not in about]
        rows = self.query(sql.sample(sql.broken(rule, self.table), [*about, *others], self.key, self.table), ())
        return tuple(_row(about, others, row) for row in rows)

    def row_count(self, rule: RowCount) -> CheckResult:
        """Return whether the number of rows lies between its bounds."""
        low, high = rule.low or 0, rule.high
        passed = self.rows >= low and (high is None or self.rows <= high)
        wanted = f"at least {low:,}" if high is None else f"{low:,} … {high:,}"
        return _made(rule, passed, None, f"{self.rows:,} {_plural('row', self.rows)}, wanted {wanted}")

    def freshness(self, rule: Freshness, newest: float | None) -> CheckResult:
        """Return whether the newest value is young enough."""
        if newest is None:
            return _made(rule, False, None, f"no row has a {rule.column}, so nothing is fresh")
        age = sql.seconds(self.now) - float(newest)
        moment = dt.datetime.fromtimestamp(float(newest), dt.UTC)
        limit = rule.max_age.total_seconds()
        detail = (
            f"the newest {rule.column} is {moment:%Y-%m-%d %H:%M} UTC, {_span(age)} old, wanted at most {_span(limit)}"
        )
        return _made(rule, age <= limit, None, detail)

    def schema(self, rule: HasSchema) -> CheckResult:
        """Return whether the columns have their types."""
        known = {name.lower(): (name, kind) for name, kind in self.table.types.items()}
        wrong: list[str] = []
        for name, wanted in rule.types:
            found = known.get(name.lower())
            if found is None:
                wrong.append(f"{name} is missing")
            elif not sql.fits(found[1], wanted, rule.asset):
                wrong.append(f"{name} is {found[1]}, wanted {wanted}")
        count = len(rule.types)
        detail = f"{len(wrong)} of {count} {_plural('column', count)} {'does' if len(wrong) == 1 else 'do'} not fit"
        return _made(rule, not wrong, None, detail, tuple(wrong[: sql.SAMPLE_ROWS]))

    def unique(self, rule: Unique) -> CheckResult:
        """Return whether no key occurs twice; the failing rows are those beyond each key's first."""
        counts, few = sql.duplicates(rule, self.table)
        values, surplus = (int(figure) for figure in self.query(counts, ())[0])
        columns = ", ".join(rule.columns)
        often = (
            f"{values:,} {_plural('value', values)} of {columns} {'occurs' if values == 1 else 'occur'} more than once"
        )
        detail = f"{often}, {surplus:,} of {self.rows:,} rows {'is' if surplus == 1 else 'are'} too many"
        sample: tuple[str, ...] = ()
        if surplus:
            sample = tuple(f"{_row(rule.columns, (), row)} {row[-1]:,} times" for row in self.query(few, ()))
        return _made(rule, not surplus, surplus, detail, sample)

    def relationship(self, rule: Relationship) -> CheckResult:
        """Return whether each value has its partner."""
        other = self.describe(rule.to, self.relations(rule.to))
        counts, few = sql.orphans(rule, self.table, other)
        failing = int(self.query(counts, ())[0][0])
        subject = f"{failing:,} of {self.rows:,} {_plural('row', self.rows)}"
        detail = f"{subject} {_have(failing)} {rule.column} without a partner in {rule.to}.{rule.to_column}"
        sample: tuple[str, ...] = ()
        if failing:
            rows = self.query(few, ())
            sample = tuple(f"{_row([rule.column], (), row)} in {row[-1]:,} {_plural('row', row[-1])}" for row in rows)
        return _made(rule, not failing, failing, detail, sample)


def _made(rule: Rule, passed: bool, failing: int | None, detail: str, sample: tuple[str, ...] = ()) -> CheckResult:
    return CheckResult(rule.name, rule.asset, passed, rule.severity == "block", failing, detail, sample)


def _row(about: Sequence[str], others: Sequence[str], row: Sequence[Any]) -> str:
    """Return `amount -5 (order_id 88124)`."""
    values = [f"{name} {_value(value)}" for name, value in zip([*about, *others], row, strict=False)]
    told = ", ".join(values[: len(about)])
    return f"{told} ({', '.join(values[len(about) :])})" if others else told


def _value(value: Any) -> str:
    if value is None:
        return "null"
    text = str(value)
    text = text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"
    return text if text and text.isprintable() and text == text.strip() else repr(text)


def _range(low: Scalar | None, high: Scalar | None) -> str:
    """Return where a value lies that breaks the bounds."""
    if low is None or high is None:
        return f"above {_bound(high)}" if low is None else f"below {_bound(low)}"
    return f"outside {_bound(low)} … {_bound(high)}"


def _bound(value: Scalar | None) -> str:
    """Return a bound as people read it."""
    return f"{value:,}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _plural(word: str, count: int) -> str:
    return word if count == 1 else word + "s"


def _have(count: int) -> str:
    return "has" if count == 1 else "have"


def _span(seconds: float) -> str:
    """Return a span of time in its largest fitting unit."""
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if abs(seconds) >= 2 * size:
            return f"{seconds / size:.1f}".removesuffix(".0") + f" {unit}"
    return f"{seconds:.0f} s"
