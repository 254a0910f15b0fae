"""Counting what a copy between two PostgreSQL tables would change: row hashes by key hash, nothing is staged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from psycopg import sql

from millrace.core.staged import Counts
from millrace.postgres.deletes import alive
from millrace.postgres.digest import row_hash
from millrace.postgres.parts import Part
from millrace.postgres.segments import key_hash
from millrace.postgres.session import Connection, translated
from millrace.postgres.source import Source
from millrace.steps.routes.postgres_look import Look

FETCH = 20_000  # rows of a server-side cursor's batch, of two integers each


def count_rows(connection: Connection, source: Source) -> int:
    """Count the rows of a source."""
    found = connection.execute(source.select([sql.SQL("pg_catalog.count(*)")])).fetchone()
    return int(found[0]) if found else 0


def compare(look: Look, there: Connection, part: Part | None = None) -> Counts:
    """Compare row hashes by key hash, of one part or of the changes."""
    return compared(look, there, part)[0]


def compared(look: Look, there: Connection, part: Part | None = None) -> tuple[Counts, int]:
    """Compare row hashes by key hash, of one part or of the changes; returns also how many rows the source has."""
    left, right = look.wanted(), look.target_source
    marked = None if look.since is None or look.spec.soft_delete is None else look.spec.soft_delete
    where = None if part is None else part.predicate(look.source.pick(look.key))
    where_there = None if part is None else part.predicate(right.pick(look.key))
    wanted = dict(_hashes(look.snap.connection, alive(left, marked), look.key, where, "ours"))
    all_ours = wanted if marked is None else dict(_hashes(look.snap.connection, left, look.key, where, "marked"))
    rows, inserted, updated, deleted = len(wanted), len(wanted), 0, 0
    with _reading(look, there):
        for key, row in _hashes(there, right, look.key, where_there, "theirs"):
            found = wanted.get(key)
            if found is None:
                deleted += look.how != "merge" or (marked is not None and key in all_ours)
            else:
                inserted -= 1
                updated += found != row
    if look.how == "append":
        updated = 0
    return Counts(inserted, updated, deleted if look.how in ("sync", "snapshot", "merge") else 0), rows


def compare_interval(look: Look, there: Connection, part: Part) -> Counts:
    """Compare an interval; rows that came into it or left it are updates."""
    here, target = look.snap.connection, look.target_source
    wanted = dict(_hashes(here, look.source, look.key, part.predicate(look.source.pick(look.key)), "ours"))
    with _reading(look, there):
        inside = {key for key, _ in _hashes(there, target, look.key, part.predicate(target.pick(look.key)), "inside")}
        known = [
            wanted[key] != row
            for key, row in _hashes(there, replace(target, where=None), look.key, None, "theirs")
            if key in wanted
        ]
    lost = inside - wanted.keys()
    left = (
        sum(1 for key, _ in _hashes(here, look.everywhere, look.key, None, "everywhere") if key in lost) if lost else 0
    )
    return Counts(len(wanted) - len(known), sum(known) + left, len(lost) - left)


@contextmanager
def _reading(look: Look, there: Connection) -> Iterator[None]:
    """One transaction in the target."""
    database = look.target.database.label
    with translated(database, f"compare {look.there.ref}", connection=there), there.transaction():
        yield


def _hashes(
    connection: Connection, source: Source, key: Sequence[str], where: sql.Composable | None, name: str
) -> Iterator[tuple[int, int]]:
    query = source.select([key_hash(source.pick(key)), row_hash(source.columns)], where)
    with (
        translated(source.database, f"compare {source.label}", connection=connection),
        connection.cursor(f"millrace_{name}") as cursor,
    ):
        cursor.itersize = FETCH
        yield from cursor.execute(query)
