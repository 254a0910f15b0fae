"""The Delta log: what is visible, under which seq, and the one commit that changes it.

The only module that imports deltalake. The library checks nothing of what it is told to commit, so every check is
made before; and it retries commits by itself unless told not to, so it is told not to.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from millrace.errors import StepFailed
from millrace.lake.layout import LOG, Folder, disk_error, sync_file, sync_folder
from millrace.lake.partitions import values_of
from millrace.lake.table import statistics

if TYPE_CHECKING:
    import pyarrow as pa
    from deltalake import DeltaTable

SEQ_ID = "millrace"
LOAD_ID = "millrace.load"


class Moved(Exception):
    """Someone else committed first."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One version of a Delta table.

    Attributes:
        version: Delta's.
        seq, load: of the last load of ours that it holds; 0 when it holds none.
    """

    folder: Folder
    version: int
    seq: int
    load: int
    table: DeltaTable

    def files(self) -> tuple[str, ...]:
        """Return the data files' paths, relative to the folder, in a stable order."""
        names = _column(self.table, "path")
        return tuple(sorted(self._name(name) for name in names))

    def sizes(self) -> Mapping[str, int]:
        """Return the data files' names and sizes in bytes."""
        names = _column(self.table, "path")
        return {
            self._name(name): int(size) for name, size in zip(names, _column(self.table, "size_bytes"), strict=True)
        }

    def _name(self, name: str) -> str:
        # the log holds paths URL-encoded; only those of partitions and of other writers need it
        return name if (self.folder.path / name).exists() else unquote(name)

    @property
    def partitions(self) -> tuple[str, ...]:
        """The columns that its files are split by."""
        return tuple(self.table.metadata().partition_columns)

    def same_columns(self, schema: pa.Schema, partitions: Sequence[str]) -> bool:
        """Whether the table is ours, has exactly the columns of an Arrow schema, and is split by the given ones."""
        from deltalake import Schema

        if not self.seq:  # whoever made it may have given it partitions or features that our files know nothing of
            return False

        found: bool = json.loads(self.table.schema().to_json()) == json.loads(Schema.from_arrow(schema).to_json())
        return found and self.partitions == tuple(partitions)


def _column(table: DeltaTable, name: str) -> list[Any]:
    return list(table.get_add_actions().column(name).to_pylist())


def open_table(folder: Folder, version: int | None = None) -> Snapshot | None:
    """Open the newest version, or a given one; None when there is no table.

    Args:
        folder: the asset's.
        version: Delta's version.

    Raises:
        StepFailed: the log cannot be read.
    """
    if not folder.log.is_dir():
        return None
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError, TableNotFoundError

    try:
        table = DeltaTable(folder.path, version=version)
    except TableNotFoundError:
        if version is None and not any(folder.log.iterdir()):
            return None  # a first commit was killed
        raise StepFailed(
            f"version {version} of a Delta table cannot be read" if version is not None else "a Delta log is damaged",
            where=str(folder.path),
        ) from None
    except (DeltaError, OSError) as error:
        raise disk_error(error, folder.path, "reading a Delta log") from error
    seq, load = table.transaction_version(SEQ_ID), table.transaction_version(LOAD_ID)
    return Snapshot(folder, table.version(), seq or 0, load or 0, table)


def commit(
    folder: Folder,
    snapshot: Snapshot | None,
    schema: pa.Schema,
    add: Sequence[Mapping[str, Any]],
    remove: Mapping[str, int],
    *,
    partitions: Sequence[str],
    seq: int,
    load: int,
    recreate: bool = False,
) -> None:
    """Make one commit: the table with its first files, files added and removed, or nothing but a new seq.

    Args:
        folder: the asset's.
        snapshot: the version that was looked at; the commit becomes the next one or fails. None: no table yet.
        schema: the files' Arrow schema.
        add: records of files (`name`, `size`).
        remove: names and sizes of files to leave.
        partitions: columns that the files are split by.
        seq, load: application transactions.
        recreate: the table's columns change: all its files are left. The caller holds the folder's lock alone,
            because the library reads the newest version by itself here.

    Raises:
        Moved: another commit came first.
        StepFailed: the disk is full, or the library fails.
    """
    from deltalake import Schema
    from deltalake.exceptions import CommitFailedError, DeltaError
    from deltalake.transaction import (
        AddAction,
        CommitProperties,
        RemoveAction,
        Transaction,
        create_table_with_add_actions,
    )

    now = int(time.time() * 1000)
    actions = []
    for file in add:
        values, facts = values_of(file["name"]), statistics(folder.path / file["name"], partitions)
        actions.append(AddAction(str(file["name"]), int(file["size"]), values, now, True, facts))
    properties = CommitProperties(
        custom_metadata={"millrace": {"seq": seq, "load": str(load)}},
        max_commit_retries=0,
        app_transactions=[Transaction(SEQ_ID, seq), Transaction(LOAD_ID, load)],
    )
    try:
        if snapshot is None or recreate:
            create_table_with_add_actions(
                str(folder.path),
                Schema.from_arrow(schema),
                actions,
                mode="error" if snapshot is None else "overwrite",
                partition_by=list(partitions),
                commit_properties=properties,
            )
        else:
            leave = [RemoveAction(name, True, now, size, values_of(name)) for name, size in remove.items()]
            snapshot.table.create_write_transaction(
                [*actions, *leave],
                "append",
                snapshot.table.schema(),
                partition_by=list(partitions),
                commit_properties=properties,
            )
    except CommitFailedError as error:
        raise Moved(str(error)) from error
    except (DeltaError, OSError) as error:
        if snapshot is None and "already exists" in str(error):
            raise Moved(str(error)) from error
        raise disk_error(error, folder.path, "committing to the Delta log") from error


def settle(folder: Folder, version: int) -> None:
    """Bring a commit to the disk: the library leaves that to the system."""
    file = commit_file(folder, version)
    if file.exists():
        sync_file(file)
        sync_folder(folder.log)


def commit_file(folder: Folder, version: int) -> Path:
    """Return the file of a commit."""
    return folder.path / LOG / f"{version:020d}.json"


def foreign_commits(folder: Folder, since: int, until: int) -> list[str]:
    """Return what others did to the rows after version `since` up to `until`, one line a commit.

    Commits that only move rows between files (optimize) or touch none (vacuum, properties) are no change; a commit
    whose file the log's clean-up has taken counts as none.
    """
    found = []
    for version in range(since + 1, until + 1):
        try:
            lines = commit_file(folder, version).read_text("utf-8").splitlines()
        except FileNotFoundError:
            continue
        actions = [json.loads(line) for line in lines if line.strip()]
        touched = [action.get("add") or action.get("remove") for action in actions]
        if any(action.get("dataChange", True) for action in touched if action):
            info: Mapping[str, Any] = next((a["commitInfo"] for a in actions if "commitInfo" in a), {})
            by = info.get("engineInfo") or "an unknown writer"
            found.append(f"version {version}: {info.get('operation', 'a change')} by {by}")
    return found
