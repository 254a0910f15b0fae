"""Sessions that are used again, booked together, and refused behind a proxy that shares them out by transaction."""

from __future__ import annotations

import os
import pwd
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from millrace.errors import MillraceError
from millrace.postgres.reader import PostgresReader
from millrace.postgres.session import connect, database_from_url
from millrace.postgres.sessions import Sessions
from millrace.testing.servers import PostgresServer

pytestmark = [pytest.mark.servers]

PGBOUNCER = Path("/usr/sbin/pgbouncer")
INI = """[databases]
* = host=127.0.0.1 port={server} user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
default_pool_size = {size}
"""


def process(connection: psycopg.Connection) -> int:
    row = connection.execute("select pg_backend_pid()").fetchone()
    assert row is not None
    return int(row[0])


def test_kept_sessions_are_used_again_and_clean(db18: str) -> None:
    kept = Sessions(database_from_url(db18, "db"), keep=True)
    with kept.connect("first") as connection:
        first = process(connection)
        connection.execute("begin; set lock_timeout = 5")
    with kept.connect("second") as connection:
        assert process(connection) == first
        shown = connection.execute("select current_setting('lock_timeout'), current_setting('application_name')")
        assert shown.fetchone() == ("0", "millrace second")
        assert connection.info.transaction_status.name == "IDLE"  # what was open was rolled back
    with psycopg.connect(db18, autocommit=True) as killer:
        killer.execute("select pg_terminate_backend(%s, 5000)", (first,))
    with kept.connect("third") as connection:
        second = process(connection)
        assert second != first  # it was ended meanwhile: another one is opened
    with pytest.raises(RuntimeError), kept.connect("fourth"):
        raise RuntimeError
    with kept.connect("fifth") as connection:
        assert process(connection) != second  # nobody knows what state a failure leaves
    kept.close()
    with psycopg.connect(db18, autocommit=True) as asking:
        left = "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
        deadline = time.monotonic() + 5
        while asking.execute(left).fetchone() != (0,):  # a session needs a moment to end
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_a_limit_is_kept_and_nobody_waits_for_ever(db18: str) -> None:
    """Six threads take two sessions each of a limit of three; the third is taken by who asks while it is free."""
    limited = Sessions(database_from_url(db18, "db"), 3, keep=True)
    open_now, most, lock = 0, 0, threading.Lock()

    def work() -> None:
        nonlocal open_now, most
        with limited.booked(2, 2) as number, limited.session("a") as one, limited.session("b"):
            with lock:
                open_now += number
                most = max(most, open_now)
            one.execute("select pg_sleep(0.01)")
            with limited.booked(1) as more:
                assert more in (0, 1)
            with lock:
                open_now -= number

    threads = [threading.Thread(target=work, daemon=True) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    assert most == 2  # two times two would be more than three
    with limited.booked(9, 9) as number:
        assert number == 3  # what can never be had is not waited for
    limited.close()


@contextmanager
def bouncer(server: PostgresServer, folder: Path, mode: str, size: int) -> Iterator[str]:
    """Start PgBouncer in front of a server; yields the URL of a database behind it."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    settings = folder / f"{mode}.ini"
    settings.write_text(INI.format(server=server.port, port=port, mode=mode, size=size))
    settings.chmod(0o644)
    log = (folder / f"{mode}.log").open("wb")
    user = pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else None  # it refuses root
    with settings.open("rb") as told:  # by its own path the other user may not read it
        running = subprocess.Popen([PGBOUNCER, "/dev/stdin"], stdin=told, user=user, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert running.poll() is None, Path(log.name).read_text()
                assert time.monotonic() < deadline
                time.sleep(0.02)
        yield f"postgresql://postgres@127.0.0.1:{port}/"
    finally:
        running.terminate()
        running.wait(10)
        log.close()


@pytest.mark.skipif(not PGBOUNCER.exists() and not os.environ.get("CI"), reason="PgBouncer is not installed")
def test_transaction_pooling_is_refused_and_session_pooling_is_not(
    pg15: PostgresServer, db15: str, tmp_path: Path
) -> None:
    name = db15.rsplit("/", 1)[1]
    for mode, size in (("transaction", 1), ("transaction", 5), ("statement", 5)):
        with bouncer(pg15, tmp_path, mode, size) as url, pytest.raises(MillraceError) as caught:
            connect(database_from_url(url + name, "shop"))
        assert caught.value.what.startswith("shop is behind a proxy that gives each transaction another session")
        assert "pool_mode = session" in (caught.value.hint or "")
    with bouncer(pg15, tmp_path, "session", 5) as url:
        reader = PostgresReader(database_from_url(url + name, "shop"))
        with reader.snapshot() as snap, reader.entered(snap, "test") as other:
            assert process(other) != process(snap.connection)
