"""One copy without a project: two databases, one step, the same engine as everything else."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from millrace.app.runtime import CONNECTION, Runtime
from millrace.core.names import AssetId, TableRef, fingerprint, new_run_id
from millrace.core.plan import Plan, Step
from millrace.core.staged import Counts, LedgerEntry
from millrace.errors import NotFound, ProjectError
from millrace.steps.spec import CopyOptions, CopySpec

if TYPE_CHECKING:
    from millrace.engine.records import RunResult
    from millrace.postgres.session import Database

SOURCE, TARGET = "source", "target"
NAME = re.compile(r"[^\W\d][\w-]*")  # of a connection in the project's file


@dataclass(frozen=True, slots=True)
class CopyOutcome:
    """What a copy did.

    Attributes:
        published: False when the target was equal already.
        entry: the ledger entry that stands now.
        staged_rows: rows that were moved.
        message: one sentence.
    """

    published: bool
    entry: LedgerEntry
    staged_rows: int
    seconds: float
    message: str

    def to_json(self) -> dict[str, Any]:
        """Return the outcome as JSON types."""
        return {
            "published": self.published,
            "staged_rows": self.staged_rows,
            "seconds": round(self.seconds, 3),
            "message": self.message,
            "entry": self.entry.to_json(),
        }


def database_of(text: str, label: str, closing: contextlib.ExitStack, *, trusted_urls: bool = False) -> Database:
    """Return a database by `env:NAME`, `service:NAME`, a URL, or the name of a connection of the project here."""
    from millrace.postgres.session import database_from_url, parse_database

    if trusted_urls and "://" in text:
        return database_from_url(text, label)
    if NAME.fullmatch(text) and _in_project():
        from millrace.app.house import open_house

        return closing.enter_context(open_house()).runtime.database(text)
    return parse_database(text, os.environ)


def _in_project() -> bool:
    from millrace.project import find_project

    try:
        find_project(Path.cwd())
    except ProjectError:
        return False
    return True


def _most(text: str, most: int) -> int:
    """Return how many connections may be open at once; a connection of the project here may say fewer."""
    if not NAME.fullmatch(text) or not _in_project():
        return most
    from millrace.app.house import open_house

    with open_house() as house:
        found = house.project.settings.connections.get(text)
    return most if found is None else min(most, found.max_connections)


@contextlib.contextmanager
def runtime_of(source: str, target: str, *, most: int, trusted_urls: bool = False) -> Iterator[Runtime]:
    """Return a runtime of two databases, each with so many connections at most, or a project's `max_connections`."""
    databases = {
        SOURCE: lambda closing: database_of(source, "source", closing, trusted_urls=trusted_urls),
        TARGET: lambda closing: database_of(target, "target", closing, trusted_urls=trusted_urls),
    }
    # named, not made: nothing is left of a copy that is killed, unless a step really needs scratch
    work = Path(tempfile.gettempdir()) / f"millrace-{new_run_id()}"
    limits = {SOURCE: _most(source, most), TARGET: _most(target, most)}
    with Runtime(Path.cwd(), work, databases, {}, most=limits) as runtime:
        runtime.closing.callback(shutil.rmtree, work, ignore_errors=True)
        yield runtime


def spec_of(table: str, into: str, options: CopyOptions, runtime: Runtime) -> CopySpec:
    """Return what a copy between the runtime's two databases is told."""
    place = TableRef.parse(into)
    schema = place.schema or first_schema(runtime)
    return CopySpec(
        source=SOURCE,
        table=TableRef.parse(table),
        asset=AssetId(schema, place.name),
        **{field.name: getattr(options, field.name) for field in fields(options)},
    )


def first_schema(runtime: Runtime) -> str:
    """Return where a table without a schema is made: the first schema of the target's search path."""
    with runtime.reader(TARGET).connect("copy") as connection:
        row = connection.execute("select current_schema()").fetchone()
    return str(row[0]) if row and row[0] else "public"


def copy_step(spec: CopySpec, *, group: str = "") -> Step:
    """Return the step that copies a table."""
    return Step(
        key=f"copy:{spec.asset}",
        kind="copy",
        label=str(TableRef(spec.asset.layer, spec.asset.name)),
        assets=(spec.asset,),
        target=f"{CONNECTION}{TARGET}",
        group=group or f"copy:{spec.asset}",
        code=plain_code(spec),
        spec={"copy": spec.to_json(), "full_refresh": spec.full_refresh},
    )


def through_engine(
    runtime: Runtime, steps: Sequence[Step], *, jobs: int = 1, show_progress: bool, brief: bool = False
) -> RunResult:
    """Run copies that no journal remembers; `brief`: of several runs."""
    from millrace.engine.journal import Journal
    from millrace.engine.runner import Engine
    from millrace.engine.session import RunOptions
    from millrace.observe.progress import observer

    journal = Journal(":memory:")
    try:
        engine = Engine(
            journal,
            runtime.kinds,
            {step.target: runtime.target(step.target) for step in steps},
            observer=observer(("brief" if brief else "terminal") if show_progress else "silent"),
            work=runtime.cache,
        )
        return engine.run(Plan(tuple(steps)), options=RunOptions(jobs=jobs))
    finally:
        journal.close()


def copy_table(
    source: str,
    table: str,
    target: str,
    into: str,
    options: CopyOptions,
    *,
    trusted_urls: bool = False,
    show_progress: bool = False,
) -> CopyOutcome:
    """Copy one table between two PostgreSQL databases.

    Args:
        source, target: `env:NAME`, `service:NAME`, a URL, or the name of a connection of the project here.
        table, into: SQL names of the source and the target table.
        options: mode, key, guards.
        trusted_urls: whether a URL may hold a password (an API's argument may, a command line's may not).
        show_progress: whether a terminal watches.

    Raises:
        MillraceError: what stopped the copy; nothing was published then.
    """
    since = time.monotonic()
    with runtime_of(source, target, most=options.workers + 1, trusted_urls=trusted_urls) as runtime:
        spec = spec_of(table, into, options, runtime)
        step = copy_step(spec)
        result = through_engine(runtime, [step], show_progress=show_progress)
    return outcome_of(result, step, since, show_progress=show_progress)


def copy_intervals(
    source: str,
    table: str,
    target: str,
    into: str,
    options: CopyOptions,
    intervals: Sequence[tuple[str, str]],
    *,
    show_progress: bool = False,
) -> Iterator[CopyOutcome]:
    """Backfill several intervals of one table in their order, each by a publish of its own: see `copy_table`.

    Raises:
        MillraceError: what stopped an interval; those before it are published.
    """
    with runtime_of(source, target, most=options.workers + 1) as runtime:
        spec = spec_of(table, into, options, runtime)
        for start, end in intervals:
            since = time.monotonic()
            step = copy_step(replace(spec, start=start, end=end))
            result = through_engine(runtime, [step], show_progress=show_progress, brief=True)
            yield outcome_of(result, step, since, show_progress=show_progress)


def outcome_of(result: RunResult, step: Step, since: float, *, show_progress: bool) -> CopyOutcome:
    """Return what a run of one step did. Raises the step's error."""
    (outcome,) = result.steps
    if outcome.error is not None:
        outcome.error.told = show_progress
        raise outcome.error
    if not outcome.entries:
        raise NotFound(f"{step.label} was not copied: {outcome.message}")
    published = outcome.status == "published"
    return CopyOutcome(
        published=published,
        entry=outcome.entries[0],
        staged_rows=(outcome.rows or 0) if published else 0,
        seconds=time.monotonic() - since,
        message=outcome.message or ("copied and proven" if published else "nothing changed"),
    )


def plain_code(spec: CopySpec) -> str:
    """Return the fingerprint of what decides which rows are copied."""
    mode = "incremental" if spec.mode == "backfill" else spec.mode  # whose position it leaves alone
    more = tuple(one for one in (spec.cursor_format, spec.soft_delete) if one is not None)
    # A table is the same with its schema and without; where the search path begins elsewhere, the position tells.
    table = TableRef(spec.table.schema or "public", spec.table.name)
    return fingerprint("copy", str(table), repr((mode, spec.key, spec.cursor, spec.where, spec.select, *more)))


def copy_dry_run(source: str, table: str, target: str, into: str, options: CopyOptions) -> Counts:
    """Return what a copy would insert, update and delete; changes nothing."""
    from millrace.postgres.target import PostgresTarget
    from millrace.steps.routes.postgres_postgres import dry_run

    with runtime_of(source, target, most=options.workers + 1) as runtime:
        place = runtime.target(f"{CONNECTION}{TARGET}")
        assert isinstance(place, PostgresTarget)  # noqa: S101 - made above
        spec = spec_of(table, into, options, runtime)
        entry = place.ledger(spec.asset)
        if entry is not None and entry.code != plain_code(
            spec
        ):  # as in the step: a position of other options is no help
            spec = replace(spec, full_refresh=True)
        return dry_run(spec, runtime.reader(SOURCE), place, entry)
