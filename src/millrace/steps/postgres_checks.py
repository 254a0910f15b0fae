"""Checks of a table in PostgreSQL: row rules as a sieve of its stage, and all of them in the proof."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import sql
from sqlglot import exp, parse_one

from millrace.core.names import AssetId, TableRef
from millrace.core.plan import Step
from millrace.core.ports import Context
from millrace.core.schema import Kind
from millrace.core.segment import Segment
from millrace.core.staged import CheckResult, Staged
from millrace.errors import ContractBroken, NotFound, ProjectError
from millrace.postgres.catalog import PgColumn, describe
from millrace.postgres.preview import Preview, preview
from millrace.postgres.quarantine import Bad, rules_of
from millrace.postgres.session import Connection, translated
from millrace.postgres.target import PostgresTarget
from millrace.postgres.types import kind
from millrace.quality import portable
from millrace.quality import sql as quality
from millrace.quality.gate import Query, run_checks
from millrace.quality.rules import Expression, parse_checks
from millrace.steps.checking import enforce_checks, set_aside
from millrace.steps.contracts import most_bad
from millrace.steps.sieve import too_many

VIEW = "millrace_checked"
"""The temporary view under whose name the rows are checked."""
_TYPES = {
    Kind.BOOL: "BOOLEAN",
    Kind.INT16: "SMALLINT",
    Kind.INT32: "INTEGER",
    Kind.INT64: "BIGINT",
    Kind.FLOAT32: "FLOAT",
    Kind.FLOAT64: "DOUBLE",
    Kind.BYTES: "BLOB",
    Kind.DATE: "DATE",
    Kind.TIME: "TIME",
    Kind.TIMESTAMP: "TIMESTAMP",
    Kind.TIMESTAMPTZ: "TIMESTAMP WITH TIME ZONE",
}
_OTHERS = {"numeric": "DECIMAL", "text": "VARCHAR", "varchar": "VARCHAR", "bpchar": "VARCHAR", "uuid": "UUID"}


def _type(column: PgColumn) -> str:
    """Return a column's type in the words of checks; what they have no word for is compared as its text."""
    found = kind(column)
    if found is Kind.DECIMAL:
        portable_column = column.column()
        return f"DECIMAL({portable_column.precision},{portable_column.scale})"
    if found is not Kind.TEXT:
        return _TYPES[found]
    known = column.base_namespace == "pg_catalog" and not column.array
    return _OTHERS.get(column.base_name, "ENUM('')") if known else "ENUM('')"


def sieve_of(
    step: Step, asset: AssetId, columns: Sequence[PgColumn], key: Sequence[str], ctx: Context
) -> tuple[Bad, ...]:
    """Return which rows of a stage are bad, where the contract sets them aside.

    Raises:
        NotFound, ProjectError: a rule names no column, or is nothing for PostgreSQL.
        ContractBroken: the table has no key.
    """
    contract, checks = step.spec.get("contract") or {}, step.spec.get("checks") or {}
    if contract.get("bad_rows") != "quarantine" or not checks:
        return ()
    now = dt.datetime.fromisoformat(ctx.logical_time)
    table = quality.Table(asset, (VIEW,), {column.name: _type(column) for column in columns}, now)
    rules = quality.quarantining(parse_checks(checks, asset), table)
    if rules and not key:
        raise ContractBroken(
            f"rows of {asset} cannot be set aside: without a key nothing tells them apart",
            where=str(contract["place"]),
            hint="name one: key: id; or bad_rows: block",
        )
    return tuple(
        Bad(
            rule.name,
            "" if isinstance(rule, Expression) else rule.column,
            portable.broken(rule, table),
            portable.reason(rule, table),
        )
        for rule in rules
    )


def check_stage(target: PostgresTarget, staged: Staged, step: Step, ctx: Context) -> tuple[CheckResult, ...]:
    """Check what a table would be after the publish; too many bad rows stop it too.

    Raises:
        ContractBroken: more bad rows than `max_bad` allows.
        GateFailed: a blocking check failed.
        NotFound, ProjectError: a check does not fit the table.
    """
    contract = step.spec.get("contract") or {}
    where = str(step.spec.get("path", step.label))
    entry = target.ledger(staged.asset)
    with target.connect("check") as connection:
        with translated(target.database.label, f"look at the stage of {staged.asset}", connection=connection):
            seen = preview(connection, target.book, staged)
        rules = rules_of(staged)
        bad = 0
        if rules and seen.brought is not None:
            bad = _limit(target, connection, seen, staged, step, ctx, entry.time if entry else None)
        with _viewed(target, connection, seen.rows, seen.columns) as query, _understood(where):
            results = enforce_checks(
                step.spec.get("checks") or {},
                staged.asset,
                query,
                ("pg_temp", VIEW),
                ctx,
                key=staged.schema.key,
                relations=lambda asset: (asset.layer, asset.name),
                last_good=entry.time if entry else None,
                contract=contract if contract.get("bad_rows") == "block" else None,
                rows=staged.rows,
            )
        if told := set_aside({"rows": bad + len(staged.detail.get("unreadable", ()))}):
            ctx.report.note(told)
        return results


def _limit(
    target: PostgresTarget,
    connection: Connection,
    seen: Preview,
    staged: Staged,
    step: Step,
    ctx: Context,
    last_good: str | None,
) -> int:
    """Return how many rows the load sets aside that wait for somebody. Raises ContractBroken for too many."""
    contract, rules, where = step.spec["contract"], rules_of(staged), str(step.spec.get("path", step.label))
    with (
        translated(target.database.label, f"look for bad rows of {staged.asset}", connection=connection),
        _understood(where),
    ):
        rows, count = seen.bad(rules, again=not _whole(staged))
        _, waiting = seen.bad(rules, again=False)
    also = len(staged.detail.get("unreadable", ()))  # each is bad by itself
    count, rows = count + also, rows + also
    if count <= most_bad(float(contract["max_bad"]), rows):
        return waiting
    assert seen.brought is not None  # noqa: S101 - seen by the caller
    with _viewed(target, connection, seen.brought, seen.columns) as query:
        names = {rule.rule for rule in rules}
        now = dt.datetime.fromisoformat(ctx.logical_time)
        broken = [rule for rule in parse_checks(step.spec["checks"], staged.asset) if rule.name in names]
        results = run_checks(broken, query, ("pg_temp", VIEW), key=staged.schema.key, now=now)
    raise too_many(staged.asset, results, count, rows, float(contract["max_bad"]), last_good, str(contract["place"]))


def _whole(staged: Staged) -> bool:
    """Say whether a stage holds all rows of its source."""
    return staged.how in ("create", "truncate") or staged.detail.get("segments") == [Segment.whole().to_json()]


@contextmanager
def _understood(where: str) -> Iterator[None]:
    """Say of a check that PostgreSQL does not understand where it stands."""
    try:
        yield
    except psycopg.ProgrammingError as error:
        if not (error.sqlstate or "").startswith("42") or error.sqlstate == "42501":
            raise
        raise ProjectError(
            f"PostgreSQL does not understand a check: {error.diag.message_primary or error}",
            where=where,
            detail=[error.diag.message_hint] if error.diag.message_hint else [],
            hint="write it with what both DuckDB and PostgreSQL have",
        ) from error


@contextmanager
def _viewed(
    target: PostgresTarget, connection: Connection, rows: sql.Composable, columns: Sequence[PgColumn]
) -> Iterator[Query]:
    """Show rows as a view to checks, and give what runs their queries, in one transaction that is rolled back."""
    label = target.database.label
    with translated(label, "check the rows", connection=connection), connection.transaction(force_rollback=True):
        connection.execute(
            sql.SQL("create temporary view {} as {}").format(sql.Identifier(VIEW), rows)  # gone with the transaction
        )
        yield _querying(connection, columns, label)


def _querying(connection: Connection, columns: Sequence[PgColumn], label: str) -> Callable[..., Any]:
    types = {column.name: _type(column) for column in columns}

    def query(text: str, _parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        parsed = parse_one(text, read=quality.DIALECT)
        if isinstance(parsed, exp.Describe):
            found = parsed.find(exp.Table)
            assert found is not None  # noqa: S101 - written by quality.sql
            if found.name == VIEW:
                return list(types.items())
            try:
                there = describe(connection, TableRef(found.db, found.name), label=label)
            except NotFound as error:
                raise NotFound(f"a check reads {found.db}.{found.name}, which is not there", where=label) from error
            return [(column.name, _type(column)) for column in there.columns]
        return list(connection.execute(portable.query(text, types)).fetchall())

    return query
