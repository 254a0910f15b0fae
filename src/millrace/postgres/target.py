"""One PostgreSQL database as a target: stage, prove, publish, with its ledger in the database itself."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager

import psycopg
from psycopg import sql

from millrace.core.digest import COUNTED
from millrace.core.events import reach
from millrace.core.names import AssetId, TableRef, short_run
from millrace.core.ports import KEEP_SECONDS, StageRequest
from millrace.core.secrets import redact
from millrace.core.staged import LedgerEntry, Level, Proof, Staged
from millrace.errors import (
    CommitUnknown,
    ConnectionRefused,
    Handling,
    Interrupted,
    MillraceError,
    PermissionMissing,
    ProofFailed,
    TransientFailure,
)
from millrace.postgres import ownership
from millrace.postgres.catalog import PgColumn, Relation, describe, find
from millrace.postgres.ddl import create_like, create_table
from millrace.postgres.digest import digest_of, digest_query, shape
from millrace.postgres.history import CURRENT
from millrace.postgres.ledger import Ledger, moved
from millrace.postgres.names import sql_name
from millrace.postgres.ownership import Heart, owner
from millrace.postgres.publish import commit, publish_in
from millrace.postgres.quarantine import Store
from millrace.postgres.session import Connection, Database, translate, translated
from millrace.postgres.sessions import Sessions
from millrace.postgres.sqlstates import grant
from millrace.postgres.stage import PostgresStage, staged_relation
from millrace.postgres.swap import create_alike
from millrace.postgres.usertypes import bring_types, types_there

ATTEMPTS = 8  # of a publish that meets locks; with the waits between them some ten seconds
LOST_ATTEMPTS = 5  # to reach the server again after a commit without an answer
# lock not available, deadlock, serialization, in use; another publish made the schema
AGAIN = frozenset({"55P03", "40P01", "40001", "55006", "42P06"})


class PostgresTarget:
    """One database as a target.

    Args:
        database: where it is; a connection is taken for each call.
        name: the target's name in the runtime.
        ledger_schema: schema of the ledger; stages lie in `<ledger_schema>_stage`.
        sessions: how connections are opened; None: each time anew, as many as are needed.
    """

    def __init__(
        self, database: Database, name: str, ledger_schema: str = "_millrace", sessions: Sessions | None = None
    ) -> None:
        self.database = database
        self.sessions = sessions or Sessions(database)
        self.name = name
        self.book = Ledger(ledger_schema, database.label, remember=self.sessions.keep)
        self._hearts: dict[str, Heart] = {}
        self._open: dict[str, PostgresStage] = {}  # what this process staged, by token

    def connect(self, purpose: str) -> AbstractContextManager[Connection]:
        """Open a pinned connection in autocommit mode for a block; it counts on its own: see `Sessions`."""
        return self.sessions.connect(f"{purpose} {owner()}")

    # looking

    def ledger(self, asset: AssetId) -> LedgerEntry | None:
        """Return the asset's last publish, or None; nothing is made for it. Raises NewerFormat, PermissionMissing."""
        with self.connect("ledger") as connection:
            return self.book.read(connection, asset)

    def relation(self, asset: AssetId, connection: Connection | None = None) -> Relation | None:
        """Describe the asset's table, or return None when there is none. Raises PermissionMissing."""
        if connection is None:
            with self.connect("describe") as own:
                return self.relation(asset, own)
        ref = TableRef(asset.layer, asset.name)
        return find(connection, ref, label=self.database.label)

    # staging

    def open_stage(
        self,
        request: StageRequest,
        columns: Sequence[PgColumn],
        source: Connection | None,
        *,
        origin: str,
        altered: bool = False,
        alike: bool = False,
    ) -> PostgresStage:
        """Make the asset's stage, or go on from what a dead attempt left.

        Args:
            request: `how` is one of create, sync, merge, append, truncate, snapshot.
            columns: the source's columns, in order; a new table gets their types.
            source: a connection to the source, to look up its types; None: it is out of reach.
            origin: fingerprint of what is staged (source, condition, columns, position); a stage of another origin is
                dropped.
            altered: the publish alters the target's columns to those of the stage.
            alike: the stage is made like the existing table, so that it may take its place.

        Raises:
            TargetBusy: a live run is at it.
            PermissionMissing: naming the GRANT.
            ContractBroken: a type of the source is missing here.
        """
        label = self.database.label
        asset = request.asset
        with self.connect("stage") as connection:
            new = request.how == "create" or self.relation(asset, connection) is None
            self.check_rights(connection, asset, "create" if new else request.how)
            self.book.ensure(connection)

            def make(inside: Connection, place: sql.Identifier) -> None:
                if new or altered:
                    types = (
                        types_there(inside, columns, label=label)
                        if source is None
                        else bring_types(source, inside, columns, label=label)
                    )
                    create_table(inside, place, columns, types)
                else:
                    there = describe(inside, TableRef(asset.layer, asset.name), label=label)
                    if alike:
                        create_alike(inside, place, there)
                    else:
                        create_like(inside, place, there, request.schema.names)

            doing = f"make a stage of {asset}"
            with translated(label, doing, connection=connection, privilege="CREATE"):
                taken = ownership.take(connection, self.book, request, origin, make)
        opened = PostgresStage(
            *(self.sessions, self.book, request, taken.row), target=self.name, earlier=taken.earlier, alike=alike
        )
        self._hearts[taken.row.token] = opened.heart
        self._open[taken.row.token] = opened
        return opened

    def _known(self, staged: Staged) -> Relation | None:
        """Return what this process saw of a stage's table when it closed it: nobody but its owner alters it."""
        opened = self._open.get(staged.detail.get("token", ""))
        return None if opened is None else opened.relation

    def check_rights(self, connection: Connection, asset: AssetId, how: str) -> None:
        """Refuse early what the publish would be refused for. Raises PermissionMissing, naming the GRANT."""
        user = connection.info.user
        schema = sql_name(asset.layer)
        with translated(self.database.label, "look at the rights", connection=connection):
            row = connection.execute(
                "select n.oid, pg_catalog.has_schema_privilege(n.oid, 'CREATE'), "
                "pg_catalog.has_schema_privilege(n.oid, 'USAGE') from pg_catalog.pg_namespace n where n.nspname = %s",
                (asset.layer,),
            ).fetchone()
            if row is None:
                may = connection.execute(
                    "select pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE'), "
                    "pg_catalog.current_database()"
                ).fetchone() or (False, "")
                if not may[0]:
                    raise self._denied(
                        user, f"create the schema {schema}", grant("CREATE", "database", sql_name(may[1]), user)
                    )
                return
            if how == "create":
                if not (row[1] and row[2]):
                    hint = grant("USAGE, CREATE", "schema", schema, user)
                    raise self._denied(user, f"create tables in schema {schema}", hint)
                return
            table = sql_name(asset.layer, asset.name)
            for right in ("INSERT", "UPDATE", "DELETE"):
                found = connection.execute(
                    "select pg_catalog.has_table_privilege(c.oid, %s) from pg_catalog.pg_class c "
                    "where c.relnamespace = %s and c.relname = %s",
                    (right, row[0], asset.name),
                ).fetchone()
                if found is not None and not found[0]:
                    rights = "SELECT, INSERT, UPDATE, DELETE"
                    raise self._denied(user, f"{right.lower()} rows of {table}", grant(rights, "table", table, user))

    def _denied(self, user: str, doing: str, hint: str) -> PermissionMissing:
        return PermissionMissing(f"{user} may not {doing}", where=self.database.label, hint=hint)

    # proving

    def prove(self, staged: Staged) -> Proof:
        """Digest the stage where it lies, or count it, and compare that with what the source held.

        Raises:
            ProofFailed: they differ.
            SeqMoved: somebody else has taken the stage.
        """
        reach("postgres.prove")
        label = self.database.label
        expected = staged.whole()
        try:
            with self.connect("prove") as connection, translated(label, f"prove {staged.asset}", connection=connection):
                if staged.how == "position":
                    relation = describe(connection, TableRef(staged.asset.layer, staged.asset.name), label=label)
                else:
                    relation = staged_relation(connection, self.book, staged, self._known(staged))
                    self._keep_alive(staged)
                if staged.how == "position" and staged.detail["level"] != "table":
                    return Proof(staged.asset, staged.load, staged.detail["level"], expected)
                columns = relation.pick(staged.schema.names)
                rows: sql.Composable = relation.identifier
                if staged.how == "position":
                    store = Store(connection, self.book, staged.asset, columns, relation.pick(staged.schema.key))
                    rows = rows if store.empty else sql.SQL("{} as t").format(store.everything(rows))
                if staged.counted:
                    query, form = sql.SQL("select pg_catalog.count(*), 0 from {}").format(rows), COUNTED
                else:
                    where = CURRENT if staged.detail.get("versions") else None
                    query, form = digest_query(rows, columns, where), shape(columns)
                found = digest_of(connection.execute(query).fetchone() or (0, 0), form)
        except BaseException:
            self._let_go(staged)
            raise
        if (found.rows, found.total) != (expected.rows, expected.total):
            self._let_go(staged)
            raise ProofFailed(
                f"the stage of {staged.asset} is not what the source holds",
                where=str(staged.asset),
                detail=[f"rows {found.rows:,}, expected {expected.rows:,}; sums {found.total} and {expected.total}"],
                hint="nothing was published; run again",
            )
        level: Level = "table" if staged.how == "position" else "counted" if staged.counted else "transfer"
        return Proof(staged.asset, staged.load, level, found)

    def _keep_alive(self, staged: Staged) -> None:
        """Become the heartbeat of a stage that another process has closed."""
        token = staged.detail.get("token")
        if token is None or token in self._hearts:
            return
        heart = Heart(self.database, self.book, staged.asset, token)
        self._hearts[token] = heart
        heart.beat()

    # publishing

    def publish(
        self, staged: Sequence[Staged], proofs: Sequence[Proof], expect: Mapping[AssetId, int]
    ) -> Sequence[LedgerEntry]:
        """Make stages visible in one transaction: see `publish.publish_in`.

        Raises:
            SeqMoved: someone else published, or has taken a stage.
            GuardRefused, ProofFailed, ContractBroken: nothing was changed.
            TransientFailure: locks were not to be had.
            CommitUnknown: the answer to the commit was lost and the server does not come back.
        """
        for one in staged:
            if expect.get(one.asset, one.base) != one.base:
                self._let_go(one)
                raise moved(one.asset, self.ledger(one.asset))
        for one in staged:
            self._keep_alive(one)
        try:
            entries = self._patiently(staged, proofs)
        except BaseException:
            for one in staged:
                self._let_go(one)
            raise
        for one in staged:
            self._stop_heart(one)
        return entries

    def _patiently(self, staged: Sequence[Staged], proofs: Sequence[Proof]) -> tuple[LedgerEntry, ...]:
        names = ", ".join(str(one.asset) for one in staged)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._once(staged, proofs)
            except psycopg.Error as error:
                if attempt == ATTEMPTS or not _again(error):
                    user = self.database.parameters.get("user")
                    raise translate(error, where=self.database.label, doing=f"publish {names}", role=user) from error
            time.sleep(random.uniform(0.02, 0.1) * 2 ** min(attempt, 5))  # noqa: S311 (jitter, no secret)
        raise AssertionError

    def _once(self, staged: Sequence[Staged], proofs: Sequence[Proof]) -> tuple[LedgerEntry, ...]:
        entries: tuple[LedgerEntry, ...] | None = None
        try:
            with self.connect("stage") as connection:  # inside the transaction it is called otherwise
                self.book.ensure(connection)
                connection.execute("begin")
                try:
                    entries = self._apply(connection, staged, proofs)
                except BaseException:
                    with contextlib.suppress(psycopg.Error):
                        connection.execute("rollback")
                    raise
                commit(connection)
        except psycopg.Error as error:
            said_no = error.sqlstate is not None and not error.sqlstate.startswith(("08", "57P"))
            if entries is None or said_no:  # the commit was not sent, or the server said that it did not happen
                raise
            return self._adopt(staged, entries, error)
        return entries

    def _apply(
        self, connection: Connection, staged: Sequence[Staged], proofs: Sequence[Proof]
    ) -> tuple[LedgerEntry, ...]:
        """Publish in the connection's open transaction; the caller commits."""
        return publish_in(connection, self.book, staged, proofs, self._known)

    def _adopt(
        self, staged: Sequence[Staged], entries: Sequence[LedgerEntry], error: psycopg.Error
    ) -> tuple[LedgerEntry, ...]:
        """Find out from the ledger whether a commit without an answer happened.

        Raises:
            CommitUnknown: the server cannot be asked.
            TransientFailure: it did not happen.
        """
        names = ", ".join(str(one.asset) for one in staged)
        for attempt in range(1, LOST_ATTEMPTS + 1):
            try:
                with self.connect("adopt") as connection, connection.transaction():
                    connection.execute(sql.SQL("set local lock_timeout = {}").format(sql.Literal("10s")))
                    for one in staged:
                        self.book.lock(connection, one.asset)  # waits until the other session has ended
                    found = [self.book.published(connection, one.asset, one.load) for one in staged]
            except (ConnectionRefused, psycopg.Error):
                time.sleep(0.2 * 2**attempt)
                continue
            there = tuple(entry for entry in found if entry is not None)
            if len(there) == len(staged):
                return there
            raise TransientFailure(
                f"the connection was lost while {names} was being published; it was not committed",
                where=self.database.label,
                detail=[redact(str(error)).strip().partition("\n")[0]],
            ) from error
        raise CommitUnknown(
            f"the commit of {names} was sent and no answer came",
            where=self.database.label,
            detail=[redact(str(error)).strip().partition("\n")[0]],
            hint="the ledger in the target decides: the next run reads it",
        ) from error

    # leaving

    def _stop_heart(self, staged: Staged) -> None:
        token = staged.detail.get("token", "")
        self._open.pop(token, None)
        heart = self._hearts.pop(token, None)
        if heart is not None:
            heart.stop()

    def _let_go(self, staged: Staged) -> None:
        """Stop being the owner of a stage; it stays for a later attempt."""
        self._stop_heart(staged)
        token = staged.detail.get("token")
        if token:
            ownership.release(self.database, self.book, staged.asset, token)

    def forget(self, stage: PostgresStage) -> None:
        """Stop the heart of an open stage that was released or discarded."""
        self._hearts.pop(stage.token, None)
        self._open.pop(stage.token, None)

    def give_up(self, stage: PostgresStage, error: BaseException) -> None:
        """Stop at an open stage after an error: dropped where no later attempt can use it, else left to be resumed."""
        self.forget(stage)
        fatal = isinstance(error, MillraceError) and error.handling is Handling.FATAL
        if fatal and not isinstance(error, Interrupted):
            stage.discard()
        else:
            stage.release()

    def discard(self, staged: Staged) -> None:
        """Drop a stage; no error when it is gone or has become somebody else's."""
        self._stop_heart(staged)
        token = staged.detail.get("token")
        if token is None:
            return
        with self.connect("discard") as connection:
            if self.book.known(connection):
                ownership.drop(connection, self.book, staged.asset, token)

    def stages(self) -> Iterable[Staged]:
        """Return the closed stages that lie here."""
        with (
            self.connect("stages") as connection,
            translated(self.database.label, "list the stages", connection=connection),
        ):
            if not self.book.known(connection):
                return []
            return [value for row in ownership.rows(connection, self.book) if (value := row.value()) is not None]

    def gc(self, live: Callable[[str], bool]) -> Sequence[str]:
        """Drop stages of runs that are not wanted any more and whose owner is dead, and tables that no stage names.

        Args:
            live: says of a run whether it lives or can be resumed. Who does not know a run says yes; a stage of which
                nothing was heard for KEEP_SECONDS is dropped all the same, so that killed copies without a project
                leave nothing for ever.

        Returns:
            Names of what was dropped.
        """
        dropped = []
        with self.connect("gc") as connection, translated(self.database.label, "drop leftovers", connection=connection):
            if not self.book.known(connection):
                return []
            connection.execute(sql.SQL("set lock_timeout = {}").format(sql.Literal(ownership.LOCK_MS)))
            for row in ownership.rows(connection, self.book):
                if row.live or (live(row.run) and row.silent < KEEP_SECONDS):
                    continue
                ownership.evict(connection, row)
                if ownership.drop(connection, self.book, row.asset, row.token):
                    dropped.append(f"stage of {row.asset} (run {short_run(row.run)})")
            orphans = connection.execute(
                self.book.sql(
                    "select c.relname::text from pg_catalog.pg_class c "
                    "join pg_catalog.pg_namespace n on n.oid = c.relnamespace "
                    "where n.nspname = %s and c.relkind in ('r', 'p') "
                    "and not exists (select from {stage} s where s.place = c.relname::text)"
                ),
                (self.book.stage_schema,),
            ).fetchall()
            for (name,) in orphans:
                connection.execute(
                    sql.SQL("drop table if exists {}").format(sql.Identifier(self.book.stage_schema, name))
                )
                dropped.append(f"table {name} without a stage")
            connection.execute("set lock_timeout = 0")  # the session is used again
        return dropped


def _again(error: psycopg.Error) -> bool:
    """Say whether a publish that failed so may simply be tried again."""
    if error.sqlstate == "23505" and (error.diag.table_name or "").startswith("pg_"):
        return True  # two publishes made the same schema
    return error.sqlstate in AGAIN
