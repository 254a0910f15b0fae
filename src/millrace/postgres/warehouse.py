"""A PostgreSQL database as the warehouse: readers see views, builds are made in hidden schemas beside them.

A publish group is one generation (`generations.py`). Tools such as dbt make its relations; the publish, one
transaction, points the public views at them (`create or replace view`, so grants and other people's views on them
stay) and writes the ledger. A public view keeps its columns in their order; new ones come at the end; a column that
is gone or has another type would break its readers and blocks the publish. Readers hold locks on the views only as
long as their transactions last; the publish waits for no one: it gives way after LOCK_MS and tries again.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import psycopg
from psycopg import sql

from millrace.core.events import reach
from millrace.core.names import AssetId, TableRef, short_run
from millrace.core.ports import StageRequest
from millrace.core.position import Versions
from millrace.core.secrets import Secret
from millrace.core.staged import Counts, LedgerEntry, Proof, Staged, entry_for
from millrace.errors import ContractBroken, GuardRefused, NotFound, ProofFailed, SeqMoved, StepFailed, TransientFailure
from millrace.postgres.catalog import Relation, describe, exists
from millrace.postgres.generations import Generation, Generations, gone
from millrace.postgres.ledger import moved
from millrace.postgres.names import sql_name
from millrace.postgres.ownership import ttl
from millrace.postgres.session import Connection, Database, translate, translated
from millrace.postgres.sessions import Sessions
from millrace.postgres.target import AGAIN, PostgresTarget

LOCK_MS = 75  # well under deadlock_timeout: readers and the publish would deadlock over several views otherwise
PATIENCE = 30.0  # seconds until a publish that meets readers again and again gives up


@dataclass(frozen=True, slots=True)
class Where:
    """How a tool of its own reaches the database, as a session found it.

    Attributes:
        parameters: host, port, user, dbname and TLS settings.
    """

    parameters: Mapping[str, str]
    password: Secret | None


class PostgresWarehouse(PostgresTarget):
    """One database as the warehouse.

    Args:
        database: where it is.
        name: the target's name in the runtime.
        ledger_schema: schema of the ledger; of a database that copies go to, it must be theirs.
        sessions: where its sessions come from; by default each is opened for its block.
    """

    def __init__(
        self,
        database: Database,
        name: str = "warehouse",
        ledger_schema: str = "_millrace",
        sessions: Sessions | None = None,
    ) -> None:
        super().__init__(database, name, ledger_schema, sessions)
        self._generations = Generations(self.book)
        self.patience = PATIENCE

    def where(self) -> Where:
        """Return host, port, user and so on as libpq found them, service and password files included."""
        with self.connect("look") as connection:
            info = connection.info
            found = {"host": info.host, "port": str(info.port), "user": info.user, "dbname": info.dbname}
            tls = ("sslmode", "sslcert", "sslkey", "sslrootcert")
            found |= {name: value for name in tls if (value := info.get_parameters().get(name))}
            return Where(found, Secret(info.password) if info.password else None)

    # staging

    def staged(self, run: str, load: int) -> tuple[Staged, ...]:
        """Return what a load has staged already; all its members, since they are recorded at once."""
        with self.connect("stages") as connection:
            found = [one for made in self._generations.of_run(connection, run) for one in made.members]
        return tuple(one for one in found if one.load == load)

    def begin(
        self, run: str, schemas: Sequence[str], carried: Iterable[AssetId], inputs: Mapping[AssetId, int]
    ) -> Generation:
        """Make a generation for a run: empty schemas, and clones of what goes on from load to load.

        An earlier one of the run is dropped: a build that was broken off is not gone on with.

        Args:
            run: whose it is.
            schemas: public names.
            carried: incremental models and snapshots.
            inputs: tables that the build reads, with the ledger's seq that the step has seen.

        Raises:
            NotFound: an input is not in this database.
            PermissionMissing: naming the GRANT.
        """
        label = self.database.label
        with self.connect("clone") as connection, translated(label, "make a generation", connection=connection):
            self._generations.ensure(connection)
            for asset, seq in inputs.items():
                entry = self.book.read(connection, asset)
                if entry is None or entry.seq < seq:
                    raise NotFound(
                        f"dbt reads {asset}, which was not copied into the warehouse's database",
                        where=self.database.place,
                        hint="copy it there: to: connection.schema, with the connection that the warehouse is in",
                    )
            for old in self._generations.of_run(connection, run):
                self._generations.drop(connection, old)
            made = self._generations.take(connection, run, schemas)
            reach("warehouse.stage.taken")
            self._generations.carry(connection, made, carried)
        reach("warehouse.stage.cloned")
        return made

    def abandon(self, made: Generation) -> None:
        """Drop a generation whose build failed."""
        with self.connect("discard") as connection, translated(self.database.label, "drop a generation"):
            self._generations.drop(connection, made)

    def stage_results(
        self,
        made: Generation,
        requests: Sequence[StageRequest],
        details: Mapping[AssetId, Mapping[str, Any]] | None = None,
    ) -> tuple[Staged, ...]:
        """Record all that one tool made in a generation, at once: schema and rows.

        Raises:
            StepFailed: an asset is not there.
            SeqMoved: the generation is gone.
        """
        label = self.database.label
        staged = []
        with self.connect("stage") as connection, translated(label, "read what was built", connection=connection):
            for request in requests:
                relation = self._made(connection, made, request.asset)
                row = connection.execute(sql.SQL("select count(*) from {}").format(relation.identifier)).fetchone()
                staged.append(
                    Staged(
                        asset=request.asset,
                        load=request.load,
                        run=request.run,
                        step=request.step,
                        target=self.name,
                        base=request.base,
                        how="member",
                        place=made.place,
                        schema=relation.schema(),
                        position=Versions(dict(request.inputs)),
                        rows=row[0] if row else 0,
                        inputs=dict(request.inputs),
                        code=request.code,
                        date=request.date,
                        detail=dict((details or {}).get(request.asset, {})),
                    )
                )
            self._generations.record(connection, made, staged)
        reach("warehouse.stage.member")
        return tuple(staged)

    def _made(self, connection: Connection, made: Generation, asset: AssetId) -> Relation:
        ref = TableRef(asset.layer + made.suffix, asset.name)
        if not exists(connection, ref, label=self.database.label):
            raise StepFailed(
                f"{asset} was not made in the warehouse", where=f"{sql_name(*map(str, (ref.schema, ref.name)))}"
            )
        return describe(connection, ref, label=self.database.label)

    def opened(self, run: str) -> Generation:
        """Return the generation that a run has staged in. Raises SeqMoved when it is gone."""
        with self.connect("look") as connection:
            found = [one for one in self._generations.of_run(connection, run) if one.members]
        if not found:
            raise gone(run)
        return found[-1]

    # proving

    def prove(self, staged: Staged) -> Proof:
        """Compare the columns with those that readers see: see `prove_all`."""
        return self.prove_all([staged])[0]

    def prove_all(self, staged: Sequence[Staged]) -> tuple[Proof, ...]:
        """Refuse what would break readers, before anything is published.

        Raises:
            ContractBroken: a column of a public view is gone or has another type; names all of them.
            GuardRefused: something else stands where a public view would.
        """
        reach("warehouse.prove")
        label = self.database.label
        with self.connect("prove") as connection, translated(label, "look at the views", connection=connection):
            found = {one.place: one for one in self._generations.all(connection)}
            if lost := [one for one in staged if one.place not in found]:
                raise gone(lost[0].run)
            self._views(connection, [(one, found[one.place]) for one in staged])
        return tuple(Proof(one.asset, one.load, "none") for one in staged)

    def _views(
        self, connection: Connection, staged: Sequence[tuple[Staged, Generation]]
    ) -> list[tuple[AssetId, sql.Composed]]:
        """Return the statements that point the public views at what is staged."""
        broken: list[str] = []
        statements = []
        for one, made in staged:
            old, new = self._public(connection, one.asset), self._made(connection, made, one.asset)
            columns = list(new.names)
            if old is not None:
                broken += changes(one.asset, old, new)
                columns = [*old.names, *(name for name in columns if name not in old.names)]
            statement = sql.SQL("create or replace view {} as select {} from {}").format(
                sql.Identifier(one.asset.layer, one.asset.name),
                sql.SQL(", ").join(map(sql.Identifier, columns)) if columns else sql.SQL(""),
                made.relation(one.asset),
            )
            statements.append((one.asset, statement))
        if broken:
            names = list(dict.fromkeys(line.partition(":")[0] for line in broken))
            views = ", ".join(sql_name(*name.split(".", 1)) for name in names)
            raise ContractBroken(
                f"{', '.join(names)} would lose or change columns that readers see",
                where=self.database.label,
                detail=broken,
                hint="keep them in the model: cast to the old type, or null::type as name. If the change is meant, "
                f"first drop the old view and what was built on it, then grant its rights again: drop view {views};",
            )
        return statements

    def _public(self, connection: Connection, asset: AssetId) -> Relation | None:
        """Return the public view, or None. Raises GuardRefused for what is not ours."""
        ref = TableRef(asset.layer, asset.name)
        if not exists(connection, ref, label=self.database.label):
            return None
        found = describe(connection, ref, label=self.database.label)
        if found.kind == "v" and self.book.read(connection, asset) is not None:
            return found
        kind = {"v": "view", "m": "materialized view", "f": "foreign table"}.get(found.kind, "table")
        name = sql_name(asset.layer, asset.name)
        raise GuardRefused(
            f"{asset} is a {kind} that Millrace did not make: a view is to stand there",
            where=self.database.label,
            detail=["a plain `dbt build` makes such"] if kind == "table" else [],
            hint=f"rename it or move it away: alter {kind} {name} rename to …;",
        )

    # publishing

    def _apply(
        self, connection: Connection, staged: Sequence[Staged], proofs: Sequence[Proof]
    ) -> tuple[LedgerEntry, ...]:
        """Point all views at the generation and write the ledger, in the open transaction; the caller commits."""
        connection.execute(
            sql.SQL("set local lock_timeout = {}; set local idle_in_transaction_session_timeout = {}").format(
                sql.Literal(LOCK_MS), sql.Literal(max(1_000, int(ttl() * 1_000)))
            )
        )
        self._generations.lock(connection)
        earlier = [self.book.published(connection, one.asset, one.load) for one in staged]
        if all(earlier):
            return tuple(entry for entry in earlier if entry is not None)
        made = self._to_publish(connection, staged)
        proven = {(proof.asset, proof.load): proof for proof in proofs}
        entries = []
        now = datetime.now(UTC).isoformat(timespec="seconds")
        for one in sorted(staged, key=lambda one: one.asset):
            found = self.book.read(connection, one.asset, lock=True)
            if (found.seq if found else 0) != one.base:
                raise moved(one.asset, found)
            if (proof := proven.get((one.asset, one.load))) is None:
                raise ProofFailed(f"{one.asset} has no proof, so it is not published")
            counts = Counts(inserted=one.rows) if one.base == 0 else Counts()
            entry = entry_for(one, proof, time=now, level=proof.level, digest=None, rows=one.rows, counts=counts)
            entries.append(entry)
        for asset, statement in self._views(connection, [(one, made) for one in staged]):
            self.book.make_schema(connection, asset.layer)
            connection.execute(statement)
        for entry in entries:
            self.book.write(connection, entry)
        self._generations.note_published(connection, made)
        return tuple(entries)

    def _to_publish(self, connection: Connection, staged: Sequence[Staged]) -> Generation:
        """Return the generation of all of `staged`. Raises SeqMoved unless it still may be published."""
        found = {one.place: one for one in self._generations.all(connection)}
        places = {one.place for one in staged}
        made = found.get(next(iter(places)))
        if len(places) != 1 or made is None or made.published:
            raise gone(staged[0].run)
        now = max((one.number for one in found.values() if one.published), default=0)
        if now != made.base:
            raise SeqMoved(
                f"someone else published the warehouse since run {short_run(made.run)} began",
                where=self.database.label,
                detail=[f"the run began from generation {made.base or 'none'}, now {now} is published"],
                hint="run again: it starts from what is published now",
            )
        return made

    def _patiently(self, staged: Sequence[Staged], proofs: Sequence[Proof]) -> tuple[LedgerEntry, ...]:
        deadline = time.monotonic() + self.patience
        while True:
            try:
                return self._once(staged, proofs)
            except psycopg.Error as error:
                if error.sqlstate not in AGAIN:
                    user = self.database.parameters.get("user")
                    raise translate(error, where=self.database.label, doing="publish the views", role=user) from error
                if time.monotonic() > deadline:
                    raise self._blocked(staged) from error
            time.sleep(random.uniform(0.02, 0.2))  # noqa: S311 (jitter, no secret)

    def _blocked(self, staged: Sequence[Staged]) -> TransientFailure:
        """Return the error for views that readers hold on to, with who they are."""
        names = [f"{one.asset.layer}.{one.asset.name}" for one in staged]
        with self.connect("blocked") as connection:
            found = connection.execute(
                "select a.pid, a.usename, coalesce(nullif(a.application_name, ''), '?'), a.state, "
                "extract(epoch from pg_catalog.now() - a.xact_start)::int, min(n.nspname || '.' || c.relname) "
                "from pg_catalog.pg_locks l join pg_catalog.pg_stat_activity a on a.pid = l.pid "
                "join pg_catalog.pg_class c on c.oid = l.relation "
                "join pg_catalog.pg_namespace n on n.oid = c.relnamespace "
                "where l.granted and l.pid <> pg_catalog.pg_backend_pid() and n.nspname || '.' || c.relname = any(%s) "
                "group by 1, 2, 3, 4, 5 order by 5 desc nulls last limit 5",
                (names,),
            ).fetchall()
        return TransientFailure(
            f"the views could not be published within {self.patience:.0f} s: others are reading them",
            where=self.database.label,
            detail=[
                f"session {pid} of {user} ({app}, {state or '?'}, in its transaction for {age or 0} s) holds {view}"
                for pid, user, app, state, age, view in found
            ],
            hint="end those transactions, or run again when they have ended; readers still see the version before",
        )

    # leaving

    def discard(self, staged: Staged) -> None:
        """Drop the generation that something was staged in, with all else in it; no error when it is gone."""
        with self.connect("discard") as connection, translated(self.database.label, "drop a generation"):
            for old in self._generations.of_run(connection, staged.run):
                if old.place == staged.place:
                    self._generations.drop(connection, old)

    def stages(self) -> Iterable[Staged]:
        """Return what is staged in generations that are not published."""
        with self.connect("stages") as connection:
            found = self._generations.all(connection)
        return [one for made in found if not made.published for one in made.members]

    def gc(self, live: Callable[[str], bool]) -> Sequence[str]:
        """Drop what readers do not see any more, and what runs left that are not live."""
        label = self.database.label
        dropped = []
        with self.connect("gc") as connection, translated(label, "drop old generations", connection=connection):
            found = self._generations.all(connection)
            seen = max((one.number for one in found if one.published), default=0)
            for old in found:
                wanted = old.number == seen if old.published else live(old.run)
                if not wanted and self._generations.drop(connection, old):
                    dropped.append(self._generations.describe(old))
        return dropped


def changes(asset: AssetId, old: Relation, new: Relation) -> list[str]:
    """Return what readers of a view would miss in another relation, a line for each column."""
    kept = {column.name: column for column in new.columns}
    lines = []
    for column in old.columns:
        now = kept.get(column.name)
        if now is None:
            lines.append(f"{asset}: column {column.name} ({column.type}) is gone")
        elif now.type != column.type:
            lines.append(f"{asset}: column {column.name} was {column.type}, is {now.type}")
        elif now.collation != column.collation:
            lines.append(f"{asset}: column {column.name} has another collation: {now.collation or 'default'}")
    return lines
