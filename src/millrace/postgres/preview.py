"""What a table will hold after a publish, as a query over the table and its stage: what checks look at before it."""

from __future__ import annotations

from dataclasses import dataclass

from psycopg import sql

from millrace.core.names import TableRef
from millrace.core.segment import Segment
from millrace.core.staged import Staged
from millrace.postgres.catalog import PgColumn, Relation, describe
from millrace.postgres.cursors import Rule
from millrace.postgres.ddl import named, same_type, type_of
from millrace.postgres.deletes import marked
from millrace.postgres.history import CURRENT
from millrace.postgres.ledger import Ledger
from millrace.postgres.parts import any_of
from millrace.postgres.quarantine import Bad, Store, broken, rules_of
from millrace.postgres.session import Connection
from millrace.postgres.source import Source, both
from millrace.postgres.stage import staged_relation

FALSE = sql.SQL("false")


@dataclass(frozen=True, slots=True)
class Preview:
    """A stage, and the table after its publish.

    Attributes:
        rows: SELECT of the rows that the table will hold (of versions the current ones).
        columns: their columns.
        brought: SELECT of the staged rows that are not marked as deleted; None: nothing is staged.
        store: what is in quarantine of the table now.
    """

    rows: sql.Composable
    columns: tuple[PgColumn, ...]
    brought: sql.Composable | None
    store: Store

    def bad(self, rules: tuple[Bad, ...], *, again: bool) -> tuple[int, int]:
        """Return how many rows are brought, and how many of these are bad.

        Args:
            rules: what is bad.
            again: rows that lie in quarantine as they are do not count; else those that wait there do.
        """
        assert self.brought is not None  # noqa: S101 - a sieve has a stage
        return self.store.count_bad(self.brought, rules, again=again)


def preview(connection: Connection, ledger: Ledger, staged: Staged) -> Preview:
    """Look at a stage and its table. Raises SeqMoved when the stage is somebody else's."""
    names, keys = staged.schema.names, staged.schema.key
    place = TableRef(staged.asset.layer, staged.asset.name)
    if staged.how == "position":
        there = describe(connection, place, label=ledger.label)
        columns = there.pick(names)
        store = Store(connection, ledger, staged.asset, columns, there.pick(keys))
        where = CURRENT if staged.detail.get("versions") else sql.SQL("true")
        rows = _select(columns, there.identifier, where)
        fixes = [fix for fix in staged.detail.get("entries", {}).get("changed", {}).values() if fix is not None]
        if fixes:
            rows = sql.SQL("{} union all {}").format(rows, store.given(fixes))
        return Preview(rows, columns, None, store)
    stage = staged_relation(connection, ledger, staged)
    columns, key = stage.pick(names), stage.pick(keys)
    store = Store(connection, ledger, staged.asset, columns, key)
    same = sql.SQL(" and ").join(sql.SQL("s.{0} = t.{0}").format(column.identifier) for column in key)
    text = staged.detail.get("soft_delete")
    alive: sql.Composable = sql.SQL("true")
    if text is not None:
        alive = sql.SQL("({}) is not true").format(marked(Source(ledger.label, columns), text))
    rules = rules_of(staged)
    good = both(alive, sql.SQL("not {}").format(broken(rules))) if rules else alive
    if staged.how == "append":
        known = sql.SQL("not exists (select from {} t where {})").format(
            sql.Identifier(staged.asset.layer, staged.asset.name), same
        )
        alive, good = both(alive, known) or alive, both(good, known) or good
    parts = [_select(columns, sql.SQL("{} s").format(stage.identifier), good or alive)]
    if rules and not store.empty:
        parts.append(store.kept_fixes(stage.identifier, rules))
    gone = _gone(staged, columns, key)
    if staged.how not in ("create", "truncate") and gone is not None and staged.detail.get("fits") is not None:
        there = describe(connection, place, label=ledger.label)
        stays: sql.Composable = sql.SQL("not exists (select from {} s where {}) and ({}) is not true").format(
            stage.identifier, same, gone
        )
        if staged.how == "snapshot":
            stays = sql.SQL("{} and {}").format(stays, CURRENT)
        values = sql.SQL(", ").join(_as_published(column, there) for column in columns)
        parts.append(sql.SQL("select {} from {} t where {}").format(values, there.identifier, stays))
    brought = _select(columns, sql.SQL("{} s").format(stage.identifier), alive)
    return Preview(sql.SQL(" union all ").join(parts), columns, brought, store)


def _select(columns: tuple[PgColumn, ...], rows: sql.Composable, where: sql.Composable) -> sql.Composable:
    names = sql.SQL(", ").join(column.identifier for column in columns)
    return sql.SQL("select {} from {} where {}").format(names, rows, where)


def _as_published(column: PgColumn, there: Relation) -> sql.Composable:
    """Return a column of the table's rows as it is when the publish has altered the table."""
    if column.name not in there.names:
        return sql.SQL("null")  # the publish adds it
    if same_type(column, there.pick([column.name])[0]):
        return column.identifier
    return sql.SQL("{}::{}").format(column.identifier, type_of(column, named(column)[0]))


def _gone(staged: Staged, columns: tuple[PgColumn, ...], key: tuple[PgColumn, ...]) -> sql.Composable | None:
    """Return the predicate of the table's rows that the publish deletes, but for those it brings; None: all."""
    if staged.how == "append":
        return FALSE
    found = staged.detail.get("segments")
    if staged.how == "merge":
        found = staged.detail.get("scrubbed", {}).get("segments", ())
    where = any_of([Segment.from_json(segment) for segment in found or ()], key)
    if staged.how != "interval":
        return where
    name, form, start, end = staged.detail["interval"]
    return both(where, Rule(form).between(next(column for column in columns if column.name == name), start, end))
