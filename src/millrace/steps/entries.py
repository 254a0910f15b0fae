"""Which entries of a quarantine are meant, and what is said when none of them can be replayed; for every target."""

from __future__ import annotations

from collections.abc import Sequence

from millrace.core.names import AssetId
from millrace.errors import ContractBroken, NotFound, UsageError, did_you_mean

SHOWN = 10


def nothing_there(asset: AssetId) -> NotFound:
    """Return the error for an asset without entries."""
    return NotFound(f"nothing of {asset} is in quarantine", hint="see what there is: millrace quarantine list")


def chosen(asset: AssetId, ids: Sequence[str], statuses: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """Return the places of the wanted entries.

    Args:
        asset: whose they are.
        ids, statuses: of all entries.
        wanted: ids or their beginnings; none: all open ones.

    Raises:
        NotFound: there is no such entry.
        UsageError: an entry is not open.
    """
    if not wanted:
        found = [place for place, status in enumerate(statuses) if status == "open"]
        if not found:
            raise NotFound(f"no entry of {asset} is open", hint="see: millrace quarantine list")
        return found
    places: list[int] = []
    for name in wanted:
        meant = [place for place, known in enumerate(ids) if known.startswith(name)]
        if len(meant) != 1:
            what = "is no entry" if not meant else f"begins {len(meant)} entries"
            hint = did_you_mean(name, ids) or f"see: millrace quarantine show {asset}"
            raise NotFound(f"{name} {what} of the quarantine of {asset}", hint=hint)
        if statuses[meant[0]] != "open":
            raise UsageError(f"{ids[meant[0]]} of {asset} is {statuses[meant[0]]} already")
        places += [place for place in meant if place not in places]
    return places


def check_set(asset: AssetId, name: str, columns: Sequence[str], key: Sequence[str]) -> None:
    """Refuse to set what is no column, or is in the key. Raises UsageError."""
    if name not in columns:
        hint = did_you_mean(name, columns) or f"columns: {', '.join(columns)}"
        raise UsageError(f"{asset} has no column {name}", hint=hint)
    if name in key:
        raise UsageError(
            f"{name} is in the key of {asset}: with another key it would be another row",
            hint="mend it at the source, then: millrace run",
        )


def nothing_holds(asset: AssetId, told: Sequence[str]) -> ContractBroken:
    """Return the error for entries that all break the rules still; `told`: each with the reason."""
    rows = f"{len(told):,} {'row' if len(told) == 1 else 'rows'}"
    return ContractBroken(
        f"nothing of {asset} was replayed: {rows} still {'breaks' if len(told) == 1 else 'break'} the contract",
        detail=[*told[:SHOWN], *([f"and {len(told) - SHOWN:,} more"] if len(told) > SHOWN else [])],
        hint="set a value that holds: --set column=value; or mend the source, then: millrace run",
    )
