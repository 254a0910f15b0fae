"""Rules in SQL: sqlglot expressions in DuckDB's dialect, with every identifier quoted and every value a literal.

Nothing here runs anything; `gate` does. Text of the project's author (`expression`) is parsed, never pasted.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from millrace.core.names import AssetId
from millrace.errors import NotFound, ProjectError, did_you_mean
from millrace.quality.rules import Between, Expression, InSet, NotNull, Relationship, RowRule, Rule, Scalar, Unique

DIALECT = "duckdb"
SAMPLE_ROWS = 5
_FLOATS = {"FLOAT", "DOUBLE", "REAL"}
_CLOCK = (
    exp.CurrentDate,
    exp.CurrentTime,
    exp.CurrentTimestamp,
    exp.CurrentDatetime,
    exp.CurrentTimestampLTZ,
    exp.Localtime,
    exp.Localtimestamp,
)
_CLOCK_NAMES = {"now", "transaction_timestamp", "get_current_timestamp", "get_current_time", "current_localtime"}


@dataclass(frozen=True, slots=True)
class Table:
    """A relation and its columns.

    Attributes:
        asset: what it is, for messages.
        relation: its name in the engine, part by part: (schema, table), or just (table,).
        types: type text by column, in order, in the catalogue's spelling.
        now: the run's logical time.
    """

    asset: AssetId
    relation: tuple[str, ...]
    types: Mapping[str, str]
    now: dt.datetime

    def source(self, alias: str = "") -> exp.Expr:
        """Return the relation as it stands in FROM."""
        table = table_of(self.relation)
        return exp.alias_(table, alias, table=True, quoted=True) if alias else table

    def column(self, name: str, check: str) -> str:
        """Return a column's name as the catalogue spells it; DuckDB ignores case.

        Raises:
            NotFound: there is no such column; names the nearest.
        """
        if name in self.types:
            return name
        for known in self.types:
            if known.lower() == name.lower():
                return known
        raise NotFound(
            f'check {check} names the column "{name}", which {self.asset} does not have',
            hint=did_you_mean(name, list(self.types)) or f"columns: {', '.join(self.types)}",
        )


@dataclass(frozen=True, slots=True)
class Value:
    """A column's value in a sentence."""

    column: str


def table_of(relation: Sequence[str]) -> exp.Table:
    """Return a relation's name, quoted part by part."""
    *before, name = relation
    db = before[-1] if before else None
    catalog = before[-2] if len(before) > 1 else None
    return exp.table_(name, db=db, catalog=catalog, quoted=True)


def describe(relation: Sequence[str]) -> str:
    """Return the query for (column, type, …) of a relation."""
    return exp.Describe(this=table_of(relation)).sql(DIALECT)


def text(query: exp.Expr) -> str:
    """Return a query as text for the engine."""
    return query.sql(DIALECT)


def column(name: str, table: str | None = None) -> exp.Column:
    """Return a quoted column."""
    return exp.column(
        exp.to_identifier(name, quoted=True), table=exp.to_identifier(table, quoted=True) if table else None
    )


def broken(rule: RowRule, table: Table) -> exp.Expr:
    """Return the condition that is true for exactly the rows that break a rule.

    Raises:
        NotFound: the table has no such column.
        ProjectError: an expression cannot be read as SQL.
    """
    match rule:
        case NotNull():
            return exp.Is(this=column(table.column(rule.column, rule.name)), expression=exp.Null())
        case Between():
            return _outside(rule, table)
        case InSet():
            name = table.column(rule.column, rule.name)
            return exp.not_(
                _comparable(name, table).isin(*(_literal(value, table.types[name]) for value in rule.values))
            )
        case Expression():
            return exp.not_(exp.paren(parse_expression(rule, table)))


def _outside(rule: Between, table: Table) -> exp.Expr:
    """Return the condition of a value below, above, or not a number."""
    name = table.column(rule.column, rule.name)
    parts: list[exp.Expr] = []
    if _is_text(table.types[name]) and not isinstance(rule.high if rule.low is None else rule.low, str | dt.date):
        return _outside_as_number(rule, _comparable(name, table))
    if rule.low is not None:
        parts.append(exp.LT(this=_comparable(name, table), expression=_literal(rule.low, table.types[name])))
    if rule.high is not None:
        parts.append(exp.GT(this=_comparable(name, table), expression=_literal(rule.high, table.types[name])))
    if table.types[name] in _FLOATS:
        parts.append(exp.func("isnan", column(name), dialect=DIALECT))  # above every number, so a low bound misses it
    return exp.or_(*parts)


def _outside_as_number(rule: Between, text: exp.Expr) -> exp.Expr:
    """Return the condition of a text that is no number between the bounds: as texts 40 would lie between 1 and 5.

    Numbers without a declared precision come into the lake as text.
    """
    number = exp.TryCast(this=text, to=exp.DataType.build("DOUBLE", dialect=DIALECT))
    parts: list[exp.Expr] = [
        exp.and_(exp.Is(this=number, expression=exp.Null()), exp.not_(exp.Is(this=text.copy(), expression=exp.Null()))),
        exp.func("isnan", number.copy(), dialect=DIALECT),
    ]
    if rule.low is not None:
        parts.append(exp.LT(this=number.copy(), expression=exp.convert(rule.low)))
    if rule.high is not None:
        parts.append(exp.GT(this=number.copy(), expression=exp.convert(rule.high)))
    return exp.or_(*parts)


def _is_text(kind: str) -> bool:
    return kind == "VARCHAR" or kind.startswith("ENUM(")


def _comparable(name: str, table: Table) -> exp.Expr:
    """Return a column to compare with literals; an enum is compared as its text."""
    return exp.cast(column(name), "TEXT", dialect=DIALECT) if table.types[name].startswith("ENUM(") else column(name)


def _literal(value: Scalar, kind: str) -> exp.Expr:
    """Return a value as a literal: text beside a text column, so that `[1, 2]` fits a VARCHAR of digits."""
    if _is_text(kind) and not isinstance(value, str):
        value = str(value).lower() if isinstance(value, bool) else str(value)
    return exp.convert(value)


def parse_expression(rule: Expression, table: Table) -> exp.Expr:
    """Return an author's SQL boolean as an expression.

    Raises:
        ProjectError: it is not one SQL expression.
        NotFound: it names a column that the table does not have.
    """
    try:
        parsed = sqlglot.parse(rule.sql, read=DIALECT)
    except SqlglotError as error:
        raise ProjectError(
            f"an expression of {table.asset} is not SQL: {rule.sql}", detail=[str(error).splitlines()[0]]
        ) from error
    found = parsed[0] if len(parsed) == 1 else None
    if not isinstance(found, exp.Condition) or isinstance(found, exp.Query):
        raise ProjectError(
            f"an expression of {table.asset} is not one SQL boolean: {rule.sql}",
            hint='write a condition about the columns, like "total >= net"',
        )
    # Inside subqueries and lambdas a name may mean something else; the engine judges those.
    if not list(found.find_all(exp.Query, exp.Lambda)):
        for named in found.find_all(exp.Column):
            table.column(named.name, rule.name)
    return found.transform(_with_time, rule, table)


def columns_of(rule: Expression) -> list[str]:
    """Return the columns that an author's SQL boolean names, in its order, each once."""
    found = sqlglot.parse_one(rule.sql, read=DIALECT).find_all(exp.Column)
    return list(dict.fromkeys(named.name for named in found))


def _with_time(node: exp.Expr, rule: Expression, table: Table) -> exp.Expr:
    """Put the run's logical time in the place of `$now` and `$today`, and refuse the clock and other parameters."""
    if isinstance(node, exp.Placeholder):
        moment = table.now if table.now.tzinfo else table.now.replace(tzinfo=dt.UTC)
        moment = moment.astimezone(dt.UTC)
        if node.name == "now":
            return exp.cast(exp.Literal.string(moment.isoformat(sep=" ")), "TIMESTAMPTZ", dialect=DIALECT)
        if node.name == "today":
            return exp.cast(exp.Literal.string(moment.date().isoformat()), "DATE", dialect=DIALECT)
    elif not isinstance(node, _CLOCK) and not (isinstance(node, exp.Anonymous) and node.name.lower() in _CLOCK_NAMES):
        return node
    raise ProjectError(
        f"an expression of {table.asset} uses {text(node)}, which a check cannot: {rule.sql}",
        hint="write $now (timestamp) or $today (date): the run's logical time",
    )


def is_aggregate(expression: exp.Expr) -> bool:
    """Whether an expression speaks about the whole table."""
    return any(
        not isinstance(found.parent, exp.Window) and found.find_ancestor(exp.Query) is None
        for found in expression.find_all(exp.AggFunc)
    )


def quarantining(rules: Sequence[Rule], table: Table) -> tuple[RowRule, ...]:
    """Return the blocking rules that a row breaks all by itself, so that it can be set aside alone.

    An expression with an aggregate, a window or a query speaks about other rows too.

    Raises:
        NotFound, ProjectError: as `broken`.
    """
    found: list[RowRule] = []
    for rule in rules:
        match rule:
            case NotNull() | Between() | InSet() if rule.severity == "block":
                found.append(rule)
            case Expression() if rule.severity == "block":
                parsed = parse_expression(rule, table)
                if not is_aggregate(parsed) and not list(parsed.find_all(exp.Window, exp.Query)):
                    found.append(rule)
    return tuple(found)


def count_broken(rules: Sequence[RowRule], table: Table) -> str:
    """Return the query for (rows, rows that break at least one of some rules)."""
    any_broken = exp.or_(*(broken(rule, table) for rule in rules))
    return scan([count_where(), count_where(any_broken)], table)


def broken_rows(rules: Sequence[RowRule], table: Table, shown: Sequence[str]) -> str:
    """Return the query for the rows that break at least one of some rules: columns, then for each rule whether."""
    conditions = [broken(rule, table) for rule in rules]
    flags = [exp.Coalesce(this=exp.paren(found.copy()), expressions=[exp.false()]) for found in conditions]
    query = exp.select(*(column(name) for name in shown), *flags).from_(table.source())
    return text(query.where(exp.or_(*conditions)).order_by(*(column(name) for name in shown)))


def count_where(condition: exp.Expr | None = None) -> exp.Expr:
    """Return the number of rows, or of those for which a condition is true."""
    if condition is None:
        return exp.Count(this=exp.Star())
    # A sum would be null for an empty table; a filtered count is 0.
    return exp.Filter(this=exp.Count(this=exp.Star()), expression=exp.Where(this=condition))


def newest(name: str, table: Table) -> exp.Expr:
    """Return the newest finite value of a date or time column as seconds since 1970 UTC.

    Raises:
        ProjectError: the column holds neither dates nor times.
    """
    kind = table.types[name]
    if not kind.startswith(("DATE", "TIMESTAMP")):
        raise ProjectError(f"freshness of {table.asset} needs a column of dates or times, {name} is {kind}")
    finite = exp.Where(this=exp.func("isfinite", column(name), dialect=DIALECT))
    # A TIMESTAMPTZ is an instant already; epoch() reads dates and plain timestamps as UTC.
    return exp.func("epoch", exp.Filter(this=exp.Max(this=column(name)), expression=finite), dialect=DIALECT)


def scan(expressions: Sequence[exp.Expr], table: Table) -> str:
    """Return one SELECT of aggregates over the table."""
    return text(exp.select(*expressions).from_(table.source()))


def sample(condition: exp.Expr, shown: Sequence[str], key: Sequence[str], table: Table) -> str:
    """Return the query for a few rows that meet a condition, their values as text, in key order."""
    query = exp.select(*(_as_text(name) for name in shown)).from_(table.source()).where(condition)
    if key:
        query = query.order_by(*(column(name) for name in key))
    return text(query.limit(SAMPLE_ROWS))


def _as_text(name: str, table: str | None = None) -> exp.Expr:
    return exp.cast(column(name, table), "TEXT", dialect=DIALECT)


def duplicates(rule: Unique, table: Table) -> tuple[str, str]:
    """Return two queries: (values that occur often, rows too many), and a few such values with their counts."""
    names = [table.column(name, rule.name) for name in rule.columns]
    times = _new_name("times", names)
    groups = (
        exp.select(*(column(name) for name in names), exp.alias_(count_where(), times, quoted=True))
        .from_(table.source())
        .where(*(exp.not_(exp.Is(this=column(name), expression=exp.Null())) for name in names))
        .group_by(*(column(name) for name in names))
        .having(exp.GT(this=count_where(), expression=exp.Literal.number(1)))
    )
    surplus = exp.Coalesce(
        this=exp.Sum(this=exp.Sub(this=column(times), expression=exp.Literal.number(1))),
        expressions=[exp.Literal.number(0)],
    )
    counts = exp.select(count_where(), exp.cast(surplus, "BIGINT", dialect=DIALECT)).from_(groups.subquery("groups"))
    few = (
        exp.select(*(_as_text(name) for name in names), column(times))
        .from_(groups.subquery("groups"))
        .order_by(exp.Ordered(this=column(times), desc=True), *(column(name) for name in names))
        .limit(SAMPLE_ROWS)
    )
    return text(counts), text(few)


def _new_name(wanted: str, taken: Sequence[str]) -> str:
    """Return a column name that is not taken."""
    known = {name.lower() for name in taken}
    while wanted in known:
        wanted += "_"
    return wanted


def orphans(rule: Relationship, table: Table, other: Table) -> tuple[str, str]:
    """Return two queries: the number of rows whose value has no partner, and a few such values with their counts."""
    mine = table.column(rule.column, rule.name)
    theirs = other.column(rule.to_column, rule.name)
    partner = (
        exp.select("1")
        .from_(other.source("theirs"))
        .where(exp.EQ(this=column(theirs, "theirs"), expression=column(mine, "mine")))
    )
    condition = exp.and_(
        exp.not_(exp.Is(this=column(mine, "mine"), expression=exp.Null())),
        exp.not_(exp.Exists(this=partner)),
    )
    counts = exp.select(count_where()).from_(table.source("mine")).where(condition)
    few = (
        exp.select(_as_text(mine, "mine"), exp.alias_(count_where(), "times", quoted=True))
        .from_(table.source("mine"))
        .where(condition)
        .group_by(column(mine, "mine"))
        .order_by(exp.Ordered(this=count_where(), desc=True), column(mine, "mine"))
        .limit(SAMPLE_ROWS)
    )
    return text(counts), text(few)


def fits(found: str, wanted: str, asset: AssetId) -> bool:
    """Whether a column's type is the wanted one; a wanted type without sizes (`decimal`) fits any size.

    Raises:
        ProjectError: the wanted type is not one.
    """
    actual = exp.DataType.build(found, dialect=DIALECT)
    try:
        expected = exp.DataType.build(wanted, dialect=DIALECT)
    except (SqlglotError, ValueError) as error:
        raise ProjectError(f'schema of {asset} names the type "{wanted}", which is none') from error
    return bool(
        actual == expected
        or (
            "(" not in wanted
            and "[" not in wanted
            and actual.this == expected.this
            and not actual.is_type("array", "struct", "map")
        )
    )


def seconds(moment: dt.datetime) -> float:
    """Return a moment as seconds since 1970 UTC; one without a zone is UTC."""
    return (moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)).timestamp()
