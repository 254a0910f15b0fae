"""How the command line prints: errors, tables, JSON. Colour only for state, never the only sign."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Sequence
from typing import Any

from millrace.core.secrets import redact
from millrace.errors import MillraceError

ESCAPED = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}
COLOURS = {"green": "32", "yellow": "33", "red": "31", "grey": "90", "bold": "1"}


def colourful(stream: Any) -> bool:
    """Whether a stream shows colour: a terminal, and NO_COLOR is not set."""
    return bool(stream.isatty()) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def painted(text: str, colour: str, stream: Any = None) -> str:
    """Return the text in a colour, where the stream shows colour."""
    if not colourful(stream or sys.stdout):
        return text
    return f"\x1b[{COLOURS[colour]}m{text}\x1b[0m"


def out(text: str = "") -> None:
    """Print a line. Once the reader of a pipe has gone, the rest is dropped: `| head` is no error."""
    try:
        sys.stdout.write(redact(text) + "\n")
    except BrokenPipeError:
        _drop_output()


def flush() -> None:
    """Write what is still held back."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _drop_output()


def _drop_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def as_json(data: Any) -> None:
    """Print JSON."""
    out(json.dumps(data, ensure_ascii=False, indent=2, default=str))


def plain(text: str) -> str:
    """Return data without control characters, which could steer the terminal; line breaks and tabs are spelled out."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else ESCAPED.get(letter, f"\\x{ord(letter):02x}") for letter in text)


def error(problem: MillraceError, *, json_wanted: bool = False) -> None:
    """Print an error as one block on standard error, unless a run has shown it already."""
    if json_wanted:
        sys.stderr.write(redact(json.dumps({"error": problem.to_json()}, ensure_ascii=False)) + "\n")
    elif not problem.told:
        flush()  # on a terminal the error stands below what was printed before it
        text = "\n".join(plain(line) for line in redact(str(problem)).split("\n"))
        sys.stderr.write(f"{painted('error:', 'red', sys.stderr)} {text}\n")


def errors(problems: Sequence[MillraceError], *, json_wanted: bool = False) -> None:
    """Print errors as blocks below what was printed, each once."""
    for problem in {str(problem): problem for problem in problems}.values():
        if not json_wanted:
            flush()
            sys.stderr.write("\n")
        error(problem, json_wanted=json_wanted)


def table(rows: Sequence[Sequence[Any]], heads: Sequence[str], numeric: Sequence[bool] = ()) -> None:
    """Print aligned columns; figures to the right with thousands separators.

    On a terminal texts are cut in their middle where a line would not fit; elsewhere and in JSON they are whole.
    """
    right = list(numeric) or [False] * len(heads)
    texts = [[cell(value) for value in row] for row in rows]
    widths = [max([cells(head), *(cells(row[i]) for row in texts)]) for i, head in enumerate(heads)]
    _narrow(widths, [fixed or any(TIME.match(row[i]) for row in texts) for i, fixed in enumerate(right)])

    def line(values: Sequence[str]) -> str:
        cells = [
            value.rjust(width) if is_right else padded(value, width)
            for value, width, is_right in zip(values, widths, right, strict=True)
        ]
        return (" " + "  ".join(cells)).rstrip()

    out(painted(line(heads), "grey"))
    for row in texts:
        out(line(row))


TIME = re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d")
LEAST = 8  # cells that a text column keeps


def _narrow(widths: list[int], fixed: Sequence[bool]) -> None:
    """Take cells from the widest text columns until a line fits the terminal, where there is one."""
    over = sum(widths) + 2 * len(widths) - 1 - (room() or sys.maxsize)
    while over > 0:
        width, widest = max(
            (0 if is_fixed else width, at) for at, (width, is_fixed) in enumerate(zip(widths, fixed, strict=True))
        )
        if width <= LEAST:
            return
        widths[widest] -= 1
        over -= 1


def room() -> int | None:
    """Return the cells of a line of the terminal; None where the output is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def cells(text: str) -> int:
    """Return how many cells of a terminal a text takes: of Hangul two a letter."""
    from rich.cells import cell_len

    return cell_len(text)


def padded(text: str, width: int) -> str:
    """Return a text in so many cells; a wider one is cut in its middle."""
    from millrace.observe.lines import fit

    text = fit(text, width)
    return text + " " * (width - cells(text))


def cell(value: Any) -> str:
    """Return a value as a table shows it."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.2f}"
    return plain(str(value))


def count(number: int, noun: str) -> str:
    """Return `1 row`, `2 rows`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
