"""Columns and schemas: the source's own type beside a portable kind."""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from millrace.core.digest import SEED
from millrace.core.names import fingerprint
from millrace.errors import ContractBroken, did_you_mean

_DECIMAL = re.compile(r"(?:numeric|decimal)\((\d+),\s*(\d+)\)")


class Kind(enum.Enum):
    """Portable kinds of columns; what has no kind of its own travels as TEXT in its server's text form."""

    BOOL = "bool"
    INT16 = "int16"
    INT32 = "int32"
    INT64 = "int64"
    FLOAT32 = "float32"
    FLOAT64 = "float64"
    DECIMAL = "decimal"
    TEXT = "text"
    BYTES = "bytes"
    DATE = "date"
    TIME = "time"
    TIMESTAMP = "timestamp"
    TIMESTAMPTZ = "timestamptz"


@dataclass(frozen=True, slots=True)
class Column:
    """One column.

    Attributes:
        name: as the catalogue has it, unquoted.
        type: the owner's type text, like `numeric(12,2)` (PostgreSQL) or `DECIMAL(12,2)` (DuckDB).
        kind: how it travels to systems that do not know that type.
        nullable: whether nulls are allowed.
        precision, scale: of DECIMAL, else 0.
        hashed: how the column enters the row digest: `bool`, `int`, `float8`, `text`, `bytes`, `date`, `time`,
            `timestamp`, `uuid`; everything without an exact hash is hashed as its `text`. Empty: not known.
    """

    name: str
    type: str
    kind: Kind
    nullable: bool = True
    precision: int = 0
    scale: int = 0
    hashed: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the column as JSON types."""
        found: dict[str, Any] = {
            "name": self.name,
            "type": self.type,
            "kind": self.kind.value,
            "nullable": self.nullable,
            "hashed": self.hashed,
        }
        if self.kind is Kind.DECIMAL:
            found |= {"precision": self.precision, "scale": self.scale}
        return found

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Column:
        """Read what `to_json` wrote."""
        return cls(
            data["name"],
            data["type"],
            Kind(data["kind"]),
            data["nullable"],
            data.get("precision", 0),
            data.get("scale", 0),
            data.get("hashed", ""),
        )


def decimal_of(type_text: str) -> tuple[int, int] | None:
    """Return (precision, scale) of `numeric(p,s)`; None for a numeric without bounds or another type."""
    match = _DECIMAL.fullmatch(type_text.strip().lower())
    return (int(match[1]), int(match[2])) if match else None


@dataclass(frozen=True, slots=True)
class Schema:
    """The columns of a table in order, and its key (names of columns; empty: none is known)."""

    columns: tuple[Column, ...]
    key: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The columns' names in order."""
        return tuple(column.name for column in self.columns)

    def __getitem__(self, name: str) -> Column:
        for column in self.columns:
            if column.name == name:
                return column
        raise KeyError(name)

    def with_key(self, key: Sequence[str]) -> Schema:
        """Return the same columns under another key."""
        return Schema(self.columns, tuple(key))

    @property
    def fingerprint(self) -> str:
        """A short hash of names and types: equal for tables whose rows can be compared."""
        return fingerprint(*(f"{column.name}\x1e{column.type}" for column in self.columns))

    @property
    def shape(self) -> str:
        """The fingerprint of the row digest over these columns: names in order, how each is hashed, the seed."""
        return fingerprint(f"rows=2 seed={SEED}", *(f"{column.name}\x1e{column.hashed}" for column in self.columns))

    def to_json(self) -> dict[str, Any]:
        """Return the schema as JSON types."""
        return {"columns": [column.to_json() for column in self.columns], "key": list(self.key)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Schema:
        """Read what `to_json` wrote."""
        return cls(tuple(Column.from_json(column) for column in data["columns"]), tuple(data["key"]))


_PARTITIONED = {Kind.DATE, Kind.INT16, Kind.INT32, Kind.INT64, Kind.TEXT, Kind.BOOL}


def check_partitions(schema: Schema, partitions: Sequence[str], asset: str, where: str | None = None) -> None:
    """Check that files can be split by some columns.

    Args:
        schema: of the asset.
        partitions: names of columns.
        asset: what errors name.
        where: file and line that name the columns.

    Raises:
        ContractBroken: there is no such column, or its type has no exact text that all readers agree on.
    """
    for name in partitions:
        if name not in schema.names:
            raise ContractBroken(
                f"{asset} has no column {name} to be split by",
                where=where,
                hint=did_you_mean(name, schema.names) or f"its columns: {', '.join(schema.names)}",
            )
        column = schema[name]
        if column.kind in (Kind.TIMESTAMP, Kind.TIMESTAMPTZ):
            hint = f'split by a day of it: cast("{name}" as date) as {name}_date'
        else:
            hint = "split by a date, an integer, a text or a boolean"
        if column.kind not in _PARTITIONED:
            raise ContractBroken(f"{asset} cannot be split by {name}, which is {column.type}", where=where, hint=hint)
