"""Types of the user's own: found in the target by schema and name, or made there as they are in the source.

Enums, domains, composites and ranges are made, those first that they are made of; of an extension the extension. What
cannot be made is named with the statement that would make it. Checks and defaults of a domain are the source's server's
own words, printed with an empty search path, so that every name in them has its schema.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import class_row

from millrace.errors import ContractBroken, MillraceError, PermissionMissing
from millrace.postgres.catalog import PgColumn, columns_of_types
from millrace.postgres.ddl import named, type_of
from millrace.postgres.names import sql_name
from millrace.postgres.session import Connection, bare_path, prepared, translate

_MAKING = 0x6D696C6C726163  # the lock under which types are made: two copies of one database need the same ones

_FIND = """
select w.schema, w.name, found.nspname from unnest($1::text[], $2::text[]) as w(schema, name)
cross join lateral (
    select n.nspname::text from pg_catalog.pg_type t join pg_catalog.pg_namespace n on n.oid = t.typnamespace
    where t.typname = w.name and t.typtype <> 'p' and t.typisdefined
        -- in another schema only what belongs to an extension: other types of that name may mean something else
        and (n.nspname = w.schema or w.schema <> 'pg_catalog' and exists (select from pg_catalog.pg_depend d
            where d.classid = 'pg_catalog.pg_type'::regclass and d.objid = t.oid and d.deptype = 'e'))
    order by n.nspname = w.schema desc, 1 limit 1
) as found
"""

_FACTS = """
select t.oid::int8 as oid, t.typtype::text as typtype, t.typnotnull as not_null,
    pg_catalog.pg_get_expr(t.typdefaultbin, 0) as default_expression,
    array(select e.enumlabel::text from pg_catalog.pg_enum e where e.enumtypid = t.oid
        order by e.enumsortorder) as labels,
    array(select 'constraint ' || pg_catalog.quote_ident(o.conname) || ' ' || pg_catalog.pg_get_constraintdef(o.oid)
        from pg_catalog.pg_constraint o where o.contypid = t.oid and o.contype = 'c' and o.convalidated
        order by o.conname) as checks,
    coalesce(c.relkind::text, '') as relkind,
    case when t.typtype = 'd' then array['value'] else array(select a.attname::text from pg_catalog.pg_attribute a
        where a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped order by a.attnum) end as part_names,
    case t.typtype when 'd' then array[t.typbasetype] when 'r' then array[r.rngsubtype] when 'm' then array[m.rngtypid]
        else array(select a.atttypid from pg_catalog.pg_attribute a
        where a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped order by a.attnum)
        end::int8[] as part_types,
    case when t.typtype = 'd' then array[t.typtypmod] else array(select a.atttypmod from pg_catalog.pg_attribute a
        where a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped order by a.attnum) end as part_mods,
    case t.typtype when 'd' then array[t.typcollation] when 'r' then array[r.rngcollation]
        else array(select a.attcollation from pg_catalog.pg_attribute a
        where a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped order by a.attnum)
        end::int8[] as part_collations,
    r.rngcanonical <> 0 as canonical,
    (select pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(o.opcname) from pg_catalog.pg_opclass o
        join pg_catalog.pg_namespace n on n.oid = o.opcnamespace
        where o.oid = r.rngsubopc and not o.opcdefault) as opclass,
    (select p.proname::text from pg_catalog.pg_proc p where p.oid = r.rngsubdiff
        and p.pronamespace = 'pg_catalog'::regnamespace) as difference,
    (select q.typname::text from pg_catalog.pg_type q where q.oid = r.rngmultitypid) as multirange,
    e.extname::text as extension, en.nspname::text as extension_schema
from pg_catalog.pg_type t
join pg_catalog.pg_namespace n on n.oid = t.typnamespace
left join pg_catalog.pg_class c on c.oid = t.typrelid
left join pg_catalog.pg_range r on r.rngtypid = t.oid
left join pg_catalog.pg_range m on m.rngmultitypid = t.oid
left join pg_catalog.pg_depend d on d.classid = 'pg_catalog.pg_type'::regclass and d.objid = t.oid and d.deptype = 'e'
left join pg_catalog.pg_extension e on e.oid = d.refobjid and d.refclassid = 'pg_catalog.pg_extension'::regclass
left join pg_catalog.pg_namespace en on en.oid = e.extnamespace
where n.nspname = %(schema)s and t.typname = %(name)s
"""


@dataclass(frozen=True, slots=True)
class _Type:
    """What the source's catalogue says of a type; parts: a composite's columns, what a domain or range is of."""

    oid: int
    typtype: str
    not_null: bool
    default_expression: str | None
    labels: Sequence[str]
    checks: Sequence[str]
    relkind: str
    part_names: Sequence[str]
    part_types: Sequence[int]
    part_mods: Sequence[int]
    part_collations: Sequence[int]
    canonical: bool | None
    opclass: str | None
    difference: str | None
    multirange: str | None
    extension: str | None
    extension_schema: str | None

    def parts(self, source: Connection, label: str) -> tuple[PgColumn, ...]:
        count = len(self.part_types)
        return columns_of_types(
            source,
            list(self.part_names) or [f"part {number}" for number in range(count)],
            self.part_types,
            list(self.part_mods) or [-1] * count,
            list(self.part_collations) or [0] * count,
            label=label,
        )


def bring_types(source: Connection, target: Connection, columns: Sequence[PgColumn], *, label: str) -> dict[str, str]:
    """Find the columns' types in the target, and make the user's own that are missing there.

    Args:
        source: where the columns are described.
        target: in the transaction that makes the table.
        columns: of the table, or parts of a type.
        label: what messages call the target.

    Returns:
        By column name, the schema in which the target has its type.

    Raises:
        ContractBroken, PermissionMissing: a type is missing and cannot be made; the hint is the statement to run.
    """
    wanted = {column.name: named(column) for column in columns}
    found = _find(target, wanted.values())
    if any(one not in found for one in wanted.values()):
        target.execute("select pg_catalog.pg_advisory_xact_lock(%s)", (_MAKING,))
        found = _find(target, wanted.values())
    for column in columns:
        one = wanted[column.name]
        if one not in found:
            _Maker(source, target, label, column.name).make(*one)
            found = _find(target, wanted.values())
        if one not in found:
            raise _missing(label, one, column.name, None)
    return {name: found[one] for name, one in wanted.items()}


def types_there(target: Connection, columns: Sequence[PgColumn], *, label: str) -> dict[str, str]:
    """Find the columns' types in the target, as `bring_types` does, where the source is out of reach.

    Raises:
        ContractBroken: a type is missing.
    """
    wanted = {column.name: named(column) for column in columns}
    found = _find(target, wanted.values())
    for name, one in wanted.items():
        if one not in found:
            raise _missing(label, one, name, "the source, which knows it, is out of reach")
    return {name: found[one] for name, one in wanted.items()}


def _find(target: Connection, wanted: Any) -> dict[tuple[str, str], str]:
    each = sorted(set(wanted))
    query = prepared(target, "millrace_types", _FIND, [schema for schema, _ in each], [name for _, name in each])
    return {(schema, name): there for schema, name, there in target.execute(query).fetchall()}


def _missing(label: str, one: tuple[str, str], column: str, why: str | None, statement: str = "") -> ContractBroken:
    name = sql_name(*one)
    return ContractBroken(
        f"{label} has no type {name}, which column {sql_name(column)} needs",
        where=label,
        detail=[why] if why else [],
        hint=f"make it there first: {statement};" if statement else f"create the type {name} there first",
    )


class _Maker:
    """Makes one type in the target, for one column."""

    def __init__(self, source: Connection, target: Connection, label: str, column: str) -> None:
        self._source, self._target, self._label, self._column = source, target, label, column

    def make(self, schema: str, name: str) -> None:
        """Make it, and what it is made of. Raises ContractBroken, PermissionMissing."""
        one = (schema, name)
        with bare_path(self._source), self._source.cursor(row_factory=class_row(_Type)) as cursor:
            found = cursor.execute(_FACTS, {"schema": schema, "name": name}).fetchone()
        if found is None or schema == "pg_catalog":
            raise _missing(self._label, one, self._column, f"it comes with a newer PostgreSQL: {schema}.{name}")
        if found.extension is not None:
            self._make_extension(one, found.extension, found.extension_schema or schema)
            return
        parts = found.parts(self._source, self._label)
        if found.typtype == "m":  # comes with its range
            self.make(*named(parts[0]))
            return
        statement = self._statement(one, found, parts)
        if found.relkind not in ("", "c"):
            why = "it is the row type of a table; copy that table first, or make a type of its columns"
            raise _missing(self._label, one, self._column, why, statement.as_string(self._target))
        self._make_schema(schema)
        self._run(f"the type {sql_name(*one)}", statement)

    def _statement(self, one: tuple[str, str], found: _Type, parts: tuple[PgColumn, ...]) -> sql.Composed:
        name = sql.Identifier(*one)
        if found.typtype == "e":
            labels = sql.SQL(", ").join(sql.Literal(text) for text in found.labels)
            return sql.SQL("create type {} as enum ({})").format(name, labels)
        if found.typtype not in ("c", "d", "r") or found.canonical:
            why = "it is written in a language of its own" if found.typtype == "b" else "it has a canonical function"
            raise _missing(self._label, one, self._column, why)
        schemas = bring_types(self._source, self._target, parts, label=self._label)
        types = [type_of(part, schemas[part.name]) for part in parts]
        collations = [sql.SQL(f" collate {part.collation}") if part.collation else sql.SQL("") for part in parts]
        if found.typtype == "d":
            return sql.SQL("create domain {} as {}{}{}").format(name, types[0], collations[0], _domain(found))
        if found.typtype == "r":
            return sql.SQL("create type {} as range (subtype = {}{})").format(
                name, types[0], _range(found, parts[0], one)
            )
        columns = [
            sql.SQL("{} {}{}").format(part.identifier, kind, collation)
            for part, kind, collation in zip(parts, types, collations, strict=True)
        ]
        return sql.SQL("create type {} as ({})").format(name, sql.SQL(", ").join(columns))

    def _make_schema(self, schema: str) -> None:
        row = self._target.execute("select from pg_catalog.pg_namespace where nspname = %s", (schema,)).fetchone()
        if row is None:
            self._run(f"the schema {sql_name(schema)}", sql.SQL("create schema {}").format(sql.Identifier(schema)))

    def _make_extension(self, one: tuple[str, str], extension: str, schema: str) -> None:
        there = self._target.execute(
            "select installed_version, default_version from pg_catalog.pg_available_extensions where name = %s",
            (extension,),
        ).fetchone()
        if there is None:
            why = f"it belongs to the extension {sql_name(extension)}, which is not installed on that server"
            raise _missing(self._label, one, self._column, why, f"CREATE EXTENSION {sql_name(extension)}")
        if there[0] is not None:
            why = f"the extension {sql_name(extension)} {there[0]} does not have it"
            raise _missing(self._label, one, self._column, why, f"ALTER EXTENSION {sql_name(extension)} UPDATE")
        self._make_schema(schema)
        self._run(
            f"the extension {sql_name(extension)}",
            sql.SQL("create extension if not exists {} with schema {} cascade").format(
                sql.Identifier(extension), sql.Identifier(schema)
            ),
        )

    def _run(self, what: str, statement: sql.Composed) -> None:
        try:
            self._target.execute(statement)
        except psycopg.Error as error:
            raise self._refused(error, what, statement.as_string(None)) from error

    def _refused(self, error: psycopg.Error, what: str, statement: str) -> MillraceError:
        doing = f"make {what}, which column {sql_name(self._column)} needs"
        found = translate(error, where=self._label, doing=doing, role=self._target.info.user, privilege="CREATE")
        if error.sqlstate is None or error.sqlstate.startswith(("08", "40", "53", "55", "57")):
            return found
        kind = PermissionMissing if isinstance(found, PermissionMissing) else ContractBroken
        right = f"{found.hint} or " if found.hint and kind is PermissionMissing else ""
        hint = f"{right}run it there first: {statement};"
        return kind(found.what, where=self._label, detail=found.detail, hint=hint)


def _domain(found: _Type) -> sql.Composable:
    """Return what follows a domain's type, in the words of the source's server.

    A check that is not valid is left out: values that break it may be there.
    """
    default = [] if found.default_expression is None else [f"default {found.default_expression}"]
    not_null = ["not null"] if found.not_null else []
    return sql.SQL(" ".join(["", *default, *not_null, *found.checks]))


def _range(found: _Type, subtype: PgColumn, one: tuple[str, str]) -> sql.Composable:
    """Return a range's further parameters. A difference function of the user's is left out: only indexes use it."""
    more: list[sql.Composable] = [sql.SQL(f", collation = {subtype.collation}")] if subtype.collation else []
    if found.opclass is not None:
        more.append(sql.SQL(f", subtype_opclass = {found.opclass}"))
    if found.difference is not None:
        more.append(sql.SQL(", subtype_diff = pg_catalog.{}").format(sql.Identifier(found.difference)))
    if found.multirange is not None:
        more.append(sql.SQL(", multirange_type_name = {}").format(sql.Identifier(one[0], found.multirange)))
    return sql.Composed(more)


# types that are there, and are others


@dataclass(frozen=True, slots=True)
class TypeDifference:
    """What a type of the user's lacks in the target.

    Attributes:
        what: in words.
        statement: what would make it as in the source; None: no statement does.
        adds: whether it only adds a word to an enum, which changes no row.
    """

    what: str
    statement: sql.Composed | None = None
    adds: bool = False


def type_differences(
    source: Connection, target: Connection, columns: Sequence[PgColumn], *, label: str
) -> list[TypeDifference]:
    """Compare the user's own types of some columns, and what they are made of, as far as values could not be taken.

    Args:
        source, target: pinned; both are only read.
        columns: as the source describes them.
        label: what messages call the target.
    """
    found: list[TypeDifference] = []
    seen: set[tuple[str, str]] = set()
    waiting = [named(column) for column in columns]
    while waiting:
        one = waiting.pop()
        if one[0] == "pg_catalog" or one in seen:
            continue
        seen.add(one)
        ours, theirs = _facts(source, one), _facts(target, one)
        if ours is None or ours.extension is not None:
            continue
        parts = ours.parts(source, label)
        waiting += [named(part) for part in parts]
        if theirs is not None:
            found += _compared(one, ours, theirs, parts, theirs.parts(target, label))
    return found


def _facts(connection: Connection, one: tuple[str, str]) -> _Type | None:
    with bare_path(connection), connection.cursor(row_factory=class_row(_Type)) as cursor:
        return cursor.execute(_FACTS, {"schema": one[0], "name": one[1]}).fetchone()


def _compared(
    one: tuple[str, str],
    ours: _Type,
    theirs: _Type,
    parts: Sequence[PgColumn],
    there: Sequence[PgColumn],
) -> list[TypeDifference]:
    name, said = sql.Identifier(*one), sql_name(*one)
    if ours.typtype == theirs.typtype == "e":
        return _words(name, said, ours.labels, theirs.labels)
    if ours.typtype == theirs.typtype == "d":
        return _domains(name, said, ours, theirs, parts[0], there[0])
    if ours.typtype == theirs.typtype == "c":
        return _attributes(name, said, parts, there)
    return []


def _words(name: sql.Identifier, said: str, ours: Sequence[str], theirs: Sequence[str]) -> list[TypeDifference]:
    found = []
    for place, word in enumerate(ours):
        if word in theirs:
            continue
        side, other = ("after", ours[place - 1]) if place else ("before", theirs[0] if theirs else "")
        beside = sql.SQL(f" {side} {{}}").format(sql.Literal(other)) if place or theirs else sql.SQL("")
        statement = sql.SQL("alter type {} add value if not exists {}{}").format(name, sql.Literal(word), beside)
        found.append(TypeDifference(f"the enum {said} has no value {word!r}", statement, adds=True))
    return found


def _domains(
    name: sql.Identifier, said: str, ours: _Type, theirs: _Type, base: PgColumn, there: PgColumn
) -> list[TypeDifference]:
    if base.type != there.type:
        return [TypeDifference(f"the domain {said} is of {there.type}, in the source of {base.type}")]
    found = []
    if theirs.not_null and not ours.not_null:
        statement = sql.SQL("alter domain {} drop not null").format(name)
        found.append(TypeDifference(f"the domain {said} takes no null", statement))
    for check in theirs.checks:
        if check not in ours.checks:
            constraint = check.removeprefix("constraint ").partition(" CHECK")[
                0
            ]  # quoted by the server where it must be
            statement = sql.SQL("alter domain {} drop constraint {}").format(name, sql.SQL(constraint))
            found.append(TypeDifference(f"the domain {said} has a {check}, which the source has not", statement))
    return found


def _attributes(
    name: sql.Identifier, said: str, parts: Sequence[PgColumn], there: Sequence[PgColumn]
) -> list[TypeDifference]:
    ours, theirs = [part.type for part in parts], [part.type for part in there]
    if ours == theirs:
        return []
    statement = None
    if ours[: len(theirs)] == theirs:
        more = [
            sql.SQL("add attribute {} {}").format(part.identifier, type_of(part, named(part)[0]))
            for part in parts[len(there) :]
        ]
        statement = sql.SQL("alter type {} {}").format(name, sql.SQL(", ").join(more))
    return [
        TypeDifference(f"the type {said} has the attributes {_shown(there)}, the source {_shown(parts)}", statement)
    ]


def _shown(parts: Sequence[PgColumn]) -> str:
    return f"({', '.join(f'{sql_name(part.name)} {part.type}' for part in parts)})"
