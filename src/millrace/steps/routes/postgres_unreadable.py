"""Texts that cannot be carried stop a copy: the error names the rows, or they are set aside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import psycopg

from millrace.core.staged import LedgerEntry
from millrace.errors import ContractBroken, MillraceError
from millrace.postgres.names import sql_name
from millrace.postgres.reader import PostgresReader
from millrace.postgres.target import PostgresTarget
from millrace.postgres.unreadable import Unreadable, look_for_unreadable
from millrace.steps.contracts import most_bad
from millrace.steps.routes.postgres_look import Look, encoding_of, sets_unreadable_aside
from millrace.steps.sieve import too_many
from millrace.steps.spec import CopySpec

CODES = frozenset({"22021", "22P05"})  # character not in repertoire, untranslatable character
EXAMPLES = 3


def cannot_be_carried(error: BaseException) -> bool:
    """Say whether a text that cannot be carried is what an error is about."""
    cause = error.__cause__
    return isinstance(cause, psycopg.Error) and cause.sqlstate in CODES


@contextmanager
def naming(spec: CopySpec, reader: PostgresReader, target: PostgresTarget) -> Iterator[None]:
    """Name the rows of a source whose texts stop what the block does.

    Raises:
        ContractBroken: names table, key and columns.
    """
    try:
        yield
    except MillraceError as error:
        cause = error.__cause__
        if not isinstance(cause, psycopg.Error) or not cannot_be_carried(error):
            raise
        with reader.snapshot() as snap:
            source = reader.source(spec.table, where=spec.where, select=spec.select, connection=snap.connection)
            key = spec.key or source.key
            rows, found = look_for_unreadable(snap.connection, source, key, encoding_of(target), EXAMPLES)
        if not rows:
            raise
        raise _refused(
            spec, reader, key, rows, found, str(cause.diag.message_primary or "").partition(":")[0]
        ) from error


def _refused(
    spec: CopySpec,
    reader: PostgresReader,
    key: tuple[str, ...],
    rows: int,
    found: list[Unreadable],
    why: str,
) -> ContractBroken:
    noun = "row has a text" if rows == 1 else "rows have texts"
    hint = "mend them at the source, leave them out by where:, or set them aside: contract: {bad_rows: quarantine}"
    if not sets_unreadable_aside(spec):
        hint = (
            "mend them at the source, or leave them out by where:; such rows can be set aside only from a table, in "
            "mode full or truncate, straight from server to server"
        )
    return ContractBroken(
        f"{rows:,} {noun} that cannot be carried{f': {why}' if why else ''}",
        where=f"{spec.table} in {reader.database.label}",
        detail=[*told(key, found), *([f"and {rows - len(found):,} more"] if rows > len(found) else [])],
        hint=hint,
    )


def told(key: tuple[str, ...], found: list[Unreadable]) -> list[str]:
    """Return a line for each row: its key, and the columns."""
    lines = []
    for number, one in enumerate(found, 1):
        named = ", ".join(f"{sql_name(name)} {value}" for name, value in zip(key, one.key, strict=True))
        lines.append(f"{named or f'row {number}'}: {one.told}")
    return lines


def check_unreadable(look: Look, contract: Mapping[str, Any], entry: LedgerEntry | None) -> None:
    """Refuse rows that cannot be carried where the contract lets none, or fewer, be set aside.

    Raises:
        ContractBroken: names some of them.
    """
    count = len(look.unreadable)
    if not count:
        return
    lines = told(look.key, list(look.unreadable[:EXAMPLES]))
    if contract.get("bad_rows") != "quarantine":
        raise _refused(look.spec, look.reader, look.key, count, list(look.unreadable[:EXAMPLES]), "")
    if not look.key:
        raise ContractBroken(
            f"rows of {look.spec.asset} cannot be set aside: without a key nothing tells them apart",
            where=str(contract["place"]),
            detail=lines,
            hint="name one: key: id; or bad_rows: block",
        )
    rows = count + look.count()
    if count > most_bad(float(contract["max_bad"]), rows):
        last = entry.time if entry else None
        place, limit = str(contract["place"]), float(contract["max_bad"])
        raise too_many(look.spec.asset, (), count, rows, limit, last, place, [f"  {line}" for line in lines])
