"""A source under the columns of the asset that it is copied into, as the contract says.

What came is left out, or makes rows to set aside; what was retyped is converted where that is exact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from psycopg import sql

from millrace.core.schema import Schema
from millrace.errors import ContractBroken
from millrace.postgres.catalog import PgColumn, Refusal, Relation
from millrace.postgres.convert import converted, kept, same_values
from millrace.postgres.ddl import same_type
from millrace.postgres.names import sql_name
from millrace.postgres.session import Connection, translated
from millrace.postgres.source import Source


def fitted(
    source: Source, old: Schema, contract: Mapping[str, Any], needed: Sequence[str], connection: Connection
) -> tuple[Source, list[str]]:
    """Return a source under a contract's `discard` and `quarantine`, and the new columns that are left out.

    Args:
        source: as it is now.
        old: columns of the asset.
        contract: `new_columns`, `type_changes`.
        needed: columns of the key and the cursor, which must be read as they are.
        connection: of the source.

    Raises:
        ContractBroken: one of `needed` was retyped, or the server cannot tell which values convert.
    """
    came = [column for column in source.columns if column.name not in old.names]
    columns = list(source.columns)
    left_out: list[str] = []
    if contract.get("new_columns") in ("discard", "quarantine"):
        columns = [column for column in columns if column.name in old.names]
    if contract.get("new_columns") == "discard":
        left_out = [column.name for column in came]
    if (word := contract.get("type_changes")) in ("discard", "quarantine"):
        version = connection.info.server_version
        for place, column in enumerate(columns):
            if column.name not in old.names or same_values(column, old[column.name]):
                continue
            if column.name in needed:
                raise _needed(column, old[column.name].type, str(word), contract)
            columns[place] = converted(column, old[column.name], version, refuse=word == "quarantine")
    if contract.get("new_columns") == "quarantine" and came and columns:
        more = (Refusal(column, sql.SQL("({} is not null)").format(column.identifier)) for column in came)
        columns[0] = replace(columns[0], refused=(*columns[0].refused, *more))
    return source.only(columns), left_out


def kept_types(source: Source, target: Relation, needed: Sequence[str], where: str, connection: Connection) -> Source:
    """Return a source whose columns have the types of a table in a database; values that do not convert are null.

    Args:
        source: as it is now.
        target: the table.
        needed: columns of the key and the cursor, which must be read as they are.
        where: what errors call the target.
        connection: of the source.

    Raises:
        ContractBroken: one of `needed` was retyped, or nothing is known of how to convert a column.
    """
    columns = list(source.columns)
    there = {column.name: column for column in target.columns}
    for place, column in enumerate(columns):
        other = there.get(column.name)
        if other is None or other.generated or same_type(column, other):
            continue
        if column.name in needed:
            raise _needed(column, other.type, "discard", {"place": where})
        columns[place] = kept(column, other, connection.info.server_version, where=where)
    return source.only(columns)


def _needed(column: PgColumn, before: str, word: str, contract: Mapping[str, Any]) -> ContractBroken:
    return ContractBroken(
        f"column {sql_name(column.name)} was {before} and is {column.type}: a key or cursor cannot be converted",
        where=str(contract.get("place")),
        hint=f"type_changes: evolve takes the new type and loads the asset anew; {word} is for other columns",
    )


def lost(source: Source, connection: Connection) -> list[str]:
    """Return a sentence for each column of which values become null.

    Raises:
        ContractBroken: where no null may be.
    """
    said = []
    for column in source.columns:
        if column.lost is None:
            continue
        with translated(source.database, f"check the values of {source.label}", connection=connection):
            row = connection.execute(source.select([sql.SQL("pg_catalog.count(*)")], column.lost)).fetchone()
        count = int(row[0]) if row else 0
        values = f"{count:,} {'value' if count == 1 else 'values'}"
        if count and column.not_null:
            raise ContractBroken(
                f"{values} of {sql_name(column.name)} are no {column.type}, and it may not be null",
                where=source.database,
                hint="type_changes: evolve takes the new type; quarantine sets such rows aside",
            )
        if count:
            said.append(f"{values} of {sql_name(column.name)} became null: no {column.type}")
    return said
