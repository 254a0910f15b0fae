"""The columns that a dashboard reads: whether they are there, and can be what the dashboard makes of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlglot import exp

from millrace.core.names import AssetId
from millrace.errors import Place, ProjectError, did_you_mean

Query = Callable[[str], list[tuple[Any, ...]]]
"""Runs a SELECT in the warehouse and returns its rows."""

_NUMBER = re.compile(r"U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?|(DECIMAL|NUMERIC)\b.*|DOUBLE|FLOAT|REAL")
_MOST = 10  # errors that one look shows


def is_number(kind: str) -> bool:
    """Say whether a DuckDB type is a number's."""
    return _NUMBER.fullmatch(kind.upper()) is not None


def types_of(query: Query, asset: AssetId) -> dict[str, str]:
    """Return an asset's columns with their types; none when the warehouse has no such table."""
    select = (
        exp.select("column_name", "data_type")
        .from_("information_schema.columns")
        .where(
            exp.and_(
                exp.EQ(this=exp.column("table_schema"), expression=exp.Literal.string(asset.layer)),
                exp.EQ(this=exp.column("table_name"), expression=exp.Literal.string(asset.name)),
            )
        )
        .order_by("ordinal_position")
    )
    return dict(query(select.sql(dialect="duckdb")))


def check_columns(wanted: Sequence[Mapping[str, Any]], query: Query) -> None:
    """Refuse columns that are missing, or are not what the dashboard needs.

    Args:
        wanted: `asset`, `column`, `use` (`number`, `sum`, `date`, `any`), `place` and `lines` of the dashboard's file.
        query: of the warehouse.

    Raises:
        ProjectError: with the place of the first such column; `others` holds those of further ones.
    """
    known: dict[str, dict[str, str]] = {}
    errors: dict[tuple[str, str], ProjectError] = {}
    for one in wanted:
        name = one["asset"]
        if name not in known:
            known[name] = types_of(query, AssetId.parse(name))
        if (name, one["column"]) not in errors and (found := _wrong(one, known[name])) is not None:
            errors[name, one["column"]] = found
    if errors:
        first, *others = errors.values()
        first.others = tuple(others[: _MOST - 1])
        raise first


def _wrong(one: Mapping[str, Any], types: Mapping[str, str]) -> ProjectError | None:
    asset, name, use = one["asset"], one["column"], one["use"]
    kind = types.get(name)
    if kind is None:
        what = f'{asset} has no column "{name}"' if types else f"{asset} is not in the warehouse"
        return _error(one, what, did_you_mean(name, list(types)) or (f"it has: {', '.join(types)}" if types else ""))
    if use in ("number", "sum") and not is_number(kind):
        hint = "agg: count or count_distinct" if use == "number" else "put it into by"
        return _error(one, f'"{name}" of {asset} is {kind}: it cannot be added up', hint)
    if use == "date" and not kind.upper().startswith(("DATE", "TIMESTAMP")):
        return _error(one, f'"{name}" of {asset} is {kind}, not a date', "")
    return None


def _error(one: Mapping[str, Any], what: str, note: str) -> ProjectError:
    *lines, last = one["lines"] or [""]
    near = note.startswith("did you mean") and last
    detail = [*lines, *([f"{last} {note}" if near else last] if last else [])]
    return ProjectError(what, where=Place(*one["place"]), detail=detail, hint=None if near else note or None)
