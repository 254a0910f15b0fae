"""All tables of some schemas in one look: what `millrace init --from` makes a project of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg.rows import dict_row

from millrace.core.names import TableRef
from millrace.errors import NotFound
from millrace.postgres.catalog import ACCESS, RelationKind, nearest
from millrace.postgres.names import sql_name
from millrace.postgres.session import Connection, translated

# A domain counts as the type at its bottom. A NOT NULL constraint that is not validated (PostgreSQL 18) proves nothing.
_LISTED_NAMES = """
with recursive base as (
    select t.oid, t.oid as bottom from pg_catalog.pg_type t where t.typtype <> 'd'
    union all
    select t.oid, base.bottom from base join pg_catalog.pg_type t on t.typbasetype = base.oid and t.typtype = 'd'
)
select n.nspname::text as schema_name, c.relname::text as name, c.relkind::text as kind,
    pg_catalog.pg_table_is_visible(c.oid) as visible,
"""

_LISTED_FACTS = """
    exists (select from pg_catalog.pg_inherits i where i.inhparent = c.oid) as has_children,
    (select e.extname::text from pg_catalog.pg_depend d join pg_catalog.pg_extension e on e.oid = d.refobjid
        where d.classid = 'pg_catalog.pg_class'::regclass and d.objid = c.oid and d.deptype = 'e'
            and d.refclassid = 'pg_catalog.pg_extension'::regclass) as extension,
    coalesce((select array_agg(a.attname::text order by a.attnum) from pg_catalog.pg_attribute a
        where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped), '{}') as columns,
    coalesce((select array_agg(a.attname::text order by a.attnum) from pg_catalog.pg_attribute a
        where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and a.attnotnull
            and not exists (select from pg_catalog.pg_constraint o where o.conrelid = c.oid and o.contype = 'n'
                and not o.convalidated and a.attnum = any(o.conkey))), '{}') as not_null,
    coalesce((select json_object_agg(a.attname, b.typname) from pg_catalog.pg_attribute a
        join base on base.oid = a.atttypid
        join pg_catalog.pg_type b on b.oid = base.bottom and b.typnamespace = 'pg_catalog'::regnamespace
        where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
            and b.typname in ('date', 'timestamp', 'timestamptz')), '{}') as times,
    coalesce((select json_agg(json_build_object('name', x.relname, 'primary', i.indisprimary, 'unique', i.indisunique,
            'whole', i.indpred is null and i.indisvalid and i.indisready and i.indislive,
            'columns', (select json_agg(a.attname order by k.place)
                from unnest(i.indkey::int2[]) with ordinality as k(number, place)
                join pg_catalog.pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.number
                where k.place <= i.indnkeyatts))
            order by i.indisprimary desc, x.relname)
        from pg_catalog.pg_index i join pg_catalog.pg_class x on x.oid = i.indexrelid
        where i.indrelid = c.oid and i.indexprs is null), '[]') as indexes
from pg_catalog.pg_class c
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where n.nspname = any(%(schemas)s::text[]) and c.relkind in ('r', 'v', 'm', 'p', 'f') and not c.relispartition
order by pg_catalog.array_position(%(schemas)s::text[], n.nspname::text), c.relname::text collate "C"
"""

_LISTED = _LISTED_NAMES + ACCESS + _LISTED_FACTS

_SCHEMAS = """
select n.nspname::text, exists (select from pg_catalog.pg_class c
    where c.relnamespace = n.oid and c.relkind in ('r', 'p') and not c.relispartition)
from pg_catalog.pg_namespace n
where n.nspname !~ '^pg_' and n.nspname <> 'information_schema' and n.nspname not in ('_millrace', '_millrace_stage')
order by n.nspname collate "C"
"""


@dataclass(frozen=True, slots=True)
class ListedIndex:
    """An index over columns; `whole`: valid and not partial."""

    name: str
    columns: tuple[str, ...]
    unique: bool
    primary: bool
    whole: bool


@dataclass(frozen=True, slots=True)
class Listed:
    """A table, view, materialized view, partitioned or foreign table in a list; partitions stand in none.

    Attributes:
        kind: `r`, `v`, `m`, `p`, `f` as in `pg_class.relkind`.
        visible: whether the search path finds it by its bare name.
        usable, readable: whether the user may use its schema and read all its columns.
        policies: whether row-level security would hide rows.
        has_children: whether partitions or inheriting tables belong to it.
        extension: the extension that it is part of, or None.
        not_null: columns that certainly hold no null.
        times: columns of type `date`, `timestamp` or `timestamptz`, with that type; domains resolved.
        indexes: those without expressions, the primary key first.
    """

    schema_name: str
    name: str
    kind: RelationKind
    visible: bool
    usable: bool
    readable: bool
    policies: bool
    has_children: bool
    extension: str | None
    columns: tuple[str, ...]
    not_null: frozenset[str]
    times: Mapping[str, str]
    indexes: tuple[ListedIndex, ...]

    @property
    def ref(self) -> TableRef:
        """The full name."""
        return TableRef(self.schema_name, self.name)


def relations(connection: Connection, schemas: Sequence[str], *, label: str) -> tuple[Listed, ...]:
    """List everything in some schemas that a SELECT could read, by schema and name, in one look.

    Args:
        connection: pinned by `session.connect`.
        schemas: exact names, in the order wanted.
        label: what messages call the database.

    Raises:
        NotFound: there is no such schema, or no table in any of them; the hint names schemas with tables.
    """
    with translated(label, "list the tables", connection=connection):
        known: dict[str, bool] = dict(connection.execute(_SCHEMAS).fetchall())
        with connection.cursor(row_factory=dict_row) as cursor:
            rows = cursor.execute(_LISTED, {"schemas": list(schemas)}).fetchall()
    found = tuple(_listed(row) for row in rows)
    filled = [schema for schema, has_tables in known.items() if has_tables and schema not in schemas]
    others = f"schemas with tables: {', '.join(map(sql_name, filled))}" if filled else None
    for schema in schemas:
        if schema not in known and not any(one.schema_name == schema for one in found):
            hint = nearest(schema, list(known)) or others
            raise NotFound(f"there is no schema {sql_name(schema)}", where=label, hint=hint)
    if not found:
        names = ", ".join(map(sql_name, schemas))
        what = f"there is no table in {'schema' if len(schemas) == 1 else 'schemas'} {names}"
        raise NotFound(what, where=label, hint=others)
    return found


def _listed(row: dict[str, Any]) -> Listed:
    indexes = tuple(
        ListedIndex(one["name"], tuple(one["columns"] or ()), one["unique"], one["primary"], one["whole"])
        for one in row["indexes"]
    )
    found = {**row, "columns": tuple(row["columns"]), "not_null": frozenset(row["not_null"]), "indexes": indexes}
    return Listed(**found)
