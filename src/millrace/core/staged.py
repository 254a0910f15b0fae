"""What passes between the three doors: a staged thing, its proof, and the ledger entry of its publish.

All are frozen and JSON, so that the doors may be three processes on three machines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from millrace.core.digest import COUNTED, Digest
from millrace.core.names import AssetId
from millrace.core.position import Position, position_from_json
from millrace.core.schema import Schema
from millrace.core.segment import SegmentId
from millrace.errors import NewerFormat

FORMAT = 1
"""Version of the ledger, stage and manifest formats; docs/reference/formats.md describes them."""

Publish = Literal[
    "create",
    "sync",
    "merge",
    "append",
    "truncate",
    "snapshot",
    "interval",
    "replace",
    "upsert",
    "member",
    "file",
    "position",
]
"""How a stage is applied.

`create`: a new table or file set becomes the target (rename, first commit); `sync`: the differing segments are
made equal, deletes included; `merge`: changed rows are upserted by key; `append`: rows are added;
`truncate`: all rows are deleted and loaded; `snapshot`: changed rows get new versions; `interval`: the
rows of an interval of the cursor are made equal; `replace`: the
whole content is exchanged (lake); `upsert`: copy-on-write by key (lake); `member`: one table of a group that is
published as a whole (warehouse clone); `file`: a file is replaced; `position`: nothing but the position moves.
"""

Level = Literal["none", "counted", "transfer", "applied", "table"]
"""What was proven: `counted`: as many rows are stored as were read, and no row was compared; `transfer`: staged equals
source; `applied`: the staged keys in the target equal the stage; `table`: the whole target equals the source."""


def check_format(found: int, what: str) -> None:
    """Refuse what a newer version wrote.

    Raises:
        NewerFormat: `found` is above FORMAT.
    """
    if found > FORMAT:
        raise NewerFormat(
            f"{what} has format {found}, this version of Millrace knows up to {FORMAT}",
            hint="use the newer version of Millrace here; nothing was changed",
        )


@dataclass(frozen=True, slots=True)
class Counts:
    """What a publish did to the target, in rows."""

    inserted: int = 0
    updated: int = 0
    deleted: int = 0

    def to_json(self) -> dict[str, int]:
        """Return the counts as JSON types."""
        return {"inserted": self.inserted, "updated": self.updated, "deleted": self.deleted}


@dataclass(frozen=True, slots=True)
class Staged:
    """Data that lies where no reader looks, and all that is needed to prove and publish it.

    Attributes:
        asset: what it will be.
        load: 63-bit load id; the ledger carries it after the publish.
        run, step: who made it.
        target: name of the target in the runtime.
        base: the ledger's seq it was staged upon (0: never published); the publish compares it.
        how: how it will be applied.
        place: where it lies, in the target's own words: a table's name, a folder.
        schema: columns and key of the result.
        position: what the source position will be after the publish.
        expected: digest per segment, taken from the source in the snapshot that was staged.
        rows: number of staged rows.
        inputs: seq of the assets it was made from.
        code: fingerprint of the files that made it.
        date: the logical date it was made for, when it depends on one.
        detail: the target's own facts (files, segments, options); JSON.
    """

    asset: AssetId
    load: int
    run: str
    step: str
    target: str
    base: int
    how: Publish
    place: str
    schema: Schema
    position: Position
    expected: Mapping[SegmentId, Digest] = field(default_factory=dict)
    rows: int = 0
    inputs: Mapping[str, int] = field(default_factory=dict)
    code: str = ""
    date: str | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)

    @property
    def counted(self) -> bool:
        """Whether the source's rows were only counted."""
        return any(digest.shape == COUNTED for digest in self.expected.values())

    def whole(self) -> Digest:
        """Return the digest of all that was staged."""
        return Digest.sum(self.expected.values(), COUNTED if self.counted else self.schema.shape)

    def to_json(self) -> dict[str, Any]:
        """Return the stage as JSON types."""
        return {
            "format": FORMAT,
            "asset": [self.asset.layer, self.asset.name],
            "load": str(self.load),
            "run": self.run,
            "step": self.step,
            "target": self.target,
            "base": self.base,
            "how": self.how,
            "place": self.place,
            "schema": self.schema.to_json(),
            "position": self.position.to_json(),
            "expected": {name: digest.to_json() for name, digest in self.expected.items()},
            "rows": self.rows,
            "inputs": dict(self.inputs),
            "code": self.code,
            "date": self.date,
            "detail": dict(self.detail),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Staged:
        """Read what `to_json` wrote."""
        check_format(data["format"], "a stage")
        return cls(
            asset=AssetId(*data["asset"]),
            load=int(data["load"]),
            run=data["run"],
            step=data["step"],
            target=data["target"],
            base=data["base"],
            how=data["how"],
            place=data["place"],
            schema=Schema.from_json(data["schema"]),
            position=position_from_json(data["position"]),
            expected={name: Digest.from_json(digest) for name, digest in data["expected"].items()},
            rows=data["rows"],
            inputs=dict(data["inputs"]),
            code=data["code"],
            date=data["date"],
            detail=dict(data["detail"]),
        )


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One check's outcome.

    Attributes:
        name: like `not_null(order_id)`.
        asset: what was checked.
        passed: whether it held.
        blocking: whether a failure stops the publish.
        failing: number of failing rows, or None where rows do not apply.
        detail: one sentence with the figures.
        sample: up to five failing rows or values, as text.
    """

    name: str
    asset: AssetId
    passed: bool
    blocking: bool = True
    failing: int | None = None
    detail: str = ""
    sample: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON types."""
        return {
            "name": self.name,
            "asset": [self.asset.layer, self.asset.name],
            "passed": self.passed,
            "blocking": self.blocking,
            "failing": self.failing,
            "detail": self.detail,
            "sample": list(self.sample),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CheckResult:
        """Read what `to_json` wrote."""
        return cls(
            data["name"],
            AssetId(*data["asset"]),
            data["passed"],
            data["blocking"],
            data["failing"],
            data["detail"],
            tuple(data["sample"]),
        )


def score(checks: Sequence[CheckResult]) -> float:
    """Return the quality score of some checks: the share that passed, 0 to 1; 1.0 when there are none."""
    return sum(check.passed for check in checks) / len(checks) if checks else 1.0


@dataclass(frozen=True, slots=True)
class Proof:
    """That a stage is right: made by `Target.prove` or a step kind, required by the publish.

    Attributes:
        asset, load: which stage.
        level: what was proven so far; the publish may raise it (`applied`, `table`).
        digest: digest of the staged rows as read back from the target; None for kinds that compare nothing.
        checks: the checks that ran on the stage; a failed blocking one has already raised GateFailed.
    """

    asset: AssetId
    load: int
    level: Level
    digest: Digest | None = None
    checks: tuple[CheckResult, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the proof as JSON types."""
        return {
            "asset": [self.asset.layer, self.asset.name],
            "load": str(self.load),
            "level": self.level,
            "digest": None if self.digest is None else self.digest.to_json(),
            "checks": [check.to_json() for check in self.checks],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Proof:
        """Read what `to_json` wrote."""
        digest = data["digest"]
        checks = tuple(CheckResult.from_json(check) for check in data["checks"])
        return cls(
            AssetId(*data["asset"]),
            int(data["load"]),
            data["level"],
            None if digest is None else Digest.from_json(digest),
            checks,
        )


@dataclass(frozen=True, slots=True)
class Witness:
    """By what a target's row versions tell later that nobody wrote into it since a publish.

    Attributes:
        snapshot: the target's `pg_current_snapshot()` text inside the publish.
        heap: fingerprint of where and while its transaction ids mean something.
        xid: the publish's own transaction id, as row versions show it.
    """

    snapshot: str
    heap: str
    xid: str

    def to_json(self) -> dict[str, str]:
        """Return the witness as JSON types."""
        return {"snapshot": self.snapshot, "heap": self.heap, "xid": self.xid}


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """The last publish of an asset, as its target keeps it: the only truth about what was published.

    Attributes:
        seq: counts the asset's publishes from 1; compare-and-swap runs on it.
        digest: of the whole asset where it is known, else of the load.
        rows: rows of the asset after the publish, where known, else -1.
        time: UTC, ISO 8601.
        quarantined: rows of its source that lie in quarantine and wait for somebody (open ones).
        witness: by what the target tells that it was not written since; None where it cannot.
        note: how it was published, where the target chose between ways; one sentence.
    """

    asset: AssetId
    seq: int
    load: int
    position: Position
    inputs: Mapping[str, int]
    digest: Digest | None
    level: Level
    time: str
    run: str = ""
    code: str = ""
    date: str | None = None
    rows: int = -1
    counts: Counts = Counts()
    quarantined: int = 0
    witness: Witness | None = None
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the entry as JSON types."""
        found = {
            "format": FORMAT,
            "asset": [self.asset.layer, self.asset.name],
            "seq": self.seq,
            "load": str(self.load),
            "position": self.position.to_json(),
            "inputs": dict(self.inputs),
            "digest": None if self.digest is None else self.digest.to_json(),
            "level": self.level,
            "time": self.time,
            "run": self.run,
            "code": self.code,
            "date": self.date,
            "rows": self.rows,
            "counts": self.counts.to_json(),
            "quarantined": self.quarantined,
            "note": self.note,
        }
        return found if self.witness is None else {**found, "witness": self.witness.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LedgerEntry:
        """Read what `to_json` wrote.

        Raises:
            NewerFormat: a newer version wrote it.
        """
        check_format(data["format"], f"the ledger entry of {'.'.join(data['asset'])}")
        digest, witness = data["digest"], data.get("witness")
        return cls(
            asset=AssetId(*data["asset"]),
            load=int(data["load"]),
            position=position_from_json(data["position"]),
            inputs=dict(data["inputs"]),
            digest=None if digest is None else Digest.from_json(digest),
            counts=Counts(**data["counts"]),
            quarantined=data.get("quarantined", 0),
            witness=None if witness is None else Witness(**witness),
            note=data.get("note", ""),
            **{name: data[name] for name in ("seq", "level", "time", "run", "code", "date", "rows")},
        )


def entry_for(
    staged: Staged, proof: Proof, *, time: str, level: Level, digest: Digest | None, rows: int, counts: Counts
) -> LedgerEntry:
    """Return the ledger entry that publishing `staged` makes; targets add what they proved inside the publish."""
    return LedgerEntry(
        asset=staged.asset,
        seq=staged.base + 1,
        load=staged.load,
        position=staged.position,
        inputs=staged.inputs,
        digest=digest if digest is not None else proof.digest,
        level=level,
        time=time,
        run=staged.run,
        code=staged.code,
        date=staged.date,
        rows=rows,
        counts=counts,
    )
