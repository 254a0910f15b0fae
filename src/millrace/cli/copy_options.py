"""The arguments and options of `millrace copy`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DATABASE = (
    "A database: env:NAME, service:NAME, a URL without a password (pgpass or PGPASSWORD has it), or the name of a"
    " connection of the project here."
)

Source = Annotated[str, typer.Argument(metavar="SRC", help=DATABASE)]
Table = Annotated[
    str,
    typer.Argument(
        metavar="TABLE",
        help='The source table, an SQL name: public.orders, "Odd"."name". Or several: sales.*, sales.order_*, *.',
    ),
]
Target = Annotated[str, typer.Argument(metavar="DST", help=DATABASE)]
Into = Annotated[
    str | None,
    typer.Argument(metavar="[TABLE]", help="The target table; the same name if left out. For several: raw.*."),
]
Mode = Annotated[
    str,
    typer.Option(
        help="full: make the target equal, deletes included; incremental: bring changes; append: only add;"
        " truncate: delete and load all rows at once; snapshot: keep versions, with valid_from and valid_to;"
        " backfill: make an interval of the cursor equal."
    ),
]
Key = Annotated[list[str] | None, typer.Option(help="Key column; repeat for more. Default: the primary key.")]
Cursor = Annotated[str | None, typer.Option(help="Column by which incremental finds changes.")]
CursorFormat = Annotated[
    str | None, typer.Option(help="How a text cursor is written: yyyymmdd, date, datetime or timestamp.")
]
Lookback = Annotated[str | None, typer.Option(help="Read again so far before the position: 3d, 12h, or a number.")]
Start = Annotated[
    str | None, typer.Option("--from", metavar="VALUE", help="Of backfill: rows whose cursor is not lower.")
]
End = Annotated[
    str | None, typer.Option("--to", metavar="VALUE", help="Of backfill: rows whose cursor is lower than this.")
]
SoftDelete = Annotated[
    str | None,
    typer.Option(help="Rows that are marked as deleted: a column, or a condition like \"actflag = 'D'\"."),
]
Where = Annotated[str | None, typer.Option(help="One SQL condition on the source's rows.")]
Replace = Annotated[bool, typer.Option("--replace", help="Take over a non-empty target that Millrace never wrote.")]
AllowDeletes = Annotated[bool, typer.Option("--allow-deletes", help="Delete more than --max-delete allows.")]
MaxDelete = Annotated[float, typer.Option(help="Share of the target's rows that may be deleted.", min=0, max=1)]
FullRefresh = Annotated[bool, typer.Option("--full-refresh", help="Forget the position; compare everything.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would change; change nothing.")]
Exclude = Annotated[
    list[str] | None, typer.Option(help="Of several tables leave some out: audit.*, tmp_*; repeat for more.")
]
Together = Annotated[
    bool, typer.Option("--together", help="Of several tables publish all in one transaction, or nothing.")
]
ForeignKeys = Annotated[
    bool, typer.Option("--foreign-keys", help="Of several tables make the foreign keys between them at the end.")
]
Proof = Annotated[
    str,
    typer.Option(
        help="rows: every row is compared; count: the rows of a new table, or of mode truncate, are only counted."
    ),
]
Stage = Annotated[
    str | None,
    typer.Option(help="By way of files, csv or parquet: the source is left before the target is written."),
]
StageFolder = Annotated[
    Path | None, typer.Option(help="Where those files lie until they are proven. Default: .millrace/staging.")
]
Workers = Annotated[int, typer.Option(help="Connections that copy at once.", min=1, max=16)]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
