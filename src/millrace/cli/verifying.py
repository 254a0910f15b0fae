"""`millrace verify`: are the copies still what their sources are?"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from millrace.cli import show
from millrace.cli.main import app
from millrace.cli.options import Env, Folder, Json

if TYPE_CHECKING:
    from millrace.app.verify import Verified

VERDICT = 37  # cells of a line that a terminal keeps for what was found
EXAMPLES = """
[bold]Examples[/bold]

  millrace verify
  millrace verify bronze.orders --limit 100 --json
  millrace verify bronze.orders --repair
"""


@app.command("verify", epilog=EXAMPLES)
def verify(
    assets: Annotated[
        list[str] | None, typer.Argument(metavar="[ASSET]…", help="What copies make; all of them if left out.")
    ] = None,
    limit: Annotated[int, typer.Option(help="Differing rows to show of each.", min=0)] = 20,
    repair: Annotated[bool, typer.Option("--repair", help="Make those that differ equal by a proven publish.")] = False,
    allow_deletes: Annotated[
        bool, typer.Option("--allow-deletes", help="A repair may delete more than max_delete.")
    ] = False,
    folder: Folder = None,
    env: Env = None,
    json: Json = False,
) -> None:
    """Compare every row of copied tables with their sources; copy nothing. Exit code 1 when one differs."""
    from millrace.app import open_house
    from millrace.app.verify import left_out
    from millrace.app.verify import verify as compare
    from millrace.core.names import AssetId

    with open_house(folder, env, allow_deletes=allow_deletes) as house:
        found = compare(house, [AssetId.parse(text) for text in assets or ()], limit, repair=repair)
        others = {} if assets else left_out(house)
    if json:
        show.as_json([one.to_json() for one in found])
    else:
        width = max((show.cells(str(asset)) for asset in (*(one.asset for one in found), *others)), default=0)
        if (room := show.room()) is not None:
            width = max(show.LEAST, min(width, room - VERDICT))
        for one in found:
            _print(one, width)
        for asset, why in others.items():
            show.out(show.painted(f" {show.padded(str(asset), width)}  left out: {why}", "grey"))
        if not found:
            show.out(" nothing to verify: no copy of this project holds all rows of its source")
        show.errors([one.error for one in found if one.error is not None])
    if not all(one.good for one in found):
        raise typer.Exit(1)


def _print(one: Verified, width: int) -> None:
    from millrace.cli.differences import print_difference

    difference = one.difference
    name = show.padded(str(one.asset), width)
    if difference is None:
        show.out(f" {name}  {show.painted('not compared', 'red')}")
        return
    late = f", {show.count(difference.behind, 'row')} changed since the last load" if difference.behind else ""
    if difference.same:
        word = show.painted("equal", "green")
        rows = show.count(difference.rows_right, "row")
        show.out(f" {name}  {word}  {rows:>15}{late}  {one.seconds:4.1f} s")
        return
    show.out(f" {name}  {show.painted('differs', 'red')} from {difference.left}{late}")
    print_difference(difference, one.seconds)
    if one.repaired:
        show.out(f" {name}  {show.painted('repaired', 'green')}  {one.repaired}")
    elif one.error is None:
        show.out(show.painted(f" to make it equal: millrace verify {shlex.quote(str(one.asset))} --repair", "grey"))
