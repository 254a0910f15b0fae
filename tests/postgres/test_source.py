"""The author's SQL: one condition, one column list or one SELECT that only reads, whatever is tried."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from millrace.core.names import TableRef
from millrace.errors import MillraceError, UsageError
from millrace.postgres.reader import PostgresReader
from millrace.postgres.session import Connection, database_from_url

CONDITIONS = [
    "true; drop table t",
    "id in (delete from t returning id)",
    "exists (with x as (delete from t returning 1) select * from x)",
    "true /*",
    "1=1) or (1=1",
    "true\n); delete from t; --",
    "id = (select 1 for update)",
    "(select count(*) from t into u) > 0",
    "true union select 1",
    "true group by 1",
    "pg_sleep(60) is null",
    "pg_catalog.pg_sleep(60) is null",
    '"pg_sleep"(60) is null',
    "nextval('s') > 0",
    "set_config('transaction_read_only', 'off', false) = ''",
    "lo_unlink(1) = 1",
    "pg_terminate_backend(pg_backend_pid())",
    "dblink_exec('x', 'delete from t') = ''",
    "pg_read_file('/etc/passwd') = ''",
    "query_to_xml('delete from t', true, true, '') is null",
    "wipe() = 1",
]
QUERIES = [
    "select 1; select 2",
    "with x as (delete from t returning *) select * from x",
    "with x as (insert into t values (1) returning *) table x",
    "delete from t",
    "select * into u from t",
    "select * from t for update",
    "copy t to stdout",
    "explain analyze delete from t",
    "call wipe()",
    "do $$begin delete from t; end$$",
    "prepare x as delete from t",
    "truncate t",
    "create table u as select 1",
    "merge into t using t u on true when matched then delete",
    "select nextval('s') as id",
    "select id from t where pg_sleep(60) is null",
    "select * from dblink('x', 'y') as q(id int)",
    "select wipe() as id",
]


def read(reader: PostgresReader, table: TableRef, connection: Connection, given: dict[str, str]) -> list[Any]:
    source = reader.source(table, **given, connection=connection)
    return connection.execute(source.select()).fetchall()


def test_hostile_sql_changes_nothing(db18: str) -> None:
    reader = PostgresReader(database_from_url(db18, "SRC"))
    table = TableRef("public", "t")
    with psycopg.connect(db18, autocommit=True) as own:
        own.execute("create table t (id int); insert into t values (1), (2); create sequence s")
        own.execute(
            "create function wipe() returns int language sql as 'delete from t; select 1'"
        )  # volatile: may write
        for text in [*CONDITIONS, *QUERIES]:
            given = {"where": text} if text in CONDITIONS else {"select": text}
            with reader.snapshot() as snap, pytest.raises((MillraceError, psycopg.errors.ReadOnlySqlTransaction)):
                read(reader, table, snap.connection, given)
        assert own.execute("select count(*), (select last_value from s) from t").fetchone() == (2, 1)
        assert own.execute("select to_regclass('u')").fetchone() == (None,)


def test_what_reads_is_taken_as_it_is_written(db18: str) -> None:
    reader = PostgresReader(database_from_url(db18, "SRC"))
    with psycopg.connect(db18, autocommit=True) as own:
        own.execute("create table t (id int, v text); insert into t values (1, 'it''s'), (2, 'b;--')")
    with reader.snapshot() as snap:
        for condition in (
            "v = 'it''s' -- yes",
            "v = $$it's$$",
            "v = E'it\\'s'",
            "id in (select 1)",
            "id < random() + 1",
        ):
            source = reader.source(TableRef("public", "t"), where=condition, connection=snap.connection)
            assert snap.connection.execute(source.select()).fetchall() == [(1, "it's")], condition
        for query in ("table t;", "with x as (select * from t) select * from x", "values (1, 'it''s'), (2, 'b;--')"):
            source = reader.source(TableRef("public", "t"), select=query, connection=snap.connection)
            assert snap.connection.execute(source.select()).fetchall() == [(1, "it's"), (2, "b;--")], query
    with pytest.raises(UsageError, match="the condition calls pg_sleep, which does more than read"):
        reader.source(TableRef("public", "t"), where="pg_sleep(1) is null")
