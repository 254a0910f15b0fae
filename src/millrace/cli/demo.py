"""`millrace demo`: the shop from an empty folder to a page, in one command, on an embedded PostgreSQL."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from millrace.cli import show
from millrace.cli.main import app
from millrace.errors import StepFailed, UsageError

if TYPE_CHECKING:
    from millrace.cli.demo_shop import Shop

DATA = "shop_db"  # the embedded server's data folder, inside the project
SAMPLE = "select * from marts.agg_daily_sales limit 5"
EXAMPLES = """
[bold]Examples[/bold]

  millrace demo
  millrace demo elsewhere --orders 10000 --no-injuries
  millrace demo elsewhere --open
"""


@app.command("demo", epilog=EXAMPLES)
def demo(
    folder: Annotated[Path, typer.Argument(help="A new folder; everything is in it.")] = Path("demo"),
    orders: Annotated[int, typer.Option(help="Number of orders in the shop.", min=1000, max=10_000_000)] = 100_000,
    no_injuries: Annotated[bool, typer.Option("--no-injuries", help="Only make the shop and run it twice.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show what every command prints.")] = False,
    keep_open: Annotated[
        bool, typer.Option("--open", help="Keep the database of a demo running and print its URL, until Ctrl-C.")
    ] = False,
) -> None:
    """Make a shop with its source database, run it to a page, hurt it, and run it again: nothing to do."""
    from millrace.app import require_extras
    from millrace.testing.servers import shared_postgres

    require_extras("millrace demo", ("lake", "warehouse", "dbt", "pages", "demo"))
    from millrace.cli.demo_shop import LOG, Shop

    since = time.monotonic()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # or its database would go on without it
    if keep_open:
        _open(folder)
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if not (folder / "millrace.yaml").exists():
            raise UsageError(
                f"{folder} exists and is no demo that was finished",
                hint="delete it, or name another folder: millrace demo FOLDER",
            )
        show.out(f" {folder} is there already; it runs again. Delete the folder to begin anew.\n")
        from millrace.cli.injuries import BrokenModel

        BrokenModel().tidy(Shop(folder, ""))  # it may have been killed with the model broken
        server = shared_postgres(folder / DATA)
    else:
        server = _made(folder, orders)
    failed: list[str] = []
    with server as url:  # the commands use it, and need not start it each time
        _millrace(folder, "run")
        show.out()
        if no_injuries:
            show.out(show.painted(" again, with nothing new at the source:\n", "grey"))
            _millrace(folder, "run")
        else:
            failed = _injuries(Shop(folder, url, verbose))
        _summary(folder, time.monotonic() - since)
    if failed:
        hint = f"what the commands printed: {folder / LOG}"
        raise StepFailed("the demo did not end as promised", detail=failed, hint=hint)


def _open(folder: Path) -> None:
    """Keep the server running until Ctrl-C or SIGTERM."""
    from millrace.testing.servers import server_place, shared_postgres

    if not (folder / "millrace.yaml").exists() or not server_place(folder / DATA).exists():
        raise UsageError(f"there is no demo in {folder}", hint=f"make one: millrace demo {folder}")
    with contextlib.suppress(KeyboardInterrupt), shared_postgres(folder / DATA) as url:
        show.out(url)
        show.flush()
        while True:
            signal.pause()


def _injuries(shop: Shop) -> list[str]:
    """Play all injuries and bring what they changed to the page; returns the titles of what ended badly."""
    from millrace.cli.injuries import BadRow, BrokenModel, all_injuries, play

    found = all_injuries()
    show.out(f" {len(found)} injuries, each with a command to look closer: type it in {shop.folder}\n")
    failed = []
    for number, injury in enumerate(found, 1):
        if not play(injury, shop, number, _command(shop.folder)).ok:
            failed.append(injury.title)
        if isinstance(injury, BrokenModel):
            _run(shop, "mended   the model is back; a run brings all to the page", "published")
            show.out()
    if set(_run(shop, "again    with nothing new", "fresh")) != {"fresh"}:
        failed.append("a run with nothing new")
    # the source's row is as bad as before, and was looked at again
    failed += [f"{one.title}: undone later" for one in found if isinstance(one, BadRow) and not one.mended(shop)]
    return failed


def _run(shop: Shop, words: str, status: str) -> list[str]:
    """Run the whole shop and tell in one line how many steps ended so; returns how all of them ended."""
    since = time.monotonic()
    shop.millrace("run")
    ended = [str(step.phase) for step in shop.last_run()]
    show.out(f" {words}: {status} {ended.count(status)}   {time.monotonic() - since:.1f} s")
    show.flush()
    return ended


@contextlib.contextmanager
def _made(folder: Path, orders: int) -> Iterator[str]:
    """Write the project, fill its source, and keep its server running; yields the server's URL."""
    import psycopg

    from millrace.app import init_project
    from millrace.templates.shop_events import write_events
    from millrace.templates.shop_source import fill
    from millrace.testing.servers import remove_postgres, shared_postgres
    from millrace.transform.dbt import graph

    init_project(folder, "ecommerce")
    manifest = folder / "millrace.yaml"
    text = manifest.read_text("utf-8").replace('url: "${env:SHOP_DB_URL}"', f"embedded: ./{DATA}")
    manifest.unlink()  # it comes last: what has one is a whole demo
    remove_postgres(folder / DATA)  # of a demo that was deleted, where root's home made it lie elsewhere
    with ThreadPoolExecutor(2) as pool:  # dbt reads its files, and events are written, while the server starts
        known = pool.submit(graph, folder / "dbt", folder / ".millrace" / "cache")
        events = pool.submit(write_events, folder / "landing", events=max(100, orders // 5), users=orders // 12)
        with shared_postgres(folder / DATA) as url:
            with psycopg.connect(url, autocommit=True) as connection:
                fill(connection, orders=orders, bad_rows=True)
            known.result()
            manifest.write_text(text, encoding="utf-8")
            _told(folder, orders, events.result().lines)
            yield url


def _told(folder: Path, orders: int, events: int) -> None:
    """Say what was made, and where."""
    from millrace.testing.servers import server_place

    show.out(f" source   PostgreSQL in {folder / DATA}: {orders:,} orders; {folder / 'landing'}: {events:,} events")
    place = server_place(folder / DATA)
    if place != (folder / DATA).resolve():  # the server does not run as root, whose home is closed to others
        show.out(show.painted(f"          its files lie in {place}, where the server's user can reach them", "grey"))
    show.out()


def _millrace(folder: Path, *arguments: str) -> None:
    """Run the real command line in the demo's folder; its output is the demo's."""
    from millrace.cli.demo_shop import call

    sys.stdout.flush()
    done = call(folder, arguments)
    if done.returncode:
        raise typer.Exit(done.returncode)


def _summary(folder: Path, seconds: float) -> None:
    from millrace.app import open_house
    from millrace.testing.servers import server_place

    with open_house(folder) as house:
        found = house.query(
            "select count(*) as days, sum(total_orders) as orders, sum(total_revenue) as revenue"
            " from (select order_date, sum(total_orders) as total_orders, sum(total_revenue) as total_revenue"
            " from marts.agg_daily_sales group by order_date)",
            1,
        )
        proven = sum(entry is not None and entry.level != "none" for _, _, entry in house.entries())
    (days, orders, revenue), *_ = found.rows
    page = (folder / "pages" / "daily_sales.html").resolve()
    show.out()
    show.out(f" the shop   {orders:,} orders on {days:,} days, revenue {revenue:,.2f} USD")
    show.out(f" proven     {show.count(proven, 'asset')}, row by row against what they were made from")
    show.out(f" the page   {page}")
    place = server_place(folder / DATA)
    show.out(f" done in    {seconds:.1f} s; everything is in {folder}, delete it when done")
    if place != (folder / DATA).resolve():
        show.out(show.painted(f"            and its database in {place.parent}", "grey"))
    show.out()
    here = os.path.relpath(folder)
    command = _command(folder)
    show.out(f" look closer:  cd {here}")
    for words in ("status", "plan", f'query "{SAMPLE}"', "demo . --open"):
        show.out(f"               {command} {words}")


def _command(folder: Path) -> str:
    """Return how the command is called in a folder: a virtual environment need not be active."""
    return (
        "millrace" if shutil.which("millrace") else os.path.relpath(Path(sys.executable).with_name("millrace"), folder)
    )
