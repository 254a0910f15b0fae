"""A table's portrait: all that the catalogue knows of it, so that two can be told to be the same; and who needs it.

What the catalogue's rows hold is compared whole, but for the numbers that are a table's own (`_OWN`): what a newer
server adds is compared too, without being known here.
"""

from __future__ import annotations

import json
from typing import Any

from millrace.core.names import fingerprint
from millrace.postgres.session import Connection, bare_path

# Numbers of the object itself, and what changes by itself. A column's place counts dropped ones.
_OWN = {
    "class": "oid relname relnamespace reltype relfilenode relpages reltuples relallvisible relallfrozen reltoastrelid "
    "relfrozenxid relminmxid relnatts relacl relhasindex relhastriggers relhasrules relhassubclass",
    "attribute": "attrelid attnum attcacheoff attndims attmissingval atthasmissing attacl",
    "constraint": "oid connamespace conrelid conindid conkey confdelsetcols conbin",
    "index": "indexrelid indrelid indkey indexprs indpred indcheckxmin",
    "trigger": "oid tgrelid tgattr tgqual tgconstraint tgconstrindid",
    "sequence": "seqrelid",
}

_PORTRAIT = """
select jsonb_build_object(
    'table', to_jsonb(c) - %(class)s::text[],
    'toast', (select to_jsonb(t.reloptions) from pg_catalog.pg_class t where t.oid = c.reltoastrelid),
    'rights', (select jsonb_agg(to_jsonb(r) order by r.grantee, r.privilege_type, r.grantor) from
        pg_catalog.aclexplode(coalesce(c.relacl, pg_catalog.acldefault('r', c.relowner))) r),
    'comment', pg_catalog.obj_description(c.oid, 'pg_class'),
    'columns', (select jsonb_agg((to_jsonb(a) - %(attribute)s::text[]) || jsonb_build_object(
            'default', pg_catalog.pg_get_expr(d.adbin, d.adrelid),
            'comment', pg_catalog.col_description(a.attrelid, a.attnum),
            'rights', (select jsonb_agg(to_jsonb(r) order by r.grantee, r.privilege_type, r.grantor)
                from pg_catalog.aclexplode(a.attacl) r)) order by a.attnum)
        from pg_catalog.pg_attribute a
        left join pg_catalog.pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
        where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped),
    'sequences', (select jsonb_agg((to_jsonb(s) - %(sequence)s::text[]) || (to_jsonb(q) - %(class)s::text[])
            || jsonb_build_object('name', q.relname, 'schema', q.relnamespace, 'kept', o.deptype, 'column', a.attname,
            'comment', pg_catalog.obj_description(q.oid, 'pg_class'),
            'rights', (select jsonb_agg(to_jsonb(r) order by r.grantee, r.privilege_type, r.grantor) from
                pg_catalog.aclexplode(coalesce(q.relacl, pg_catalog.acldefault('s', q.relowner))) r))
            order by q.relname)
        from pg_catalog.pg_depend o
        join pg_catalog.pg_sequence s on s.seqrelid = o.objid
        join pg_catalog.pg_class q on q.oid = o.objid
        join pg_catalog.pg_attribute a on a.attrelid = o.refobjid and a.attnum = o.refobjsubid
        where o.classid = 'pg_catalog.pg_class'::regclass and o.refclassid = 'pg_catalog.pg_class'::regclass
            and o.refobjid = c.oid and o.deptype in ('a', 'i')),
    'constraints', (select jsonb_agg((to_jsonb(o) - %(constraint)s::text[]) || jsonb_build_object(
            'definition', pg_catalog.pg_get_constraintdef(o.oid),
            'comment', pg_catalog.obj_description(o.oid, 'pg_constraint')) order by o.conname)
        from pg_catalog.pg_constraint o where o.conrelid = c.oid),
    'indexes', (select jsonb_agg((to_jsonb(i) - %(index)s::text[]) || (to_jsonb(x) - %(class)s::text[])
            || jsonb_build_object('name', x.relname, 'definition', pg_catalog.pg_get_indexdef(i.indexrelid),
            'comment', pg_catalog.obj_description(x.oid, 'pg_class'),
            'statistics', (select jsonb_agg(nullif(a.attstattarget, -1) order by a.attnum)
                from pg_catalog.pg_attribute a where a.attrelid = x.oid)) order by x.relname)
        from pg_catalog.pg_index i join pg_catalog.pg_class x on x.oid = i.indexrelid where i.indrelid = c.oid),
    'triggers', (select jsonb_agg((to_jsonb(t) - %(trigger)s::text[]) || jsonb_build_object(
            'definition', pg_catalog.pg_get_triggerdef(t.oid),
            'comment', pg_catalog.obj_description(t.oid, 'pg_trigger')) order by t.tgname)
        from pg_catalog.pg_trigger t where t.tgrelid = c.oid and not t.tgisinternal),
    'internal', (select jsonb_agg(jsonb_build_array(t.tgfoid::int8, t.tgtype, t.tgenabled) order by t.tgfoid, t.tgtype)
        from pg_catalog.pg_trigger t where t.tgrelid = c.oid and t.tgisinternal))
from pg_catalog.pg_class c where c.oid = %(oid)s
"""


def portrait(connection: Connection, oid: int) -> dict[str, Any]:
    """Return all that the catalogue knows of a table: see `_PORTRAIT`; the same for two tables that are the same."""
    values = {name: words.split() for name, words in _OWN.items()}
    with bare_path(connection):
        row = connection.execute(_PORTRAIT, {"oid": oid, **values}).fetchone()
    return {} if row is None else dict(row[0])


def differing(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return the names of the parts in which two portraits differ."""
    return [name for name, value in before.items() if after.get(name) != value]


def print_of(found: dict[str, Any]) -> str:
    """Return a portrait's fingerprint."""
    return fingerprint(json.dumps(found, sort_keys=True))


# Each is a reason not to exchange the table; NULL where it is none. What is not listed here and not replayed by `swap`
# shows in the portrait of the exchanged table.
_AGAINST = """
select reason from pg_catalog.pg_class c, lateral (values
    (case when c.relkind <> 'r' or c.relpersistence <> 'p' or c.reloftype <> 0 or c.relispartition
        then 'it is not a plain table' end),
    (case when exists (select from pg_catalog.pg_inherits i where c.oid in (i.inhrelid, i.inhparent))
        then 'it inherits, or is inherited from' end),
    (case when (select m.amname from pg_catalog.pg_am m where m.oid = c.relam) is distinct from 'heap'
        then 'its rows are not kept in a heap' end),
    (case when c.reltablespace <> 0 or exists (select from pg_catalog.pg_index i
        join pg_catalog.pg_class x on x.oid = i.indexrelid where i.indrelid = c.oid and x.reltablespace <> 0)
        then 'it has a tablespace of its own' end),
    (case when not pg_catalog.pg_has_role(c.relowner, 'USAGE') then 'its owner is '
        || pg_catalog.pg_get_userbyid(c.relowner) end),
    (case when not pg_catalog.has_schema_privilege(c.relnamespace, 'CREATE') then 'the right to create in its schema '
        || 'is missing' end),
    (case when c.relrowsecurity or c.relforcerowsecurity then 'it has row-level security' end),
    ((select 'index ' || x.relname || ' is not valid' from pg_catalog.pg_index i
        join pg_catalog.pg_class x on x.oid = i.indexrelid
        where i.indrelid = c.oid and not (i.indisvalid and i.indisready and i.indislive) limit 1)),
    ((select 'index ' || x.relname || ' has options' from pg_catalog.pg_index i
        join pg_catalog.pg_class x on x.oid = i.indexrelid
        join pg_catalog.pg_constraint o on o.conindid = x.oid and o.conrelid = c.oid
        where i.indrelid = c.oid and x.reloptions is not null limit 1)),
    ((select 'it has the foreign key ' || o.conname from pg_catalog.pg_constraint o
        where o.conrelid = c.oid and o.contype = 'f' order by 1 limit 1)),
    ((select 'constraint ' || o.conname || ' is not valid' from pg_catalog.pg_constraint o
        where o.conrelid = c.oid and not (o.convalidated and o.conislocal and o.coninhcount = 0) order by 1 limit 1)),
    ((select 'trigger ' || t.tgname || ' acts on its rows' from pg_catalog.pg_trigger t where t.tgrelid = c.oid
        and not t.tgisinternal and t.tgenabled in ('O', 'A') and t.tgtype & 28 <> 0 order by 1 limit 1)),
    ((select 'publication ' || p.pubname || ' has it' from pg_catalog.pg_publication_tables p
        where (p.schemaname, p.tablename) = (select n.nspname, c.relname from pg_catalog.pg_namespace n
            where n.oid = c.relnamespace) limit 1)),
    ((select 'a subscription fills it' from pg_catalog.pg_subscription_rel s where s.srrelid = c.oid limit 1)),
    ((select 'replication slot ' || s.slot_name || ' decodes the changes of its rows'
        from pg_catalog.pg_replication_slots s where s.slot_type = 'logical'
            and s.database = pg_catalog.current_database() limit 1)),
    ((select 'it has a security label' from pg_catalog.pg_seclabel s
        where s.classoid = 'pg_catalog.pg_class'::regclass and s.objoid = c.oid limit 1)),
    ((select 'its row type has a comment or rights' from pg_catalog.pg_type t where t.oid = c.reltype
        and (t.typacl is not null or pg_catalog.obj_description(t.oid, 'pg_type') is not null))),
    ((select pg_catalog.pg_get_userbyid(r.grantor) || ' has granted rights on it' from (
            select (pg_catalog.aclexplode(c.relacl)).grantor union all
            select (pg_catalog.aclexplode(a.attacl)).grantor from pg_catalog.pg_attribute a where a.attrelid = c.oid
        ) r where r.grantor <> c.relowner limit 1))
) as found (reason)
where c.oid = %(oid)s and reason is not null
"""

# Whatever depends on the table or on a part of it and is no part itself.
_DEPENDENTS = """
with own (classid, objid) as (
    select 'pg_catalog.pg_class'::regclass::oid, c.oid from pg_catalog.pg_class c
        where %(oid)s in (c.oid, (select t.oid from pg_catalog.pg_class t where t.reltoastrelid = c.oid))
    union all select 'pg_catalog.pg_class'::regclass, i.indexrelid from pg_catalog.pg_index i
        where i.indrelid in (%(oid)s, (select c.reltoastrelid from pg_catalog.pg_class c where c.oid = %(oid)s))
    union all select 'pg_catalog.pg_class'::regclass, o.objid from pg_catalog.pg_depend o
        join pg_catalog.pg_sequence s on s.seqrelid = o.objid
        where o.classid = 'pg_catalog.pg_class'::regclass and o.refclassid = 'pg_catalog.pg_class'::regclass
            and o.refobjid = %(oid)s and o.deptype = 'i'
    union all select 'pg_catalog.pg_type'::regclass, t.oid from pg_catalog.pg_type t
        where t.typrelid = %(oid)s or t.typelem in (select r.oid from pg_catalog.pg_type r where r.typrelid = %(oid)s)
    union all select 'pg_catalog.pg_constraint'::regclass, o.oid from pg_catalog.pg_constraint o
        where o.conrelid = %(oid)s
    union all select 'pg_catalog.pg_attrdef'::regclass, d.oid from pg_catalog.pg_attrdef d where d.adrelid = %(oid)s
    union all select 'pg_catalog.pg_trigger'::regclass, t.oid from pg_catalog.pg_trigger t
        where t.tgrelid = %(oid)s and (not t.tgisinternal
            or t.tgconstraint in (select o.oid from pg_catalog.pg_constraint o where o.conrelid = %(oid)s))
), found as (
    select d.classid, d.objid, d.objsubid from pg_catalog.pg_depend d join own o
        on (o.classid, o.objid) = (d.refclassid, d.refobjid)
    where not exists (select from own x where (x.classid, x.objid) = (d.classid, d.objid))
        -- a sequence that the table owns keeps its place: its ownership moves
        and not (d.deptype = 'a' and d.classid = 'pg_catalog.pg_class'::regclass
            and exists (select from pg_catalog.pg_sequence s where s.seqrelid = d.objid))
    union all select d.refclassid, d.refobjid, d.refobjsubid from pg_catalog.pg_depend d join own o
        on (o.classid, o.objid) = (d.classid, d.objid) where d.deptype not in ('n', 'a', 'i')
)
select coalesce((select case v.relkind when 'v' then 'view ' when 'm' then 'materialized view ' else 'a rule of ' end
        || v.oid::regclass from pg_catalog.pg_rewrite r join pg_catalog.pg_class v on v.oid = r.ev_class
        where f.classid = 'pg_catalog.pg_rewrite'::regclass and r.oid = f.objid),
    pg_catalog.pg_describe_object(f.classid, f.objid, f.objsubid)) || ' depends on it'
from found f order by 1 limit 1
"""


def against(connection: Connection, oid: int) -> str | None:
    """Return why a table may not be exchanged for another of its name, or None.

    Only what is known here and in `swap` may be there; everything else is a reason.
    """
    for query in (_DEPENDENTS, _AGAINST):
        row = connection.execute(query, {"oid": oid}).fetchone()
        if row is not None:
            return str(row[0])
    return None
