"""`millrace query`, `runs`, `status`, `doctor`: look at what is there; change nothing."""

from __future__ import annotations

from typing import Annotated

import typer

from millrace.cli import show
from millrace.cli.main import app
from millrace.cli.options import Env, Folder, Json

QUERY_EXAMPLES = """
[bold]Example[/bold]

  millrace query "select status, count(*) from silver.orders group by 1 order by 2 desc"
"""


@app.command("query", epilog=QUERY_EXAMPLES)
def query(
    sql: Annotated[str, typer.Argument(metavar="SQL", help="One SELECT; tables are named layer.asset.")],
    limit: Annotated[int, typer.Option(help="Rows to show.", min=1)] = 100,
    folder: Folder = None,
    env: Env = None,
    json: Json = False,
) -> None:
    """Ask the lake and the warehouse, read-only, in DuckDB's SQL; a PostgreSQL warehouse in its own."""
    from millrace.app import open_house

    with open_house(folder, env) as house:
        found = house.query(sql, limit)
    if json:
        show.as_json([dict(zip(found.columns, row, strict=True)) for row in found.rows])
        return
    show.table(found.rows, found.columns, found.numeric)
    more = " or more" if found.truncated else ""
    show.out(show.painted(f" {show.count(len(found.rows), 'row')}{more} in {found.seconds:.1f} s", "grey"))


@app.command("runs", epilog="\n[bold]Example[/bold]\n\n  millrace runs --limit 5\n")
def runs(
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="One run, by the beginning of its id.")] = None,
    limit: Annotated[int, typer.Option(help="Runs to show.", min=1)] = 20,
    folder: Folder = None,
    env: Env = None,
    json: Json = False,
) -> None:
    """List runs, or the steps of one."""
    from millrace.app import open_house
    from millrace.cli.history import print_run, print_runs

    with open_house(folder, env) as house:
        if run is not None:
            print_run(house, run, as_json=json)
        else:
            print_runs(house, limit, as_json=json)


@app.command("status", epilog="\n[bold]Example[/bold]\n\n  millrace status\n")
def status(folder: Folder = None, env: Env = None, json: Json = False) -> None:
    """Show every asset: last load, rows, proof, age, and which are behind. Exit code 1 when one cannot be read."""
    from millrace.app import open_house
    from millrace.cli.history import print_status

    with open_house(folder, env) as house:
        failed = print_status(house, as_json=json)
    if failed:
        show.errors(failed, json_wanted=json)
        raise typer.Exit(1)


@app.command("doctor", epilog="\n[bold]Example[/bold]\n\n  millrace doctor --env prod\n")
def doctor(folder: Folder = None, env: Env = None, json: Json = False) -> None:
    """Check the set-up: extras, connections and their rights, lake and warehouse. Exit code 1 when something fails."""
    from millrace.app import examine

    findings = examine(folder, env)
    if json:
        show.as_json([finding.to_json() for finding in findings])
    else:
        for finding in findings:
            word, colour = ("ok", "green") if finding.ok else ("failed", "red")
            show.out(f" {show.painted(word.ljust(6), colour)}  {finding.name}  {finding.detail}".rstrip())
            if finding.hint:
                show.out(f"         {finding.hint}")
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)
