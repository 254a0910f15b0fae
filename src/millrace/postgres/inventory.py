"""What a whole database holds: its tables with their sizes, what is no table, and the foreign keys between tables.

Left out of sight: system schemas, Millrace's own, temporary tables, partitions (their table stands for them) and what
belongs to an extension.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import Any, Literal

import psycopg
from psycopg import sql
from psycopg.rows import class_row, dict_row

from millrace.core.names import TableRef
from millrace.errors import MillraceError
from millrace.postgres.catalog import ACCESS, refusal
from millrace.postgres.session import Connection, translate, translated

_HELD = """ current_user::text as user,
    n.nspname::text as schema_name, c.relname::text as name, c.relkind::text as kind,
    case when c.relkind = 'p' then (select coalesce(sum(greatest(l.reltuples, 0)), 0)::int8
            from pg_catalog.pg_partition_tree(c.oid) t join pg_catalog.pg_class l on l.oid = t.relid where t.isleaf)
        when c.reltuples >= 0 then c.reltuples::int8 end as rows,
    case c.relkind when 'r' then pg_catalog.pg_table_size(c.oid)
        when 'p' then (select coalesce(sum(pg_catalog.pg_table_size(t.relid)), 0)::int8
            from pg_catalog.pg_partition_tree(c.oid) t where t.isleaf) else 0 end as bytes,
    exists (select from pg_catalog.pg_index i where i.indrelid = c.oid and i.indisprimary) as keyed
from pg_catalog.pg_class c
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where c.relkind in ('r', 'p', 'v', 'm', 'f', 'S') and not c.relispartition and c.relpersistence <> 't'
    and n.nspname !~ '^(pg_|_millrace)' and n.nspname <> 'information_schema'
    and not exists (select from pg_catalog.pg_depend d
        where d.classid = 'pg_catalog.pg_class'::regclass and d.objid = c.oid
            and (d.deptype = 'e' or c.relkind = 'S' and d.deptype in ('a', 'i')))
order by n.nspname collate "C", c.relname collate "C"
"""
_SELECT = "select "
_HOLDINGS = _SELECT + ACCESS + _HELD

_FOREIGN_KEYS = """
select o.conname::text as name, n.nspname::text as schema_name, c.relname::text as table_name,
    rn.nspname::text as other_schema, r.relname::text as other_name,
    (select array_agg(a.attname::text order by k.place) from unnest(o.conkey) with ordinality as k(number, place)
        join pg_catalog.pg_attribute a on a.attrelid = o.conrelid and a.attnum = k.number) as columns,
    (select array_agg(a.attname::text order by k.place) from unnest(o.confkey) with ordinality as k(number, place)
        join pg_catalog.pg_attribute a on a.attrelid = o.confrelid and a.attnum = k.number) as other_columns,
    o.confupdtype::text as on_update, o.confdeltype::text as on_delete, o.confmatchtype::text as match,
    o.condeferrable as deferrable, o.condeferred as deferred, o.convalidated as valid,
    (to_jsonb(o)->>'confdelsetcols') is null as whole
from pg_catalog.pg_constraint o
join pg_catalog.pg_class c on c.oid = o.conrelid join pg_catalog.pg_namespace n on n.oid = c.relnamespace
join pg_catalog.pg_class r on r.oid = o.confrelid join pg_catalog.pg_namespace rn on rn.oid = r.relnamespace
where o.contype = 'f' and o.conparentid = 0
order by 2, 3, 1
"""
_ACTIONS = {
    "a": sql.SQL("no action"),
    "r": sql.SQL("restrict"),
    "c": sql.SQL("cascade"),
    "n": sql.SQL("set null"),
    "d": sql.SQL("set default"),
}


@dataclass(frozen=True, slots=True)
class Holding:
    """A table, or something that is none.

    Attributes:
        kind: as in `pg_class.relkind`: `r` and `p` are tables; `v`, `m`, `f` and `S`equences without a column are not.
        rows: estimated rows, or None where the table was never analyzed.
        bytes: on disk, without indexes.
        keyed: whether it has a primary key.
        refused: why it may not be read, or not all of it; None where it may.
    """

    schema_name: str
    name: str
    kind: Literal["r", "p", "v", "m", "f", "S"]
    rows: int | None
    bytes: int
    keyed: bool
    refused: MillraceError | None

    @property
    def ref(self) -> TableRef:
        """The full name."""
        return TableRef(self.schema_name, self.name)

    @property
    def table(self) -> bool:
        """Whether it is a table."""
        return self.kind in ("r", "p")


def holdings(connection: Connection, label: str) -> list[Holding]:
    """List what a database holds, by schema and name, as the connection's transaction sees it."""
    with (
        translated(label, "list the tables", connection=connection),
        connection.cursor(row_factory=dict_row) as cursor,
    ):
        rows = cursor.execute(_HOLDINGS).fetchall()
    return [_holding(row, label) for row in rows]


def _holding(row: dict[str, Any], label: str) -> Holding:
    said = {field.name: row[field.name] for field in fields(Holding) if field.name in row}
    return Holding(**said, refused=refusal(row, TableRef(row["schema_name"], row["name"]), label))


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """A foreign key of a table, as `pg_constraint` has it.

    Attributes:
        whole: False where ON DELETE sets only some of its columns.
    """

    name: str
    schema_name: str
    table_name: str
    other_schema: str
    other_name: str
    columns: list[str]
    other_columns: list[str]
    on_update: str
    on_delete: str
    match: str
    deferrable: bool
    deferred: bool
    valid: bool
    whole: bool

    @property
    def ref(self) -> TableRef:
        """The table that refers."""
        return TableRef(self.schema_name, self.table_name)

    @property
    def other(self) -> TableRef:
        """The table that is referred to."""
        return TableRef(self.other_schema, self.other_name)

    def statement(self, table: TableRef, other: TableRef) -> sql.Composed:
        """Return what makes it between two tables."""
        words = [sql.SQL("match full")] if self.match == "f" else []
        words += [sql.SQL("on update "), _ACTIONS[self.on_update], sql.SQL("on delete "), _ACTIONS[self.on_delete]]
        if self.deferrable:
            words.append(sql.SQL("deferrable initially deferred" if self.deferred else "deferrable"))
        if not self.valid:
            words.append(sql.SQL("not valid"))
        return sql.SQL("alter table {} add constraint {} foreign key ({}) references {} ({}) {}").format(
            _identifier(table),
            sql.Identifier(self.name),
            sql.SQL(", ").join(map(sql.Identifier, self.columns)),
            _identifier(other),
            sql.SQL(", ").join(map(sql.Identifier, self.other_columns)),
            sql.SQL(" ").join(words),
        )


def _identifier(table: TableRef) -> sql.Identifier:
    return sql.Identifier(table.schema or "", table.name)


def foreign_keys(connection: Connection, tables: Collection[TableRef], label: str) -> list[ForeignKey]:
    """List the foreign keys of some tables, whatever they refer to."""
    with (
        translated(label, "list the foreign keys", connection=connection),
        connection.cursor(row_factory=class_row(ForeignKey)) as cursor,
    ):
        return [key for key in cursor.execute(_FOREIGN_KEYS).fetchall() if key.ref in tables]


def make_foreign_key(
    connection: Connection, key: ForeignKey, table: TableRef, other: TableRef, label: str
) -> MillraceError | None:
    """Make a foreign key unless one of its name is there; returns why it could not be made, or None."""
    known = connection.execute(
        "select from pg_catalog.pg_constraint where conname = %s and conrelid = %s::pg_catalog.regclass",
        (key.name, _identifier(table).as_string(connection)),
    ).fetchone()
    if known is not None:
        return None
    try:
        connection.execute(key.statement(table, other))
    except psycopg.Error as error:
        return translate(error, where=label, doing=f"make the foreign key {key.name} of {table}")
    return None
