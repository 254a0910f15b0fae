"""What the values of a table depend on without a row of it being written: its partitions, the words of its enums.

Each is a short text. A trait that is gone means that rows may hold other values than were read. A partition that is new
may hold rows with old cursor values, when it was attached with them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from psycopg import sql

from millrace.core.names import fingerprint
from millrace.postgres.session import Connection

if TYPE_CHECKING:
    from millrace.postgres.catalog import PgColumn

PARTITION = "p"
_LEAVES = """
with recursive tree as (
    select i.inhrelid as oid from pg_catalog.pg_inherits i where i.inhparent = %s
    union
    select i.inhrelid from pg_catalog.pg_inherits i join tree on i.inhparent = tree.oid
)
select tree.oid::text from tree
"""
_WORDS = """
with recursive used as (
    select t.oid, t.typtype, t.typelem, t.typbasetype, t.typrelid, t.typcategory
    from pg_catalog.pg_type t where t.oid = any(%s)
    union
    select t.oid, t.typtype, t.typelem, t.typbasetype, t.typrelid, t.typcategory
    from used join pg_catalog.pg_type t on
        t.oid = case when used.typtype = 'd' then used.typbasetype when used.typcategory = 'A' then used.typelem end
        or used.typtype = 'r' and t.oid = (select r.rngsubtype from pg_catalog.pg_range r where r.rngtypid = used.oid)
        or used.typtype = 'c' and t.oid in (select a.atttypid from pg_catalog.pg_attribute a
            where a.attrelid = used.typrelid and a.attnum > 0 and not a.attisdropped)
)
select 'e', l.oid::text, l.enumlabel::text from used join pg_catalog.pg_enum l on l.enumtypid = used.oid
union all
select 'c', used.oid::text, pg_catalog.string_agg(a.attnum || ' ' || a.atttypid, ',' order by a.attnum)
from used join pg_catalog.pg_attribute a on a.attrelid = used.typrelid and a.attnum > 0 and not a.attisdropped
where used.typtype = 'c' group by 2
"""


def read_traits(connection: Connection, oid: int, paged: bool, columns: Sequence[PgColumn]) -> tuple[str, ...]:
    """Return a table's traits, sorted.

    Args:
        connection: a pinned session.
        oid: the table's.
        paged: whether it has no children.
        columns: those of the table.
    """
    found: list[str] = []
    if not paged:
        found += [f"{PARTITION}{row[0]}" for row in connection.execute(_LEAVES, (oid,))]
    own = [one.type_oid for one in columns if {one.typnamespace, one.element_namespace} - {"pg_catalog", ""}]
    if own:
        found += [kind + fingerprint(*rest)[:8] for kind, *rest in connection.execute(_WORDS, (own,))]
    return tuple(sorted(found))


def unread(known: Collection[str], now: Collection[str]) -> sql.Composable | None:
    """Return the predicate of rows that traits of a position know nothing of; None: there are none.

    Args:
        known: the position's.
        now: the table's.
    """
    if any(not trait.startswith(PARTITION) and trait not in now for trait in known):
        return sql.SQL("true")
    new = [int(trait[1:]) for trait in now if trait.startswith(PARTITION) and trait not in known]
    return sql.SQL("tableoid = any({}::pg_catalog.oid[])").format(sql.Literal(new)) if new else None
