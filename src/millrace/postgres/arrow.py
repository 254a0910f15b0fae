"""PostgreSQL to Arrow by ADBC: one query, one pinned connection, inside an exported snapshot. Needs the extra `lake`.

ADBC reads some values wrong without a word (see `types.arrow_guard`) and types it does not know as raw bytes, so the
SELECT is built of `types.arrow_expression`. The password goes to libpq in memory, never into an error's text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from psycopg import sql
from psycopg.conninfo import make_conninfo

from millrace.core.schema import Column, Kind
from millrace.core.secrets import redact
from millrace.core.segment import Segment
from millrace.errors import ContractBroken, ExtraMissing, MillraceError, TransientFailure
from millrace.postgres.catalog import PgColumn
from millrace.postgres.names import sql_name
from millrace.postgres.segments import predicate
from millrace.postgres.session import PINS, PINS_17, Connection, Database, not_connected, translated
from millrace.postgres.source import Source
from millrace.postgres.sqlstates import translate_state
from millrace.postgres.types import arrow_expression, arrow_guard, column_guard, text_form

try:
    import adbc_driver_manager
    import adbc_driver_postgresql.dbapi as adbc
    import pyarrow as pa
except ImportError:
    raise ExtraMissing("reading PostgreSQL as Arrow", "lake") from None

BATCH_BYTES = 8 << 20  # larger batches cost memory and are no faster
_STATE = re.compile(r"SQLSTATE: ([0-9A-Z]{5})")
# In the middle of a stream ADBC gives only words, no SQLSTATE.
_TRANSIENT = re.compile(
    r"canceling statement|deadlock|could not serialize|conflict with recovery|timeout|out of memory"
)
_GONE = ("22023", "42704", "55000")  # what SET TRANSACTION SNAPSHOT says of a snapshot that has ended


_ARROW: dict[Kind, pa.DataType] = {
    Kind.BOOL: pa.bool_(),
    Kind.INT16: pa.int16(),
    Kind.INT32: pa.int32(),
    Kind.INT64: pa.int64(),
    Kind.FLOAT32: pa.float32(),
    Kind.FLOAT64: pa.float64(),
    Kind.TEXT: pa.string(),
    Kind.BYTES: pa.binary(),
    Kind.DATE: pa.date32(),
    Kind.TIME: pa.time64("us"),
    Kind.TIMESTAMP: pa.timestamp("us"),
    Kind.TIMESTAMPTZ: pa.timestamp("us", tz="UTC"),
}


def arrow_type(column: Column) -> pa.DataType:
    """Return the Arrow type of a portable column."""
    if column.kind is Kind.DECIMAL:
        return pa.decimal128(column.precision, column.scale)
    return _ARROW[column.kind]


def arrow_schema(columns: Sequence[PgColumn]) -> pa.Schema:
    """Return the Arrow schema in which `read_source` gives the columns."""
    return pa.schema([pa.field(c.name, arrow_type(c.column()), nullable=not c.not_null) for c in columns])


def arrow_query(source: Source, extra: sql.Composable | None = None) -> sql.Composed:
    """Return the SELECT for `read_arrow`: each column as an expression that ADBC reads exactly, under its name."""
    expressions = [sql.SQL("{} as {}").format(arrow_expression(c), c.identifier) for c in source.columns]
    return source.select(expressions, extra)


def check_arrow(connection: Connection, source: Source) -> None:
    """Refuse values that files of Parquet cannot hold: see `types.arrow_guard`.

    Raises:
        ContractBroken: naming each column, the number of rows and an example.
    """
    guard = arrow_guard(source.columns)
    if guard is None:
        return
    guarded = [(column, part) for column in source.columns if (part := column_guard(column)) is not None]
    expressions: list[sql.Composable] = []
    for column, part in guarded:
        expressions.append(sql.SQL("pg_catalog.count(*) filter (where {})").format(part))
        expressions.append(sql.SQL("pg_catalog.min({}) filter (where {})").format(text_form(column), part))
    with translated(source.database, f"check the values of {source.label}", connection=connection):
        row = connection.execute(source.select(expressions, guard)).fetchone() or ()
    found = [
        f"{sql_name(column.name)} ({column.type}): {row[2 * place]:,} rows, like {row[2 * place + 1]}"
        for place, (column, _) in enumerate(guarded)
        if row and row[2 * place]
    ]
    if found:
        raise ContractBroken(
            f"{source.label} has values that Parquet files cannot hold",
            where=source.database,
            detail=found,
            hint="csv files hold every value: --format csv of an export, stage: csv of a copy",
        )


def read_arrow(
    db: Database, query: sql.Composable | str, snapshot_token: str | None = None, batch_bytes: int = BATCH_BYTES
) -> Iterator[pa.RecordBatch]:
    """Yield a query's rows as Arrow batches as ADBC gives them (numeric is `opaque<string>`).

    Args:
        db: where to.
        query: a SELECT without parameters.
        snapshot_token: an exported snapshot to read in.
        batch_bytes: aimed size of a batch in bytes.

    Raises:
        ConnectionRefused, AuthenticationFailed, NotFound, PermissionMissing, TransientFailure, MillraceError.
    """
    text = query if isinstance(query, str) else query.as_string(None)
    with _opened(db, snapshot_token) as connection, _translated(db, "read rows"), connection.cursor() as cursor:
        cursor.adbc_statement.set_options(**{"adbc.postgresql.batch_size_hint_bytes": str(batch_bytes)})
        cursor.execute(text)
        reader = cursor.fetch_record_batch()
        while True:
            try:
                batch = reader.read_next_batch()
            except StopIteration:
                return
            yield batch


def read_source(
    db: Database,
    source: Source,
    segment: Segment,
    snapshot_token: str | None,
    key: Sequence[PgColumn] = (),
    batch_bytes: int = BATCH_BYTES,
) -> pa.RecordBatchReader:
    """Return a segment's rows in `arrow_schema`: decimals are decimal128, everything without a kind is text."""
    keys = key or (source.pick(source.key) if segment.how in ("range", "bucket") else ())
    query = arrow_query(source, predicate(segment, keys))
    schema = arrow_schema(source.columns)
    batches = (typed(batch, schema) for batch in read_arrow(db, query, snapshot_token, batch_bytes))
    return pa.RecordBatchReader.from_batches(schema, batches)


def typed(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Return ADBC's batch in a schema of `arrow_schema`; only numeric changes, from its exact text to decimal128."""
    arrays = []
    for array, field in zip(batch.columns, schema, strict=True):
        plain = array.storage if isinstance(array, pa.ExtensionArray) else array
        arrays.append(plain if plain.type == field.type else plain.cast(field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


@contextmanager
def _opened(db: Database, token: str | None) -> Iterator[Any]:
    conninfo = make_conninfo("", **db.keywords("read"))
    try:
        connection = adbc.connect(conninfo, autocommit=True)
    except adbc_driver_manager.Error as error:
        raise not_connected(_bare(error), db) from None
    try:
        with _translated(db, "set up the session"), connection.cursor() as cursor:
            version = int(connection.adbc_get_info()["vendor_version"])  # like 150018
            settings = {**PINS, **(PINS_17 if version >= 170_000 else {})}
            pins = sql.SQL(", ").join(
                sql.SQL("pg_catalog.set_config({}, {}, false)").format(sql.Literal(name), sql.Literal(value))
                for name, value in settings.items()
            )
            cursor.execute(sql.SQL("select {}").format(pins).as_string(None))
            cursor.fetchall()
            connection.adbc_connection.set_autocommit(False)
            cursor.execute("set transaction isolation level repeatable read, read only")
            if token is not None:
                cursor.execute(sql.SQL("set transaction snapshot {}").format(sql.Literal(token)).as_string(None))
        yield connection
    finally:
        connection.close()


@contextmanager
def _translated(db: Database, doing: str) -> Iterator[None]:
    try:
        yield
    except (adbc_driver_manager.Error, pa.ArrowException, OSError) as error:
        raise _error(error, db, doing) from None  # the driver's text holds the whole query


def _error(error: Exception, db: Database, doing: str) -> MillraceError:
    words = _bare(error)
    match = _STATE.search(str(error))
    state = getattr(error, "sqlstate", None) or (match[1] if match else None)
    role = db.parameters.get("user")
    if state in _GONE and "snapshot" in words:
        return TransientFailure("the snapshot of the source is gone", where=db.label, detail=[words])
    if state is not None:
        return translate_state(state, words, [], where=db.label, doing=doing, role=role)
    if "ERROR:" in str(error) and not _TRANSIENT.search(words):
        return MillraceError(f"could not {doing}", where=db.label, detail=[words])
    if isinstance(error, adbc_driver_manager.OperationalError | OSError):
        return TransientFailure(f"could not {doing}: the server ended it", where=db.label, detail=[words])
    return MillraceError(f"could not {doing}", where=db.label, detail=[words])


def _bare(error: Exception) -> str:
    """Return the server's first line out of the driver's message, without the query and without secrets."""
    text = str(error).split("\n\nQuery was:")[0]
    text = re.sub(r"\A(?:[A-Z_]+: )?(?:\[libpq\] )?", "", text)
    match = re.search(r"ERROR:\s+(.*)", text)
    return redact(match[1] if match else text.strip().splitlines()[0] if text.strip() else type(error).__name__)
