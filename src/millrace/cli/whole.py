"""What `millrace copy` prints of several tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from millrace.cli import show
from millrace.errors import UsageError

if TYPE_CHECKING:
    from millrace.app.whole import Chosen, WholeOutcome
    from millrace.cli.copying import Several
    from millrace.steps.spec import CopyOptions, CopySpec

NOT_MADE = 5  # foreign keys that are named; more are counted


def copy_several(
    source: str,
    pattern: str,
    target: str,
    into: str | None,
    options: CopyOptions,
    several: Several,
    *,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Copy all tables that a pattern means, or list them.

    Raises:
        UsageError: an option that is about one table.
    """
    from millrace.app import copy_tables, look_whole

    for option, said in (("--key", options.key), ("--cursor", options.cursor), ("--where", options.where)):
        if said:
            raise UsageError(
                f"{option} is about one table", hint="copy that table by its name, and the others with --exclude"
            )
    if dry_run:
        chosen, specs = look_whole(source, pattern, target, into, options, several.exclude)
        refused = [one.refused for one in chosen.tables if one.refused is not None]
        if as_json:
            show.as_json(_look_json(chosen, specs))
        else:
            _print_look(chosen, specs)
            show.errors(refused)
        if refused:
            raise typer.Exit(1)
        return
    outcome = copy_tables(
        source,
        pattern,
        target,
        into,
        options,
        exclude=several.exclude,
        together=several.together,
        with_foreign_keys=several.foreign_keys,
        show_progress=not as_json,
    )
    end(outcome, as_json=as_json)


def end(outcome: WholeOutcome, *, as_json: bool) -> None:
    """Say what became of several tables, and leave with the run's exit code where it is not 0."""
    if as_json:
        show.as_json(outcome.to_json())
    else:
        _print_end(outcome)
    if outcome.result.exit_code:
        raise typer.Exit(outcome.result.exit_code)


def _print_end(outcome: WholeOutcome) -> None:
    """Print what stands below the lines of the tables."""
    good = sum(step.status in ("published", "fresh") for step in outcome.result.steps)
    show.out(f" {show.count(good, 'table')}, {show.count(outcome.rows, 'row')}, of one snapshot of the source")
    print_left_out(outcome.chosen)
    if outcome.made:
        show.out(f" {show.count(outcome.made, 'foreign key')} made")
    unwanted = [key for key, why in outcome.not_made if why == "not asked for"]
    if unwanted:
        number = show.count(len(unwanted), "foreign key")
        one = len(unwanted) == 1
        show.out(f" {number} not in the target: --foreign-keys makes {'it' if one else 'them'}")
    failed = [(key, why) for key, why in outcome.not_made if why != "not asked for"]
    for key, why in failed[:NOT_MADE]:
        show.out(show.painted(f" foreign key {key.name} of {key.ref} not made: {why}", "yellow"))
    if len(failed) > NOT_MADE:
        show.out(f" and {len(failed) - NOT_MADE:,} more foreign keys")


def print_left_out(chosen: Chosen, word: str = "copied") -> None:
    """Print what a pattern means and is no table."""
    if chosen.left_out:
        show.out(f" not {word}: {chosen.left_out}")


def _look_json(chosen: Chosen, specs: Sequence[CopySpec]) -> dict[str, object]:
    from millrace.app.whole import others_json

    return {
        "dry_run": True,
        "tables": [
            {
                "table": str(one.ref),
                "into": str(spec.place),
                "mode": spec.mode,
                "rows": one.rows,
                "bytes": one.bytes,
                "error": None if one.refused is None else one.refused.to_json(),
            }
            for one, spec in sorted(zip(chosen.tables, specs, strict=True), key=lambda pair: pair[0].ref)
        ],
        "not_copied": others_json(chosen),
        "excluded": chosen.excluded,
    }


def _print_look(chosen: Chosen, specs: Sequence[CopySpec]) -> None:
    """Print a line for each table that would be copied."""
    pairs = sorted(zip(chosen.tables, specs, strict=True), key=lambda pair: pair[0].ref)
    labels = [str(one.ref) if one.ref == spec.place else f"{one.ref} → {spec.place}" for one, spec in pairs]
    width = max(map(show.cells, labels))
    if (room := show.room()) is not None:  # a line is ` copy  NAME  ROWS  BYTES   truncate: no primary key`
        width = max(show.LEAST, min(width, room - (64 if any(spec.mode == "truncate" for _, spec in pairs) else 38)))
    for (one, spec), label in zip(pairs, labels, strict=True):
        if one.refused is not None:
            show.out(f" copy  {show.padded(label, width)}  {show.painted('may not be read', 'red')}")
            continue
        rows = "rows unknown" if one.rows is None else f"≈ {show.count(one.rows, 'row')}"
        more = "   truncate: no primary key" if spec.mode == "truncate" and not one.keyed else ""
        show.out(f" copy  {show.padded(label, width)}  {rows:>18}  {size(one.bytes):>9}{more}".rstrip())
    show.out()
    good = [one for one in chosen.tables if one.refused is None]
    known = sum(one.rows or 0 for one in good)
    excluded = f", {chosen.excluded:,} excluded" if chosen.excluded else ""
    refused = f", {len(pairs) - len(good):,} would fail" if len(good) < len(pairs) else ""
    total = size(sum(one.bytes for one in good))
    show.out(
        f" {show.count(len(good), 'table')} would be copied{refused}{excluded}: ≈ {show.count(known, 'row')}, {total};"
        " nothing was changed"
    )
    print_left_out(chosen)
    if chosen.keys:
        show.out(f" {show.count(len(chosen.keys), 'foreign key')}: made with --foreign-keys")


def size(number: int) -> str:
    """Return bytes for people: `14.2 MB`."""
    value = float(number)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:,.0f} {unit}" if unit == "B" else f"{value:,.1f} {unit}"
        value /= 1000
    return f"{value:,.1f} TB"
