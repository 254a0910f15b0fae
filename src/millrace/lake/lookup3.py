"""Jenkins' lookup3, PostgreSQL's hash of bytes and numbers, on columns of values with numpy.

As PostgreSQL has it in `common/hashfn.c`: `hash_bytes_extended` and `hash_bytes_uint32_extended`, with the seed of
`core.digest`. All arithmetic is on uint32 columns in place, so that memory stays small and two threads help: numpy lets
go of the interpreter in operations on long arrays.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from millrace.core.digest import SEED

WIDE = 8  # rounds whose bytes are fetched at once: a line of 280 bytes takes a sixth less than with four
NEAR = 2048  # values whose bytes are fetched before they are turned into words, so that they stay in the cache
FEW = 8  # rows below which plain integers are faster than numpy's ~45 calls for twelve bytes

U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

MASK = 0xFFFFFFFF
_MIX = (4, 6, 8, 16, 19, 4)
_FINAL = (14, 11, 25, 16, 4, 14, 24)


# --- Jenkins' lookup3, on plain integers ---------------------------------------------------------------------------


def _rotate(value: int, by: int) -> int:
    return ((value << by) | (value >> (32 - by))) & MASK


def _mix_one(a: int, b: int, c: int) -> tuple[int, int, int]:
    for by in _MIX:
        a = ((a - c) & MASK) ^ _rotate(c, by)
        c = (c + b) & MASK
        a, b, c = b, c, a
    return a, b, c


def _final_one(a: int, b: int, c: int) -> int:
    for by in _FINAL:
        c = ((c ^ b) - _rotate(b, by)) & MASK
        a, b, c = b, c, a
    # Seven turns of three leave the names one place on: what was last written is `b`, the one before `a`.
    return (a << 32) | b


def _start(length: int) -> tuple[int, int, int]:
    """Return the state for a value of so many bytes, the seed mixed in."""
    begin = (0x9E3779B9 + length + 3923095) & MASK
    return _mix_one((begin + (SEED >> 32)) & MASK, (begin + SEED) & MASK, begin)


def hash_value(value: bytes | memoryview) -> int:
    """Return PostgreSQL's `hash_any_extended` of one value, unsigned; the reference for the vectorised functions."""
    a, b, c = _start(len(value))
    return _finish_one(a, b, c, value)


def _finish_one(a: int, b: int, c: int, value: bytes | memoryview) -> int:
    whole = len(value) // 12 * 12
    m = MASK
    for word0, word1, word2 in struct.iter_unpack("<3I", value[:whole]):  # `_mix_one`, unrolled: a third less time
        c = c + word2 & m
        a = (a + word0 - c & m) ^ (c << 4 & m | c >> 28)
        b = b + word1
        c = c + b & m
        b = (b - a & m) ^ (a << 6 & m | a >> 26)
        a = a + c & m
        c = (c - b & m) ^ (b << 8 & m | b >> 24)
        b = b + a & m
        a = (a - c & m) ^ (c << 16 & m | c >> 16)
        c = c + b & m
        b = (b - a & m) ^ (a << 19 & m | a >> 13)
        a = a + c & m
        c = (c - b & m) ^ (b << 4 & m | b >> 28)
        b = b + a & m
    word0, word1, word2 = struct.unpack("<3I", bytes(value[whole:]).ljust(12, b"\0"))
    # The last word's lowest byte is kept for the length.
    return _final_one((a + word0) & MASK, (b + word1) & MASK, (c + (word2 << 8)) & MASK)


# --- the same, on columns ------------------------------------------------------------------------------------------


def _shifts(turns: Sequence[int]) -> list[tuple[npt.NDArray[np.uint32], ...]]:
    return [(np.array(by, "<u4"), np.array(32 - by, "<u4")) for by in turns]


_MIX_SHIFTS, _FINAL_SHIFTS = _shifts(_MIX), _shifts(_FINAL)


class _State:
    """The three words of many hashes at once, and room for what a rotation needs."""

    __slots__ = ("a", "b", "c", "left", "right")

    def __init__(self, a: U32, b: U32, c: U32) -> None:
        self.a, self.b, self.c = a, b, c
        self.left = np.empty_like(a)
        self.right = np.empty_like(a)

    @classmethod
    def same(cls, rows: int, length: int) -> _State:
        """Return the state of `rows` values that all have the same length."""
        a, b, c = _start(length)
        return cls(np.full(rows, a, "<u4"), np.full(rows, b, "<u4"), np.full(rows, c, "<u4"))

    @classmethod
    def of(cls, lengths: I64) -> _State:
        """Return the state of values of these lengths."""
        begin = lengths.astype("<u4")
        begin += np.uint32((0x9E3779B9 + 3923095) & MASK)
        state = cls(begin, begin.copy(), begin.copy())
        state.a += np.uint32(SEED >> 32)
        state.b += np.uint32(SEED & MASK)
        state.mix(len(begin))
        return state

    def mix(self, rows: int) -> None:
        """Mix the first `rows` states."""
        a, b, c, left, right = (one[:rows] for one in (self.a, self.b, self.c, self.left, self.right))
        for by, rest in _MIX_SHIFTS:
            a -= c
            np.left_shift(c, by, out=left)
            np.right_shift(c, rest, out=right)
            left |= right
            a ^= left
            c += b
            a, b, c = b, c, a

    def final(self) -> U64:
        """Return the finished hashes; the state is spent."""
        rows = len(self.a)
        a, b, c = self.a, self.b, self.c
        for by, rest in _FINAL_SHIFTS:
            c ^= b
            np.left_shift(b, by, out=self.left)
            np.right_shift(b, rest, out=self.right)
            self.left |= self.right
            c -= self.left
            a, b, c = b, c, a
        found = np.empty(rows, "<u8")
        words = found.view("<u4").reshape(-1, 2)
        words[:, 0] = b
        words[:, 1] = a
        return found


def hash_integers(values: I64) -> U64:
    """Hash integers of any width, dates, times and timestamps: PostgreSQL hashes equal numbers of all widths alike."""
    low = values.astype("<u4")  # keeps the lowest 32 bits
    high = (values >> 32).astype("<u4")
    np.invert(high, out=high, where=values < 0)
    low ^= high
    state = _State.same(len(values), 4)
    state.a += low
    return state.final()


def hash_floats(values: npt.NDArray[np.float64]) -> U64:
    """Hash floats as the eight bytes of `float8send`, so that -0 is not 0 and each NaN is itself."""
    words = np.ascontiguousarray(values, "<f8").byteswap().view("<u4").reshape(-1, 2)
    state = _State.same(len(values), 8)
    state.a += words[:, 0]
    state.b += words[:, 1]
    return state.final()


def hash_bytes(data: Bytes, starts: I64, lengths: I64) -> U64:
    """Hash byte strings that lie in one buffer.

    Args:
        data: the buffer; nothing is read past its end.
        starts: where each value begins.
        lengths: how many bytes each has.
    """
    rounds = lengths // 12
    most = int(rounds.max(initial=0))
    if most == 0 or int(rounds.min(initial=0)) == most:
        return _hash_sorted(data, starts, lengths, rounds)
    # Longest first, so that the values that still have bytes are always the first ones. Two bytes sort by radix.
    order = np.argsort((most - rounds).astype("<u2" if most < 1 << 16 else "<i8"), kind="stable")
    found = np.empty(len(starts), "<u8")
    found[order] = _hash_sorted(data, starts[order], lengths[order], rounds[order])
    return found


def _hash_sorted(data: Bytes, starts: I64, lengths: I64, rounds: I64) -> U64:
    """Hash values whose number of twelve-byte rounds does not grow."""
    state = _State.of(lengths)
    together = int(rounds[FEW]) if len(rounds) > FEW else 0  # rounds in which enough values take part
    if together:
        taking_part = np.searchsorted(-rounds, -np.arange(together), side="left").tolist()
        words = np.empty((3 * min(together, WIDE), taking_part[0]), "<u4")
        for first in range(0, together, WIDE):
            several = taking_part[first : first + WIDE]
            _fetch(words[: 3 * len(several), : several[0]], data, starts[: several[0]], 12 * first)
            for place, rows in enumerate(several):
                state.a[:rows] += words[3 * place, :rows]
                state.b[:rows] += words[3 * place + 1, :rows]
                state.c[:rows] += words[3 * place + 2, :rows]
                state.mix(rows)
    whole = np.minimum(rounds, together) * 12
    at, rest = starts + whole, lengths - whole
    longer = int((rounds[:FEW] > together).sum())
    view = data.data
    singles = [
        _finish_one(int(state.a[n]), int(state.b[n]), int(state.c[n]), view[at[n] : at[n] + rest[n]])
        for n in range(longer)
    ]
    rest[:longer] = 0
    at[:longer] = 0
    _add_tail(state, data, at, rest)
    found = state.final()
    found[:longer] = singles
    return found


def _fetch(words: U32, data: Bytes, starts: I64, offset: int) -> None:
    """Fill a column of `words` from so many bytes behind each start on; past the end of the buffer they are zeros."""
    width = 4 * len(words)
    edge = max(len(data) - width + 1, 0)  # from here on not all of them lie in the buffer
    end = np.zeros(len(data) - edge + width, np.uint8)
    end[: len(data) - edge] = data[edge:]
    inside, beyond = _windows(data, width), _windows(end, width)
    for begin in range(0, len(starts), NEAR):
        at = starts[begin : begin + NEAR] + offset
        if int(at.max()) < edge:
            found = inside[at]
        else:
            found = np.empty(len(at), inside.dtype)
            late = at >= edge
            found[~late] = inside[at[~late]]
            found[late] = beyond[at[late] - edge]
        words[:, begin : begin + NEAR] = found.view("<u4").reshape(len(at), -1).T


def _windows(data: Bytes, width: int) -> npt.NDArray[np.void]:
    """Return what so many bytes from each place on are, as far as all of them lie in the buffer."""
    return np.ndarray((max(len(data) - width + 1, 0),), f"V{width}", data, strides=(1,))


# What stays of the twelve bytes after a value's last whole round, word by word, by how many bytes belong to the value.
_TAIL = np.array(
    [[min(max((1 << 8 * min(max(rest - 4 * word, 0), 4)) - 1, 0), MASK) for rest in range(12)] for word in range(3)],
    "<u4",
)


def _add_tail(state: _State, data: Bytes, at: I64, rest: I64) -> None:
    """Add the last bytes, up to eleven, of each value."""
    if not rest.any():
        return
    words = np.empty((3, len(at)), "<u4")
    _fetch(words, data, at, 0)
    for word, mask in zip(words, _TAIL, strict=True):
        word &= mask[rest]
    state.a += words[0]
    state.b += words[1]
    state.c += words[2] << np.uint32(8)
