"""The pump between two real servers: bytes, errors of either side, interruption, memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql

from millrace.errors import ContractBroken, Interrupted, MillraceError, TransientFailure
from millrace.postgres.pump import copy_in, copy_out, relay
from millrace.postgres.session import Connection, connect, database_from_url


@pytest.fixture(params=["15 to 18", "18 to 15"])
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[Connection, Connection]]:
    one, two = request.getfixturevalue("db15"), request.getfixturevalue("db18")
    urls = (one, two) if request.param == "15 to 18" else (two, one)
    with connect(database_from_url(urls[0], "DB")) as source, connect(database_from_url(urls[1], "DB")) as target:
        source.execute("create table t as select i as id, repeat('x', i % 300) as v from generate_series(1, 20000) i")
        target.execute("create table t (id int, v text)")
        yield source, target


COLUMNS = [sql.Identifier("id"), sql.Identifier("v")]


def move(
    ends: tuple[Connection, Connection], query: str = "select id, v from t", *, binary: bool, **more: object
) -> int:
    source, target = ends
    out = copy_out(sql.SQL(query), binary=binary)
    return relay(source, out, target, copy_in(sql.Identifier("t"), COLUMNS, binary=binary), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("binary", [True, False])
def test_rows_arrive(ends: tuple[Connection, Connection], binary: bool) -> None:
    seen = [0, 0]

    def progress(rows: int, size: int) -> None:
        seen[0] += rows
        seen[1] += size

    assert move(ends, binary=binary, progress=progress) == 20000
    query = "select count(*), sum(id), sum(length(v)) from t"
    assert ends[0].execute(query).fetchone() == ends[1].execute(query).fetchone()
    assert seen[0] >= 20000
    assert seen[1] > 20000 * 150
    assert move(ends, "select id, v from t where false", binary=binary) == 0  # both connections can be used again


def test_a_row_larger_than_a_block(ends: tuple[Connection, Connection]) -> None:
    assert move(ends, "select 1, repeat('y', 5000000)", binary=True) == 1
    assert ends[1].execute("select length(v) from t").fetchone() == (5_000_000,)


def test_the_targets_transaction_decides(ends: tuple[Connection, Connection]) -> None:
    ends[1].execute("begin")
    move(ends, binary=True)
    ends[1].execute("rollback")
    assert ends[1].execute("select count(*) from t").fetchone() == (0,)


@pytest.mark.parametrize(
    ("query", "error", "side"),
    [
        ("select id, (1 / (id - 15000))::text from t", MillraceError, "SRC"),
        ("select no_such from t", MillraceError, "SRC"),
        ("select id::text || 'x', v from t", MillraceError, "DST"),
        ("select null, v from t", ContractBroken, "DST"),
    ],
)
def test_errors_of_either_side(
    ends: tuple[Connection, Connection], query: str, error: type[MillraceError], side: str
) -> None:
    ends[1].execute("alter table t alter id set not null")
    with pytest.raises(error) as caught:
        move(ends, query, binary=False, labels=("SRC", "DST"))
    assert caught.value.where == side
    assert ends[0].closed
    assert ends[1].closed


def test_interruption_ends_both_sides(ends: tuple[Connection, Connection], db15: str, db18: str) -> None:
    blocks = [0]

    def stopping() -> bool:
        blocks[0] += 1
        return blocks[0] > 5

    with pytest.raises(Interrupted):
        move(ends, binary=True, stopping=stopping)
    for url in (db15, db18):
        with psycopg.connect(url) as connection:
            for _ in range(100):
                query = "select 1 from pg_stat_activity where application_name like 'millrace%' and datname = current_database()"
                if connection.execute(query).fetchone() is None:
                    break
                connection.commit()
                time.sleep(0.05)
            else:
                pytest.fail("a session was left")
            assert connection.execute("select count(*) filter (where id > 20000) from t").fetchone() == (0,)


def test_a_pump_that_waits_for_a_lock_can_be_stopped(ends: tuple[Connection, Connection], db15: str, db18: str) -> None:
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    with psycopg.connect(ends[0].info.dsn) as holder:
        holder.execute("lock table t")
        with pytest.raises(Interrupted):
            move(ends, binary=True, stopping=stop.is_set)


@pytest.mark.parametrize("side", [0, 1])
def test_a_lost_connection_is_transient(ends: tuple[Connection, Connection], side: int) -> None:
    pid = ends[side].info.backend_pid
    dsn = ends[side].info.dsn
    done: list[int] = []

    def progress(rows: int, size: int) -> None:
        if not done:
            done.append(rows)
            with psycopg.connect(dsn) as other:
                other.execute("select pg_terminate_backend(%s, 5000)", (pid,))

    query = "select i, repeat('z', 1000) from generate_series(1, 20000) i"
    with pytest.raises(TransientFailure):
        move(ends, query, binary=True, progress=progress)
