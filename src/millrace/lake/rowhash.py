"""PostgreSQL's record hash, recomputed from Arrow, so that a copy is proven by what was written.

The digest of a table is the sum of `hash_record_extended(row(int8send(hash_record_extended(row(…), 7))), 7)` over its
rows, with each column as `core.schema.Column.hashed` says. Here the same sum is computed with numpy: each column by
`lookup3`, combined as in `record_hash_extended`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from millrace.core.digest import Digest
from millrace.core.schema import Column, Schema
from millrace.errors import ContractBroken
from millrace.lake.lookup3 import I64, MASK, U64, Bytes, hash_bytes, hash_floats, hash_integers

# Rows at once: long enough that two threads help, and what it works on stays near: twice as many cost a tenth.
CHUNK = 1 << 15
POSTGRES_EPOCH_DAYS = 10_957
POSTGRES_EPOCH_US = 946_684_800_000_000


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
    mask = np.uint64(MASK)
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


# --- tables ----------------------------------------------------------------------------------------------


def check_hashes(schema: Schema) -> None:
    """Raise ContractBroken if a column has no known hash."""
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
    high, low = int((signed >> 32).sum()), int((found & np.uint64(MASK)).sum())
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
    check_hashes(schema)
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
    check_hashes(schema)
    found: list[int] = []
    for batch in table.to_batches(max_chunksize=CHUNK):
        found += hash_rows(batch, schema).view("<i8").tolist()
    return found
