"""Names: tables as SQL writes them, assets, and the ids of runs and loads."""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass

from millrace.errors import UsageError

_PART = r'"(?:[^"]|"")+"|[^\W\d][\w$]*'
_TABLE = re.compile(rf"(?:(?P<schema>{_PART})\s*\.\s*)?(?P<name>{_PART})")
_PLAIN = re.compile(r"[a-z_][a-z0-9_]*")
_RUN = re.compile(r"[0-9a-f]{8}")
_ASSET = re.compile(r"(?P<layer>[A-Za-z_][\w-]*)\.(?P<name>[^\s.][^.]*)")


def _unquote(part: str) -> str:
    """Return the name that SQL means: quoted names as they are, others folded to lower case."""
    return part[1:-1].replace('""', '"') if part.startswith('"') else part.lower()


def quoted(name: str) -> str:
    """Return a name as people write it in SQL: quoted only where it must be. For display, never for building SQL."""
    return name if _PLAIN.fullmatch(name) else '"' + name.replace('"', '""') + '"'


@dataclass(frozen=True, slots=True, order=True)
class TableRef:
    """A table, view or foreign table; without a schema the server's search path decides."""

    schema: str | None
    name: str

    @classmethod
    def parse(cls, text: str) -> TableRef:
        """Read an SQL name: `orders`, `public.orders`, `"Odd"."na""me"`.

        Raises:
            UsageError: the text is not one SQL name.
        """
        match = _TABLE.fullmatch(text.strip())
        if match is None:
            raise UsageError(
                f"not a table name: {text!r}",
                hint='write an SQL name: public.orders, or "Odd"."name" with quotes',
            )
        schema = match["schema"]
        return cls(None if schema is None else _unquote(schema), _unquote(match["name"]))

    def __str__(self) -> str:
        return quoted(self.name) if self.schema is None else f"{quoted(self.schema)}.{quoted(self.name)}"


@dataclass(frozen=True, slots=True, order=True)
class AssetId:
    """`layer.name`: what a project makes; its name is where it lives.

    For a table in a database that no layer names (`millrace copy`, `to: connection.schema`) the layer is the
    schema: the ledger's key is the place inside the target, never a project's alias.
    """

    layer: str
    name: str

    @classmethod
    def parse(cls, text: str) -> AssetId:
        """Read `layer.name`.

        Raises:
            UsageError: the text is not of that form.
        """
        match = _ASSET.fullmatch(text.strip())
        if match is None:
            raise UsageError(f"not an asset: {text!r}", hint="assets are named layer.name, like silver.orders")
        return cls(match["layer"], match["name"])

    def __str__(self) -> str:
        return f"{self.layer}.{self.name}"


def new_run_id() -> str:
    """Return a new run id: eight hexadecimal digits, shown to people by its first four."""
    return secrets.token_hex(4)


def short_run(run: str) -> str:
    """Return a run id as people see it: the first four digits of one of ours, an orchestrator's whole."""
    return run[:4] if _RUN.fullmatch(run) else run


def load_id(run: str, step: str, target: str) -> int:
    """Return the 63-bit load id of a step's load in a run: a retry of the same step finds its stage by it."""
    text = "\x1f".join((run, step, target)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


def fingerprint(*parts: str) -> str:
    """Return a short, stable hash (16 hexadecimal digits) of some texts."""
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:16]
