"""`millrace init`, `validate`, `plan`, `run`, `step`: work on a project."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from millrace.cli import show
from millrace.cli.intervals import run_each
from millrace.cli.main import app
from millrace.cli.options import Env, Every, Folder, From, Json, Pipeline, Select, To
from millrace.errors import MillraceError, UsageError

if TYPE_CHECKING:
    from millrace.app.from_database import Proposed

INIT_EXAMPLES = """
[bold]Examples[/bold]

  millrace init shop
  millrace init shop --template blank
  millrace init shop --from env:SHOP_DB_URL
  millrace init shop --from postgresql://reader@db.example.com/shop --schema public --schema sales
"""


@app.command("init", epilog=INIT_EXAMPLES)
def init(
    name: Annotated[Path, typer.Argument(help="Folder of the new project; its last part is the project's name.")],
    template: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="ecommerce (the default), securities or blank.", show_default=False),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="DATABASE",
            help="Write a project that copies this PostgreSQL's tables: env:NAME, service:NAME or a URL without a"
            " password.",
        ),
    ] = None,
    schema: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SCHEMA", help="With --from: a schema to read; several times for several. Default: public."
        ),
    ] = None,
) -> None:
    """Write a new project from a template, or from a live database's catalogue."""
    from millrace.app import init_from_database, init_project, variables_of

    if source is None:
        if schema:
            raise UsageError("--schema says what to read, and there is no --from", hint="add --from env:NAME")
        written = init_project(name, template or "ecommerce")
        show.out(f" {show.count(len(written), 'file')} in {name}")
        if variables_of(name) or template == "blank":
            show.out(f" {_next(name, variables_of(name))}")
        show.out(f" then: {_inside(name)}millrace validate && millrace run")
        return
    if template is not None:
        raise UsageError("a project comes from a template or from a database", hint="leave out --template or --from")
    written, found = init_from_database(name, source, schema or ("public",))
    show.out(f" {show.count(len(written), 'file')} in {name}: {', '.join(map(str, written))}")
    left_out = f", {found.left_out:,} left out: the file says why" if found.left_out else ""
    show.out(f" {show.count(found.copied, 'table')} to copy{left_out}")
    show.out()
    show.out(f" {_setting(name, found)}")
    show.out(f" then: {_inside(name)}millrace validate && millrace run")


def _inside(folder: Path) -> str:
    """Return what goes into a folder, before a command that runs there."""
    return "" if folder.resolve() == Path.cwd() else f"cd {folder} && "


def _next(folder: Path, variables: Sequence[str]) -> str:
    """Return the sentence that says what a template's project still needs."""
    if not variables:
        return f"name a connection and what to copy: {folder / 'millrace.yaml'} shows how"
    exports = "\n       ".join(f"export {name}=postgresql://user@host:5432/database" for name in variables)
    return f"set:  {exports}\n       or the same without export in {folder / '.env'}"


def _setting(folder: Path, found: Proposed) -> str:
    """Return the sentence that says where the connection's URL comes from."""
    variable, value = found.origin.variable, found.origin.value
    if value is None:
        return f"the URL stays in {variable}: keep it in the environment, or write it into {folder / '.env'}"
    return (
        f"set:  export {variable}={shlex.quote(value)}\n"
        f"       or the same without export in {folder / '.env'}; the password there, in PGPASSWORD or in ~/.pgpass"
    )


VALIDATE_EXAMPLES = """
[bold]Example[/bold]

  millrace validate --env prod
"""


@app.command("validate", epilog=VALIDATE_EXAMPLES)
def validate(
    folder: Folder = None,
    env: Env = None,
    schemas: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write the files' JSON Schemas for editors.")
    ] = None,
    json: Json = False,
) -> None:
    """Read every file of the project and say what is wrong; touches no data and opens no connection."""
    from millrace.app import open_house, write_schemas

    if schemas is not None:
        for path in write_schemas(schemas):
            show.out(f" {path}")
        return
    with open_house(folder, env) as house:
        plan = house.plan()
        if json:
            show.as_json({"project": house.project.name, "environment": house.environment, "steps": len(plan.steps)})
        else:
            show.out(
                f" {house.project.name} · {house.environment} · {show.count(len(plan.steps), 'step')}, nothing is wrong"
            )


PLAN_EXAMPLES = """
[bold]Examples[/bold]

  millrace plan
  millrace plan --select +marts.fct_orders --json
  millrace plan --select raw.orders --from 2026-01-01 --to 2026-02-01
"""


@app.command("plan", epilog=PLAN_EXAMPLES)
def plan(
    select: Select = None,
    pipeline: Pipeline = None,
    start: From = None,
    end: To = None,
    folder: Folder = None,
    env: Env = None,
    json: Json = False,
) -> None:
    """Show what a run would do, how it publishes, what it proves, and why."""
    from millrace.app import open_house
    from millrace.cli.plans import plan_json, print_plan

    with open_house(folder, env, interval=(start, end)) as house:
        explained = house.explain(house.plan(select or (), pipeline))
        if json:
            show.as_json(plan_json(explained))
        else:
            print_plan(explained)
    if failed := [found for _, found in explained if isinstance(found, MillraceError)]:
        show.errors(failed, json_wanted=json)
        raise typer.Exit(1)


RUN_EXAMPLES = """
[bold]Examples[/bold]

  millrace run
  millrace run --select +silver.orders
  millrace run --resume 7f3a
  millrace run --select raw.orders --from 2026-01-01 --to 2026-02-01
  millrace run --select raw.orders --from 2026-01-01 --to 2026-03-01 --every 1d
"""


@app.command("run", epilog=RUN_EXAMPLES)
def run(
    select: Select = None,
    pipeline: Pipeline = None,
    full_refresh: Annotated[
        bool, typer.Option("--full-refresh", help="Count nothing as fresh; read everything.")
    ] = False,
    start: From = None,
    end: To = None,
    every: Every = None,
    resume: Annotated[str | None, typer.Option(metavar="RUN", help="Take up an earlier run where it stopped.")] = None,
    at: Annotated[str | None, typer.Option(metavar="TIME", help='"Now" in models and checks, ISO 8601; UTC.')] = None,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="End at the first failure.")] = False,
    accept_restored: Annotated[
        bool, typer.Option("--accept-restored", help="Take a target as it is that is older than the journal knows.")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Copies may take over a target with data that Millrace never wrote.")
    ] = False,
    allow_deletes: Annotated[
        bool, typer.Option("--allow-deletes", help="Copies may delete more than their max_delete.")
    ] = False,
    folder: Folder = None,
    env: Env = None,
    json: Json = False,
) -> None:
    """Stage, prove and publish what is not fresh."""
    from millrace.app import open_house
    from millrace.engine.session import RunOptions

    options = RunOptions(full_refresh=full_refresh, fail_fast=fail_fast, accept_restored=accept_restored)
    lifted = {"replace_foreign": replace, "allow_deletes": allow_deletes}
    if full_refresh and (start or end):
        raise UsageError("--full-refresh reads everything, --from and --to an interval", hint="leave out one of them")
    if every is not None:
        if resume:
            raise UsageError("--resume takes up one run", hint="the same command with --every goes on where it stopped")
        with open_house(folder, env, replace_foreign=replace, allow_deletes=allow_deletes) as house:
            code = run_each(
                house, house.plan(select or (), pipeline), (start, end, every), pipeline or "", at, options, json=json
            )
        raise typer.Exit(code)
    with open_house(folder, env, full_refresh=full_refresh, interval=(start, end), **lifted) as house:
        result = house.run(
            house.plan(select or (), pipeline),
            pipeline=pipeline or "",
            resume=resume,
            logical_time=at,
            options=options,
            show_as="silent" if json else "terminal",
        )
        if json:
            show.as_json(result.to_json())
    if result.exit_code:
        raise typer.Exit(result.exit_code)


STEP_EXAMPLES = """
[bold]Example[/bold]

  millrace step copy:bronze.orders --run 1a2b3c4d --phase stage
  millrace step copy:bronze.orders --run 1a2b3c4d --phase prove
  millrace step copy:bronze.orders --run 1a2b3c4d --phase publish
"""


@app.command("step", epilog=STEP_EXAMPLES)
def step(
    key: Annotated[str, typer.Argument(metavar="KEY", help="The step's key, as `millrace plan --json` shows it.")],
    run_id: Annotated[str, typer.Option("--run", metavar="RUN", help="The run's id; the same for all its steps.")],
    phase: Annotated[str | None, typer.Option(help="stage, prove, publish or discard; all three if left out.")] = None,
    bundle: Annotated[str | None, typer.Option(metavar="HASH", help="Refuse when the project's files differ.")] = None,
    at: Annotated[str | None, typer.Option(metavar="TIME", help='"Now" in models and checks, ISO 8601; UTC.')] = None,
    folder: Folder = None,
    env: Env = None,
    json: Json = False,
) -> None:
    """Run one step, or one phase of it: what orchestrators call."""
    from millrace.app import open_house

    with open_house(folder, env) as house:
        house.check_bundle(bundle)
        outcomes = house.step(key, run_id, phase, logical_time=at)
        if json:
            show.as_json([outcome.to_json() for outcome in outcomes])
        else:
            for outcome in outcomes:
                show.out(f" {outcome.kind}  {outcome.label}  {outcome.status}  {outcome.message}".rstrip())
        failed = [outcome.error for outcome in outcomes if outcome.error is not None]
    if failed:
        raise failed[0]
