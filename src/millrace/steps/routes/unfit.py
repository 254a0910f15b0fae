"""Rows of a PostgreSQL source with values that a lake cannot hold: told apart while they are read, to be set aside.

The server marks them in the SELECT that reads all rows: such a row comes with its values as texts and with its own
digest, which counts in the proof. So the digest of the source stays what it is.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
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

SHOWN = 60  # characters of a value in a reason
MOST = 100_000  # rows that are kept in memory; where more are bad the column itself does not fit
TAKES = {Kind.DECIMAL: "finite decimals"}
YEARS = "the years 0001 to 9999"


def guard_of(column: PgColumn) -> sql.Composable | None:
    """Return the predicate of a column's values that a lake cannot hold, or None; times of day are texts there."""
    return None if kind(column) is Kind.TIME else column_guard(column)


@dataclass(frozen=True, slots=True)
class _Guard:
    """One reason to set rows aside: `bad` is the predicate, `column` holds the value, `why` follows it."""

    column: PgColumn
    bad: sql.Composable
    why: str


def _guards(columns: Sequence[PgColumn], key: Sequence[str]) -> list[_Guard]:
    found = [_Guard(one.column, one.bad, one.why) for column in columns for one in column.refused]
    return found + [
        _Guard(column, bad, f"a lake takes {TAKES.get(kind(column), YEARS)}")
        for column in columns
        if column.name not in key and (bad := guard_of(column)) is not None
    ]


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
        self._guards = _guards(source.columns, key)
        self._tables: list[pa.Table] = []
        self._lock = threading.Lock()
        self.count = 0

    def expression(self, column: PgColumn, plain: sql.Composable) -> sql.Composable:
        """Return what is selected for a column: null where the value does not fit."""
        bad = [guard.bad for guard in self._guards if guard.column.name == column.name]
        if not bad:
            return plain
        return sql.SQL("case when {} then null else {} end").format(sql.SQL(" or ").join(bad), plain)

    def more(self) -> list[sql.Composable]:
        """Return what is selected besides: null, or the texts and the digest of a row that does not fit."""
        if not self._guards:
            return []
        bad = sql.SQL(" or ").join(sql.SQL("({})").format(guard.bad) for guard in self._guards)
        texts = sql.SQL(", ").join(
            sql.SQL("case when {} then {} end").format(guard.bad, text_form(guard.column)) for guard in self._guards
        )
        places = [str(place) for place in range(len(self._guards))]
        said = sql.SQL("pg_catalog.json_object({}::pg_catalog.text[], array[{}]::pg_catalog.text[])").format(
            sql.Literal(places), texts
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
            BYTES: [json.dumps({guard.column.name: text for guard, text in found}).encode() for found in texts],
            DIGEST: said.column(1),
            RULE: [UNFIT] * len(texts),
            COLUMN: [found[0][0].column.name for found in texts],
            REASON: ["; ".join(_reason(*one) for one in found) for found in texts],
        }
        for name, values in more.items():
            bad = bad.append_column(name, pa.array(values, pa.binary() if name == BYTES else pa.string()))
        return batch.filter(pc.invert(marked)), bad

    def _said(self, text: str) -> list[tuple[_Guard, str]]:
        return [(self._guards[int(place)], value) for place, value in json.loads(text).items() if value is not None]

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


def _reason(guard: _Guard, value: str) -> str:
    shown = value if len(value) <= SHOWN else f"{value[:SHOWN]}…"
    name = sql_name(guard.column.name)
    return f"{name} is {shown}, {guard.why}" if guard.why else f"new column {name}: {shown}"
