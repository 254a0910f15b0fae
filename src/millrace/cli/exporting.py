"""`millrace export` and `millrace import`: tables by way of files."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from millrace.cli import copy_options as said
from millrace.cli import show
from millrace.cli.copy_options import DATABASE
from millrace.cli.main import app
from millrace.cli.whole import end, print_left_out, size

if TYPE_CHECKING:
    from millrace.app import ExportOutcome
    from millrace.core.ports import Progress

EXPORT_EXAMPLES = """
[bold]Example[/bold]

  millrace export env:SRC public.orders ./orders
  millrace export env:SRC public.orders ./orders --format parquet --where "region = 'Seoul'"
  millrace export env:SRC 'sales.*' ./sales --exclude 'sales.tmp_*'    (all tables, of one snapshot)
"""


class _Progress:
    """The line that says how far an export is, where a terminal watches."""

    def __init__(self, *, watched: bool) -> None:
        self.watched = watched and sys.stderr.isatty()

    def of(self, table: object) -> Progress:
        """Return what is told rows and bytes of a table."""
        moved = 0

        def told(more: int, _size: int) -> None:
            nonlocal moved
            moved += more
            if self.watched:
                sys.stderr.write(f"\r\x1b[K export  {table}  {moved:,} rows")
                sys.stderr.flush()

        return told

    def end(self) -> None:
        """Take the line away."""
        if self.watched:
            sys.stderr.write("\r\x1b[K")


@app.command("export", epilog=EXPORT_EXAMPLES)
def export(
    source: Annotated[str, typer.Argument(metavar="SRC", help=DATABASE)],
    table: Annotated[
        str,
        typer.Argument(metavar="TABLE", help="The source table, an SQL name. Or several: sales.*, sales.order_*, *."),
    ],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new or an empty folder.")],
    form: Annotated[
        str, typer.Option("--format", help="csv: exact for every type; parquet: what other tools like to read.")
    ] = "csv",
    key: Annotated[
        list[str] | None, typer.Option(help="Key column; repeat for more. Default: the primary key.")
    ] = None,
    where: Annotated[str | None, typer.Option(help="One SQL condition on the source's rows.")] = None,
    rows: Annotated[int, typer.Option(help="Rows of a file, about.", min=1)] = 250_000,
    exclude: said.Exclude = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Of several tables say which; write nothing.")] = False,
    as_json: said.AsJson = False,
) -> None:
    """Write a table into files, or all of a schema, with the digests by which an import proves every row."""
    from millrace.app import export_files, is_pattern
    from millrace.errors import UsageError

    several, progress = is_pattern(table), _Progress(watched=not as_json)
    of_one, of_several = {"--key": key, "--where": where}, {"--exclude": exclude, "--dry-run": dry_run}
    if option := next((name for name, given in (of_one if several else of_several).items() if given), None):
        if several:
            raise UsageError(
                f"{option} is about one table", hint="export that one by its name, the others by --exclude"
            )
        raise UsageError(f"{option} is for several tables", hint="name them with a pattern: 'sales.*'")
    if dry_run:
        _look(source, table, exclude or (), as_json=as_json)
        return
    if several:
        _export_set(source, table, folder, exclude or (), form, rows, progress, as_json=as_json)
        return
    told = progress.of(table)
    outcome = export_files(
        source, table, folder, form=form, key=tuple(key or ()), where=where, rows=rows, progress=told
    )
    progress.end()
    if as_json:
        show.as_json(outcome.to_json())
        return
    show.out(f"{_lines([outcome])[0]}  → {folder}")
    show.out(show.painted(f" bring it in with: millrace import {shlex.quote(str(folder))} DST", "grey"))


def _lines(outcomes: Sequence[ExportOutcome]) -> list[str]:
    return _aligned(
        [
            (
                str(one.table),
                show.count(one.rows, "row"),
                f"{show.count(one.files, 'file')}, {size(one.size)}",
                f"{one.seconds:.1f} s",
            )
            for one in outcomes
        ]
    )


def _aligned(lines: Sequence[tuple[str, ...]]) -> list[str]:
    """Return a line of each: the table's name, and figures below each other."""
    name, *figures = (max(map(show.cells, column)) for column in zip(*lines, strict=True))
    return [
        "  ".join(
            [
                f" export  {show.padded(table, name)}",
                *(f"{cell:>{width}}" for cell, width in zip(cells, figures, strict=True)),
            ]
        )
        for table, *cells in lines
    ]


def _look(source: str, pattern: str, exclude: Sequence[str], *, as_json: bool) -> None:
    """Print which tables would be exported."""
    from millrace.app import look_set
    from millrace.app.whole import others_json

    chosen = look_set(source, pattern, exclude)
    tables = sorted(chosen.tables, key=lambda one: one.ref)
    if as_json:
        named = [{"table": str(one.ref), "rows": one.rows, "bytes": one.bytes} for one in tables]
        show.as_json(
            {"dry_run": True, "tables": named, "not_exported": others_json(chosen), "excluded": chosen.excluded}
        )
        return
    rows = ["rows unknown" if one.rows is None else f"≈ {show.count(one.rows, 'row')}" for one in tables]
    for line in _aligned([(str(one.ref), told, size(one.bytes)) for one, told in zip(tables, rows, strict=True)]):
        show.out(line)
    show.out(f" {show.count(len(tables), 'table')} would be exported; nothing was written")
    print_left_out(chosen, "exported")


def _export_set(
    source: str,
    pattern: str,
    folder: Path,
    exclude: Sequence[str],
    form: str,
    rows: int,
    progress: _Progress,
    *,
    as_json: bool,
) -> None:
    from millrace.app import export_set

    found = export_set(source, pattern, folder, exclude=exclude, form=form, rows=rows, progress=progress.of)
    progress.end()
    if as_json:
        show.as_json(found.to_json())
        return
    for line in _lines(found.tables):
        show.out(line)
    total = f"{show.count(len(found.tables), 'table')}, {show.count(found.rows, 'row')}, {size(found.size)}"
    show.out(f" {total}, of one snapshot of the source  → {folder}")
    show.out(show.painted(f" bring them in with: millrace import {shlex.quote(str(folder))} DST", "grey"))
    print_left_out(found.chosen, "exported")


IMPORT_EXAMPLES = """
[bold]Example[/bold]

  millrace import ./orders env:DST
  millrace import ./orders env:DST raw.orders
  millrace import ./sales env:DST 'raw.*' --foreign-keys
  millrace import ./sales env:DST --only sales.orders
"""


@app.command("import", epilog=IMPORT_EXAMPLES)
def import_(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="What `millrace export` wrote.")],
    target: Annotated[str, typer.Argument(metavar="DST", help=DATABASE)],
    into: Annotated[
        str | None,
        typer.Argument(
            metavar="[TABLE]", help="The target table; the exported one's name if left out. For several: raw.*."
        ),
    ] = None,
    only: Annotated[
        str | None, typer.Option(help="Of several tables only this one, or those of a pattern: sales.order_*.")
    ] = None,
    foreign_keys: said.ForeignKeys = False,
    replace: said.Replace = False,
    allow_deletes: said.AllowDeletes = False,
    max_delete: said.MaxDelete = 0.5,
    as_json: said.AsJson = False,
) -> None:
    """Make a table, or several, equal to an exported folder, every row proven by the digests that came with it."""
    from millrace.app import import_files, import_set, is_set
    from millrace.errors import UsageError

    limit = None if allow_deletes else max_delete
    if is_set(folder):
        whole = import_set(
            folder,
            target,
            into,
            only=only,
            replace=replace,
            max_delete=limit,
            foreign_keys=foreign_keys,
            show_progress=not as_json,
        )
        end(whole, as_json=as_json)
        return
    if only is not None or foreign_keys:
        option = "--foreign-keys" if foreign_keys else "--only"
        raise UsageError(f"{option} is for several tables, and {folder} holds one, or none", hint="leave it out")
    outcome = import_files(folder, target, into, replace=replace, max_delete=limit, show_progress=not as_json)
    if as_json:
        show.as_json(outcome.to_json())
