"""Where a page's figures come from: the loads behind assets of the warehouse, back to what was copied."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from millrace.core.names import AssetId
from millrace.core.quarantine import Balance
from millrace.core.staged import CheckResult, LedgerEntry
from millrace.dashboards.page import Source
from millrace.duck import ledger
from millrace.errors import NotFound
from millrace.lake.ledger import Manifest
from millrace.lake.quarantine import balance
from millrace.lake.target import LakeTarget

if TYPE_CHECKING:
    import duckdb

_LOADED = "warehouse/"
"""How the ledger calls a lake asset that was loaded into the warehouse: `warehouse/silver.orders`."""


def sources_of(
    assets: Sequence[AssetId], connection: duckdb.DuckDBPyConnection, lake: Callable[[], LakeTarget]
) -> list[Source]:
    """Return assets of the warehouse and every load that they were made from, each as of the load that they saw.

    Ledger entries name the versions of their inputs, so this is what the figures come from, whatever has been
    published since.

    Args:
        assets: of the warehouse.
        connection: the published warehouse file.
        lake: returns the lake; asked when something was loaded from it.
    """
    return list(_Walk(connection, lake).from_(assets))


class _Walk:
    def __init__(self, connection: duckdb.DuckDBPyConnection, lake: Callable[[], LakeTarget]) -> None:
        self._connection = connection
        self._lake = lake
        self._entries = {str(asset): entry for asset, entry in ledger.read(connection).items()}
        self._checks: dict[str, list[CheckResult]] = {}
        for check in ledger.checks(connection):
            self._checks.setdefault(str(check.asset), []).append(check)

    def from_(self, assets: Sequence[AssetId]) -> Iterator[Source]:
        """Yield the assets, then what they were made from, nearest first."""
        ahead: dict[tuple[str, int], LedgerEntry | None] = {}
        for asset in assets:
            entry = self._entries.get(str(asset))
            yield self._made(str(asset), entry)
            for name, seq in entry.inputs.items() if entry else ():
                loaded = self._loaded(name, seq)
                ahead |= dict.fromkeys(loaded.inputs.items(), loaded) if loaded else {}
        yield from self._beside(assets)
        seen = set(ahead)
        while ahead:
            further: dict[tuple[str, int], LedgerEntry | None] = {}
            for (name, seq), loaded in ahead.items():
                manifest = self._manifest(name, seq)
                yield self._kept(name, seq, manifest, loaded)
                further |= {one: None for one in manifest.entry.inputs.items() if one not in seen} if manifest else {}
            ahead = further
            seen |= set(further)

    def _beside(self, assets: Sequence[AssetId]) -> Iterator[Source]:
        """Yield what was made in the same loads as the assets, as one: its tests look at what these are made of."""
        shown = {str(asset) for asset in assets}
        loads = {entry.load for name, entry in self._entries.items() if name in shown}
        others = {name: entry for name, entry in self._entries.items() if entry.load in loads and name not in shown}
        checks = tuple(check for name in others for check in self._checks.get(name, ()))
        if checks:
            newest = max(others.values(), key=lambda entry: entry.time)
            name = f"{len(others)} other dbt model{'' if len(others) == 1 else 's'}"
            yield Source(name, 0, newest.time, "built from the loads below", None, checks)

    def _loaded(self, name: str, seq: int) -> LedgerEntry | None:
        """Return the load of a lake asset into the warehouse; None for what a tool made there."""
        if not name.startswith(_LOADED):
            return None
        entry = self._entries.get(name)
        return entry if entry is not None and entry.seq == seq else ledger.at(self._connection, name, seq)

    def _manifest(self, name: str, seq: int) -> Manifest | None:
        try:
            return self._lake().manifest(AssetId.parse(name), seq)
        except NotFound:  # vacuumed
            return None

    def _made(self, name: str, entry: LedgerEntry | None) -> Source:
        if entry is None:
            return Source(name, 0, "", "never published")
        checks = tuple(self._checks.get(name, ()))
        proof = "built from the loads below"
        return Source(name, entry.seq, entry.time, proof, entry.rows if entry.rows >= 0 else None, checks)

    def _kept(self, name: str, seq: int, manifest: Manifest | None, loaded: LedgerEntry | None) -> Source:
        """Return a lake asset; the tests that looked at its table in the warehouse count as its own."""
        if manifest is None:
            return Source(name, seq, "", "what was proven is no longer kept")
        entry = manifest.entry
        checks = [*(manifest.proof.checks if manifest.proof else ()), *(self._checks.get(name, ()) if loaded else ())]
        sums = balance(self._lake().folder(entry.asset), manifest) if manifest.quarantine else None
        words = _words(manifest, sums, mended=self._mended(name, seq, manifest))
        if loaded is not None and loaded.level == "transfer":
            words += ", in the warehouse too"
        rows = entry.rows if entry.rows >= 0 else None
        return Source(name, seq, entry.time, words, rows, tuple(checks), sums.open if sums else 0)

    def _mended(self, name: str, seq: int, manifest: Manifest) -> bool:
        """Say whether a load brought rows out of quarantine; only a replay makes more entries replayed ones."""
        if manifest.previous is None or not manifest.quarantine or not manifest.quarantine["replayed"]:
            return False
        before = self._manifest(name, seq - 1)
        return (
            before is not None
            and before.quarantine is not None
            and (before.quarantine["replayed"] < manifest.quarantine["replayed"])
        )


def _words(manifest: Manifest, sums: Balance | None, *, mended: bool = False) -> str:
    """Return what was proven of a load, in words; with a quarantine, as the sum that was compared.

    Args:
        mended: the load's rows come from the quarantine, not from the source.
    """
    entry = manifest.entry
    if entry.level == "none":
        return "not compared"
    model = entry.position.to_json()["kind"] == "versions"
    side = "query's result" if model else "source"
    this = "" if model or entry.level == "table" else "this load: "
    every = "" if model else ", every row"
    if sums is not None and sums.agree and sums.compared:
        return f"equal to the {side}: {sums.source:,} rows = {sums.told('here')}"
    if mended:
        side = "rows mended in quarantine"
    if sums is None or not sums.agree:
        return f"{this}equal to the {side}{' with its quarantine' if sums else ''}{every}"
    return f"{this}equal to the {side}{every}; {sums.source:,} rows read so far = {sums.told('here')}"
