"""`checks/*.yaml` and the `checks` of models and tables: what must be true of an asset.

The words and what they mean are those of `millrace.quality.rules`; here they are data with a place in a file. The
short forms (`not_null: order_id`, `between: {amount: [0, 100]}`) are read into the long ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, RootModel, model_validator

from millrace.core.names import AssetId
from millrace.errors import UsageError
from millrace.project.fields import Count, Part, Text, Texts, wrong

_AGE = re.compile(r"\d+(?:\.\d+)?\s*[smhdw]")

Severity = Literal["block", "warn"]
Value = str | int | float | bool


def _scalar(value: Any) -> Any:
    if value is not None and not isinstance(value, Value):
        raise wrong("{} must be a number, a text or a date")
    return value


def _some_scalar(value: Any) -> Any:
    if value is None:
        raise wrong("{} lists null", hint="a null always passes here; not_null forbids it")
    return _scalar(value)


_SCALAR = {"type": ["string", "number", "boolean"]}
Bound = Annotated[Any, AfterValidator(_scalar), Field(json_schema_extra={"type": ["string", "number", "null"]})]
Allowed = Annotated[Any, AfterValidator(_some_scalar), Field(json_schema_extra=_SCALAR)]


def _entry(key: str, *, lists: bool = False) -> Callable[[Any], Any]:
    """Return a validator that lets an entry stand for the mapping `{key: entry}`."""

    def check(value: Any) -> Any:
        short = isinstance(value, str) or (lists and isinstance(value, list))
        return {key: value} if short else value

    return check


def _alone(value: Any) -> Any:
    return [value] if isinstance(value, str | dict) else value


def _pair(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    if len(value) != 2:
        raise wrong("{} must be two bounds: [lowest, highest]", hint="an open end is null: [0, null]")
    return {"min": value[0], "max": value[1]}


def _age(value: str) -> str:
    if not _AGE.fullmatch(value.strip()):
        raise wrong(f'"{value}" is not a time span', hint="write a number and a unit: 90s, 30m, 36h, 2d, 1w")
    return value


def _column_of(value: str) -> str:
    asset, _, column = value.rpartition(".")
    try:
        AssetId.parse(asset)
    except UsageError:
        column = ""
    if not column:
        raise wrong(
            f'"{value}" does not name a column of an asset',
            hint="write layer.asset.column, like silver.customers.customer_id",
        )
    return value


class _Rule(Part):
    severity: Severity | None = None


class NotNull(_Rule):
    """No null in a column."""

    column: Text


class Unique(_Rule):
    """No two rows alike in the columns."""

    columns: Texts


class Bounds(_Rule):
    """Two bounds, both allowed; at least one."""

    min: Bound = None
    max: Bound = None

    @model_validator(mode="after")
    def _ordered(self) -> Bounds:
        if self.min is None and self.max is None:
            raise wrong("{} has no bound")
        if self.min is not None and self.max is not None:
            try:
                empty = self.min > self.max
            except TypeError:
                raise wrong(f"{{}} has bounds of two kinds: {self.min!r} and {self.max!r}") from None
            if empty:
                raise wrong(f"{{}} can never hold: {self.min} is above {self.max}")
        return self


class InSet(_Rule):
    """Allowed values."""

    values: Annotated[tuple[Allowed, ...], Field(min_length=1)]


class Rows(_Rule):
    """Bounds of a row count."""

    min: Count | None = None
    max: Count | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Rows:
        if self.min is None and self.max is None:
            raise wrong("{} has no bound")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise wrong(f"{{}} can never hold: {self.min} is above {self.max}")
        return self


class Expression(_Rule):
    """An SQL boolean."""

    sql: Text
    name: Text | None = None


class Relationship(_Rule):
    """Every value stands in a column of another asset: `layer.asset.column`."""

    to: Annotated[Text, AfterValidator(_column_of)]


class Age(_Rule):
    """The newest value of a time column is at most this old at the run's logical time."""

    column: Text
    max_age: Annotated[Text, AfterValidator(_age)]


class CheckSet(Part):
    """The checks of one asset; `severity` is the default of all."""

    row_count: Rows | None = None
    not_null: (
        Annotated[
            tuple[Annotated[NotNull, BeforeValidator(_entry("column"), json_schema_input_type=str | NotNull)], ...],
            BeforeValidator(_alone),
        ]
        | None
    ) = None
    unique: (
        Annotated[
            tuple[
                Annotated[
                    Unique,
                    BeforeValidator(_entry("columns", lists=True), json_schema_input_type=str | list[str] | Unique),
                ],
                ...,
            ],
            BeforeValidator(_alone),
        ]
        | None
    ) = None
    between: (
        dict[str, Annotated[Bounds, BeforeValidator(_pair, json_schema_input_type=list[float | str | None] | Bounds)]]
        | None
    ) = None
    in_set: (
        dict[
            str,
            Annotated[InSet, BeforeValidator(_entry("values", lists=True), json_schema_input_type=list[Value] | InSet)],
        ]
        | None
    ) = None
    expression: (
        Annotated[
            tuple[Annotated[Expression, BeforeValidator(_entry("sql"), json_schema_input_type=str | Expression)], ...],
            BeforeValidator(_alone),
        ]
        | None
    ) = None
    relationships: (
        dict[str, Annotated[Relationship, BeforeValidator(_entry("to"), json_schema_input_type=str | Relationship)]]
        | None
    ) = None
    freshness: Age | None = None
    schema_: dict[str, Text] | None = Field(default=None, alias="schema")
    severity: Severity | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the checks in their long form, as `quality.rules.parse_checks` reads them."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class ChecksFile(RootModel[dict[str, CheckSet]]):
    """A file in `checks/`: checks by asset."""
