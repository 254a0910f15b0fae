"""The digest of a set of rows: how many, and the exact sum of one signed 64-bit hash per row.

A sum, not an exclusive or: equal rows would cancel. Right against accidents, not against an adversary.
Digests are comparable only when they were taken over the same shape: columns, casts, seed and encoding.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from millrace.errors import MillraceError

SEED = 7  # not 0: with seed 0 PostgreSQL hashes NULL and 0.0 alike
COUNTED = "counted"
"""The shape of a digest that knows nothing but the number of rows; its total is 0."""


@dataclass(frozen=True, slots=True)
class Digest:
    """Rows and the sum of their hashes, under a shape.

    Attributes:
        rows: number of rows.
        total: exact sum of the rows' signed 64-bit hashes (not reduced: it may exceed 64 bits).
        shape: fingerprint of columns, casts, seed and encoding; digests of different shapes are not comparable.
    """

    rows: int
    total: int
    shape: str

    def __add__(self, other: Digest) -> Digest:
        if self.shape != other.shape:
            raise MillraceError(f"digests of different shapes cannot be added: {self.shape} and {other.shape}")
        return Digest(self.rows + other.rows, self.total + other.total, self.shape)

    def __sub__(self, other: Digest) -> Digest:
        return self + Digest(-other.rows, -other.total, other.shape)

    @classmethod
    def counted(cls, rows: int) -> Digest:
        """Return what is known of rows that were counted and not hashed; equal to no other digest of them."""
        return cls(rows, 0, COUNTED)

    @classmethod
    def sum(cls, digests: Iterable[Digest], shape: str) -> Digest:
        """Return the digest of the union of disjoint sets of rows."""
        total = cls(0, 0, shape)
        for digest in digests:
            total += digest
        return total

    def __str__(self) -> str:
        return f"{self.rows}:{self.total}"

    def to_json(self) -> dict[str, Any]:
        """Return the digest as JSON types; the total is a text, since JSON readers lose digits."""
        return {"rows": self.rows, "total": str(self.total), "shape": self.shape}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Digest:
        """Read what `to_json` wrote."""
        return cls(data["rows"], int(data["total"]), data["shape"])
