"""The journal: what runs did and are doing. Losing it loses history, never data or position: ledgers hold those.

One SQLite file in WAL mode, shared by processes of one machine. This module imports SQLAlchemy: import it only
where a journal is opened.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from millrace.core.names import AssetId
from millrace.core.plan import Step
from millrace.core.secrets import redact
from millrace.core.staged import CheckResult, LedgerEntry, Proof, Staged
from millrace.engine import tables as t
from millrace.engine.records import DONE_PHASES, LeaseRow, RunInfo, RunRow, RunStatus, StepRow, now
from millrace.errors import MillraceError, NewerFormat, NotFound, PermissionMissing, TransientFailure, UsageError

BUSY_SECONDS = 30.0  # writers hold the lock for milliseconds; more means a stopped process inside a transaction


class Journal:
    """Runs, steps, leases, checks.

    Args:
        place: path of the file, or a `sqlite:///` URL; made when it is missing. `:memory:` keeps no file.

    Raises:
        NewerFormat: a newer version of Millrace wrote it.
        MillraceError: the file is not a journal, or cannot be written.
    """

    def __init__(self, place: str | Path) -> None:
        text = str(place)
        if "://" in text and not text.startswith("sqlite:///"):
            raise UsageError("the journal is a SQLite file", where=redact(text), hint="give the path of a file")
        self.path = Path(text.removeprefix("sqlite:///"))
        # in memory there is one connection for all threads, and one transaction at a time
        self._mutex: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        pool: dict[str, Any] = {}
        if str(self.path) == ":memory:":
            self._mutex = threading.RLock()
            pool = {"poolclass": sa.StaticPool}
        with self._translated():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            arguments = {"timeout": BUSY_SECONDS, "check_same_thread": False}
            self._engine = sa.create_engine(f"sqlite:///{self.path}", connect_args=arguments, **pool)
            sa.event.listen(self._engine, "connect", _prepare)
            sa.event.listen(self._engine, "begin", _begin)
            self._open()

    def _open(self) -> None:
        with self._engine.begin() as connection:
            found = None
            if sa.inspect(connection).has_table("format"):
                found = connection.scalar(sa.select(t.format_table.c.version))
            if found is not None and found > t.FORMAT:
                raise NewerFormat(
                    f"the journal has format {found}, this version of Millrace knows up to {t.FORMAT}",
                    where=str(self.path),
                    hint="use the newer version of Millrace here; nothing was changed",
                )
            t.metadata.create_all(connection)
            if found is None:
                connection.execute(sa.insert(t.format_table).values(version=t.FORMAT))

    def close(self) -> None:
        """Close the file; a closed journal opens again by itself when it is used (one in memory is empty then)."""
        self._engine.dispose()

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (sa.exc.DBAPIError, sqlite3.Error, OSError) as error:
            cause = str(getattr(error, "orig", None) or error)
            where = str(self.path)
            if "locked" in cause or "busy" in cause:
                raise TransientFailure(
                    "the journal is locked by another process", where=where, detail=[cause]
                ) from error
            if "readonly" in cause or "unable to open" in cause or isinstance(error, OSError):
                raise PermissionMissing(
                    "the journal cannot be opened for writing", where=where, detail=[cause]
                ) from error
            raise MillraceError(
                "the journal cannot be read",
                where=where,
                detail=[cause],
                hint="move the file away: its history is lost, data and positions are kept in the targets",
            ) from error

    @contextlib.contextmanager
    def _write(self) -> Iterator[sa.Connection]:
        with self._mutex, self._translated(), self._engine.begin() as connection:
            yield connection

    def _rows(self, query: sa.Select[Any]) -> Sequence[sa.RowMapping]:
        with self._write() as connection:
            return connection.execute(query).mappings().all()

    # runs

    def start_run(self, run: RunInfo, *, host: str, pid: int | None, command: str = "") -> None:
        """Note a run as running; one that is there already (resumed, or in phases) keeps its beginning."""
        values = {"status": "running", "ended": None, "host": host, "pid": pid}
        with self._write() as connection:
            changed = connection.execute(sa.update(t.runs).where(t.runs.c.id == run.id).values(values)).rowcount
            if not changed:
                connection.execute(
                    sa.insert(t.runs).values(
                        id=run.id,
                        project=run.project,
                        env=run.env,
                        pipeline=run.pipeline,
                        started=run.started,
                        logical_time=run.logical_time,
                        command=redact(command),
                        **values,
                    )
                )

    def end_run(self, run: str, status: RunStatus) -> None:
        """Note how a run ended, or that an orchestrator has not ended it yet."""
        with self._write() as connection:
            ended = None if status == "running" else now()
            connection.execute(sa.update(t.runs).where(t.runs.c.id == run).values(status=status, ended=ended))

    def list_runs(self, limit: int = 20) -> list[RunRow]:
        """Return the latest runs, newest first."""
        query = sa.select(t.runs).order_by(t.runs.c.started.desc(), t.runs.c.id).limit(limit)
        return [RunRow(**row) for row in self._rows(query)]

    def run(self, prefix: str) -> RunRow:
        """Return a run by its id or the beginning of it.

        Raises:
            NotFound: no run, or more than one, begins so.
        """
        found = self.begin_with(prefix)
        exact = [row for row in found if row.id == prefix]
        if len(exact or found) == 1:
            return (exact or found)[0]
        if found:
            raise NotFound(f"{len(found)} runs begin with {prefix!r}", detail=[", ".join(row.id for row in found[:5])])
        raise NotFound(f"there is no run {prefix!r}", hint="see them with: millrace runs")

    def begin_with(self, prefix: str) -> list[RunRow]:
        """Return the runs whose id begins so, newest first."""
        query = sa.select(t.runs).where(t.runs.c.id.startswith(prefix, autoescape=True))
        return [RunRow(**row) for row in self._rows(query.order_by(t.runs.c.started.desc()))]

    def running(self) -> list[RunRow]:
        """Return the runs that are noted as running, dead ones too."""
        return [RunRow(**row) for row in self._rows(sa.select(t.runs).where(t.runs.c.status == "running"))]

    # steps

    def begin_steps(self, run: str, plan: Iterable[Step]) -> None:
        """Note the steps of a run as waiting, those that it does not know yet."""
        with self._write() as connection:
            known: set[str] = set(connection.scalars(sa.select(t.steps.c.key).where(t.steps.c.run == run)))
            new = [
                {
                    "run": run,
                    "key": step.key,
                    "position": position,
                    "kind": step.kind,
                    "label": step.label,
                    "target": step.target,
                    "phase": "waiting",
                    "message": "",
                }
                for position, step in enumerate(plan)
                if step.key not in known
            ]
            if new:
                connection.execute(sa.insert(t.steps), new)

    def note_step(self, run: str, key: str, **facts: Any) -> None:
        """Change what is known of a step.

        Args:
            run: id of the run.
            key: the step's key.
            **facts: columns of the table: `staged`, `proofs`, `entries` as values, `bases` by asset, `error` as JSON.
        """
        values = dict(facts)
        if "entries" in values:
            values["entry"] = values.pop("entries")
        for name in ("staged", "proofs", "entry"):
            if values.get(name) is not None:
                values[name] = json.dumps([value.to_json() for value in values[name]])
        if values.get("bases") is not None:
            values["bases"] = json.dumps([[asset.layer, asset.name, seq] for asset, seq in values["bases"].items()])
        if values.get("error") is not None:
            values["error"] = json.dumps(_clean(values["error"]))
        if "message" in values:
            values["message"] = redact(values["message"])
        with self._write() as connection:
            connection.execute(sa.update(t.steps).where(t.steps.c.run == run, t.steps.c.key == key).values(**values))

    def note_started(self, run: str, key: str) -> None:
        """Note that a step begins; one that began earlier keeps its time."""
        with self._write() as connection:
            connection.execute(
                sa.update(t.steps)
                .where(t.steps.c.run == run, t.steps.c.key == key, t.steps.c.started.is_(None))
                .values(started=now())
            )

    def step(self, run: str, key: str) -> StepRow | None:
        """Return a step of a run."""
        query = sa.select(t.steps).where(t.steps.c.run == run, t.steps.c.key == key)
        return next((_step(row) for row in self._rows(query)), None)

    def steps(self, run: str) -> list[StepRow]:
        """Return the steps of a run in the plan's order."""
        query = sa.select(t.steps).where(t.steps.c.run == run).order_by(t.steps.c.position)
        return [_step(row) for row in self._rows(query)]

    def last(self, key: str, phase: str | None = None) -> StepRow | None:
        """Return what the latest run that began a step knows of it, with `phase` the latest that came to that."""
        query = (
            sa.select(t.steps)
            .where(t.steps.c.key == key, t.steps.c.started.is_not(None))
            .order_by(t.steps.c.started.desc())
            .limit(1)
        )
        if phase is not None:
            query = query.where(t.steps.c.phase == phase)
        return next((_step(row) for row in self._rows(query)), None)

    def open_steps(self, run: str | None = None) -> list[StepRow]:
        """Return the unfinished steps that may have left a stage, of one run or of all."""
        query = sa.select(t.steps).where(t.steps.c.bases.is_not(None), t.steps.c.phase.not_in(DONE_PHASES))
        if run is not None:
            query = query.where(t.steps.c.run == run)
        return [_step(row) for row in self._rows(query)]

    # checks

    def note_checks(self, run: str, key: str, results: Sequence[CheckResult]) -> None:
        """Keep the checks' results of a step, instead of those of an earlier attempt."""
        rows = [
            {
                "run": run,
                "step": key,
                "layer": result.asset.layer,
                "asset": result.asset.name,
                "name": result.name,
                "passed": result.passed,
                "blocking": result.blocking,
                "failing": result.failing,
                "detail": redact(result.detail),
                "sample": json.dumps(_clean(list(result.sample))),
            }
            for result in results
        ]
        with self._write() as connection:
            connection.execute(sa.delete(t.checks).where(t.checks.c.run == run, t.checks.c.step == key))
            if rows:
                connection.execute(sa.insert(t.checks), rows)

    def checks(self, run: str, key: str | None = None) -> list[CheckResult]:
        """Return the checks' results of a run, or of one of its steps."""
        query = sa.select(t.checks).where(t.checks.c.run == run).order_by(t.checks.c.id)
        if key is not None:
            query = query.where(t.checks.c.step == key)
        return [
            CheckResult(
                row["name"],
                AssetId(row["layer"], row["asset"]),
                row["passed"],
                row["blocking"],
                row["failing"],
                row["detail"],
                tuple(json.loads(row["sample"])),
            )
            for row in self._rows(query)
        ]

    # what was published last, and stages of strangers

    def remember(self, scope: str, target: str, entries: Sequence[LedgerEntry]) -> None:
        """Keep the seq of assets as the last that was seen in their target."""
        with self._write() as connection:
            for entry in entries:
                key = {"scope": scope, "target": target, "layer": entry.asset.layer, "name": entry.asset.name}
                connection.execute(sa.delete(t.published).where(*(t.published.c[name] == key[name] for name in key)))
                values = {"seq": entry.seq, "load": str(entry.load), "run": entry.run, "time": entry.time}
                connection.execute(sa.insert(t.published).values(**key, **values))

    def forget(self, scope: str, target: str, asset: AssetId) -> None:
        """Forget the last seq of an asset: its target was restored, and that is accepted."""
        with self._write() as connection:
            connection.execute(
                sa.delete(t.published).where(
                    t.published.c.scope == scope,
                    t.published.c.target == target,
                    t.published.c.layer == asset.layer,
                    t.published.c.name == asset.name,
                )
            )

    def remembered(self, scope: str, target: str) -> dict[AssetId, tuple[int, str, str]]:
        """Return asset → (seq, run, time) of the last publishes that were seen in a target."""
        query = sa.select(t.published).where(t.published.c.scope == scope, t.published.c.target == target)
        return {AssetId(row["layer"], row["name"]): (row["seq"], row["run"], row["time"]) for row in self._rows(query)}

    def stranger(self, run: str) -> str:
        """Return since when a run that is not ours is known, from now on when it was not."""
        with self._write() as connection:
            seen: str | None = connection.scalar(sa.select(t.strangers.c.seen).where(t.strangers.c.run == run))
            if seen is None:
                seen = now()
                connection.execute(sa.insert(t.strangers).values(run=run, seen=seen))
            return seen

    # leases

    def lease(self, name: str) -> LeaseRow | None:
        """Return who holds a lease, dead or alive."""
        return next((LeaseRow(**row) for row in self._rows(sa.select(t.leases).where(t.leases.c.name == name))), None)

    def leases(self, run: str) -> list[LeaseRow]:
        """Return the leases of a run, dead or alive."""
        return [LeaseRow(**row) for row in self._rows(sa.select(t.leases).where(t.leases.c.run == run))]

    def take_lease(self, lease: LeaseRow, instead_of: LeaseRow | None) -> bool:
        """Write a lease if it is still held by `instead_of`, or by nobody; says whether it was."""
        with self._write() as connection:
            row = connection.execute(sa.select(t.leases).where(t.leases.c.name == lease.name)).mappings().first()
            if (None if row is None else LeaseRow(**row)) != instead_of:
                return False
            connection.execute(sa.delete(t.leases).where(t.leases.c.name == lease.name))
            values = {column: getattr(lease, column) for column in LeaseRow.__slots__}
            connection.execute(sa.insert(t.leases).values(values))
            return True

    def beat(self, names: Sequence[str], owner: str, run: str) -> set[str]:
        """Renew the heartbeat of leases; returns those that are no longer ours."""
        mine = (t.leases.c.name.in_(names), t.leases.c.owner == owner, t.leases.c.run == run)
        with self._write() as connection:
            connection.execute(sa.update(t.leases).where(*mine).values(heartbeat=time.time()))
            return set(names) - set(connection.scalars(sa.select(t.leases.c.name).where(*mine)))

    def drop_leases(self, names: Sequence[str], owner: str, run: str) -> None:
        """Release leases, those that are still ours."""
        with self._write() as connection:
            connection.execute(
                sa.delete(t.leases).where(t.leases.c.name.in_(names), t.leases.c.owner == owner, t.leases.c.run == run)
            )


def _prepare(connection: sqlite3.Connection, _record: object) -> None:
    """Set up a new connection; transactions are begun by `_begin`, not by the driver."""
    connection.isolation_level = None
    for attempt in range(100):
        try:
            connection.execute("pragma journal_mode = wal")
            break
        except sqlite3.OperationalError:  # two processes make the file at once: this pragma does not wait
            if attempt == 99:
                raise
            time.sleep(0.02)
    connection.execute("pragma synchronous = normal")
    connection.execute("pragma foreign_keys = on")


def _begin(connection: sa.Connection) -> None:
    """Begin with the write lock: a read that turns into a write later would fail at once instead of waiting."""
    connection.exec_driver_sql("begin immediate")


def _clean(value: Any) -> Any:
    """Return JSON types with known secrets hidden in every text."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {key: _clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]
    return value


def _step(row: sa.RowMapping) -> StepRow:
    def many(name: str) -> list[Any]:
        found: list[Any] = json.loads(row[name]) if row[name] else []
        return found

    plain = {
        name: row[name] for name in StepRow.__slots__ if name not in ("bases", "staged", "proofs", "entries", "error")
    }
    return StepRow(
        **plain,
        bases={AssetId(layer, name): seq for layer, name, seq in json.loads(row["bases"])} if row["bases"] else None,
        staged=tuple(Staged.from_json(data) for data in many("staged")),
        proofs=tuple(Proof.from_json(data) for data in many("proofs")),
        entries=tuple(LedgerEntry.from_json(data) for data in many("entry")),
        error=json.loads(row["error"]) if row["error"] else None,
    )
