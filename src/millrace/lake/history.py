"""Assets of versions (slowly changing dimensions, type 2): what mode `snapshot` makes and keeps in the lake.

The source's columns, then `valid_from` and `valid_to`, as in PostgreSQL. The asset's key is the source's and
`valid_from`, so that closing a version is an update of its row and opening one an insert: readers of changes see that.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from millrace.core.digest import Digest
from millrace.core.schema import Column, Kind, Schema
from millrace.core.segment import Segment
from millrace.errors import ProofFailed
from millrace.lake.sql import Condition, SqlEngine, fill, listed, quoted
from millrace.lake.stage import LakeStage
from millrace.lake.table import writer
from millrace.lake.upsert import BATCH_ROWS, CHANGE, differ

if TYPE_CHECKING:
    import pyarrow as pa

FROM, TO = "valid_from", "valid_to"
OWN = (
    Column(FROM, "timestamp with time zone", Kind.TIMESTAMPTZ, nullable=False, hashed="timestamp"),
    Column(TO, "timestamp with time zone", Kind.TIMESTAMPTZ, hashed="timestamp"),
)
CURRENT = Condition(fill("{to} is null", to=quoted(TO, "t")))
"""Which rows are current versions."""

# In every statement `t` is the asset, `c` the rows of the source, `d` rows and keys whose versions end.
_FILES = fill("read_parquet(?, union_by_name = true, hive_partitioning = false)")
LATEST = "select max(epoch_us({first})), max(epoch_us({last})) from {files}"
OPENED = (
    "select {columns} from {files} c anti join (select {keys} from (select * from {files} t where {current}) t"
    " join {files} c using ({keys}) where not ({differs})) same using ({keys})"
)
CLOSED = "select {columns} from {files} t semi join {files} d using ({keys}) where {current}"
ODD_BEFORE = "select count(*) from {files} t where {change} <> 'update' or {last} is not null"
ODD_AFTER = "select count(*) from {files} t where {change} <> case when {last} is null then 'insert' else 'update' end"


def versioned(schema: Schema) -> Schema:
    """Return the columns and key of versions of some rows."""
    return Schema((*schema.columns, *OWN), (*schema.key, FROM))


def is_versioned(schema: Schema) -> bool:
    """Whether an asset holds versions."""
    return schema.key[-1:] == (FROM,) and TO in schema.names


def plain(schema: Schema) -> Schema:
    """Return the columns and key that the versions are of."""
    columns = tuple(column for column in schema.columns if column.name not in (FROM, TO))
    return Schema(columns, tuple(name for name in schema.key if name != FROM))


def instant_after(engine: SqlEngine, files: Sequence[str], at: int) -> int:
    """Return an instant, or a later one than every instant in the asset, whatever clocks say.

    Args:
        engine: a DuckDB connection.
        files: the asset's.
        at: microseconds since 1970, UTC.
    """
    if not files:
        return at
    query = fill(LATEST, first=quoted(FROM), last=quoted(TO), files=_FILES)
    ((first, last),) = engine.sql(query, params=[list(files)]).fetchall()
    return max([at, *(int(one) + 1 for one in (first, last) if one is not None)])


class Opening:
    """A stage to whose rows two columns are added: they are versions that begin now.

    Args:
        stage: an open stage with the columns of versions.
        at: when they begin, in microseconds since 1970, UTC.
    """

    def __init__(self, stage: LakeStage, at: int) -> None:
        self._stage = stage
        self._at = at
        self.schema: pa.Schema = stage.schema

    def conform(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return a batch of the source's rows as versions. Raises ContractBroken."""
        import pyarrow as pa

        first, last = self.schema.field(FROM).type, self.schema.field(TO).type
        begin = pa.repeat(pa.scalar(self._at, pa.int64()), batch.num_rows).cast(first)
        batch = batch.append_column(FROM, begin).append_column(TO, pa.nulls(batch.num_rows, last))
        return self._stage.conform(batch)

    def new_file(self, segment: Segment | None = None) -> Path:
        """Return a path for a new file."""
        return self._stage.new_file(segment)

    def add_file(self, path: Path, segment: Segment, expected: Digest | None = None, rows: int | None = None) -> int:
        """Record a closed file as a whole segment; another attempt begins at another instant, so it keeps none."""
        return self._stage.add_file(path, segment, None, rows)


def changed(
    engine: SqlEngine,
    files: Sequence[str],
    read: Sequence[str],
    gone: Sequence[str],
    stage: LakeStage,
    folder: Path,
    at: int,
) -> tuple[list[str], int, int]:
    """Write which versions end and which begin.

    Args:
        engine: a DuckDB connection.
        files: the asset's.
        read: files with rows of the source as versions that begin at the instant; those that are as the current
            version says change nothing.
        gone: files with the keys of rows that the source has no more.
        stage: whose columns the files have.
        folder: where they are written.
        at: the instant, in microseconds since 1970, UTC.

    Returns:
        The files, and how many versions begin and end.
    """
    import pyarrow as pa

    schema = stage.request.schema
    rows = plain(schema)
    keys = listed(map(quoted, rows.key))
    opened, closed = folder / "opened.parquet", folder / "closed.parquet"
    begin = fill(
        OPENED,
        columns=listed(quoted(name, "c") for name in schema.names),
        keys=keys,
        files=_FILES,
        current=CURRENT.text,
        differs=differ(rows),
    )
    wanted = engine.sql(begin, params=[list(read), list(files), list(read)]).to_arrow_reader(BATCH_ROWS)
    begun = _write(opened, wanted, stage)
    end = fill(
        CLOSED,
        columns=listed(quoted(name, "t") for name in schema.names if name != TO),
        keys=keys,
        files=_FILES,
        current=CURRENT.text,
    )
    last = stage.schema.field(TO).type
    found = engine.sql(end, params=[list(files), [str(opened), *gone]]).to_arrow_reader(BATCH_ROWS)
    ending = (
        batch.append_column(TO, pa.repeat(pa.scalar(at, pa.int64()), batch.num_rows).cast(last)) for batch in found
    )
    ended = _write(closed, ending, stage)
    return [str(path) for path, number in ((opened, begun), (closed, ended)) if number], begun, ended


def _write(path: Path, batches: Iterable[pa.RecordBatch], stage: LakeStage) -> int:
    rows = 0
    with writer(path, stage.schema) as output:
        for batch in batches:
            output.write_batch(stage.conform(batch))
            rows += batch.num_rows
    return rows


def check_images(engine: SqlEngine, before: str, after: str, schema: Schema, asset: str) -> None:
    """Check that a load has ended current versions, begun new ones, and touched nothing else of them.

    Args:
        engine: a DuckDB connection.
        before, after: the load's images.
        schema: of the asset.
        asset: what errors name.

    Raises:
        ProofFailed: a closed version was changed.
    """
    from millrace.lake import segments

    change, last = quoted(CHANGE, "t"), quoted(TO, "t")
    odd = 0
    for template, path in ((ODD_BEFORE, before), (ODD_AFTER, after)):
        query = fill(template, files=_FILES, change=change, last=last)
        odd += engine.sql(query, params=[[path]]).fetchall()[0][0]
    kept = Schema(tuple(column for column in schema.columns if column.name != TO), schema.key)
    whole = Segment.whole()
    updates = Condition(fill("{change} = 'update'", change=change))
    sides = [
        segments.digests(segments.batches(engine, [path], kept, kept.names, only=updates), kept, [whole])
        for path in (before, after)
    ]
    if odd or sides[0] != sides[1]:
        raise ProofFailed(
            f"{asset}: the load would change versions that are closed, or more of one than its end",
            detail=[f"{odd:,} rows, and of ended versions {sides[0][whole.id]} became {sides[1][whole.id]}"],
            hint="nothing was published",
        )
