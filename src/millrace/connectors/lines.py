"""A file as numbered lines: the bytes exactly, in blocks, so that memory stays flat whatever the file holds.

A line ends with a newline, before which one carriage return belongs to the end. What is handed out is UTF-8: a byte
order mark is taken off, other encodings are decoded on the way. A line that is not UTF-8 or is longer than the limit is
told as bad; a long one is passed over without ever being held, so it costs no memory.

Every byte that was handed out was hashed before, so a file's digest is that of what was really read.
"""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from millrace.connectors.folder import Found, file_error
from millrace.core.position import Taken
from millrace.errors import ContractBroken, ProofFailed

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

BLOCK = 8 << 20  # bytes at once: with 4 MB asking the engine costs a tenth of all, with 16 MB it is as fast as with 8
NEAR = 1 << 18  # bytes in which newlines are looked for at once: they stay in the cache
MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
NEWLINE = 10


class Changed(Exception):
    """A file became shorter while it was read."""


@dataclass(frozen=True, slots=True)
class Bad:
    """A line, or a record of several, that cannot be read into columns.

    Attributes:
        name: the file.
        line: where it begins, from 1.
        reason: one sentence.
        text: what stands there, when that is text.
        data: the bytes, when they are not.
    """

    name: str
    line: int
    reason: str
    text: str | None = None
    data: bytes | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """Some lines of a file.

    Attributes:
        numbers: of the lines, from 1.
        text: the lines, without their ends.
    """

    numbers: npt.NDArray[np.int64]
    text: pa.Array

    def __len__(self) -> int:
        return len(self.numbers)

    def only(self, which: npt.NDArray[np.bool_]) -> Piece:
        """Return the lines for which `which` is true."""
        import pyarrow as pa

        return self if which.all() else Piece(self.numbers[which], self.text.filter(pa.array(which)))


@dataclass
class Tally:
    """What was found in a file so far.

    Attributes:
        lines: lines that begin in it.
        blank: of these, lines with nothing in them.
        old: of these, lines that were taken before.
        given: of these, lines that were handed out; records may have several.
        bad: what was set aside; its lines count as given.
        again: first lines of records that were set aside before, half as they were, and are whole now.
    """

    lines: int = 0
    blank: int = 0
    old: int = 0
    given: int = 0
    bad: list[Bad] = field(default_factory=list)
    again: list[int] = field(default_factory=list)


class LineFile:
    """Reads what is new in one file.

    Args:
        found: the file; its first `found.size` bytes are read.
        taken: what was taken of it before.
        limit: bytes that a line may have.
        encoding: Python's name of it; None: as a byte order mark says, else UTF-8.
        whole: hand out every line that can be read, also those that are empty or were taken before, each with its
            carriage return: for records that may have several lines.

    Attributes:
        tally: what was found, whole when all pieces were read.
        encoding: what the file was read as.
    """

    def __init__(
        self, found: Found, taken: Taken | None, *, limit: int, encoding: str | None = None, whole: bool = False
    ) -> None:
        self.found = found
        self.limit = limit
        self.tally = Tally()
        self.encoding = encoding or "utf-8"
        self._taken = taken
        self._whole = whole
        self._declared = encoding
        self._hash = hashlib.sha256()
        self._ended, self._empty = True, False
        self._bytes = self._cut = 0

    # the bytes

    def _blocks(self) -> Iterator[bytes | bytearray | None]:
        """Yield the file's bytes as UTF-8, and check on the way that what was taken before is still the same.

        None marks the end of what was taken before. A block holds until the next one is asked for.
        """
        size, at, decoder = self.found.size, 0, None
        room = bytearray()  # used again and again: touching fresh memory costs as much as reading into it
        prefix = self._taken.size if self._taken else 0
        try:
            with self.found.path.open("rb", buffering=0) as file:
                while at < size:
                    want = min(BLOCK, (prefix if at < prefix else size) - at)
                    if len(room) != want:
                        room = bytearray(want)
                    got = file.readinto(room)
                    if not got:
                        raise Changed(self.found.name)
                    block: bytes | bytearray = room if got == want else room[:got]
                    self._hash.update(block)
                    begin, at = at, at + len(block)
                    if begin == 0:
                        block, decoder = self._begin(block)
                    yield block if decoder is None else self._decoded(decoder, block, at == size, begin)
                    if self._taken is not None and at == prefix:
                        self._check_prefix(self._taken)
                        yield None
        except OSError as error:
            raise file_error(error, self.found.path, f"reading {self.found.name}") from error

    def _begin(self, block: bytes | bytearray) -> tuple[bytes | bytearray, codecs.IncrementalDecoder | None]:
        """Take a byte order mark off and choose the encoding."""
        for mark, name in MARKS:
            if block.startswith(mark):
                block, self.encoding = block[len(mark) :], name
                break
        if codecs.lookup(self.encoding).name == "utf-8":
            return block, None
        return block, codecs.getincrementaldecoder(self.encoding)("strict")

    def _decoded(self, decoder: codecs.IncrementalDecoder, block: bytes | bytearray, final: bool, at: int) -> bytes:
        try:
            return str(decoder.decode(bytes(block), final)).encode()
        except UnicodeError as error:
            raise ContractBroken(
                f"{self.found.name} is not {self.encoding}, as {'encoding:' if self._declared else 'it begins'} says",
                where=str(self.found.path),
                detail=[f"near byte {at + getattr(error, 'start', 0):,}: {getattr(error, 'reason', error)}"],
                hint="correct encoding: of the table, or the file",
            ) from error

    def _check_prefix(self, taken: Taken) -> None:
        if self._hash.copy().hexdigest() != taken.digest:
            raise refused(self.found, taken, f"changed in its first {taken.size:,} bytes, which were taken already")

    # the lines

    def pieces(self) -> Iterator[Piece]:
        """Yield the lines that are new, those that are bad and blank left out and told in `tally`.

        Raises:
            Changed: the file became shorter meanwhile.
            ContractBroken: what was taken before is no longer what the file begins with, or it is not in its encoding.
            ProofFailed: the lines handed out are not those of the file.
        """
        yield from self._split()
        tally = self.tally
        if self._bytes != self._cut or tally.old + tally.blank + tally.given != tally.lines:
            raise ProofFailed(
                f"{self.found.name} has {self._bytes:,} bytes of text in {tally.lines:,} lines; {self._cut:,} bytes in "
                f"{tally.given:,} lines were read, {tally.blank:,} are empty, {tally.old:,} were taken before",
                where=str(self.found.path),
            )

    def _split(self) -> Iterator[Piece]:
        rest: list[bytes | bytearray] = []  # of a line that goes on in the next block
        held = 0
        long: Any = None  # the hash of a line that is too long to be held
        tail = b""
        for block in self._blocks():
            if block is None:
                tail = b"".join(rest)
                continue
            self._bytes += len(block)
            cut = block.find(b"\n") + 1 if long is not None else 0
            if long is not None:
                long.update(block[: cut or len(block)].rstrip(b"\n"))
                held += len(block[: cut or len(block)].rstrip(b"\n"))
                if not cut:
                    continue
                self._cut += 1
                self._pass_over(held, long)
                long, rest, held = None, [], 0
            end = block.rfind(b"\n") + 1
            if end > cut:
                yield from self._lines(b"".join([*rest, memoryview(block)[cut:end]]), tail)
                rest, held = [], 0
            if end < len(block):
                rest.append(block[max(cut, end) :])
                held += len(rest[-1])
            if held - (bool(rest) and rest[-1].endswith(b"\r")) > self.limit:  # it may belong to the line's end
                long = hashlib.sha256()
                for part in rest:
                    long.update(part)
                rest = []
        self._ended = not held
        if long is not None:
            self._pass_over(held, long)
        elif held:
            self._cut -= 1
            last = b"".join(rest)
            self._empty = not last.strip()
            yield from self._lines(last + b"\n", tail)

    def _pass_over(self, length: int, digest: Any) -> None:
        """Tell about a line that was not held; an earlier load has told of those it met."""
        self.tally.lines += 1
        self._cut += length
        if self.tally.lines <= self.since:
            self.tally.old += 1
            return
        self._tell_long(self.tally.lines, length, digest.hexdigest())

    def _tell_long(self, line: int, length: int, digest: str) -> None:
        self.tally.given += 1
        reason = (
            f"the line has {length:,} bytes, more than max_line ({self.limit:,}); it stays in the file, sha256 {digest}"
        )
        if line > self.since:
            self.tally.bad.append(Bad(self.found.name, line, reason))

    @property
    def since(self) -> int:
        """The last line that was taken before; one that was set aside before it was whole is taken again."""
        taken = self._taken
        return 0 if taken is None else taken.lines - (not taken.ended and not taken.kept)

    def _lines(self, data: bytes, tail: bytes) -> Iterator[Piece]:
        """Yield whole lines as a piece; each ends with a newline."""
        import numpy as np
        import pyarrow as pa
        import pyarrow.compute as pc

        self._cut += len(data)
        if not self._whole and b"\r" in data:
            data = data.replace(b"\r\n", b"\n")
        every = np.frombuffer(data, np.uint8)
        ends = [np.flatnonzero(every[at : at + NEAR] == NEWLINE) + (at + 1) for at in range(0, len(every), NEAR)]
        offsets = np.concatenate([[0], *ends]).astype("<i4")
        count, first = len(offsets) - 1, self.tally.lines + 1
        self.tally.lines += count
        numbers = np.arange(first, first + count, dtype="<i8")
        lines = pa.Array.from_buffers(pa.binary(), count, [None, pa.py_buffer(offsets), pa.py_buffer(data)])
        text = pc.binary_slice(lines, 0, -1)  # in Arrow's memory, which is not fresh for every block
        if np.frombuffer(text.buffers()[1], "<i4")[count] + count != len(data):
            raise ProofFailed(f"{self.found.name}: the lines after line {first - 1} do not make up their bytes")
        piece = Piece(numbers, text)
        self._check_open(piece, tail)
        if not self._whole:
            piece = self._without_old(piece)
        if not len(piece):
            return
        piece = self._readable(piece)
        self.tally.given += len(piece)
        if len(piece):
            yield piece

    def _check_open(self, piece: Piece, tail: bytes) -> None:
        """Refuse a line that was taken without its end and has gone on since.

        Raises:
            ContractBroken: it has.
        """
        taken = self._taken
        if taken is None or taken.ended or not taken.kept:
            return
        if piece.numbers[0] <= taken.lines <= piece.numbers[-1]:
            line = piece.text[int(taken.lines - piece.numbers[0])].as_py()
            if line.strip() != tail.strip():
                raise ContractBroken(
                    f"{self.found.name}:{taken.lines} was taken when it had no newline, and has gone on since",
                    where=str(self.found.path),
                    detail=[f"then: {shown(tail)}", f"now:  {shown(line)}"],
                    hint="read all files anew: --full-refresh; let writers end lines before the folder sees them",
                )

    def _without_old(self, piece: Piece) -> Piece:
        """Leave out what was taken before."""
        new = piece.only(piece.numbers > self.since)
        self.tally.old += len(piece) - len(new)
        return new

    def _readable(self, piece: Piece) -> Piece:
        """Leave out lines that are empty, too long or not UTF-8; return the others as text."""
        import numpy as np
        import pyarrow as pa

        lengths = np.diff(np.frombuffer(piece.text.buffers()[1], "<i4")[piece.text.offset :][: len(piece) + 1])
        blank = (lengths == 0) & (not self._whole)
        good = ~blank & (lengths <= self.limit)
        if not good.all():
            self.tally.blank += int(blank.sum())
            for at in np.flatnonzero(lengths > self.limit).tolist():
                data = piece.text[at].as_py()
                self._tell_long(int(piece.numbers[at]), len(data), hashlib.sha256(data).hexdigest())
            piece = piece.only(good)
        text = piece.text.view(pa.string())
        try:
            text.validate(full=True)
        except pa.ArrowInvalid:
            good = np.array([self._is_text(at, piece) for at in range(len(piece))], bool)
            text = piece.only(good).text.view(pa.string())
            return Piece(piece.numbers[good], text)
        return Piece(piece.numbers, text)

    def _is_text(self, at: int, piece: Piece) -> bool:
        data = piece.text[at].as_py()
        try:
            data.decode()
        except UnicodeDecodeError as error:
            self.tally.given += 1
            reason = f"byte {error.start + 1} of the line is not {self.encoding.upper()}: 0x{data[error.start]:02x}"
            if piece.numbers[at] > self.since:
                self.tally.bad.append(Bad(self.found.name, int(piece.numbers[at]), reason, data=data))
            return False
        return True

    # afterwards

    def taken(self) -> Taken:
        """Return what was taken of the file, after all pieces were read."""
        last = self.tally.lines
        kept = self._ended or not (self._empty or any(bad.line == last for bad in self.tally.bad))
        found = self.found
        return Taken(found.size, found.mtime, self._hash.hexdigest(), last, self._ended, kept)


def digest(found: Found) -> str:
    """Return the SHA-256 of a file's first `found.size` bytes, in hexadecimal. Raises what reading may raise."""
    made, left = hashlib.sha256(), found.size
    try:
        with found.path.open("rb", buffering=0) as file:
            while left > 0 and (block := file.read(min(BLOCK, left))):
                made.update(block)
                left -= len(block)
    except OSError as error:
        raise file_error(error, found.path, f"reading {found.name}") from error
    return made.hexdigest()


def refused(found: Found, taken: Taken, what: str) -> ContractBroken:
    """Return the error about a file that is no longer what was taken of it."""
    return ContractBroken(
        f"{found.name} {what}",
        where=str(found.path),
        detail=[f"{taken.lines:,} lines of it are in the lake as they were; nothing was taken now"],
        hint="bring the file back as it was and put what is new under another name, or read all files anew: "
        "--full-refresh",
    )


def shown(line: bytes | str, width: int = 80) -> str:
    """Return the beginning of a line as an error may show it."""
    text = line[: width * 4].decode("utf-8", "replace") if isinstance(line, bytes) else line[: width * 4]
    text = "".join(char if char.isprintable() else "·" for char in text)
    return text if len(text) <= width and len(line) <= width * 4 else text[:width] + "…"
