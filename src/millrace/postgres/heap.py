"""Whether a heap was touched since a snapshot, told by its row versions alone: one scan that hashes nothing.

A row that was written since has an xmin that the snapshot did not see; a row that was only deleted is missing from the
count. So when no row is new and as many are there, each row is the one that was digested then. It holds while
transaction ids mean what they meant: same server process, no crash of it (which resets its statistics), no standby, the
same file and columns (one that was dropped and made again has another number), types whose text no `alter type`
changes. Everywhere else the answer is "unknown", and the rows are digested.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from psycopg import sql

from millrace.core.names import fingerprint
from millrace.core.position import Position, Whole
from millrace.postgres.reader import HALF_OF_XIDS, PostgresSnapshot, written_since
from millrace.postgres.session import translated
from millrace.postgres.source import Source
from millrace.postgres.types import binary_safe

UNTOUCHED = "source untouched"
"""Why a copy whose rows were not touched has nothing to do."""

Touched = Literal["no", "yes", "unknown"]

_LIFE = """
select pg_catalog.pg_is_in_recovery(), pg_catalog.pg_postmaster_start_time()::text,
    pg_catalog.pg_stat_get_bgwriter_stat_reset_time()::text, pg_catalog.pg_relation_filenode(%s)::text,
    (select oid::text from pg_catalog.pg_database where datname = pg_catalog.current_database())
"""


def heap_of(source: Source, snap: PostgresSnapshot) -> str | None:
    """Return what must be the same later for row versions to tell; None where they cannot."""
    if not source.paged or source.where is not None or source.relation is None:
        return None
    if not all(
        binary_safe(column)
        and (column.element_namespace or column.base_namespace) == "pg_catalog"
        and column.base_typtype != "e"
        and column.generated != "v"
        for column in source.columns
    ):
        return None
    with translated(source.database, f"look at {source.label}", connection=snap.connection):
        row = snap.connection.execute(_LIFE, (source.relation.oid,)).fetchone()
    if row is None or row[0] or any(value is None for value in row):
        return None
    return fingerprint(snap.server, *map(str, row[1:]), source.identity or "", source.schema().fingerprint)


@dataclass(frozen=True, slots=True)
class Since:
    """Row versions of a table against a position.

    Attributes:
        before: rows that the position's digest is of.
        rows: rows now.
        perhaps: rows that were written by transactions that the position's snapshot may not have seen.
        surely: those of them that it cannot have seen.
        written: the predicate of the `perhaps` rows.
    """

    before: int
    rows: int
    perhaps: int
    surely: int
    written: sql.Composable

    @property
    def touched(self) -> Touched:
        """`no`: the digest is still that of the position; `yes`: row versions came or went; else `unknown`."""
        if self.rows != self.before or self.surely:
            return "yes"
        return "unknown" if self.perhaps else "no"


def since(source: Source, position: Position | None, snap: PostgresSnapshot) -> Since | None:
    """Count the rows that were written since a position; None where row versions cannot tell.

    Args:
        source: all rows of a table.
        position: of an earlier look at it.
        snap: the look of now.
    """
    if not isinstance(position, Whole) or position.digest is None or position.snapshot is None:
        return None
    if position.heap is None or position.heap != heap_of(source, snap):
        return None
    oldest, after = (int(part) for part in position.snapshot.split(":")[:2])
    if int(snap.state.split(":")[1]) - oldest >= HALF_OF_XIDS:
        return None
    count = sql.SQL("pg_catalog.count(*)")
    filtered = sql.SQL("{} filter (where {})")
    query = source.select(
        [count, filtered.format(count, written_since(oldest)), filtered.format(count, written_since(after))]
    )
    with translated(source.database, f"look at {source.label}", connection=snap.connection):
        rows, perhaps, surely = snap.connection.execute(query).fetchone() or (0, 0, 0)
    return Since(position.digest.rows, rows, perhaps, surely, written_since(oldest))


def touched(source: Source, position: Position | None, snap: PostgresSnapshot) -> Touched:
    """Say whether rows were written or deleted since a position: see `Since.touched`."""
    found = since(source, position, snap)
    return "unknown" if found is None else found.touched
