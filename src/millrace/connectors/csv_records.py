"""CSV: records of texts under a header; a record may have several lines, in quotes.

A record is bad when it has another number of values than the header, or a quote that nothing closes. Then its first
line alone is set aside and reading goes on with the next one, so that one stray quote does not swallow a file.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from millrace.connectors.lines import Bad, LineFile, Piece
from millrace.errors import ContractBroken

BATCH = 16_384
OPEN = "unexpected end of data"  # csv's own words


@dataclass(frozen=True, slots=True)
class Record:
    """One record: the line it begins in, its lines as they stand, its values."""

    line: int
    text: str
    values: Sequence[str]


def header_of(file: LineFile, delimiter: str) -> tuple[str, ...]:
    """Return the column names of a file; empty when it holds nothing.

    Raises:
        ContractBroken: two columns have one name, or one has none; or the header cannot be read.
    """
    head = _head(_records(file, delimiter), file)
    return () if head is None else _named(head, file)


def _head(found: Iterator[Record], file: LineFile) -> Record | None:
    """Return the first record, unless a line before it could not be read: then that was the header."""
    head = next(found, None)
    before = [bad for bad in file.tally.bad if head is None or bad.line < head.line]
    if before:
        first = min(before, key=lambda bad: bad.line)
        raise ContractBroken(
            f"the header of {file.found.name} cannot be read: {first.reason}",
            where=f"{file.found.path}:{first.line}",
            hint="correct the header of the file, or encoding: and delimiter: of the table",
        )
    return head


def _named(record: Record, file: LineFile) -> tuple[str, ...]:
    names = tuple(value.strip() for value in record.values)
    twice = [name for place, name in enumerate(names) if name.lower() in map(str.lower, names[:place])]
    if twice or "" in names:
        what = f"has the column {twice[0]} twice" if twice else "has a column without a name"
        raise ContractBroken(
            f"the header of {file.found.name} {what}",
            where=f"{file.found.path}:{record.line}",
            detail=[record.text[:200]],
            hint="correct the header of the file",
        )
    return names


def records(file: LineFile, delimiter: str) -> Iterator[tuple[tuple[str, ...], list[Record]]]:
    """Yield a file's new records in lists, each with the header; bad ones are told in its tally.

    Args:
        file: opened `whole`, since the header is always read.
        delimiter: one character.

    Raises:
        ContractBroken: the header is no header, or a quote that was open before closes now over lines taken already.
    """
    found = _records(file, delimiter)
    head = _head(found, file)
    if head is None:
        return
    names = _named(head, file)
    while batch := list(islice(found, BATCH)):
        good = []
        for record in batch:
            if _is_old(record, file):
                continue
            if len(record.values) == len(names):
                good.append(record)
            else:
                values = "1 value" if len(record.values) == 1 else f"{len(record.values):,} values"
                reason = f"the record has {values}, the header {len(names):,}"
                file.tally.bad.append(Bad(file.found.name, record.line, reason, record.text))
        if good:
            yield names, good


def _is_old(record: Record, file: LineFile) -> bool:
    """Whether a record was taken before. One of which only the first line was there was set aside, and is new now."""
    last = record.line + record.text.count("\n")
    if record.line >= file.since or last <= file.since:
        if record.line == file.since < last:
            file.tally.again.append(record.line)
        return last <= file.since
    raise ContractBroken(
        f"{file.found.name}:{record.line} has a quote that closes only now, over lines that were taken already",
        where=str(file.found.path),
        detail=[record.text.splitlines()[0][:200]],
        hint="read all files anew: --full-refresh",
    )


class _Lines:
    """The lines of some pieces, one at a time, that can be taken back."""

    def __init__(self, pieces: Iterator[Piece]) -> None:
        self._pieces = pieces
        self._ready: list[tuple[int, str]] = []

    def next(self) -> tuple[int, str] | None:
        while not self._ready:
            piece = next(self._pieces, None)
            if piece is None:
                return None
            self._ready = list(zip(piece.numbers.tolist(), piece.text.to_pylist(), strict=True))[::-1]
        return self._ready.pop()

    def back(self, lines: Sequence[tuple[int, str]]) -> None:
        self._ready += reversed(lines)


def _records(file: LineFile, delimiter: str) -> Iterator[Record]:
    csv.field_size_limit(sys.maxsize)  # the limit of a line holds already
    lines = _Lines(file.pieces())
    while (first := lines.next()) is not None:
        if not first[1].strip():
            file.tally.given -= 1
            file.tally.blank += 1
            continue
        taken, size = [first], len(first[1])
        values, cause = _parse([first[1]], delimiter)
        while cause == OPEN and size <= file.limit and (following := lines.next()) is not None:
            if following[0] != taken[-1][0] + 1:  # the line between could not be read
                lines.back([following])
                break
            taken.append(following)
            size += len(following[1]) + 1
            # only a quote can end it; whether one does, its line alone tells, so that a long record is parsed once
            if '"' in following[1] and _parse([f'"{following[1]}'], delimiter)[1] != OPEN:
                values, cause = _parse([text for _, text in taken], delimiter)
        if cause:
            lines.back(taken[1:])
            if first[0] > file.since:
                reason = "a quote is never closed" if cause == OPEN else f"the record is not CSV: {cause}"
                file.tally.bad.append(Bad(file.found.name, first[0], reason, first[1]))
            continue
        yield Record(first[0], "\n".join(text for _, text in taken).removesuffix("\r"), values)


def _parse(lines: Sequence[str], delimiter: str) -> tuple[list[str], str]:
    """Return the values of one record, and why there are none."""
    try:
        found = list(csv.reader([f"{line}\n" for line in lines], delimiter=delimiter, strict=True))
    except csv.Error as error:
        return [], str(error)
    return (found[0], "") if len(found) == 1 else ([], "a quote ends in the middle of it")


def check_names(names: Sequence[str], wanted: Sequence[str], file: LineFile) -> None:
    """Refuse a header that has a wanted column only in other letters: it would be null without a word.

    Raises:
        ContractBroken: naming both.
    """
    for name in wanted:
        near = [one for one in names if one.lower() == name.lower() and one not in wanted]
        if name not in names and near:
            raise ContractBroken(
                f"the header of {file.found.name} has no column {name}: did you mean {near[0]}?",
                where=str(file.found.path),
                hint=f"write {near[0]} in columns: of the table, or correct the header",
            )


def columns_of(names: Sequence[str], wanted: Sequence[str], found: Sequence[Record]) -> list[list[str | None]]:
    """Return the wanted columns of some records; those that the header does not have are null."""
    places = {name: place for place, name in enumerate(names)}
    return [
        [record.values[places[name]] for record in found] if name in places else [None] * len(found) for name in wanted
    ]


def numbers_of(found: Sequence[Record]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return the lines in which some records begin."""
    return np.array([record.line for record in found], "<i8")
