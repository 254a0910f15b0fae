"""`millrace copy` and `millrace diff`: two databases, no project."""

from __future__ import annotations

from typing import Annotated

import typer

from millrace.cli import show
from millrace.cli.main import app

DATABASE = (
    "A database: env:NAME, service:NAME, a URL without a password (pgpass or PGPASSWORD has it), or the name of a"
    " connection of the project here."
)

COPY_EXAMPLES = """
[bold]Examples[/bold]

  export SRC=postgresql://reader@db1/shop  DST=postgresql://writer@db2/copy
  millrace copy env:SRC public.orders env:DST public.orders
  millrace copy env:SRC orders env:DST raw.orders --mode incremental --cursor updated_at
  millrace copy env:SRC orders env:DST raw.orders --where "region = 'Seoul'" --dry-run
  millrace copy env:SRC events env:DST --proof count (new: as fast as a pipe, rows counted, not compared)
  millrace copy env:SRC '*' env:DST                  (all tables of all schemas, from one snapshot)
  millrace copy env:SRC 'sales.*' env:DST 'raw.*' --exclude 'sales.tmp_*'
"""


@app.command("copy", epilog=COPY_EXAMPLES)
def copy(
    source: Annotated[str, typer.Argument(metavar="SRC", help=DATABASE)],
    table: Annotated[
        str,
        typer.Argument(
            metavar="TABLE",
            help='The source table, an SQL name: public.orders, "Odd"."name". Or several: sales.*, sales.order_*, *.',
        ),
    ],
    target: Annotated[str, typer.Argument(metavar="DST", help=DATABASE)],
    into: Annotated[
        str | None,
        typer.Argument(metavar="[TABLE]", help="The target table; the same name if left out. For several: raw.*."),
    ] = None,
    mode: Annotated[
        str,
        typer.Option(
            help="full: make the target equal, deletes included; incremental: bring changes; append: only add;"
            " truncate: delete and load all rows at once; snapshot: keep versions, with valid_from and valid_to;"
            " backfill: make an interval of the cursor equal."
        ),
    ] = "full",
    key: Annotated[
        list[str] | None, typer.Option(help="Key column; repeat for more. Default: the primary key.")
    ] = None,
    cursor: Annotated[str | None, typer.Option(help="Column by which incremental finds changes.")] = None,
    cursor_format: Annotated[
        str | None, typer.Option(help="How a text cursor is written: yyyymmdd, date, datetime or timestamp.")
    ] = None,
    lookback: Annotated[
        str | None, typer.Option(help="Read again so far before the position: 3d, 12h, or a number.")
    ] = None,
    start: Annotated[
        str | None, typer.Option("--from", metavar="VALUE", help="Of backfill: rows whose cursor is not lower.")
    ] = None,
    end: Annotated[
        str | None, typer.Option("--to", metavar="VALUE", help="Of backfill: rows whose cursor is lower than this.")
    ] = None,
    soft_delete: Annotated[
        str | None,
        typer.Option(help="Rows that are marked as deleted: a column, or a condition like \"actflag = 'D'\"."),
    ] = None,
    where: Annotated[str | None, typer.Option(help="One SQL condition on the source's rows.")] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Take over a non-empty target that Millrace never wrote.")
    ] = False,
    allow_deletes: Annotated[
        bool, typer.Option("--allow-deletes", help="Delete more than --max-delete allows.")
    ] = False,
    max_delete: Annotated[
        float, typer.Option(help="Share of the target's rows that may be deleted.", min=0, max=1)
    ] = 0.5,
    full_refresh: Annotated[
        bool, typer.Option("--full-refresh", help="Forget the position; compare everything.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change; change nothing.")] = False,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Of several tables leave some out: audit.*, tmp_*; repeat for more.")
    ] = None,
    together: Annotated[
        bool, typer.Option("--together", help="Of several tables publish all in one transaction, or nothing.")
    ] = False,
    foreign_keys: Annotated[
        bool, typer.Option("--foreign-keys", help="Of several tables make the foreign keys between them at the end.")
    ] = False,
    proof: Annotated[
        str,
        typer.Option(
            help="rows: every row is compared; count: the rows of a new table, or of mode truncate, are only counted."
        ),
    ] = "rows",
    workers: Annotated[int, typer.Option(help="Connections that copy at once.", min=1, max=16)] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Copy a table between two PostgreSQL databases, or all of a schema; every row is proven unless --proof count."""
    from millrace.app import CopyOptions, copy_dry_run, copy_table, is_pattern
    from millrace.errors import UsageError, did_you_mean
    from millrace.steps.spec import MODES, check_interval

    if mode not in MODES:
        raise UsageError(
            f"unknown mode {mode!r}", hint=did_you_mean(mode, list(MODES)) or f"one of: {', '.join(MODES)}"
        )
    if MODES[mode] == "incremental" and cursor is None:
        raise UsageError(
            "--mode incremental needs --cursor",
            hint="name the column that grows with every change: --cursor updated_at",
        )
    if cursor is not None and MODES[mode] not in ("incremental", "append", "backfill"):
        raise UsageError(
            f"--cursor says nothing in mode {mode}", hint="compare everything without it, or: --mode incremental"
        )
    if proof not in ("rows", "count"):
        raise UsageError(f"unknown proof {proof!r}", hint="one of: rows, count")
    check_interval(MODES[mode], cursor, start, end)
    options = CopyOptions(
        mode=MODES[mode],
        key=tuple(key or ()),
        cursor=cursor,
        cursor_format=cursor_format,
        lookback=_lookback(lookback),
        soft_delete=soft_delete,
        start=start,
        end=end,
        where=where,
        replace=replace,
        allow_deletes=allow_deletes,
        max_delete=max_delete,
        full_refresh=full_refresh,
        workers=workers,
        proof="count" if proof == "count" else "rows",
    )
    if is_pattern(table):
        from millrace.cli.whole import copy_several

        copy_several(
            source,
            table,
            target,
            into,
            options,
            exclude=exclude or (),
            together=together,
            with_foreign_keys=foreign_keys,
            dry_run=dry_run,
            as_json=as_json,
        )
        return
    if exclude or together or foreign_keys:
        option = "--exclude" if exclude else "--together" if together else "--foreign-keys"
        raise UsageError(f"{option} is for several tables", hint="name them with a pattern: 'sales.*'")
    if dry_run:
        counts = copy_dry_run(source, table, target, into or table, options)
        if as_json:
            show.as_json({"dry_run": True, **counts.to_json()})
        else:
            show.out(
                f" would insert {counts.inserted:,}, update {counts.updated:,} and delete {counts.deleted:,} rows;"
                " nothing was changed"
            )
        return
    outcome = copy_table(source, table, target, into or table, options, show_progress=not as_json)
    if as_json:
        show.as_json(outcome.to_json())


def _lookback(text: str | None) -> str | None:
    from millrace.errors import UsageError
    from millrace.postgres.cursors import LOOKBACK

    if text is not None and LOOKBACK.fullmatch(text) is None:
        raise UsageError(f"{text!r} is no look-back", hint="a duration like 3d, 12h, 30m or 10s, or a whole number")
    return text


DIFF_EXAMPLES = """
[bold]Example[/bold]

  millrace diff env:SRC public.accounts env:DST public.accounts
  millrace diff shop_db orders reports_db raw.orders --stats
  millrace diff shop_db public.orders lake bronze.orders
"""


@app.command("diff", epilog=DIFF_EXAMPLES)
def diff(
    left: Annotated[str, typer.Argument(metavar="SRC", help=DATABASE)],
    table: Annotated[str, typer.Argument(metavar="TABLE", help="The left table, an SQL name.")],
    right: Annotated[str, typer.Argument(metavar="DST", help=f"{DATABASE} Or lake: that of the project here.")],
    other: Annotated[
        str | None,
        typer.Argument(metavar="[TABLE]", help="The right table, of the lake an asset; the same if left out."),
    ] = None,
    key: Annotated[
        list[str] | None, typer.Option(help="Key column; repeat for more. Default: the primary key.")
    ] = None,
    limit: Annotated[int, typer.Option(help="Differing rows to show.", min=0)] = 20,
    stats: Annotated[
        bool, typer.Option("--stats", help="Show nulls, lowest, highest and sum of each column on both sides.")
    ] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Make the right table equal by a proven copy, where a copy made it.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Compare two tables row by row. Exit code 0: equal, or repaired; 1: they differ."""
    from millrace.app import compare
    from millrace.app import repair as make_equal
    from millrace.cli.differences import print_difference, print_statistics

    found = compare(left, table, right, other or table, key=tuple(key or ()), limit=limit, statistics=stats)
    if not as_json:
        print_difference(found.difference, found.seconds)
        print_statistics(found.statistics)
    outcome = None if found.difference.same or not repair else make_equal(left, table, right, other or table)
    if as_json:
        show.as_json({**found.to_json(), **({"repaired": outcome.to_json()} if outcome else {})})
    elif outcome is not None:
        show.out(f" repaired: {outcome.message}, every row proven")
    if not found.difference.same and outcome is None:
        raise typer.Exit(1)
