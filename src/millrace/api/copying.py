"""`DataCopyEngine`: copy a table from one PostgreSQL database to another, every row proven."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from millrace.api.records import Record
from millrace.errors import UsageError, did_you_mean
from millrace.steps.spec import MODES, check_interval


@dataclass(frozen=True, slots=True)
class CopyResult(Record):
    """What a copy did; reads like a dictionary too.

    Attributes:
        status: `success`; a copy that fails raises.
        message: one sentence.
        exported_rows: rows that were read from the source and staged.
        inserted, updated, deleted: rows of the target that the publish touched.
        rows: rows of the target after the publish, where known, else -1.
        level: what was proven: `counted`, `transfer`, `applied` or `table`.
        digest: digest of the proven rows, `rows:sum`.
        seq: the ledger's number of this publish.
        seconds: wall time.
    """

    status: str
    message: str
    exported_rows: int
    inserted: int
    updated: int
    deleted: int
    rows: int
    level: str
    digest: str | None
    seq: int
    seconds: float


class DataCopyEngine:
    """Copies tables between two PostgreSQL databases.

    Args:
        source, target: databases: `env:NAME`, `service:NAME`, or a URL. A URL may hold a password here; it is kept
            as a secret and shown nowhere.
    """

    def __init__(self, source: str, target: str) -> None:
        self._source = source
        self._target = target

    def copy_data_with_custom_sql(
        self,
        source_table: str,
        target_table: str,
        primary_keys: Sequence[str],
        sync_mode: str = "full_sync",
        custom_where: str | None = None,
        custom_select: str | None = None,
        custom_count: str | None = None,
        batch_size: int = 10_000,
        *,
        cursor: str | None = None,
        cursor_format: str | None = None,
        start: str | None = None,
        end: str | None = None,
        replace: bool = False,
        allow_deletes: bool = False,
        max_delete: float = 0.5,
    ) -> CopyResult:
        """Make the target table equal to the source's (`full_sync`) or bring its changes (`incremental_sync`).

        Args:
            source_table, target_table: SQL names, like `public.orders` or `"Odd"."name"`.
            primary_keys: key columns; empty: the source's primary key.
            sync_mode: `full_sync` (deletes included) or `incremental_sync` (by `cursor`; without one, rows that differ
                are upserted and nothing is deleted), `append`, `truncate` (all rows deleted and loaded), `snapshot` (a
                version of each row for each change) or `backfill` (an interval of the cursor).
            custom_where: one SQL condition on the source's rows.
            custom_select: one SELECT that replaces the source table.
            custom_count: one SELECT of a number, evaluated in the copy's snapshot: it must equal the rows read.
            batch_size: accepted for the signature; rows are streamed as bytes, in no batches of rows.
            cursor: the column by which `incremental_sync` finds changes.
            cursor_format: how a cursor that is a text is written: `yyyymmdd`, `date`, `datetime` or `timestamp`.
            start, end: of `backfill`: rows whose cursor is at or past `start` and before `end`; either may be left out.
            replace: allow the first contact with a non-empty target that Millrace never wrote.
            allow_deletes, max_delete: lift, or set, the share of the target's rows that may be deleted.

        Returns:
            What was done.

        Raises:
            UsageError: a name, mode or SQL text is wrong.
            MillraceError: everything that stops the copy; nothing was published then.
        """
        if sync_mode not in MODES:
            raise UsageError(
                f"unknown sync_mode {sync_mode!r}",
                hint=did_you_mean(sync_mode, list(MODES)) or f"one of: {', '.join(MODES)}",
            )
        if batch_size < 1:
            raise UsageError(f"batch_size must be at least 1, not {batch_size}")
        check_interval(MODES[sync_mode], cursor, start, end)
        from millrace.app import CopyOptions, copy_table

        outcome = copy_table(
            self._source,
            source_table,
            self._target,
            target_table,
            CopyOptions(
                mode=MODES[sync_mode],
                key=tuple(primary_keys),
                cursor=cursor,
                cursor_format=cursor_format,
                start=start,
                end=end,
                where=custom_where,
                select=custom_select,
                count=custom_count,
                replace=replace,
                allow_deletes=allow_deletes,
                max_delete=max_delete,
            ),
            trusted_urls=True,
        )
        entry = outcome.entry
        return CopyResult(
            status="success",
            message=outcome.message,
            exported_rows=outcome.staged_rows,
            inserted=entry.counts.inserted if outcome.published else 0,
            updated=entry.counts.updated if outcome.published else 0,
            deleted=entry.counts.deleted if outcome.published else 0,
            rows=entry.rows,
            level=entry.level,
            digest=None if entry.digest is None else str(entry.digest),
            seq=entry.seq,
            seconds=outcome.seconds,
        )
