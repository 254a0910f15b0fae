"""The order of a plan: each step after what it needs, publish groups kept together, else as people read it."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence

from millrace.core.plan import Step
from millrace.errors import MillraceError, ProjectError
from millrace.planner.steps import KINDS, Made, needs
from millrace.project import Project


def ordered(made: Made, project: Project) -> tuple[Step, ...]:
    """Return the steps in order: copies, models, loads, dbt, gates, pages as far as their needs allow.

    Raises:
        ProjectError: steps need each other; names the cycle and its files.
    """
    cycle = find_cycle(needs(made.steps))
    if cycle:
        raise _cycle_error(cycle, made, project)
    return order(made.steps)


def order(steps: Sequence[Step]) -> tuple[Step, ...]:
    """Return steps without cycles in order; equal input gives equal output.

    Raises:
        MillraceError: publish groups need each other.
    """
    required = needs(steps)
    rank = {step.key: (KINDS.index(step.kind), index) for index, step in enumerate(steps)}
    group_of = {step.key: step.group or step.key for step in steps}
    members: dict[str, list[Step]] = {}
    for step in steps:
        members.setdefault(group_of[step.key], []).append(step)
    between = {
        group: {group_of[need] for step in inside for need in required[step.key]} - {group}
        for group, inside in members.items()
    }
    first = {group: min(rank[step.key] for step in inside) for group, inside in members.items()}
    result: list[Step] = []
    by_key = {step.key: step for step in steps}
    for group in _sorted(between, first.__getitem__):
        keys = {step.key for step in members[group]}
        within = {key: set(required[key]) & keys for key in keys}
        result += [by_key[key] for key in _sorted(within, rank.__getitem__)]
    return tuple(result)


def find_cycle(required: Mapping[str, Sequence[str]]) -> list[str]:
    """Return one cycle of steps, each followed by one that it needs, or nothing."""
    done: set[str] = set()
    for start in required:
        path: list[str] = []
        on_path: set[str] = set()
        stack = [(start, iter(required[start]))] if start not in done else []
        if stack:
            path.append(start)
            on_path.add(start)
        while stack:
            key, rest = stack[-1]
            following = next(rest, None)
            if following is None:
                stack.pop()
                done.add(key)
                on_path.discard(path.pop())
            elif following in on_path:
                return path[path.index(following) :]
            elif following not in done:
                stack.append((following, iter(required[following])))
                path.append(following)
                on_path.add(following)
    return []


def _sorted(required: Mapping[str, set[str]], rank: Callable[[str], tuple[int, int]]) -> list[str]:
    """Return keys so that each comes after what it requires, the lowest rank first among the ready ones."""
    waiting = {key: set(before) for key, before in required.items()}
    feeds: dict[str, list[str]] = {}
    for key, before in required.items():
        for one in before:
            feeds.setdefault(one, []).append(key)
    ready = [(rank(key), key) for key, before in waiting.items() if not before]
    heapq.heapify(ready)
    result = []
    while ready:
        _, key = heapq.heappop(ready)
        result.append(key)
        for one in feeds.get(key, ()):
            waiting[one].discard(key)
            if not waiting[one]:
                heapq.heappush(ready, (rank(one), one))
    if len(result) < len(required):
        left = ", ".join(sorted(set(required) - set(result)))
        raise MillraceError(f"publish groups need each other: {left}")
    return result


def _cycle_error(cycle: Sequence[str], made: Made, project: Project) -> ProjectError:
    """Return the error about steps that need each other, with the place of each reading."""
    start = min(range(len(cycle)), key=lambda index: cycle[index])
    keys = [*cycle[start:], *cycle[:start]]
    steps = {step.key: step for step in made.steps}
    labels = [steps[key].label for key in keys]
    what = "assets are made from each other: " + " → ".join([*labels, labels[0]])
    if len(keys) == 1:
        what = f"{labels[0]} is made from itself"
    places = []
    for key, following in zip(keys, [*keys[1:], keys[0]], strict=True):
        asset = next((one for one in steps[key].inputs if one in steps[following].assets), None)
        places.append(made.reads[key, asset] if asset is not None else made.places[key])
    error = project.problem(what, places[0])
    others = tuple(
        f"{label} reads {following} at {place}"
        for label, following, place in list(zip(labels, [*labels[1:], labels[0]], places, strict=True))[1:]
    )
    return ProjectError(what, where=places[0], detail=(*error.detail, *others))
