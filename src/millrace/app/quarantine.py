"""`millrace quarantine`: what was set aside, how the sums add up, and loads that replay or drop entries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from millrace.app.house import House
from millrace.app.runtime import CONNECTION
from millrace.core.names import AssetId
from millrace.core.plan import Plan, Step
from millrace.errors import NotFound, UsageError, did_you_mean

if TYPE_CHECKING:
    from millrace.core.ports import Target
    from millrace.core.quarantine import Balance, Entry
    from millrace.engine.records import RunResult
    from millrace.lake.target import LakeTarget


@dataclass(frozen=True, slots=True)
class Held:
    """The quarantine of one asset.

    Attributes:
        since: when the oldest open entry was set aside, ISO 8601 UTC; None: none is open.
        reasons: open entries by the rule that they broke.
    """

    asset: AssetId
    balance: Balance
    since: str | None
    reasons: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON types."""
        found = self.balance
        return {
            "asset": str(self.asset),
            "open": found.open,
            "replayed": found.replayed,
            "dropped": found.dropped,
            "since": self.since,
            "reasons": dict(self.reasons),
            "source_rows": found.source,
            "source_compared": found.compared,
            "asset_rows": found.asset,
            "digests_agree": found.agree,
        }


def held(house: House, asset: AssetId | None = None) -> list[Held]:
    """Return the quarantines that are not empty, in the plan's order, or that of one asset, empty or not.

    Raises:
        NotFound: no step makes the asset, or it was never published.
        UsageError: it has no quarantine.
    """
    if asset is not None:
        return [_held(house, _step(house, asset), asset)]
    made = [(step, asset) for step in house.whole.steps if _keeps(step) for asset in step.assets]
    published = [(step, asset) for step, asset in made if house.runtime.target(step.target).ledger(asset) is not None]
    return [found for found in (_held(house, *one) for one in published) if sum(_counts(found.balance))]


def _counts(balance: Balance) -> tuple[int, int, int]:
    return balance.open, balance.replayed, balance.dropped


def _held(house: House, step: Step, asset: AssetId) -> Held:
    waiting = [entry for entry in _entries(house, step, asset) if entry.status == "open"]
    since = min((entry.since for entry in waiting), default=None)
    reasons = Counter(entry.rule or entry.reason for entry in waiting)
    sums = _balance(house, step, asset)
    return Held(asset, sums, None if since is None else since.isoformat(), dict(reasons.most_common()))


def _entries(house: House, step: Step, asset: AssetId) -> list[Entry]:
    target = house.runtime.target(step.target)
    if step.target != "lake":
        from millrace.postgres.target import PostgresTarget
        from millrace.steps import postgres_quarantine

        assert isinstance(target, PostgresTarget)  # noqa: S101 - see _keeps
        return postgres_quarantine.entries(target, asset)
    return _lake(target).entries(asset)


def _balance(house: House, step: Step, asset: AssetId) -> Balance:
    target = house.runtime.target(step.target)
    if step.target != "lake":
        from millrace.postgres.target import PostgresTarget
        from millrace.steps import postgres_quarantine

        assert isinstance(target, PostgresTarget)  # noqa: S101 - see _keeps
        entry = target.ledger(asset)
        if entry is None:
            raise NotFound(f"{asset} was never published", hint="see: millrace status")
        return postgres_quarantine.balance(target, asset, entry)
    return _lake(target).balance(asset)


def entries(house: House, asset: AssetId, entry: str | None = None) -> list[Entry]:
    """Return an asset's entries, or those whose id begins with a text.

    Raises:
        NotFound: no such asset or entry.
        UsageError: the asset has no quarantine.
    """
    step = _step(house, asset)
    found = [one for one in _entries(house, step, asset) if one.id.startswith(entry or "")]
    if entry is not None and not found:
        hint = f"see: millrace quarantine show {asset}"
        raise NotFound(f"{entry} is no entry of the quarantine of {asset}", hint=hint)
    return found


def replay(house: House, asset: AssetId, ids: Sequence[str], changes: Mapping[str, str]) -> RunResult:
    """Put entries' rows into the asset, with columns set, where they hold the rules now.

    Args:
        house: the project.
        asset: copied from a connection.
        ids: of open entries, or their beginnings; none: all open ones.
        changes: new values by column, as text; `null` is no value.

    Raises:
        UsageError: the asset is made by a model: the fix belongs into what it is made from.
        NotFound: no such asset.
    """
    step = _step(house, asset)
    if step.kind == "model":
        raise UsageError(
            f"{asset} is made by a model: a row fixed here would be gone with its next run",
            where=str(step.spec["path"]),
            hint=f"mend the model or what it reads, then: millrace run --select {asset}",
        )
    return _run(house, step, {"action": "replay", "entries": list(ids), "set": dict(changes)})


def drop(house: House, asset: AssetId, ids: Sequence[str]) -> RunResult:
    """Give entries up: they count as dealt with as long as their source rows stay as they are.

    Args:
        house: the project.
        asset: of the lake, or a table of a database.
        ids: of open entries, or their beginnings; none: all open ones.

    Raises:
        NotFound: no such asset.
    """
    return _run(house, _step(house, asset), {"action": "drop", "entries": list(ids), "set": {}})


def _run(house: House, step: Step, asked: Mapping[str, Any]) -> RunResult:
    """Run one load in the place of the step that makes the asset: under its key, so that both exclude each other."""
    told = {name: step.spec[name] for name in ("checks", "contract") if name in step.spec}
    load = replace(step, kind="quarantine", inputs=(), after=(), spec={**told, **asked})
    return house.run(Plan((load,)), show_as="silent")


def _lake(target: Target) -> LakeTarget:
    from millrace.lake.target import LakeTarget

    assert isinstance(target, LakeTarget)  # noqa: S101 - wired in house
    return target


def _keeps(step: Step) -> bool:
    """Say whether a step's target keeps rows in quarantine: the lake, and databases that tables are copied into."""
    return step.target == "lake" or (step.kind == "copy" and step.target.startswith(CONNECTION))


def _step(house: House, asset: AssetId) -> Step:
    """Return the step that makes an asset which may have a quarantine. Raises NotFound, UsageError."""
    found = next((step for step in house.whole.steps if asset in step.assets), None)
    if found is None:
        known = [str(one) for step in house.whole.steps if _keeps(step) for one in step.assets]
        raise NotFound(f"nothing makes {asset}", hint=did_you_mean(str(asset), known) or "see: millrace status")
    if not _keeps(found):
        raise UsageError(f"{asset} is neither in the lake nor copied into a database, so it has no quarantine")
    return found
