"""Rows that their source marks as deleted: `soft_delete` names a column or a condition, and they leave the target.

The condition compares columns with literals and calls nothing: it is evaluated at the source, and of changes in the
target too, inside the publish.
"""

from __future__ import annotations

from typing import Any

from psycopg import sql

from millrace.errors import UsageError
from millrace.postgres.source import Source, author_condition

_WORDS = """And Or Not Paren Column Identifier Literal Null Boolean Neg Tuple In Is EQ NEQ GT GTE LT LTE Between Like
ILike NullSafeEQ NullSafeNEQ"""
_NODES = frozenset(_WORDS.split())
_HINT = "like soft_delete: actflag = 'D', or a column that is true, or a time, in deleted rows"


def marked(source: Source, text: str) -> sql.Composable:
    """Return the predicate of rows that are marked as deleted.

    Raises:
        UsageError: it is no such condition.
        NotFound: it names a column that is not read.
    """
    from sqlglot import exp, parse_one

    condition = author_condition(text)
    parsed: Any = parse_one(text, read="postgres", into=exp.Condition)
    odd = next((node for node in parsed.walk() if type(node).__name__ not in _NODES), None)
    if odd is not None or any(column.table for column in parsed.find_all(exp.Column)):
        what = "a qualified name" if odd is None else odd.sql(dialect="postgres")
        raise UsageError(f"soft_delete compares columns with literals, and this has {what}: {text}", hint=_HINT)
    names = [
        column.this.name if column.this.quoted else column.this.name.lower() for column in parsed.find_all(exp.Column)
    ]
    found = [source[name] for name in names]
    if not isinstance(parsed, exp.Column):
        return condition
    if found[0].base_name == "bool":
        return condition
    if found[0].base_name in ("date", "timestamp", "timestamptz"):
        return sql.SQL("({} is not null)").format(found[0].identifier)
    raise UsageError(f"soft_delete names the column {names[0]}, which is {found[0].type}", hint=_HINT)


def alive(source: Source, text: str | None) -> Source:
    """Return the rows that are not marked as deleted. Raises what `marked` raises."""
    return source if text is None else source.narrowed(sql.SQL("{} is not true").format(marked(source, text)))
