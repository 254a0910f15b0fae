"""Rules as PostgreSQL's SQL, from the same expressions that DuckDB gets. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from sqlglot import ErrorLevel, exp, parse_one
from sqlglot.errors import SqlglotError, UnsupportedError

from millrace.errors import ProjectError
from millrace.quality import sql
from millrace.quality.gate import SHOWN, said_of
from millrace.quality.meaning import same_meaning
from millrace.quality.rules import RowRule

DIALECT = "postgres"


def query(text: str, types: Mapping[str, str]) -> str:
    """Return one of the gate's queries as PostgreSQL runs it.

    Args:
        text: in DuckDB's dialect.
        types: DuckDB's type by column of the checked table.

    Raises:
        ProjectError: it has something that PostgreSQL has not, or that means something else there.
    """
    return _written(parse_one(text, read=sql.DIALECT), text, types)


def broken(rule: RowRule, table: sql.Table) -> str:
    """Return the condition that is true for exactly the rows that break a rule.

    Raises:
        NotFound, ProjectError: as `sql.broken`, and for what PostgreSQL has not.
    """
    return _written(sql.broken(rule, table).transform(_spelled, table), rule.name, table.types)


def reason(rule: RowRule, table: sql.Table) -> str:
    """Return the text expression of why a row breaks a rule: what `gate.reason` says."""
    parts = [
        _shown(table.column(part.column, rule.name)) if isinstance(part, sql.Value) else exp.Literal.string(part)
        for part in said_of(rule, list(table.types))
    ]
    return _written(exp.Anonymous(this="concat", expressions=parts), rule.name, {})


def _shown(name: str) -> exp.Expr:
    """Return a column's value as people read it."""
    value = exp.cast(sql.column(name), "TEXT")
    quoted = exp.or_(
        exp.EQ(this=value.copy(), expression=exp.Literal.string("")),
        exp.NEQ(this=exp.Anonymous(this="btrim", expressions=[value.copy()]), expression=value.copy()),
    )
    length = exp.Anonymous(this="char_length", expressions=[value.copy()])
    short = exp.Anonymous(this="left", expressions=[value.copy(), exp.Literal.number(SHOWN - 1)])
    return (
        exp.Case()
        .when(exp.Is(this=value.copy(), expression=exp.Null()), exp.Literal.string("null"))
        .when(exp.GT(this=length, expression=exp.Literal.number(SHOWN)), _joined(short, exp.Literal.string("…")))
        .when(quoted, exp.Anonymous(this="quote_literal", expressions=[value.copy()]))
        .else_(value.copy())
    )


def _joined(*parts: exp.Expr) -> exp.Expr:
    return exp.Anonymous(this="concat", expressions=list(parts))


def _spelled(node: exp.Expr, table: sql.Table) -> exp.Expr:
    """Name columns as the catalogue spells them; DuckDB ignores case."""
    if isinstance(node, exp.Column) and not node.table and node.find_ancestor(exp.Query, exp.Lambda) is None:
        known = next((name for name in table.types if name.lower() == node.name.lower()), None)
        return sql.column(node.name if node.name in table.types else known or node.name)
    return node


def _written(expression: exp.Expr, said: str, types: Mapping[str, str]) -> str:
    expression = same_meaning(expression.transform(_without_isnan), said, types)
    try:
        return expression.sql(DIALECT, unsupported_level=ErrorLevel.RAISE)
    except (SqlglotError, UnsupportedError) as error:
        raise ProjectError(
            f"a check of a table in PostgreSQL uses what PostgreSQL has not: {said}",
            detail=[str(error).splitlines()[0]],
            hint="write it with what both DuckDB and PostgreSQL have",
        ) from error


def _without_isnan(node: exp.Expr) -> exp.Expr:
    if isinstance(node, exp.IsNan):
        return exp.EQ(this=node.this, expression=exp.cast(exp.Literal.string("NaN"), "DOUBLE"))
    return node
