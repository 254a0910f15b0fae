"""The catalogue: tables, their columns, keys and indexes, as the server knows them.

Names are matched exactly against the catalogue and passed as parameters; nothing is folded or unquoted here
(`TableRef.parse` has done that).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from psycopg import sql
from psycopg.rows import class_row, dict_row

from millrace.core.names import TableRef
from millrace.core.schema import Column, Kind, Schema, decimal_of
from millrace.errors import NotFound, PermissionMissing, did_you_mean
from millrace.postgres.names import sql_name
from millrace.postgres.session import Connection, bare_path, prepared, translated
from millrace.postgres.sqlstates import grant, row_security_error
from millrace.postgres.traits import read_traits

RelationKind = Literal["r", "v", "m", "p", "f"]
KIND_WORDS = {"r": "table", "v": "view", "m": "materialized view", "p": "partitioned table", "f": "foreign table"}
LONGEST_NAME = 63  # bytes; PostgreSQL cuts longer names
NEAREST_OF = 5_000  # names looked through for "did you mean"


@dataclass(frozen=True, slots=True)
class Refusal:
    """What makes a row of a source one to set aside.

    Attributes:
        column: the column that it is about, as the source has it.
        bad: the predicate of such rows.
        why: what follows the value in the reason; empty: the column is new.
    """

    column: PgColumn
    bad: sql.Composable
    why: str = ""


@dataclass(frozen=True, slots=True)
class PgColumn:
    """One column of a table, or of a query's result.

    Attributes:
        name: unquoted.
        number: attnum, or the place in the query's result from 1.
        type: declared type as SQL writes it (`format_type`): `numeric(12,2)`, `public.mood`, `integer[]`.
        type_oid: of the declared type, on this server.
        typname, typnamespace, typtype, category: of the declared type (`pg_type`); typtype `b`, `c`omposite,
            `d`omain, `e`num, `r`ange, `m`ultirange.
        base_type: as `type`, a domain resolved to what it stands for; else equal to `type`.
        base_name, base_namespace, base_typtype: `pg_type` of the base type.
        element_name, element_namespace: of an array's elements, else "".
        not_null: whether the column is NOT NULL.
        identity: `a`lways, by `d`efault or "".
        generated: `s`tored, `v`irtual or "".
        default: the default's expression (not of generated columns), or None.
        generation: a generated column's expression, or None.
        collation: `schema.name` as SQL writes it where it is not the type's default, else None.
        collation_deterministic: False for an ICU collation under which different texts are equal.
        encode: whether the server's encoding is not UTF8, so that text must be converted before it is hashed.
        sendable: whether the type has binary send and receive functions.
        expression: what stands for its value when it is not read as it is: see `convert`.
        refused: rows to set aside, for this column or for new ones of the table.
        lost: the predicate of values that become null, where a contract says so.
    """

    name: str
    number: int
    type: str
    type_oid: int
    typname: str
    typnamespace: str
    typtype: str
    category: str
    base_type: str
    base_name: str
    base_namespace: str
    base_typtype: str
    element_name: str = ""
    element_namespace: str = ""
    not_null: bool = False
    identity: str = ""
    generated: str = ""
    default: str | None = None
    generation: str | None = None
    collation: str | None = None
    collation_deterministic: bool = True
    encode: bool = False
    sendable: bool = True
    expression: sql.Composable | None = None
    refused: tuple[Refusal, ...] = ()
    lost: sql.Composable | None = None

    @property
    def value(self) -> sql.Composable:
        """What is read of it, for building SQL."""
        return self.identifier if self.expression is None else self.expression

    @property
    def array(self) -> bool:
        """Whether it holds arrays (also by a domain over one)."""
        return bool(self.element_name)

    @property
    def identifier(self) -> sql.Identifier:
        """The column's name for building SQL."""
        return sql.Identifier(self.name)

    def column(self) -> Column:
        """Return the portable column."""
        from millrace.postgres import types

        kind = types.kind(self)
        precision, scale = (decimal_of(self.base_type) or (0, 0)) if kind is Kind.DECIMAL else (0, 0)
        return Column(self.name, self.type, kind, not self.not_null, precision, scale, types.hashed(self))


@dataclass(frozen=True, slots=True)
class Index:
    """An index: `columns` are its key columns, empty when one is an expression; `definition` is `pg_get_indexdef`."""

    name: str
    definition: str
    columns: tuple[str, ...]
    unique: bool
    primary: bool
    partial: bool
    valid: bool
    immediate: bool
    constraint: str | None
    nulls_not_distinct: bool


@dataclass(frozen=True, slots=True)
class Relation:
    """A table, view, materialized view, partitioned or foreign table.

    Attributes:
        kind: `r`, `v`, `m`, `p`, `f` as in `pg_class.relkind`.
        rows: estimated rows; -1 when nothing is known (views, foreign tables).
        pages: heap pages of 8 kB now; 0 where there is no heap of its own.
        paged: whether it can be split by heap pages: one heap, no children.
        persistence: `p`ermanent, `u`nlogged, `t`emporary.
        database, user: where and as whom it was described.
        traits: what its values depend on besides its rows: see `traits`.
    """

    oid: int
    schema_name: str
    name: str
    kind: RelationKind
    columns: tuple[PgColumn, ...]
    primary_key: tuple[str, ...]
    rows: int
    pages: int
    paged: bool
    indexes: tuple[Index, ...] = ()
    persistence: str = "p"
    owner: str = ""
    comment: str | None = None
    database: str = ""
    user: str = ""
    traits: tuple[str, ...] = ()

    @property
    def ref(self) -> TableRef:
        """The table's full name."""
        return TableRef(self.schema_name, self.name)

    @property
    def identifier(self) -> sql.Identifier:
        """The table's full name for building SQL."""
        return sql.Identifier(self.schema_name, self.name)

    @property
    def names(self) -> tuple[str, ...]:
        """The columns' names in order."""
        return tuple(column.name for column in self.columns)

    def schema(self) -> Schema:
        """Return the portable schema, with the primary key."""
        return Schema(tuple(column.column() for column in self.columns), self.primary_key)

    def __getitem__(self, name: str) -> PgColumn:
        for column in self.columns:
            if column.name == name:
                return column
        raise missing_column(name, self.names, str(self.ref))

    def pick(self, names: Sequence[str]) -> tuple[PgColumn, ...]:
        """Return columns by name, in that order. Raises NotFound."""
        return tuple(self[name] for name in names)


def missing_column(name: str, known: Sequence[str], where: str) -> NotFound:
    """Return the error for a column that does not exist, with the nearest name."""
    return NotFound(f"{where} has no column {sql_name(name)}", where=where, hint=nearest(name, known))


def nearest(name: str, known: Sequence[str]) -> str | None:
    """Return a sentence about the known name that was probably meant, or None."""
    same = [other for other in known if other.lower() == name.lower()]
    if same:
        return f"only upper and lower case differ: it is {sql_name(same[0])}"
    return did_you_mean(name, known)


ACCESS = """    pg_catalog.has_schema_privilege(n.oid, 'USAGE') as usable,
    pg_catalog.has_table_privilege(c.oid, 'SELECT')
        or (select pg_catalog.bool_and(pg_catalog.has_column_privilege(c.oid, a.attnum, 'SELECT'))
            from pg_catalog.pg_attribute a
            where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped) as readable,
    pg_catalog.row_security_active(c.oid) as policies,"""

_RELATION_FACTS = """
select c.oid::int8 as oid, n.nspname::text as schema_name, c.relname::text as name, c.relkind::text as kind,
    c.reltuples::float8 as tuples, c.relpages::int8 as known_pages, c.relpersistence::text as persistence,
    r.rolname::text as owner, pg_catalog.obj_description(c.oid, 'pg_class') as comment,
    c.relkind in ('r', 'm') and coalesce(m.amname = 'heap', false)
        and not exists (select from pg_catalog.pg_inherits i where i.inhparent = c.oid) as paged,
    case when c.relkind in ('r', 'm')
        then pg_catalog.pg_relation_size(c.oid) / pg_catalog.current_setting('block_size')::int8 else 0 end as pages,
    (select sum(greatest(l.reltuples, 0))::float8 from pg_catalog.pg_partition_tree(c.oid) as leaf
        join pg_catalog.pg_class l on l.oid = leaf.relid where leaf.isleaf) as leaf_tuples,
"""

_RELATION_FROM = """
    pg_catalog.current_database()::text as database, current_user::text as user
from pg_catalog.pg_class c
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
join pg_catalog.pg_roles r on r.oid = c.relowner
left join pg_catalog.pg_am m on m.oid = c.relam
where c.relname = $1 and c.relkind in ('r', 'v', 'm', 'p', 'f')
    and case when $2::text is null then pg_catalog.pg_table_is_visible(c.oid) else n.nspname = $2 end
"""

_RELATION = _RELATION_FACTS + ACCESS + _RELATION_FROM

_TABLE_COLUMNS = """
with recursive a as (
    select a.attnum::int4 as number, a.attname::text as name, a.atttypid as typ, a.atttypmod as typmod,
        -- PostgreSQL 18 has NOT NULL constraints that are not valid: nulls may be there
        a.attnotnull and not exists (select from pg_catalog.pg_constraint o where o.conrelid = a.attrelid
            and o.contype = 'n' and not o.convalidated and a.attnum = any(o.conkey)) as not_null,
        a.attidentity::text as identity, a.attgenerated::text as generated,
        case when a.attgenerated = '' then pg_catalog.pg_get_expr(d.adbin, d.adrelid) end as default,
        case when a.attgenerated <> '' then pg_catalog.pg_get_expr(d.adbin, d.adrelid) end as generation,
        a.attcollation as collation
    from pg_catalog.pg_attribute a
    left join pg_catalog.pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
    where a.attrelid = $1 and a.attnum > 0 and not a.attisdropped
)"""

_QUERY_COLUMNS = """
with recursive a as (
    select q.number::int4 as number, q.name, q.typ, q.typmod, false as not_null, '' as identity, '' as generated,
        null::text as default, null::text as generation, q.coll as collation
    from unnest(%(names)s::text[], %(types)s::oid[], %(mods)s::int4[], %(collations)s::oid[])
        with ordinality as q(name, typ, typmod, coll, number)
)"""

# A domain over a domain is followed down; PostgreSQL allows a modifier only at the lowest.
_TYPE_FACTS = """, chain as (
    select a.number, a.typ as oid, a.typmod, 0 as depth from a
    union all
    select chain.number, t.typbasetype, t.typtypmod, chain.depth + 1
    from chain join pg_catalog.pg_type t on t.oid = chain.oid where t.typtype = 'd'
), base as (
    select distinct on (number) number, oid, typmod from chain order by number, depth desc
)
select a.name, a.number, pg_catalog.format_type(a.typ, a.typmod) as type, a.typ::int8 as type_oid,
    t.typname::text as typname, tn.nspname::text as typnamespace, t.typtype::text as typtype,
    t.typcategory::text as category, pg_catalog.format_type(base.oid, base.typmod) as base_type,
    b.typname::text as base_name, bn.nspname::text as base_namespace, b.typtype::text as base_typtype,
    coalesce(e.typname::text, '') as element_name, coalesce(en.nspname::text, '') as element_namespace,
    a.not_null, a.identity, a.generated, a.default, a.generation,
    case when a.collation <> t.typcollation then
        pg_catalog.quote_ident(cn.nspname) || '.' || pg_catalog.quote_ident(c.collname) end as collation,
    coalesce(c.collisdeterministic, true) as collation_deterministic,
    pg_catalog.getdatabaseencoding() <> 'UTF8' as encode,
    b.typsend <> 0 and b.typreceive <> 0 as sendable
from a
join base using (number)
join pg_catalog.pg_type t on t.oid = a.typ
join pg_catalog.pg_namespace tn on tn.oid = t.typnamespace
join pg_catalog.pg_type b on b.oid = base.oid
join pg_catalog.pg_namespace bn on bn.oid = b.typnamespace
left join pg_catalog.pg_type e on e.oid = b.typelem and b.typcategory = 'A'
left join pg_catalog.pg_namespace en on en.oid = e.typnamespace
left join pg_catalog.pg_collation c on c.oid = a.collation
left join pg_catalog.pg_namespace cn on cn.oid = c.collnamespace
order by a.number
"""

_INDEXES = """
select c.relname::text as name, pg_catalog.pg_get_indexdef(i.indexrelid) as definition,
    coalesce((select array_agg(a.attname::text order by k.place)
        from unnest(i.indkey::int2[]) with ordinality as k(number, place)
        join pg_catalog.pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.number
        where k.place <= i.indnkeyatts and i.indexprs is null), '{}') as columns,
    i.indisunique as unique, i.indisprimary as primary, i.indpred is not null as partial,
    i.indisvalid and i.indisready and i.indislive as valid, i.indimmediate as immediate,
    o.conname::text as constraint,
    coalesce((to_jsonb(i)->>'indnullsnotdistinct')::bool, false) as nulls_not_distinct
from pg_catalog.pg_index i
join pg_catalog.pg_class c on c.oid = i.indexrelid
left join pg_catalog.pg_constraint o on o.conindid = i.indexrelid and o.conrelid = i.indrelid
    and o.contype in ('p', 'u', 'x')
where i.indrelid = $1
order by i.indisprimary desc, c.relname
"""

_NAMES = """
select n.nspname::text, c.relname::text from pg_catalog.pg_class c
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where c.relkind in ('r', 'v', 'm', 'p', 'f') and n.nspname not in ('pg_catalog', 'information_schema', 'pg_toast')
order by n.nspname = coalesce(%(schema)s, 'public') desc, 1, 2 limit %(limit)s
"""


def describe(connection: Connection, table: TableRef, *, label: str, readable: bool = True) -> Relation:
    """Describe a table, view, materialized view, partitioned or foreign table.

    Args:
        connection: pinned by `session.connect`.
        table: without a schema the server's search path decides.
        label: what messages call the database.
        readable: whether all of it must be readable; False where only its existence matters.

    Raises:
        NotFound: no such table; the hint has the nearest names.
        PermissionMissing: it cannot be read, or row-level security would hide rows of it.
    """
    relation = find(connection, table, label=label, readable=readable)
    if relation is None:
        raise _not_found(connection, table, label)
    return relation


def find(connection: Connection, table: TableRef, *, label: str, readable: bool = True) -> Relation | None:
    """Describe a table as `describe` does, or return None when there is none."""
    found = _find(connection, table, label)
    if found is None:
        return None
    ref = TableRef(found["schema_name"], found["name"])
    if readable and (problem := refusal(found, ref, label)) is not None:
        raise problem
    columns = _columns_of_table(connection, found["oid"], label)
    if any(column.generated for column in columns):
        columns = _generations(connection, found["oid"], columns, label)
    with translated(label, f"describe {ref}", connection=connection):
        with connection.cursor(row_factory=dict_row) as cursor:
            query = prepared(connection, "millrace_indexes", _INDEXES, found["oid"])
            rows = cursor.execute(query).fetchall()
        indexes = tuple(Index(**{**row, "columns": tuple(row["columns"])}) for row in rows)
        count = _estimate(connection, found, ref) if readable else _known_rows(found)
        traits = read_traits(connection, found["oid"], found["paged"], columns)
    return Relation(
        oid=found["oid"],
        schema_name=ref.schema or "",
        name=ref.name,
        kind=found["kind"],
        columns=columns,
        primary_key=next((index.columns for index in indexes if index.primary), ()),
        rows=-1 if count is None else count,
        pages=found["pages"],
        paged=found["paged"],
        indexes=indexes,
        persistence=found["persistence"],
        owner=found["owner"],
        comment=found["comment"],
        database=found["database"],
        user=found["user"],
        traits=traits,
    )


def exists(connection: Connection, table: TableRef, *, label: str) -> bool:
    """Return whether a table of that name exists, readable or not."""
    return _find(connection, table, label) is not None


def columns_of_query(connection: Connection, query: sql.Composable, *, label: str) -> tuple[PgColumn, ...]:
    """Return the columns of a query's result without running it to the end.

    Args:
        connection: pinned by `session.connect`.
        query: a SELECT; nothing else may stand in it (see `source.check_select`).
        label: what messages call the database.

    Raises:
        NotFound, PermissionMissing, MillraceError: the server's words, when it refuses the query.
    """
    empty = sql.SQL("select * from (\n{}\n) as q limit 0").format(query)
    with translated(label, "describe the query", connection=connection):
        result = connection.execute(empty).pgresult
    assert result is not None  # noqa: S101 (a SELECT that did not raise has a result)
    number = range(result.nfields)
    names = [(result.fname(i) or b"").decode() for i in number]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise NotFound(
            f"the query gives the column {sql_name(twice[0])} more than once",
            where=label,
            hint="name the columns apart: select a.id, b.id as b_id …",
        )
    types, mods = [result.ftype(i) for i in number], [result.fmod(i) for i in number]
    return columns_of_types(connection, names, types, mods, [0] * len(names), label=label)


def columns_of_types(
    connection: Connection,
    names: Sequence[str],
    types: Sequence[int],
    mods: Sequence[int],
    collations: Sequence[int],
    *,
    label: str,
) -> tuple[PgColumn, ...]:
    """Return columns of some types: by name, type's OID, modifier (-1: none) and collation's OID (0: none)."""
    facts = {"names": list(names), "types": list(types), "mods": list(mods), "collations": list(collations)}
    with (
        translated(label, "read the catalogue", connection=connection),
        connection.cursor(row_factory=class_row(PgColumn)) as cursor,
    ):
        return tuple(cursor.execute(_QUERY_COLUMNS + _TYPE_FACTS, facts).fetchall())


def _columns_of_table(connection: Connection, oid: int, label: str) -> tuple[PgColumn, ...]:
    with (
        translated(label, "read the catalogue", connection=connection),
        connection.cursor(row_factory=class_row(PgColumn)) as cursor,
    ):
        query = prepared(connection, "millrace_columns", _TABLE_COLUMNS + _TYPE_FACTS, oid)
        return tuple(cursor.execute(query).fetchall())


def _generations(connection: Connection, oid: int, columns: tuple[PgColumn, ...], label: str) -> tuple[PgColumn, ...]:
    """Return the columns with expressions in which every name has its schema: they are run on another server."""
    query = (
        "select d.adnum, pg_catalog.pg_get_expr(d.adbin, d.adrelid) from pg_catalog.pg_attrdef d where d.adrelid = %s"
    )
    with translated(label, "read the catalogue", connection=connection), bare_path(connection):
        found: dict[int, str] = dict(connection.execute(query, (oid,)).fetchall())
    return tuple(replace(one, generation=found[one.number]) if one.generated else one for one in columns)


def _find(connection: Connection, table: TableRef, label: str) -> dict[str, Any] | None:
    if "\0" in table.name or "\0" in (table.schema or ""):
        return None
    with (
        translated(label, f"look for {table}", connection=connection),
        connection.cursor(row_factory=dict_row) as cursor,
    ):
        return cursor.execute(prepared(connection, "millrace_relation", _RELATION, table.name, table.schema)).fetchone()


def _not_found(connection: Connection, table: TableRef, label: str) -> NotFound:
    what = f"there is no table {table} in {label}"
    if len(table.name.encode()) > LONGEST_NAME:
        return NotFound(what, where=label, hint=f"PostgreSQL's names have at most {LONGEST_NAME} bytes")
    with translated(label, f"look for {table}", connection=connection):
        schema = (table.schema or "").replace("\0", "") or None
        rows = connection.execute(_NAMES, {"schema": schema, "limit": NEAREST_OF}).fetchall()
    here = [name for schema, name in rows if schema == (table.schema or "public")]
    elsewhere = [schema for schema, name in rows if name == table.name]
    if elsewhere:
        return NotFound(what, where=label, hint=f"it is in another schema: {sql_name(elsewhere[0], table.name)}")
    same = [name for name in here if name.lower() == table.name.lower()]
    if same:
        full = sql_name(table.schema or "public", same[0])
        return NotFound(what, where=label, hint=f"only upper and lower case differ: it is {full}")
    if table.schema is not None and not here:
        schemas = sorted({schema for schema, _ in rows})
        hint = nearest(table.schema, schemas)
        return NotFound(
            what, where=label, hint=f"schema {sql_name(table.schema)} has no tables" + (f"; {hint}" if hint else "")
        )
    known = {str(TableRef(schema, name)): (schema, name) for schema, name in rows}
    near = did_you_mean(table.name, here) or did_you_mean(str(table), list(known))
    return NotFound(what, where=label, hint=near)


def refusal(found: Mapping[str, Any], ref: TableRef, label: str) -> PermissionMissing | None:
    """Return why a table may not be read, or not all of it, by what `ACCESS` asks and `user`; None where it may."""
    user = found["user"]
    if not found["usable"]:
        return PermissionMissing(
            f"{user} may not use schema {ref.schema}",
            where=label,
            hint=grant("USAGE", "schema", sql_name(ref.schema or ""), user),
        )
    if not found["readable"]:
        return PermissionMissing(
            f"{user} may not read {ref}",
            where=label,
            hint=grant("SELECT", "table", sql_name(ref.schema or "", ref.name), user),
        )
    return row_security_error(str(ref), user, where=label) if found["policies"] else None


def _known_rows(found: dict[str, Any]) -> int | None:
    """Return the estimate that needs no look into the table: the planner's way, density times pages of now."""
    if found["kind"] in ("p", "r") and found["leaf_tuples"] is not None and not found["paged"]:
        return int(found["leaf_tuples"])
    if found["pages"] == 0 and found["kind"] in ("r", "m"):
        return 0
    if found["tuples"] >= 0 and found["known_pages"] > 0:
        pages = found["pages"] or found["known_pages"]
        return int(found["tuples"] / found["known_pages"] * pages)
    return None


SAMPLED_PAGES = 32  # of a table that was never analyzed: 256 kB, read in a millisecond


def _estimate(connection: Connection, found: dict[str, Any], ref: TableRef) -> int | None:
    known = _known_rows(found)
    if known is not None or not found["paged"]:
        return known
    query = sql.SQL("select count(*) from only {} where ctid < {}::tid").format(
        sql.Identifier(ref.schema or "", ref.name), sql.Literal(f"({SAMPLED_PAGES},0)")
    )
    row = connection.execute(query).fetchone()
    sampled = row[0] if row else 0
    return int(sampled * max(1.0, found["pages"] / SAMPLED_PAGES))
