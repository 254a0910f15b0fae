"""Steps and plans: what would run, in which order, what becomes visible together, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from millrace.core.names import AssetId


@dataclass(frozen=True, slots=True)
class Step:
    """One opaque unit of work; the engine reads everything but `spec`.

    Attributes:
        key: unique and stable name: `copy:bronze.orders`, `dbt:marts`.
        kind: the step kind's name (an entry point of `millrace.step_kinds`).
        label: what the terminal shows: `bronze.orders`, `marts`.
        assets: what it makes; a gate makes nothing.
        inputs: assets it reads: their makers run before it.
        after: keys of steps that run before it without an asset between (a gate before what depends on it).
        target: name of the target in the runtime, or "" when it publishes nothing.
        group: publish group; steps of one group become visible in one publish. Equal to `key` when alone.
        code: fingerprint of the files behind it.
        dated: whether it uses the logical date.
        spec: what its kind needs; JSON.
    """

    key: str
    kind: str
    label: str
    assets: tuple[AssetId, ...]
    inputs: tuple[AssetId, ...] = ()
    after: tuple[str, ...] = ()
    target: str = ""
    group: str = ""
    code: str = ""
    dated: bool = False
    spec: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the step as JSON types."""
        return {
            "key": self.key,
            "kind": self.kind,
            "label": self.label,
            "assets": [str(asset) for asset in self.assets],
            "inputs": [str(asset) for asset in self.inputs],
            "after": list(self.after),
            "target": self.target,
            "group": self.group,
            "code": self.code,
            "dated": self.dated,
            "spec": dict(self.spec),
        }


@dataclass(frozen=True, slots=True)
class Freshness:
    """Whether a step may be skipped, the reason in a few words, and what a run would do.

    Attributes:
        fresh: nothing to do.
        reason: `nothing changed`, `bronze.orders changes`, `code changed`, `never published` …
        rows: estimated rows that a run would move, or None.
        publishes: how it would publish, in words: `merge`, `new table, renamed in place` …
        proves: proof levels of this run, in words.
    """

    fresh: bool
    reason: str
    rows: int | None = None
    publishes: str = ""
    proves: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps in an order in which each comes after what it needs, groups kept together."""

    steps: tuple[Step, ...]

    def group(self, name: str) -> tuple[Step, ...]:
        """Return the steps of a publish group, in order."""
        return tuple(step for step in self.steps if step.group == name)

    def __getitem__(self, key: str) -> Step:
        for step in self.steps:
            if step.key == key:
                return step
        raise KeyError(key)
