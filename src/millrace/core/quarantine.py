"""Rows in quarantine as people and programs see them, whatever target keeps them.

An entry counts as dealt with as long as its source row keeps its digest:
D(source) = D(asset less replayed rows) + D(entries: open, replayed and dropped).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from millrace.core.names import AssetId

STATUSES = ("open", "replayed", "dropped")


@dataclass(frozen=True, slots=True)
class Entry:
    """One row in quarantine.

    Attributes:
        id: twelve hexadecimal digits, stable as long as the source row is.
        status: `open`: it waits; `replayed`: its fixed row is in the asset; `dropped`: it was given up.
        rule, column: the check that it broke, and the column that this is about; empty where there is none.
        reason: one sentence.
        key: the key's columns and values as text.
        digest: of the row as it came.
        source: where it stood, like `events-3.jsonl:17`.
        since: when it was first set aside; run: by which run.
        row: the row as it came.
        bytes: what could not be read into columns, exactly.
        fix: the row that stands in the asset instead, of a replayed entry.
    """

    id: str
    asset: AssetId
    status: str
    rule: str
    column: str
    reason: str
    key: Mapping[str, str | None]
    digest: str
    source: str | None
    since: datetime
    run: str
    row: Mapping[str, Any]
    bytes: bytes | None = None
    fix: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Balance:
    """D(source) = D(asset) − D(replayed rows) + D(entries), in rows, and whether the digests say the same.

    Attributes:
        source: rows that were read from the source, by the other side of the equation.
        compared: whether these were all rows of the source: a load that reads changes sees no row that was deleted.
        asset: rows of the asset.
        agree: whether the source's own digest equals the sum; None: it is not known.
    """

    source: int
    compared: bool
    asset: int
    open: int
    replayed: int
    dropped: int
    agree: bool | None

    def told(self, where: str) -> str:
        """Return the asset's side: `99,980 in bronze.orders (1 mended) + 20 in quarantine + 1 dropped`."""
        mended = f" ({self.replayed:,} mended)" if self.replayed else ""
        dropped = f" + {self.dropped:,} dropped" if self.dropped else ""
        return f"{self.asset:,} {where}{mended} + {self.open:,} in quarantine{dropped}"
