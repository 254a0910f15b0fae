"""What the steps of a warehouse group share: the run's clone, and checks on what lies in it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from millrace.core.names import AssetId
from millrace.core.plan import Step
from millrace.core.ports import Context
from millrace.core.staged import CheckResult, score
from millrace.duck.engine import translated
from millrace.duck.warehouse import WarehouseTarget
from millrace.quality.gate import Query, Relations, enforce, run_checks
from millrace.quality.rules import parse_checks


def warehouse_of(ctx: Context, step: Step) -> WarehouseTarget:
    """Return the step's target, which is a warehouse."""
    target = ctx.target(step.target)
    assert isinstance(target, WarehouseTarget)  # noqa: S101 - the planner names it
    return target


def querying(connection: Any, where: str) -> Callable[[str, Sequence[Any]], list[tuple[Any, ...]]]:
    """Return a function that runs SQL with bound parameters in a DuckDB connection."""

    def query(sql: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        with translated(where, "asking the warehouse"):
            return list(connection.execute(sql, list(parameters)).fetchall())

    return query


def enforce_checks(
    spec: Mapping[str, Any],
    asset: AssetId,
    query: Query,
    relation: str | Sequence[str],
    ctx: Context,
    *,
    key: Sequence[str] = (),
    relations: Relations | None = None,
    last_good: str | None = None,
) -> tuple[CheckResult, ...]:
    """Run an asset's checks, report them, and stop the publish when a blocking one failed.

    Raises:
        GateFailed: a blocking check failed.
    """
    rules = parse_checks(spec, asset)
    now = dt.datetime.fromisoformat(ctx.logical_time)
    results = run_checks(rules, query, relation, key=key, now=now, relations=relations)
    ctx.report.checks(results)
    enforce(results, last_good)
    if results:
        ctx.report.note(f"score {score(results):.3f}")
    return results
