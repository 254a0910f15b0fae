"""Cursor columns: their order, texts with a declared format, and how far back a position looks.

The order of a text is that of its bytes, so a text can be a cursor only when it is declared how it is written. What is
written otherwise has no place in that order: such rows count as rows without a value, which are read each time.
"""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import dataclass

import psycopg
from psycopg import sql

from millrace.errors import ContractBroken, UsageError
from millrace.postgres.catalog import PgColumn
from millrace.postgres.names import sql_name
from millrace.postgres.session import Connection

_DAY = "[0-9]{4}[-/][0-9]{2}[-/][0-9]{2}"
_TIME = rf"^{_DAY}[ T][0-9]{{2}}:[0-9]{{2}}:[0-9]{{2}}([.][0-9]+)?$"
FORMATS = {"yyyymmdd": "^[0-9]{8}$", "date": f"^{_DAY}$", "datetime": _TIME, "timestamp": _TIME}
"""By name the regular expression of a text cursor; / and T may stand for - and the space."""
_BOUND = re.compile("([0-9]{4})[-/]?([0-9]{2})[-/]?([0-9]{2})([ T][0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:[.][0-9]+)?)?)?")

_TIMES = {"date": "date", "timestamp": "timestamp", "timestamptz": "timestamptz"}
_NUMBERS = {
    "int2": "int8",
    "int4": "int8",
    "int8": "int8",
    "numeric": "numeric",
    "float4": "float8",
    "float8": "float8",
}
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def is_text(column: PgColumn) -> bool:
    """Return whether a column is a text."""
    return column.base_namespace == "pg_catalog" and column.base_name in ("text", "varchar", "bpchar")


@dataclass(frozen=True, slots=True)
class Rule:
    """How a source's cursor column is read.

    Attributes:
        format: how a text is written: one of FORMATS; says nothing about other types.
        lookback: how far before a position rows are read again: `3d`, `12h`, `30m`, `10s`, or a number.
    """

    format: str | None = None
    lookback: str | None = None

    def check(self, column: PgColumn, label: str) -> None:
        """Refuse a cursor that cannot be compared as it is told.

        Raises:
            UsageError: a text without a format, or a look-back that does not fit the type.
        """
        name = f"the cursor {sql_name(column.name)} of {label} is {column.type}"
        if is_text(column) and self.format not in FORMATS:
            raise UsageError(
                f"{name}: the order of texts says nothing about time",
                hint=f"declare how it is written: cursor_format: {', '.join(list(FORMATS)[:-1])} or timestamp",
            )
        if self.lookback is None:
            return
        number = self.lookback.isdecimal()
        if (column.base_name not in _NUMBERS) if number else not (is_text(column) or column.base_name in _TIMES):
            what = "a number" if number else "a duration"
            raise UsageError(
                f"{name}, and its lookback is {what}", hint="a duration (3d) for times, a number for numbers"
            )

    def ordered(self, column: PgColumn) -> sql.Composable:
        """Return the column in the order of positions, null for what has no place in it."""
        if not is_text(column):
            return column.identifier
        if self.format is None:
            return sql.SQL('({} collate pg_catalog."C")').format(column.identifier)
        return sql.SQL(
            "(case when {0} ~ {1} then pg_catalog.translate({0}, '/T', '- ') end collate pg_catalog.\"C\")"
        ).format(column.identifier, sql.Literal(FORMATS[self.format]))

    def between(self, column: PgColumn, start: str | None, end: str | None) -> sql.Composable:
        """Return the predicate of values from `start` on and before `end`: see `check_interval`; null is in none."""
        place, parts = self.ordered(column), []
        for sign, bound in ((">=", start), ("<", end)):
            if bound is not None:
                text = self._bound(column, bound) if is_text(column) else bound
                parts.append(sql.SQL("{} {} {}").format(place, sql.SQL(sign), sql.Literal(text)))
        return sql.SQL("({})").format(sql.SQL(" and ").join(parts or [sql.SQL("{} is not null").format(place)]))

    def check_interval(
        self, connection: Connection, column: PgColumn, start: str | None, end: str | None
    ) -> tuple[str | None, str | None]:
        """Refuse bounds that the column's type does not know, and an interval that holds nothing.

        Returns:
            The bounds as the server writes them, times in UTC.

        Raises:
            UsageError: it says which.
        """
        bounds = []
        for bound in (start, end):
            text = self._bound(column, bound) if bound is not None and is_text(column) else bound
            kind = sql.Identifier(column.base_namespace, column.base_name)
            place = sql.SQL("{}::{}").format(sql.Literal(text), kind)
            bounds.append(sql.SQL('({} collate pg_catalog."C")').format(place) if is_text(column) else place)
        try:
            row = connection.execute(sql.SQL("select {0} < {1}, ({0})::text, ({1})::text").format(*bounds)).fetchone()
            timed = [bound for bound in (start, end) if bound is not None and self._cut(connection, column, bound)]
        except psycopg.errors.DataError as error:
            raise UsageError(
                f"no interval of the cursor {sql_name(column.name)}, which is {column.type}",
                detail=[error.diag.message_primary or str(error)],
            ) from error
        if timed:
            raise UsageError(
                f"{timed[0]} is no bound of the cursor {sql_name(column.name)}, which is a date: it has a time of day",
                hint="write days, and with --every whole ones: --to 2026-02-01 --every 1d",
            )
        if row is not None and row[0] is False:
            raise UsageError(f"the interval is empty: it begins at {start} and ends before {end}")
        return (None, None) if row is None else (row[1], row[2])

    @staticmethod
    def _cut(connection: Connection, column: PgColumn, bound: str) -> bool:
        """Say whether a date would drop a part of a bound, a time of day, and so mean another interval."""
        if column.base_name != "date":
            return False
        query = sql.SQL("select {0}::pg_catalog.timestamp <> {0}::pg_catalog.date").format(sql.Literal(bound))
        row = connection.execute(query).fetchone()
        return row is not None and bool(row[0])

    def _bound(self, column: PgColumn, bound: str) -> str:
        found = _BOUND.fullmatch(bound)
        if found is None:
            raise UsageError(
                f"{bound!r} is no bound of the cursor {sql_name(column.name)}, which is a text of dates",
                hint="write a date, or a date with a time and no time zone: 2026-01-31, 2026-01-31 12:00:00",
            )
        return ("" if self.format == "yyyymmdd" else "-").join(found.groups()[:3]) + (found[4] or "").replace("T", " ")

    def since(self, column: PgColumn, value: str) -> sql.Composable:
        """Return the value from which a position looks: its own, or one before it.

        Raises:
            ContractBroken: it looks back from a text that is no date.
        """
        if self.lookback is None:
            return sql.Literal(value)
        if is_text(column):
            return sql.Literal(self._back(column, value))
        kind = sql.Identifier("pg_catalog", (_NUMBERS | _TIMES)[column.base_name])
        back: sql.Composable = (
            sql.Literal(int(self.lookback))
            if self.lookback.isdecimal()
            else sql.SQL("{}::pg_catalog.interval").format(
                sql.Literal(f"{self.lookback[:-1]} {_UNITS[self.lookback[-1]]}")
            )
        )
        return sql.SQL("({}::{} - {})").format(sql.Literal(value), kind, back)

    def _back(self, column: PgColumn, value: str) -> str:
        back = self.lookback or "0s"
        seconds = int(back[:-1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[back[-1]]
        try:
            before = dt.datetime.fromisoformat(value) - dt.timedelta(seconds=seconds)
        except (ValueError, OverflowError):
            raise ContractBroken(
                f"the highest value of the cursor {sql_name(column.name)} is {value}, which is no date: "
                "lookback counts from it",
                hint="leave such rows out by where:, or leave lookback out",
            ) from None
        if self.format == "yyyymmdd":
            return before.strftime("%Y%m%d")
        return before.date().isoformat() if self.format == "date" else before.isoformat(" ")


PLAIN = Rule()
LOOKBACK = re.compile(r"[1-9][0-9]{0,8}[smhd]?")
