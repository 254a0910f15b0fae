"""PostgreSQL's record hash, recomputed from Arrow and Parquet, so that a copy is proven by what was written.

The digest of a table is the sum of `hash_record_extended(row(int8send(hash_record_extended(row(…), 7))), 7)` over its
rows, with each column as `core.schema.Column.hashed` says. Here the same sum is computed with numpy from files read
back: Jenkins' lookup3 as PostgreSQL has it in `common/hashfn.c` (`hash_bytes_extended`, `hash_bytes_uint32_extended`),
combined as in `record_hash_extended`.

All arithmetic is on uint32 columns of up to `CHUNK` rows in place, so that memory stays small and two threads
help: numpy lets go of the interpreter in operations on arrays of that length.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from millrace.core.digest import SEED, Digest
from millrace.core.schema import Column, Schema
from millrace.errors import ContractBroken

CHUNK = (
    1 << 15
)  # rows at once: long enough that two threads help; what it works on stays near: twice as many cost a tenth
WIDE = 8  # rounds whose bytes are fetched at once: a line of 280 bytes takes a sixth less than with four
NEAR = 2048  # values whose bytes are fetched before they are turned into words, so that they stay in the cache
FEW = 8  # rows below which plain integers are faster than numpy's ~45 calls for twelve bytes
POSTGRES_EPOCH_DAYS = 10_957
POSTGRES_EPOCH_US = 946_684_800_000_000

U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

_MASK = 0xFFFFFFFF
_MIX = (4, 6, 8, 16, 19, 4)
_FINAL = (14, 11, 25, 16, 4, 14, 24)


# --- Jenkins' lookup3, on plain integers ---------------------------------------------------------------------------


def _rotate(value: int, by: int) -> int:
    return ((value << by) | (value >> (32 - by))) & _MASK


def _mix_one(a: int, b: int, c: int) -> tuple[int, int, int]:
    for by in _MIX:
        a = ((a - c) & _MASK) ^ _rotate(c, by)
        c = (c + b) & _MASK
        a, b, c = b, c, a
    return a, b, c


def _final_one(a: int, b: int, c: int) -> int:
    for by in _FINAL:
        c = ((c ^ b) - _rotate(b, by)) & _MASK
        a, b, c = b, c, a
    # Seven turns of three leave the names one place on: what was last written is `b`, the one before `a`.
    return (a << 32) | b


def _start(length: int) -> tuple[int, int, int]:
    """Return the state for a value of so many bytes, the seed mixed in."""
    begin = (0x9E3779B9 + length + 3923095) & _MASK
    return _mix_one((begin + (SEED >> 32)) & _MASK, (begin + SEED) & _MASK, begin)


def hash_value(value: bytes | memoryview) -> int:
    """Return PostgreSQL's `hash_any_extended` of one value, unsigned; the reference for the vectorised functions."""
    a, b, c = _start(len(value))
    return _finish_one(a, b, c, value)


def _finish_one(a: int, b: int, c: int, value: bytes | memoryview) -> int:
    whole = len(value) // 12 * 12
    m = _MASK
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
    return _final_one((a + word0) & _MASK, (b + word1) & _MASK, (c + (word2 << 8)) & _MASK)


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
        begin += np.uint32((0x9E3779B9 + 3923095) & _MASK)
        state = cls(begin, begin.copy(), begin.copy())
        state.a += np.uint32(SEED >> 32)
        state.b += np.uint32(SEED & _MASK)
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
    [[min(max((1 << 8 * min(max(rest - 4 * word, 0), 4)) - 1, 0), _MASK) for rest in range(12)] for word in range(3)],
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


# --- decimals as PostgreSQL prints them ----------------------------------------------------------------------------

_DIGITS = np.array([b"%04d" % number for number in range(10_000)], "S4").view("<u4")
_TEN_TO_4 = np.uint64(10_000)


def _decimal_text(array: pa.Array) -> tuple[Bytes, I64, I64]:
    """Return the text of decimals as `numeric(p,s)` prints them: buffer, starts, lengths.

    Arrow's own cast prints small numbers with an exponent (1E-7), PostgreSQL never does.
    """
    scale = array.type.scale
    if scale < 0:
        raise pa.ArrowTypeError(f"decimals with the negative scale {scale} have no exact text")
    words = np.frombuffer(array.buffers()[1], "<u8").reshape(-1, 2)[array.offset : array.offset + len(array)]
    negative = words[:, 1] >> np.uint64(63) != 0
    low = np.where(negative, ~words[:, 0] + np.uint64(1), words[:, 0])
    high = np.where(negative, ~words[:, 1] + (low == 0), words[:, 1])
    if high.any():
        digits, used = _wide_digits(low, high, max(array.type.precision, scale + 1))
    else:
        digits, used = _narrow_digits(low, scale + 1)
    width = digits.shape[1]
    whole = width - scale
    text = np.empty((len(array), 1 + width + (scale > 0)), np.uint8)
    text[:, 1 : whole + 1] = digits[:, :whole]
    if scale:
        text[:, whole + 1] = ord(".")
        text[:, whole + 2 :] = digits[:, whole:]
    # Leading zeros go, but one stays before the point.
    begin = 1 + width - np.maximum(used, scale + 1) - negative
    rows = np.flatnonzero(negative)
    text[rows, begin[rows]] = ord("-")
    starts = np.arange(len(array), dtype="<i8") * text.shape[1] + begin
    return text.reshape(-1), starts, text.shape[1] - begin


def _narrow_digits(numbers: U64, least: int) -> tuple[Bytes, I64]:
    """Return 64-bit numbers as digits with leading zeros, and how many digits each has.

    Args:
        numbers: what to print.
        least: digits that are needed at least.
    """
    most = len(str(int(numbers.max(initial=0))))
    digits = np.empty((len(numbers), -(-max(most, least) // 4)), "<u4")
    left = numbers
    for place in range(digits.shape[1] - 1, -1, -1):
        rest = left // _TEN_TO_4
        digits[:, place] = _DIGITS[(left - rest * _TEN_TO_4).astype("<i8")]
        left = rest
    used = np.ones(len(numbers), "<i8")
    for power in range(1, most):
        used += numbers >= np.uint64(10**power)
    return digits.view(np.uint8), used


def _wide_digits(low: U64, high: U64, least: int) -> tuple[Bytes, I64]:
    """Return 128-bit numbers as digits, by long division in 32-bit limbs; see `_narrow_digits`."""
    mask = np.uint64(_MASK)
    limbs = [high >> np.uint64(32), high & mask, low >> np.uint64(32), low & mask]
    digits = np.empty((len(low), -(-least // 4)), "<u4")
    for place in range(digits.shape[1] - 1, -1, -1):
        rest = np.zeros(len(low), "<u8")
        for number, limb in enumerate(limbs):
            rest = (rest << np.uint64(32)) | limb
            limbs[number] = rest // _TEN_TO_4
            rest -= limbs[number] * _TEN_TO_4
        digits[:, place] = _DIGITS[rest.astype("<i8")]
    found = digits.view(np.uint8)
    counts = found != ord("0")
    counts[:, -1] = True  # zero has one digit
    return found, found.shape[1] - counts.argmax(axis=1)


# --- Arrow columns -------------------------------------------------------------------------------------------------


def _plain(array: pa.Array, kind: pa.DataType, dtype: str) -> npt.NDArray[Any]:
    """Return a column as numpy sees its buffer; what stands under a null is arbitrary."""
    array = array.view(kind) if pa.types.is_temporal(array.type) else array.cast(kind)
    return np.frombuffer(array.buffers()[1] or b"", dtype)[array.offset : array.offset + len(array)]


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _strings(array: pa.Array) -> tuple[Bytes, I64, I64]:
    """Return buffer, starts and lengths of a column of texts or bytes."""
    kind = array.type
    if pa.types.is_fixed_size_binary(kind):
        rows = np.arange(array.offset, array.offset + len(array), dtype="<i8")
        return np.frombuffer(array.buffers()[1], np.uint8), rows * kind.byte_width, np.full(len(array), kind.byte_width)
    if pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):
        array = array.cast(pa.large_binary())
    elif not (_is_text(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise pa.ArrowTypeError(f"{kind} is neither text nor bytes")
    large = pa.types.is_large_string(array.type) or pa.types.is_large_binary(array.type)
    _, ends, data = array.buffers()
    offsets = np.frombuffer(ends or b"", "<i8" if large else "<i4")[array.offset : array.offset + len(array) + 1]
    starts = offsets[:-1].astype("<i8")
    return np.frombuffer(data or b"", np.uint8), starts, offsets[1:] - starts


def _hash_int(array: pa.Array) -> U64:
    return hash_integers(_plain(array, pa.int64(), "<i8"))


def _hash_bool(array: pa.Array) -> U64:
    return hash_integers(_plain(array, pa.int8(), "<i1").astype("<i8"))


def _hash_float(array: pa.Array) -> U64:
    return hash_floats(_plain(array, pa.float64(), "<f8"))


def _hash_date(array: pa.Array) -> U64:
    return hash_integers(_plain(array.cast(pa.date32()), pa.int32(), "<i4").astype("<i8") - POSTGRES_EPOCH_DAYS)


def _hash_timestamp(array: pa.Array) -> U64:
    array = array.cast(pa.timestamp("us", array.type.tz)) if pa.types.is_timestamp(array.type) else array
    return hash_integers(_plain(array, pa.int64(), "<i8") - POSTGRES_EPOCH_US)


def _hash_time(array: pa.Array) -> U64:
    if _is_text(array.type):
        return hash_integers(_times(array))
    array = array.cast(pa.time64("us")) if pa.types.is_time(array.type) else array
    return hash_integers(_plain(array, pa.int64(), "<i8"))


def _times(array: pa.Array) -> I64:
    """Return microseconds of texts like 24:00:00 or 01:02:03.5, which Arrow's own time cannot all hold."""
    data, starts, lengths = _strings(array)
    places = np.arange(15)
    at = np.minimum(starts[:, None] + places, max(len(data) - 1, 0))
    digits = np.where(places < lengths[:, None], data[at] if len(data) else 0, ord("0")).astype("<i8") - ord("0")
    weights = np.array([36_000, 3_600, 0, 600, 60, 0, 10, 1, 0], "<i8") * 1_000_000
    found: I64 = digits @ np.concatenate([weights, 10 ** np.arange(5, -1, -1, dtype="<i8")])
    return found


def _hash_uuid(array: pa.Array) -> U64:
    if _is_text(array.type):
        data, starts, lengths = _strings(pc.replace_substring(array, "-", ""))
        return hash_bytes(np.frombuffer(bytes.fromhex(data.tobytes().decode()), np.uint8), starts // 2, lengths // 2)
    return hash_bytes(*_strings(array))


def _hash_text(array: pa.Array) -> U64:
    if pa.types.is_decimal128(array.type):
        return hash_bytes(*_decimal_text(array))
    if not _is_text(array.type):
        raise pa.ArrowTypeError(f"{array.type} has no exact PostgreSQL text")
    return hash_bytes(*_strings(array))


def _hash_binary(array: pa.Array) -> U64:
    return hash_bytes(*_strings(array))


_HASHES: dict[str, Callable[[pa.Array], U64]] = {
    "bool": _hash_bool,
    "int": _hash_int,
    "float8": _hash_float,
    "text": _hash_text,
    "bytes": _hash_binary,
    "uuid": _hash_uuid,
    "date": _hash_date,
    "time": _hash_time,
    "timestamp": _hash_timestamp,
}


def _hash_column(array: pa.Array, column: Column) -> U64:
    """Hash one column; a null is 0, as the record hash counts it."""
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if pa.types.is_null(array.type) or not len(array):
        return np.zeros(len(array), "<u8")
    if pa.types.is_dictionary(array.type):
        if len(array.dictionary) > len(array):
            return _hash_column(array.dictionary_decode(), column)
        values = np.append(_hash_column(array.dictionary, column), np.uint64(0))
        places = np.asarray(array.indices.cast(pa.int64()).fill_null(len(values) - 1))
        taken: U64 = values[places]
        return taken
    try:
        found = _HASHES[column.hashed](array)
    except (pa.ArrowException, ContractBroken, ValueError) as error:
        raise ContractBroken(
            f"column {column.name} cannot be digested from Arrow's {array.type} as {column.hashed}", detail=[str(error)]
        ) from error
    if array.null_count:
        found[np.asarray(array.is_null())] = 0
    return found


# --- tables and files ----------------------------------------------------------------------------------------------


def _check(schema: Schema) -> None:
    for column in schema.columns:
        if column.hashed not in _HASHES:
            raise ContractBroken(f"column {column.name} has no known hash: {column.hashed or 'none'}")


def record_hashes(batch: pa.RecordBatch, schema: Schema) -> U64:
    """Return `hash_record_extended(row(…), 7)` of each row; of key columns, what splits a table into buckets."""
    found = np.zeros(batch.num_rows, "<u8")
    present = {name: place for place, name in enumerate(batch.schema.names)}
    for column in schema.columns:
        found *= np.uint64(31)
        if column.name in present:  # a file older than the column: readers see null
            found += _hash_column(batch.column(present[column.name]), column)
    return found


def hash_rows(batch: pa.RecordBatch, schema: Schema) -> U64:
    """Return the hash of each of up to CHUNK rows."""
    # The record hash is linear in its columns' hashes, so its sum does not change when two rows swap a value: each
    # row's hash is hashed once more, as int8send gives it (the same eight bytes as float8send of the same bits).
    return hash_floats(record_hashes(batch, schema).view("<f8"))


def _add_batch(batch: pa.RecordBatch, schema: Schema) -> int:
    """Return the exact sum of the signed record hashes of up to CHUNK rows."""
    found = hash_rows(batch, schema)
    signed = found.view("<i8")
    high, low = int((signed >> 32).sum()), int((found & np.uint64(_MASK)).sum())
    return (high << 32) + low


def digest_batches(batches: Iterable[pa.RecordBatch], schema: Schema) -> Digest:
    """Digest a stream of rows.

    Args:
        batches: record batches; columns that the schema does not name are left out, missing ones count as null.
        schema: columns in the order of the record, each with `hashed`.

    Returns:
        The same digest as the server's over the same rows.

    Raises:
        ContractBroken: a column's Arrow type has no exact form of what was hashed on the server.
    """
    _check(schema)
    rows = total = 0
    for batch in batches:
        for start in range(0, batch.num_rows, CHUNK):
            total += _add_batch(batch.slice(start, CHUNK), schema)
        rows += batch.num_rows
    return Digest(rows, total, schema.shape)


def digest_table(table: pa.Table | pa.RecordBatch, schema: Schema) -> Digest:
    """Digest a table in memory; see `digest_batches`."""
    return digest_batches(table.to_batches() if isinstance(table, pa.Table) else [table], schema)


def row_hashes(table: pa.Table, schema: Schema) -> list[int]:
    """Return the signed 64-bit hash of each row of a table; their sum is the digest's total.

    Raises:
        ContractBroken: as `digest_batches`.
    """
    _check(schema)
    found: list[int] = []
    for batch in table.to_batches(max_chunksize=CHUNK):
        found += hash_rows(batch, schema).view("<i8").tolist()
    return found


PART_ROWS = 250_000  # rows that one thread takes at once
BATCH_BYTES = 16 << 20  # aimed size of what a thread holds decoded
SMALL_BYTES = 1 << 18  # decoded, of files that are hashed together: 300 rows alone cost 2 ms, nearly all of it calls


def _parts(path: str) -> Iterable[tuple[str, list[int], int, list[str]]]:
    """Yield parts of a file: path, row groups, rows in a batch, and columns to read as dictionaries."""
    metadata = pq.read_metadata(path)
    groups: list[int] = []
    rows = size = 0
    few: dict[str, bool] = {}
    for group in range(metadata.num_row_groups):
        found = metadata.row_group(group)
        groups.append(group)
        rows += found.num_rows
        size += found.total_byte_size
        for place in range(found.num_columns):
            column = found.column(place)
            # A plain text has four bytes for its length alone; under three a dictionary is: each text is hashed once.
            small = column.physical_type == "BYTE_ARRAY" and column.total_uncompressed_size < 3 * column.num_values
            few[column.path_in_schema] = small and few.get(column.path_in_schema, True)
        if rows >= PART_ROWS or group == metadata.num_row_groups - 1:
            batch = max(min(BATCH_BYTES * max(rows, 1) // max(size, 1), CHUNK), 64)
            yield path, groups, batch, [name for name, small in few.items() if small]
            groups, rows, size, few = [], 0, 0, {}


def _digest_part(part: tuple[str, list[int], int, list[str]], schema: Schema) -> Digest:
    path, groups, batch, dictionaries = part
    # Without pre_buffer a column chunk is read as it is decoded, not the whole row group at once.
    with pq.ParquetFile(path, pre_buffer=False, read_dictionary=dictionaries) as file:
        names = set(file.schema_arrow.names)
        wanted = [column.name for column in schema.columns if column.name in names]
        if not wanted:
            rows = sum(file.metadata.row_group(group).num_rows for group in groups)
            return digest_batches([pa.RecordBatch.from_pydict({"": pa.nulls(rows)})], schema)
        batches = file.iter_batches(batch, row_groups=groups, columns=wanted, use_threads=False)
        return digest_batches(batches, schema)


def _processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _bundles(paths: Sequence[str]) -> Iterator[list[str]]:
    """Yield the files, neighbours together that are small."""
    small: list[str] = []
    held = 0
    for path in paths:
        metadata = pq.read_metadata(path)
        size = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
        if size > SMALL_BYTES:
            yield [path]
            continue
        small.append(path)
        held += size
        if held > BATCH_BYTES:
            yield small
            small, held = [], 0
    if small:
        yield small


def _digest_together(paths: Sequence[str], schema: Schema) -> Digest:
    """Digest small files as if they were one."""
    found: list[pa.Table] = []
    for path in paths:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            names = set(file.schema_arrow.names)
            wanted = [column.name for column in schema.columns if column.name in names]
            rows = file.read(columns=wanted, use_threads=False).replace_schema_metadata()
            found.append(rows if wanted else pa.table({"": pa.nulls(file.metadata.num_rows)}))
    same = [pa.concat_tables(tables).combine_chunks() for _, tables in groupby(found, key=lambda rows: rows.schema)]
    return Digest.sum([digest_table(rows, schema) for rows in same], schema.shape)


def digest_files(paths: Sequence[str], schema: Schema, threads: int = 2) -> Digest:
    """Digest Parquet files by reading them back.

    Args:
        paths: the files; their `_millrace_*` columns and others that the schema does not name are left out.
        schema: columns in the order of the record, each with `hashed`.
        threads: files or parts of files that are read at once.

    Returns:
        The same digest as the server's over the same rows.

    Raises:
        ContractBroken: a column's Arrow type has no exact form of what was hashed on the server.
    """
    _check(schema)

    def works() -> Iterator[Callable[[], Digest]]:
        for bundle in _bundles([str(path) for path in paths]):
            if len(bundle) > 1:
                yield partial(_digest_together, bundle, schema)
            else:
                yield from (partial(_digest_part, part, schema) for part in _parts(bundle[0]))

    threads = min(threads, _processors())  # on one processor two threads cost a fifth more than one
    with ThreadPoolExecutor(threads, thread_name_prefix="millrace-digest") as pool:
        return Digest.sum(pool.map(lambda work: work(), works()), schema.shape)
