"""Run a SQL model in a DuckDB connection that the caller brings, as a stream of Arrow batches of a stable schema.

What a model gives is fitted to what every layer can hold, and nothing is changed silently:

- integers of up to 64 bits stay; wider and unsigned 64-bit ones (`sum` of integers is one) become 64-bit ones by a
  checked cast, so a sum that does not fit is an error, never another number;
- decimals, booleans, floats, text, bytes, dates and timestamps (microseconds) stay;
- uuid, enum, time, interval, bit and wider numbers become their text; lists, structs and maps become JSON text;
- a column without a type (`null as x`), two columns of one name, and timestamps finer than microseconds are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from millrace.core.schema import Column, Kind, Schema, check_partitions, decimal_of
from millrace.errors import ContractBroken, ExtraMissing, Place, StepFailed
from millrace.transform.sql_model import SqlModel, quote

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 65_536
_EXCERPT = re.compile(r"\n\nLINE (\d+): (.*)\n( *)\^(\^*)", re.DOTALL)


class Connection(Protocol):
    """What is used of a DuckDB connection; its inputs must be there under the names that the model's text has."""

    def execute(self, query: str, parameters: Any = ...) -> Any:
        """Run a statement."""

    def sql(self, query: str, *, params: Any = ...) -> Any:
        """Make a relation whose result can be streamed."""


@dataclass(frozen=True, slots=True)
class _Fit:
    """How a DuckDB type leaves a model: the cast (or none), the kind, how it is hashed."""

    kind: Kind
    hashed: str
    cast: str | None = None


_TEXT = _Fit(Kind.TEXT, "text", "varchar")
_FITS = {
    "BOOLEAN": _Fit(Kind.BOOL, "bool"),
    "TINYINT": _Fit(Kind.INT16, "int", "smallint"),
    "UTINYINT": _Fit(Kind.INT16, "int", "smallint"),
    "SMALLINT": _Fit(Kind.INT16, "int"),
    "USMALLINT": _Fit(Kind.INT32, "int", "integer"),
    "INTEGER": _Fit(Kind.INT32, "int"),
    "UINTEGER": _Fit(Kind.INT64, "int", "bigint"),
    "BIGINT": _Fit(Kind.INT64, "int"),
    "UBIGINT": _Fit(Kind.INT64, "int", "bigint"),
    "HUGEINT": _Fit(Kind.INT64, "int", "bigint"),
    "UHUGEINT": _Fit(Kind.INT64, "int", "bigint"),
    "FLOAT": _Fit(Kind.FLOAT32, "float8"),
    "DOUBLE": _Fit(Kind.FLOAT64, "float8"),
    "VARCHAR": _Fit(Kind.TEXT, "text"),
    "BLOB": _Fit(Kind.BYTES, "bytes"),
    "DATE": _Fit(Kind.DATE, "date"),
    "TIMESTAMP": _Fit(Kind.TIMESTAMP, "timestamp"),
    "TIMESTAMP_S": _Fit(Kind.TIMESTAMP, "timestamp", "timestamp"),
    "TIMESTAMP_MS": _Fit(Kind.TIMESTAMP, "timestamp", "timestamp"),
    "TIMESTAMP WITH TIME ZONE": _Fit(Kind.TIMESTAMPTZ, "timestamp"),
    "JSON": _TEXT,
    "UUID": _TEXT,
    "TIME": _TEXT,
    "TIME WITH TIME ZONE": _TEXT,
    "INTERVAL": _TEXT,
    "BIT": _TEXT,
    "BIGNUM": _TEXT,
}
_JSON = _Fit(Kind.TEXT, "text", "json")


@dataclass(frozen=True, slots=True)
class ModelResult:
    """A model's rows, to be read once, and their schema."""

    schema: Schema
    reader: pa.RecordBatchReader


def run_model(
    connection: Connection,
    model: SqlModel,
    parameters: Mapping[str, Any] | None = None,
    *,
    sql: str | None = None,
    key: Sequence[str] = (),
    partitions: Sequence[str] = (),
    partitions_at: str | None = None,
    batch_rows: int = BATCH_ROWS,
) -> ModelResult:
    """Start a model and return its rows as a stream; they are computed while they are read.

    Args:
        connection: an open DuckDB connection in UTC that has the model's inputs.
        model: the model.
        parameters: values of `$now` (aware datetime), `$today` (date), `$start`, `$end`; others are ignored.
        sql: what to run instead of the model's text: what `bind` or `restrict` made of it.
        key: the result's key columns.
        partitions: columns that the result is split by: rows with equal values in them come beside each other.
        partitions_at: file and line that name them, for errors.
        batch_rows: rows of a batch.

    Raises:
        StepFailed: DuckDB refused it; the place is the file's line and column. While reading, too.
        ContractBroken: the result has columns that no layer can hold, lacks a key column, or cannot be split so.
    """
    text = model.sql if sql is None else sql
    exact = sql is None
    values = {name: (parameters or {})[name] for name in model.parameters if name in (parameters or {})}
    missing = [name for name in model.parameters if name not in values]
    if missing:
        raise StepFailed(f"the model needs ${missing[0]}, which this run does not have", where=model.path)
    with _translated(model, exact=exact, above=1):
        described = connection.execute("\n".join(("describe", text)), values).fetchall()
    columns = [(row[0], row[1]) for row in described]
    schema, select = _fitted(model, columns)
    for name in key:
        if name not in schema.names:
            raise ContractBroken(f"the model gives no column {name}, which is its key", where=model.path)
    check_partitions(schema, partitions, "the model", partitions_at or model.path)
    order = " ".join(("order by", ", ".join(map(quote, partitions)))) if partitions else ""
    # a comment may end the text, so the parenthesis stands on a line of its own
    head = " ".join(("select", select, "from ("))
    above = 1 + head.count("\n")
    with _translated(model, exact=exact, above=above):
        query = "\n".join((head, text, ") as model", order))
        reader = connection.sql(query, params=values).to_arrow_reader(batch_rows)
    return ModelResult(schema.with_key(key), _reading(reader, model, exact, above))


def write_parquet(result: ModelResult, path: Path, *, compression: str = "zstd") -> int:
    """Write a model's rows to one Parquet file, a row group per batch; returns the rows. For files outside a lake."""
    try:
        import pyarrow.parquet as pq
    except ImportError:
        raise ExtraMissing("writing Parquet", "lake") from None
    count = 0
    with pq.ParquetWriter(path, result.reader.schema, compression=compression) as writer:
        for batch in result.reader:
            writer.write_batch(batch)
            count += batch.num_rows
    return count


def _fitted(model: SqlModel, columns: Sequence[tuple[str, str]]) -> tuple[Schema, str]:
    """Return the schema of the result and the select list that makes it."""
    found, terms, seen = [], [], set()
    for name, type_text in columns:
        if name.lower() in seen:
            raise ContractBroken(
                f"the model gives two columns {name}", where=model.path, hint="name columns apart: no case, no *"
            )
        seen.add(name.lower())
        fit, precision, scale = _fit(model, name, type_text)
        column = quote(name)
        if fit is _JSON:
            terms.append(f"cast(to_json({column}) as varchar) as {column}")
        else:
            terms.append(f"cast({column} as {fit.cast}) as {column}" if fit.cast else column)
        shown = fit.cast.upper() if fit.cast and fit is not _JSON else ("VARCHAR" if fit is _JSON else type_text)
        found.append(Column(name, shown, fit.kind, True, precision, scale, fit.hashed))
    return Schema(tuple(found)), ", ".join(terms)


def _fit(model: SqlModel, name: str, type_text: str) -> tuple[_Fit, int, int]:
    if precise := decimal_of(type_text):
        return _Fit(Kind.DECIMAL, "text"), *precise
    if type_text.strip('"') == "NULL":
        raise ContractBroken(
            f"column {name} has no type: it is null in all rows", where=model.path, hint=f"cast(null as …) as {name}"
        )
    if type_text == "TIMESTAMP_NS":
        raise ContractBroken(
            f"column {name} has nanoseconds, which no layer keeps", where=model.path, hint="cast it as timestamp"
        )
    if type_text.endswith("]") or type_text.startswith(("STRUCT(", "MAP(", "UNION(")):
        return _JSON, 0, 0
    if type_text.startswith("ENUM("):
        return _TEXT, 0, 0
    if type_text not in _FITS:
        raise ContractBroken(
            f"column {name} has the type {type_text}, which no layer keeps", where=model.path, hint="cast it as varchar"
        )
    return _FITS[type_text], 0, 0


def _reading(reader: pa.RecordBatchReader, model: SqlModel, exact: bool, above: int) -> pa.RecordBatchReader:
    """Return the reader with its errors translated, its batches never empty."""
    import pyarrow as pa

    def batches() -> Iterator[pa.RecordBatch]:
        with _translated(model, exact=exact, above=above):
            for batch in reader:
                if batch.num_rows:
                    yield batch

    return pa.RecordBatchReader.from_batches(reader.schema, batches())


@contextmanager
def _translated(model: SqlModel, *, exact: bool, above: int) -> Iterator[None]:
    import duckdb
    import pyarrow as pa

    try:
        yield
    except (duckdb.Error, pa.ArrowException) as error:
        raise _failed(model, error, exact=exact, above=above) from error


def _failed(model: SqlModel, error: Exception, *, exact: bool, above: int) -> StepFailed:
    """Return the error with the file's line; `above` lines of ours stand over the model's text."""
    text = str(error)
    place = Place(model.path)
    if match := _EXCERPT.search(text):
        line = int(match[1]) - above
        cut = match[2].startswith("...") or not exact
        column = 0 if cut else max(len(match[3]) - len(f"LINE {match[1]}: ") + 1, 0)
        place = Place(model.path, max(line, 0), column, 1 + len(match[4]))
    words = [line for line in _EXCERPT.sub("", text).strip().splitlines() if line.strip()]
    hint = None
    if "Out of Memory" in text or "out of memory" in text:
        return StepFailed(
            "the model needs more memory than its limit", where=place, detail=words[:1], hint="raise memory_limit"
        )
    if "out of range for the destination type INT64" in text:
        hint = "cast the sum as decimal(38,0) or as varchar where 64 bits are not enough"
    return StepFailed("the model failed", where=place, detail=words[:6], hint=hint)
