"""Assets of a lake as views of an engine's connection, under their own names: `bronze.orders`.

A model's text then runs as it is written. A view shows the schema's columns and nothing else (a lake's own columns
stay hidden), and reads exactly the given files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from millrace.core.names import AssetId
from millrace.core.schema import Schema
from millrace.duck.digest import types
from millrace.duck.engine import Fragment, fill, identifier, listed, qualified, translated
from millrace.duck.kinds import load_columns

if TYPE_CHECKING:
    import duckdb


FILE, ROW = "_millrace_file", "file_row_number"
_PLAIN = "read_parquet([{files}], union_by_name = true, hive_partitioning = false)"
_LOCATED = (
    "read_parquet([{files}], union_by_name = true, hive_partitioning = false,"
    " filename = '_millrace_file', file_row_number = true)"
)


def literal(text: str) -> Fragment:
    """Return a text as an SQL literal; for views, whose text cannot hold bound values."""
    return Fragment("'" + text.replace("'", "''") + "'")


def attach(
    connection: duckdb.DuckDBPyConnection,
    asset: AssetId,
    files: Sequence[str],
    schema: Schema,
    *,
    catalog: str = "memory",
    located: bool = False,
) -> None:
    """Make the view `layer.name` over Parquet files; with no files it is empty, with the schema's types.

    Args:
        connection: of the engine.
        asset: its layer becomes a schema of the connection.
        files: paths of all Parquet files of the asset's version.
        schema: the asset's columns.
        catalog: name of the connection's database; `memory` for one in memory.
        located: the view also says where a row lies: FILE (path) and ROW (from 0).

    Raises:
        StepFailed: a file is missing, torn, or lacks a column.
    """
    name = qualified(catalog, asset.layer, asset.name)
    with translated(str(asset), f"reading {asset}"):
        if files:
            source = fill(_LOCATED if located else _PLAIN, files=listed(literal(file) for file in files))
            columns = load_columns(schema, types(connection, source), str(asset), own=False)
            columns = listed([columns, identifier(FILE), identifier(ROW)]) if located else columns
            query = fill("select {columns} from {source}", columns=columns, source=source)
        else:
            query = fill("select {columns} where false", columns=load_columns(schema, [], str(asset), own=False))
        connection.execute(fill("create schema if not exists {schema}", schema=qualified(catalog, asset.layer)))
        connection.execute(fill("create or replace view {name} as {query}", name=name, query=query))


def keys(
    connection: duckdb.DuckDBPyConnection,
    name: str,
    files: Sequence[str],
    key: Sequence[str],
    *,
    catalog: str = "memory",
) -> Fragment:
    """Make a table of the distinct keys in some Parquet files (a lake's changes); returns its quoted name.

    Raises:
        StepFailed: a file is missing, torn, or lacks a key column.
    """
    table = qualified(catalog, "main", name)
    columns = listed(qualified(column) for column in key)
    with translated(name, "reading the changed keys"):
        connection.execute(
            fill(
                "create or replace table {table} as select distinct {columns} from"
                " read_parquet(?, union_by_name = true, hive_partitioning = false)",
                table=table,
                columns=columns,
            ),
            [list(files)],
        )
    return table
