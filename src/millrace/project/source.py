"""YAML files read with the place of every key and value, so that an error can point at it.

The words of YAML 1.2 count: only `true` and `false` are booleans (`no`, `on` and `12:30` are texts), dates are
texts, numbers with leading zeros are texts. Tags, merge keys and several documents in a file are errors; aliases
work within a limit. Line and column are 1-based; the column counts characters.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import Composer
from yaml.parser import Parser
from yaml.reader import Reader, ReaderError
from yaml.resolver import BaseResolver
from yaml.scanner import Scanner

from millrace.core.secrets import redact
from millrace.errors import Place, ProjectError

Path_ = tuple[str | int, ...]
"""Keys and list indexes from a file's root to a value."""

MOST_VALUES = 50_000  # aliases of aliases grow without bounds ("billion laughs"); no honest file comes near
MOST_ERRORS = 10  # what one look at a terminal can hold

_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,300})")
_FLOAT = re.compile(r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?")
_PLAIN_TAGS = {"tag:yaml.org,2002:str", "tag:yaml.org,2002:seq", "tag:yaml.org,2002:map", "!"}
_BREAK = re.compile(r"\r\n|[\r\n\x85\u2028\u2029]")  # where PyYAML counts a line
_WINDOW = 96  # characters of a line that an error shows

# A wrong line may hold a secret beside the wrong key, so whatever looks like one is hidden before it is shown.
_SECRETS = re.compile(
    r"""(?P<a>://[^:/\s"'@]*:)(?!\$\{[^{}@]*\}@)(?P<url>.*)(?=@)"""
    r"""|(?P<b>(?:password|passwd|passphrase|secret|token|api_?key)["']?\s*[:=]\s*)(?!\s*["']?\$\{)"""
    r"""(?P<word>"[^"]*"?|'[^']*'?|[^\s,}&]+)""",
    re.IGNORECASE,
)


class _Composer(Reader, Scanner, Parser, Composer, BaseResolver):
    """PyYAML's reading side without constructors: nothing of a file can become an object."""

    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        BaseResolver.__init__(self)


@dataclass(frozen=True)
class Document:
    """One YAML file: its plain value and where each part stands.

    Attributes:
        file: path relative to the project folder, with slashes.
        value: dicts, lists, texts, numbers, booleans, None.
        keys, values: places of keys and values by path.
    """

    file: str
    text: str = field(repr=False)
    value: Any
    keys: Mapping[Path_, Place] = field(repr=False)
    values: Mapping[Path_, Place] = field(repr=False)

    def place(self, path: Sequence[str | int] = (), *, key: bool = False) -> Place:
        """Return where a value (or its key) stands, or the nearest thing around it."""
        at = tuple(path)
        if not at:
            return Place(self.file)
        found = (self.keys.get(at) or self.values.get(at)) if key else (self.values.get(at) or self.keys.get(at))
        return found or self.place(at[:-1], key=True)

    def problem(
        self,
        what: str,
        path: Sequence[str | int] = (),
        *,
        key: bool = False,
        note: str | None = None,
        hint: str | None = None,
    ) -> ProjectError:
        """Return an error that marks a value, or its key; `note` stands beside the mark."""
        return problem(what, self.place(path, key=key), self.text, note=note, hint=hint)


def problem(what: str, place: Place, text: str, *, note: str | None = None, hint: str | None = None) -> ProjectError:
    """Return an error with the source line and a mark under the place; without a line the note becomes the hint."""
    lines = excerpt(text, place, note)
    if not lines and note:
        hint = note if hint is None else f"{note} {hint}"
    return ProjectError(_printable(redact(what)), where=place, detail=lines, hint=hint and _printable(hint))


def together(errors: Sequence[ProjectError]) -> ProjectError:
    """Return the first error, holding the others (ten in all at most)."""
    first = errors[0]
    first.others = tuple(errors[1:MOST_ERRORS])
    return first


def excerpt(text: str, place: Place, note: str | None = None) -> tuple[str, ...]:
    """Return the place's line with its number, and a line of `^` under the marked characters."""
    lines = _BREAK.split(text)
    if not 1 <= place.line <= len(lines):
        return ()
    line, start, length = _shown(lines[place.line - 1], place.column - 1, max(1, place.length))
    number = str(place.line)
    mark = " " * _width(line[:start]) + "^" * max(1, _width(line[start : start + length]))
    return (f"{number} | {line}", f"{' ' * len(number)} | {mark}{' ' + _printable(note) if note else ''}")


def _shown(line: str, start: int, length: int) -> tuple[str, int, int]:
    """Return the line as it may be shown (secrets hidden, one line, no control characters) and the mark within."""
    out, position = "", 0
    left, right = start, start + length
    moved_left, moved_right = start, start + length
    for match in _SECRETS.finditer(line):
        group = "url" if match["url"] is not None else "word"
        first, last = match.span(group)
        out += line[position:first] + "***"
        position = last
        moved_left = _moved(left, first, last, moved_left)
        moved_right = _moved(right, first, last, moved_right)
    out += line[position:]
    out = _printable(out)
    hidden = redact(out)
    if hidden != out:  # a known secret in another place: better no exact mark than the secret
        out, moved_left, moved_right = hidden, min(moved_left, len(hidden)), min(moved_right, len(hidden) + 1)
    cut = max(0, min(moved_left - _WINDOW // 2, len(out) - _WINDOW)) if len(out) > _WINDOW else 0
    if cut:
        out, moved_left, moved_right = "…" + out[cut + 1 :], max(1, moved_left - cut), moved_right - cut
    if len(out) > _WINDOW:
        out = out[: _WINDOW - 1] + "…"
    return out, moved_left, max(1, min(moved_right, len(out)) - moved_left)


def _printable(text: str) -> str:
    """Return a text that cannot steer a terminal or break a line, as long as it was."""
    return "".join(" " if c == "\t" else c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _moved(column: int, first: int, last: int, now: int) -> int:
    """Return a column after characters [first, last) became three stars."""
    if column >= last:
        return now + 3 - (last - first)
    return now - (column - first) if column > first else now


def _width(text: str) -> int:
    """Return how many terminal cells a text takes: Hangul and the like take two."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def read_text(root: Path, file: str) -> str:
    """Return a project file's text.

    Raises:
        ProjectError: it cannot be read or is not UTF-8.
    """
    try:
        return (root / file).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = error.object[: error.start]
        place = Place(file, before.count(b"\n") + 1)
        raise ProjectError("the file is not UTF-8", where=place, hint="save it as UTF-8") from None
    except OSError as error:
        raise ProjectError(f"the file cannot be read: {error.strerror}", where=Place(file)) from None


def read_yaml(root: Path, file: str) -> Document:
    """Read one YAML file of a project; an empty one is an empty mapping.

    Raises:
        ProjectError: it cannot be read, is not valid YAML, or its root is not a mapping.
    """
    text = read_text(root, file)
    return parse_yaml(text, file)


def parse_yaml(text: str, file: str) -> Document:
    """Read YAML text as the file named.

    Raises:
        ProjectError: it is not valid YAML, a key stands twice, or the root is not a mapping.
    """
    try:
        node = _Composer(text).get_single_node()
        reading = _Reading(file, text)
        value = {} if node is None else reading.value(node, ())
    except RecursionError:
        raise ProjectError("the file is nested too deeply", where=Place(file)) from None
    except ReaderError as error:
        before = text[: error.position]
        place = Place(file, before.count("\n") + 1, error.position - (before.rfind("\n") + 1) + 1)
        raise problem(f"a character that YAML does not allow: U+{ord(text[error.position]):04X}", place, text) from None
    except yaml.MarkedYAMLError as error:
        raise _syntax(error, file, text) from None
    if reading.errors:
        raise together(reading.errors)
    if value is None:
        value = {}
    document = Document(file, text, value, reading.keys, reading.values)
    if not isinstance(value, dict):
        raise problem(f"{file} must be a mapping (key: value), not {found(value)}", reading.values[()], text)
    return document


def found(value: object) -> str:
    """Return what a value is, in words: `the text "half"`, `a list`."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, str):
        shown = _shown(value if len(value) <= 40 else value[:39] + "…", 0, 1)[0]
        return f'the text "{shown}"'
    return "a mapping" if isinstance(value, Mapping) else "a list"


def _syntax(error: yaml.MarkedYAMLError, file: str, text: str) -> ProjectError:
    """Return PyYAML's error in our words where we have better ones."""
    mark = error.problem_mark or error.context_mark
    lines = _BREAK.split(text)
    place = Place(file)
    if mark is not None:
        line = min(mark.line, len(lines) - 1)
        place = Place(file, line + 1, (mark.column if line == mark.line else len(lines[line])) + 1)
    cause = error.problem or "it cannot be read"
    what, hint = f"not valid YAML: {cause}", None
    if "'\\t'" in cause or "\t" in (lines[place.line - 1][: place.column] if place.line else ""):
        what, hint = "a tab where YAML wants spaces", "indent with spaces"
    elif "expected a single document" in (error.context or ""):
        what, hint = "a second document in the file", "one file holds one document: remove the ---"
    elif cause.startswith("mapping values are not allowed"):
        what, hint = "not valid YAML: a colon where none is allowed", 'quote a text that holds ": "'
    elif error.context and error.context_mark is not None and error.context_mark.line != place.line - 1:
        what += f" ({error.context} that begins on line {error.context_mark.line + 1})"
    return problem(what, place, text, hint=hint)


class _Reading:
    """Turns nodes into plain values and notes where each stands."""

    def __init__(self, file: str, text: str) -> None:
        self.file = file
        self.text = text
        self.keys: dict[Path_, Place] = {}
        self.values: dict[Path_, Place] = {}
        self.errors: list[ProjectError] = []
        self._open: set[int] = set()
        self._count = 0

    def value(self, node: yaml.Node, path: Path_) -> Any:
        place = self._place(node)
        self.values[path] = place
        self._count += 1
        if self._count > MOST_VALUES:
            raise problem(f"more than {MOST_VALUES:,} values in one file", place, self.text)
        if id(node) in self._open:
            raise problem("an alias that holds itself", place, self.text)
        if node.tag not in _PLAIN_TAGS:
            self._wrong(f"tags like {node.tag.replace('tag:yaml.org,2002:', '!!')} are not used here", place)
            return None
        if isinstance(node, yaml.ScalarNode):
            return _scalar(node.value) if node.style is None else node.value
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.SequenceNode):
                return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
            return self._mapping(node, path)
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: yaml.Node, path: Path_) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            place = self._place(key_node)
            if not isinstance(key_node, yaml.ScalarNode) or not key_node.value:
                self._wrong("a key must be a text", place)
                continue
            key = key_node.value
            if key in values:
                first = self.keys[*path, key]
                self._wrong(f'key "{key}" stands twice', place, f"first on line {first.line}")
                continue
            self.keys[*path, key] = place
            values[key] = self.value(value_node, (*path, key))
        return values

    def _wrong(self, what: str, place: Place, note: str | None = None) -> None:
        self.errors.append(problem(what, place, self.text, note=note))

    def _place(self, node: yaml.Node) -> Place:
        start, end = node.start_mark, node.end_mark
        length = end.column - start.column if end.line == start.line else 1
        return Place(self.file, start.line + 1, start.column + 1, max(1, length))


def _scalar(text: str) -> str | int | float | bool | None:
    """Return what a plain scalar means under YAML 1.2's core rules, dates and odd numbers as texts."""
    if text in {"", "~", "null", "Null", "NULL"}:
        return None
    if text in {"true", "True", "TRUE"}:
        return True
    if text in {"false", "False", "FALSE"}:
        return False
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        number = float(text)
        return number if math.isfinite(number) else text
    return text
