"""Whether a step's last publish still holds, by what the ledger says: code, input versions, logical date."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from millrace.core.plan import Freshness, Step
from millrace.core.staged import LedgerEntry


def judge(
    entry: LedgerEntry | None,
    step: Step,
    versions: Mapping[str, int],
    date: str | None,
    upstream_changes: bool | Sequence[str] = False,
) -> Freshness:
    """Compare a ledger entry with what a run would use now.

    Args:
        entry: the asset's last publish.
        step: the step that makes it.
        versions: seq of each input that was ever published, by the asset's name.
        date: the logical date of the run.
        upstream_changes: whether steps before this one will publish in the same run, or which inputs will change.

    Returns:
        Whether it is fresh, with the reason in words. It says nothing about sources outside the project.
    """
    reason = _reason(entry, step, versions, date)
    if reason is None and upstream_changes:
        reason = "an input changes" if upstream_changes is True else _changes(list(upstream_changes))
    return Freshness(reason is None, reason or "nothing changed")


def _reason(entry: LedgerEntry | None, step: Step, versions: Mapping[str, int], date: str | None) -> str | None:
    if entry is None:
        return "never published"
    if entry.code != step.code:
        return "code changed"
    changed = []
    for asset in step.inputs:
        name = str(asset)
        then, now = entry.inputs.get(name), versions.get(name)
        if now is not None and then != now:
            changed.append(f"{name} is new" if then is None else f"{name} changed ({then} → {now})")
    if changed:
        return changed[0] if len(changed) == 1 else f"{changed[0]} and {len(changed) - 1} more"
    if step.dated and entry.date != date:
        return f"the date changed ({entry.date} → {date})"
    return None


def _changes(names: Sequence[str]) -> str:
    return f"{names[0]} changes" if len(names) == 1 else f"{names[0]} and {len(names) - 1} more change"
