"""The database of an embedded connection: a server that runs as long as anybody uses it, and what it begins with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from millrace.errors import NotFound
from millrace.testing.servers import shared_postgres


@contextlib.contextmanager
def embedded_url(data: Path, name: str, seed: Path | None) -> Iterator[str]:
    """Run the server of a data folder and yield the URL of the connection's database.

    Args:
        data: the server's folder; made at the first use.
        name: the connection's name.
        seed: an SQL file that a database of the connection's name is made from, once; None: the server's own database.

    Raises:
        ExtraMissing, StepFailed: see `shared_postgres`.
        NotFound: there is no such file.
        MillraceError: the server refuses what stands in it; there is no database then.
    """
    with shared_postgres(data) as url:
        yield url if seed is None else _seeded(url, name, seed)


def _seeded(url: str, name: str, seed: Path) -> str:
    """Return the URL of the connection's database; made under another name first, so that it is whole or not there."""
    import psycopg
    from psycopg import sql

    from millrace.postgres.session import translated

    def place(database: str) -> str:
        return f"{url.rpartition('/')[0]}/{quote(database)}"

    made, making = sql.Identifier(name), sql.Identifier(f"{name} unfinished")
    with translated(str(seed), "make the database"), psycopg.connect(url, autocommit=True) as connection:
        connection.execute("select pg_catalog.pg_advisory_lock(pg_catalog.hashtextextended(%s, 0))", (name,))
        there = connection.execute("select 1 from pg_catalog.pg_database where datname = %s", (name,)).fetchone()
        if there is None:
            if not seed.is_file():
                raise NotFound(f"connection {name} has no seed: the file is missing", where=str(seed))
            connection.execute(sql.SQL("drop database if exists {} with (force)").format(making))
            connection.execute(sql.SQL("create database {}").format(making))
            with psycopg.connect(place(f"{name} unfinished")) as inside:
                inside.execute("set local timezone = 'UTC'")
                inside.execute(seed.read_bytes())
            connection.execute(sql.SQL("alter database {} rename to {}").format(making, made))
    return place(name)
