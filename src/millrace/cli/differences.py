"""How `millrace diff` is shown."""

from __future__ import annotations

from collections.abc import Mapping

from millrace.cli import show
from millrace.postgres.diff import RowDiff, TableDiff

SHOWN = 40  # characters of a value: two of them and the key fit a line


def print_difference(found: TableDiff, seconds: float) -> None:
    """Print the counts, what cannot be compared, and the differing rows with their values side by side."""
    rows = max(found.rows_left, found.rows_right)
    parts = [
        show.count(rows, "row"),
        f"{found.equal:,} equal",
        f"{found.differing:,} {'differs' if found.differing == 1 else 'differ'}",
        f"{found.only_left:,} only left",
        f"{found.only_right:,} only right",
    ]
    show.out(f" {' · '.join(parts)}   {seconds:.1f} s")
    for side, names in (("left", found.missing_left), ("right", found.missing_right)):
        if names:
            show.out(f" not compared, missing on the {side}: {', '.join(names)}")
    for name, left, right in found.types:
        show.out(show.painted(f" {name}: {left} on the left, {right} on the right, compared as text", "grey"))
    for row in found.rows:
        _print_row(row)
    hidden = found.differing + found.only_left + found.only_right - len(found.rows)
    if hidden > 0:
        show.out(show.painted(f" … and {show.count(hidden, 'more row')}: --limit shows more", "grey"))


def _print_row(row: RowDiff) -> None:
    key = show.plain(", ".join(f"{name} = {value}" for name, value in row.key))
    if row.only is not None:
        show.out(f" {key}   only {row.only}")
        return
    names = [show.plain(column.name) for column in row.columns]
    width = max(map(show.cells, names))
    for number, (name, column) in enumerate(zip(names, row.columns, strict=True)):
        start = key if number == 0 else " " * show.cells(key)
        show.out(f" {start}   {show.padded(name, width)}   {_value(column.left)}  →  {_value(column.right)}")


def _value(text: str | None) -> str:
    if text is None:
        return "null"
    text = show.plain(text)
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def print_statistics(found: Mapping[str, Mapping[str, Mapping[str, str | int | None] | None]]) -> None:
    """Print each column's figures, a line a side; both on one line where they are equal."""
    rows: list[tuple[str, ...]] = []
    for name, sides in found.items():
        left, right = sides["left"], sides["right"]
        if left == right:
            rows.append((name, "both", *_figures(left)))
        else:
            rows += [(name, "left", *_figures(left)), ("", "right", *_figures(right))]
    if rows:
        show.out()
        heads = ("column", "side", "rows", "nulls", "lowest", "highest", "sum")
        show.table(rows, heads, (False, False, True, True, False, False, True))


def _figures(found: Mapping[str, str | int | None] | None) -> tuple[str, ...]:
    if found is None:
        return ("–",) * 5
    numbers = (f"{found[name]:,}" for name in ("rows", "nulls"))
    return (*numbers, *("–" if found[name] is None else _value(str(found[name])) for name in ("min", "max", "sum")))
