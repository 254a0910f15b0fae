"""Expressions of DuckDB that PostgreSQL reads too, but understands otherwise: rewritten, or refused. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

from sqlglot import exp

from millrace.errors import ProjectError

_FRACTIONS = {"FLOAT", "DOUBLE", "REAL"}
_REGEX = re.compile(r"\\.|\[(?:\^?\]?(?:\\.|\[:\w+:\]|[^\]\\])*)\]|\.|[^\\.\[]+|.", re.DOTALL)
_OUTSIDE = {
    ".": r"[^\n]",
    r"\b": r"\y",
    r"\B": r"\Y",
    r"\z": r"\Z",
    r"\d": "[0-9]",
    r"\D": "[^0-9]",
    r"\w": "[a-zA-Z0-9_]",
    r"\W": "[^a-zA-Z0-9_]",
    r"\s": r"[ \t\n\f\r]",
    r"\S": r"[^ \t\n\f\r]",
}
_NUMBER = r"^\s*[-+]?([0-9]+[.]?[0-9]*|[.][0-9]+)([eE][-+]?[0-9]{1,3})?\s*$"
_INSIDE = {r"\d": "0-9", r"\w": "a-zA-Z0-9_", r"\s": r" \t\n\f\r"}
_PARTS = {"epoch", "julian"}
"""Parts of a time that have a fraction in DuckDB too."""


def same_meaning(expression: exp.Expr, said: str, types: Mapping[str, str]) -> exp.Expr:
    """Return an expression that means in PostgreSQL what it means in DuckDB.

    Args:
        expression: as DuckDB reads it.
        said: what errors call it.
        types: DuckDB's type by column.

    Raises:
        ProjectError: it has something that means something else in PostgreSQL.
    """
    whole = exp.Paren(this=expression.copy())
    for node in reversed(list(whole.bfs())):  # the innermost first: what is replaced holds its mended parts
        if why := _refused(node, types):
            raise ProjectError(
                f"a check of a table in PostgreSQL uses what means something else there: {said}",
                detail=[why],
                hint="write it with what both DuckDB and PostgreSQL have",
            )
        if (new := _mended(node, types)) is not node:
            node.replace(new)
    found = whole.this
    assert isinstance(found, exp.Expr)  # noqa: S101 - put there above
    return found


def _refused(node: exp.Expr, types: Mapping[str, str]) -> str | None:
    """Return why something cannot be said in PostgreSQL; None where it can."""
    match node:
        case exp.SimilarTo():
            return "SIMILAR TO takes a regular expression in DuckDB and a pattern in PostgreSQL: use regexp_matches"
        case exp.Tuple():
            return "a comparison of rows with nulls differs: compare each column"
        case exp.TryCast() if not _number_of_text(node):
            return "PostgreSQL has no TRY_CAST: a value that does not convert is an error there"
        case exp.Format():
            return "format() has other placeholders in PostgreSQL: use ||"
        case exp.IntDiv() if _of(node, types, _FRACTIONS, "DECIMAL"):
            return "// of numbers that are not integers differs: use floor(a / b)"
        case exp.Substring() if isinstance(node.args.get("start"), exp.Neg):
            return "substring from the end is right() in PostgreSQL"
        case exp.TimeToStr() | exp.StrToTime() if re.search(r"[a-zA-Z%]", re.sub(r"%[YmdHMSyj%]", "", _text(node))):
            return f"the time format {_text(node)!r} differs: use %Y, %m, %d, %H, %M, %S"
        case exp.Cast() if node.is_type("text") or node.to.is_type("varchar"):
            if not isinstance(node.parent, exp.Select) and _of(node, types, _FRACTIONS, "BLOB"):
                return "the text of such a number or of bytes differs: compare the value itself"
        case exp.DPipe() | exp.Concat() | exp.ConcatWs() if _of(node, types, _FRACTIONS, "BLOB"):
            return "the text of such a number or of bytes differs: compare the value itself"
        case exp.RegexpLike() | exp.RegexpReplace() if re.search(r"\(\?(?![:i])|^\*\*\*", _pattern(node)):
            return f"the regular expression {_pattern(node)!r} has options that differ"
    return None


def _mended(node: exp.Expr, types: Mapping[str, str]) -> exp.Expr:
    """Return what stands for something in PostgreSQL; itself where that is the same."""
    match node:
        case exp.Like() | exp.ILike() if not isinstance(node.parent, exp.Escape):
            # DuckDB's pattern has no escape unless one is named, PostgreSQL's has a backslash.
            return exp.Escape(this=node.copy(), expression=exp.Literal.string(""))
        case exp.Round() if node.args.get("decimals") is None:
            # PostgreSQL rounds halves of floats to even. Their shortest text is exact where a cast keeps 15 digits.
            return exp.Round(this=exp.cast(exp.cast(node.this.copy(), "TEXT"), "DECIMAL"))
        case exp.TryCast():
            return exp.Case().when(
                exp.RegexpLike(this=node.this.copy(), expression=exp.Literal.string(_NUMBER)),
                exp.cast(node.this.copy(), "DECIMAL"),
            )
        case exp.Extract() if node.name.lower() not in _PARTS:
            return exp.Anonymous(this="trunc", expressions=[node.copy()])  # seconds have fractions there
        case exp.Anonymous() if node.name.lower() in ("date_part", "datepart"):
            if node.expressions and node.expressions[0].name.lower() not in _PARTS:
                return exp.Anonymous(this="trunc", expressions=[node.copy()])
        case exp.RegexpLike() | exp.RegexpReplace() if isinstance(node.expression, exp.Literal):
            new = node.copy()
            new.set("expression", exp.Literal.string(_regex(_pattern(node))))
            return new
        case exp.Literal() if not node.is_string and "e" not in node.name.lower() and _beside_real(node, types):
            # A decimal beside a REAL becomes one in DuckDB; in PostgreSQL both become double precision.
            return exp.cast(node.copy(), "FLOAT")
    return node


def _number_of_text(node: exp.TryCast) -> bool:
    """Say whether a column, or its text, is tried as a number: the one TRY_CAST that PostgreSQL can be told."""
    inner = node.this.this if isinstance(node.this, exp.Cast) and node.this.is_type("text", "varchar") else node.this
    return isinstance(inner, exp.Column) and bool(node.is_type("double"))


def _of(node: exp.Expr, types: Mapping[str, str], wanted: set[str], *more: str) -> bool:
    """Say whether an expression has a column of one of some types, or a quotient, which is a float."""
    known = {name.lower(): kind.split("(")[0] for name, kind in types.items()}
    found = {known.get(column.name.lower(), "") for column in node.find_all(exp.Column)}
    return bool(found & {*wanted, *more}) or node.find(exp.Div) is not None


def _beside_real(node: exp.Expr, types: Mapping[str, str]) -> bool:
    """Say whether a number stands in a comparison in which all columns are REAL."""
    known = {name.lower(): kind for name, kind in types.items()}
    above = node.find_ancestor(exp.EQ, exp.NEQ, exp.LT, exp.LTE, exp.GT, exp.GTE, exp.In, exp.Between)
    if above is None:
        return False
    columns = {
        "FLOAT" if _real(column.parent) else known.get(column.name.lower(), "") for column in above.find_all(exp.Column)
    }
    return columns == {"FLOAT"} and all(_real(cast) for cast in above.find_all(exp.Cast))


def _real(node: exp.Expr | None) -> bool:
    return isinstance(node, exp.Cast) and node.to.this == exp.DataType.Type.FLOAT


def _text(node: exp.Expr) -> str:
    form = node.args.get("format")
    return form.name if isinstance(form, exp.Literal) else "%?"


def _pattern(node: exp.Expr) -> str:
    pattern = node.expression
    return pattern.name if isinstance(pattern, exp.Literal) else ""


def _regex(pattern: str) -> str:
    """Return a regular expression of DuckDB (RE2) as PostgreSQL's: a dot is no newline, classes are ASCII."""
    return "".join(
        re.sub(r"\\.", lambda found: _INSIDE.get(found[0], found[0]), part)
        if part.startswith("[") and len(part) > 1
        else _OUTSIDE.get(part, part)
        for part in _REGEX.findall(pattern)
    )
