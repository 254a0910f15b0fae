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

from millrace.core.digest import Digest
from millrace.core.names import fingerprint
from millrace.core.position import Position, Whole
from millrace.core.staged import Witness
from millrace.postgres.digest import digest_of, row_hash, shape
from millrace.postgres.reader import HALF_OF_XIDS, PostgresSnapshot, written_since
from millrace.postgres.session import Connection, translated
from millrace.postgres.source import Source
from millrace.postgres.types import binary_safe

UNTOUCHED = "source untouched"
"""Why a copy whose rows were not touched has nothing to do."""

Touched = Literal["no", "yes", "unknown"]

LARGE = 1_000  # pages: of a table that has as many, a sample may save a scan

_LIFE = """
select pg_catalog.pg_is_in_recovery(), pg_catalog.pg_postmaster_start_time()::text,
    pg_catalog.pg_stat_get_bgwriter_stat_reset_time()::text, pg_catalog.pg_relation_filenode(%s)::text,
    (select oid::text from pg_catalog.pg_database where datname = pg_catalog.current_database())
"""


def heap_of(source: Source, snap: PostgresSnapshot) -> str | None:
    """Return what must be the same later for row versions to tell; None where they cannot."""
    return _life(source, snap.connection, snap.server)


def _life(source: Source, connection: Connection, server: str) -> str | None:
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
    with translated(source.database, f"look at {source.label}", connection=connection):
        row = connection.execute(_LIFE, (source.relation.oid,)).fetchone()
    if row is None or row[0] or any(value is None for value in row):
        return None
    return fingerprint(server, *map(str, row[1:]), source.identity or "", source.schema().fingerprint)


@dataclass(frozen=True, slots=True)
class Since:
    """Row versions of a table against a position.

    Attributes:
        before: rows that the position's digest is of.
        rows: rows now.
        perhaps: rows that were written by transactions that the position's snapshot may not have seen.
        surely: those of them that it cannot have seen.
        written: the predicate of the `perhaps` rows.
        digest: of the `perhaps` rows, where it was asked for.
    """

    before: int
    rows: int
    perhaps: int
    surely: int
    written: sql.Composable
    digest: Digest | None = None

    @property
    def touched(self) -> Touched:
        """`no`: the digest is still that of the position; `yes`: row versions came or went; else `unknown`."""
        if self.rows != self.before or self.surely:
            return "yes"
        return "unknown" if self.perhaps else "no"


def _ids(source: Source, position: Position | None, snap: PostgresSnapshot) -> tuple[int, int] | None:
    """Return the ids from which on a position's snapshot may not, and cannot, have seen; None: they mean nothing."""
    if not isinstance(position, Whole) or position.digest is None or position.snapshot is None:
        return None
    if position.heap is None or position.heap != heap_of(source, snap):
        return None
    return _range(position.snapshot, snap.state)


def _range(then: str, now: str) -> tuple[int, int] | None:
    oldest, after = (int(part) for part in then.split(":")[:2])
    return None if int(now.split(":")[1]) - oldest >= HALF_OF_XIDS else (oldest, after)


def since(
    source: Source, position: Position | None, snap: PostgresSnapshot, *, most: float | None = None
) -> Since | None:
    """Count the rows that were written since a position, in one scan; None where row versions cannot tell.

    Args:
        source: all rows of a table.
        position: of an earlier look at it.
        snap: the look of now.
        most: digest those rows too, unless a sample says that they are more than this share: None is returned then.
    """
    ids = _ids(source, position, snap)
    if ids is None or not isinstance(position, Whole) or position.digest is None:
        return None
    perhaps, surely = (written_since(one) for one in ids)
    if most is not None and _sampled(source, perhaps, snap) > most:
        return None
    count = sql.SQL("pg_catalog.count(*)")
    filtered = sql.SQL("{} filter (where {})")
    wanted = [count, filtered.format(count, perhaps), filtered.format(count, surely)]
    if most is not None:
        total = sql.SQL("pg_catalog.sum({})").format(row_hash(source.columns))
        wanted.append(sql.SQL("coalesce({}, 0)::pg_catalog.text").format(filtered.format(total, perhaps)))
    with translated(source.database, f"look at {source.label}", connection=snap.connection):
        found = snap.connection.execute(source.select(wanted)).fetchone() or (0, 0, 0, "0")
    digest = None if most is None else digest_of((found[1], found[3]), shape(source.columns))
    return Since(position.digest.rows, found[0], found[1], found[2], perhaps, digest)


def _sampled(source: Source, where: sql.Composable, snap: PostgresSnapshot) -> float:
    """Return the share of rows for which a predicate holds in 1 % of a large table's pages; of a small one 0."""
    if source.relation is None or source.relation.pages < LARGE:
        return 0.0
    query = sql.SQL(
        "select pg_catalog.avg(({})::pg_catalog.int4)::pg_catalog.float8 from {} tablesample system (1)"
    ).format(where, source.origin)
    with translated(source.database, f"look at {source.label}", connection=snap.connection):
        found = snap.connection.execute(query).fetchone()
    return 0.0 if found is None or found[0] is None else float(found[0])


def touched(source: Source, position: Position | None, snap: PostgresSnapshot) -> Touched:
    """Say whether rows were written or deleted since a position: see `Since.touched`."""
    ids = _ids(source, position, snap)
    if ids is not None and _sampled(source, written_since(ids[1]), snap):
        return "yes"
    found = since(source, position, snap)
    return "unknown" if found is None else found.touched


def witness(connection: Connection, source: Source) -> Witness | None:
    """Return by what `unwritten` tells later that nobody wrote into a table; None where it cannot.

    Args:
        connection: the transaction that wrote all that it writes, and holds off other writers until it ends.
        source: the whole table.
    """
    heap = _life(source, connection, "")
    if heap is None:
        return None
    with translated(source.database, f"look at {source.label}", connection=connection):
        row = connection.execute(
            "select pg_catalog.pg_current_xact_id()::xid::text, pg_catalog.pg_current_snapshot()::text"
        ).fetchone()
    return None if row is None else Witness(row[1], heap, row[0])


def unwritten(connection: Connection, source: Source, found: Witness | None, rows: int) -> bool:
    """Say whether row versions tell that a table was not touched since `witness` saw it; False also where unknown.

    Args:
        connection: a connection.
        source: the whole table.
        found: what `witness` said.
        rows: rows that it had.
    """
    if found is None or found.heap != _life(source, connection, ""):
        return False
    with translated(source.database, f"look at {source.label}", connection=connection):
        now = connection.execute("select pg_catalog.pg_current_snapshot()::text").fetchone()
        ids = _range(found.snapshot, "" if now is None else now[0])
        if ids is None:
            return False
        others = sql.SQL("{} and xmin <> {}::pg_catalog.xid").format(written_since(ids[0]), sql.Literal(found.xid))
        query = sql.SQL("select pg_catalog.count(*), pg_catalog.count(*) filter (where {}) from {}")
        seen = connection.execute(query.format(others, source.origin)).fetchone()
    return seen == (rows, 0)
