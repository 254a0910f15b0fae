"""What is read: a table, or the project author's SELECT, each with an optional condition.

Every query over a source is built from `Source`, so that digest, copy, key check and diff read the same rows. The
author's SQL is parsed as exactly one expression or one read-only SELECT and then sent as it was written; the
transaction that runs it is READ ONLY too.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from psycopg import sql

from millrace.core.names import TableRef, fingerprint
from millrace.core.schema import Schema
from millrace.errors import MillraceError, UsageError
from millrace.postgres.catalog import PgColumn, Relation, columns_of_query, describe, missing_column
from millrace.postgres.cursors import PLAIN, Rule
from millrace.postgres.session import Connection, translated

# What a READ ONLY transaction does not stop, or stops with words that help nobody.
_UNSTOPPED = re.compile(
    "dblink|lo_|nextval|setval|set_config|pg_(sleep|terminate|cancel|notify|reload|rotate|switch|promote|advisory|"
    "try_advisory|read_|ls_|file_|create_|drop_|logical_|replication_|wal_replay|stat_reset|export_snapshot|"
    "current_xact_id$)|txid_current$|postgres_fdw_|(query|cursor|table|schema|database)_to_xml"
)
logging.getLogger("sqlglot").addHandler(logging.NullHandler())  # its warnings are our errors
_TERMINAL = re.compile(r"\x1b\[[0-9;]*m")  # sqlglot underlines the offending word in its messages


@dataclass(frozen=True, slots=True)
class Source:
    """Rows to read.

    Attributes:
        label: what messages call it: `public.orders`, `the query of public.orders`.
        columns: what is read, in order.
        relation: the table, when rows come from it directly (pages and xmin can be used); None for a query.
        query: the SELECT, when there is one.
        where: predicate over the columns of the table or of the query's result.
        database: label of the connection.
        rule: how its cursor column is read, where it has one.
    """

    label: str
    columns: tuple[PgColumn, ...]
    relation: Relation | None = None
    query: sql.Composable | None = None
    where: sql.Composable | None = None
    database: str = ""
    rule: Rule = PLAIN

    @property
    def origin(self) -> sql.Composable:
        """What stands after FROM."""
        if self.query is not None:
            return sql.SQL("(\n{}\n) as q").format(self.query)
        if self.relation is None:
            raise MillraceError("a source needs a table or a query")
        return self.relation.identifier

    @property
    def paged(self) -> bool:
        """Whether heap pages and row versions (ctid, xmin) can be used."""
        return self.relation is not None and self.query is None and self.relation.paged

    @property
    def identity(self) -> str | None:
        """What tells a table and its columns from others of the same names; None for a query.

        A column that was dropped and made again has another number, and the same row versions. A view may be made
        again each day and is the same.
        """
        if self.relation is None or self.query is not None:
            return None
        oid = str(self.relation.oid) if self.paged else ""
        columns = [(one.name, one.number, one.generation if one.generated == "v" else None) for one in self.columns]
        read = [one.as_string(None) for column in self.columns if (one := column.expression) is not None]
        read += [refusal.column.name for column in self.columns for refusal in column.refused]
        return fingerprint(oid, json.dumps(columns), *([json.dumps(read)] if read else []))

    @property
    def traits(self) -> tuple[str, ...]:
        """What a table's values depend on besides its rows: see `traits`; nothing is known of a query."""
        return () if self.relation is None or self.query is not None else self.relation.traits

    @property
    def names(self) -> tuple[str, ...]:
        """The columns' names in order."""
        return tuple(column.name for column in self.columns)

    @property
    def key(self) -> tuple[str, ...]:
        """The primary key when all of it is read, else ()."""
        found = self.relation.primary_key if self.relation is not None else ()
        return found if set(found) <= set(self.names) else ()

    def __getitem__(self, name: str) -> PgColumn:
        for column in self.columns:
            if column.name == name:
                return column
        raise missing_column(name, self.names, self.label)

    def pick(self, names: Sequence[str]) -> tuple[PgColumn, ...]:
        """Return columns by name, in that order. Raises NotFound with the nearest name."""
        return tuple(self[name] for name in names)

    def only(self, columns: Sequence[PgColumn]) -> Source:
        """Return the same rows with some of the columns."""
        return replace(self, columns=tuple(columns))

    def narrowed(self, predicate: sql.Composable | None) -> Source:
        """Return the rows for which a predicate also holds."""
        return replace(self, where=both(self.where, predicate))

    def schema(self, key: Sequence[str] = ()) -> Schema:
        """Return the portable schema under a key (by default the primary key)."""
        return Schema(tuple(column.column() for column in self.columns), tuple(key) or self.key)

    def select(
        self, expressions: Sequence[sql.Composable] | None = None, predicate: sql.Composable | None = None
    ) -> sql.Composed:
        """Return `select … from … where …`; all columns by name unless expressions are given."""
        what: Sequence[sql.Composable] = [c.identifier for c in self.columns] if expressions is None else expressions
        where = both(self.where, predicate)
        condition = sql.SQL("") if where is None else sql.SQL(" where {}").format(where)
        return sql.SQL("select {} from {}{}").format(sql.SQL(", ").join(what), self.origin, condition)


def both(first: sql.Composable | None, second: sql.Composable | None) -> sql.Composable | None:
    """Return the conjunction of two predicates, either of which may be missing."""
    if first is None or second is None:
        return second if first is None else first
    return sql.SQL("({}) and ({})").format(first, second)


def open_source(
    connection: Connection, table: TableRef, *, label: str, where: str | None = None, select: str | None = None
) -> Source:
    """Describe what a copy reads.

    Args:
        connection: pinned by `session.connect`.
        table: the table; with a SELECT it only names the source.
        label: what messages call the database.
        where: the author's condition. With a column list it is over the table, with a SELECT over its result.
        select: the author's column list over the table, or one SELECT.

    Raises:
        UsageError: the SQL is not one condition, one column list or one read-only SELECT.
        NotFound, PermissionMissing: of the table, or of what the query or the condition reads.
    """
    source = _described(connection, table, label, where, select)
    if source.where is not None:
        with translated(label, f"apply the condition {_short(where or '')}", connection=connection):
            connection.execute(sql.SQL("select from {} where {} limit 0").format(source.origin, source.where))
    return source


def _described(connection: Connection, table: TableRef, label: str, where: str | None, select: str | None) -> Source:
    condition = None if where is None else author_condition(where)
    if select is not None and _is_query(select):
        query = author_select(select)
        columns = columns_of_query(connection, query, label=label)
        return Source(f"the query of {table}", columns, query=query, where=condition, database=label)
    relation = describe(connection, table, label=label)
    if select is None:
        return Source(str(relation.ref), relation.columns, relation, where=condition, database=label)
    names = _plain_columns(select)
    if names is not None:
        return Source(str(relation.ref), relation.pick(names), relation, where=condition, database=label)
    query = sql.SQL("select\n{}\nfrom {}{}").format(
        _raw(_one_line_end(select)),
        relation.identifier,
        sql.SQL("") if condition is None else sql.SQL(" where {}").format(condition),
    )
    columns = columns_of_query(connection, query, label=label)
    return Source(f"the columns of {relation.ref}", columns, query=query, database=label)


def author_condition(text: str) -> sql.Composable:
    """Return the author's condition, checked to be one expression.

    Raises:
        UsageError: it is not.
    """
    from sqlglot import exp, parse_one
    from sqlglot.errors import SqlglotError

    try:
        parsed: Any = parse_one(text, read="postgres", into=exp.Condition)
    except SqlglotError as error:
        raise _not_sql("condition", text, error, "write one SQL condition, without WHERE: status = 'paid'") from None
    _refuse_writes(parsed, "condition", text)
    return sql.SQL("(\n{}\n)").format(_raw(text))


def author_select(text: str) -> sql.Composable:
    """Return the author's SELECT, checked to be one statement that only reads.

    Raises:
        UsageError: it is not.
    """
    from sqlglot import exp, parse
    from sqlglot.errors import SqlglotError

    hint = "write one SELECT"
    try:
        parsed: list[Any] = [statement for statement in parse(text, read="postgres") if statement is not None]
    except SqlglotError as error:
        raise _not_sql("query", text, error, hint) from None
    if len(parsed) != 1 or not isinstance(parsed[0], exp.Query | exp.Values):
        raise UsageError("the query is not one SELECT", detail=[_short(text)], hint=hint)
    _refuse_writes(parsed[0], "query", text)
    return _raw(_one_line_end(text))


def _refuse_writes(parsed: Any, what: str, text: str) -> None:
    from sqlglot import exp

    writes = (exp.Insert, exp.Update, exp.Delete, exp.Merge, exp.Into, exp.Lock, exp.DDL, exp.Command)
    for call in parsed.find_all(exp.Func):
        name = call.name if isinstance(call, exp.Anonymous) else call.sql_name()
        if _UNSTOPPED.match(name.lower()):
            raise UsageError(
                f"the {what} calls {name.lower()}, which does more than read",
                detail=[_short(text)],
                hint="a copy reads its source several times, in read-only transactions",
            )
    found = next((node for node in parsed.walk() if isinstance(node, writes) and not isinstance(node, exp.Query)), None)
    if found is not None:
        raise UsageError(
            f"the {what} must only read, but it has {found.key.upper()}", detail=[_short(text)], hint="write one SELECT"
        )


def _is_query(text: str) -> bool:
    bare = re.sub(r"(?s)/\*.*?\*/|--[^\n]*", " ", text).lstrip(" \t\r\n(")
    return re.match(r"(?i)(select|with|values|table)\b", bare) is not None


def _plain_columns(text: str) -> tuple[str, ...] | None:
    """Return the names of a column list that holds nothing but columns, folded as SQL folds them; else None.

    Raises:
        UsageError: it is no column list.
    """
    from sqlglot import exp, parse
    from sqlglot.errors import SqlglotError

    hint = "write column names and expressions, separated by commas, or one SELECT"
    try:
        parsed: list[Any] = [found for found in parse(f"select\n{text}\n", read="postgres") if found is not None]
    except SqlglotError as error:
        raise _not_sql("column list", text, error, hint) from None
    statement = parsed[0] if len(parsed) == 1 else None
    allowed = {"kind", "hint", "distinct", "expressions", "limit", "operation_modifiers"}
    if not isinstance(statement, exp.Select) or any(
        value for name, value in statement.args.items() if name not in allowed
    ):
        raise UsageError("the column list is more than a list of columns", detail=[_short(text)], hint=hint)
    _refuse_writes(statement, "column list", text)
    names = []
    for item in statement.expressions:
        if not isinstance(item, exp.Column) or item.table or not isinstance(item.this, exp.Identifier):
            return None
        names.append(item.this.name if item.this.quoted else item.this.name.lower())
    return None if statement.args.get("distinct") else tuple(names)


def _one_line_end(text: str) -> str:
    """Return the text without the semicolon at its end, which cannot stand inside parentheses."""
    return re.sub(r"[;\s]+\Z", "", text)


def _raw(text: str) -> sql.SQL:
    """Return the author's text as SQL: the only place where text that is no literal becomes SQL."""
    return sql.SQL(text)


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= 100 else flat[:99] + "…"


def _not_sql(what: str, text: str, error: Exception, hint: str) -> UsageError:
    words = [line for line in _TERMINAL.sub("", str(error)).strip().splitlines() if "<class" not in line]
    return UsageError(f"the {what} cannot be parsed as SQL", detail=[_short(text), *words[:1]], hint=hint)
