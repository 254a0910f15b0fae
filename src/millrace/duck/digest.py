"""The digest that the warehouse proves its tables by: DuckDB's own row hash, summed.

`sum(hash(c1, c2, …))` over the rows, exact and free of order, like the digest of `core.digest` but in DuckDB's
hash, so both sides of a comparison are taken by the same version of DuckDB: the shape names the version and every
column's type. `hash` alone is blind to some differences (-0 and 0, 1 month and 30 days are equal to it), so
floats and intervals enter as their text, which is exact; nested types that hold them enter both ways.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from millrace.core.digest import Digest
from millrace.core.names import fingerprint
from millrace.duck.engine import Fragment, fill, identifier, listed, rows

if TYPE_CHECKING:
    import duckdb

_BLIND = re.compile(r"\b(?:FLOAT|DOUBLE|REAL|INTERVAL)\b")
_NESTED = re.compile(r"[\[(]")


def types(
    connection: duckdb.DuckDBPyConnection, source: Fragment, parameters: Sequence[Any] = ()
) -> list[tuple[str, str]]:
    """Return names and DuckDB types of the columns of a relation or `(select …)`, in order."""
    query = fill("describe select * from {source}", source=source)
    return [(row[0], row[1]) for row in rows(connection, query, parameters)]


def _terms(name: str, type_text: str) -> list[Fragment]:
    column = identifier(name)
    if not _BLIND.search(type_text):
        return [column]
    text = fill("cast({column} as varchar)", column=column)
    return [column, text] if _NESTED.search(type_text) else [text]


def shape(columns: Sequence[tuple[str, str]]) -> str:
    """Return the fingerprint under which digests over such columns may be compared."""
    import duckdb

    return fingerprint("duckdb", duckdb.__version__, *(f"{name}\x1e{kind}" for name, kind in columns))


def digest(connection: duckdb.DuckDBPyConnection, source: Fragment, parameters: Sequence[Any] = ()) -> Digest:
    """Return the digest of all rows of a relation, or of a `(select …)` with bound parameters."""
    columns = types(connection, source, parameters)
    terms = listed(term for name, kind in columns for term in _terms(name, kind))
    query = fill(
        "select count(*), coalesce(sum(cast(hash({terms}) as hugeint)), 0) from {source}", terms=terms, source=source
    )
    count, total = rows(connection, query, parameters)[0]
    return Digest(count, int(total), shape(columns))
