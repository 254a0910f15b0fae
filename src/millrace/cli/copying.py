"""`millrace copy` and `millrace diff`: two databases, no project."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from millrace.cli import copy_options as said
from millrace.cli import show
from millrace.cli.copy_options import DATABASE
from millrace.cli.intervals import copy_each
from millrace.cli.main import app
from millrace.cli.options import Every

if TYPE_CHECKING:
    from millrace.core.ports import Mode as ModeName
    from millrace.steps.spec import CopyOptions

COPY_EXAMPLES = """
[bold]Examples[/bold]

  export SRC=postgresql://reader@db1/shop  DST=postgresql://writer@db2/copy
  millrace copy env:SRC public.orders env:DST public.orders
  millrace copy env:SRC orders env:DST raw.orders --mode incremental --cursor updated_at
  millrace copy env:SRC orders env:DST raw.orders --where "region = 'Seoul'" --dry-run
  millrace copy env:SRC orders env:DST --mode backfill --cursor day --from 2026-01-01 --to 2026-03-01 --every 1d
  millrace copy env:SRC events env:DST --proof count (a new table: rows counted, not compared)
  millrace copy env:SRC '*' env:DST                  (all tables of all schemas, from one snapshot)
  millrace copy env:SRC 'sales.*' env:DST 'raw.*' --exclude 'sales.tmp_*'
"""


@dataclass(frozen=True, slots=True)
class Several:
    """What is said about several tables.

    Attributes:
        exclude: patterns of tables to leave out.
        together: publish all in one transaction.
        foreign_keys: make those between them.
    """

    exclude: tuple[str, ...] = ()
    together: bool = False
    foreign_keys: bool = False

    @property
    def said(self) -> str:
        """The first option that was given; empty when none was."""
        options = {"--exclude": self.exclude, "--together": self.together, "--foreign-keys": self.foreign_keys}
        return next((name for name, given in options.items() if given), "")


@app.command("copy", epilog=COPY_EXAMPLES)
def copy(
    source: said.Source,
    table: said.Table,
    target: said.Target,
    into: said.Into = None,
    mode: said.Mode = "full",
    key: said.Key = None,
    cursor: said.Cursor = None,
    cursor_format: said.CursorFormat = None,
    lookback: said.Lookback = None,
    start: said.Start = None,
    end: said.End = None,
    every: Every = None,
    soft_delete: said.SoftDelete = None,
    where: said.Where = None,
    replace: said.Replace = False,
    allow_deletes: said.AllowDeletes = False,
    max_delete: said.MaxDelete = 0.5,
    full_refresh: said.FullRefresh = False,
    dry_run: said.DryRun = False,
    exclude: said.Exclude = None,
    together: said.Together = False,
    foreign_keys: said.ForeignKeys = False,
    proof: said.Proof = "rows",
    stage: said.Stage = None,
    stage_folder: said.StageFolder = None,
    workers: said.Workers = 2,
    as_json: said.AsJson = False,
) -> None:
    """Copy a table between two PostgreSQL databases, or all of a schema; every row is proven unless --proof count."""
    from millrace.app import CopyOptions

    options = CopyOptions(
        mode=_mode(mode, cursor, start, end),
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
        proof=_proof(proof, stage),
        stage=_stage(mode, stage, stage_folder),
        stage_folder=None if stage_folder is None else str(stage_folder),
    )
    several = Several(tuple(exclude or ()), together, foreign_keys)
    if every is not None:
        _in_parts(source, table, target, into, options, several, every, dry_run=dry_run, as_json=as_json)
        return
    _copy(source, table, target, into, options, several, dry_run=dry_run, as_json=as_json)


def _in_parts(
    source: str,
    table: str,
    target: str,
    into: str | None,
    options: CopyOptions,
    several: Several,
    every: str,
    *,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Copy an interval of one table in parts. Raises UsageError where there is none, or nothing is copied."""
    from millrace.app import is_pattern
    from millrace.errors import UsageError
    from millrace.steps.intervals import split

    if options.mode != "backfill" or is_pattern(table) or several.said:
        raise UsageError(
            "--every splits the backfill of one table", hint="like --mode backfill --cursor day --every 1d"
        )
    if dry_run:
        raise UsageError("--every says nothing to a dry run", hint="leave it out: the whole interval is counted")
    intervals = split(options.start, options.end, every)
    copy_each(source, table, target, into or table, options, intervals, json=as_json)


def _copy(
    source: str,
    table: str,
    target: str,
    into: str | None,
    options: CopyOptions,
    several: Several,
    *,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Copy one table or several, or say what a copy would do.

    Raises:
        UsageError: an option that is about several tables, of one.
    """
    from millrace.app import copy_dry_run, copy_table, is_pattern
    from millrace.errors import UsageError

    if is_pattern(table):
        from millrace.cli.whole import copy_several

        copy_several(source, table, target, into, options, several, dry_run=dry_run, as_json=as_json)
        return
    if option := several.said:
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


def _mode(text: str, cursor: str | None, start: str | None, end: str | None) -> ModeName:
    """Return the mode that a word stands for, after a look at what goes with it. Raises UsageError."""
    from millrace.errors import UsageError, did_you_mean
    from millrace.steps.spec import MODES, check_interval

    if text not in MODES:
        raise UsageError(
            f"unknown mode {text!r}", hint=did_you_mean(text, list(MODES)) or f"one of: {', '.join(MODES)}"
        )
    mode = MODES[text]
    if mode == "incremental" and cursor is None:
        raise UsageError(
            "--mode incremental needs --cursor",
            hint="name the column that grows with every change: --cursor updated_at",
        )
    if cursor is not None and mode not in ("incremental", "append", "backfill"):
        raise UsageError(
            f"--cursor says nothing in mode {text}", hint="compare everything without it, or: --mode incremental"
        )
    check_interval(mode, cursor, start, end)
    return mode


def _proof(word: str, stage: str | None) -> Literal["rows", "count"]:
    """Return how rows are proven. Raises UsageError."""
    from millrace.errors import UsageError

    if word not in ("rows", "count"):
        raise UsageError(f"unknown proof {word!r}", hint="one of: rows, count")
    if word == "count" and stage is not None:
        raise UsageError("--proof count says nothing with --stage: files are proven row by row", hint="leave one out")
    return "count" if word == "count" else "rows"


def _stage(mode: str, form: str | None, folder: Path | None) -> str:
    """Return the format of staging files, empty for none. Raises UsageError."""
    from millrace.errors import UsageError, did_you_mean

    forms = ("csv", "parquet")
    if form is not None and form not in forms:
        raise UsageError(
            f"unknown format of staging files {form!r}",
            hint=did_you_mean(form, forms) or "one of: csv, parquet; without --stage rows go straight to the target",
        )
    if form is None and folder is not None:
        raise UsageError("--stage-folder says nothing without --stage", hint="--stage csv")
    if form is not None and mode == "backfill":
        raise UsageError("a backfill by way of files is not built yet", hint="leave --stage out")
    return form or ""


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
        if not as_json:
            show.out(show.painted(" to make the right one equal, where a copy made it: --repair", "grey"))
        raise typer.Exit(1)
