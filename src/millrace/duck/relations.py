"""Parquet files and tables of another database file under the names `schema.table` of a connection."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sqlglot import exp

from millrace.core.names import AssetId
from millrace.core.schema import Schema
from millrace.duck.digest import types
from millrace.duck.engine import Fragment, fill, identifier, qualified
from millrace.duck.kinds import load_columns

if TYPE_CHECKING:
    import duckdb

WAREHOUSE = "warehouse"  # a view in the file names its tables by the catalogue, which is the file's name


def literal(text: str) -> Fragment:
    """Return a text as an SQL literal; only where a statement takes no bound parameter."""
    return Fragment(exp.Literal.string(text).sql(dialect="duckdb"))


def show_files(
    connection: duckdb.DuckDBPyConnection, asset: AssetId, files: Sequence[str], schema: Schema, *, own: bool = False
) -> None:
    """Make a view over the Parquet files of a lake asset, with the asset's own types.

    Args:
        connection: where the view is made, as layer.name.
        asset: what it shows.
        files: the Parquet files of one version; none makes an empty relation.
        schema: the asset's columns.
        own: also show the lake's own columns (`_millrace_seq`, `_millrace_loaded_at`).
    """
    connection.execute(fill("create schema if not exists {schema}", schema=identifier(asset.layer)))
    view = qualified(asset.layer, asset.name)
    if not files:
        columns = load_columns(schema, [], str(asset), own=own)
        connection.execute(
            fill("create or replace view {view} as select {columns} where false", view=view, columns=columns)
        )
        return
    listed = Fragment("[" + ", ".join(literal(file) for file in files) + "]")
    source = fill(
        "(select * from read_parquet({files}, union_by_name = true, hive_partitioning = false))", files=listed
    )
    columns = load_columns(schema, types(connection, source), str(asset), own=own)
    connection.execute(
        fill(
            "create or replace view {view} as select {columns} from {source}", view=view, columns=columns, source=source
        )
    )


def attach(connection: duckdb.DuckDBPyConnection, file: Path) -> None:
    """Attach a published warehouse file, read-only."""
    connection.execute(fill("attach {file} as {name} (read_only)", file=literal(str(file)), name=identifier(WAREHOUSE)))


def show_table(connection: duckdb.DuckDBPyConnection, asset: AssetId) -> None:
    """Make a view over a table of the attached warehouse file."""
    connection.execute(fill("create schema if not exists {schema}", schema=identifier(asset.layer)))
    view, table = qualified(asset.layer, asset.name), qualified(WAREHOUSE, asset.layer, asset.name)
    connection.execute(fill("create or replace view {view} as select * from {table}", view=view, table=table))
