"""Whether a table of which most rows differ is published by exchange: asked of the catalogue and of a sample."""

from __future__ import annotations

from collections.abc import Sequence

from millrace.core.segment import Segment
from millrace.postgres.parts import gathered
from millrace.postgres.portrait import against
from millrace.postgres.segments import key_segments
from millrace.postgres.session import translated
from millrace.steps.routes.postgres_compare import compared
from millrace.steps.routes.postgres_look import Look

FINER = 25  # segments that are compared are so much smaller than those that are copied: 10,000 rows
SMALLEST = 64  # pages of 8 kB, some thousand rows: below, an exchange costs more than it saves
MOST = 0.5
"""Of the rows. Measured with a key and two indexes: changes all over the table cost as much either way at 25 %, those
that lie side by side, of which only that part would be staged, at 50 %; where all differ, a swap takes half the CPU."""
ALL = "all rows are loaded, nothing depends on it"
SAMPLED = 5  # segments, spread over those that differ


def fine_segments(look: Look) -> list[Segment]:
    """Split by key, finely: one grouped scan digests many segments as fast as few, and less is copied."""
    rows = max(1, look.spec.segment_rows // FINER)
    return key_segments(look.snap.connection, look.source, look.source.pick(look.key), rows)


def why_not(look: Look) -> str | None:
    """Say why a table that differs may not be exchanged; nothing where it may, None where it is no question."""
    if look.how not in ("sync", "truncate") or look.relation is None or look.alter:
        return None
    if look.spec.proof == "count" or look.spec.stage:
        return None
    there, names = look.there, {column.name for column in look.source.columns}
    if there.pages < SMALLEST:
        return None
    if look.sieve or look.held or look.unreadable:
        return "rows of it are set aside"
    if names != set(there.names):
        return "it has columns that the source lacks"
    if look.how == "sync" and not any(
        index.unique and index.valid and not index.partial and index.immediate and set(index.columns) == set(look.key)
        for index in there.indexes
    ):
        return "no unique index of it is the key"
    label = look.target.database.label
    doing = f"look at what depends on {there.ref}"
    with look.target.connect("look") as connection, translated(label, doing, connection=connection):
        return against(connection, there.oid) or ""


def differing_share(look: Look, different: Sequence[Segment], share: float) -> float:
    """Return the share of a table's rows that differ, told from a sample of the segments that do.

    Args:
        share: of the table's rows, that lie in those segments.
    """
    if not different:
        return 0.0
    step = max(1, len(different) // SAMPLED)
    sample = different[::step][:SAMPLED]
    found = total = 0
    with look.target.connect("sample") as there:
        for part in gathered(sample, sum(segment.rows for segment in sample), 1):
            counts, ours = compared(look, there, part)
            found += counts.inserted + counts.updated + counts.deleted
            total += ours
    return min(1.0, found / max(1, total)) * share


def expected_share(look: Look) -> float:
    """Return the share of a table's rows that differ, told from a sample of all its segments."""
    segments = fine_segments(look)
    return differing_share(look, segments, 1.0)


def words(share: float) -> str:
    """Return why a table is exchanged."""
    return f"{share:.0%} differ, nothing depends on it"
