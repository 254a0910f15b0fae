"""`millrace export` and `millrace import`: a table by way of files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from millrace.cli import show
from millrace.cli.copy_options import DATABASE
from millrace.cli.main import app
from millrace.cli.whole import size

EXPORT_EXAMPLES = """
[bold]Example[/bold]

  millrace export env:SRC public.orders ./orders
  millrace export env:SRC public.orders ./orders --format parquet --where "region = 'Seoul'"
"""


@app.command("export", epilog=EXPORT_EXAMPLES)
def export(
    source: Annotated[str, typer.Argument(metavar="SRC", help=DATABASE)],
    table: Annotated[str, typer.Argument(metavar="TABLE", help="The source table, an SQL name.")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new or an empty folder.")],
    form: Annotated[
        str, typer.Option("--format", help="csv: exact for every type; parquet: what other tools like to read.")
    ] = "csv",
    key: Annotated[
        list[str] | None, typer.Option(help="Key column; repeat for more. Default: the primary key.")
    ] = None,
    where: Annotated[str | None, typer.Option(help="One SQL condition on the source's rows.")] = None,
    rows: Annotated[int, typer.Option(help="Rows of a file, about.", min=1)] = 250_000,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Write a table into files, with the digests by which an import proves every row."""
    from millrace.app import export_files
    from millrace.core.ports import Progress

    moved = 0

    def told(more: int, _size: int) -> None:
        nonlocal moved
        moved += more
        sys.stderr.write(f"\r export  {table}  {moved:,} rows")
        sys.stderr.flush()

    progress: Progress | None = told if sys.stderr.isatty() and not as_json else None
    outcome = export_files(
        source, table, folder, form=form, key=tuple(key or ()), where=where, rows=rows, progress=progress
    )
    if progress is not None:
        sys.stderr.write("\r\x1b[K")
    if as_json:
        show.as_json(outcome.to_json())
        return
    files = "1 file" if outcome.files == 1 else f"{outcome.files:,} files"
    show.out(
        f" export  {table}  {outcome.rows:,} rows  {files}, {size(outcome.size)}  {outcome.seconds:.1f} s  → {folder}"
    )


IMPORT_EXAMPLES = """
[bold]Example[/bold]

  millrace import ./orders env:DST
  millrace import ./orders env:DST raw.orders
"""


@app.command("import", epilog=IMPORT_EXAMPLES)
def import_(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="What `millrace export` wrote.")],
    target: Annotated[str, typer.Argument(metavar="DST", help=DATABASE)],
    into: Annotated[
        str | None, typer.Argument(metavar="[TABLE]", help="The target table; the exported one's name if left out.")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Take over a non-empty target that Millrace never wrote.")
    ] = False,
    allow_deletes: Annotated[
        bool, typer.Option("--allow-deletes", help="Delete more than --max-delete allows.")
    ] = False,
    max_delete: Annotated[
        float, typer.Option(help="Share of the target's rows that may be deleted.", min=0, max=1)
    ] = 0.5,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Make a table equal to an exported folder, every row proven by the digests that came with it."""
    from millrace.app import import_files

    limit = None if allow_deletes else max_delete
    outcome = import_files(folder, target, into, replace=replace, max_delete=limit, show_progress=not as_json)
    if as_json:
        show.as_json(outcome.to_json())
