"""Looks at the author's SQL in copies files: one read-only statement or condition, in PostgreSQL's dialect."""

from __future__ import annotations

from typing import Any

import sqlglot
from sqlglot import exp
from sqlglot.errors import ErrorLevel, SqlglotError

from millrace.project.fields import wrong

_WRITES = (exp.Insert, exp.Update, exp.Delete, exp.Merge, exp.Drop, exp.Create, exp.Alter, exp.Command, exp.Into)

_DUCK_ONLY = ("list_", "struct_", "map_")


def check_sql(word: str, text: str) -> None:
    """Look at a `where` or `soft_delete` (a condition), `select` (columns or one SELECT) or `count` (one SELECT).

    Raises:
        PydanticCustomError: it does not parse, is several statements, or could write.
    """
    source = f"select {text}" if word == "select" and not _is_query(text) else text
    if word in ("where", "soft_delete"):
        source = f"select 1 where {text}"
    statement = _one(word, source)
    if any(statement.find(kind) for kind in _WRITES):
        raise wrong(f'"{word}" of {{}} must only read')
    if not isinstance(statement, exp.Query):
        raise wrong(f'"{word}" of {{}} must be one SELECT')
    conditional = word in ("where", "soft_delete")
    if conditional and any(statement.args.get(part) for part in ("group", "having", "order", "limit", "offset")):
        raise wrong(f'"{word}" of {{}} must be one condition, without group by, order by or limit')


def unportable(text: str) -> str | None:
    """Return why an expression in DuckDB's SQL is nothing for PostgreSQL; None where only a server can tell."""
    try:
        parsed = sqlglot.parse_one(text, read="duckdb")
        for node in parsed.find_all(exp.Lambda, exp.Struct, exp.Anonymous):
            name = node.name.lower() if isinstance(node, exp.Anonymous) else ""
            if not isinstance(node, exp.Anonymous) or name.startswith(_DUCK_ONLY):
                return f"PostgreSQL has no {name or node.key}"
        parsed.sql("postgres", unsupported_level=ErrorLevel.RAISE)
    except SqlglotError as error:
        return str(error).splitlines()[0]
    return None


def _is_query(text: str) -> bool:
    return text.lstrip(" \t\r\n(").lower().startswith(("select", "with"))


def _one(word: str, source: str) -> Any:
    try:
        statements = [one for one in sqlglot.parse(source, read="postgres") if one is not None]
    except SqlglotError as error:
        details = getattr(error, "errors", None) or [{"description": "it is not SQL"}]
        raise wrong(f'"{word}" of {{}} does not parse: {details[0]["description"]}') from None
    if len(statements) != 1:
        raise wrong(f'"{word}" of {{}} must be one statement, not {len(statements)}')
    return statements[0]
