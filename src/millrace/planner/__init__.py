"""From a project to a plan: steps in an order that respects what they need, and why each is there. Pure: no I/O."""

from __future__ import annotations

from millrace.planner.explain import Explanation, explain
from millrace.planner.freshness import judge
from millrace.planner.plan import build_plan, plan_with_reasons
from millrace.planner.steps import DbtGraph, DbtRelation, InputsOf, ModelInputs, loaded

__all__ = [
    "DbtGraph",
    "DbtRelation",
    "Explanation",
    "InputsOf",
    "ModelInputs",
    "build_plan",
    "explain",
    "judge",
    "loaded",
    "plan_with_reasons",
]
