"""The journal: what runs did and are doing. Losing it loses history, never data or position: ledgers hold those.

One SQLite file in WAL mode, shared by processes of one machine.
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

from millrace.core.names import AssetId
from millrace.core.plan import Step
from millrace.core.secrets import redact
from millrace.core.staged import CheckResult, LedgerEntry, Proof, Staged
from millrace.engine.records import DONE_PHASES, LeaseRow, RunInfo, RunRow, RunStatus, StepRow, now
from millrace.engine.tables import FORMAT, STEP_FACTS, TABLES
from millrace.errors import MillraceError, NewerFormat, NotFound, PermissionMissing, TransientFailure, UsageError

BUSY_SECONDS = 30.0  # writers hold the lock for milliseconds; more means a stopped process inside a transaction
_LEASE = "select * from leases where name = ?"


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
        self._mutex = threading.RLock()  # one connection for all threads, and one transaction at a time
        self._connection: sqlite3.Connection | None = None
        with self._translated():
            self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self._write() as connection:
                self._prepare(connection)
        except BaseException:
            self.close()
            raise

    def _prepare(self, connection: sqlite3.Connection) -> None:
        found = None
        if connection.execute("select 1 from sqlite_master where type = 'table' and name = 'format'").fetchone():
            row = connection.execute("select version from format").fetchone()
            found = None if row is None else row["version"]
        if found is not None and found > FORMAT:
            raise NewerFormat(
                f"the journal has format {found}, this version of Millrace knows up to {FORMAT}",
                where=str(self.path),
                hint="use the newer version of Millrace here; nothing was changed",
            )
        for statement in TABLES:
            connection.execute(statement)
        if found is None:
            connection.execute("insert into format values (?)", (FORMAT,))

    def close(self) -> None:
        """Close the file; a closed journal opens again by itself when it is used (one in memory is empty then)."""
        with self._mutex:
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.close()

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            cause = str(error)
            where = str(self.path)
            if "locked" in cause or "busy" in cause:
                raise TransientFailure(
                    "the journal is locked by another process", where=where, detail=[cause]
                ) from error
            if "full" in cause:
                raise MillraceError(
                    "the journal cannot be written", where=where, detail=[cause], hint="make room there, then run again"
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

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = _open(self.path)
        return self._connection

    @contextlib.contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        """One transaction; it begins with the write lock: a read that turns into a write later would fail at once."""
        with self._mutex, self._translated():
            connection = self._opened()
            try:
                connection.execute("begin immediate")
                yield connection
                connection.execute("commit")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("rollback")
                raise

    def _rows(self, query: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> list[dict[str, Any]]:
        with self._mutex, self._translated():
            return [dict(row) for row in self._opened().execute(query, values).fetchall()]

    # runs

    def start_run(self, run: RunInfo, *, host: str, pid: int | None, command: str = "") -> None:
        """Note a run as running; one that is there already (resumed, or in phases) keeps its beginning."""
        first = (run.id, run.project, run.env, run.pipeline, run.started, run.logical_time, host, pid, redact(command))
        with self._write() as connection:
            connection.execute(
                "insert into runs (id, project, env, pipeline, started, logical_time, host, pid, command, status)"
                " values (?, ?, ?, ?, ?, ?, ?, ?, ?, 'running')"
                " on conflict (id) do update set"
                " status = excluded.status, ended = null, host = excluded.host, pid = excluded.pid",
                first,
            )

    def end_run(self, run: str, status: RunStatus) -> None:
        """Note how a run ended, or that an orchestrator has not ended it yet."""
        with self._write() as connection:
            ended = None if status == "running" else now()
            connection.execute("update runs set status = ?, ended = ? where id = ?", (status, ended, run))

    def list_runs(self, limit: int = 20) -> list[RunRow]:
        """Return the latest runs, newest first."""
        query = "select * from runs order by started desc, id limit ?"
        return [RunRow(**row) for row in self._rows(query, (limit,))]

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
        query = "select * from runs where substr(id, 1, length(:prefix)) = :prefix order by started desc"
        return [RunRow(**row) for row in self._rows(query, {"prefix": prefix})]

    def running(self) -> list[RunRow]:
        """Return the runs that are noted as running, dead ones too."""
        return [RunRow(**row) for row in self._rows("select * from runs where status = 'running'")]

    # steps

    def begin_steps(self, run: str, plan: Iterable[Step]) -> None:
        """Note the steps of a run as waiting, those that it does not know yet."""
        rows = [(run, step.key, position, step.kind, step.label, step.target) for position, step in enumerate(plan)]
        with self._write() as connection:
            connection.executemany(
                "insert into steps (run, key, position, kind, label, target, phase, message)"
                " values (?, ?, ?, ?, ?, ?, 'waiting', '') on conflict do nothing",
                rows,
            )

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
            changes = ", ".join(STEP_FACTS[name] for name in values)
            statement = " ".join(("update steps set", changes, "where run = :of_run and key = :of_key"))
            connection.execute(statement, {**values, "of_run": run, "of_key": key})

    def note_started(self, run: str, key: str) -> None:
        """Note that a step begins; one that began earlier keeps its time."""
        with self._write() as connection:
            connection.execute(
                "update steps set started = ? where run = ? and key = ? and started is null", (now(), run, key)
            )

    def step(self, run: str, key: str) -> StepRow | None:
        """Return a step of a run."""
        rows = self._rows("select * from steps where run = ? and key = ?", (run, key))
        return next((_step(row) for row in rows), None)

    def steps(self, run: str) -> list[StepRow]:
        """Return the steps of a run in the plan's order."""
        return [_step(row) for row in self._rows("select * from steps where run = ? order by position", (run,))]

    def last(self, key: str, phase: str | None = None) -> StepRow | None:
        """Return what the latest run that began a step knows of it, with `phase` the latest that came to that."""
        query = (
            "select * from steps where key = :key and started is not null and coalesce(:phase, phase) = phase"
            " order by started desc limit 1"
        )
        return next((_step(row) for row in self._rows(query, {"key": key, "phase": phase})), None)

    def open_steps(self, run: str | None = None) -> list[StepRow]:
        """Return the unfinished steps that may have left a stage, of one run or of all."""
        query = "select * from steps where bases is not null and coalesce(:run, run) = run"
        return [_step(row) for row in self._rows(query, {"run": run}) if row["phase"] not in DONE_PHASES]

    # checks

    def note_checks(self, run: str, key: str, results: Sequence[CheckResult]) -> None:
        """Keep the checks' results of a step, instead of those of an earlier attempt."""
        rows = [
            (
                *(run, key, result.asset.layer, result.asset.name, result.name, result.passed, result.blocking),
                *(result.failing, redact(result.detail), json.dumps(_clean(list(result.sample)))),
            )
            for result in results
        ]
        with self._write() as connection:
            connection.execute("delete from checks where run = ? and step = ?", (run, key))
            connection.executemany(
                "insert into checks (run, step, layer, asset, name, passed, blocking, failing, detail, sample)"
                " values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                rows,
            )

    def checks(self, run: str, key: str | None = None) -> list[CheckResult]:
        """Return the checks' results of a run, or of one of its steps."""
        query = "select * from checks where run = :run and coalesce(:step, step) = step order by id"
        return [
            CheckResult(
                row["name"],
                AssetId(row["layer"], row["asset"]),
                bool(row["passed"]),
                bool(row["blocking"]),
                row["failing"],
                row["detail"],
                tuple(json.loads(row["sample"])),
            )
            for row in self._rows(query, {"run": run, "step": key})
        ]

    # what was published last, and stages of strangers

    def remember(self, scope: str, target: str, entries: Sequence[LedgerEntry]) -> None:
        """Keep the seq of assets as the last that was seen in their target."""
        rows = [
            (scope, target, entry.asset.layer, entry.asset.name, entry.seq, str(entry.load), entry.run, entry.time)
            for entry in entries
        ]
        with self._write() as connection:
            connection.executemany("insert or replace into published values (?, ?, ?, ?, ?, ?, ?, ?)", rows)

    def forget(self, scope: str, target: str, asset: AssetId) -> None:
        """Forget the last seq of an asset: its target was restored, and that is accepted."""
        with self._write() as connection:
            connection.execute(
                "delete from published where scope = ? and target = ? and layer = ? and name = ?",
                (scope, target, asset.layer, asset.name),
            )

    def remembered(self, scope: str, target: str) -> dict[AssetId, tuple[int, str, str]]:
        """Return asset → (seq, run, time) of the last publishes that were seen in a target."""
        rows = self._rows("select * from published where scope = ? and target = ?", (scope, target))
        return {AssetId(row["layer"], row["name"]): (row["seq"], row["run"], row["time"]) for row in rows}

    def stranger(self, run: str) -> str:
        """Return since when a run that is not ours is known, from now on when it was not."""
        with self._write() as connection:
            connection.execute("insert into strangers values (?, ?) on conflict do nothing", (run, now()))
            seen: str = connection.execute("select seen from strangers where run = ?", (run,)).fetchone()["seen"]
            return seen

    # leases

    def lease(self, name: str) -> LeaseRow | None:
        """Return who holds a lease, dead or alive."""
        return next((LeaseRow(**row) for row in self._rows(_LEASE, (name,))), None)

    def leases(self, run: str) -> list[LeaseRow]:
        """Return the leases of a run, dead or alive."""
        return [LeaseRow(**row) for row in self._rows("select * from leases where run = ?", (run,))]

    def take_lease(self, lease: LeaseRow, instead_of: LeaseRow | None) -> bool:
        """Write a lease if it is still held by `instead_of`, or by nobody; says whether it was."""
        with self._write() as connection:
            row = connection.execute(_LEASE, (lease.name,)).fetchone()
            if (None if row is None else LeaseRow(**dict(row))) != instead_of:
                return False
            values = [getattr(lease, column) for column in LeaseRow.__slots__]
            connection.execute("insert or replace into leases values (?, ?, ?, ?, ?, ?, ?)", values)
            return True

    def beat(self, names: Sequence[str], owner: str, run: str) -> set[str]:
        """Renew the heartbeat of leases; returns those that are no longer ours."""
        statement = "update leases set heartbeat = ? where name = ? and owner = ? and run = ?"
        with self._write() as connection:
            time_now = time.time()
            return {name for name in names if not connection.execute(statement, (time_now, name, owner, run)).rowcount}

    def drop_leases(self, names: Sequence[str], owner: str, run: str) -> None:
        """Release leases, those that are still ours."""
        with self._write() as connection:
            connection.executemany(
                "delete from leases where name = ? and owner = ? and run = ?", [(name, owner, run) for name in names]
            )


def _open(path: Path) -> sqlite3.Connection:
    """Open the file; transactions are begun by `_write`, not by the driver."""
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    connection.row_factory = sqlite3.Row
    try:
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
    except BaseException:
        connection.close()
        raise
    return connection


def _clean(value: Any) -> Any:
    """Return JSON types with known secrets hidden in every text."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {key: _clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]
    return value


def _step(row: Mapping[str, Any]) -> StepRow:
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
