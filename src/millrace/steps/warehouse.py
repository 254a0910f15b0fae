"""What the steps of a warehouse group share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import sqlglot
from sqlglot import exp

from millrace.core.names import AssetId, TableRef
from millrace.core.plan import Step
from millrace.core.ports import Context
from millrace.core.schema import Column, Kind
from millrace.duck.warehouse import WarehouseTarget
from millrace.postgres.catalog import describe
from millrace.postgres.generations import Generation
from millrace.postgres.session import Connection, translated
from millrace.postgres.warehouse import PostgresWarehouse
from millrace.quality.gate import Query
from millrace.steps.checking import querying

_DUCKDB_TYPES = {
    Kind.BOOL: "BOOLEAN",
    Kind.INT16: "SMALLINT",
    Kind.INT32: "INTEGER",
    Kind.INT64: "BIGINT",
    Kind.FLOAT32: "FLOAT",
    Kind.FLOAT64: "DOUBLE",
    Kind.TEXT: "VARCHAR",
    Kind.BYTES: "BLOB",
    Kind.DATE: "DATE",
    Kind.TIME: "TIME",
    Kind.TIMESTAMP: "TIMESTAMP",
    Kind.TIMESTAMPTZ: "TIMESTAMP WITH TIME ZONE",
}


def warehouse_of(ctx: Context, step: Step) -> WarehouseTarget:
    """Return the step's target, which is a DuckDB warehouse."""
    target = ctx.target(step.target)
    assert isinstance(target, WarehouseTarget)  # noqa: S101 - the planner names it
    return target


@contextmanager
def staged_query(ctx: Context, step: Step) -> Iterator[tuple[Query, Callable[[AssetId], tuple[str, str]]]]:
    """Open what the run has staged in the warehouse: how to ask it in DuckDB's SQL, and where an asset lies in it."""
    target = ctx.target(step.target)
    if isinstance(target, PostgresWarehouse):
        made = target.opened(ctx.run)
        with target.connect("check") as connection:
            yield asking(connection, target.database.label), partial(_place, made)
        return
    clone = warehouse_of(ctx, step).clone(ctx.run)
    duck = clone.connect(read_only=True)
    try:
        yield querying(duck, str(clone.path)), lambda asset: (asset.layer, asset.name)
    finally:
        duck.close()


def _place(made: Generation, asset: AssetId) -> tuple[str, str]:
    """Return where an asset is to be looked at: what the build made, or a source beside it."""
    return asset.layer + (made.suffix if asset.layer in made.schemas else ""), asset.name


def asking(connection: Connection, label: str) -> Query:
    """Return a function that runs DuckDB's SQL, as checks are written in, on a PostgreSQL server."""

    def query(text: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        parsed = sqlglot.parse_one(text, read="duckdb")
        with translated(label, "run a check", connection=connection):
            if isinstance(parsed, exp.Describe):
                table = TableRef(parsed.this.db, parsed.this.name)
                columns = describe(connection, table, label=label).columns
                return [(column.name, duckdb_type(column.column())) for column in columns]
            return connection.execute(_in_postgres(parsed).encode(), list(parameters) or None).fetchall()

    return query


def _in_postgres(parsed: exp.Expr) -> str:
    return parsed.transform(_not_a_number).sql("postgres")


def _not_a_number(node: exp.Expr) -> exp.Expr:
    if isinstance(node, exp.IsNan):
        return exp.EQ(this=node.this, expression=exp.cast(exp.Literal.string("NaN"), "double", dialect="postgres"))
    return node


def duckdb_type(column: Column) -> str:
    """Return the type that a column of PostgreSQL has in DuckDB's words, in which checks name types."""
    if column.kind is Kind.DECIMAL:
        return f"DECIMAL({column.precision},{column.scale})"
    return _DUCKDB_TYPES[column.kind]
