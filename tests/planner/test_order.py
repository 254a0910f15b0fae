"""The order respects what steps need, whatever the graph; cycles are found."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.core.names import AssetId
from millrace.core.plan import Step
from millrace.planner.order import find_cycle, order
from millrace.planner.steps import KINDS, needs


@st.composite
def graphs(draw: st.DrawFn) -> list[Step]:
    """Steps that read only steps before them, some of them in one publish group at the end, shuffled."""
    size = draw(st.integers(1, 14))
    grouped = draw(st.integers(0, size))
    steps = []
    for number in range(size):
        reads = draw(st.sets(st.integers(0, number - 1), max_size=4)) if number else set()
        after = draw(st.sets(st.integers(0, number - 1), max_size=2)) if number else set()
        steps.append(
            Step(
                key=f"s{number}",
                kind=draw(st.sampled_from(KINDS)),
                label=f"s{number}",
                assets=(AssetId("x", f"a{number}"),),
                inputs=tuple(AssetId("x", f"a{one}") for one in sorted(reads)),
                after=tuple(f"s{one}" for one in sorted(after)),
                group="together" if number >= grouped else f"s{number}",
            )
        )
    return draw(st.permutations(steps))


@given(graphs())
@settings(max_examples=200, deadline=None)
def test_every_step_comes_after_what_it_needs_and_groups_stay_together(steps):
    made = order(steps)
    assert sorted(step.key for step in made) == sorted(step.key for step in steps)
    number = {step.key: index for index, step in enumerate(made)}
    for key, before in needs(steps).items():
        assert all(number[one] < number[key] for one in before)
    groups = [step.group for step in made]
    assert len([1 for left, right in itertools.pairwise(groups) if left != right]) == len(set(groups)) - 1
    assert order(steps) == made
    assert find_cycle(needs(steps)) == []


@given(st.integers(1, 12), st.integers(0, 30))
def test_a_cycle_is_found_wherever_it_is(length, others):
    required = {f"o{one}": (f"o{one + 1}",) for one in range(others)} | {f"o{others}": ("c0",)}
    required |= {f"c{one}": (f"c{(one + 1) % length}",) for one in range(length)}
    cycle = find_cycle(required)
    assert sorted(cycle) == sorted(f"c{one}" for one in range(length))
    assert all(following in required[key] for key, following in zip(cycle, [*cycle[1:], cycle[0]], strict=True))


def test_a_deep_graph_needs_no_deep_stack():
    assert find_cycle({str(one): (str(one + 1),) for one in range(5000)} | {"5000": ()}) == []
