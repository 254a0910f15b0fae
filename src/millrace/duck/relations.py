"""Tables of a published warehouse file under the names `schema.table` of another connection, for queries."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from millrace.core.names import AssetId
from millrace.duck.engine import fill, identifier, qualified
from millrace.duck.inputs import literal

if TYPE_CHECKING:
    import duckdb

WAREHOUSE = "warehouse"  # a view in the file names its tables by the catalogue, which is the file's name


def attach_file(connection: duckdb.DuckDBPyConnection, file: Path) -> None:
    """Attach a published warehouse file, read-only."""
    connection.execute(fill("attach {file} as {name} (read_only)", file=literal(str(file)), name=identifier(WAREHOUSE)))


def show_table(connection: duckdb.DuckDBPyConnection, asset: AssetId) -> None:
    """Make a view over a table of the attached warehouse file."""
    connection.execute(fill("create schema if not exists {schema}", schema=identifier(asset.layer)))
    view, table = qualified(asset.layer, asset.name), qualified(WAREHOUSE, asset.layer, asset.name)
    connection.execute(fill("create or replace view {view} as select * from {table}", view=view, table=table))
