"""Connections, targets and step kinds of one command: made when first asked for, closed at its end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

from millrace.core.ports import StepKind, Target
from millrace.errors import NotFound, UsageError, did_you_mean

if TYPE_CHECKING:
    from millrace.connectors.folder import FileFolder
    from millrace.postgres.reader import PostgresReader
    from millrace.postgres.session import Database
    from millrace.postgres.sessions import Sessions
    from millrace.steps.resources import Resources

KIND_GROUP = "millrace.step_kinds"
CONNECTION = "connection:"
CONNECTIONS = 4  # to one database at once


T = TypeVar("T")


class Lazy(Mapping[str, T]):
    """A mapping whose values are made when they are first asked for."""

    def __init__(self, makers: Mapping[str, Callable[[], T]]) -> None:
        self._makers = makers
        self._made: dict[str, T] = {}

    def __getitem__(self, name: str) -> T:
        if name not in self._made:
            self._made[name] = self._makers[name]()
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


class Runtime:
    """What step kinds are given (`steps.resources.Resources`), and the targets for the engine.

    Args:
        folder: the project's folder, or the current one.
        cache: folder for what can be made again.
        databases: makes a connection's database by name; its secrets are resolved then.
        targets: makes targets by name.
        folders: returns the folder of a connection to files by name.
        ledger_schemas: schema of Millrace's own tables in a connection's database, where it is not `_millrace`.
        most: connections to a connection's database that are open at once, where it is not CONNECTIONS; of one that
            is read and written, so many for each.
        memory_limit, threads: limits of the embedded engine.
    """

    def __init__(
        self,
        folder: Path,
        cache: Path,
        databases: Mapping[str, Callable[[contextlib.ExitStack], Database]],
        targets: Mapping[str, Callable[[], Target]],
        *,
        folders: Mapping[str, Callable[[], Path]] | None = None,
        ledger_schemas: Mapping[str, str] | None = None,
        most: Mapping[str, int] | None = None,
        memory_limit: str = "1GB",
        threads: int = 2,
    ) -> None:
        self.folder = folder
        self.cache = cache
        self.memory_limit = memory_limit
        self.threads = threads
        self.closing = contextlib.ExitStack()
        self._databases = databases
        self._folders = folders or {}
        self._ledger_schemas = ledger_schemas or {}
        self._most = most or {}
        self._sessions: list[Sessions] = []
        self._opened: dict[str, Database] = {}
        self._readers: dict[str, PostgresReader] = {}
        connections = {f"{CONNECTION}{name}": self._postgres_target(name) for name in databases}
        self.targets: Mapping[str, Target] = Lazy({**connections, **targets})
        self.kinds: Mapping[str, StepKind] = step_kinds(self)

    def database(self, connection: str) -> Database:
        """Return a connection's database.

        Raises:
            NotFound: there is no such connection.
            UsageError: it is a folder of files.
        """
        if connection in self._folders:
            raise UsageError(f"connection {connection} is a folder of files, not a database")
        if connection not in self._databases:
            raise NotFound(
                f"there is no connection {connection!r}", hint=did_you_mean(connection, list(self._databases))
            )
        if connection not in self._opened:
            self._opened[connection] = self._databases[connection](self.closing)
        return self._opened[connection]

    def reader(self, connection: str) -> PostgresReader:
        """Return a connection's reader."""
        from millrace.postgres.reader import PostgresReader

        if connection not in self._readers:
            self._readers[connection] = reader = PostgresReader(self.database(connection), self._kept(connection))
            self.closing.callback(reader.let_go)
        return self._readers[connection]

    def _kept(self, connection: str) -> Sessions:
        from millrace.postgres.sessions import Sessions

        kept = Sessions(self.database(connection), self._most.get(connection, CONNECTIONS), keep=True)
        self.closing.callback(kept.close)
        self._sessions.append(kept)
        return kept

    def let_go(self, snapshots: Collection[str]) -> None:
        """See `steps.resources.Resources`."""
        for reader in self._readers.values():
            reader.let_go(snapshots)
        if not snapshots:
            for sessions in self._sessions:
                sessions.close()

    def files(self, connection: str) -> FileFolder:
        """Return a connection's folder.

        Raises:
            NotFound: there is no such connection to files.
            ProjectError: a variable in its path is not set.
        """
        from millrace.connectors.folder import FileFolder

        if connection not in self._folders:
            raise NotFound(
                f"there is no connection {connection!r} to files", hint=did_you_mean(connection, list(self._folders))
            )
        return FileFolder(self._folders[connection](), connection)

    def target(self, name: str) -> Target:
        """Return a target.

        Raises:
            NotFound: there is none of that name.
        """
        if name not in self.targets:
            raise NotFound(f"there is no target {name!r}", hint=did_you_mean(name, list(self.targets)))
        return self.targets[name]

    def _postgres_target(self, connection: str) -> Callable[[], Target]:
        def make() -> Target:
            from millrace.postgres.target import PostgresTarget

            ledger_schema = self._ledger_schemas.get(connection, "_millrace")
            sessions = self._kept(connection)
            return PostgresTarget(self.database(connection), f"{CONNECTION}{connection}", ledger_schema, sessions)

        return make

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.close()


def step_kinds(resources: Resources) -> Mapping[str, StepKind]:
    """Return the installed step kinds by name, the built-in ones found by the same door."""

    def maker(point: EntryPoint) -> Callable[[], StepKind]:
        def make() -> StepKind:
            kind: StepKind = point.load()(resources)
            return kind

        return make

    def quarantine() -> StepKind:
        from millrace.steps.quarantine import QuarantineStep

        return QuarantineStep(resources)

    def importing() -> StepKind:
        from millrace.steps.importing import ImportStep

        return ImportStep(resources)

    # no plan has a step of these kinds, so they are no entry points
    return Lazy(
        {
            "quarantine": quarantine,
            "import": importing,
            **{point.name: maker(point) for point in entry_points(group=KIND_GROUP)},
        }
    )
