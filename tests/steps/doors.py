"""One copy from PostgreSQL to PostgreSQL through its three doors, without an engine. Also run as a child process."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import psycopg
from context import StepContext

from millrace.core.names import AssetId, TableRef
from millrace.core.plan import Step
from millrace.core.staged import LedgerEntry, Proof, Staged
from millrace.errors import MillraceError
from millrace.postgres.reader import PostgresReader
from millrace.postgres.session import database_from_url
from millrace.postgres.target import PostgresTarget
from millrace.steps.routes import postgres_postgres as route
from millrace.steps.spec import CopySpec


def spec_of(table: str = "public.t", into: str | None = None, **more: Any) -> CopySpec:
    source, place = TableRef.parse(table), TableRef.parse(into or table)
    return CopySpec("src", source, AssetId(place.schema or "public", place.name), **more)


class Copy:
    """A source and a target, and one table to copy."""

    def __init__(self, source: str, target: str, spec: CopySpec | None = None, **more: Any) -> None:
        self.urls = source, target
        self.spec = spec or spec_of(**more)
        self.reader = PostgresReader(database_from_url(source, "SRC"))
        self.target = PostgresTarget(database_from_url(target, "DST"), "dst")
        self.step = Step("copy:t", "copy", "t", (self.spec.asset,), target="dst")
        self.ctx = StepContext(self.step, {"dst": self.target})

    def with_(self, **more: Any) -> Copy:
        return Copy(*self.urls, replace(self.spec, **more))

    def _entry(self) -> LedgerEntry | None:
        return self.target.ledger(self.spec.asset)

    def fresh(self) -> Any:
        return route.fresh(self.spec, self.reader, self.target, self._entry(), now="2026-11-20T06:00:00Z")

    def dry_run(self) -> Any:
        return route.dry_run(self.spec, self.reader, self.target, self._entry())

    def stage(
        self, run: str | None = None, stopping: Callable[[], bool] | None = None, **more: Any
    ) -> tuple[Staged, ...]:
        self.ctx = StepContext(self.step, {"dst": self.target}, run=run, stopping=stopping or (lambda: False), **more)
        return route.stage(self.spec, self.reader, self.target, self._entry(), self.step, self.ctx)

    def prove(self, staged: tuple[Staged, ...]) -> tuple[Proof, ...]:
        return tuple(self.target.prove(one) for one in staged)

    def publish(self, staged: tuple[Staged, ...], proofs: tuple[Proof, ...]) -> LedgerEntry:
        (entry,) = self.target.publish(staged, proofs, {one.asset: one.base for one in staged})
        return entry

    def run(self, run: str | None = None, **more: Any) -> LedgerEntry | None:
        """Take the step through its doors; a failed publish drops its stage, as the engine does."""
        staged = self.stage(run, **more)
        if not staged:
            return None
        try:
            return self.publish(staged, self.prove(staged))
        except MillraceError:
            for one in staged:
                self.target.discard(one)
            raise


def rows(url: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(query).fetchall()


def execute(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


def table(url: str, name: str = "public.t", order: str = "1") -> list[tuple[Any, ...]]:
    return rows(url, f"select t::text from {name} t order by {order}")


def sessions(url: str) -> list[tuple[Any, ...]]:
    query = (
        "select application_name, state, query from pg_stat_activity "
        "where application_name like 'millrace%' and datname = current_database()"
    )
    return rows(url, query)


def leftovers(url: str, wait: float = 5.0) -> list[Any]:
    """Return what a finished copy must not leave in a database: stages, hidden tables, sessions."""
    deadline = time.monotonic() + wait
    while (found := sessions(url)) and time.monotonic() < deadline:
        time.sleep(0.05)  # a closed session ends a moment later
    if rows(url, "select to_regclass('_millrace.stage')") != [(None,)]:
        found += rows(url, "select * from _millrace.stage") + rows(url, "select * from _millrace.segment")
        found += rows(url, "select relname from pg_class where relnamespace = '_millrace_stage'::regnamespace")
    return found


def main() -> None:
    """Run one copy as a process: `doors.py SOURCE TARGET SPEC RUN`; kill points come from the environment."""
    from millrace.testing import killpoints

    source, target, spec, run = sys.argv[1:]
    copy = Copy(source, target, CopySpec.from_json(json.loads(spec)))
    killpoints.arm(os.environ)
    try:
        entry = copy.run(run)
    except MillraceError as error:
        print(json.dumps({"error": error.code, "text": str(error)}))
        raise SystemExit(1) from None
    print(json.dumps({"seq": None if entry is None else entry.seq, "notes": copy.ctx.report.notes}))


if __name__ == "__main__":
    main()
