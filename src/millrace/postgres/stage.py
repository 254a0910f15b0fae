"""An open stage: a hidden table in the target that segments are copied into; see `ownership` for whose it is.

A segment is one transaction that also records the transaction's id, so that the rows of a whole segment are found by
`xmin`, digested, kept or deleted by a later attempt.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from millrace.core.digest import Digest
from millrace.core.events import reach
from millrace.core.names import TableRef
from millrace.core.ports import Progress, StageRequest
from millrace.core.position import Position
from millrace.core.schema import Schema
from millrace.core.secrets import redact
from millrace.core.segment import Segment, SegmentId
from millrace.core.staged import Staged
from millrace.errors import ContractBroken, KeyInvalid
from millrace.postgres.belongings import Belongings, Made, make_belongings, read_structure
from millrace.postgres.catalog import PgColumn, Relation, describe
from millrace.postgres.ddl import cut
from millrace.postgres.digest import digest_of, digest_query, row_hash, shape
from millrace.postgres.ledger import Ledger
from millrace.postgres.names import sql_name
from millrace.postgres.ownership import Heart, StageRow, drop, gone, owner, release, row_of
from millrace.postgres.pump import Stopping, copy_in, never, relay
from millrace.postgres.session import Connection, translated
from millrace.postgres.sessions import Sessions

_OWN: LiteralString = (
    "select layer, name from {stage} where layer = %s and name = %s and token = %s and staged is null for share"
)
SORT_MEMORY = "128MB"  # for the key's index of a new table: sorts 3M integer keys in memory


class PostgresStage:
    """An open stage: segments are copied into it, then it is closed.

    Made by `PostgresTarget.open_stage`.

    Attributes:
        place: the hidden table.
        plan: the segments of an earlier attempt, when this one goes on from it; else None.
        earlier: the run whose stage was taken over, or None.
        belongings: what a new table gets when it is closed, beside its columns and key.
        alike: the hidden table is made like the existing one, so that it may take its place.
        swap: it is to do so: when it is closed it gets that one's constraints and indexes.
        left_out: what a new table lacks of the source's, each with the reason; complete when it is closed.
        relation: the hidden table of a new one as it is when it is closed.
    """

    def __init__(
        self,
        sessions: Sessions,
        ledger: Ledger,
        request: StageRequest,
        row: StageRow,
        *,
        target: str,
        earlier: StageRow | None,
        alike: bool = False,
    ) -> None:
        self._sessions = sessions
        self._database = database = sessions.database
        self._ledger = ledger
        self._request = request
        self._target = target
        self._computed: frozenset[str] | None = None
        self.asset = request.asset
        self.token = row.token
        self.place = TableRef(ledger.stage_schema, row.place)
        self.earlier = None if earlier is None else earlier.run
        self.plan = None if earlier is None or earlier.plan is None else [Segment.from_json(s) for s in earlier.plan]
        self.heart = Heart(database, ledger, request.asset, row.token)
        self.belongings: Belongings | None = None
        self.alike = alike
        self.swap = False
        self.left_out: list[str] = []
        self.relation: Relation | None = None

    @property
    def identifier(self) -> sql.Identifier:
        """The hidden table for building SQL."""
        return sql.Identifier(self.place.schema or "", self.place.name)

    @property
    def key(self) -> tuple[str, ...]:
        """The key columns."""
        return self._request.schema.key

    def connect(self) -> AbstractContextManager[Connection]:
        """Open a session for the stage for a block; it counts on its own: see `Sessions`."""
        return self._sessions.connect(f"stage {owner()}")

    def lost(self) -> bool:
        """Whether a heartbeat found that somebody else has taken the stage."""
        return self.heart.lost

    # what an earlier attempt left

    def planned(self, segments: Sequence[Segment]) -> None:
        """Keep the segments, so that a later attempt finds the same ones."""
        with self.connect() as connection, translated(self._database.label, "plan the stage", connection=connection):
            statement = self._ledger.sql("update {stage} set plan = %s where layer = %s and name = %s and token = %s")
            plan = json.dumps([segment.to_json() for segment in segments])
            if connection.execute(statement, (plan, self.asset.layer, self.asset.name, self.token)).rowcount != 1:
                raise gone(self.asset)

    def done(self) -> Mapping[SegmentId, Digest]:
        """Return the whole segments that a killed attempt left, with the digest of the rows that lie there."""
        with self.connect() as connection, translated(self._database.label, "read the stage", connection=connection):
            known = self._segments(connection)
            if not known:
                return {}
            columns = self._described(connection)
            form = shape(columns)
            query = sql.SQL(
                "select xmin::text, pg_catalog.count(*), pg_catalog.sum({})::text from {} group by xmin"
            ).format(row_hash(columns), self.identifier)
            found = {row[0]: digest_of(row[1:], form) for row in connection.execute(query).fetchall()}
        digests = {name: found.get(xid, Digest(0, 0, form)) for name, (xid, _) in known.items()}
        return {name: digest for name, digest in digests.items() if digest.rows == known[name][1]}

    def _segments(self, connection: Connection) -> dict[SegmentId, tuple[str, int]]:
        query = self._ledger.sql("select id, xid, rows from {segment} where layer = %s and name = %s")
        return {row[0]: (row[1], row[2]) for row in connection.execute(query, (self.asset.layer, self.asset.name))}

    def computed(self) -> frozenset[str]:
        """Return the columns that the stage's server computes."""
        if self._computed is None:
            with (
                self.connect() as connection,
                translated(self._database.label, "read the stage", connection=connection),
            ):
                self._computed = frozenset(column.name for column in self._described(connection) if column.generated)
        return self._computed

    def _described(self, connection: Connection) -> tuple[PgColumn, ...]:
        relation = describe(connection, self.place, label=self._database.label)
        return relation.pick(self._request.schema.names)

    def drop(self, keep: Iterable[SegmentId]) -> None:
        """Delete all rows but those of the named whole segments."""
        kept = set(keep)
        with (
            self.connect() as connection,
            translated(self._database.label, "clean the stage", connection=connection),
            connection.transaction(),
        ):
            self._own(connection)
            xids = [xid for name, (xid, _) in self._segments(connection).items() if name in kept]
            statement = sql.SQL("delete from {} where xmin::text <> all(%s)").format(self.identifier)
            connection.execute(statement, (xids,))
            connection.execute(
                self._ledger.sql("delete from {segment} where layer = %s and name = %s and id <> all(%s)"),
                (self.asset.layer, self.asset.name, list(kept)),
            )

    # writing

    def copy(
        self,
        segment: SegmentId,
        source: Connection,
        query: sql.Composable,
        target: Connection,
        columns: Sequence[str],
        *,
        binary: bool,
        labels: tuple[str, str],
        progress: Progress | None = None,
        stopping: Stopping = never,
    ) -> int:
        """Copy one segment in one transaction; returns its rows.

        Args:
            source, query: a connection inside the snapshot and its `copy … to stdout`.
            target: a session of `connect()`.
            columns: the columns that the query gives, in order.

        Raises:
            SeqMoved: somebody else has taken the stage.
            KeyInvalid: a null in the key of a stage that is made like its table.
            Interrupted, MillraceError: see `pump.relay`.
        """
        self._begin(target)
        into = copy_in(self.identifier, [sql.Identifier(name) for name in columns], binary=binary)
        try:
            count = relay(source, query, target, into, labels=labels, progress=progress, stopping=stopping)
        except ContractBroken as error:
            cause = error.__cause__
            if isinstance(cause, psycopg.errors.NotNullViolation) and cause.diag.column_name in self.key:
                raise self._no_key(cause) from error
            raise
        self._end(target, segment, count)
        return count

    def load(self, segment: SegmentId, blocks: Iterable[bytes], target: Connection, columns: Sequence[str]) -> int:
        """Load one segment from CSV with a header in one transaction; returns its rows.

        Args:
            blocks: the CSV, in pieces of any size.
            target: a session of `connect()`.
            columns: the CSV's columns, in order; those that the stage's server computes are left out.

        Raises:
            SeqMoved: somebody else has taken the stage.
            MillraceError: the server refuses a value.
        """
        names = sql.SQL(", ").join(sql.Identifier(name) for name in columns)
        computed = self.computed()
        self._begin(target)
        try:
            with translated(self._database.label, f"load {self.asset}", connection=target):
                into: sql.Composable = self.identifier
                if computed:
                    into = sql.Identifier("pg_temp", "millrace_load")
                    target.execute(
                        sql.SQL(
                            "create temporary table millrace_load on commit drop as select {} from {} limit 0"
                        ).format(names, self.identifier)
                    )
                listed = sql.SQL("({})").format(names) if columns else sql.SQL("")  # a table may have none
                statement = sql.SQL("copy {} {} from stdin (format csv, header true)").format(into, listed)
                with target.cursor() as cursor:
                    with cursor.copy(statement) as copy:
                        for block in blocks:
                            copy.write(block)
                    count = cursor.rowcount
                if computed:
                    plain = sql.SQL(", ").join(sql.Identifier(name) for name in columns if name not in computed)
                    target.execute(
                        sql.SQL("insert into {} ({plain}) overriding system value select {plain} from {}").format(
                            self.identifier, into, plain=plain
                        )
                    )
        except BaseException:
            with contextlib.suppress(psycopg.Error):
                target.execute("rollback")
            raise
        self._end(target, segment, count)
        return count

    def replaced(self, there: sql.Composable, columns: Sequence[PgColumn]) -> Digest:
        """Return the digest of those of some rows, as they stand in FROM, whose keys are staged."""
        same = sql.SQL(" and ").join(sql.SQL("s.{0} = t.{0}").format(sql.Identifier(name)) for name in self.key)
        staged = sql.SQL("exists (select from {} s where {})").format(self.identifier, same)
        query = digest_query(sql.SQL("{} as t").format(there), columns, staged)
        with self.connect() as connection, translated(self._database.label, "look for keys", connection=connection):
            return digest_of(connection.execute(query).fetchone() or (0, 0), shape(columns))

    def _begin(self, target: Connection) -> None:
        with translated(self._database.label, "write the stage", connection=target):
            target.execute("begin; set local synchronous_commit = off")  # the publish's commit flushes all before it

    def _end(self, target: Connection, segment: SegmentId, count: int) -> None:
        """Record a segment that was written whole, and commit it."""
        with translated(self._database.label, "write the stage", connection=target):
            try:
                written = target.execute(
                    self._ledger.sql(
                        "with own as ({own}) insert into {segment} "
                        "select layer, name, %s, %s, pg_current_xact_id()::xid from own",
                        own=self._ledger.sql(_OWN),
                    ),
                    (self.asset.layer, self.asset.name, self.token, segment, count),
                ).rowcount
                if written != 1:
                    raise gone(self.asset)
                target.execute("commit")
            except BaseException:
                with contextlib.suppress(psycopg.Error):
                    target.execute("rollback")
                raise
        reach("postgres.stage.segment")

    def _own(self, connection: Connection) -> None:
        """Lock the stage's row against a take-over until the transaction ends. Raises SeqMoved when it was taken."""
        query = self._ledger.sql(_OWN)
        if connection.execute(query, (self.asset.layer, self.asset.name, self.token)).fetchone() is None:
            raise gone(self.asset)

    # the end

    def close(self, position: Position, expected: Mapping[SegmentId, Digest], **detail: Any) -> Staged:
        """End the stage: build the key and what else belongs to a new table, gather statistics, remember what it is.

        Args:
            position: the source position after the publish.
            expected: digest of each staged segment, taken from the source in the snapshot.
            detail: further facts for the publish; JSON.

        Raises:
            KeyInvalid: a null in the key, or the same key twice.
            SeqMoved: somebody else has taken the stage.
        """
        request = self._request
        doing = f"finish the stage of {self.asset}"
        with self.connect() as connection, translated(self._database.label, doing, connection=connection):
            with connection.transaction():
                self._own(connection)
                names = self._finish(connection)
                staged = Staged(
                    asset=request.asset,
                    load=request.load,
                    run=request.run,
                    step=request.step,
                    target=self._target,
                    base=request.base,
                    how=request.how,  # type: ignore[arg-type]
                    place=str(self.place),
                    schema=request.schema,
                    position=position,
                    expected=dict(expected),
                    rows=sum(digest.rows for digest in expected.values()),
                    inputs=dict(request.inputs),
                    code=request.code,
                    date=request.date,
                    detail={"token": self.token, "table": self.place.name, "names": names, **detail},
                )
                connection.execute(
                    self._ledger.sql("update {stage} set staged = %s where layer = %s and name = %s and token = %s"),
                    (json.dumps(staged.to_json()), self.asset.layer, self.asset.name, self.token),
                )
            if request.how != "create":  # the publish joins it; of a new table the server's own vacuum takes care
                connection.execute(sql.SQL("analyze {}").format(self.identifier))
        reach("postgres.stage.closed")
        return staged

    def _finish(self, connection: Connection) -> list[list[str]]:
        """Build the key and what else belongs to the table; return the names that indexes have and are to have."""
        connection.execute(sql.SQL("set local maintenance_work_mem = {}").format(sql.Literal(SORT_MEMORY)))
        if self.swap:
            return self._build_alike(connection)
        self._build_key(connection)
        if self._request.how != "create":
            return []
        belongings = self.belongings
        made = Made() if belongings is None else make_belongings(connection, self.place, belongings)
        self.left_out += made.left_out
        self.relation = describe(connection, self.place, label=self._database.label)
        for column in self.relation.columns:
            if column.identity or (belongings is not None and belongings.columns[column.name]["own"]):
                set_sequence(connection, self.identifier, column.name)
        return [list(pair) for pair in made.names]

    def _build_alike(self, connection: Connection) -> list[list[str]]:
        """Build the constraints and indexes of the existing table; what cannot be made shows at the publish."""
        there = describe(connection, TableRef(self.asset.layer, self.asset.name), label=self._database.label)
        try:
            made = make_belongings(connection, self.place, read_structure(connection, there))
        except psycopg.errors.UniqueViolation as error:
            key = ", ".join(sql_name(name) for name in self.key)
            if key and (error.diag.message_detail or "").startswith(f"Key ({key})="):
                raise self._no_key(error) from error
            raise
        return [list(pair) for pair in made.names]

    def _build_key(self, connection: Connection) -> None:
        if not self.key:
            return
        names = sql.SQL(", ").join(sql.Identifier(name) for name in self.key)
        try:
            connection.execute(
                sql.SQL("alter table {} add constraint {} primary key ({})").format(
                    self.identifier, sql.Identifier(cut(self.place.name, "_pkey")), names
                )
            )
        except (psycopg.errors.UniqueViolation, psycopg.errors.NotNullViolation) as error:
            raise self._no_key(error) from error

    def _no_key(self, error: psycopg.Error) -> KeyInvalid:
        names = ", ".join(sql_name(name) for name in self.key)
        null = isinstance(error, psycopg.errors.NotNullViolation)
        twice = redact(error.diag.message_detail or "")  # columns and values; the rest names our hidden table
        return KeyInvalid(
            f"({names}) is not a key of {self.asset}: {'it holds nulls' if null else 'two rows have the same'}",
            where=str(self.asset),
            detail=[f"{sql_name(error.diag.column_name or names)} is null"] if null else [twice] if twice else [],
            hint="name the columns that tell rows apart: --key, or key: in the project",
        )

    def release(self) -> None:
        """Stop being the owner and leave the stage for a later attempt."""
        self.heart.stop()
        release(self._database, self._ledger, self.asset, self.token)

    def discard(self) -> None:
        """Drop the stage."""
        self.heart.stop()
        with self.connect() as connection:
            drop(connection, self._ledger, self.asset, self.token)


def set_sequence(connection: Connection, table: sql.Identifier, column: str) -> None:
    """Set a column's own sequence past its highest value (of a descending one: its lowest), when it has one behind."""
    found = connection.execute(
        "select pg_catalog.pg_get_serial_sequence(%s, %s)", (table.as_string(connection), column)
    ).fetchone()
    if found is None or found[0] is None:
        return
    name = sql.SQL(found[0])  # quoted by the server
    connection.execute(
        sql.SQL(
            "select pg_catalog.setval(%s::regclass, least(greatest(m.farthest, p.seqmin), p.seqmax)) "
            "from pg_catalog.pg_sequence p, {name} s, lateral (select case when p.seqincrement > 0 "
            "then pg_catalog.max({column})::int8 else pg_catalog.min({column})::int8 end as farthest from {table}) m "
            "where p.seqrelid = %s::regclass and (m.farthest = s.last_value and not s.is_called"
            " or pg_catalog.sign(p.seqincrement::float8) * (m.farthest - s.last_value) > 0)"
        ).format(column=sql.Identifier(column), table=table, name=name),
        (found[0], found[0]),
    )


def staged_relation(connection: Connection, ledger: Ledger, staged: Staged, known: Relation | None = None) -> Relation:
    """Describe a closed stage's table, unless it is known.

    Raises:
        SeqMoved: it is not that stage any more.
    """
    row = row_of(connection, ledger, staged.asset)
    if row is None or row.staged is None or row.token != staged.detail["token"]:
        raise gone(staged.asset)
    return known or describe(connection, TableRef(ledger.stage_schema, row.place), label=ledger.label)


def schema_of(columns: Sequence[PgColumn], key: Sequence[str]) -> Schema:
    """Return the portable schema of some columns under a key."""
    return Schema(tuple(column.column() for column in columns), tuple(key))
