"""Keys of a copies file whose source is a folder of files, and what they mean together."""

from __future__ import annotations

import codecs
import fnmatch
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from millrace.errors import ProjectError
from millrace.project.fields import Part, Text, unbuilt, wrong

if TYPE_CHECKING:
    from millrace.project.copies import TableOptions
    from millrace.project.source import Document, Path_

MOST_LINE = 1_000_000_000
SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv"}
OWN = ("_file", "_line", "_raw")
TABLES_ONLY = (
    *("key", "cursor", "cursor_format", "lookback", "soft_delete", "start", "end", "where", "select", "count"),
    *("workers", "segment_rows", "max_delete", "verify", "stage", "snapshot", "proof"),
)
ALIASES = {"start": "from", "end": "to"}
_TYPES = ("text", "json")
_WILD = re.compile(r"[*?]|\[[^]]*\]")
_later = unbuilt(
    {word: f'"format" {word} is not built yet: use jsonl or csv' for word in ("json", "parquet", "avro", "xml")},
    {"ndjson": "jsonl"},
)


def _pattern(value: str) -> str:
    parts = PurePosixPath(value).parts
    if "\\" in value or "\0" in value:
        raise wrong(f'"{value}" is not a pattern: folders are separated by /')
    if value.startswith("/") or ".." in parts:
        raise wrong(
            f'"{value}" leaves the folder of the connection',
            hint="a pattern goes on from there: clickstream/**/*.jsonl",
        )
    if any("**" in part and part != "**" for part in parts):
        raise wrong(f'"{value}" has ** beside other characters', hint="** stands alone: clickstream/**/*.jsonl")
    return value


def _encoding(value: str) -> str:
    try:
        found = codecs.lookup(value)
        found.incrementaldecoder("strict").decode(b"")
    except (LookupError, TypeError):
        raise wrong(f'"{value}" is not an encoding', hint="like utf-8, utf-16, latin-1, cp1252") from None
    return found.name


def _delimiter(value: str) -> str:
    if len(value) != 1 or value in '"\r\n\0':
        raise wrong(f"{value!r} cannot delimit values", hint='one character: ";", "|" or "\\t"')
    return value


def _columns(value: Mapping[str, str]) -> Mapping[str, str]:
    seen: dict[str, str] = {}
    for name, kind in value.items():
        if name.lower() in OWN or name.lower().startswith("_millrace"):
            raise wrong(f'"{name}" cannot be a column: the name is taken', at=name, key=True)
        if not name or "\0" in name:
            raise wrong("a column has no name", at=name, key=True)
        if name.lower() in seen:
            raise wrong(f'columns "{seen[name.lower()]}" and "{name}" differ only by case', at=name, key=True)
        seen[name.lower()] = name
        if kind not in _TYPES:
            hint = "a model gives them types: files come as text or json, so that no value is lost"
            raise wrong(f'"{kind}" of column {name} is not built: use {" or ".join(_TYPES)}', at=name, hint=hint)
    return value


class FileOptions(Part):
    """What a table of a copies file says when the connection is a folder.

    Attributes:
        files: which files, as a pattern below the connection's folder.
        format: `jsonl` (one object a line) or `csv` (with a header); by default what the pattern's suffix says.
        columns: names and types (`text`, `json`); without them CSV has those of its headers.
        encoding: default UTF-8, or what a byte order mark says.
        delimiter: of CSV.
        max_line: bytes that a line may have.
        archive: `true` or a folder: files move there after they were published.
    """

    files: Annotated[Text, AfterValidator(_pattern)] | None = None
    format: (
        Annotated[Literal["jsonl", "csv"], BeforeValidator(_later, json_schema_input_type=Literal["jsonl", "csv"])]
        | None
    ) = None
    columns: Annotated[dict[str, Text], Field(min_length=1), AfterValidator(_columns)] | None = None
    encoding: Annotated[Text, AfterValidator(_encoding)] | None = None
    delimiter: Annotated[Text, AfterValidator(_delimiter)] | None = None
    max_line: Annotated[int, Field(strict=True, ge=1, le=MOST_LINE)] | None = None
    archive: Annotated[bool, Field(strict=True)] | Text | None = None


def may_share(one: str, other: str) -> bool:
    """Say whether two patterns may find the same file; in doubt they may."""
    return _may_share(PurePosixPath(one).parts, PurePosixPath(other).parts)


def _may_share(one: Sequence[str], other: Sequence[str]) -> bool:
    if one and one[0] == "**":
        return _may_share(one[1:], other) or (bool(other) and _may_share(one, other[1:]))
    if other and other[0] == "**":
        return _may_share(other, one)
    if not one or not other:
        return not one and not other
    return _names_meet(one[0], other[0]) and _may_share(one[1:], other[1:])


def _names_meet(one: str, other: str) -> bool:
    """Say whether two parts of patterns may match one name; of two with wildcards beginnings and ends are compared."""
    if not _WILD.search(one):
        return fnmatch.fnmatchcase(one, other)
    if not _WILD.search(other):
        return fnmatch.fnmatchcase(other, one)
    (begin, *_, end), (start, *_, finish) = _WILD.split(one), _WILD.split(other)
    return (begin.startswith(start) or start.startswith(begin)) and (end.endswith(finish) or finish.endswith(end))


def check_table(
    document: Document, path: Path_, name: str, options: TableOptions, source: str, is_folder: bool, target: str
) -> TableOptions:
    """Return the options of a table with its format, after a look at what they mean together.

    Raises:
        ProjectError: a key is for the other kind of source, or one is missing.
    """

    def problem(key: str, what: str, hint: str | None = None) -> ProjectError:
        own = (*path, key)
        place = own if own in document.keys else ("defaults", key)
        return document.problem(f"table {name}: {what}", place, key=True, hint=hint)

    if not is_folder:
        for key in FileOptions.model_fields:
            if getattr(options, key) is not None:
                raise problem(key, f'"{key}" is for files, and connection {source} is a database')
        return options
    if options.files is None:
        hint = f"files: {name}/**/*.jsonl"
        raise document.problem(f"table {name} names no files, and {source} is a folder", path, key=True, hint=hint)
    for name_of, key in ((name, ALIASES.get(name, name)) for name in TABLES_ONLY):
        if getattr(options, name_of) is not None:
            raise problem(key, f'"{key}" is for tables of a database, and connection {source} is a folder of files')
    if options.mode not in (None, "append"):
        raise problem(
            "mode", f"files are appended, so mode {options.mode} means nothing here", "leave mode out, or mode: append"
        )
    if target != "lake":
        raise document.problem(f"table {name}: files go to a layer of the lake, not to {target}", ("to",))
    return options.model_copy(update=_formatted(options, problem))


def _formatted(options: TableOptions, problem: Callable[[str, str, str | None], ProjectError]) -> dict[str, Any]:
    """Return the format, by the suffix of the pattern where it is not said."""
    found = options.format or SUFFIXES.get(PurePosixPath(str(options.files)).suffix.lower())
    if found is None:
        raise problem("files", f'the suffix of "{options.files}" says no format', "format: jsonl, or format: csv")
    if found == "jsonl" and options.delimiter is not None:
        raise problem("delimiter", '"delimiter" is for CSV', None)
    if found == "csv" and options.columns is not None and "json" in options.columns.values():
        raise problem("columns", "values of CSV are text", None)
    return {"format": found, "mode": "append"}
