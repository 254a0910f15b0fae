"""PostgreSQL to a Delta lake: page ranges of one exported snapshot, by ADBC into Parquet files, digested at the source.

Each worker reads one segment after the other in the same snapshot and writes each into a file of its own; another
connection takes the segments' digests meanwhile, in that snapshot too. The files are proven later by reading them
back (`lake.rowhash`), so nothing that happens on the way has to be trusted.

Modes: `full` and the first `incremental` load read everything; a later `incremental` one reads what changed since the
ledger's position and upserts it by key; `append` adds the rows beyond the cursor, or everything when there is none.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from psycopg import sql

from millrace.core.digest import Digest
from millrace.core.plan import Freshness, Step
from millrace.core.ports import Context, StageRequest
from millrace.core.position import Cursor, Position, Whole
from millrace.core.schema import Kind, Schema
from millrace.core.segment import Segment, SegmentId
from millrace.core.staged import LedgerEntry, Staged
from millrace.errors import (
    ContractBroken,
    ExtraMissing,
    GuardRefused,
    Interrupted,
    KeyInvalid,
    ProofFailed,
    UsageError,
)
from millrace.postgres.catalog import PgColumn
from millrace.postgres.names import sql_name
from millrace.postgres.reader import PostgresReader, PostgresSnapshot, ordered
from millrace.postgres.segments import predicate
from millrace.postgres.session import translated
from millrace.postgres.source import Source, author_select, both
from millrace.postgres.types import arrow_expression, column_guard, text_form
from millrace.steps.spec import CopySpec

if TYPE_CHECKING:
    import pyarrow as pa

    from millrace.lake.stage import LakeStage
    from millrace.lake.target import LakeTarget

EXAMPLES = 3
FIRST_DAY, LAST_DAY = -719_162, 2_932_896  # 0001-01-01 and 9999-12-31 in days since 1970
DAY_US = 86_400_000_000
COMPRESSION_LEVEL = 1
LOOK_SECONDS = 0.2  # how soon Ctrl-C is seen


def _require() -> None:
    """Raise ExtraMissing unless the libraries of this way are installed."""
    from importlib.util import find_spec

    for name in ("pyarrow", "adbc_driver_postgresql", "numpy", "deltalake"):
        if find_spec(name) is None:
            raise ExtraMissing("copying into a lake", "lake")


# --- what there is to do -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Work:
    """What a look at both ends decided.

    Attributes:
        source: the rows to read.
        schema: columns and key of the asset.
        how: `create`, `replace`, `append`, `upsert`.
        since: the position that the rows are read from, or None for everything.
        reason: why, in a few words.
    """

    source: Source
    schema: Schema
    how: str
    since: Cursor | None
    reason: str


def _look(spec: CopySpec, reader: PostgresReader, target: LakeTarget, snap: PostgresSnapshot) -> Work:
    """Decide what a run has to read, and how it will be applied."""
    source = reader.source(spec.table, where=spec.where, select=spec.select, connection=snap.connection)
    key = tuple(column.name for column in source.pick(spec.key)) or source.key
    schema = source.schema(key)
    if spec.cursor is not None:
        _ = source[spec.cursor]
    entry = target.ledger(spec.asset)
    if spec.mode == "incremental":
        if spec.cursor is None:
            raise UsageError(f"{spec.asset} is incremental but has no cursor", hint="name one: cursor: updated_at")
        if not key:
            raise KeyInvalid(
                f"{spec.asset} is incremental but {source.label} has no key to merge by",
                where=source.database,
                hint="name one: key: [column, …], or copy it in mode full",
            )
    if entry is None:
        return Work(source, schema, "create", None, "never published")
    if spec.mode == "full" or spec.full_refresh:
        return Work(source, schema, "replace", None, "full refresh" if spec.full_refresh else "the source changed")
    if not _same_columns(target.schema(spec.asset), schema):
        return Work(source, schema, "replace", None, "the columns changed")
    how = "append" if spec.mode == "append" else "upsert"
    if spec.cursor is None:
        return Work(source, schema, how, None, "append reads everything")
    since = entry.position
    if not isinstance(since, Cursor) or since.column != spec.cursor:
        if how == "append":
            raise UsageError(
                f"{spec.asset} was not loaded by the cursor {spec.cursor}, so what is new is not known",
                hint="run with --full-refresh to load it anew",
            )
        return Work(source, schema, "replace", None, "the cursor changed")
    return Work(_since(reader, source, since, snap, how), schema, how, since, f"rows since {since.value}")


def _same_columns(old: Schema, new: Schema) -> bool:
    return (old.fingerprint, old.shape, old.key) == (new.fingerprint, new.shape, new.key)


def _since(reader: PostgresReader, source: Source, since: Cursor, snap: PostgresSnapshot, how: str) -> Source:
    """Return the rows to read from a position on; an append must not read a row twice, a merge may."""
    if how == "append":
        if since.value is None:
            return source
        column = source[since.column]
        return source.narrowed(sql.SQL("{} > {}").format(ordered(column), sql.Literal(since.value)))
    return reader.changes(source, since, snap)


def _whole_digest(reader: PostgresReader, source: Source, snap: PostgresSnapshot) -> Digest:
    segment = Segment.whole()
    return reader.digest(source, [segment], snap)[segment.id]


def fresh(spec: CopySpec, reader: PostgresReader, target: LakeTarget) -> Freshness:
    """Say whether the source is still what the ledger's position says, and what a run would do."""
    _require()
    entry = target.ledger(spec.asset)
    with reader.snapshot() as snap:
        work = _look(spec, reader, target, snap)
        if entry is not None and work.reason != "the columns changed":
            same = _unchanged(spec, reader, work, entry, target, snap)
            if same is not None:
                return Freshness(True, same, rows=0, publishes="", proves="")
        rows = work.source.relation.rows if work.source.relation is not None and work.since is None else None
    publishes = {"create": "new table", "replace": "replace", "append": "append", "upsert": "merge"}[work.how]
    return Freshness(False, work.reason, rows if rows is None or rows >= 0 else None, publishes, "transfer")


def _unchanged(
    spec: CopySpec,
    reader: PostgresReader,
    work: Work,
    entry: LedgerEntry,
    target: LakeTarget,
    snap: PostgresSnapshot,
) -> str | None:
    """Return why there is nothing to do, or None when there is."""
    position = entry.position
    if spec.full_refresh or (spec.mode == "append" and spec.cursor is None):
        return None
    if isinstance(position, Cursor) and work.since is not None:
        if work.how == "append":
            digest = _whole_digest(reader, work.source, snap)
            return f"nothing beyond {position.value}" if not digest.rows else None
        if position.tail is not None and _whole_digest(reader, work.source, snap) == position.tail:
            return f"nothing changed since {position.value}"
        return None
    if spec.mode == "full" and isinstance(position, Whole) and position.digest is not None:
        if not _same_columns(target.schema(spec.asset), work.schema):
            return None
        if _whole_digest(reader, work.source, snap) == position.digest:
            return "source digest unchanged"
    return None


# --- staging -------------------------------------------------------------------------------------------------------


def stage(
    spec: CopySpec, reader: PostgresReader, target: LakeTarget, step: Step, ctx: Context
) -> tuple[Staged, ...]:
    """Bring the rows into files that no reader looks at yet.

    Raises:
        ContractBroken: rows that Arrow or Delta cannot hold; names columns, how many and examples.
        KeyInvalid: no key, a null in it, or the same key twice.
        GuardRefused: the target would lose more rows than `max_delete` allows.
        Interrupted: Ctrl-C; what was staged whole is kept.
    """
    _require()
    entry = target.ledger(spec.asset)
    with reader.snapshot() as snap:
        work = _look(spec, reader, target, snap)
        _check_count(spec, reader, snap, work)
        if spec.key or work.how == "upsert" or spec.mode == "incremental":
            work = replace(work, source=_with_valid_key(work, snap, ctx))
        position = _position(spec, reader, work, snap)
        request = StageRequest(
            asset=spec.asset,
            load=ctx.load,
            run=ctx.run,
            step=step.key,
            base=0 if entry is None else entry.seq,
            how=work.how,
            schema=work.schema,
            inputs={},
            code=step.code,
        )
        if work.how == "upsert":
            return (_stage_changes(spec, reader, target, request, work, position, snap, ctx),)
        opened = target.open_stage(request, replace=spec.replace)
        expected = _Copy(spec, reader, opened, work, snap, ctx).run()
        total = Digest.sum(expected.values(), work.schema.shape)
        if work.how == "replace":
            _guard_deletes(spec, entry, total.rows)
        if isinstance(position, Whole):
            position = Whole(total, snap.state)
        return (opened.close(position, expected),)


def _position(spec: CopySpec, reader: PostgresReader, work: Work, snap: PostgresSnapshot) -> Position:
    """Return the position after this load; the digest of a whole load is filled in when it is known."""
    if spec.cursor is None or spec.mode == "full":
        return Whole(None, snap.state)
    source = reader.source(spec.table, where=spec.where, select=spec.select, connection=snap.connection)
    found = reader.cursor(source, spec.cursor, snap)
    if found.value is None and work.since is not None:  # the source was emptied
        found = replace(found, value=work.since.value)
    if spec.mode == "append":
        return found
    tail = _whole_digest(reader, reader.changes(source, found, snap), snap)
    return replace(found, tail=tail)


def _guard_deletes(spec: CopySpec, entry: LedgerEntry | None, rows: int) -> None:
    """Refuse to publish when certainly more rows would go than allowed; a replacement does not know which."""
    if entry is None or entry.rows <= 0 or spec.allow_deletes:
        return
    lost = entry.rows - rows
    if lost > spec.max_delete * entry.rows:
        raise GuardRefused(
            f"{spec.asset} would lose {lost:,} of its {entry.rows:,} rows, more than max_delete {spec.max_delete:.0%}",
            hint="if that is meant, run again with --allow-deletes",
        )


def _check_count(spec: CopySpec, reader: PostgresReader, snap: PostgresSnapshot, work: Work) -> None:
    """Compare the project's own count query with the rows of the source, in the same snapshot."""
    if spec.count is None:
        return
    with translated(reader.database.label, f"count the rows of {work.source.label}", connection=snap.connection):
        wanted = snap.connection.execute(sql.SQL("select * from ({}) q").format(author_select(spec.count))).fetchone()
        found = snap.connection.execute(work.source.select([sql.SQL("pg_catalog.count(*)")])).fetchone()
    if wanted is None or found is None or int(wanted[0]) != int(found[0]):
        raise ProofFailed(
            f"the count query of {spec.asset} says {wanted[0] if wanted else 'nothing'}, "
            f"the source gives {found[0] if found else 'nothing'} rows",
            where=reader.database.label,
        )


# --- keys ----------------------------------------------------------------------------------------------------------


def _unique_by_catalogue(source: Source, key: Sequence[str]) -> bool:
    if source.relation is None or source.query is not None:
        return False
    return any(
        index.unique and index.valid and not index.partial and index.immediate and index.columns
        and set(index.columns) <= set(key) and all(source[name].not_null for name in index.columns if name in source.names)
        for index in source.relation.indexes
    )  # fmt: skip


def _with_valid_key(work: Work, snap: PostgresSnapshot, ctx: Context) -> Source:
    """Return the source with one row for each key: of several, the newest by the cursor.

    Raises:
        KeyInvalid: a null in the key, or several rows of one key when everything is read.
    """
    source, key = work.source, work.source.pick(work.schema.key)
    if not key or (_unique_by_catalogue(source, work.schema.key) and all(column.not_null for column in key)):
        return source
    names = ", ".join(sql_name(column.name) for column in key)
    nulls = sql.SQL(" or ").join(sql.SQL("{} is null").format(column.identifier) for column in key)
    identifiers = sql.SQL(", ").join(column.identifier for column in key)
    with translated(source.database, f"check the key of {source.label}", connection=snap.connection):
        row = snap.connection.execute(source.select([sql.SQL("pg_catalog.count(*)")], nulls)).fetchone()
        if row and row[0]:
            raise KeyInvalid(
                f"{row[0]:,} rows of {source.label} have a null in the key ({names})",
                where=source.database,
                hint="leave them out by where:, or choose another key",
            )
        if _unique_by_catalogue(source, work.schema.key):
            return source
        twice = sql.SQL("{} group by {} having pg_catalog.count(*) > 1").format(
            source.select([*(text_form(column) for column in key), sql.SQL("pg_catalog.count(*)")]), identifiers
        )
        found = snap.connection.execute(
            sql.SQL("select *, pg_catalog.count(*) over () from ({}) q limit {}").format(
                _renamed(twice, len(key) + 1), sql.Literal(EXAMPLES)
            )
        ).fetchall()
    if found:
        raise KeyInvalid(
            f"{source.label} has {found[0][-1]:,} keys ({names}) that stand in more than one row",
            where=source.database,
            detail=[f"{', '.join(map(str, row[: len(key)]))}: {row[-2]:,} rows" for row in found],
            hint="choose a key that names one row",
        )
    return source
