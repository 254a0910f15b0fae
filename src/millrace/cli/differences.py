"""How `millrace diff` is shown."""

from __future__ import annotations

from millrace.cli import show
from millrace.postgres.diff import TableDiff


def print_difference(found: TableDiff, seconds: float) -> None:
    """Print the counts and the differing rows, values side by side."""
    parts = [
        f"{found.rows:,} rows",
        f"{found.same:,} equal",
        f"{found.differing:,} {'differs' if found.differing == 1 else 'differ'}",
        f"{found.only_left:,} only left",
        f"{found.only_right:,} only right",
    ]
    show.out(f" {' · '.join(parts)}   {seconds:.1f} s")
