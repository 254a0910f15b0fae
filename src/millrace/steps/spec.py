"""What a copy step is told: source, target, mode, key, cursor, guards. JSON, so that it can stand in a plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from millrace.core.names import AssetId, TableRef
from millrace.core.ports import Mode
from millrace.core.scrub import EVERY
from millrace.errors import UsageError
from millrace.steps.landing import FilesSpec

MODES: Mapping[str, Mode] = {
    "full_sync": "full",
    "full": "full",
    "incremental_sync": "incremental",
    "incremental": "incremental",
    "append": "append",
    "truncate": "truncate",
    "snapshot": "snapshot",
    "backfill": "backfill",
}
"""The modes, by every word that stands for one."""


def check_interval(mode: Mode, cursor: str | None, start: str | None, end: str | None) -> None:
    """Refuse a backfill without a cursor or an interval, and an interval without a backfill. Raises UsageError."""
    bounded = start is not None or end is not None
    if bounded != (mode == "backfill") or (bounded and cursor is None):
        raise UsageError(
            "a backfill needs a cursor and where its interval begins or ends, and no other mode has an interval",
            hint="like --mode backfill --cursor updated_at --from 2026-01-01 --to 2026-02-01",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyOptions:
    """How a table is copied.

    Attributes:
        mode: `full`, `incremental`, `append`, `truncate`, `snapshot` or `backfill`.
        key: key columns; empty: the source's primary key.
        cursor: cursor column of `incremental` and `append`.
        cursor_format: how a text cursor is written: `yyyymmdd`, `date`, `datetime` or `timestamp`.
        lookback: how far before its position a copy reads again: `3d`, `12h`, or a number for a number.
        soft_delete: column or condition of the rows that the source marks as deleted: they leave the target.
        start, end: of `backfill`: the interval of the cursor, from `start` on and before `end`; either may be open.
        where, select, count: the project author's SQL: a condition, a column list or one SELECT, and a count query
            that must equal the rows read in the same snapshot.
        replace: allow the first contact with a non-empty target that has no ledger row.
        allow_deletes: lift `max_delete`.
        max_delete: share of the target's rows that a publish may delete.
        full_refresh: forget the position and read everything.
        workers: connections that read at once.
        segment_rows: aimed rows of a segment.
        new_columns, type_changes: what becomes of an existing PostgreSQL table that the source's columns do not fit:
            `freeze`: an error; `evolve`: columns are added, types altered; `discard`: new columns are left
            out, types stay and values that do not convert become null.
        verify: seconds within which every part of an incremental table is compared with its source, and a source of
            which only written rows are read is read whole; None: never.
        verify_all: compare all parts in this run.
        proof: `rows`: every row is compared; `count`: where all rows are loaded anew, into a new table of PostgreSQL or
            by mode truncate, they are only counted.
        stage: `csv` or `parquet`: rows go by way of such files, and the source is left before the target is written;
            empty: straight from server to server.
        stage_folder: where those files lie, absolute or from the project's folder; None: `.millrace/staging`.
    """

    mode: Mode = "full"
    key: tuple[str, ...] = ()
    cursor: str | None = None
    cursor_format: str | None = None
    lookback: str | None = None
    soft_delete: str | None = None
    start: str | None = None
    end: str | None = None
    where: str | None = None
    select: str | None = None
    count: str | None = None
    replace: bool = False
    allow_deletes: bool = False
    max_delete: float = 0.5
    full_refresh: bool = False
    workers: int = 2
    segment_rows: int = 250_000
    new_columns: str = "freeze"
    type_changes: str = "freeze"
    verify: float | None = EVERY
    verify_all: bool = False
    proof: Literal["rows", "count"] = "rows"
    stage: str = ""
    stage_folder: str | None = None

    @property
    def tracked(self) -> str | None:
        """The cursor column that positions are kept by; None where everything is compared each time."""
        return self.cursor if self.mode in ("incremental", "append", "backfill") else None


@dataclass(frozen=True, slots=True)
class CopySpec(CopyOptions):
    """One copy of one table.

    Attributes:
        source: name of the source connection in the runtime.
        table: the source table.
        asset: the ledger's key: `layer.name` in a lake or warehouse, `schema.table` in a PostgreSQL target.
        files: how files become rows, where the source is a folder; the table is then a name only.
        snapshot: name of the snapshot that it shares with other tables of the run; empty: it has its own.
    """

    source: str
    table: TableRef
    asset: AssetId
    files: FilesSpec | None = None
    snapshot: str = ""

    @property
    def place(self) -> TableRef:
        """The table in a PostgreSQL target."""
        return TableRef(self.asset.layer, self.asset.name)

    def to_json(self) -> dict[str, Any]:
        """Return the spec as JSON types."""
        data = asdict(self)
        data["key"] = list(self.key)
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CopySpec:
        """Read what `to_json` wrote; what else stands in a step's spec (its checks) is left to others."""
        known = {field.name for field in fields(cls)}
        files = data.get("files")
        return cls(
            **{
                **{name: value for name, value in data.items() if name in known},
                "table": TableRef(**data["table"]),
                "asset": AssetId(**data["asset"]),
                "key": tuple(data["key"]),
                "files": None if files is None else FilesSpec.from_json(files),
            }
        )
