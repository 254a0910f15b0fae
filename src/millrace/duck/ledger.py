"""The ledger inside a warehouse file: the schema `_millrace` with the tables `ledger` and `history`.

`ledger` has one row per asset, its last publish; `history` one row per publish. An entry is the JSON of
`core.staged.LedgerEntry`; seq and load stand beside it as columns for people who look.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from millrace.core.names import AssetId
from millrace.core.staged import LedgerEntry
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
)
SCHEMA = "_millrace"
CATALOG = "warehouse"
"""The name DuckDB gives a file `warehouse.duckdb`; always written out, since a layer may bear it too."""


def create(connection: duckdb.DuckDBPyConnection) -> None:
    """Make the ledger's tables, where they are missing."""
    for statement in _TABLES:
        connection.execute(statement)


def _exists(connection: duckdb.DuckDBPyConnection) -> bool:
    query = (
        "select count(*) from duckdb_tables()"
        " where database_name = 'warehouse' and schema_name = '_millrace' and table_name = 'ledger'"
    )
    return bool(rows(connection, query)[0][0])


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
