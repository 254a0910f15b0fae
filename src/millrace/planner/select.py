"""Selection: `marts.fct_orders`, `marts.*`, `+x` with what it needs, `x+` with what reads it, `copy:*` by kind.

A layer's name alone means all of the layer. Of a publish group all or nothing is selected: one dbt model means the
warehouse's loads, dbt and gates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase

from millrace.core.plan import Step
from millrace.errors import did_you_mean
from millrace.planner.steps import needs


class NothingSelected(Exception):
    """A selector that matches no step; the caller knows whether a file or the command line said it."""

    def __init__(self, selector: str, what: str, hint: str | None) -> None:
        super().__init__(what)
        self.selector = selector
        self.what = what
        self.hint = hint


def select(steps: Sequence[Step], selectors: Sequence[str]) -> dict[str, str]:
    """Return the keys of the selected steps, each with the reason why it is there.

    Args:
        steps: all steps of the project.
        selectors: what is wanted; none means everything.

    Raises:
        NothingSelected: a selector matches nothing.
    """
    if not selectors:
        return {step.key: "in the project" for step in steps}
    required = needs(steps)
    feeds: dict[str, list[str]] = {}
    for key, before in required.items():
        for one in before:
            feeds.setdefault(one, []).append(key)
    labels = {step.key: step.label for step in steps}
    why: dict[str, str] = {}
    for selector in selectors:
        wanted = selector.strip()
        bare = wanted.removeprefix("+").removesuffix("+")
        hits = _matches(steps, bare, selector)
        why |= dict.fromkeys(hits, f"selected by {selector}")
        if wanted.startswith("+"):
            _walk(hits, required, why, lambda near: f"{labels[near]} needs it")
        if wanted.endswith("+") and wanted != "+":
            _walk(hits, feeds, why, lambda near: f"it reads {labels[near]}")
    groups = {step.group: step.label for step in reversed(steps) if step.key in why}
    for step in steps:
        if step.key not in why and step.group in groups:
            why[step.key] = f"published together with {groups[step.group]}"
    return {step.key: why[step.key] for step in steps if step.key in why}


def names(step: Step) -> tuple[str, ...]:
    """Return what a step can be selected by: its key, and the assets it makes."""
    return (step.key, *(str(asset) for asset in step.assets)) if step.kind != "load" else (step.key,)


def _matches(steps: Sequence[Step], bare: str, selector: str) -> list[str]:
    """Return the keys of the steps that a name or pattern means."""
    hits = [step.key for step in steps if bare in names(step)]
    if not hits:
        layers = {step.key: {asset.layer for asset in step.assets} for step in steps if step.kind != "load"}
        hits = [key for key, found in layers.items() if bare in found]
    if not hits and any(sign in bare for sign in "*?["):
        keyed = ":" in bare  # copy:* means steps by kind, *.orders means assets
        hits = [step.key for step in steps if any(fnmatchcase(name, bare) for name in names(step)[0 if keyed else 1 :])]
    if hits:
        return hits
    known = [name for step in steps for name in names(step)]
    near = did_you_mean(bare, known)
    if near is None:
        layer = did_you_mean(bare, sorted({name.rpartition(".")[0].rpartition(":")[2] for name in known} - {""}))
        near = layer or "a name is layer.asset; marts.* is all of a layer, +x is x with what it needs"
    word = "nothing matches" if any(sign in bare for sign in "*?[") else "nothing is named"
    raise NothingSelected(selector, f'{word} "{bare}"', near)


def _walk(
    starts: Sequence[str], edges: Mapping[str, Sequence[str]], why: dict[str, str], say: Callable[[str], str]
) -> None:
    """Follow edges from some steps and note why each new one is there."""
    seen = set(starts)
    row = list(starts)
    while row:
        following = []
        for key in row:
            for one in edges.get(key, ()):
                if one not in seen:
                    seen.add(one)
                    following.append(one)
                    why.setdefault(one, say(key))
        row = following
