"""Two tables compared: of two databases, or of a database and the lake; with statistics, and repaired where we may."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from millrace.app.copying import SOURCE, TARGET, CopyOutcome, copy_table, database_of, plain_code, runtime_of, spec_of
from millrace.app.house import House, open_house
from millrace.app.runtime import CONNECTION
from millrace.core.names import AssetId, TableRef
from millrace.errors import UsageError
from millrace.steps.spec import CopyOptions

if TYPE_CHECKING:
    from millrace.postgres.diff import TableDiff

LAKE = "lake"


@dataclass(frozen=True, slots=True)
class Compared:
    """What a comparison of two tables found.

    Attributes:
        statistics: by column `left` and `right`, each with `nulls`, `min`, `max`, `sum`; empty unless asked for.
    """

    difference: TableDiff
    seconds: float
    statistics: Mapping[str, Mapping[str, Mapping[str, str | int | None] | None]]

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON types."""
        found = self.difference.to_json()
        return {**found, "statistics": self.statistics} if self.statistics else found


def compare(
    left: str,
    table: str,
    right: str,
    other: str,
    *,
    key: tuple[str, ...] = (),
    limit: int = 20,
    statistics: bool = False,
    trusted_urls: bool = False,
) -> Compared:
    """Compare two tables row by row, and column by column where statistics are asked for.

    Of a table of versions (mode `snapshot`) on the right the current ones are compared.

    Args:
        left: a database: `env:NAME`, `service:NAME`, a URL, or the name of a connection of the project here.
        table: the left table, an SQL name.
        right: another one; or `lake`: that of the project here.
        other: the right table, an SQL name; of the lake an asset.
        key: key columns; by default the primary key.
        limit: most differing rows to keep.
        statistics: whether to read them, one more scan of each side.
        trusted_urls: whether a URL may hold a password.

    Raises:
        KeyInvalid, NotFound, PermissionMissing, ContractBroken, UsageError.
    """
    if right == LAKE:
        with open_house() as house:
            if LAKE not in house.project.settings.connections:
                return _with_lake(house, left, table, AssetId.parse(other), key, limit, statistics)
    from millrace.postgres.diff import Half, diff_halves
    from millrace.postgres.history import current, is_versions
    from millrace.postgres.reader import PostgresReader
    from millrace.postgres.statistics import side_by_side, table_statistics

    since = time.monotonic()
    with contextlib.ExitStack() as closing:
        sides = [
            (database_of(text, label, closing, trusted_urls=trusted_urls), TableRef.parse(name))
            for text, label, name in ((left, "source", table), (right, "target", other))
        ]
        halves = []
        for database, ref in sides:
            reader = PostgresReader(database)
            snap = closing.enter_context(reader.snapshot())
            halves.append(Half(reader, snap, reader.source(ref, connection=snap.connection)))
        one, two = (half.source for half in halves)
        if is_versions(two.relation) and not is_versions(one.relation):
            halves[1] = replace(halves[1], source=current(two))
        found = diff_halves(halves[0], halves[1], key, limit)
        figures = {}
        if statistics:
            figures = side_by_side(*(table_statistics(half.snap.connection, half.source) for half in halves))
    return Compared(found, time.monotonic() - since, figures)


def _with_lake(
    house: House, connection: str, table: str, asset: AssetId, key: tuple[str, ...], limit: int, statistics: bool
) -> Compared:
    """Compare a table of a connection with an asset of the lake, as both are."""
    from millrace.duck import engine
    from millrace.lake.history import FROM, is_versioned
    from millrace.lake.statistics import file_statistics
    from millrace.lake.target import LakeTarget
    from millrace.postgres.reader import PostgresReader
    from millrace.postgres.statistics import side_by_side, table_statistics
    from millrace.steps.lake_differences import diff_lake
    from millrace.steps.routes.lake_history import current
    from millrace.steps.routes.lake_scrub import LakeSide

    since = time.monotonic()
    lake = house.runtime.target("lake")
    assert isinstance(lake, LakeTarget)  # noqa: S101 - wired in house
    with contextlib.ExitStack() as stack, tempfile.TemporaryDirectory(prefix="millrace-") as scratch:
        reader = PostgresReader(database_of(connection, "source", stack))
        opened = engine.connect(memory_limit=house.runtime.memory_limit, scratch=Path(scratch))
        with contextlib.closing(opened) as duck, reader.snapshot() as snap:
            side = LakeSide(duck, lake.schema(asset), lake.files(asset), (), ())
            source = reader.source(TableRef.parse(table), connection=snap.connection)
            label = f"{asset} in the lake"
            if is_versioned(side.schema) and FROM not in source.names:
                side, label = current(side), f"the current versions of {label}"
            found = diff_lake(source, snap, side, label, key=key, limit=limit)
            figures = {}
            if statistics:
                left, right = (
                    table_statistics(snap.connection, source),
                    file_statistics(duck, side.files, side.schema, side.only),
                )
                figures = side_by_side(left, right)
    return Compared(found, time.monotonic() - since, figures)


def repair(left: str, table: str, right: str, other: str) -> CopyOutcome:
    """Make the right table equal to the left one by a proven publish.

    Raises:
        UsageError: the right table is not one that a plain copy of the left one made.
    """
    if right == LAKE:
        hint = f"millrace verify {other} --repair"
        raise UsageError("an asset of the lake is repaired by the copy that makes it", hint=hint)
    with runtime_of(left, right, most=CopyOptions().workers + 1) as runtime:
        spec = spec_of(table, other, CopyOptions(), runtime)
        entry = runtime.target(f"{CONNECTION}{TARGET}").ledger(spec.asset)
        source, target = (runtime.reader(name).database.label for name in (SOURCE, TARGET))
    place = TableRef(spec.asset.layer, spec.asset.name)
    if entry is None:
        raise UsageError(
            f"{place} in {target} was not made by Millrace, so a repair does not change it",
            hint=f"let a copy from {source} take it over: millrace copy … --replace",
        )
    if entry.code != plain_code(spec):
        raise UsageError(
            f"{place} in {target} is made by a copy with other options: a repair would bring other rows",
            hint="in a project: millrace verify ASSET --repair; else run its own command again with --full-refresh",
        )
    return copy_table(left, table, right, other, CopyOptions())
