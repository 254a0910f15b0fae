"""`millrace demo`: the shop from an empty folder to a page, in one command, on an embedded PostgreSQL."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from millrace.cli import show
from millrace.cli.main import app

DATA = "shop_db"  # the embedded server's data folder, inside the project
SAMPLE = "select * from marts.agg_daily_sales limit 5"
EXAMPLES = """
[bold]Example[/bold]

  millrace demo
  millrace demo elsewhere --orders 10000
"""


@app.command("demo", epilog=EXAMPLES)
def demo(
    folder: Annotated[Path, typer.Argument(help="A new folder; everything is in it.")] = Path("demo"),
    orders: Annotated[int, typer.Option(help="Number of orders in the shop.", min=1000, max=10_000_000)] = 100_000,
) -> None:
    """Make a shop with its source database, run it to a page, and run it again: nothing to do."""
    from millrace.app import require_extras
    from millrace.errors import UsageError

    require_extras("millrace demo", ("lake", "warehouse", "dbt", "pages", "demo"))
    since = time.monotonic()
    if folder.exists() and any(folder.iterdir()):
        if not (folder / "millrace.yaml").exists():
            raise UsageError(
                f"{folder} exists and is no demo that was finished",
                hint="delete it, or name another folder: millrace demo FOLDER",
            )
        show.out(f" {folder} is there already; it runs again. Delete the folder to begin anew.\n")
    else:
        _make(folder, orders)
    _millrace(folder, "run")
    show.out()
    show.out(show.painted(" again, with nothing new at the source:\n", "grey"))
    _millrace(folder, "run")
    _summary(folder, time.monotonic() - since)


def _make(folder: Path, orders: int) -> None:
    """Write the project and fill its source."""
    import psycopg

    from millrace.app import init_project
    from millrace.templates.shop_source import fill
    from millrace.testing.servers import remove_postgres, server_place, shared_postgres

    started = time.monotonic()
    init_project(folder, "ecommerce")
    manifest = folder / "millrace.yaml"
    text = manifest.read_text("utf-8").replace('url: "${env:SHOP_DB_URL}"', f"embedded: ./{DATA}")
    manifest.unlink()  # it comes last: what has one is a whole demo
    remove_postgres(folder / DATA)  # of a demo that was deleted, where root's home made it lie elsewhere
    with shared_postgres(folder / DATA) as server, psycopg.connect(server, autocommit=True) as connection:
        fill(connection, orders=orders)
    manifest.write_text(text, encoding="utf-8")
    seconds = time.monotonic() - started
    show.out(f" source   PostgreSQL in {folder / DATA}: {orders:,} orders, made in {seconds:.1f} s")
    place = server_place(folder / DATA)
    if place != (folder / DATA).resolve():  # the server does not run as root, whose home is closed to others
        show.out(show.painted(f"          its files lie in {place}, where the server's user can reach them", "grey"))
    show.out()


def _millrace(folder: Path, *arguments: str) -> None:
    """Run the real command line in the demo's folder; its output is the demo's."""
    sys.stdout.flush()
    done = subprocess.run([sys.executable, "-m", "millrace", *arguments], cwd=folder, check=False)
    if done.returncode:
        raise typer.Exit(done.returncode)


def _summary(folder: Path, seconds: float) -> None:
    from millrace.app import open_house

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
    show.out(f" done in    {seconds:.1f} s; everything is in {folder}, delete it when done")
    show.out()
    here = os.path.relpath(folder)
    # a virtual environment need not be active: then the command is named by its place
    command = (
        "millrace" if shutil.which("millrace") else os.path.relpath(Path(sys.executable).with_name("millrace"), folder)
    )
    show.out(f" look closer:  cd {here} && {command} status")
    show.out(f"               cd {here} && {command} plan")
    show.out(f'               cd {here} && {command} query "{SAMPLE}"')
