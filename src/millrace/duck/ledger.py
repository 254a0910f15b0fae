"""The ledger inside a warehouse file: the schema `_millrace` with the tables `ledger`, `history` and `checks`.

`ledger` has one row per asset, its last publish; `history` one row per publish; `checks` what dbt's tests and the gates
found in what is published. An entry is the JSON of `core.staged.LedgerEntry`, a result that of `CheckResult`; other
columns stand beside it for people who look.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from millrace.core.names import AssetId
from millrace.core.staged import CheckResult, LedgerEntry
from millrace.duck.engine import rows, transaction

if TYPE_CHECKING:
    import duckdb

_TABLES = (
    "create schema if not exists warehouse._millrace",
    """create table if not exists warehouse._millrace.ledger
       (asset varchar primary key, seq bigint not null, load varchar not null, entry varchar not null)""",
    """create table if not exists warehouse._millrace.history
       (asset varchar not null, seq bigint not null, load varchar not null, entry varchar not null,
        primary key (asset, seq))""",
    """create table if not exists warehouse._millrace.checks
       (step varchar not null, asset varchar not null, name varchar not null, passed boolean not null,
        result varchar not null)""",
)
SCHEMA = "_millrace"
CATALOG = "warehouse"
"""The name DuckDB gives a file `warehouse.duckdb`; always written out, since a layer may bear it too."""


def create(connection: duckdb.DuckDBPyConnection) -> None:
    """Make the ledger's tables, where they are missing."""
    for statement in _TABLES:
        connection.execute(statement)


def _exists(connection: duckdb.DuckDBPyConnection, table: str = "ledger") -> bool:
    query = (
        "select count(*) from duckdb_tables()"
        " where database_name = 'warehouse' and schema_name = '_millrace' and table_name = ?"
    )
    return bool(rows(connection, query, [table])[0][0])


def read(connection: duckdb.DuckDBPyConnection) -> dict[AssetId, LedgerEntry]:
    """Return every asset's last publish.

    Raises:
        NewerFormat: a newer version of Millrace wrote an entry.
    """
    if not _exists(connection):
        return {}
    found = [
        LedgerEntry.from_json(json.loads(row[0]))
        for row in rows(connection, "select entry from warehouse._millrace.ledger order by asset")
    ]
    return {entry.asset: entry for entry in found}


def history(connection: duckdb.DuckDBPyConnection, loads: Sequence[int]) -> dict[tuple[AssetId, int], LedgerEntry]:
    """Return the publishes that carry one of the load ids, by asset and load."""
    if not loads or not _exists(connection):
        return {}
    query = "select entry from warehouse._millrace.history where list_contains(?, load)"
    found = [
        LedgerEntry.from_json(json.loads(row[0])) for row in rows(connection, query, [[str(load) for load in loads]])
    ]
    return {(entry.asset, entry.load): entry for entry in found}


def at(connection: duckdb.DuckDBPyConnection, asset: str, seq: int) -> LedgerEntry | None:
    """Return one publish of an asset, or None."""
    if not _exists(connection):
        return None
    query = "select entry from warehouse._millrace.history where asset = ? and seq = ?"
    return next((LedgerEntry.from_json(json.loads(row[0])) for row in rows(connection, query, [asset, seq])), None)


def checks(connection: duckdb.DuckDBPyConnection) -> list[CheckResult]:
    """Return what the checks found in what the file holds."""
    if not _exists(connection, "checks"):  # an older version published it
        return []
    query = "select result from warehouse._millrace.checks order by step, rowid"
    return [CheckResult.from_json(json.loads(row[0])) for row in rows(connection, query)]


def write_checks(
    connection: duckdb.DuckDBPyConnection, step: str, results: Sequence[CheckResult], *, anew: bool = False
) -> None:
    """Record what a step's checks found, instead of what they found before; `anew`: instead of all steps'."""
    create(connection)
    with transaction(connection):
        connection.execute("delete from warehouse._millrace.checks where ? or step = ?", [anew, step])
        for result in results:
            text = json.dumps(result.to_json(), ensure_ascii=False)
            values = [step, str(result.asset), result.name, result.passed, text]
            connection.execute("insert into warehouse._millrace.checks values (?, ?, ?, ?, ?)", values)


def write(connection: duckdb.DuckDBPyConnection, entries: Sequence[LedgerEntry]) -> None:
    """Record publishes, all or none; doing it again with the same entries changes nothing."""
    create(connection)
    with transaction(connection):
        for entry in entries:
            values = [str(entry.asset), entry.seq, str(entry.load), json.dumps(entry.to_json(), ensure_ascii=False)]
            for statement in (
                "insert or replace into warehouse._millrace.ledger values (?, ?, ?, ?)",
                "insert or replace into warehouse._millrace.history values (?, ?, ?, ?)",
            ):
                connection.execute(statement, values)
