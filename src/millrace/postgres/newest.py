"""Sources that keep several versions of a row, told apart by a cursor: the newest is the row.

It is chosen among all rows of a key, also when only changes are read: an old version that was committed late replaces
nothing then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from psycopg import sql

from millrace.errors import KeyInvalid
from millrace.postgres.catalog import PgColumn
from millrace.postgres.cursors import is_text
from millrace.postgres.digest import row_hash
from millrace.postgres.names import sql_name
from millrace.postgres.session import Connection, translated
from millrace.postgres.source import Source, both


def newest(base: Source, key: Sequence[PgColumn], cursor: str, changes: Source | None = None) -> Source:
    """Return the newest row of each key.

    Args:
        base: all rows.
        key: the key columns.
        cursor: the column whose highest value is the newest; null is older than everything.
        changes: when given, only keys of these rows are read.
    """
    rows = _of_changed_keys(base, key, changes)
    query = sql.SQL("{} order by {}, {} desc nulls last, {} desc").format(
        rows.select([sql.SQL("distinct on ({}) {}").format(_listed(key), _listed(_carried(rows.columns)))]),
        _listed(key),
        rows.rule.ordered(rows[cursor]),
        row_hash(rows.columns),  # of two rows with one cursor value the same is taken each time
    )
    return Source(rows.label, rows.columns, query=query, database=rows.database)


def newest_unchanged(base: Source, key: Sequence[PgColumn], cursor: str, changes: Source) -> Source:
    """Return the newest row of each key that no changed row has."""
    rows = newest(base, key, cursor)
    return rows.narrowed(lacking(key, sql.SQL("q"), changes.select([column.identifier for column in key])))


def lacking(key: Sequence[PgColumn], rows: sql.Composable, keys: sql.Composable) -> sql.Composable:
    """Return the predicate of rows whose key a query does not give.

    Args:
        key: the key columns.
        rows: what the rows are called outside: an alias, or the table's own name.
        keys: a SELECT of the key columns.
    """
    same = sql.SQL(" and ").join(sql.SQL("c.{0} = {1}.{0}").format(column.identifier, rows) for column in key)
    return sql.SQL("not exists (select from ({}) as c where {})").format(keys, same)


def left_out(connection: Connection, base: Source, key: Sequence[PgColumn], changes: Source | None = None) -> int:
    """Return how many rows `newest` leaves out.

    Raises:
        KeyInvalid: a key is null, in the changes or anywhere.
    """
    rows = _of_changed_keys(base, key, changes)
    nulls = sql.SQL(" or ").join(sql.SQL("{} is null").format(column.identifier) for column in key)
    count = sql.SQL("pg_catalog.count(*) - pg_catalog.count(distinct ({}))").format(_listed(key))
    with translated(base.database, f"check the key of {base.label}", connection=connection):
        without = connection.execute((changes or base).select([sql.SQL("pg_catalog.count(*)")], nulls)).fetchone()
        if without and without[0]:
            raise KeyInvalid(
                f"{without[0]:,} {'row has' if without[0] == 1 else 'rows have'} a null in the key "
                f"({', '.join(sql_name(column.name) for column in key)}) of {base.label}",
                where=base.database,
                hint="leave them out by where:, or name another key",
            )
        found = connection.execute(rows.select([count])).fetchone()
    return int(found[0]) if found else 0


def told(number: int, cursor: str) -> str:
    """Return the sentence about rows that were left out."""
    rows = "1 row" if number == 1 else f"{number:,} rows"
    return f"{rows} left out: a newer one by {sql_name(cursor)} has {'its' if number == 1 else 'their'} key"


def misplaced(connection: Connection, source: Source, cursor: str) -> str | None:
    """Return the sentence about rows whose text cursor is not written as declared, or None."""
    column = source[cursor]
    if source.rule.format is None or not is_text(column):
        return None
    odd = sql.SQL("{} is null and {} is not null").format(source.rule.ordered(column), column.identifier)
    with translated(source.database, f"look at the cursor of {source.label}", connection=connection):
        found = connection.execute(
            source.select([sql.SQL("pg_catalog.count(*), pg_catalog.min({})").format(column.identifier)], odd)
        ).fetchone()
    if not found or not found[0]:
        return None
    rows = "1 row has" if found[0] == 1 else f"{found[0]:,} rows have"
    return f"{rows} a {sql_name(cursor)} that is no {source.rule.format}, like {found[1]!r}: read again each time"


def _of_changed_keys(base: Source, key: Sequence[PgColumn], changes: Source | None) -> Source:
    if changes is None:
        return base
    keys = changes.select([column.identifier for column in key])
    return replace(base, where=both(base.where, sql.SQL("({}) in ({})").format(_listed(key), keys)))


def _carried(columns: Sequence[PgColumn]) -> list[PgColumn]:
    """Return the columns, and new ones that make a row one to set aside."""
    names = {column.name for column in columns}
    more = [refusal.column for column in columns for refusal in column.refused]
    return [*columns, *(column for column in more if column.name not in names)]


def _listed(columns: Sequence[PgColumn]) -> sql.Composable:
    return sql.SQL(", ").join(column.identifier for column in columns)
