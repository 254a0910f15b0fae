"""Checks in the proof of a step: run in the embedded engine on what lies in a stage, reported, and enforced."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from millrace.core.names import AssetId
from millrace.core.plan import Step
from millrace.core.ports import Context
from millrace.core.staged import CheckResult, Staged, score
from millrace.duck import engine, inputs
from millrace.errors import KeyInvalid, NotFound
from millrace.lake.target import LakeTarget
from millrace.quality.gate import Query, Relations, enforce, run_checks
from millrace.quality.rules import RowRule, parse_checks
from millrace.steps.contracts import local_time, most_bad
from millrace.steps.resources import Resources

if TYPE_CHECKING:
    import duckdb


def querying(connection: Any, where: str) -> Callable[[str, Sequence[Any]], list[tuple[Any, ...]]]:
    """Return a function that runs SQL with bound parameters in a DuckDB connection."""

    def query(sql: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        with engine.translated(where, "the query"):
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
    contract: Mapping[str, Any] | None = None,
    rows: int = 0,
) -> tuple[CheckResult, ...]:
    """Run an asset's checks, report them, and stop the publish when a blocking one failed.

    `contract`, where there is one, could set the rows aside that failed; the error says so unless they are more than
    it would allow of a load of `rows`.

    Raises:
        GateFailed: a blocking check failed.
    """
    rules = parse_checks(spec, asset)
    now = dt.datetime.fromisoformat(ctx.logical_time)
    results = run_checks(rules, query, relation, key=key, now=now, relations=relations)
    ctx.report.checks(results)
    of_rows = {rule.name for rule in rules if isinstance(rule, RowRule)}
    failed = [one for one in results if one.blocking and not one.passed]
    hint = None
    if (
        contract
        and all(one.name in of_rows for one in failed)
        and max((one.failing or 0 for one in failed), default=0) <= most_bad(contract["max_bad"], rows)
    ):
        hint = f"to set such rows aside: contract: {{bad_rows: quarantine}} in {contract['place']}"
    enforce(results, None if last_good is None else local_time(last_good), hint)
    if results:
        ctx.report.note(f"score {score(results):.3f}")
    return results


def check_lake_stage(
    resources: Resources, lake: LakeTarget, staged: Staged, step: Step, ctx: Context
) -> tuple[CheckResult, ...]:
    """Check what a lake asset would be after the publish: its key, then its checks.

    Args:
        resources: limits of the engine.
        lake: where it is staged.
        staged: the stage.
        step: its spec has the checks as the project's files say them, and the contract.
        ctx: of the step.

    Raises:
        KeyInvalid: a key stands twice.
        GateFailed: a blocking check failed.
    """
    connection = engine.connect(memory_limit=resources.memory_limit, threads=resources.threads)
    where, contract = str(step.spec.get("path", step.label)), step.spec.get("contract") or {}

    def other(asset: AssetId) -> tuple[str, str]:
        if lake.ledger(asset) is None:
            raise NotFound(f"a check of {staged.asset} reads {asset}, which was never published", where=where)
        inputs.attach(connection, asset, lake.files(asset), lake.schema(asset))
        return (asset.layer, asset.name)

    try:
        inputs.attach(connection, staged.asset, lake.staged_files(staged), staged.schema)
        _check_key(connection, staged, where)
        entry = lake.ledger(staged.asset)
        results = enforce_checks(
            step.spec.get("checks") or {},
            staged.asset,
            querying(connection, where),
            (staged.asset.layer, staged.asset.name),
            ctx,
            key=staged.schema.key,
            relations=other,
            last_good=entry.time if entry else None,
            contract=contract if contract.get("bad_rows") == "block" else None,
            rows=staged.rows,
        )
        if told := [text for text in (set_aside(staged.detail.get("quarantine")), staged.detail.get("scrub")) if text]:
            ctx.report.note("; ".join(told))
        return results
    finally:
        connection.close()


def set_aside(record: Mapping[str, Any] | None) -> str | None:
    """Return the sentence about what a load set aside, like `17 rows → quarantine`; None when it was nothing."""
    count = 0 if record is None else int(record["rows"])
    return f"{count:,} {'row' if count == 1 else 'rows'} → quarantine" if count else None


def _check_key(connection: duckdb.DuckDBPyConnection, staged: Staged, where: str) -> None:
    key = staged.schema.key
    if not key:
        return
    columns = engine.listed(engine.identifier(name) for name in key)
    table = engine.qualified(staged.asset.layer, staged.asset.name)
    query = "select {columns}, count(*) as n from {table} group by all having n > 1 limit 3"
    found = engine.rows(connection, engine.fill(query, columns=columns, table=table))
    if found:
        rows = [", ".join(f"{name} = {value!r}" for name, value in zip(key, row[:-1], strict=True)) for row in found]
        raise KeyInvalid(
            f"{staged.asset} has more than one row of the same key",
            where=where,
            detail=[f"{text} ({row[-1]} rows)" for text, row in zip(rows, found, strict=True)],
            hint="make it give one row per key, or name another key",
        )
