"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Folder = Annotated[
    Path | None,
    typer.Option(
        "--project", "-p", metavar="FOLDER", help="The project's folder. Default: here, or the nearest above."
    ),
]
Env = Annotated[
    str | None, typer.Option("--env", "-e", metavar="NAME", help="Environment. Default: MILLRACE_ENV, or dev.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Select = Annotated[
    list[str] | None,
    typer.Option("--select", "-s", metavar="WHAT", help="Assets: silver.orders, marts.*, +x (and what it needs), x+."),
]
Pipeline = Annotated[str | None, typer.Option("--pipeline", metavar="NAME", help="A pipeline of millrace.yaml.")]
From = Annotated[
    str | None,
    typer.Option("--from", metavar="VALUE", help="Backfill: make only rows equal whose cursor is not lower."),
]
Every = Annotated[
    str | None,
    typer.Option(
        metavar="LENGTH", help="Backfill: split it, one publish each: 1d, 7d, 12h, or a number for a cursor of numbers."
    ),
]
To = Annotated[str | None, typer.Option("--to", metavar="VALUE", help="Backfill: and whose cursor is lower than this.")]
