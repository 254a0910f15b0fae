"""Snapshots, positions and their changes, and what the project author's SQL may be."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace

import psycopg
import pytest

from millrace.core.digest import Digest
from millrace.core.names import TableRef
from millrace.core.position import Cursor
from millrace.core.segment import Segment
from millrace.errors import ContractBroken, MillraceError, NotFound, PermissionMissing, TransientFailure, UsageError
from millrace.postgres.reader import PostgresReader, PostgresSnapshot, change_predicate, enter_snapshot
from millrace.postgres.session import connect, database_from_url
from millrace.postgres.source import Source

T = TableRef("public", "t")


@pytest.fixture(params=["15", "18"])
def url(request: pytest.FixtureRequest) -> str:
    found: str = request.getfixturevalue(f"db{request.param}")
    return found


@pytest.fixture
def reader(url: str) -> PostgresReader:
    return PostgresReader(database_from_url(url, "SRC"))


@pytest.fixture
def writer(url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "create table t (id int primary key, changed timestamptz, note text);"
            "insert into t select g, timestamptz '2026-01-01 00:00+00' + g * interval '1 min', 'n' || g"
            " from generate_series(1, 1000) g"
        )
        yield connection


class TestSnapshot:
    def test_all_who_enter_see_one_state(self, reader: PostgresReader, writer: psycopg.Connection) -> None:
        with reader.snapshot() as snap:
            before = reader.digest(T, [Segment.whole()], snap)["all"]
            writer.execute("update t set note = 'x' where id < 10; delete from t where id > 900")
            pages = reader.segments(T, snap, None, 300)
            parts = reader.digest(T, pages, snap)
            assert Digest.sum(parts.values(), before.shape) == before
            assert before.rows == 1000
            assert snap.connection.execute("select count(*) from t").fetchone() == (1000,)
        with reader.snapshot() as snap:
            assert reader.digest(T, [Segment.whole()], snap)["all"].rows == 900

    def test_money_transfers_while_digesting(
        self, reader: PostgresReader, writer: psycopg.Connection, url: str
    ) -> None:
        writer.execute(
            "create table accounts (id int primary key, amount int); insert into accounts select g, 100 from generate_series(1, 500) g"
        )
        stop = threading.Event()

        def transfer() -> None:
            with psycopg.connect(url, autocommit=True) as connection:
                while not stop.is_set():
                    connection.execute(
                        "update accounts set amount = amount + case when id = 1 then -1 else 1 end where id in (1, 500)"
                    )

        thread = threading.Thread(target=transfer)
        thread.start()
        try:
            with reader.snapshot() as snap:
                totals = set()
                for _ in range(5):
                    with reader.entered(snap, "test") as connection:
                        totals.add(connection.execute("select sum(amount), max(amount) from accounts").fetchone())
            assert len(totals) == 1
            assert totals.pop()[0] == 50_000  # type: ignore[index]
        finally:
            stop.set()
            thread.join()

    def test_read_only(self, reader: PostgresReader, writer: psycopg.Connection) -> None:
        with reader.snapshot() as snap, pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            snap.connection.execute("delete from t")

    def test_a_snapshot_that_is_gone(self, reader: PostgresReader, writer: psycopg.Connection) -> None:
        with reader.snapshot() as snap:
            writer.execute("select pg_terminate_backend(%s)", [snap.connection.info.backend_pid])
            with pytest.raises(TransientFailure, match="snapshot of the source is gone"):
                reader.digest(reader.source(T), [Segment.whole()], snap)
        with reader.connect("x") as connection, pytest.raises(TransientFailure):
            enter_snapshot(connection, "no such token")

    def test_no_connection_is_left(self, reader: PostgresReader, writer: psycopg.Connection) -> None:
        with reader.snapshot() as snap:
            reader.digest(T, [Segment.whole()], snap)
        count = "select count(*) from pg_stat_activity where application_name like 'millrace%' and datname = current_database()"
        for _ in range(100):
            if writer.execute(count).fetchone() == (0,):
                return
        pytest.fail("a connection is left")

    def test_server_names_the_cluster(self, reader: PostgresReader, writer: psycopg.Connection, url: str) -> None:
        with reader.snapshot() as snap:
            assert snap.server == str(writer.execute("select system_identifier from pg_control_system()").fetchone()[0])  # type: ignore[index]
        writer.execute("drop role if exists plain; create role plain login")
        writer.execute("revoke execute on function pg_control_system() from public")
        try:
            plain = PostgresReader(database_from_url(psycopg.conninfo.make_conninfo(url, user="plain"), "SRC"))
            with plain.snapshot() as snap:
                assert snap.server.startswith("at:127.0.0.1:")
        finally:
            writer.execute("grant execute on function pg_control_system() to public; drop role plain")


def look(reader: PostgresReader, position: Cursor | None) -> tuple[set[int], Cursor]:
    """Read the ids since a position, and return the position afterwards."""
    with reader.snapshot() as snap:
        source = reader.source(T, connection=snap.connection)
        wanted = source if position is None else reader.changes(source, position, snap)
        rows = snap.connection.execute(wanted.select([source["id"].identifier])).fetchall()
        return {row[0] for row in rows}, reader.cursor(source, "changed", snap)


class TestChanges:
    def test_first_position(self, reader: PostgresReader, writer: psycopg.Connection) -> None:
        ids, position = look(reader, None)
        assert len(ids) == 1000
        assert position.value == "2026-01-01 16:40:00+00"

    def test_new_and_tied_rows(self, reader: PostgresReader, writer: psycopg.Connection) -> None:
        _, position = look(reader, None)
        writer.execute("insert into t values (2001, '2026-01-01 16:40+00'), (2002, '2026-02-01'), (2003, '2026-02-01')")
        ids, position = look(reader, position)
        assert ids == {1000, 2001, 2002, 2003}
        writer.execute("insert into t values (2004, '2026-02-01')")
        ids, _ = look(reader, position)
        assert ids == {2002, 2003, 2004}

    def test_nothing_changed_reads_only_ties(self, reader: PostgresReader, writer: psycopg.Connection) -> None:
        _, position = look(reader, None)
        ids, _ = look(reader, position)
        assert ids == {1000}

    def test_late_commit_with_an_old_value(self, reader: PostgresReader, writer: psycopg.Connection, url: str) -> None:
        with psycopg.connect(url) as late:
            late.execute("insert into t values (3001, '2020-01-01')")
            _, position = look(reader, None)
            writer.execute("insert into t values (3002, '2026-03-01')")
            late.commit()
        ids, position = look(reader, position)
        assert ids >= {3001, 3002}
        assert len(ids) < 10
        ids, _ = look(reader, position)
        assert 3001 not in ids

    def test_late_commit_of_a_savepoint(self, reader: PostgresReader, writer: psycopg.Connection, url: str) -> None:
        with psycopg.connect(url) as late:
            late.execute("savepoint a")
            late.execute("insert into t values (3001, '2020-01-01')")
            late.execute("release a")
            late.execute("savepoint b")
            late.execute("update t set note = 'late' where id = 5")
            writer.execute("insert into t values (3002, '2026-03-01')")  # an id above the subtransactions'
            _, position = look(reader, None)
            late.execute("savepoint c")
            late.execute("insert into t values (3003, '2019-01-01')")
            late.commit()
        ids, _ = look(reader, position)
        assert ids >= {5, 3001, 3003}

    def test_update_without_moving_the_cursor(self, reader: PostgresReader, writer: psycopg.Connection) -> None:
        _, position = look(reader, None)
        writer.execute("update t set note = 'silent' where id = 7")
        assert 7 in look(reader, position)[0]

    def test_rows_without_a_value_are_always_read(self, reader: PostgresReader, writer: psycopg.Connection) -> None:
        writer.execute("insert into t values (4001, null)")
        _, position = look(reader, None)
        for _ in range(2):
            ids, position = look(reader, position)
            assert 4001 in ids

    def test_vacuum_freeze_does_not_bring_rows_back(self, reader: PostgresReader, writer: psycopg.Connection) -> None:
        _, position = look(reader, None)
        writer.execute("vacuum (freeze) t")
        assert look(reader, position)[0] == {1000}

    def test_another_cluster_uses_the_value_only(self, reader: PostgresReader, writer: psycopg.Connection) -> None:
        _, position = look(reader, None)
        writer.execute("insert into t values (5001, '2020-01-01')")
        moved = Cursor(position.column, position.value, position.snapshot, "another cluster")
        assert look(reader, moved)[0] == {1000}

    def test_views_use_the_value_only(self, reader: PostgresReader, writer: psycopg.Connection) -> None:
        writer.execute("create view v as select * from t")
        position = replace(look(reader, None)[1], table=None)
        writer.execute("insert into t values (5001, '2020-01-01')")
        with reader.snapshot() as snap:
            source = reader.changes(reader.source(TableRef("public", "v"), connection=snap.connection), position, snap)
            assert snap.connection.execute(source.select()).fetchall()[0][0] == 1000

    @pytest.mark.parametrize(
        ("oldest", "row", "changed"),
        [
            (100, 99, False),
            (100, 100, True),
            (100, 5_000, True),
            ((1 << 32) + 100, 99, False),
            ((1 << 32) + 100, 101, True),
            ((1 << 32) - 10, 4_294_967_280, False),
            ((1 << 32) - 10, 4_294_967_290, True),
            ((1 << 32) - 10, 50, True),  # gone round
            ((1 << 32) + 50, 4_294_967_290, False),
        ],
    )
    def test_ids_compare_modulo_32_bits(
        self, reader: PostgresReader, writer: psycopg.Connection, oldest: int, row: int, changed: bool
    ) -> None:
        source = reader.source(T)
        found = change_predicate(Cursor("changed", "infinity", f"{oldest}:{oldest}:", "s"), source["changed"])
        query = f"select {found.as_string(writer)} from (select '{row}'::xid as xmin, '2020-01-01'::timestamptz as changed) as r"
        assert writer.execute(query).fetchone() == (changed,)  # type: ignore[call-overload]

    def test_too_many_transactions_since_means_all(self, reader: PostgresReader, writer: psycopg.Connection) -> None:
        column = reader.source(T)["changed"]
        old = Cursor("changed", "infinity", "1000:1000:", "s")
        assert change_predicate(old, column, now=f"5000:{1000 + (1 << 31)}:").as_string(writer) == "true"
        assert change_predicate(old, column, now="5000:6000:").as_string(writer) != "true"

    def test_text_cursor_is_compared_by_bytes(self, reader: PostgresReader, writer: psycopg.Connection) -> None:
        writer.execute("alter table t add day text; update t set day = case when id % 2 = 0 then 'a' else 'B' end")
        with reader.snapshot() as snap:
            assert reader.cursor(reader.source(T, connection=snap.connection), "day", snap).value == "a"

    @pytest.mark.parametrize("name", ["n", "a", "b"])
    def test_value_is_the_highest_by_its_type(
        self, reader: PostgresReader, writer: psycopg.Connection, name: str
    ) -> None:
        writer.execute(f'create table numbers ("{name}" int); insert into numbers values (9), (10), (-100)')  # type: ignore[call-overload]
        with reader.snapshot() as snap:
            source = reader.source(TableRef("public", "numbers"), connection=snap.connection)
            assert reader.cursor(source, name, snap).value == "10"

    def test_unknown_and_unordered_cursor(self, reader: PostgresReader, writer: psycopg.Connection) -> None:
        writer.execute("alter table t add doc json")
        with reader.snapshot() as snap:
            source = reader.source(T, connection=snap.connection)
            with pytest.raises(NotFound, match="has no column chnged") as caught:
                reader.cursor(source, "chnged", snap)
            assert caught.value.hint == 'did you mean "changed"?'
        with reader.snapshot() as snap:
            source = reader.source(T, connection=snap.connection)
            with pytest.raises(ContractBroken, match="json, which has no order"):
                reader.cursor(source, "doc", snap)

    def test_empty_table(self, reader: PostgresReader, writer: psycopg.Connection) -> None:
        writer.execute("truncate t")
        _, position = look(reader, None)
        assert position.value is None
        writer.execute("insert into t values (1, '2020-01-01')")
        assert look(reader, position)[0] == {1}


class TestSource:
    @pytest.fixture
    def snap(self, reader: PostgresReader, writer: psycopg.Connection) -> Iterator[PostgresSnapshot]:
        with reader.snapshot() as snap:
            yield snap

    def rows(self, reader: PostgresReader, snap: PostgresSnapshot, **options: str) -> tuple[Source, int]:
        source = reader.source(T, connection=snap.connection, **options)
        count = reader.digest(source, [Segment.whole()], snap)["all"].rows
        assert len(snap.connection.execute(source.select()).fetchall()) == count
        return source, count

    def test_condition(self, reader: PostgresReader, snap: PostgresSnapshot) -> None:
        source, count = self.rows(reader, snap, where="id <= 10 or note like 'n99%' -- the last")
        assert count == 21
        assert source.paged

    def test_plain_columns_stay_a_table(self, reader: PostgresReader, snap: PostgresSnapshot) -> None:
        source, count = self.rows(reader, snap, select='NOTE, "id"', where="changed is not null")
        assert (source.names, count, source.paged, source.key) == (("note", "id"), 1000, True, ("id",))

    def test_expressions(self, reader: PostgresReader, snap: PostgresSnapshot) -> None:
        source, count = self.rows(
            reader, snap, select="id, upper(note) as loud", where="changed < '2026-01-01 01:00+00'"
        )
        assert (source.names, count, source.paged) == (("id", "loud"), 59, False)

    def test_a_query(self, reader: PostgresReader, snap: PostgresSnapshot) -> None:
        query = "with a as (select * from t where id % 2 = 0) select id, '%s {}' as odd, note from a; -- done"
        source, count = self.rows(reader, snap, select=query.replace("; -- done", " ;\n"), where="id > 500")
        assert (source.names, count, source.paged) == (("id", "odd", "note"), 250, False)
        assert [segment.how for segment in reader.segments(source, snap, None, 10)] == ["all"]

    @pytest.mark.parametrize(
        "options",
        [
            {"where": "true) or (false"},
            {"where": "id = 1; drop table t"},
            {"where": "id = 1 order by id"},
            {"where": "select 1"},
            {"where": "id = 1 /* open"},
            {"where": "exists (with d as (delete from t returning id) select 1 from d)"},
            {"select": "delete from t"},
            {"select": "select 1; select 2"},
            {"select": "select * into copy from t"},
            {"select": "select * from t for update"},
            {"select": "with d as (delete from t returning *) select * from d"},
            {"select": "select 1) as q; drop table t; --"},
            {"select": "id from other"},
            {"select": "(select"},
        ],
    )
    def test_what_is_refused(self, reader: PostgresReader, snap: PostgresSnapshot, options: dict[str, str]) -> None:
        with pytest.raises(UsageError) as caught:
            reader.source(T, connection=snap.connection, **options)
        assert "<class" not in str(caught.value)
        assert "\x1b" not in str(caught.value)

    def test_functions_that_write_fail_in_the_snapshot(
        self, reader: PostgresReader, snap: PostgresSnapshot, writer: psycopg.Connection
    ) -> None:
        writer.execute("create sequence s")
        writer.execute("create function number() returns bigint volatile language sql as $$ select nextval('s') $$")
        source = reader.source(T, select="select number() as n")
        with pytest.raises(MillraceError, match="could not digest"):
            reader.digest(source, [Segment.whole()], snap)

    def test_unknown_columns(self, reader: PostgresReader, snap: PostgresSnapshot) -> None:
        with pytest.raises(NotFound, match="has no column nott") as caught:
            reader.source(T, select="id, nott", connection=snap.connection)
        assert caught.value.hint == 'did you mean "note"?'

    def test_segments_of_tables_without_pages(
        self, reader: PostgresReader, snap: PostgresSnapshot, writer: psycopg.Connection
    ) -> None:
        writer.execute(
            "create table p (id int primary key, x text) partition by range (id);"
            "create table p1 partition of p for values from (0) to (500); create table p2 partition of p default;"
            "insert into p select g, 'x' from generate_series(0, 999) g; analyze p, p1, p2; create view v as select * from p"
        )
        with reader.snapshot() as fresh:
            p, v = TableRef("public", "p"), TableRef("public", "v")
            segments = reader.segments(p, fresh, None, 300)
            assert [segment.how for segment in segments] == ["range"] * 3
            assert sum(d.rows for d in reader.digest(p, segments, fresh).values()) == 1000
            assert [segment.how for segment in reader.segments(v, fresh, None, 300)] == ["all"]
            changes = reader.segments(T, fresh, Cursor("changed", "2026-01-01"), 300)
            assert [segment.id for segment in changes] == ["changes"]

    def test_table_dropped_meanwhile(self, reader: PostgresReader, writer: psycopg.Connection) -> None:
        source = reader.source(T)
        writer.execute("drop table t")
        with reader.snapshot() as snap, pytest.raises(NotFound, match=r"could not digest public\.t"):
            reader.digest(source, [Segment.whole()], snap)

    def test_right_taken_meanwhile(self, reader: PostgresReader, writer: psycopg.Connection, url: str) -> None:
        writer.execute("drop role if exists weak; create role weak login; grant select on t to weak")
        try:
            weak = PostgresReader(database_from_url(psycopg.conninfo.make_conninfo(url, user="weak"), "SRC"))
            source = weak.source(T)
            writer.execute("revoke select on t from weak")
            with weak.snapshot() as snap, pytest.raises(PermissionMissing) as caught:
                weak.digest(source, [Segment.whole()], snap)
            assert caught.value.hint == "GRANT SELECT ON public.t TO weak;"
        finally:
            writer.execute("drop owned by weak; drop role weak")


def test_inheritance_reads_each_row_once(db18: str) -> None:
    with connect(database_from_url(db18, "SRC")) as connection:
        connection.execute(
            "create table t (id int primary key); create table c () inherits (t); insert into t values (1); insert into c values (2), (3)"
        )
    reader = PostgresReader(database_from_url(db18, "SRC"))
    with reader.snapshot() as snap:
        segments = reader.segments(T, snap, None, 1)
        assert {segment.how for segment in segments} == {"range"}
        assert sum(d.rows for d in reader.digest(T, segments, snap).values()) == 3
