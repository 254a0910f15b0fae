"""Publishing by exchange: a full stage that is made like its table takes the table's place, and the old one is dropped.

For a table of which most rows differ: nothing is updated, so nothing bloats, and indexes are built once. `portrait`
says of which tables this may be asked; what belongs to the table is made on the stage or moved to it, and the portrait
of the result must be the old one, else the rows are applied one by one after all. Readers wait for the renames only:
the table is locked against them in attempts of LOCK_MS, and not before every snapshot that is older than the stage has
ended, because it would find the new table empty.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from millrace.core.digest import Digest
from millrace.core.names import TableRef
from millrace.core.staged import Counts
from millrace.errors import MillraceError
from millrace.postgres.apply import Applied, Table, guard_deletes, guard_lost
from millrace.postgres.catalog import Relation, describe
from millrace.postgres.ledger import Ledger
from millrace.postgres.portrait import against, differing, portrait
from millrace.postgres.session import Connection, bare_path
from millrace.postgres.stage import set_sequence

LOCK_MS = 75  # well under deadlock_timeout: so long may a reader wait for an attempt that comes to nothing
PATIENCE = 5.0  # seconds of attempts; then the rows are applied one by one, which waits for no reader
REFUSED = ("0A", "22", "23", "2B", "42", "55P03", "P0")
"""Beginnings of SQLSTATEs with which a server refuses an exchange: all but what ends the transaction or the session."""
_WORD = re.compile(r"[A-Z ]+")

Rest = Callable[[Table], Applied]
"""Applies the same stage row by row."""


# the stage


def create_alike(target: Connection, table: sql.Identifier, relation: Relation) -> None:
    """Create a stage that may take a table's place: its columns, as they are stored, and its options.

    Defaults come with the exchange: until then they would keep the table's sequences from being dropped with it.
    """
    target.execute(
        sql.SQL(
            "create table {} (like {} including generated including identity including storage including compression)"
            " using heap"
        ).format(table, relation.identifier)
    )
    facts = _table(target, relation.oid)
    for prefix, options in (("", facts["options"]), ("toast.", facts["toast_options"])):
        for option in options or ():
            name, _, value = option.partition("=")
            target.execute(
                sql.SQL("alter table {} set ({} = {})").format(
                    table, sql.SQL(prefix) + sql.Identifier(name), sql.Literal(value)
                )
            )
    for column in _columns(target, relation.oid):
        alter = sql.SQL("alter table {} alter column {} ").format(table, sql.Identifier(column["name"]))
        if column["statistics"] is not None:
            target.execute(alter + sql.SQL("set statistics {}").format(sql.Literal(column["statistics"])))
        for option in column["options"] or ():
            name, _, value = option.partition("=")
            target.execute(alter + sql.SQL("set ({} = {})").format(sql.Identifier(name), sql.Literal(value)))


_TABLE = """
select r.rolname::text as owner, c.reloptions as options, c.relreplident::text as identity,
    pg_catalog.obj_description(c.oid, 'pg_class') as comment,
    (select t.reloptions from pg_catalog.pg_class t where t.oid = c.reltoastrelid) as toast_options
from pg_catalog.pg_class c join pg_catalog.pg_roles r on r.oid = c.relowner where c.oid = %s
"""

_COLUMNS = """
select a.attname::text as name, nullif(a.attstattarget, -1) as statistics, a.attoptions as options,
    case when a.attgenerated = '' then pg_catalog.pg_get_expr(d.adbin, d.adrelid) end as default,
    pg_catalog.col_description(a.attrelid, a.attnum) as comment,
    n.nspname::text as sequence_schema, q.relname::text as sequence, q.oid::int8 as sequence_oid,
    coalesce(o.deptype = 'i', false) as identity, s.seqcache as cache,
    pg_catalog.obj_description(q.oid, 'pg_class') as sequence_comment
from pg_catalog.pg_attribute a
left join pg_catalog.pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
left join (pg_catalog.pg_depend o join pg_catalog.pg_sequence s on s.seqrelid = o.objid
        and o.classid = 'pg_catalog.pg_class'::regclass and o.refclassid = 'pg_catalog.pg_class'::regclass
        and o.deptype in ('a', 'i'))
    on o.refobjid = a.attrelid and o.refobjsubid = a.attnum
left join pg_catalog.pg_class q on q.oid = s.seqrelid
left join pg_catalog.pg_namespace n on n.oid = q.relnamespace
where a.attrelid = %s and a.attnum > 0 and not a.attisdropped order by a.attnum
"""

_RIGHTS = """
select a.attname::text as column, case r.grantee when 0 then null else pg_catalog.pg_get_userbyid(r.grantee)::text end
    as grantee, r.privilege_type::text as privilege, r.is_grantable as grantable
from (select null::name as attname, 0 as attnum, coalesce(c.relacl, pg_catalog.acldefault(
            (case c.relkind when 'S' then 's' else 'r' end)::"char", c.relowner)) as acl
        from pg_catalog.pg_class c where c.oid = %(oid)s
    union all select a.attname, a.attnum, a.attacl from pg_catalog.pg_attribute a
        where a.attrelid = %(oid)s and a.attnum > 0 and not a.attisdropped) a,
    lateral pg_catalog.aclexplode(a.acl) with ordinality as r (grantor, grantee, privilege_type, is_grantable, place)
order by a.attnum, r.place
"""

_COMMENTS = """
select 'constraint' as kind, o.conname::text as name, pg_catalog.obj_description(o.oid, 'pg_constraint') as comment
    from pg_catalog.pg_constraint o where o.conrelid = %(oid)s
union all select 'trigger', t.tgname, pg_catalog.obj_description(t.oid, 'pg_trigger') from pg_catalog.pg_trigger t
    where t.tgrelid = %(oid)s
"""

_INDEXES = """
select x.relname::text as name, pg_catalog.obj_description(x.oid, 'pg_class') as comment, i.indisclustered as clustered,
    i.indisreplident as identity, coalesce((select json_agg(json_build_array(a.attnum, a.attstattarget))
        from pg_catalog.pg_attribute a where a.attrelid = x.oid and a.attstattarget >= 0), '[]') as statistics
from pg_catalog.pg_index i join pg_catalog.pg_class x on x.oid = i.indexrelid where i.indrelid = %s order by x.relname
"""

_TRIGGERS = """
select t.tgname::text as name, t.tgenabled::text as enabled, pg_catalog.pg_get_triggerdef(t.oid) as definition
from pg_catalog.pg_trigger t where t.tgrelid = %s and not t.tgisinternal order by t.tgname
"""

ENABLED = {"D": "disable trigger", "R": "enable replica trigger", "A": "enable always trigger"}
REPLICA = {"f": "full", "n": "nothing"}


def _all(connection: Connection, query: Any, values: Any) -> list[dict[str, Any]]:
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(query, values).fetchall()


def _oid(connection: Connection, name: sql.Identifier) -> int:
    row = connection.execute("select %s::regclass::oid::int8", (name.as_string(connection),)).fetchone()
    return int(row[0]) if row else 0


def _table(connection: Connection, oid: int) -> dict[str, Any]:
    return _all(connection, _TABLE, (oid,))[0]


def _columns(connection: Connection, oid: int) -> list[dict[str, Any]]:
    return _all(connection, _COLUMNS, (oid,))


# the publish


@dataclass(frozen=True, slots=True)
class Swap:
    """A stage that is about to take its table's place; the table is locked against writers."""

    table: Table
    rest: Rest
    counts: Counts
    old: frozenset[tuple[Any, ...]]
    """Snapshots that may not see the stage's rows."""

    @property
    def words(self) -> str:
        """Why it was staged to be exchanged."""
        return str(self.table.staged.detail["swap"])

    def finish(self, refused: str | None) -> tuple[Applied, bool]:
        """Exchange the table, or apply the rows one by one; says also whether the stage has become the table.

        Args:
            refused: why the table could not be locked against readers, or None.
        """
        if (reason := refused or self._exchange()) is not None:
            return replace(self.rest(self.table), note=f"row by row: {reason}"), False
        whole = Digest.sum(self.table.staged.expected.values(), self.table.staged.schema.shape)
        new = describe(self.table.connection, self.table.relation.ref, label=self.table.label)
        return Applied(self.counts, "table", whole, whole.rows, new, f"by swap: {self.words}"), True

    def _exchange(self) -> str | None:
        """Exchange the tables; return what speaks against it, with nothing changed."""
        connection, relation = self.table.connection, self.table.relation
        if (reason := against(connection, relation.oid)) is not None:
            return reason
        try:
            with _briefly(connection), bare_path(connection):
                before = portrait(connection, relation.oid)
                _exchange(connection, self.table)
                after = portrait(connection, _oid(connection, relation.identifier))
                if parts := differing(before, after):
                    raise _NotTheSame(parts)
        except _NotTheSame as error:
            return f"of a new table {', '.join(error.parts)} would be others"
        except psycopg.DatabaseError as error:
            if error.sqlstate is None or not error.sqlstate.startswith(REFUSED):
                raise
            return f"it cannot be exchanged ({error.diag.message_primary})"
        return None


class _NotTheSame(Exception):
    """The exchange is to be undone."""

    def __init__(self, parts: Sequence[str]) -> None:
        super().__init__(", ".join(parts))
        self.parts = parts


def begin(table: Table, ledger: Ledger, rest: Rest) -> Swap | Applied:
    """Count what an exchange changes, with readers at it; what may not be exchanged after all, `rest` applies.

    Raises:
        GuardRefused: more rows than allowed would be deleted.
    """
    if (reason := against(table.connection, table.relation.oid)) is not None:
        return replace(rest(table), note=f"row by row: {reason}")
    old = _older_snapshots(table.connection, ledger, table)
    counts = _count_all(table) if table.staged.how == "truncate" else _count(table)
    return Swap(table, rest, counts, old)


def _count_all(table: Table) -> Counts:
    """Every row is deleted and loaded."""
    before = table.number(sql.SQL("select pg_catalog.count(*) from {}").format(table.relation.identifier))
    guard_lost(table, before)
    return Counts(table.staged.rows, 0, before)


def _count(table: Table) -> Counts:
    query = sql.SQL(
        "select pg_catalog.count(*), pg_catalog.count(j.same), pg_catalog.count(*) filter (where j.other) "
        "from (select s.{} as same, {} as other from {} t left join {} s on {} offset 0) j"
    ).format(table.key[0].identifier, table.differs, table.relation.identifier, table.stage, table.same_key)
    # offset 0: else all columns of both go through the join, and there may be no more than 1,664
    total, same, updated = table.connection.execute(query).fetchone() or (0, 0, 0)
    if total > same:
        guard_deletes(table, total - same)
    return Counts(table.staged.rows - same, updated, total - same)


_SNAPSHOTS = """
select a.pid, l.virtualxid, a.backend_xmin::text from pg_catalog.pg_stat_activity a
join pg_catalog.pg_locks l on l.pid = a.pid and l.locktype = 'virtualxid' and l.mode = 'ExclusiveLock'
where a.datname = pg_catalog.current_database() and a.pid <> pg_catalog.pg_backend_pid()
    and a.usesysid is not null and a.backend_xmin is not null  -- vacuum has no user, and reads nobody's rows
"""


def _older_snapshots(connection: Connection, ledger: Ledger, table: Table) -> frozenset[tuple[Any, ...]]:
    """Return the snapshots of other sessions that may be older than rows of the stage."""
    last = ledger.sql(
        " and pg_catalog.age(a.backend_xmin) >= "
        "(select min(pg_catalog.age(s.xid::xid)) from {segment} s where s.layer = %s and s.name = %s)"
    )
    asset = table.staged.asset
    return frozenset(connection.execute(sql.SQL(_SNAPSHOTS) + last, (asset.layer, asset.name)).fetchall())


def exclusive(connection: Connection, swaps: Sequence[Swap]) -> str | None:
    """Lock tables against readers, all or none, giving way in between; return why it could not be.

    A lock is asked for only when every snapshot that is older than the stages has ended.
    """
    old = frozenset[tuple[Any, ...]]().union(*(one.old for one in swaps))
    until = time.monotonic() + PATIENCE
    while True:
        if old:
            connection.execute("select pg_catalog.pg_stat_clear_snapshot()")  # else a transaction sees its first look
            old = old.intersection(connection.execute(_SNAPSHOTS).fetchall())
        if not old and _locked(connection, [one.table.relation for one in swaps]):
            return None
        if time.monotonic() > until:
            return "a transaction is open that is older than the copy" if old else "somebody was reading it"
        time.sleep(random.uniform(0.05, 0.25))  # noqa: S311 (jitter, no secret)


def _locked(connection: Connection, relations: Sequence[Relation]) -> bool:
    try:
        with _briefly(connection):
            for relation in relations:
                connection.execute(sql.SQL("lock table {} in access exclusive mode").format(relation.identifier))
    except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
        return False
    return True


@contextmanager
def _briefly(connection: Connection) -> Iterator[None]:
    """Run a block in a savepoint, which waits for locks no longer than LOCK_MS."""
    row = connection.execute("select pg_catalog.current_setting('lock_timeout')").fetchone()
    timeout = sql.SQL("set local lock_timeout = {}")
    with connection.transaction():
        connection.execute(timeout.format(sql.Literal(LOCK_MS)))
        yield
        connection.execute(timeout.format(sql.Literal(row[0] if row else "0")))


# the exchange, in the publish's transaction, under ACCESS EXCLUSIVE, with an empty search path


def _exchange(connection: Connection, table: Table) -> None:
    """Drop the table and give its name, and all that belonged to it, to the stage."""
    old, ref = table.relation, table.relation.ref
    facts, columns = _table(connection, old.oid), _columns(connection, old.oid)
    indexes, triggers = _all(connection, _INDEXES, (old.oid,)), _all(connection, _TRIGGERS, (old.oid,))
    comments = _all(connection, _COMMENTS, {"oid": old.oid})
    rights = {
        oid: _rights(connection, oid) for oid in (old.oid, *(c["sequence_oid"] for c in columns if c["identity"]))
    }
    values = {c["name"]: _value(connection, c) for c in columns if c["identity"]}

    schema, place = ref.schema or "", table.staged.detail["table"]
    here = sql.Identifier(schema, place)
    run = connection.execute
    run(sql.SQL("alter table {} set schema {}").format(table.stage, sql.Identifier(schema)))
    run(sql.SQL("alter table {} owner to {}").format(here, sql.Identifier(facts["owner"])))
    for column in columns:
        name = sql.Identifier(column["name"])
        if column["sequence"] is not None and not column["identity"]:
            owned = sql.Identifier(column["sequence_schema"], column["sequence"])
            run(sql.SQL("alter sequence {} owned by {}.{}").format(owned, here, name))
        if column["default"] is not None:
            expression = sql.SQL(column["default"])  # the server's own words
            run(sql.SQL("alter table {} alter column {} set default {}").format(here, name, expression))
    run(sql.SQL("drop table {}").format(old.identifier))
    run(sql.SQL("alter table {} rename to {}").format(here, sql.Identifier(ref.name)))
    for name, wanted in table.staged.detail["names"]:
        run(sql.SQL("alter index {} rename to {}").format(sql.Identifier(schema, name), sql.Identifier(wanted)))
    for column in columns:
        if column["identity"]:
            _identity(connection, ref, column, values[column["name"]], rights[column["sequence_oid"]])
    for one in old.columns:
        if one.identity or (one.default or "").startswith("nextval("):
            set_sequence(connection, old.identifier, one.name)
    have = _rights(connection, _oid(connection, old.identifier))
    _replay_rights(connection, sql.SQL("table {}").format(old.identifier), rights[old.oid], have)
    _replay_indexes(connection, old.identifier, schema, indexes, facts["identity"])
    for trigger in triggers:
        run(sql.SQL(trigger["definition"]))  # the server's own words
        if trigger["enabled"] in ENABLED:
            state = sql.SQL(ENABLED[trigger["enabled"]])
            run(sql.SQL("alter table {} {} {}").format(old.identifier, state, sql.Identifier(trigger["name"])))
    _replay_comments(connection, old.identifier, facts, columns, comments)


def _value(connection: Connection, column: dict[str, Any]) -> tuple[int, bool]:
    """Return an identity's sequence's value, and let nobody take another from it until the transaction ends."""
    name = sql.Identifier(column["sequence_schema"], column["sequence"])
    connection.execute(sql.SQL("alter sequence {} cache {}").format(name, sql.Literal(column["cache"])))
    row = connection.execute(sql.SQL("select last_value, is_called from {}").format(name)).fetchone()
    return (1, False) if row is None else (row[0], row[1])


def _identity(
    connection: Connection, ref: TableRef, column: dict[str, Any], value: tuple[int, bool], rights: Sequence[Right]
) -> None:
    """Give the new identity's sequence the old one's name, value and rights."""
    table = sql.Identifier(ref.schema or "", ref.name).as_string(connection)
    row = connection.execute("select pg_catalog.pg_get_serial_sequence(%s, %s)", (table, column["name"])).fetchone()
    if row is None or row[0] is None:
        raise MillraceError(f"column {column['name']} of {ref} has no sequence", where=str(ref))
    connection.execute("select pg_catalog.setval(%s::regclass, %s, %s)", (row[0], *value))
    connection.execute(
        sql.SQL("alter sequence {} rename to {}").format(sql.SQL(row[0]), sql.Identifier(column["sequence"]))
    )
    name = sql.Identifier(column["sequence_schema"], column["sequence"])
    have = _rights(connection, _oid(connection, name))
    _replay_rights(connection, sql.SQL("sequence {}").format(name), rights, have)
    if column["sequence_comment"] is not None:
        comment = sql.Literal(column["sequence_comment"])
        connection.execute(sql.SQL("comment on sequence {} is {}").format(name, comment))


@dataclass(frozen=True, slots=True)
class Right:
    """One right; `grantee` None is everybody, `column` None the whole object."""

    column: str | None
    grantee: str | None
    privilege: str
    grantable: bool


def _rights(connection: Connection, oid: int) -> list[Right]:
    return [Right(**row) for row in _all(connection, _RIGHTS, {"oid": oid})]


def _replay_rights(
    connection: Connection, what: sql.Composable, wanted: Sequence[Right], have: Sequence[Right]
) -> None:
    """Take away the rights that are too many, and grant those that are missing, in their order."""
    for one in have:
        if one not in wanted:
            connection.execute(_right("revoke {} on {} from {}", what, one))
    for one in wanted:
        if one not in have:
            grant = _right("grant {} on {} to {}", what, one)
            connection.execute(grant + sql.SQL(" with grant option") if one.grantable else grant)


def _right(text: Any, what: sql.Composable, one: Right) -> sql.Composed:
    if not _WORD.fullmatch(one.privilege):
        raise MillraceError(f"unknown privilege {one.privilege!r}")
    privilege: sql.Composable = sql.SQL(one.privilege)  # words only
    if one.column is not None:
        privilege = sql.SQL("{} ({})").format(privilege, sql.Identifier(one.column))
    role = sql.SQL("public") if one.grantee is None else sql.Identifier(one.grantee)
    return sql.SQL(text).format(privilege, what, role)


def _replay_indexes(
    connection: Connection, table: sql.Identifier, schema: str, indexes: Sequence[dict[str, Any]], identity: str
) -> None:
    """Replay what is said of indexes, and the replica identity, which may be one of them."""
    run = connection.execute
    for index in indexes:
        name = sql.Identifier(index["name"])
        full = sql.Identifier(schema, index["name"])
        for number, value in index["statistics"]:
            values = (sql.Literal(number), sql.Literal(value))
            run(sql.SQL("alter index {} alter column {} set statistics {}").format(full, *values))
        if index["clustered"]:
            run(sql.SQL("alter table {} cluster on {}").format(table, name))
        if index["identity"] and identity == "i":
            run(sql.SQL("alter table {} replica identity using index {}").format(table, name))
        if index["comment"] is not None:
            run(sql.SQL("comment on index {} is {}").format(full, sql.Literal(index["comment"])))
    if identity in REPLICA:
        run(sql.SQL("alter table {} replica identity {}").format(table, sql.SQL(REPLICA[identity])))


def _replay_comments(
    connection: Connection,
    table: sql.Identifier,
    facts: dict[str, Any],
    columns: Sequence[dict[str, Any]],
    others: Sequence[dict[str, Any]],
) -> None:
    run = connection.execute
    if facts["comment"] is not None:
        run(sql.SQL("comment on table {} is {}").format(table, sql.Literal(facts["comment"])))
    for column in columns:
        if column["comment"] is not None:
            name = sql.Identifier(column["name"])
            run(sql.SQL("comment on column {}.{} is {}").format(table, name, sql.Literal(column["comment"])))
    for one in others:
        if one["comment"] is not None:
            kind, name = sql.SQL(one["kind"]), sql.Identifier(one["name"])
            run(sql.SQL("comment on {} {} on {} is {}").format(kind, name, table, sql.Literal(one["comment"])))
