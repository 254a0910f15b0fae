"""`millrace query`: one SELECT over what is published, wherever it lives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from millrace.app.runtime import Runtime
from millrace.core.names import AssetId
from millrace.errors import NotFound, UsageError, did_you_mean

if TYPE_CHECKING:
    import duckdb

    from millrace.project import Project

NUMERIC_OIDS = frozenset({20, 21, 23, 26, 700, 701, 790, 1700})  # of PostgreSQL: integers, floats, money, numeric
NUMERIC = ("INT", "DECIMAL", "DOUBLE", "FLOAT", "NUMERIC", "REAL")


def tables_of(sql: str, dialect: str = "duckdb") -> tuple[str, list[AssetId]]:
    """Return the statement, and the assets that it reads.

    Raises:
        UsageError: it is not one SELECT in that SQL, or a table is not named layer.asset.
    """
    import sqlglot
    from sqlglot import exp
    from sqlglot.optimizer.scope import traverse_scope

    try:
        statements = [statement for statement in sqlglot.parse(sql, dialect=dialect) if statement is not None]
    except sqlglot.ParseError as error:
        problem = error.errors[0] if error.errors else {}
        line, column = problem.get("line", 1), problem.get("col", 0)
        raise UsageError(
            f"the query does not parse at line {line}, column {column}",
            detail=[f"near {problem.get('highlight', '')!r}: {problem.get('description', error)}"],
        ) from None
    if len(statements) != 1 or not isinstance(statements[0], exp.Query):
        raise UsageError("millrace query takes one SELECT; it changes nothing")
    tables: dict[AssetId, None] = {}
    for scope in traverse_scope(statements[0]):
        for source in scope.sources.values():
            if not isinstance(source, exp.Table) or not source.name:
                continue
            if not source.db or source.catalog:
                raise UsageError(f"not an asset: {source.sql(dialect=dialect)}", hint="tables are named layer.asset")
            tables[AssetId(source.db, source.name)] = None
    return statements[0].sql(dialect=dialect), list(tables)


def ask(
    runtime: Runtime, project: Project, sql: str, limit: int
) -> tuple[tuple[str, ...], tuple[bool, ...], list[tuple[Any, ...]]]:
    """Return columns, which of them are figures, and up to `limit` rows."""
    if project.warehouse_in_postgres and project.settings.lake is None:
        return _ask_postgres(runtime, sql, limit)
    from millrace.duck.engine import connect, translated

    statement, assets = tables_of(sql)
    connection = connect(memory_limit=runtime.memory_limit, threads=runtime.threads)
    try:
        with translated(None, "the query"):
            _show(connection, runtime, project, assets)
            result = connection.execute(statement)
            columns = tuple(str(column[0]) for column in result.description or ())
            types = [str(column[1]).upper() for column in result.description or ()]
            rows = result.fetchmany(limit)
    finally:
        connection.close()
    return columns, tuple(any(word in kind for word in NUMERIC) for kind in types), rows


def _ask_postgres(
    runtime: Runtime, sql: str, limit: int
) -> tuple[tuple[str, ...], tuple[bool, ...], list[tuple[Any, ...]]]:
    """Ask a PostgreSQL warehouse in its own SQL, in a transaction that may only read."""
    from psycopg.sql import Composed

    from millrace.postgres.session import translated
    from millrace.postgres.source import author_select
    from millrace.postgres.warehouse import PostgresWarehouse

    tables_of(sql, "postgres")
    statement = Composed([author_select(sql)])
    warehouse = runtime.target("warehouse")
    assert isinstance(warehouse, PostgresWarehouse)  # noqa: S101 - wired here
    with (
        warehouse.connect("query") as connection,
        translated(warehouse.database.label, "run the query", connection=connection),
        connection.transaction(),
    ):
        connection.execute("set transaction read only")
        with connection.cursor("query") as cursor:  # the server keeps what is not shown
            cursor.execute(statement)
            rows = cursor.fetchmany(limit)
            described = cursor.description or ()
            columns = tuple(column.name for column in described)
            return columns, tuple(column.type_code in NUMERIC_OIDS for column in described), rows


def _show(connection: duckdb.DuckDBPyConnection, runtime: Runtime, project: Project, assets: list[AssetId]) -> None:
    from millrace.duck.relations import show_table

    attached = False
    for asset in assets:
        bound = project.layers.get(asset.layer)
        if bound is None:
            raise NotFound(
                f"there is no layer {asset.layer!r}",
                where=str(asset),
                hint=did_you_mean(asset.layer, list(project.layers)) or f"layers: {', '.join(project.layers)}",
            )
        if bound == "lake":
            _show_lake(connection, runtime, project, asset)
            continue
        if not attached:
            _attach(connection, runtime, asset)
            attached = True
        show_table(connection, asset)


def _show_lake(connection: duckdb.DuckDBPyConnection, runtime: Runtime, project: Project, asset: AssetId) -> None:
    from millrace.duck import inputs
    from millrace.lake.target import LakeTarget

    lake = runtime.target("lake")
    assert isinstance(lake, LakeTarget)  # noqa: S101 - wired here
    entry = lake.ledger(asset)
    if entry is None:
        made = {copy.asset for copy in project.copies} | {model.asset for model in project.models}
        known = sorted(str(other) for other in made if other != asset)
        raise NotFound(
            f"{asset} was never published", hint=did_you_mean(str(asset), known) or "see what there is: millrace status"
        )
    inputs.attach(connection, asset, lake.files(asset, entry.seq), lake.schema(asset, entry.seq))


def _attach(connection: duckdb.DuckDBPyConnection, runtime: Runtime, asset: AssetId) -> None:
    from millrace.duck.relations import attach_file
    from millrace.duck.warehouse import WarehouseTarget

    warehouse = runtime.target("warehouse")
    if not isinstance(warehouse, WarehouseTarget):
        raise UsageError(
            f"{asset} lies in a PostgreSQL warehouse: in a project with a lake, `query` reads only the lake",
            hint="ask the database itself: psql",
        )
    file = warehouse.current()
    if file is None:
        raise NotFound(f"{asset} was never published: the warehouse is empty", hint="make it: millrace run")
    attach_file(connection, file)
