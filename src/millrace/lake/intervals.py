"""Intervals of a cursor column in an asset's files: the same rows as on the source's server.

Types whose values lie in the lake as texts have no order there, but for texts that are declared to be dates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal, localcontext
from typing import Any

from millrace.core.schema import Column, Kind, Schema
from millrace.errors import UsageError
from millrace.lake.sql import Condition, Fragment, fill, listed, quoted

DIGITS = 38  # of a decimal
_CASTS = {
    Kind.INT16: Fragment("cast(? as bigint)"),
    Kind.INT32: Fragment("cast(? as bigint)"),
    Kind.INT64: Fragment("cast(? as bigint)"),
    Kind.FLOAT32: Fragment("cast(? as float)"),
    Kind.FLOAT64: Fragment("cast(? as double)"),
    Kind.DATE: Fragment("cast(? as date)"),
    Kind.TIMESTAMP: Fragment("cast(? as timestamptz)"),
    Kind.TIMESTAMPTZ: Fragment("cast(? as timestamptz)"),
    Kind.DECIMAL: Fragment("cast(? as decimal(38, {scale}))"),
    Kind.TEXT: Fragment("?"),
}
_PLAIN = Fragment("{name}")
_DECLARED = Fragment("case when regexp_matches({text}, ?) then translate({text}, '/T', '- ') end")


@dataclass(frozen=True, slots=True)
class Interval:
    """Rows whose cursor is at or past `start` and before `end`; JSON types.

    Attributes:
        column: the cursor column.
        start, end: as the source's server writes them, times in UTC; either may be open.
        pattern: of a text cursor, the regular expression of the texts that have a place in the order.
    """

    column: str
    start: str | None
    end: str | None
    pattern: str | None = None

    def condition(self, schema: Schema) -> Condition:
        """Return which rows of the asset's files these are.

        Raises:
            UsageError: values of the column have no order in the lake.
        """
        column = schema[self.column]
        if column.kind not in _CASTS or (column.kind is Kind.TEXT and self.pattern is None):
            raise UsageError(
                f"the cursor {column.name} is {column.type}, which has no order in the lake: "
                "an interval of it cannot be told there",
                hint="compare everything: millrace run --full-refresh",
            )
        place, values = self._place(column)
        parts: list[Fragment] = []
        bound: list[Any] = []
        cast = fill(_CASTS[column.kind], scale=Fragment(str(column.scale)))
        for template, text in (("{place} >= {cast}", self.start), ("{place} < {cast}", self.end)):
            if text is not None:
                parts.append(fill(template, place=place, cast=cast))
                bound += [*values, _bound(column, text)]
        return Condition(listed(parts, " and "), tuple(bound))

    def _place(self, column: Column) -> tuple[Fragment, Sequence[str]]:
        name = quoted(column.name, "t")
        if self.pattern is None:
            return fill(_PLAIN, name=name), ()
        return fill(_DECLARED, text=name), (self.pattern,)


def _bound(column: Column, text: str) -> str:
    if column.kind in (Kind.DATE, Kind.TIMESTAMP, Kind.TIMESTAMPTZ) and text.endswith(" BC"):
        return "-infinity"  # the lake holds nothing before the year 1
    if column.kind is Kind.TIMESTAMP and text not in ("infinity", "-infinity"):
        return f"{text}+00"
    if column.kind is not Kind.DECIMAL:
        return text
    # at or past a bound between two values is at or past the higher one, and so is before it
    with localcontext(prec=1_000):
        most = (Decimal(10) ** DIGITS - 1).scaleb(-column.scale)
        number = Decimal(text)
        kept = most if number.is_nan() else max(-most, min(most, number))
        return str(kept.quantize(Decimal(1).scaleb(-column.scale), ROUND_CEILING))
