"""Rows in quarantine in a PostgreSQL target: kept out of a table, exact as they came, with the reason.

They lie in the ledger's schema, each as a JSON object of its columns' texts as the server prints them in a pinned
session, which its input functions read back exactly. They are moved out of the stage in the transaction that publishes
it. To compare a table with its source, `everything` is the table as the source has it: its rows less the replayed ones,
and the rows in quarantine.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from psycopg import sql

from millrace.core.digest import Digest
from millrace.core.names import AssetId
from millrace.core.quarantine import STATUSES, Entry
from millrace.core.staged import Staged
from millrace.errors import ProofFailed
from millrace.postgres.catalog import PgColumn, Relation
from millrace.postgres.ddl import named, type_of
from millrace.postgres.digest import digest_of, digest_query, row_hash, shape
from millrace.postgres.ledger import QUARANTINE, Ledger
from millrace.postgres.session import Connection
from millrace.postgres.types import text_form
from millrace.postgres.unreadable import kept_hash, legible, payload, unreadable_of

NEW = "+"
"""Stands before the id of an entry while it is being made."""
OWN = "_millrace_"
"""Stands before the names of an entry's own columns beside those of its row."""
_ENTRY = sql.Identifier(OWN + "entry")
READABLE = sql.SQL("e.bytes is null")
"""The predicate of entries whose rows are values of the table's types: see `unreadable` for the others."""


@dataclass(frozen=True, slots=True)
class Bad:
    """Which rows of a stage are bad, in SQL over its columns.

    Attributes:
        rule: the name of what they break, like `between(amount)`.
        column: the column that it is about, or "".
        broken: a condition, true for exactly those rows.
        reason: a text expression: why, in one sentence.
    """

    rule: str
    column: str
    broken: str
    reason: str

    def to_json(self) -> dict[str, str]:
        """Return it as JSON types, for `Staged.detail["sieve"]`."""
        return asdict(self)


def rules_of(staged: Staged) -> tuple[Bad, ...]:
    """Return what a stage says of its bad rows."""
    return tuple(Bad(**one) for one in staged.detail.get("sieve", ()))


def brings_bad(staged: Staged) -> bool:
    """Say whether a load may set rows aside."""
    return bool(staged.detail.get("sieve") or staged.detail.get("unreadable"))


def broken(rules: Sequence[Bad], *, but: sql.Composable | None = None) -> sql.Composable:
    """Return the condition of rows that break at least one rule.

    Args:
        rules: what is bad.
        but: rows for which this is true are not: those that are to be deleted.
    """
    parts = sql.SQL(" or ").join(sql.SQL("({})").format(_said(rule.broken)) for rule in rules)
    found = sql.SQL("coalesce({}, false)").format(parts if rules else sql.SQL("false"))
    return found if but is None else sql.SQL("{} and not coalesce({}, false)").format(found, but)


def _reasons(rules: Sequence[Bad]) -> sql.Composable:
    """Return the text expression of why a row is bad; empty where it is not."""
    parts = (sql.SQL("case when {} then {} end").format(_said(rule.broken), _said(rule.reason)) for rule in rules)
    return sql.SQL("pg_catalog.concat_ws('; ', {})").format(sql.SQL(", ").join(parts))


def _said(text: str) -> sql.Composable:
    """Return a rule's SQL, which `steps` has written from parsed expressions."""
    return sql.SQL(text)


class Kept:
    """The rows in quarantine of one table, in SQL.

    Args:
        ledger: whose schema keeps them.
        asset: the table's place.
        columns: of the table, as far as they are digested.
        key: its key columns.
    """

    def __init__(
        self, ledger: Ledger, asset: AssetId, columns: Sequence[PgColumn] = (), key: Sequence[PgColumn] = ()
    ) -> None:
        self._ledger = ledger
        self._asset = asset
        self.columns = tuple(columns)
        self.key = tuple(key)

    def everything(self, table: sql.Composable) -> sql.Composable:
        """Return the table's rows as the source has them, as they stand in FROM before an alias."""
        names = sql.SQL(", ").join(sql.SQL("t.{0}").format(column.identifier) for column in self.columns)
        same = sql.SQL(" and ").join(
            sql.SQL("{} = t.{}").format(_value(column, "row"), column.identifier) for column in self.key
        )
        return sql.SQL(
            "(select {names} from {table} t where not exists (select from {rows} e where {mine} and status = 'replayed'"
            " and {same}) union all {kept})"
        ).format(
            names=names,
            table=table,
            rows=self._rows,
            mine=self._mine,
            same=same,
            kept=self.typed("row", READABLE),
        )

    def typed(self, what: str, where: sql.Composable, *more: str) -> sql.Composable:
        """Return the query of entries' rows (`row`) or fixed rows (`fix`) as values of the table's types.

        `more` of an entry's own columns stand first, their names after `OWN`.
        """
        values = [sql.SQL("e.{} as {}").format(sql.Identifier(one), sql.Identifier(OWN + one)) for one in more]
        values += [sql.SQL("{} as {}").format(_value(column, what), column.identifier) for column in self.columns]
        return sql.SQL("select {} from {} e where {} and {}").format(
            sql.SQL(", ").join(values), self._rows, self._mine, where
        )

    def given(self, fixes: Sequence[Mapping[str, str | None]]) -> sql.Composable:
        """Return the query of fixed rows that are in no entry yet."""
        values = [sql.SQL("{} as {}").format(_value(column, "fix"), column.identifier) for column in self.columns]
        return sql.SQL("select {} from pg_catalog.jsonb_array_elements({}::pg_catalog.jsonb) as e(fix)").format(
            sql.SQL(", ").join(values), sql.Literal(json.dumps(list(fixes)))
        )

    @property
    def _rows(self) -> sql.Identifier:
        return self._ledger.table("quarantine")

    @property
    def _mine(self) -> sql.Composable:
        return sql.SQL("layer = {} and name = {}").format(sql.Literal(self._asset.layer), sql.Literal(self._asset.name))


class Store(Kept):
    """The rows in quarantine of one table, by a connection; what changes them needs its open transaction.

    Args:
        connection: pinned.
        ledger, asset, columns, key: see `Kept`.
    """

    def __init__(
        self,
        connection: Connection,
        ledger: Ledger,
        asset: AssetId,
        columns: Sequence[PgColumn] = (),
        key: Sequence[PgColumn] = (),
    ) -> None:
        super().__init__(ledger, asset, columns, key)
        self._connection = connection

    # looking

    @property
    def empty(self) -> bool:
        """Whether nothing is kept of the table."""
        return not any(self.counts().values())

    def counts(self) -> dict[str, int]:
        """Return the number of entries by status."""
        counts = dict.fromkeys(STATUSES, 0)
        if self._missing():
            return counts
        query = self._ledger.sql(
            "select status, pg_catalog.count(*) from {quarantine} where layer = %s and name = %s group by 1"
        )
        return counts | dict(self._connection.execute(query, self._place).fetchall())

    def digests(self) -> tuple[Digest, Digest]:
        """Return the digests of the rows in quarantine, and of the fixed rows that stand in the table instead."""
        return (
            self._digest(self.typed("row", READABLE)),
            self._digest(self.typed("fix", sql.SQL("status = 'replayed'"))),
        )

    def _digest(self, query: sql.Composable) -> Digest:
        text = digest_query(sql.SQL("({}) as t").format(query), self.columns)
        return digest_of(self._connection.execute(text).fetchone() or (0, 0), shape(self.columns))

    def unreadable(self) -> set[tuple[str, int]]:
        """Return id and digest of the entries of rows whose texts cannot be carried."""
        if self._missing():
            return set()
        query = self._ledger.sql(
            "select entry, digest from {quarantine} where layer = %s and name = %s and bytes is not null"
        )
        return {(entry, int(digest)) for entry, digest in self._connection.execute(query, self._place).fetchall()}

    def names(self) -> tuple[list[str], list[str]]:
        """Return the names of the columns that entries have, in the digest's order, and those of the key."""
        query = self._ledger.sql(
            "select columns, keys from {quarantine} where layer = %s and name = %s"
            " order by pg_catalog.cardinality(columns) desc limit 1"
        )
        row = self._connection.execute(query, self._place).fetchone()
        return row or ([], [])

    def entries(self) -> list[Entry]:
        """Return the entries, the oldest first."""
        if self._missing():
            return []
        query = self._ledger.sql(
            "select entry, status, rule, about, reason, key, digest, source, since, run, row, bytes, fix"
            " from {quarantine} where layer = %s and name = %s order by since, entry"
        )
        found = []
        for one in self._connection.execute(query, self._place).fetchall():
            entry, status, rule, about, reason, key, digest, source, since, run, row, data, fix = one
            found.append(
                Entry(
                    id=entry,
                    asset=self._asset,
                    status=status,
                    rule=rule,
                    column=about,
                    reason=reason,
                    key=dict(zip((column.name for column in self.key), key, strict=True)),
                    digest=str(digest),
                    source=source,
                    since=since,
                    run=run,
                    row=_ordered({**row, **(legible(bytes(data)) if data is not None else {})}, self.columns),
                    bytes=data,
                    fix=None if fix is None else _ordered(fix, self.columns),
                )
            )
        return found

    @property
    def _place(self) -> tuple[str, str]:
        return self._asset.layer, self._asset.name

    def _missing(self) -> bool:
        """Say whether the table of entries was never made: ledgers of earlier versions have none."""
        return not self._ledger.keeps_rows(self._connection)

    def count_bad(self, rows: sql.Composable, rules: Sequence[Bad], *, again: bool) -> tuple[int, int]:
        """Return how many rows a SELECT gives, and how many of these are bad and nobody has dealt with.

        Args:
            again: those that wait in quarantine as they are do not count either.
        """
        bad = broken(rules)
        if not self._missing():
            bad = sql.SQL(
                "{} and not exists (select from {} e where {} and {} and {} and e.key = {} and {} @> e.row)"
            ).format(
                bad,
                self._rows,
                self._mine,
                READABLE,
                sql.SQL("true") if again else sql.SQL("e.status <> 'open'"),
                _texts(self.key, "r"),
                _object(self.columns, "r"),
            )
        query = sql.SQL("select pg_catalog.count(*), pg_catalog.count(*) filter (where {}) from ({}) r")
        found = self._connection.execute(query.format(bad, rows)).fetchone() or (0, 0)
        return int(found[0]), int(found[1])

    def kept_fixes(self, stage: sql.Composable, rules: Sequence[Bad]) -> sql.Composable:
        """Return the query of the fixed rows that a publish puts in the place of bad rows of a stage."""
        same = sql.SQL(
            "{} and status = 'replayed' and exists (select from {} s where e.key = {} and {} @> e.row)"
        ).format(READABLE, stage, _texts(self.key, "s"), _object(self.columns, "s"))
        return sql.SQL("select * from ({}) f where not {}").format(self.typed("fix", same), broken(rules))

    # publishing

    def clear(self) -> None:
        """Forget all entries."""
        if not self._missing():
            self._run(sql.SQL("delete from {} where {}").format(self._rows, self._mine))

    def settle(
        self,
        staged: Staged,
        stage: sql.Composable,
        *,
        within: sql.Composable | None,
        but: sql.Composable | None = None,
        table: sql.Composable | None = None,
    ) -> int:
        """Move the bad rows of a stage into quarantine, and settle the older entries that the load deals with.

        An older entry whose source row comes again as it was keeps its status; of a replayed one the fixed row takes
        the bad row's place in the stage, unless it breaks the rules of today. What else the load deals with is gone.

        Args:
            staged: its `detail["sieve"]` says what is bad.
            stage: where the rows lie.
            within: over the key columns: the load deals with all keys for which this holds, besides those it brings.
            but: staged rows that are to be deleted, and are not bad.
            table: the table's rows of bad keys are deleted from it.

        Returns:
            how many rows were deleted from the table.

        Raises:
            ProofFailed: the rows kept are not those that were moved.
        """
        rules = rules_of(staged)
        if self._missing():
            if not brings_bad(staged):
                return 0
            self._run(sql.SQL(QUARANTINE).format(schema=sql.Identifier(self._ledger.schema)))
        bad = broken(rules, but=but)
        self._move(staged, stage, rules, bad)
        self._keep(staged)
        self._match(stage, within)
        self._reopen(staged, rules)
        self._check(staged)
        mine = self._of(staged)
        deleted = 0
        if table is not None:
            rows = self.typed("row", sql.SQL("{} and status <> 'replayed'").format(mine))
            same = self._same("b", "t")
            deleted = self._run(sql.SQL("delete from {} t using ({}) b where {}").format(table, rows, same))
        self.put(stage, sql.SQL("{} and status = 'replayed'").format(mine))
        return deleted

    def put(self, table: sql.Composable, where: sql.Composable) -> int:
        """Insert the fixed rows of replayed entries into a table or stage; return how many."""
        plain = [column.identifier for column in self.columns if not column.generated]
        names = sql.SQL(", ").join(plain)
        return self._run(
            sql.SQL("insert into {} ({names}) overriding system value select {names} from ({}) f").format(
                table, self.typed("fix", where), names=names
            )
        )

    def mark(self, changed: Mapping[str, Mapping[str, str | None] | None], status: str, load: int) -> int:
        """Give entries another status, and replayed ones their fixed rows; return how many there were."""
        from psycopg.types.json import Jsonb

        statement = self._ledger.sql(
            "update {quarantine} set status = %s, fix = %s, load = %s, settled = pg_catalog.now()"
            " where layer = %s and name = %s and entry = %s and status = 'open'"
        )
        done = 0
        for entry, fix in changed.items():
            values = (status, None if fix is None else Jsonb(fix), load, *self._place, entry)
            done += self._connection.execute(statement, values).rowcount
        return done

    def replay(self, changed: Mapping[str, Mapping[str, str | None] | None], load: int, table: sql.Composable) -> int:
        """Put fixed rows into the table, and keep them as they stand there; return how many.

        Raises:
            ProofFailed: they do not stand there as they were put.
        """
        if self.mark(changed, "replayed", load) != len(changed):
            raise ProofFailed(f"entries of {self._asset} were changed by someone else", hint="nothing was changed")
        mine = sql.SQL("status = 'replayed' and load = {}").format(sql.Literal(load))
        fixes = self.typed("fix", mine)
        self._run(sql.SQL("delete from {} t using ({}) b where {}").format(table, fixes, self._same("b", "t")))
        count = self.put(table, mine)
        plain = [column for column in self.columns if not column.generated]
        there = sql.SQL("(select t.* from {} t join ({}) f on {})").format(table, fixes, self._same("f", "t"))
        wanted, found = (
            self._connection.execute(digest_query(sql.SQL("{} as d").format(rows), plain)).fetchone()
            for rows in (sql.SQL("({})").format(fixes), there)
        )
        if wanted != found:
            raise ProofFailed(
                f"rows of {self._asset} were not replayed: they would not stand in the table as they were mended",
                hint="one of its triggers changes rows",
            )
        key = sql.SQL(" and ").join(
            sql.SQL("{} = t.{}").format(_value(column, "fix"), column.identifier) for column in self.key
        )
        fixed = sql.SQL("(select {} from {} t where {})").format(_object(self.columns, "t"), table, key)
        self._run(sql.SQL("update {} e set fix = {} where {} and {}").format(self._rows, fixed, self._mine, mine))
        return count

    def trial(self, relation: Relation) -> sql.Composable:
        """Make a temporary table like the target's, with its constraints and generated columns; return it."""
        place = sql.Identifier("pg_temp", "millrace_trial")
        self._run(
            sql.SQL(
                "create temporary table millrace_trial (like {} including generated including constraints)"
                " on commit drop"
            ).format(relation.identifier)
        )
        return place

    def tried(
        self, trial: sql.Composable, row: Mapping[str, Any], rules: Sequence[Bad]
    ) -> tuple[dict[str, str | None], str]:
        """Put a row of texts into a trial table; return it as the table has it, and what it breaks.

        Raises:
            psycopg.DataError, psycopg.IntegrityError: it does not fit; the transaction goes on.
        """
        plain = [column for column in self.columns if not column.generated]
        names = sql.SQL(", ").join(column.identifier for column in plain)
        values = sql.SQL(", ").join(
            sql.SQL("{}::{}").format(sql.Literal(row[column.name]), type_of(column, named(column)[0]))
            for column in plain
        )
        why = _reasons(rules) if rules else sql.SQL("''")
        with self._connection.transaction():
            self._run(sql.SQL("delete from {}").format(trial))
            self._run(sql.SQL("insert into {} ({}) overriding system value values ({})").format(trial, names, values))
            found = self._connection.execute(
                sql.SQL("select {}, {} from {}").format(_object(self.columns), why, trial)
            ).fetchone()
        return (found[0], found[1]) if found else ({}, "")

    def _run(self, text: sql.Composed) -> int:
        return self._connection.execute(text).rowcount

    def _same(self, one: str, other: str) -> sql.Composable:
        return sql.SQL(" and ").join(
            sql.SQL("{}.{key} = {}.{key}").format(sql.SQL(one), sql.SQL(other), key=column.identifier)
            for column in self.key
        )

    def _of(self, staged: Staged) -> sql.Composable:
        """The predicate of the entries that a load has taken up."""
        return sql.SQL("load = {}").format(sql.Literal(staged.load))

    def _move(self, staged: Staged, stage: sql.Composable, rules: Sequence[Bad], bad: sql.Composable) -> None:
        """Make entries of the bad rows, their ids marked as new, and delete them from the stage."""
        if not rules:
            return

        def first(what: Sequence[str]) -> sql.Composable:
            cases = (
                sql.SQL("when {} then {}").format(_said(rule.broken), sql.Literal(text))
                for rule, text in zip(rules, what, strict=True)
            )
            return sql.SQL("case {} end").format(sql.SQL(" ").join(cases))

        key, digest = _texts(self.key), row_hash(self.columns)
        entry = sql.SQL(
            "{} || pg_catalog.left(pg_catalog.encode(pg_catalog.sha256(pg_catalog.convert_to("
            "pg_catalog.jsonb_build_array({}, {}, {})::pg_catalog.text, 'UTF8')), 'hex'), 12)"
        ).format(sql.Literal(NEW), sql.Literal(str(self._asset)), key, digest)
        moved = self._run(
            sql.SQL(
                "insert into {rows}"
                " (layer, name, entry, status, rule, about, reason, columns, keys, key, digest, row, since, run, load)"
                " select {layer}, {name}, {entry}, 'open', {rule}, {about}, {reason}, {columns}, {keys}, {key},"
                " {digest}, {row}, pg_catalog.now(), {run}, {load} from {stage} where {bad}"
            ).format(
                rows=self._rows,
                layer=sql.Literal(self._asset.layer),
                name=sql.Literal(self._asset.name),
                entry=entry,
                rule=first([rule.rule for rule in rules]),
                about=first([rule.column for rule in rules]),
                reason=_reasons(rules),
                columns=sql.Literal([column.name for column in self.columns]),
                keys=sql.Literal([column.name for column in self.key]),
                key=key,
                digest=digest,
                row=_object(self.columns),
                run=sql.Literal(staged.run),
                load=sql.Literal(staged.load),
                stage=stage,
                bad=bad,
            )
        )
        deleted = self._run(sql.SQL("delete from {} where {}").format(stage, bad))
        if deleted != moved:
            raise ProofFailed(f"{moved:,} bad rows of {self._asset} were found, but {deleted:,} were taken out")

    def _keep(self, staged: Staged) -> None:
        """Make entries of the rows whose texts cannot be carried, their ids marked as new."""
        from psycopg.types.json import Jsonb

        statement = self._ledger.sql(
            "insert into {quarantine} (layer, name, entry, status, rule, about, reason, columns, keys, key, digest,"
            " row, bytes, since, run, load)"
            " values (%s, %s, %s, 'open', %s, %s, %s, %s, %s, %s, %s, %s, %s, pg_catalog.now(), %s, %s)"
        )
        columns, keys = [column.name for column in self.columns], [column.name for column in self.key]
        for one in unreadable_of(staged.detail):
            about = next(iter(one.bytes))
            named = (
                NEW + one.entry(self._asset),
                f"encoding({about})",
                about,
                one.reason,
                columns,
                keys,
                list(one.key),
            )
            kept = (one.digest, Jsonb(dict(one.row)), payload(one), staged.run, staged.load)
            self._connection.execute(statement, (*self._place, *named, *kept))

    def _match(self, stage: sql.Composable, within: sql.Composable | None) -> None:
        """Let new entries take over from older ones of the same row, and delete older ones that are dealt with."""
        new = sql.SQL("pg_catalog.left({}, 1) = {}")
        is_new = new.format(sql.SQL("n.entry"), sql.Literal(NEW))
        older = sql.SQL("{} and not {}").format(self._mine, new.format(sql.SQL("e.entry"), sql.Literal(NEW)))
        same_row = sql.SQL(
            "e.key = n.key and n.row @> e.row and n.bytes is not distinct from e.bytes"
        )  # with columns that were added since it is the same row
        self._run(
            sql.SQL(
                "update {rows} n set status = e.status, since = e.since, run = e.run, settled = e.settled,"
                " fix = n.row || e.fix from (select * from {rows} e where {older}) e"
                " where n.layer = e.layer and n.name = e.name and {is_new} and {same_row}"
            ).format(rows=self._rows, older=older, is_new=is_new, same_row=same_row)
        )
        dealt = [
            sql.SQL("e.bytes is not null"),  # a load that can set such rows aside brings all of them each time
            sql.SQL(
                "exists (select from {} n where n.layer = e.layer and n.name = e.name and {} and n.key = e.key)"
            ).format(self._rows, is_new),
            sql.SQL("e.key in (select {} from {})").format(_texts(self.key), stage),
            sql.SQL("e.entry in (select {} from ({}) k where {})").format(
                _ENTRY, self.typed("row", READABLE, "entry"), within if within is not None else sql.SQL("true")
            ),
        ]
        self._run(sql.SQL("delete from {} e where {} and ({})").format(self._rows, older, sql.SQL(" or ").join(dealt)))
        self._run(
            sql.SQL("update {} n set entry = pg_catalog.substr(entry, 2) where {} and {}").format(
                self._rows, self._mine, is_new
            )
        )

    def _reopen(self, staged: Staged, rules: Sequence[Bad]) -> None:
        """Open replayed entries again whose fixed rows break the rules: these have become stricter since."""
        if not rules:
            return
        fixes = self.typed("fix", sql.SQL("{} and status = 'replayed'").format(self._of(staged)), "entry")
        self._run(
            sql.SQL(
                "update {} set status = 'open', fix = null, settled = null"
                " where {} and entry in (select {} from ({}) f where {})"
            ).format(self._rows, self._mine, _ENTRY, fixes, broken(rules))
        )

    def _check(self, staged: Staged) -> None:
        """Read the rows that a load moved back from their texts, and compare their hashes. Raises ProofFailed."""
        mine = self._of(staged)
        rows = self.typed("row", sql.SQL("{} and {}").format(mine, READABLE), "digest")
        values = {column.name: _value(column, "row") for column in self.columns}
        query = sql.SQL(
            "select (select pg_catalog.count(*) from ({}) r where {} <> {})"
            " + (select pg_catalog.count(*) from {} e where {} and {} and not {} and {} <> e.digest)"
        ).format(
            rows,
            row_hash(self.columns),
            sql.Identifier(OWN + "digest"),
            self._rows,
            self._mine,
            mine,
            READABLE,
            kept_hash(self.columns, values, sql.SQL("e.bytes")),
        )
        found = self._connection.execute(query).fetchone()
        if found is not None and found[0]:
            raise ProofFailed(
                f"{found[0]:,} rows of {self._asset} cannot be kept in quarantine exactly: a type's text does not give"
                " the value back",
                where=str(self._asset),
                hint="nothing was published; bad_rows: block, or leave such rows out by where:",
            )


def _ordered(row: Mapping[str, Any], columns: Sequence[PgColumn]) -> dict[str, Any]:
    return {column.name: row.get(column.name) for column in columns}


def _value(column: PgColumn, what: str) -> sql.Composable:
    """Return a column of an entry `e` as a value of its type."""
    schema, _ = named(column)
    return sql.SQL("(e.{} operator(pg_catalog.->>) {})::{}").format(
        sql.Identifier(what), sql.Literal(column.name), type_of(column, schema)
    )


def _texts(columns: Sequence[PgColumn], rows: str | None = None) -> sql.Composable:
    values: Iterator[sql.Composable] = (text_form(column, _of(column, rows)) for column in columns)
    return sql.SQL("array[{}]::pg_catalog.text[]").format(sql.SQL(", ").join(values))


def _of(column: PgColumn, rows: str | None) -> sql.Composable:
    return sql.Identifier(*([rows] if rows else []), column.name)


def _object(columns: Sequence[PgColumn], rows: str | None = None) -> sql.Composable:
    """Return a row as JSON: its columns' texts by name."""
    names = sql.SQL(", ").join(sql.Literal(column.name) for column in columns)
    return sql.SQL("pg_catalog.jsonb_object(array[{}]::pg_catalog.text[], {})").format(names, _texts(columns, rows))
