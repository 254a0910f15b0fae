"""The ledger's tables: made once, locked, compared and swapped."""

from __future__ import annotations

import threading
from dataclasses import replace

import psycopg
import pytest

from millrace.core.digest import Digest
from millrace.core.names import AssetId
from millrace.core.position import Whole
from millrace.core.staged import LedgerEntry
from millrace.errors import NewerFormat, SeqMoved, UsageError
from millrace.postgres.ledger import Ledger
from millrace.postgres.session import connect, database_from_url

ASSET = AssetId('we"ird', "주문")
ENTRY = LedgerEntry(ASSET, 1, (1 << 63) - 1, Whole(Digest(1, -(1 << 70), "s")), {}, None, "table", "2026-01-01")


def test_made_once_though_many_come_first(db15: str) -> None:
    ledger = Ledger("led ger", "DB")
    errors: list[BaseException] = []

    def first() -> None:
        try:
            with connect(database_from_url(db15, "DB")) as connection:
                ledger.ensure(connection)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=first) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    with connect(database_from_url(db15, "DB")) as connection:
        assert ledger.known(connection)
        assert connection.execute('select version from "led ger".format').fetchall() == [(1,)]


def test_compare_and_swap(db18: str) -> None:
    ledger = Ledger("_millrace", "DB")
    with connect(database_from_url(db18, "DB")) as connection:
        assert ledger.read(connection, ASSET) is None
        ledger.ensure(connection)
        assert ledger.read(connection, ASSET) is None
        with connection.transaction():
            ledger.write(connection, ENTRY)
        assert ledger.read(connection, ASSET) == ENTRY
        second = replace(ENTRY, seq=2, load=5)
        for wrong in (replace(ENTRY, load=6), replace(ENTRY, seq=3, load=6)):
            with pytest.raises(SeqMoved), connection.transaction():
                ledger.write(connection, wrong)
        with connection.transaction():
            ledger.write(connection, second)
        assert ledger.read(connection, ASSET) == second
        assert ledger.published(connection, ASSET, ENTRY.load) == ENTRY
        assert ledger.published(connection, ASSET, 77) is None
        with pytest.raises(psycopg.errors.UniqueViolation), connection.transaction():
            ledger.write(connection, replace(ENTRY, seq=3))  # a load publishes once


def test_newer_formats_are_refused(db18: str) -> None:
    ledger = Ledger("_millrace", "DB")
    with connect(database_from_url(db18, "DB")) as connection:
        ledger.ensure(connection)
        with connection.transaction():
            ledger.write(connection, ENTRY)
        connection.execute("update _millrace.ledger set entry = jsonb_set(entry, '{format}', '2')")
        with pytest.raises(NewerFormat, match="the ledger entry of"):
            ledger.read(connection, ASSET)
        connection.execute("update _millrace.format set version = 2")
        with pytest.raises(NewerFormat, match="the ledger in schema _millrace of DB has format 2"):
            ledger.ensure(connection)


def test_the_schemas_name_leaves_room_for_the_stages() -> None:
    assert Ledger("x" * 57, "DB").stage_schema == "x" * 57 + "_stage"
    for wrong in ("", "x" * 58, "주" * 20):
        with pytest.raises(UsageError):
            Ledger(wrong, "DB")
