"""`copies/*.yaml`: which tables of a connection go where, how, and under which contract."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from millrace.project.checks import CheckSet
from millrace.project.fields import (
    Duration,
    Part,
    Positive,
    RowContract,
    Share,
    Text,
    Texts,
    or_empty,
    seconds,
    unbuilt,
    wrong,
)
from millrace.project.landing import FileOptions

_mode = unbuilt({}, {"full_sync": "full", "incremental_sync": "incremental"})

CopyMode = Annotated[
    Literal["full", "incremental", "append", "truncate", "snapshot", "backfill"],
    BeforeValidator(
        _mode,
        json_schema_input_type=Literal[
            "full", "incremental", "append", "truncate", "snapshot", "backfill", "full_sync", "incremental_sync"
        ],
    ),
]


Change = Literal["evolve", "freeze", "discard", "quarantine"]


def _no_partitions(_: Any) -> Any:
    hint = "a model may have them: models/silver/NAME.yaml"
    raise wrong("partitions of a copy are not built yet: its files are not split", key=True, hint=hint)


class Contract(RowContract):
    """What may change in a source, and what becomes of rows that do not fit.

    Attributes:
        new_columns: columns that come, go or are renamed: `evolve` takes them as they are, `freeze` stops the copy,
            `discard` leaves new ones out, `quarantine` too, and sets rows aside in which they are not null.
        type_changes: `evolve` or `freeze`, the same for types; `discard` and `quarantine` keep the type: values that do
            not convert exactly become null, or their rows are set aside.
    """

    new_columns: Change | None = None
    type_changes: Change | None = None


def _never(value: Any) -> Any:
    return {"every": value} if value == "never" else value


class Verify(Part):
    """The scrub of an incremental table.

    Attributes:
        every: within this time each part of the table is compared with its source once, spread over the runs; or
            `never`. `verify: never` is the same.
    """

    every: Literal["never"] | Duration

    @property
    def seconds(self) -> float | None:
        """The time in seconds; None: never."""
        return None if self.every == "never" else float(seconds(self.every))


def _stage(value: Any) -> Any:
    return {"file": "csv" if value == "file" else value} if isinstance(value, str) else value


class StageFiles(Part):
    """Files between source and target; `stage: csv` is the same as `stage: {file: csv}`, and `stage: file` too.

    Attributes:
        file: `csv`, `parquet`, or `direct`: none, rows go straight from server to server.
        folder: where the files lie until their rows are proven; default: `.millrace/staging` in the project.
    """

    file: Literal["csv", "parquet", "direct"]
    folder: Text | None = None


_StageWords = Literal["file", "csv", "parquet", "direct"]


def _bound(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Bound = Annotated[Text, BeforeValidator(_bound, json_schema_input_type=str | int)]


def _lookback(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) and value > 0 else value


def _whole_or_duration(value: str) -> str:
    if not value.isdecimal():
        seconds(value)
    return value


Lookback = Annotated[
    Text, BeforeValidator(_lookback, json_schema_input_type=str | int), AfterValidator(_whole_or_duration)
]


class TableOptions(FileOptions):
    """One table of a copies file; `defaults` has the same keys except `as`, `select` and `count`.

    Attributes:
        as_: the asset's name, where the table's own does not suit.
        where, select, count: the author's SQL: a condition, a column list or one SELECT, and a count query that
            must equal the rows read.
        cursor_format: how a cursor that is a text is written.
        lookback: how far before its position an incremental copy reads again: `3d`, or a number for a number.
        start, end: `from` and `to` of mode backfill: the interval of the cursor, without its end.
        soft_delete: a column or condition of the rows that the source marks as deleted: they leave the target.
        max_delete: share of the target's rows that one publish may delete.
        verify: how often an incremental table is compared with its source as a whole; 7 days by default.
        proof: `rows`: every row is compared, the default; `count`: a load of all rows into a new table of a database,
            or by mode truncate, only counts them.
        stage: files between source and target: `file`, `csv` or `parquet`; `direct`, the default, has none.
        snapshot: `shared`: a run reads all tables of the file that say so from one snapshot of their database.
    """

    as_: Text | None = Field(default=None, alias="as")
    key: Texts | None = None
    mode: CopyMode | None = None
    cursor: Text | None = None
    cursor_format: Literal["yyyymmdd", "date", "datetime", "timestamp"] | None = None
    lookback: Lookback | None = None
    soft_delete: Text | None = None
    start: Bound | None = Field(default=None, alias="from")
    end: Bound | None = Field(default=None, alias="to")
    where: Text | None = None
    select: Text | None = None
    count: Text | None = None
    contract: Contract | None = None
    max_delete: Share | None = None
    workers: Positive | None = None
    segment_rows: Positive | None = None
    verify: Annotated[Verify, BeforeValidator(_never, json_schema_input_type=Verify | Literal["never"])] | None = None
    stage: Annotated[StageFiles, BeforeValidator(_stage, json_schema_input_type=StageFiles | _StageWords)] | None = None
    snapshot: Literal["own", "shared"] | None = None
    proof: Literal["rows", "count"] | None = None
    description: Text | None = None
    checks: CheckSet | None = None
    partitions: Annotated[Texts | None, BeforeValidator(_no_partitions)] = None

    def over(self, defaults: TableOptions) -> TableOptions:
        """Return these options with what they do not say taken from the defaults; contracts key by key."""
        said: dict[str, Any] = {name: getattr(self, name) for name in self.model_fields_set}
        if self.contract is not None and defaults.contract is not None:
            own = {name: getattr(self.contract, name) for name in self.contract.model_fields_set}
            said["contract"] = defaults.contract.model_copy(update=own)
        return defaults.model_copy(update=said)


class Defaults(TableOptions):
    """What every table of the file has unless it says otherwise."""


class CopiesFile(Part):
    """A file in `copies/`."""

    from_: Text = Field(alias="from")
    to: Text
    description: Text | None = None
    defaults: Annotated[Defaults, BeforeValidator(or_empty)] = Defaults()
    tables: Annotated[dict[str, Annotated[TableOptions, BeforeValidator(or_empty)]], Field(min_length=1)]
