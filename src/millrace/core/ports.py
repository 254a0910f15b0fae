"""The ports of the house: what a source, a target and a step kind are to everybody else.

Imports with no driver and no pyarrow installed. A target makes its own error classes into those of
`millrace.errors`; whatever else it raises counts as fatal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, runtime_checkable

from millrace.core.digest import Digest
from millrace.core.names import AssetId, TableRef
from millrace.core.plan import Freshness, Step
from millrace.core.position import Position
from millrace.core.schema import Schema
from millrace.core.segment import Segment, SegmentId
from millrace.core.staged import CheckResult, LedgerEntry, Proof, Staged

if TYPE_CHECKING:
    import pyarrow as pa

Progress = Callable[[int, int], None]
"""Called with (rows, bytes) moved since the last call, from any thread."""

Mode = Literal["full", "incremental", "append", "truncate", "snapshot", "backfill"]

KEEP_SECONDS = 24 * 3600.0
"""How long a stage whose owner is dead waits to be resumed, before `Target.gc` may drop it."""


class Snapshot(Protocol):
    """One consistent view of a source, open while its context is."""

    token: str
    """Shareable name (PostgreSQL: an exported snapshot)."""


class Reader(Protocol):
    """One source, or the readable side of a target."""

    def schema(self, table: TableRef) -> Schema:
        """Return columns and primary key. Raises NotFound, PermissionMissing."""

    def snapshot(self) -> AbstractContextManager[Snapshot]:
        """Open one consistent view."""

    def segments(self, table: TableRef, snap: Snapshot, since: Position | None, rows: int) -> Sequence[Segment]:
        """Split the table, or its changes since a position, into parts of about `rows` rows."""

    def read(self, table: TableRef, segment: Segment, snap: Snapshot) -> pa.RecordBatchReader:
        """Stream a segment's rows as Arrow, each value exact or as its server's text."""

    def digest(self, table: TableRef, segments: Sequence[Segment], snap: Snapshot) -> Mapping[SegmentId, Digest]:
        """Digest segments where the data lives."""


@dataclass(frozen=True, slots=True)
class StageRequest:
    """What a target needs to know to open a stage.

    Attributes:
        how: wanted way of applying: see `core.staged.Publish`.
        base: the ledger seq that the step saw; the publish compares it.
        partitions: columns that the files of a lake asset are split by.
    """

    asset: AssetId
    load: int
    run: str
    step: str
    base: int
    how: str
    schema: Schema
    inputs: Mapping[str, int]
    code: str = ""
    date: str | None = None
    partitions: tuple[str, ...] = ()


class Target(Protocol):
    """Where assets live: PostgreSQL, a Delta lake, a DuckDB warehouse, a folder of pages."""

    name: str

    def ledger(self, asset: AssetId) -> LedgerEntry | None:
        """Return the asset's last publish, or None. Raises NewerFormat."""

    def prove(self, staged: Staged) -> Proof:
        """Digest the stage where it lies and compare it with `staged.expected`. Raises ProofFailed."""

    def publish(
        self, staged: Sequence[Staged], proofs: Sequence[Proof], expect: Mapping[AssetId, int]
    ) -> Sequence[LedgerEntry]:
        """Make the stages visible in one commit, if every asset's ledger seq still is as expected.

        A load id that the ledger already carries is adopted: its entry is returned, nothing is applied twice.

        Raises:
            SeqMoved: someone else published; the stage is worthless.
            CommitUnknown: the answer to the commit was lost.
        """

    def discard(self, staged: Staged) -> None:
        """Drop a stage; no error when it is gone."""

    def stages(self) -> Iterable[Staged]:
        """Return the closed stages that lie in the target."""

    def gc(self, live: Callable[[str], bool]) -> Sequence[str]:
        """Drop what killed runs left (open and closed stages of runs for which `live(run)` is false).

        Returns names of what was dropped.
        """


@runtime_checkable
class Versioned(Protocol):
    """A target that keeps earlier loads of its assets and can tell them apart."""

    def same_rows(self, asset: AssetId, then: int, now: int) -> bool:
        """Say whether two loads hold the same rows: those between only moved a position or recorded a proof."""


class Reporter(Protocol):
    """Where a step says how it goes; made by observe, shown by cli."""

    def total(self, rows: int | None) -> None:
        """Say how many rows the step expects to move."""

    def moved(self, rows: int, size: int) -> None:
        """Say that rows and bytes were moved since the last call."""

    def note(self, text: str) -> None:
        """Say one sentence about what happens, like `12 of 12 segments kept from run 7f3a`."""

    def checks(self, results: Sequence[CheckResult]) -> None:
        """Report checks' outcomes, failed ones before the error that they cause."""


class Context(Protocol):
    """What the engine gives a step kind for one step of one run."""

    run: str
    load: int
    logical_time: str
    """ISO 8601 UTC: "now" in models and checks."""
    report: Reporter

    def target(self, name: str) -> Target:
        """Return a target of the runtime by name."""

    def version(self, asset: AssetId) -> int | Staged | None:
        """Return the pinned ledger seq of an input, its Staged when it belongs to the same group, or None."""

    def group(self) -> Sequence[Staged]:
        """Return what earlier steps of the same publish group have staged in this run."""

    def scratch(self) -> Path:
        """Return a private folder of this step in this run, removed afterwards."""

    def stopping(self) -> bool:
        """Whether Ctrl-C or SIGTERM was seen: end at the next place from which one can resume."""


@runtime_checkable
class Settling(Protocol):
    """A step kind that has something to do once its publish is made, like moving files that were taken."""

    def settle(self, step: Step, ctx: Context) -> None:
        """Do it. It is lost when the process dies before, so the next run's `fresh` and `stage` must see to it."""


@runtime_checkable
class Holding(Protocol):
    """A step kind that holds something open for several steps of a run, like a snapshot that they share."""

    def let_go(self, waiting: Sequence[Step]) -> None:
        """Close what none of the steps needs that run or wait; called when a step has ended."""


class StepKind(Protocol):
    """One kind of step; found by entry point `millrace.step_kinds`."""

    kind: ClassVar[str]

    def fresh(self, step: Step, ctx: Context) -> Freshness:
        """Say whether the step may be skipped and what a run would do; reads only."""

    def stage(self, step: Step, ctx: Context) -> tuple[Staged, ...]:
        """Write the new data where no reader looks. May return () when there is nothing to publish."""

    def prove(self, step: Step, staged: Sequence[Staged], ctx: Context) -> tuple[Proof, ...]:
        """Show that it is right: digests and blocking checks. Raises ProofFailed, GateFailed."""


@runtime_checkable
class Expecting(StepKind, Protocol):
    """A step kind that is told early that one of its steps will have work to do."""

    def expect(self, step: Step) -> AbstractContextManager[None]:
        """Begin what takes time and touches no data, like starting a program; left when the run's steps have ended.

        Entered at most once in a run, when something that the step's publish group reads was published. The step may
        still not come to be staged.
        """
