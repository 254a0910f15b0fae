"""The plan: a project's steps, selected and in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from millrace.core.plan import Plan, Step
from millrace.errors import UsageError
from millrace.planner.order import ordered
from millrace.planner.select import NothingSelected, select
from millrace.planner.steps import DbtGraph, InputsOf, make_steps
from millrace.project import Project
from millrace.project.project import MANIFEST


def build_plan(
    project: Project,
    dbt: DbtGraph | None,
    *,
    inputs_of: InputsOf,
    select: Sequence[str] = (),
    pipeline: str | None = None,
) -> Plan:
    """Return the plan of a project, or of what is selected of it.

    Args:
        project: the project.
        dbt: its parsed dbt project; None: without dbt.
        inputs_of: says what a model reads.
        select: selectors; none means everything.
        pipeline: a pipeline's selection; `select` narrows it.

    Raises:
        ProjectError: an unknown input, a cycle, two assets of one name, a model that does not parse.
        UsageError: a selector or pipeline that names nothing.
    """
    return plan_with_reasons(project, dbt, inputs_of=inputs_of, select=select, pipeline=pipeline)[0]


def plan_with_reasons(
    project: Project,
    dbt: DbtGraph | None,
    *,
    inputs_of: InputsOf,
    select: Sequence[str] = (),
    pipeline: str | None = None,
) -> tuple[Plan, Mapping[str, str]]:
    """Return the plan, and by step key why each step is in it. Raises like `build_plan`."""
    steps = ordered(make_steps(project, dbt, inputs_of), project)
    why = _of_pipeline(project, steps, pipeline)
    if select:
        chosen = _selected(steps, select)
        why = {key: reason for key, reason in chosen.items() if key in why}
        if not why:
            raise UsageError(
                f"nothing of {', '.join(select)} is in pipeline {pipeline}", hint="select without --pipeline"
            )
    kept = tuple(
        replace(step, after=tuple(key for key in step.after if key in why)) for step in steps if step.key in why
    )
    return Plan(kept), why


def _selected(steps: Sequence[Step], selectors: Sequence[str]) -> dict[str, str]:
    try:
        return select(steps, selectors)
    except NothingSelected as error:
        raise UsageError(error.what, where="--select", hint=error.hint) from None


def _of_pipeline(project: Project, steps: Sequence[Step], name: str | None) -> dict[str, str]:
    """Return the steps of a pipeline, or all of them."""
    if name is None:
        return select(steps, ())
    selectors = project.pipeline(name).select or ()
    try:
        found = select(steps, selectors)
    except NothingSelected as error:
        document = project.documents[MANIFEST]
        path = ("pipelines", name, "select")
        index = selectors.index(error.selector)
        at = (*path, index) if (*path, index) in document.values else path
        raise document.problem(f"{error.what} in pipeline {name}", at, note=error.hint) from None
    return found if selectors else dict.fromkeys(found, f"in pipeline {name}")
