"""How many rows fit into one batch, for programs that read rows as objects."""

from __future__ import annotations

from millrace.errors import UsageError

BASE, LEAST = 10_000, 1_000
SHARE = 0.01  # of the memory limit: a batch as Python objects takes some ten times its bytes


def optimize_batch_size(table_size: int, memory_limit: int = 8, *, row_bytes: int | None = None) -> int:
    r"""Return the rows of one batch.

    Millrace's own copies stream bytes and need no batches; this is for code that fetches rows itself.

    | rows \ GB | < 4 | 4–16 | > 16 |
    |---|---|---|---|
    | ≤ 100,000 | 10,000 | 20,000 | 40,000 |
    | ≤ 1,000,000 | 5,000 | 10,000 | 20,000 |
    | more | 2,500 | 5,000 | 10,000 |

    Args:
        table_size: rows of the table.
        memory_limit: gigabytes that the process may use.
        row_bytes: bytes of the widest row, where known: a batch then takes at most 1 % of the limit, and at least
            one row, whatever the table above says.

    Raises:
        UsageError: a number is negative, or the limit is not positive.
    """
    if table_size < 0 or memory_limit <= 0 or (row_bytes is not None and row_bytes < 0):
        raise UsageError(
            f"no batch for {table_size} rows of {row_bytes} bytes in {memory_limit} GB",
            hint="rows and bytes are 0 or more, the memory limit more than 0",
        )
    size = BASE
    if table_size > 1_000_000:
        size = BASE // 2
    elif table_size <= 100_000:
        size = BASE * 2
    if memory_limit < 4:
        size //= 2
    elif memory_limit > 16:
        size *= 2
    size = max(LEAST, size)
    if row_bytes:
        size = min(size, max(1, int(memory_limit * 1e9 * SHARE) // row_bytes))
    return size
