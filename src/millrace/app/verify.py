"""`millrace verify`: whole tables of a project's copies compared with their sources, recorded, and repaired."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from millrace.app.runtime import Lazy
from millrace.core.names import AssetId
from millrace.core.plan import Plan, Step
from millrace.core.ports import StepKind
from millrace.errors import MillraceError, NotFound, ProofFailed, UsageError, did_you_mean

if TYPE_CHECKING:
    from millrace.app.house import House
    from millrace.engine.records import StepOutcome
    from millrace.postgres.diff import TableDiff


@dataclass(frozen=True, slots=True)
class Verified:
    """One asset's comparison.

    Attributes:
        difference: what was found; None where it could not be compared.
        recorded: whether the ledger says now that every row was compared.
        repaired: what a repair did, in words; empty when none was made.
        error: why it could not be compared or repaired.
    """

    asset: AssetId
    difference: TableDiff | None
    seconds: float
    recorded: bool = False
    repaired: str = ""
    error: MillraceError | None = None

    @property
    def good(self) -> bool:
        """Whether every row equals the source now, but for those that changed since the last load."""
        same = self.difference is not None and self.difference.same
        return self.error is None and (same or bool(self.repaired))

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON types."""
        return {
            "asset": str(self.asset),
            "good": self.good,
            "recorded": self.recorded,
            "repaired": self.repaired or None,
            "seconds": round(self.seconds, 3),
            "difference": None if self.difference is None else self.difference.to_json(),
            "error": None if self.error is None else self.error.to_json(),
        }


def verify(house: House, assets: Sequence[AssetId], limit: int, *, repair: bool = False) -> list[Verified]:
    """Compare copies with their sources, every row, without copying; record which are equal.

    Args:
        house: the project.
        assets: what copies make; none: of all copies whose sources hold all of their rows.
        limit: most differing rows to keep of each.
        repair: make those that differ equal by a proven publish.

    Raises:
        NotFound: there is no such copy.
        UsageError: an asset is not copied from a database.
    """
    from millrace.engine.session import RunOptions
    from millrace.steps.verify import VerifyStep

    steps = [_step(house, asset) for asset in assets] or _all(house)
    kind = VerifyStep(house.runtime)
    house.runtime.kinds = _with(kind, house.runtime.kinds)
    asked = [replace(step, kind=kind.kind, inputs=(), after=(), spec={**_kept(step), "limit": limit}) for step in steps]
    done = house.run(Plan(tuple(asked)), show_as="silent")
    found = []
    for step in steps:
        (asset,) = step.assets
        outcome, difference = done[step.key], kind.found.get(asset)
        differs = difference is not None and not difference.same
        one = Verified(
            asset,
            difference,
            outcome.seconds,
            recorded=outcome.status == "published",
            error=None if differs else outcome.error,
        )
        found.append(one)
    if not repair or all(one.good for one in found):
        return found
    broken = {one.asset for one in found if one.difference is not None and not one.difference.same}
    again = [_repairing(step) for step in steps if step.assets[0] in broken]
    mended = house.run(Plan(tuple(again)), options=RunOptions(full_refresh=True), show_as="silent")
    return [_repaired(one, mended[f"copy:{one.asset}"]) if one.asset in broken else one for one in found]


def _kept(step: Step) -> dict[str, Any]:
    """Return what of a copy's spec says which rows and columns its target holds."""
    return {name: step.spec[name] for name in ("copy", "contract") if name in step.spec}


def _with(kind: StepKind, installed: Mapping[str, StepKind]) -> Mapping[str, StepKind]:
    """Return the installed kinds and one more, each still made when it is first asked for."""

    def maker(name: str) -> Callable[[], StepKind]:
        return lambda: installed[name]

    return Lazy({**{name: maker(name) for name in installed}, kind.kind: lambda: kind})


def _repaired(one: Verified, outcome: StepOutcome) -> Verified:
    error = outcome.error
    if error is None and any(entry.level != "table" for entry in outcome.entries):
        error = ProofFailed(f"{one.asset} was loaded again, but not all of it could be compared with its source")
    told = outcome.message or "loaded again"
    return replace(one, error=error, recorded=error is None, repaired="" if error else told)


def _repairing(step: Step) -> Step:
    """Return the copy's step, told to compare everything."""
    spec = dict(step.spec)
    if spec["copy"]["mode"] == "incremental":
        return replace(step, inputs=(), spec={**spec, "copy": {**spec["copy"], "verify_all": True}})
    return replace(step, inputs=(), spec={**spec, "full_refresh": True, "copy": {**spec["copy"], "proof": "rows"}})


def _step(house: House, asset: AssetId) -> Step:
    copies = {one: step for step in house.whole.steps if step.kind == "copy" for one in step.assets}
    if asset in copies:
        return copies[asset]
    if any(asset in step.assets for step in house.whole.steps):
        raise UsageError(
            f"{asset} is not copied from a database, so there is no source to compare it with",
            hint="verify what copies make; what a model or dbt makes is held by checks",
        )
    raise NotFound(f"nothing makes {asset}", hint=did_you_mean(str(asset), [str(one) for one in copies]))


def left_out(house: House) -> dict[AssetId, str]:
    """Return the copies that are not verified unless they are named, each with the reason."""
    return {asset: why for step, why in _copies(house) if why for asset in step.assets}


def _all(house: House) -> list[Step]:
    return [step for step, why in _copies(house) if not why]


def _copies(house: House) -> list[tuple[Step, str]]:
    """Return the steps of copies, each with the reason why it cannot be verified, or nothing."""
    from millrace.steps.spec import CopySpec
    from millrace.steps.verify import refusal

    copies = (step for step in house.whole.steps if step.kind == "copy")
    return [(step, refusal(CopySpec.from_json(step.spec["copy"]))) for step in copies]
