"""Shared fixtures: PostgreSQL 15 of the distribution and 18 of the wheel, one database per test."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql

from millrace.errors import MillraceError
from millrace.testing.servers import PostgresServer, temporary_postgres

SETTINGS = {"max_connections": "60", "shared_buffers": "64MB", "autovacuum": "off", "synchronous_commit": "off"}


def _server(kind: str) -> Iterator[PostgresServer]:
    try:
        context = temporary_postgres(kind, SETTINGS)
        server = context.__enter__()
    except MillraceError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"{error.what}: {error.hint}")
    try:
        yield server
    finally:
        context.__exit__(None, None, None)


@pytest.fixture(scope="session")
def pg15() -> Iterator[PostgresServer]:
    """PostgreSQL 15 of the distribution."""
    yield from _server("15")


@pytest.fixture(scope="session")
def pg18() -> Iterator[PostgresServer]:
    """PostgreSQL 18 of the wheel."""
    yield from _server("embedded")


def _database(server: PostgresServer) -> Iterator[str]:
    name = f"t_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
    yield server.url(name)
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))


@pytest.fixture
def db15(pg15: PostgresServer) -> Iterator[str]:
    """URL of an empty database on PostgreSQL 15."""
    yield from _database(pg15)


@pytest.fixture
def db18(pg18: PostgresServer) -> Iterator[str]:
    """URL of an empty database on PostgreSQL 18."""
    yield from _database(pg18)


@pytest.fixture
def other18(pg18: PostgresServer) -> Iterator[str]:
    """URL of a second empty database on PostgreSQL 18."""
    yield from _database(pg18)
