"""The SQL engine that the lake is given, and statements put together from constants and quoted names only."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import pyarrow as pa

_HOLE = re.compile(r"\{(\w+)\}")


class Rows(Protocol):
    """What a query gives."""

    def fetchall(self) -> list[tuple[Any, ...]]:
        """Return all rows."""

    def to_arrow_reader(self, batch_size: int) -> Iterable[pa.RecordBatch]:
        """Stream the rows."""


class SqlEngine(Protocol):
    """An engine that speaks DuckDB's SQL and reads Parquet files: a DuckDB connection is one."""

    def sql(self, query: str, *, params: object = None) -> Rows:
        """Run a query with bound values."""


class Fragment(str):
    """A piece of SQL in which every name is quoted; made by the functions of this module only."""

    __slots__ = ()


def quoted(name: str, of: str = "") -> Fragment:
    """Return a name quoted for SQL, whatever is in it, after a table's alias where one is given."""
    text = '"' + name.replace('"', '""') + '"'
    return Fragment(f"{of}.{text}" if of else text)


def listed(parts: Iterable[Fragment], by: str = ", ") -> Fragment:
    """Return fragments joined."""
    return Fragment(by.join(parts))


def fill(template: str, **parts: Fragment) -> Fragment:
    """Return a statement: a constant text whose `{holes}` are filled with fragments.

    Raises:
        TypeError: a part is a plain text, which may not be SQL.
    """
    for name, part in parts.items():
        if not isinstance(part, Fragment):
            raise TypeError(f"{name} must be a Fragment, not {type(part).__name__}")
    return Fragment(_HOLE.sub(lambda hole: parts[hole[1]], template))


@dataclass(frozen=True, slots=True)
class Condition:
    """Which rows of a table, which statements call `t`.

    Attributes:
        text: with a question mark for each value.
        values: bound in their order.
    """

    text: Fragment
    values: tuple[Any, ...] = ()


EVERY_ROW = Condition(Fragment("true"))
