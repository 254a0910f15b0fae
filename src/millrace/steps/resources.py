"""What step kinds are given by `app.py`: the project's folder, its connections and targets, and limits."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from millrace.core.ports import Target

if TYPE_CHECKING:
    from millrace.connectors.folder import FileFolder
    from millrace.postgres.reader import PostgresReader


class Resources(Protocol):
    """The runtime of one project in one environment, or of one `millrace copy`."""

    folder: Path
    """The project's folder; the paths in a step's spec are relative to it."""
    cache: Path
    """A folder for what can be made again (dbt's manifest)."""
    memory_limit: str
    """Memory limit of the embedded engine, in its own words: `1GB`."""
    threads: int

    def reader(self, connection: str) -> PostgresReader:
        """Open a connection's reader; its secrets are resolved now."""

    def let_go(self, snapshots: Collection[str]) -> None:
        """Close the snapshots that steps share but for those named; with none named, idle connections as well."""

    def files(self, connection: str) -> FileFolder:
        """Return a connection's folder."""

    def target(self, name: str) -> Target:
        """Return a target by name: `lake`, `warehouse`, `pages`, `connection:<name>`."""
