"""A SQL model: a file with one SELECT in DuckDB's dialect, whose tables are written `layer.asset`.

The file is read with sqlglot, but what runs is the file's own text: names are replaced where they stand, so nothing
is lost in a translation, and DuckDB's lines and columns are those of the file.

Parameters: `$now` (timestamp with time zone) and `$today` (date) are the run's logical time, so a run of yesterday's
date gives yesterday's result; they make a model `dated`. `$start` and `$end` are the bounds of an interval. The
clock itself (`now()`, `current_date` …) is refused: its results could not be made again.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import sqlglot
from sqlglot import TokenType, exp
from sqlglot.errors import ParseError, TokenError

from millrace.core.names import AssetId
from millrace.errors import Place, ProjectError, did_you_mean

PARAMETERS = ("now", "today", "start", "end")
DATED = frozenset({"now", "today"})

_CLOCK = (
    exp.CurrentDate,
    exp.CurrentTime,
    exp.CurrentTimestamp,
    exp.CurrentDatetime,
    exp.CurrentTimestampLTZ,
    exp.Localtime,
    exp.Localtimestamp,
)
_CLOCK_NAMES = {
    "now",
    "today",
    "get_current_timestamp",
    "get_current_time",
    "transaction_timestamp",
    "current_localtime",
}
_CHANGES = (exp.DML, exp.DDL, exp.Command, exp.Copy, exp.Drop, exp.Set, exp.Attach, exp.Detach, exp.Into, exp.Use)
_OUTSIDE = re.compile(
    r"read_.*|.*_scan|glob|query|query_table|sniff_csv|parquet_.*|duckdb_.*|pragma_.*|getenv|.*_attach"
)
"""Functions that reach files, the network or the engine itself: lineage could not see what they read."""

logging.getLogger("sqlglot").addHandler(logging.NullHandler())  # its warnings are our errors


@dataclass(frozen=True, slots=True)
class Reference:
    """One place in the text that names an input: [start, end) of the characters, and whether an alias follows."""

    asset: AssetId
    start: int
    end: int
    aliased: bool
    column: bool = False


@dataclass(frozen=True, slots=True)
class SqlModel:
    """A model's text and what it needs.

    Attributes:
        path: the file, as messages show it.
        sql: the SELECT, without a closing semicolon; line n is line n of the file.
        inputs: the assets it reads, each once, in the order of the text.
        parameters: names of the parameters it uses, without `$`.
        references: where the inputs are named.
        columns: names of the result's columns; None where the text alone does not say them.
    """

    path: str
    sql: str
    inputs: tuple[AssetId, ...]
    parameters: tuple[str, ...]
    references: tuple[Reference, ...]
    columns: tuple[str, ...] | None = None

    @property
    def dated(self) -> bool:
        """Whether its result depends on the run's logical time."""
        return bool(DATED.intersection(self.parameters))


@dataclass(frozen=True, slots=True)
class KeyFilter:
    """Keys that an input is restricted to.

    Attributes:
        relation: SQL name of a relation with the keys, already quoted; it may hold a key more than once.
        key: the key's columns, of the same names in the input and the relation.
    """

    relation: str
    key: tuple[str, ...]


def quote(name: str) -> str:
    """Return a name quoted for DuckDB."""
    return exp.to_identifier(name, quoted=True).sql(dialect="duckdb")


def relation(asset: AssetId) -> str:
    """Return an asset's name as SQL: schema and table, quoted."""
    return f"{quote(asset.layer)}.{quote(asset.name)}"


def parse_model(path: str, text: str) -> SqlModel:
    """Read a model.

    Args:
        path: the file's path relative to the project, for messages.
        text: its content.

    Raises:
        ProjectError: it is not one SELECT over `layer.asset` tables; the place is file, line and column.
    """
    tree = _one_select(path, text)
    _only_reads(path, text, tree)
    references = sorted(_references(path, text, tree), key=lambda found: found.start)
    inputs = tuple(dict.fromkeys(found.asset for found in references if not found.column))
    parameters = _parameters(path, text, tree)
    end = _end(text)
    return SqlModel(path, text[:end], inputs, parameters, tuple(references), _columns(tree))


def _columns(tree: exp.Expr) -> tuple[str, ...] | None:
    """Return the names of a SELECT's columns where its text says them all: no star, nothing without a name."""
    if not isinstance(tree, exp.Select):
        return None
    if any(term.is_star or term.find(exp.Columns, exp.Explode) for term in tree.selects):
        return None
    names = tuple(term.output_name for term in tree.selects)
    return names if all(names) else None


def _place(path: str, text: str, start: int, length: int = 1) -> Place:
    line = text.count("\n", 0, start) + 1
    return Place(path, line, start - (text.rfind("\n", 0, start) + 1) + 1, max(length, 1))


def _one_select(path: str, text: str) -> exp.Expr:
    try:
        trees = [
            tree
            for tree in sqlglot.parse(text, dialect="duckdb")
            if tree is not None and not isinstance(tree, exp.Semicolon)
        ]
    except ParseError as error:
        raise _unreadable(path, error) from error
    except TokenError as error:
        shown = re.search(r"Error tokenizing '(.*)'\s*\Z", str(error), re.DOTALL)
        at = text.rfind(shown[1]) + len(shown[1]) if shown and shown[1] in text else len(text) - 1
        raise ProjectError(
            "the model does not parse: a quote or a comment is not closed", where=_place(path, text, max(at, 0))
        ) from error
    if not trees:
        raise ProjectError("the model is empty", where=Place(path, 1), hint="write one SELECT over layer.asset tables")
    if len(trees) > 1:
        second = _statements(text)[1]
        raise ProjectError(
            f"the model has {len(trees)} statements", where=_place(path, text, second), hint="a model is one SELECT"
        )
    if not isinstance(trees[0], exp.Query) or isinstance(trees[0], exp.Table):
        first = _statements(text)[0]
        word = re.match(r"\w*", text[first:])
        found = word[0].upper() if word else ""
        raise ProjectError(
            f"the model is not a SELECT but {found or 'something else'}",
            where=_place(path, text, first, len(found)),
            hint="a model is one SELECT; Millrace makes the table",
        )
    return trees[0]


def _statements(text: str) -> list[int]:
    """Return where each statement begins."""
    starts, fresh = [], True
    for token in sqlglot.tokenize(text, dialect="duckdb"):
        if token.token_type is TokenType.SEMICOLON:
            fresh = True
        elif fresh:
            starts.append(token.start)
            fresh = False
    return starts


def _end(text: str) -> int:
    """Return where the statement ends: before a closing semicolon."""
    for token in sqlglot.tokenize(text, dialect="duckdb"):
        if token.token_type is TokenType.SEMICOLON:
            return token.start
    return len(text)


def _unreadable(path: str, error: ParseError) -> ProjectError:
    first = error.errors[0] if error.errors else {}
    mark = str(first.get("highlight") or "")
    line, column = first.get("line") or 0, first.get("col") or 0
    words = re.sub(r"<Token token_type.*?>", "the end", str(first.get("description") or error)).rstrip(".")
    words = re.sub(r"<class 'sqlglot[\w.]*\.(\w+)'>", r"\1", words)
    return ProjectError(
        "the model does not parse" + (f" at {mark!r}" if mark else ""),
        where=Place(path, line, max(column - len(mark) + 1, 1) if column else 0, max(len(mark), 1)),
        detail=[words],
    )


def _span(node: exp.Expr | None) -> tuple[int, int] | None:
    """Return [start, end) of the characters of a name, or None."""
    if node is None or "start" not in node.meta:
        return None
    return node.meta["start"], node.meta["end"] + 1


def _at(path: str, text: str, node: exp.Expr) -> Place:
    for part in node.walk():
        if span := _span(part):
            return _place(path, text, span[0], span[1] - span[0])
    return Place(path)


def _only_reads(path: str, text: str, tree: exp.Expr) -> None:
    for node in tree.walk():
        if isinstance(node, _CHANGES):
            raise ProjectError(
                f"the model holds {type(node).__name__.upper()}",
                where=_at(path, text, node),
                hint="a model only reads",
            )
        name = node.name.lower() if isinstance(node, exp.Anonymous) else ""
        if isinstance(node, _CLOCK) or name in _CLOCK_NAMES:
            place = _word(path, text, node, name)
            raise ProjectError(
                f"the model reads the clock ({_shown(text, place)}), so its result could not be made again",
                where=place,
                hint="write $now (timestamp) or $today (date): the run's logical time",
            )
        if isinstance(node, exp.Func) and _OUTSIDE.fullmatch(name or node.sql_name().lower()):
            raise ProjectError(
                f"the model calls {name or node.sql_name().lower()}, which reads past the project's assets",
                where=_word(path, text, node, name),
                hint="copy the data into a layer, and name it layer.asset",
            )


def _word(path: str, text: str, node: exp.Expr, name: str) -> Place:
    """Return the place of a function, which sqlglot does not always keep, by its name in the text."""
    names = [name] if name else [node.key, node.sql_name() if isinstance(node, exp.Func) else "", "now", "today"]
    names += [re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(node).__name__)]
    for token in sqlglot.tokenize(text, dialect="duckdb"):
        if token.text.lower() in {word.lower() for word in names if word}:
            return _place(path, text, token.start, len(token.text))
    return _at(path, text, node)


def _shown(text: str, place: Place) -> str:
    line = text.split("\n")[place.line - 1] if place.line else ""
    return line[place.column - 1 : place.column - 1 + place.length]


def _spelled(identifier: exp.Identifier) -> str:
    return str(identifier.this) if identifier.quoted else str(identifier.this).lower()


def _ctes(table: exp.Table) -> Iterator[str]:
    """Yield the names of common table expressions that a table's name may mean."""
    node: exp.Expr | None = table
    inside: set[int] = set()
    while node is not None:
        inside.add(id(node))
        with_ = node.args.get("with_") or node.args.get("with")
        if isinstance(with_, exp.With):
            for cte in with_.expressions:
                if id(cte) in inside and not with_.recursive:
                    break  # a common table expression sees only those before it
                yield cte.alias.lower()
        if isinstance(node, exp.CTE) and isinstance(node.parent, exp.With):
            for cte in node.parent.expressions:
                if cte is node and not node.parent.recursive:
                    break
                yield cte.alias.lower()
            node = node.parent.parent  # the query whose WITH it is: already seen above
            inside.add(id(node))
        node = node.parent if node is not None else None


def _references(path: str, text: str, tree: exp.Expr) -> Iterator[Reference]:
    assets: set[AssetId] = set()
    for table in tree.find_all(exp.Table):
        name, layer = table.this, table.args.get("db")
        if not isinstance(name, exp.Identifier):
            continue  # a table function
        if layer is None:
            if name.name.lower() in _ctes(table):
                continue
            raise ProjectError(
                f"the model reads {name.name!r}, which no layer has",
                where=_at(path, text, name),
                hint="tables are named layer.asset, like bronze.orders",
            )
        if table.args.get("catalog") is not None:
            raise ProjectError(
                f"the model reads {table.sql(dialect='duckdb')!r}: a name of three parts",
                where=_at(path, text, table),
                hint="tables are named layer.asset, like bronze.orders",
            )
        start, end = _span(layer), _span(name)
        if start is None or end is None:
            raise ProjectError(f"the model names {layer.name}.{name.name} in a way that is not read", where=path)
        asset = AssetId(_spelled(layer), _spelled(name))
        assets.add(asset)
        yield Reference(asset, start[0], end[1], bool(table.args.get("alias")))
    for column in tree.find_all(exp.Column):
        name, layer = column.args.get("table"), column.args.get("db")
        if name is not None and layer is not None:
            asset = AssetId(_spelled(layer), _spelled(name))
            start, end = _span(layer), _span(name)
            if asset in assets and start and end:
                yield Reference(asset, start[0], end[1], aliased=True, column=True)


def _parameters(path: str, text: str, tree: exp.Expr) -> tuple[str, ...]:
    found: list[str] = []
    for node in tree.find_all(exp.Placeholder, exp.Parameter):
        name = node.name
        if name not in PARAMETERS:
            at = text.find(f"${name}") if name else text.find("?")
            raise ProjectError(
                f"unknown parameter ${name}" if name else "parameters are named",
                where=_place(path, text, max(at, 0), len(name) + 1),
                hint=(did_you_mean(name, PARAMETERS) if name else None)
                or f"there are {', '.join('$' + known for known in PARAMETERS)}",
            )
        if name not in found:
            found.append(name)
    return tuple(found)


def bind(model: SqlModel, names: Mapping[AssetId, str]) -> str:
    """Return the model's text with its inputs replaced.

    Args:
        model: the model.
        names: for an input, what to read instead: a quoted relation name, or a query in parentheses. Inputs that are
            not named stay. Lines stay the same as long as the names have no line breaks.
    """
    parts, last = [], 0
    for found in model.references:
        if found.asset not in names:
            continue
        parts.append(model.sql[last : found.start])
        if found.column:
            parts.append(quote(found.asset.name))
        else:
            parts.append(names[found.asset])
            if not found.aliased:
                parts.append(f" as {quote(found.asset.name)}")
        last = found.end
    return "".join([*parts, model.sql[last:]])


def restrict(model: SqlModel, filters: Mapping[AssetId, KeyFilter]) -> str:
    """Return the model's text over only those input rows whose keys a filter holds.

    This is how a model of kind `upsert` makes its changes: such a model declares that each output key depends only on
    input rows of that same key, so over the changed keys' rows it gives exactly their new output rows. A changed key
    without an output row was deleted. Inputs without a filter (a dimension joined by its own key) are read whole;
    when such an input changes, the model must run whole.

    Args:
        model: the model.
        filters: for the inputs that carry the key, the changed keys of all of them (before and after the change).
    """
    return bind(model, {asset: _restricted(asset, found) for asset, found in filters.items()})


def _restricted(asset: AssetId, found: KeyFilter) -> str:
    """Return a query for an input's rows of some keys; a null is a key like any other: such rows must not get lost."""
    same = " and ".join(f"changed.{quote(name)} is not distinct from keys.{quote(name)}" for name in found.key)
    return f"(from {relation(asset)} as changed semi join {found.relation} as keys on {same})"
