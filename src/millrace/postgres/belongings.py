"""What belongs to a table beside columns and key: defaults, sequences, checks, unique constraints, indexes, comments.

Read from the source, made on the full stage of a new table: an index that is built once is cheaper than one that grows.
Expressions are the source's server's own words, printed with an empty search path. What the target cannot make (a
function that it lacks) is left out and said. Foreign keys, triggers and rights are not brought.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from millrace.core.names import TableRef
from millrace.postgres.catalog import Relation
from millrace.postgres.ddl import UNKNOWN, cut
from millrace.postgres.names import sql_name
from millrace.postgres.session import Connection, bare_path, prepared

_FACTS = """
select a.attname::text as name,
    case when a.attgenerated = '' then pg_catalog.pg_get_expr(d.adbin, d.adrelid) end as default,
    case when a.attgenerated <> '' then pg_catalog.pg_get_expr(d.adbin, d.adrelid) end as generation,
    pg_catalog.col_description(a.attrelid, a.attnum) as comment,
    s.seqincrement as increment, s.seqmin as minimum, s.seqmax as maximum, s.seqstart as start, s.seqcache as cache,
    s.seqcycle as cycle, pg_catalog.format_type(s.seqtypid, null) as type,
    coalesce(a.attidentity <> '' or pg_catalog.pg_get_expr(d.adbin, d.adrelid) = 'nextval('
        || pg_catalog.quote_literal(s.seqrelid::regclass::text) || '::regclass)', false) as own
from pg_catalog.pg_attribute a
left join pg_catalog.pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
left join pg_catalog.pg_depend o on o.refclassid = 'pg_catalog.pg_class'::regclass and o.refobjid = a.attrelid
    and o.refobjsubid = a.attnum and o.classid = 'pg_catalog.pg_class'::regclass and o.deptype in ('a', 'i')
    and exists (select from pg_catalog.pg_sequence q where q.seqrelid = o.objid)
left join pg_catalog.pg_sequence s on s.seqrelid = o.objid
where a.attrelid = $1 and a.attnum > 0 and not a.attisdropped order by a.attnum
"""

_CONSTRAINTS = """
select o.conname::text as name, o.contype::text as kind, o.convalidated as valid,
    pg_catalog.pg_get_constraintdef(o.oid) as definition
from pg_catalog.pg_constraint o join pg_catalog.pg_class t on t.oid = o.conrelid
where o.conrelid = $1 and o.contype::text = any($3) and t.relkind <> 'f'
    and not ($2 and (o.contype <> 'c' or o.connoinherit))
order by o.contype, o.conname
"""

# The text of an index after its name and table: both are others in the target.
_INDEXES = """
select name, is_unique, pg_catalog.substr(definition, pg_catalog.length(head) + 1) as rest
from (
    select c.relname::text as name, i.indisunique as is_unique, pg_catalog.pg_get_indexdef(i.indexrelid) as definition,
        'CREATE ' || case when i.indisunique then 'UNIQUE ' else '' end || 'INDEX ' || pg_catalog.quote_ident(c.relname)
        || ' ON ' || case when t.relkind = 'p' then 'ONLY ' else '' end || pg_catalog.quote_ident(n.nspname) || '.'
        || pg_catalog.quote_ident(t.relname) || ' ' as head
    from pg_catalog.pg_index i
    join pg_catalog.pg_class c on c.oid = i.indexrelid
    join pg_catalog.pg_class t on t.oid = i.indrelid
    join pg_catalog.pg_namespace n on n.oid = t.relnamespace
    where i.indrelid = $1 and i.indisvalid and not i.indisprimary and not ($2 and i.indisunique)
        and not exists (select from pg_catalog.pg_constraint o
            where o.conindid = i.indexrelid and o.conrelid = i.indrelid)
) as found
where pg_catalog.starts_with(definition, head) order by name
"""


@dataclass(frozen=True, slots=True)
class Belongings:
    """What a source table has; `columns` by name, as `_FACTS` gives them."""

    columns: dict[str, dict[str, Any]]
    constraints: Sequence[dict[str, Any]] = ()
    indexes: Sequence[dict[str, Any]] = ()
    comment: str | None = None


@dataclass(slots=True)
class Made:
    """What was made in the target.

    Attributes:
        names: of indexes: as they are called while the table is a stage, and as they are to be called.
        left_out: what the target cannot make, each with its server's reason.
    """

    names: list[tuple[str, str]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def read_belongings(source: Connection, relation: Relation, names: Sequence[str]) -> Belongings:
    """Read what belongs to a table, of the columns that are copied.

    Only what holds for all rows: of a table with inheriting ones nothing unique, of a foreign table no check.
    """
    parent = relation.kind == "r" and not relation.paged
    with bare_path(source), source.cursor(row_factory=dict_row) as cursor:
        of_columns = prepared(source, "millrace_column_facts", _FACTS, relation.oid)
        columns = {row["name"]: row for row in cursor.execute(of_columns).fetchall() if row["name"] in names}
        constraints = cursor.execute(_constraints(source, relation, ("c", "u", "x"), parent=parent)).fetchall()
        indexes = cursor.execute(_indexes(source, relation, parent=parent)).fetchall()
    return Belongings(columns, constraints, indexes, relation.comment)


def read_structure(target: Connection, relation: Relation) -> Belongings:
    """Read the constraints and indexes, primary key included, of a table that a stage is to take the place of."""
    with bare_path(target), target.cursor(row_factory=dict_row) as cursor:
        constraints = cursor.execute(_constraints(target, relation, ("c", "p", "u", "x"), parent=False)).fetchall()
        return Belongings({}, constraints, cursor.execute(_indexes(target, relation, parent=False)).fetchall())


def _constraints(connection: Connection, relation: Relation, kinds: Sequence[str], *, parent: bool) -> sql.Composed:
    return prepared(connection, "millrace_constraints", _CONSTRAINTS, relation.oid, parent, list(kinds))


def _indexes(connection: Connection, relation: Relation, *, parent: bool) -> sql.Composed:
    return prepared(connection, "millrace_index_facts", _INDEXES, relation.oid, parent)


def make_belongings(connection: Connection, place: TableRef, found: Belongings) -> Made:
    """Make everything on a full stage, in the connection's transaction.

    Args:
        place: the hidden table; until the publish the names of indexes and sequences are made from its name.

    Raises:
        psycopg.Error: what is not the target's lack of something: a duplicate, a full disk, a lost connection.
    """
    made = Made()
    stage = sql.Identifier(place.schema or "", place.name)
    if not (found.constraints or found.indexes or any(one["own"] or one["default"] for one in found.columns.values())):
        _comments(connection, stage, found)
        return made
    with bare_path(connection):
        _defaults(connection, place, found, made)
        checks = [one for one in found.constraints if one["kind"] == "c"]
        for one in checks:
            _constraint(connection, stage, one, one["name"], made)
        unique = [one for one in found.constraints if one["kind"] != "c"]
        for number, one in enumerate([*unique, *found.indexes], 1):
            name = cut(place.name, f"_i{number}")
            if "rest" in one:
                statement = sql.SQL("create {}index {} on {} {}").format(
                    sql.SQL("unique " if one["is_unique"] else ""), sql.Identifier(name), stage, sql.SQL(one["rest"])
                )
                done = _try(connection, statement, f"index {sql_name(one['name'])}", made)
            else:
                done = _constraint(connection, stage, one, name, made)
            if done:
                made.names.append((name, one["name"]))
        _comments(connection, stage, found)
    return made


def _try(connection: Connection, statement: sql.Composed, what: str, made: Made) -> bool:
    """Run a statement; what the target cannot make is noted."""
    try:
        with connection.transaction():
            connection.execute(statement)
    except psycopg.Error as error:
        if not (error.sqlstate or "").startswith(UNKNOWN):
            raise
        made.left_out.append(f"{what} ({error.diag.message_primary})")
        return False
    return True


def _constraint(connection: Connection, stage: sql.Identifier, one: dict[str, Any], name: str, made: Made) -> bool:
    statement = sql.SQL("alter table {} add constraint {} {}").format(
        stage, sql.Identifier(name), sql.SQL(one["definition"])
    )
    return _try(connection, statement, f"constraint {sql_name(one['name'])}", made)


def _defaults(connection: Connection, place: TableRef, found: Belongings, made: Made) -> None:
    """Give columns their defaults, those of serial columns a sequence of their own."""
    stage = sql.Identifier(place.schema or "", place.name)
    for number, (name, facts) in enumerate(found.columns.items(), 1):
        column = sql.Identifier(name)
        if facts["own"]:
            _sequence(connection, place, name, facts, number)
        elif facts["default"] is not None:
            statement = sql.SQL("alter table {} alter column {} set default {}").format(
                stage, column, sql.SQL(facts["default"])
            )
            _try(connection, statement, f"default of {sql_name(name)}", made)


def _sequence(connection: Connection, place: TableRef, name: str, facts: dict[str, Any], number: int) -> None:
    """Give a column's own sequence the source's options; of a serial column it is made, of an identity it is there."""
    stage = sql.Identifier(place.schema or "", place.name)
    options = sql.SQL("increment {} minvalue {} maxvalue {} start {} cache {} {}cycle").format(
        *(sql.Literal(facts[key]) for key in ("increment", "minimum", "maximum", "start", "cache")),
        sql.SQL("" if facts["cycle"] else "no "),
    )
    row = connection.execute(
        "select pg_catalog.pg_get_serial_sequence(%s, %s)", (stage.as_string(connection), name)
    ).fetchone()
    if row is not None and row[0] is not None:
        connection.execute(
            sql.SQL("alter sequence {} {} restart {}").format(sql.SQL(row[0]), options, sql.Literal(facts["start"]))
        )
        return
    sequence = sql.Identifier(place.schema or "", cut(place.name, f"_s{number}"))
    connection.execute(
        sql.SQL("create sequence {} as {} {} owned by {}.{}").format(
            sequence, sql.SQL(facts["type"]), options, stage, sql.Identifier(name)
        )
    )
    connection.execute(
        sql.SQL("alter table {} alter column {} set default pg_catalog.nextval({}::regclass)").format(
            stage, sql.Identifier(name), sql.Literal(sequence.as_string(connection))
        )
    )


def _comments(connection: Connection, stage: sql.Identifier, found: Belongings) -> None:
    if found.comment is not None:
        connection.execute(sql.SQL("comment on table {} is {}").format(stage, sql.Literal(found.comment)))
    for name, facts in found.columns.items():
        if facts["comment"] is not None:
            connection.execute(
                sql.SQL("comment on column {}.{} is {}").format(
                    stage, sql.Identifier(name), sql.Literal(facts["comment"])
                )
            )
