"""Names for people: SQL names in messages and hints, quoted where PostgreSQL needs it."""

from __future__ import annotations

from millrace.core.names import quoted

# Reserved key words of PostgreSQL 18 (appendix C, "reserved"): as a name they must stand in quotes.
_WORDS = """all analyse analyze and any array as asc asymmetric authorization binary both case cast check collate
collation column concurrently constraint create cross current_catalog current_date current_role current_schema
current_time current_timestamp current_user default deferrable desc distinct do else end except false fetch for
foreign freeze from full grant group having ilike in initially inner intersect into is isnull join lateral leading
left like limit localtime localtimestamp natural not notnull null offset on only or order outer overlaps placing
primary references returning right select session_user similar some symmetric system_user table tablesample then
to trailing true union unique user using variadic verbose when where window with"""
RESERVED = frozenset(_WORDS.split())


def sql_name(*parts: str) -> str:
    """Return a dotted name that can be pasted into psql. For display, never for building SQL."""
    return ".".join(f'"{part}"' if part in RESERVED else quoted(part) for part in parts)
