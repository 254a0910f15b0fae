"""Rows of a PostgreSQL source with values that a lake cannot hold: told apart while they are read, to be set aside.

The server marks them in the SELECT that reads all rows: such a row comes with its values as texts and with its own
digest, which counts in the proof. So the digest of the source stays what it is.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from psycopg import sql

from millrace.core.schema import Kind, Schema
from millrace.lake.quarantine import BYTES, COLUMN, DIGEST, REASON, RULE, UNFIT
from millrace.postgres.catalog import PgColumn
from millrace.postgres.digest import row_hash
from millrace.postgres.names import sql_name
from millrace.postgres.source import Source
from millrace.postgres.types import column_guard, kind, text_form

if TYPE_CHECKING:
    import pyarrow as pa

MOST = 100_000  # rows that are kept in memory; where more are bad the column itself does not fit
TAKES = {Kind.DECIMAL: "finite decimals"}
YEARS = "the years 0001 to 9999"


def guard_of(column: PgColumn) -> sql.Composable | None:
    """Return the predicate of a column's values that a lake cannot hold, or None; times of day are texts there."""
    return None if kind(column) is Kind.TIME else column_guard(column)


class Unfit:
    """The rows of one load that do not fit. Its methods may be called from several threads.

    Args:
        source: what is read.
        key: columns in which a value that does not fit is no matter of a row: nothing could name it.

    Attributes:
        count: how many there are so far.
    """

    def __init__(self, source: Source, key: Sequence[str]) -> None:
        self._columns = source.columns
        self._guards = {
            column.name: guard
            for column in source.columns
            if column.name not in key and (guard := guard_of(column)) is not None
        }
        self._tables: list[pa.Table] = []
        self._lock = threading.Lock()
        self.count = 0

    def expression(self, column: PgColumn, plain: sql.Composable) -> sql.Composable:
        """Return what is selected for a column: null where the value does not fit."""
        guard = self._guards.get(column.name)
        return plain if guard is None else sql.SQL("case when {} then null else {} end").format(guard, plain)

    def more(self) -> list[sql.Composable]:
        """Return what is selected besides: null, or the texts and the digest of a row that does not fit."""
        if not self._guards:
            return []
        bad = sql.SQL(" or ").join(sql.SQL("({})").format(guard) for guard in self._guards.values())
        texts = sql.SQL(", ").join(
            sql.SQL("case when {} then {} end").format(self._guards[column.name], text_form(column))
            for column in self._columns
            if column.name in self._guards
        )
        said = sql.SQL("pg_catalog.json_object({}::pg_catalog.text[], array[{}]::pg_catalog.text[])").format(
            sql.Literal(list(self._guards)), texts
        )
        found = {BYTES: said, DIGEST: row_hash(self._columns)}
        return [
            sql.SQL("case when {} then {}::pg_catalog.text end as {}").format(bad, value, sql.Identifier(name))
            for name, value in found.items()
        ]

    def told(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, pa.RecordBatch | None]:
        """Return the rows without what `more` selects; and that, where a row does not fit."""
        if not self._guards:
            return batch, None
        said = batch.select([BYTES, DIGEST])
        return batch.drop_columns([BYTES, DIGEST]), said if said.column(0).null_count < batch.num_rows else None

    def split(self, batch: pa.RecordBatch, said: pa.RecordBatch) -> tuple[pa.RecordBatch, pa.Table]:
        """Return the rows that fit, and the others with what they are said to be."""
        import pyarrow as pa
        import pyarrow.compute as pc

        marked = pc.is_valid(said.column(0))
        bad, said = pa.Table.from_batches([batch.filter(marked)]), said.filter(marked)
        texts = [self._said(text) for text in said.column(0).to_pylist()]
        more = {
            BYTES: [json.dumps(found).encode() for found in texts],
            DIGEST: said.column(1),
            RULE: [UNFIT] * len(texts),
            COLUMN: [next(iter(found)) for found in texts],
            REASON: ["; ".join(self._reason(*one) for one in found.items()) for found in texts],
        }
        for name, values in more.items():
            bad = bad.append_column(name, pa.array(values, pa.binary() if name == BYTES else pa.string()))
        return batch.filter(pc.invert(marked)), bad

    def _said(self, text: str) -> dict[str, str]:
        return {name: value for name, value in json.loads(text).items() if value is not None}

    def _reason(self, name: str, value: str) -> str:
        (column,) = (column for column in self._columns if column.name == name)
        return f"{sql_name(name)} is {value}, a lake takes {TAKES.get(kind(column), YEARS)}"

    def add(self, rows: pa.Table) -> bool:
        """Keep rows; return whether they are not too many to be kept."""
        with self._lock:
            self._tables.append(rows)
            self.count += rows.num_rows
            return self.count <= MOST

    def table(self) -> pa.Table | None:
        """Return all of them; None: there is none."""
        import pyarrow as pa

        return pa.concat_tables(self._tables) if self._tables else None

    def keys(self, path: Path, schema: Schema) -> list[Path]:
        """Write the keys of all of them into a file; return it, or none."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        from millrace.lake.table import arrow_schema

        rows = self.table()
        if rows is None:
            return []
        types = arrow_schema(schema)
        pq.write_table(rows.select(list(schema.key)).cast(pa.schema([types.field(name) for name in schema.key])), path)
        return [path]
