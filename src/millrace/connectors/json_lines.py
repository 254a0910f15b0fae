"""JSON lines: each line one object, its top-level keys extracted by the embedded engine.

Values come as text: a JSON text as it reads, a number or true as JSON prints it, an object or list as JSON text, null
as null; a column of type json is JSON text throughout. A number with more digits than a double holds is rounded in its
column and exact in the line. The engine's parser also takes NaN, Infinity and a comma before a closing bracket.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from millrace.connectors.lines import Bad, LineFile, Piece

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

SPACES = " \t\r\f\v"
RAW = "raw"
LINES = "millrace_lines"


class JsonLines:
    """Extracts columns.

    Args:
        connection: of DuckDB; it is used for nothing else meanwhile.
        columns: names, and `text` or `json`.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, columns: Mapping[str, str]) -> None:
        self._connection = connection
        self._names = list(columns)
        self._shape = json.dumps(
            {name: "JSON" if kind == "json" else "VARCHAR" for name, kind in columns.items()}, ensure_ascii=False
        )

    def extract(self, piece: Piece, file: LineFile) -> tuple[Piece, list[pa.Array]]:
        """Return the lines that are objects, and their columns in order; the others are told in the file's tally."""
        import duckdb

        piece = self._objects(piece, file)
        if not len(piece):
            return piece, [piece.text] * len(self._names)
        try:
            return piece, self._columns(piece)
        except duckdb.InvalidInputException:
            piece = self._valid(piece, file)
        return piece, self._columns(piece)

    def _columns(self, piece: Piece) -> list[pa.Array]:
        if not self._names:
            self._run("select count(json_type(raw)) from millrace_lines", piece)
            return []
        found = self._run("select unnest(json_transform(raw, $1)) from millrace_lines", piece, self._shape)
        # by place: the engine renames keys that differ by case only
        return [column.chunk(0) if column.num_chunks == 1 else column.combine_chunks() for column in found.columns]

    def _run(self, query: str, piece: Piece, *parameters: str) -> pa.Table:
        import pyarrow as pa

        self._connection.register(LINES, pa.table({RAW: piece.text}))
        try:
            return self._connection.sql(query, params=list(parameters)).to_arrow_table()
        finally:
            self._connection.unregister(LINES)

    def _objects(self, piece: Piece, file: LineFile) -> Piece:
        """Leave out lines that do not begin and end like an object: nearly all that are bad, at no cost."""
        import pyarrow.compute as pc

        good = np.asarray(pc.and_(pc.starts_with(piece.text, "{"), pc.ends_with(piece.text, "}")))
        if good.all():
            return piece
        good = good.copy()
        for at in np.flatnonzero(~good).tolist():
            text = piece.text[at].as_py()
            bare = text.strip(SPACES)
            if bare.startswith("{") and bare.endswith("}"):
                good[at] = True
            elif not bare:
                file.tally.given -= 1
                file.tally.blank += 1
            else:
                file.tally.bad.append(Bad(file.found.name, int(piece.numbers[at]), _no_object(text), text))
        return piece.only(good)

    def _valid(self, piece: Piece, file: LineFile) -> Piece:
        """Leave out lines that are not JSON."""
        found = self._run("select json_valid(raw) from millrace_lines", piece)
        good = np.asarray(found.column(0).combine_chunks())
        for at in np.flatnonzero(~good).tolist():
            text = piece.text[at].as_py()
            file.tally.bad.append(Bad(file.found.name, int(piece.numbers[at]), _broken(text), text))
        return piece.only(good)


def _no_object(text: str) -> str:
    """Say why a line is no object."""
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError):
        return _broken(text)
    kinds = {list: "a list", str: "a text", bool: "true or false", int: "a number", float: "a number"}
    return f"the line is {kinds.get(type(value), 'null')}, not an object"


def _broken(text: str) -> str:
    """Say why a line is not JSON."""
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        open_text = error.msg.startswith("Unterminated string")
        if text.lstrip().startswith("{") and (open_text or error.pos >= len(text.rstrip())):
            return f"the line is half a JSON object: it ends after character {len(text):,}"
        return f"the line is not JSON: {error.msg} at character {error.pos + 1:,}"
    except (ValueError, RecursionError) as error:
        return f"the line is not JSON that can be read: {error}"
    return "the line is not JSON: a text in it holds half of a surrogate pair"
