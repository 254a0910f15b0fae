"""Lake files and warehouse tables under the names `layer.asset` in one embedded DuckDB connection."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sqlglot import exp

if TYPE_CHECKING:
    import duckdb

WAREHOUSE = "warehouse"  # dbt's views name their tables by the catalogue that the file's name gives


def _name(asset_layer: str, asset_name: str, catalog: str | None = None) -> exp.Table:
    return exp.Table(
        this=exp.to_identifier(asset_name, quoted=True),
        db=exp.to_identifier(asset_layer, quoted=True),
        catalog=exp.to_identifier(catalog, quoted=True) if catalog else None,
    )


def _schema(connection: duckdb.DuckDBPyConnection, layer: str) -> None:
    made = exp.Create(this=exp.Table(db=exp.to_identifier(layer, quoted=True)), kind="SCHEMA", exists=True)
    connection.execute(made.sql(dialect="duckdb"))


def show_files(connection: duckdb.DuckDBPyConnection, layer: str, name: str, files: Sequence[str]) -> None:
    """Make a view over the Parquet files of a lake asset."""
    _schema(connection, layer)
    listed = exp.Array(expressions=[exp.Literal.string(file) for file in files])
    source = exp.Anonymous(
        this="read_parquet",
        expressions=[listed, exp.PropertyEQ(this=exp.to_identifier("union_by_name"), expression=exp.true())],
    )
    view = exp.Create(this=_name(layer, name), kind="VIEW", expression=exp.select("*").from_(source))
    connection.execute(view.sql(dialect="duckdb"))


def attach_warehouse(connection: duckdb.DuckDBPyConnection, file: Path) -> None:
    """Attach the published warehouse file, read-only."""
    attach = exp.Attach(
        this=exp.alias_(exp.Literal.string(str(file)), WAREHOUSE, quoted=True),
        expressions=[exp.AttachOption(this=exp.var("READ_ONLY"))],
    )
    connection.execute(attach.sql(dialect="duckdb"))


def show_table(connection: duckdb.DuckDBPyConnection, layer: str, name: str) -> None:
    """Make a view over a table of the attached warehouse."""
    _schema(connection, layer)
    select = exp.select("*").from_(_name(layer, name, WAREHOUSE))
    connection.execute(exp.Create(this=_name(layer, name), kind="VIEW", expression=select).sql(dialect="duckdb"))
