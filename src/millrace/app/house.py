"""A project in an environment, ready to plan, run and be asked."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from millrace.app.explain import explain
from millrace.app.extras import needed_extras, require
from millrace.app.parsed import ParsedModels
from millrace.app.runtime import Runtime
from millrace.core.names import AssetId
from millrace.core.plan import Freshness, Plan, Step
from millrace.core.ports import Target
from millrace.core.staged import LedgerEntry
from millrace.errors import AuthenticationFailed, ConnectionRefused, MillraceError, UsageError, did_you_mean
from millrace.project import Project, load_project

if TYPE_CHECKING:
    from millrace.engine.journal import Journal
    from millrace.engine.records import RunResult, StepOutcome
    from millrace.engine.retry import Retries
    from millrace.engine.runner import Engine
    from millrace.engine.session import RunOptions
    from millrace.postgres.session import Database

STATE = ".millrace"
RUN_ID = re.compile(r"\w[\w.-]{0,199}", re.ASCII)  # it names files, and orchestrators choose it


@dataclass(frozen=True, slots=True)
class QueryResult:
    """Rows of a query.

    Attributes:
        numeric: which columns are figures.
        truncated: whether there are more rows than were asked for.
    """

    columns: tuple[str, ...]
    numeric: tuple[bool, ...]
    rows: tuple[tuple[Any, ...], ...]
    truncated: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class Relation:
    """A table of the warehouse, as the planner names it."""

    schema: str
    name: str


@dataclass(frozen=True, slots=True)
class DbtRelations:
    """What a dbt project makes and reads, as the planner asks for it."""

    models: tuple[Relation, ...]
    sources: tuple[Relation, ...]


def _relations(assets: Sequence[AssetId]) -> tuple[Relation, ...]:
    return tuple(Relation(asset.layer, asset.name) for asset in assets)


class House:
    """A project in one environment.

    Args:
        project: as read from its files.
        full_refresh: steps read everything and forget positions.
        replace_foreign: copies may take over targets with data that Millrace never wrote.
        allow_deletes: copies may delete more than `max_delete`.
        interval: (start, end) of a backfill: copies make only these rows of their cursor equal; either may be None.
    """

    def __init__(
        self,
        project: Project,
        *,
        full_refresh: bool = False,
        replace_foreign: bool = False,
        allow_deletes: bool = False,
        interval: tuple[str | None, str | None] = (None, None),
    ) -> None:
        self._interval = interval
        self.project = project
        self.environment = project.environment
        self.full_refresh = full_refresh
        self._lifted = {"replace": replace_foreign, "allow_deletes": allow_deletes}
        self.state = project.root / STATE
        schemas = {name: connection.ledger_schema for name, connection in project.settings.connections.items()}
        self.runtime = Runtime(
            project.root,
            self.state / "cache",
            self._databases(),
            self._targets(),
            folders=self._folders(),
            ledger_schemas=schemas,
            most={name: connection.max_connections for name, connection in project.settings.connections.items()},
        )

    def _folders(self) -> Mapping[str, Callable[[], Path]]:
        def maker(name: str) -> Callable[[], Path]:
            return lambda: Path(self.project.folder_path(name))

        return {name: maker(name) for name, one in self.project.settings.connections.items() if one.type == "files"}

    def _databases(self) -> Mapping[str, Callable[[contextlib.ExitStack], Database]]:
        def maker(name: str) -> Callable[[contextlib.ExitStack], Database]:
            def make(closing: contextlib.ExitStack) -> Database:
                from millrace.postgres.session import database_from_url

                embedded = self.project.connection(name).embedded
                if embedded is not None:
                    from millrace.app.embedded import embedded_url

                    seed = self.project.connection(name).seed
                    given = None if seed is None else self.project.root / seed
                    url = closing.enter_context(embedded_url(self.project.root / embedded, name, given))
                    return database_from_url(url, name)
                return database_from_url(self.project.connection_url(name), name)

            return make

        return {name: maker(name) for name, one in self.project.settings.connections.items() if one.type != "files"}

    def _targets(self) -> Mapping[str, Callable[[], Target]]:
        def lake() -> Target:
            from millrace.lake.target import LakeTarget

            return LakeTarget(Path(self.project.lake_path() or ""))

        def warehouse() -> Target:
            from millrace.duck.warehouse import WarehouseTarget

            return WarehouseTarget(Path(self.project.warehouse_path() or ""))

        def postgres_warehouse() -> Target:
            from millrace.postgres.session import database_from_url
            from millrace.postgres.target import PostgresTarget
            from millrace.postgres.warehouse import PostgresWarehouse

            name = self.project.warehouse_connection()
            if name is None:
                return PostgresWarehouse(database_from_url(self.project.warehouse_url(), "warehouse"))
            shared = self.runtime.target(f"connection:{name}")
            assert isinstance(shared, PostgresTarget)  # noqa: S101 - wired here
            return PostgresWarehouse(shared.database, ledger_schema=shared.book.schema, sessions=shared.sessions)

        def pages() -> Target:
            from millrace.dashboards.target import PageTarget

            return PageTarget(self.project.root / "pages")

        makers: dict[str, Callable[[], Target]] = {"pages": pages}
        if self.project.settings.lake is not None:
            makers["lake"] = lake
        if self.project.settings.warehouse is not None:
            makers["warehouse"] = postgres_warehouse if self.project.warehouse_in_postgres else warehouse
        return makers

    @cached_property
    def journal(self) -> Journal:
        """The journal of this project's runs."""
        from millrace.engine.journal import Journal

        self.state.mkdir(exist_ok=True)
        journal = Journal(self.project.state_url() or self.state / "state.db")
        self.runtime.closing.callback(journal.close)
        return journal

    @cached_property
    def whole(self) -> Plan:
        """The plan of everything."""
        return self._plan((), None)

    def plan(self, select: Sequence[str] = (), pipeline: str | None = None) -> Plan:
        """Return the plan of a selection, of a pipeline, or of everything."""
        plan = self._plan(tuple(select), pipeline) if select or pipeline else self.whole
        return plan if self._interval == (None, None) else self.of_interval(plan, *self._interval)

    def of_interval(self, plan: Plan, start: str | None, end: str | None) -> Plan:
        """Return a plan whose copies make an interval of their cursors equal. Raises UsageError where one cannot."""
        return Plan(tuple(self._backfill(step, start, end) if step.kind == "copy" else step for step in plan.steps))

    def _backfill(self, step: Step, start: str | None, end: str | None) -> Step:
        """Return a copy step as a backfill of the interval. Raises UsageError where it cannot be one."""
        copy = step.spec["copy"]
        if copy["cursor"] is None or copy["mode"] not in ("incremental", "backfill"):
            raise UsageError(
                f"{step.label} is not copied by a cursor, so --from and --to say nothing to it",
                hint="select the copies that are: --select …",
            )
        return replace(step, spec={**step.spec, "copy": {**copy, "mode": "backfill", "start": start, "end": end}})

    def _plan(self, select: Sequence[str], pipeline: str | None) -> Plan:
        from millrace.planner import build_plan
        from millrace.transform.dbt import graph

        dbt = None
        if self.project.dbt:
            self._require_extras()
            folder, cache = self.project.root / self.project.dbt, self.state / "cache"
            found = graph(folder, cache, postgres=self.project.warehouse_in_postgres)
            dbt = DbtRelations(_relations(found.assets), _relations(found.inputs))
        models = ParsedModels(self.project.models, self.state / "cache")
        plan = build_plan(self.project, dbt, inputs_of=models, select=select, pipeline=pipeline)
        models.keep()
        return Plan(tuple(replace(step, spec=self._told(step)) for step in plan.steps))

    def _told(self, step: Step) -> Mapping[str, Any]:
        """Return a step's spec with what this command line allows or asks for."""
        spec = {**step.spec, "full_refresh": True} if self.full_refresh else dict(step.spec)
        if step.kind == "copy":
            spec["copy"] = {**spec["copy"], **{name: True for name, lifted in self._lifted.items() if lifted}}
        return spec

    def explain(self, plan: Plan) -> list[tuple[Step, Freshness | MillraceError]]:
        """Say what a run of a plan would do, and why: see `explain.explain`."""
        self._require_extras()
        try:
            return explain(self.runtime, self.whole, plan)
        finally:
            self.runtime.let_go(())  # what was looked at now is not what a run reads

    def _require_extras(self) -> None:
        """Name all extras that the project needs and that are missing. Raises ExtraMissing."""
        require(f"the project {self.project.name}", needed_extras(self.project))

    def _retries(self, pipeline: str) -> Retries | None:
        """Return how often retryable errors are tried again in a pipeline; None: the engine's default."""
        from millrace.engine.retry import Retries
        from millrace.quality.rules import parse_age

        if not pipeline:
            return None
        found = self.project.pipeline(pipeline)
        return Retries(attempts=found.retries + 1, wait=parse_age(found.retry_delay).total_seconds(), longest=3600.0)

    def _engine(self, show_as: str, pipeline: str = "") -> Engine:
        from millrace.engine.runner import Engine
        from millrace.observe.progress import observer

        self._require_extras()
        return Engine(
            self.journal,
            self.runtime.kinds,
            self.runtime.targets,
            observer=observer(show_as, logs=self.state / "logs", root=self.project.root),
            work=self.state,
            project=self.project.name,
            env=self.environment,
            locate=self._locate,
            retries=self._retries(pipeline),
        )

    def _locate(self, asset: AssetId) -> str | None:
        """Return the target of an asset that a plan reads but does not make."""
        maker = next((step for step in self.whole.steps if asset in step.assets), None)
        return maker.target if maker else self.project.layers.get(asset.layer)

    def run(
        self,
        plan: Plan,
        *,
        pipeline: str = "",
        resume: str | None = None,
        logical_time: str | None = None,
        options: RunOptions | None = None,
        show_as: str = "terminal",
    ) -> RunResult:
        """Run a plan; failures are in the result. Raises UsageError for a logical time that is none."""
        at = logical_instant(logical_time)
        engine = self._engine(show_as, pipeline)
        return engine.run(plan, pipeline=pipeline, resume=resume, logical_time=at, options=options)

    def step(self, key: str, run: str, phase: str | None, *, logical_time: str | None = None) -> Sequence[StepOutcome]:
        """Run one phase of one step, or all of them.

        Raises:
            UsageError: no such step or phase, or an id or a time that is none.
        """
        if not RUN_ID.fullmatch(run):
            raise UsageError(f"{run!r} cannot name a run", hint="use letters, digits, _, - and ., at most 200 of them")
        at = logical_instant(logical_time)
        keys = [step.key for step in self.whole.steps]
        if key not in keys:
            raise UsageError(f"there is no step {key!r}", hint=did_you_mean(key, keys) or "see: millrace plan --json")
        shared = self.whole[key].spec.get("copy", {}).get("snapshot")
        if shared:
            what = f"{key} shares a snapshot with the other tables of {shared}, which holds within one process only"
            raise UsageError(what, hint="use millrace run, or leave snapshot: shared out")
        return self._engine("silent").phase(self.whole, key, run, phase, logical_time=at)

    def check_bundle(self, wanted: str | None) -> None:
        """Refuse to run other files than an orchestrator was rendered from.

        Raises:
            UsageError: the project's files differ.
        """
        if wanted and not self.project.bundle.startswith(wanted):
            raise UsageError(
                f"the project's files have hash {self.project.bundle[:16]}, the caller was made from {wanted}",
                hint="render the orchestrator's files again, or deploy the files that it was made from",
            )

    def entries(self) -> list[tuple[Step, AssetId, LedgerEntry | None]]:
        """Return every asset of the project with the step that makes it and its last publish.

        Raises:
            MillraceError: the first target that cannot be read.
        """
        entries = []
        for step, asset, found in self.outlook():
            if isinstance(found, MillraceError):
                raise found
            entries.append((step, asset, found))
        return entries

    def outlook(self) -> list[tuple[Step, AssetId, LedgerEntry | MillraceError | None]]:
        """Return what `entries` does, with the error in place of an entry that cannot be read. Raises ProjectError."""
        away: dict[str, MillraceError] = {}
        return [
            (step, asset, self._entry(step.target, asset, away)) for step in self.whole.steps for asset in step.assets
        ]

    def behind(self, entry: LedgerEntry, latest: Mapping[str, int]) -> dict[str, int]:
        """Return by how many loads an asset is behind its inputs; loads that changed no row do not count as behind.

        Args:
            entry: the asset's last publish.
            latest: the last load of every asset by name.
        """
        from millrace.steps.versions import settled

        lake = self.runtime.target("lake") if "lake" in self.runtime.targets else None
        now = settled(entry, {name: latest.get(name, seq) for name, seq in entry.inputs.items()}, lake)
        return {name: now[name] - seq for name, seq in entry.inputs.items() if now[name] > seq}

    def _entry(self, target: str, asset: AssetId, away: dict[str, MillraceError]) -> LedgerEntry | MillraceError | None:
        """Return an asset's last publish, or why it cannot be read; a target that is away is not waited for again."""
        if target in away:
            return away[target]
        try:
            return self.runtime.target(target).ledger(asset)
        except MillraceError as error:
            if error.exit_code != 1:  # the project is wrong
                raise
            if isinstance(error, ConnectionRefused | AuthenticationFailed):
                away[target] = error
            return error

    def query(self, sql: str, limit: int) -> QueryResult:
        """Run one SELECT over the lake's files and the published warehouse, read-only.

        Raises:
            UsageError: the text is not one SELECT.
            NotFound: an asset does not exist.
        """
        from millrace.app.asking import ask

        since = time.monotonic()
        self._require_extras()
        columns, numeric, rows = ask(self.runtime, self.project, sql, limit + 1)
        return QueryResult(columns, numeric, tuple(rows[:limit]), len(rows) > limit, time.monotonic() - since)


def logical_instant(text: str | None) -> str | None:
    """Return a run's "now" as ISO 8601 in UTC; what names no zone is UTC.

    Raises:
        UsageError: the text is no time.
    """
    if text is None:
        return None
    try:
        found = dt.datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"not a time: {text!r}", hint="write ISO 8601: 2026-11-20 or 2026-11-20T06:00:00Z") from None
    zoned = found if found.tzinfo else found.replace(tzinfo=dt.UTC)
    return zoned.astimezone(dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@contextlib.contextmanager
def open_house(
    folder: Path | None = None,
    environment: str | None = None,
    *,
    full_refresh: bool = False,
    replace_foreign: bool = False,
    allow_deletes: bool = False,
    interval: tuple[str | None, str | None] = (None, None),
) -> Iterator[House]:
    """Read a project and close what it opened at the end.

    Args:
        folder: the project's folder or one below it; default: the current one.
        environment: its name; default: `MILLRACE_ENV`, or dev.
        full_refresh, replace_foreign, allow_deletes, interval: see `House`.

    Raises:
        ProjectError: the project's files are wrong.
        NotFound: there is no project here.
    """
    house = House(
        load_project(folder, environment, environ=os.environ),
        full_refresh=full_refresh,
        replace_foreign=replace_foreign,
        allow_deletes=allow_deletes,
        interval=interval,
    )
    with house.runtime:
        yield house
