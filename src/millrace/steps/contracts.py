"""Contracts: what columns of a source may change without asking, and how many of its rows may be set aside."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any

from millrace.core.names import AssetId
from millrace.core.schema import Schema
from millrace.core.staged import LedgerEntry
from millrace.errors import ContractBroken

LEAST = 10
"""Rows of a load that may be set aside even where `max_bad` of them are fewer, unless it is 0."""


def most_bad(max_bad: float, rows: int) -> int:
    """Return how many rows of a load may be set aside: at least `LEAST`, unless the share is 0."""
    return max(LEAST, int(max_bad * rows)) if max_bad else 0


def local_time(time: str) -> str:
    """Return a time of the ledger as people read it: to the minute, in their zone."""
    return dt.datetime.fromisoformat(time).astimezone().strftime("%Y-%m-%d %H:%M")


def check_columns(asset: AssetId, contract: Mapping[str, Any], entry: LedgerEntry, old: Schema, new: Schema) -> None:
    """Refuse columns that came, went or were retyped, where the contract freezes them.

    Args:
        asset: what they are of.
        contract: `new_columns`, `type_changes`: `evolve` or `freeze`; `place`: file and line. Empty: nothing is frozen.
        entry: the version that stays.
        old, new: columns of that version, and of the source now.

    Raises:
        ContractBroken: names the columns, and what lets them in.
    """
    detail, keys = [], []
    if contract.get("new_columns") == "freeze":
        came = [f"{column.name} ({column.type})" for column in new.columns if column.name not in old.names]
        went = [f"{column.name} ({column.type})" for column in old.columns if column.name not in new.names]
        detail += [f"new: {', '.join(came)}"] if came else []
        detail += [f"dropped or renamed: {', '.join(went)}"] if went else []
        keys += ["new_columns: evolve"] if came or went else []
    if contract.get("type_changes") == "freeze":
        pairs = [(old[column.name], column) for column in new.columns if column.name in old.names]
        retyped = [f"{before.name}: {before.type} → {now.type}" for before, now in pairs if before.type != now.type]
        detail += [f"retyped: {', '.join(retyped)}"] if retyped else []
        keys += ["type_changes: evolve"] if retyped else []
    if not detail:
        return
    raise ContractBroken(
        f"{asset} was not published: its columns changed, and the contract freezes them",
        detail=[*detail, f"the last good version ({local_time(entry.time)}) stays"],
        hint=f"to take them as they are: contract: {{{', '.join(keys)}}} in {contract['place']};"
        " to keep the old columns: select",
    )
