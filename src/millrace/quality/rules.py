"""The vocabulary of checks: what a project's files may say about an asset, as frozen values.

    row_count: {min: 1, max: 10000000}
    not_null: [order_id, customer_id]
    unique: [order_id, [order_date, region]]        an entry is a column, or a list of columns taken together
    between: {amount: [0, 1000000], quantity: [1, null]}            inclusive; null: no bound on that side
    in_set: {status: [pending, paid, shipped]}
    expression: ["total >= net", "sum(amount) > 0"]   SQL booleans; with an aggregate: about the whole table
    relationships: {customer_id: silver.customers.customer_id}
    freshness: {column: updated_at, max_age: 36h}
    schema: {order_id: bigint, amount: "decimal(12,2)"}
    severity: warn                                                   the default of all of them; else block

Wherever a rule stands as a list, a text or a pair, a mapping with its own `severity` may stand instead:
`between: {amount: {min: 0, max: 1000000, severity: warn}}`, `not_null: [{column: city, severity: warn}]`.

What a null means: it passes every rule but `not_null` (completeness is a check of its own); rows with a null in a
`unique` key are not compared, as in SQL. What an empty table means: rules about rows hold, `row_count` counts 0,
`freshness` fails.
"""

from __future__ import annotations

import datetime as dt
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

from millrace.core.names import AssetId
from millrace.errors import Place, ProjectError, UsageError, did_you_mean

Severity = Literal["block", "warn"]
Scalar = bool | int | float | str | Decimal | dt.date | dt.datetime

_AGE = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h|d|w)")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


@dataclass(frozen=True, slots=True)
class NotNull:
    """No row has a null in the column."""

    asset: AssetId
    column: str
    severity: Severity = "block"

    @property
    def name(self) -> str:
        """The check's name."""
        return f"not_null({self.column})"


@dataclass(frozen=True, slots=True)
class Unique:
    """No two rows have the same values in the columns."""

    asset: AssetId
    columns: tuple[str, ...]
    severity: Severity = "block"

    @property
    def name(self) -> str:
        """The check's name."""
        return f"unique({', '.join(self.columns)})"


@dataclass(frozen=True, slots=True)
class Between:
    """Values lie between two bounds, both allowed; None: no bound on that side. NaN lies nowhere."""

    asset: AssetId
    column: str
    low: Scalar | None
    high: Scalar | None
    severity: Severity = "block"

    @property
    def name(self) -> str:
        """The check's name."""
        return f"between({self.column})"


@dataclass(frozen=True, slots=True)
class InSet:
    """Values are among the allowed ones."""

    asset: AssetId
    column: str
    values: tuple[Scalar, ...]
    severity: Severity = "block"

    @property
    def name(self) -> str:
        """The check's name."""
        return f"in_set({self.column})"


@dataclass(frozen=True, slots=True)
class Expression:
    """An SQL boolean of the project's author is not false in any row, or, with an aggregate, of the table."""

    asset: AssetId
    sql: str
    label: str = ""
    severity: Severity = "block"

    @property
    def name(self) -> str:
        """The check's name."""
        return f"expression({self.label or self.sql})"


@dataclass(frozen=True, slots=True)
class RowCount:
    """The number of rows lies between two bounds, both allowed."""

    asset: AssetId
    low: int | None
    high: int | None
    severity: Severity = "block"

    @property
    def name(self) -> str:
        """The check's name."""
        return "row_count"


@dataclass(frozen=True, slots=True)
class Relationship:
    """Each value of the column stands in a column of another asset."""

    asset: AssetId
    column: str
    to: AssetId
    to_column: str
    severity: Severity = "block"

    @property
    def name(self) -> str:
        """The check's name."""
        return f"relationships({self.column} → {self.to}.{self.to_column})"


@dataclass(frozen=True, slots=True)
class Freshness:
    """The newest value of a date or time column is not older than `max_age`, measured at the run's logical time.

    Times without a zone are UTC; a date counts from its midnight UTC.
    """

    asset: AssetId
    column: str
    max_age: dt.timedelta
    severity: Severity = "block"

    @property
    def name(self) -> str:
        """The check's name."""
        return f"freshness({self.column})"


@dataclass(frozen=True, slots=True)
class HasSchema:
    """The columns exist with these types; further columns are allowed."""

    asset: AssetId
    types: tuple[tuple[str, str], ...]
    severity: Severity = "block"

    @property
    def name(self) -> str:
        """The check's name."""
        return "schema"


RowRule = NotNull | Between | InSet | Expression
"""Rules that one row alone can break: all of them are seen in one scan."""

Rule = RowRule | Unique | RowCount | Relationship | Freshness | HasSchema


def parse_checks(data: Mapping[str, Any], asset: AssetId, where: Place | str | None = None) -> tuple[Rule, ...]:
    """Read the checks of one asset.

    Args:
        data: the `checks` of a project's file, as YAML or JSON gives them.
        asset: what they are about.
        where: the place in the file, for errors.

    Raises:
        ProjectError: a rule is unknown or does not have its form; names the nearest rule.
    """
    return tuple(_Reader(asset, where).read(data))


def parse_age(text: str) -> dt.timedelta:
    """Read a time span: `90s`, `30m`, `36h`, `2d`, `1w`.

    Raises:
        ValueError: it is none.
    """
    match = _AGE.fullmatch(text.strip())
    if match is None:
        raise ValueError(text)
    return dt.timedelta(seconds=float(match[1]) * _UNITS[match[2]])


class _Reader:
    """Reads the rules of one asset; knows where they stand, for errors."""

    def __init__(self, asset: AssetId, where: Place | str | None) -> None:
        self.asset = asset
        self.where = where
        self.default: Severity = "block"

    def read(self, data: Mapping[str, Any]) -> Iterator[Rule]:
        """Yield the rules in the order of the file."""
        if not isinstance(data, Mapping):
            raise self.wrong(f"checks of {self.asset} are a mapping of rules, not {_kind(data)}")
        readers: dict[str, Callable[[Any], Iterator[Rule]]] = {
            "row_count": self.row_count,
            "not_null": self.not_null,
            "unique": self.unique,
            "between": self.between,
            "in_set": self.in_set,
            "expression": self.expression,
            "relationships": self.relationships,
            "freshness": self.freshness,
            "schema": self.schema,
        }
        self.default = self.severity(data.get("severity", "block"))
        for word, value in data.items():
            if word == "severity":
                continue
            if word not in readers:
                raise self.wrong(
                    f'unknown check "{word}" of {self.asset}',
                    did_you_mean(str(word), [*readers, "severity"]) or f"known checks: {', '.join(readers)}",
                )
            yield from readers[word](value)

    def row_count(self, value: Any) -> Iterator[Rule]:
        """`{min: 1, max: 100}`."""
        options = self.options("row_count", value, {"min", "max"})
        low, high = options.get("min"), options.get("max")
        for bound in (low, high):
            if bound is not None and (isinstance(bound, bool) or not isinstance(bound, int) or bound < 0):
                raise self.wrong(f"row_count of {self.asset} takes whole numbers from 0, not {bound!r}")
        self.ordered("row_count", low, high)
        yield RowCount(self.asset, low, high, self.severity(options.get("severity")))

    def not_null(self, value: Any) -> Iterator[Rule]:
        """`[a, b]`, or entries `{column: a, severity: warn}`."""
        for entry in self.entries("not_null", value):
            column, severity = self.with_severity("not_null", entry, "column")
            yield NotNull(self.asset, self.column("not_null", column), severity)

    def unique(self, value: Any) -> Iterator[Rule]:
        """`[a, [b, c]]`, or entries `{columns: [b, c], severity: warn}`."""
        for entry in self.entries("unique", value):
            columns, severity = self.with_severity("unique", entry, "columns")
            names = [columns] if isinstance(columns, str) else columns
            if not isinstance(names, Sequence) or not names:
                raise self.wrong(f"unique of {self.asset} takes a column or a list of columns, not {_kind(columns)}")
            yield Unique(self.asset, tuple(self.column("unique", name) for name in names), severity)

    def between(self, value: Any) -> Iterator[Rule]:
        """`{a: [0, 10]}`, or `{a: {min: 0, max: 10, severity: warn}}`."""
        for column, bounds in self.mapping("between", value):
            check = f"between({column})"
            severity = self.default
            if isinstance(bounds, Mapping):
                options = self.options(check, bounds, {"min", "max"})
                low, high, severity = options.get("min"), options.get("max"), self.severity(options.get("severity"))
            elif isinstance(bounds, Sequence) and not isinstance(bounds, str) and len(bounds) == 2:
                low, high = bounds
            else:
                raise self.wrong(f"{check} of {self.asset} takes two bounds: [low, high]; null for none")
            low, high = (None if bound is None else self.scalar(check, bound) for bound in (low, high))
            self.ordered(check, low, high)
            yield Between(self.asset, column, low, high, severity)

    def in_set(self, value: Any) -> Iterator[Rule]:
        """`{a: [x, y]}`, or `{a: {values: [x, y], severity: warn}}`."""
        for column, entry in self.mapping("in_set", value):
            values, severity = self.with_severity(f"in_set({column})", entry, "values")
            if isinstance(values, str) or not isinstance(values, Sequence) or not values:
                raise self.wrong(f"in_set({column}) of {self.asset} takes a list of values")
            allowed = tuple(self.scalar(f"in_set({column})", allowed) for allowed in values)
            yield InSet(self.asset, column, allowed, severity)

    def expression(self, value: Any) -> Iterator[Rule]:
        """`["a > b"]`, or entries `{sql: a > b, name: sane, severity: warn}`."""
        for entry in self.entries("expression", value):
            label = ""
            if isinstance(entry, Mapping):
                label = str(entry.get("name", ""))
                entry = {key: part for key, part in entry.items() if key != "name"}
            sql, severity = self.with_severity("expression", entry, "sql")
            if not isinstance(sql, str) or not sql.strip():
                raise self.wrong(f"expression of {self.asset} takes an SQL boolean as text, not {_kind(sql)}")
            yield Expression(self.asset, " ".join(sql.split()), label, severity)

    def relationships(self, value: Any) -> Iterator[Rule]:
        """`{a: layer.asset.column}`, or `{a: {to: layer.asset.column, severity: warn}}`."""
        for column, entry in self.mapping("relationships", value):
            to, severity = self.with_severity(f"relationships({column})", entry, "to")
            asset, _, to_column = str(to).rpartition(".")
            try:
                other = AssetId.parse(asset)
            except UsageError as error:
                raise self.wrong(
                    f"relationships({column}) of {self.asset} does not name a column: {to!r}",
                    "write layer.asset.column, like silver.customers.customer_id",
                ) from error
            yield Relationship(self.asset, column, other, self.column("relationships", to_column), severity)

    def freshness(self, value: Any) -> Iterator[Rule]:
        """`{column: updated_at, max_age: 36h}`."""
        options = self.options("freshness", value, {"column", "max_age"})
        try:
            age = parse_age(str(options.get("max_age", "")))
        except ValueError as error:
            raise self.wrong(
                f"freshness of {self.asset} needs a max_age", "write a number and a unit: 90s, 30m, 36h, 2d, 1w"
            ) from error
        column = self.column("freshness", options.get("column"))
        yield Freshness(self.asset, column, age, self.severity(options.get("severity")))

    def schema(self, value: Any) -> Iterator[Rule]:
        """`{a: bigint}`."""
        types: list[tuple[str, str]] = []
        for column, kind in self.mapping("schema", value):
            if not isinstance(kind, str):
                raise self.wrong(f"schema of {self.asset} takes a type as text for {column}, not {_kind(kind)}")
            types.append((column, kind))
        yield HasSchema(self.asset, tuple(types), self.default)

    def wrong(self, what: str, hint: str | None = None) -> ProjectError:
        """Return the error about a rule that does not have its form."""
        return ProjectError(what, where=self.where, hint=hint)

    def severity(self, value: Any) -> Severity:
        """Return a severity; None is the default of the asset."""
        match value:
            case None:
                return self.default
            case "block" | "warn":
                found: Severity = value
                return found
        raise self.wrong(f"unknown severity {value!r} in checks of {self.asset}", "severity is block or warn")

    def entries(self, word: str, value: Any) -> Sequence[Any]:
        """Return a list's entries; one entry may stand alone."""
        if isinstance(value, str | Mapping):
            return [value]
        if not isinstance(value, Sequence):
            raise self.wrong(f"{word} of {self.asset} takes a list, not {_kind(value)}")
        return value

    def mapping(self, word: str, value: Any) -> Iterator[tuple[str, Any]]:
        """Yield a rule's columns with what is said about each."""
        if not isinstance(value, Mapping):
            raise self.wrong(f"{word} of {self.asset} takes a mapping by column, not {_kind(value)}")
        for column, entry in value.items():
            yield self.column(word, column), entry

    def options(self, word: str, value: Any, known: set[str]) -> Mapping[str, Any]:
        """Return a rule's options after a look at their names."""
        if not isinstance(value, Mapping):
            raise self.wrong(
                f"{word} of {self.asset} takes a mapping of {', '.join(sorted(known))}, not {_kind(value)}"
            )
        for option in value:
            if option not in known | {"severity"}:
                raise self.wrong(
                    f'unknown option "{option}" of {word} of {self.asset}',
                    did_you_mean(str(option), [*known, "severity"]) or f"known options: {', '.join(sorted(known))}",
                )
        return value

    def with_severity(self, word: str, entry: Any, option: str) -> tuple[Any, Severity]:
        """Return what an entry says and its severity: the entry itself, or a mapping with both."""
        if not isinstance(entry, Mapping):
            return entry, self.default
        options = self.options(word, entry, {option})
        if option not in options:
            raise self.wrong(f"{word} of {self.asset} needs {option}")
        return options[option], self.severity(options.get("severity"))

    def column(self, word: str, value: Any) -> str:
        """Return a column's name."""
        if not isinstance(value, str) or not value:
            raise self.wrong(f"{word} of {self.asset} names a column, not {_kind(value)}")
        return value

    def scalar(self, word: str, value: Any) -> Scalar:
        """Return a value to compare with."""
        if value is None:
            raise self.wrong(f"{word} of {self.asset} lists null", "a null always passes here; not_null forbids it")
        if isinstance(value, float) and not math.isfinite(value):
            raise self.wrong(f"{word} of {self.asset} takes finite numbers, not {value}", "write null for no bound")
        if not isinstance(value, bool | int | float | str | Decimal | dt.date):
            raise self.wrong(f"{word} of {self.asset} takes numbers, texts and dates, not {_kind(value)}")
        return value

    def ordered(self, word: str, low: Any, high: Any) -> None:
        """Look that bounds can be met, and that there is one."""
        if low is None and high is None:
            raise self.wrong(f"{word} of {self.asset} has no bound")
        if low is None or high is None:
            return
        try:
            empty = low > high
        except TypeError as error:
            raise self.wrong(f"{word} of {self.asset} has bounds of two kinds: {low!r} and {high!r}") from error
        if empty:
            raise self.wrong(f"{word} of {self.asset} can never hold: {low} is above {high}")


def _kind(value: object) -> str:
    """Return what a value is, in the words of YAML."""
    match value:
        case None:
            return "nothing"
        case bool():
            return "true or false"
        case int() | float():
            return f"the number {value}"
        case str():
            return f"the text {value!r}"
        case Mapping():
            return "a mapping"
        case Sequence():
            return "a list"
    return type(value).__name__
