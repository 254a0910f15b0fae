"""Positions: how far a target has come in its source. Ordered within a kind, JSON, stored in the ledger."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from millrace.core.digest import Digest
from millrace.core.scrub import Scrub
from millrace.errors import NewerFormat


@dataclass(frozen=True, slots=True)
class Cursor:
    """Rows up to a value of a cursor column.

    Attributes:
        column: the cursor column.
        value: the highest value seen, in the server's ISO text form (None: no row yet).
        snapshot: the server's `pg_current_snapshot()` text: rows whose xmin is at or past its xmin are read again,
            so a transaction that committed late is brought even with an old cursor value.
        server: the cluster's system identifier; a snapshot says nothing on another cluster.
        tail: digest of the rows that the next look from this position would read now; equal later: nothing changed.
        scrub: when which part of the table was compared whole; None: that is not kept.
        table: which table and columns these are to the server: another one of the same name, or a column that was
            dropped and made again, holds other values without a new row version; None: that is not known.
        traits: its partitions, words of its enums and attributes of its composites, as short texts: where one is gone
            all rows are read, of a partition that came its rows; None: that is not known.
    """

    column: str
    value: str | None
    snapshot: str | None = None
    server: str | None = None
    tail: Digest | None = None
    scrub: Scrub | None = None
    table: str | None = None
    traits: tuple[str, ...] | None = None

    @property
    def told(self) -> str:
        """The value for people: of a time no fractions of a second."""
        return re.sub(r"(?<=:\d\d)\.\d+", "", self.value or "")

    def to_json(self) -> dict[str, Any]:
        """Return the position as JSON types."""
        found: dict[str, Any] = {
            "kind": "cursor",
            "column": self.column,
            "value": self.value,
            "snapshot": self.snapshot,
            "server": self.server,
            "tail": None if self.tail is None else self.tail.to_json(),
        }
        if self.table is not None:
            found["table"] = self.table
        if self.traits is not None:
            found["traits"] = list(self.traits)
        return found if self.scrub is None else {**found, "scrub": self.scrub.to_json()}


@dataclass(frozen=True, slots=True)
class Whole:
    """The whole source at one snapshot; its digest tells whether it is still the same.

    Attributes:
        snapshot: the server's `pg_current_snapshot()` text.
        heap: fingerprint of where and while the snapshot's transaction ids mean something, so that row versions alone
            can tell that nothing changed; None where they cannot.
        read: when all rows behind the digest were last read, ISO 8601 UTC: a later digest may be made of an earlier one
            and of the rows that were written since; None: that is not known.
    """

    digest: Digest | None = None
    snapshot: str | None = None
    heap: str | None = None
    read: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the position as JSON types."""
        found = {
            "kind": "whole",
            "digest": None if self.digest is None else self.digest.to_json(),
            "snapshot": self.snapshot,
            "heap": self.heap,
        }
        return found if self.read is None else {**found, "read": self.read}


@dataclass(frozen=True, slots=True)
class Taken:
    """What was taken of one file: its beginning.

    Attributes:
        size: bytes, from the first on.
        mtime: the file's time of change when it was read, in nanoseconds since 1970.
        digest: SHA-256 of those bytes, in hexadecimal.
        lines: lines that begin in them.
        ended: whether the last of those lines was ended by a newline.
        kept: whether a last line that was not ended became a row; False: it was set aside, and is taken again when
            the file grows.
        same: name of another file with this content: nothing was taken of this one.
    """

    size: int
    mtime: int
    digest: str
    lines: int
    ended: bool = True
    kept: bool = True
    same: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON types."""
        found: dict[str, Any] = {"size": self.size, "mtime": self.mtime, "digest": self.digest, "lines": self.lines}
        if not self.ended:
            found |= {"ended": False, "kept": self.kept}
        return found if self.same is None else {**found, "same": self.same}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Taken:
        """Read what `to_json` wrote."""
        return cls(**data)


@dataclass(frozen=True, slots=True)
class Files:
    """Files taken, by their name relative to the connection's folder."""

    seen: Mapping[str, Taken] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the position as JSON types."""
        return {"kind": "files", "seen": {name: taken.to_json() for name, taken in self.seen.items()}}


@dataclass(frozen=True, slots=True)
class Versions:
    """The versions (ledger seq) of the assets that a model read."""

    inputs: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the position as JSON types."""
        return {"kind": "versions", "inputs": dict(self.inputs)}


Position = Cursor | Whole | Files | Versions


def position_from_json(data: Mapping[str, Any]) -> Position:
    """Read what a position's `to_json` wrote.

    Raises:
        NewerFormat: the kind is not known to this version.
    """
    match data["kind"]:
        case "cursor":
            tail, scrub = data.get("tail"), data.get("scrub")
            return Cursor(
                data["column"],
                data["value"],
                data.get("snapshot"),
                data.get("server"),
                None if tail is None else Digest.from_json(tail),
                None if scrub is None else Scrub.from_json(scrub),
                data.get("table"),
                None if data.get("traits") is None else tuple(data["traits"]),
            )
        case "whole":
            digest = data.get("digest")
            known = None if digest is None else Digest.from_json(digest)
            return Whole(known, data.get("snapshot"), data.get("heap"), data.get("read"))
        case "files":
            return Files({name: Taken.from_json(taken) for name, taken in data["seen"].items()})
        case "versions":
            return Versions(dict(data["inputs"]))
        case other:
            raise NewerFormat(f"a position of kind {other!r} was written by a newer version of Millrace")
