"""Faults of servers and processes while a table is copied: a retry or one more run ends in the right rows, once."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from doors import Copy, execute, leftovers, rows

from millrace.app import CopyOptions, copy_table
from millrace.core import events
from millrace.errors import AuthenticationFailed, MillraceError
from millrace.testing.servers import PostgresServer, start_postgres, temporary_postgres

pytestmark = [pytest.mark.servers, pytest.mark.slow]

KILLS = int(os.environ.get("MILLRACE_KILLS", "4"))  # 50 take some two minutes
ACCOUNTS = 20_000
TOTAL = ACCOUNTS * 100

TABLE = f"""
create table accounts (id bigint primary key, balance numeric(12, 2) not null, note text);
insert into accounts select i, 100, 'note ' || i from generate_series(1, {ACCOUNTS}) as i;
"""


@contextmanager
def transfers(url: str, seed: int = 1) -> Iterator[None]:
    """Move money between accounts all the time: the total never changes, the rows always do."""
    stop, chance = threading.Event(), random.Random(seed)

    def move() -> None:
        with psycopg.connect(url) as connection:
            while not stop.is_set():
                one, two = chance.randint(1, ACCOUNTS), chance.randint(1, ACCOUNTS)
                amount = chance.randint(1, 50)
                statement = "update accounts set balance = balance + %s where id = %s"
                connection.execute(statement, (-amount, one))
                connection.execute(statement, (amount, two))
                connection.commit()

    thread = threading.Thread(target=move)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def total(url: str) -> list[Any]:
    return rows(url, "select count(*), sum(balance)::int from accounts")


@pytest.mark.parametrize("cut", ["killed", "terminated"])
def test_case_13_21_22_cut_at_random_while_rows_move(db15: str, db18: str, cut: str) -> None:
    """Killed processes, and connections cut by either server, at random moments; the total is constant throughout."""
    execute(db15, *TABLE.strip().split(";\n"))
    chance = random.Random(20_261_121)
    environment = {**os.environ, "SRC": db15, "DST": db18}
    command = [sys.executable, "-m", "millrace", "copy", "env:SRC", "accounts", "env:DST", "accounts"]
    seconds, ends = 1.0, {"cut": 0, "done": 0}
    with transfers(db15):
        for _ in range(KILLS):
            since = time.monotonic()
            child = subprocess.Popen(
                command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            time.sleep(0.25 + chance.random() * seconds)
            if cut == "killed":
                child.send_signal(signal.SIGKILL)
            else:
                for url in (db15, db18):
                    rows(
                        url,
                        "select pg_terminate_backend(pid) from pg_stat_activity"
                        " where application_name like 'millrace%' and datname = current_database()",
                    )
            _, error = child.communicate(timeout=120)
            assert "Traceback" not in error
            if child.returncode == 0:
                seconds = max(0.2, time.monotonic() - since - 0.25)
            ends["done" if child.returncode == 0 else "cut"] += 1
            if rows(db18, "select to_regclass('accounts')") != [(None,)]:
                assert total(db18) == [(ACCOUNTS, TOTAL)], "a reader never sees half of a transfer"
        result = copy_table(db15, "accounts", db18, "accounts", CopyOptions(), trusted_urls=True)
        assert result.entry.level == "table"
        assert total(db18) == [(ACCOUNTS, TOTAL)]
    assert ends["cut"] or cut == "terminated", "nothing was cut: the moments are wrong"
    copy_table(db15, "accounts", db18, "accounts", CopyOptions(), trusted_urls=True)
    query = "select a::text from accounts as a order by 1"
    assert rows(db15, query) == rows(db18, query)
    assert leftovers(db15) == leftovers(db18) == []
    assert rows(db15, "select slot_name from pg_replication_slots") == []


@pytest.fixture
def own() -> Iterator[PostgresServer]:
    """A server that a test may restart."""
    with temporary_postgres("15", {"shared_buffers": "32MB"}) as server:
        yield server


@pytest.mark.parametrize("side", ["source", "target"])
def test_case_21_a_server_restarts_in_mid_copy(own: PostgresServer, db15: str, side: str) -> None:
    """Sessions end, for a moment nobody answers; the copy's own retry brings it to its end."""
    source, target = (own.url(), db15) if side == "source" else (db15, own.url())
    execute(source, *TABLE.strip().split(";\n"))
    again: list[PostgresServer] = []

    def restart() -> None:
        own.stop()
        again.append(start_postgres(own.bin, own.data, {"fsync": "off"}, own.port))

    options = CopyOptions(segment_rows=2_000, workers=1)
    reached: list[str] = []

    def listen(point: str) -> None:
        if point == "postgres.stage.segment" and not reached:
            reached.append(point)
            restart()

    stop = events.listen(listen)
    try:
        result = copy_table(source, "accounts", target, "accounts", options, trusted_urls=True)
    finally:
        stop()
    assert reached
    assert (result.entry.rows, result.entry.level) == (ACCOUNTS, "table")
    assert total(target) == [(ACCOUNTS, TOTAL)]
    assert leftovers(target) == []
    for server in again:
        server.stop()


@pytest.mark.parametrize(
    "change",
    [
        "truncate accounts",
        "alter table accounts alter column note type varchar(20)",
        "drop table accounts",
        "alter table accounts add column more int default 7",
    ],
)
def test_case_20_the_table_is_changed_in_mid_copy(db15: str, db18: str, change: str) -> None:
    """Whoever changes the table waits for the copy, as for any reader."""
    execute(db15, *TABLE.strip().split(";\n"))
    copy = Copy(db15, db18, table="accounts", segment_rows=2_000, workers=1)
    blocked: list[str] = []

    def attempt(point: str) -> None:
        if point == "postgres.stage.segment" and not blocked:
            try:
                execute(db15, "set lock_timeout = '100ms'", change)
            except psycopg.errors.LockNotAvailable as error:
                blocked.append(str(error))

    stop = events.listen(attempt)
    try:
        entry = copy.run()
    finally:
        stop()
    assert blocked, "the change went through while the table was read"
    assert entry is not None
    assert total(db18) == [(ACCOUNTS, TOTAL)]


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_case_24_the_targets_disk_is_full(own: PostgresServer, db15: str, tmp_path: Path) -> None:
    place = own.data.parent / "small"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", place], check=False).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        owner = own.data.stat()
        os.chown(place, owner.st_uid, owner.st_gid)
        execute(own.url(), f"create tablespace small location '{place}'", "create database d")
        execute(own.url(), "alter database d set default_tablespace = small")
        execute(db15, *TABLE.strip().split(";\n"))
        target = own.url("d")
        with pytest.raises(MillraceError, match="No space left") as caught:
            copy_table(db15, "accounts", target, "accounts", CopyOptions(segment_rows=4_000), trusted_urls=True)
        assert "the server's disk is full: make room" in str(caught.value)
        assert rows(target, "select to_regclass('public.accounts')") == [(None,)]
        subprocess.run(["mount", "-o", "remount,size=64m", place], check=True)
        result = copy_table(db15, "accounts", target, "accounts", CopyOptions(segment_rows=4_000), trusted_urls=True)
        assert result.entry.rows == ACCOUNTS
        assert leftovers(target) == []
    finally:
        own.stop()
        subprocess.run(["umount", "-l", place], check=True)


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """Make a certificate that signs itself, for localhost."""
    key, cert = folder / f"{name}.key", folder / f"{name}.crt"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    more = ["-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", cert]
    subprocess.run([*command, *more], check=True, capture_output=True)
    return key, cert


def test_tls_is_verified(db15: str, tmp_path: Path) -> None:
    """A server that takes only TLS: `verify-full` with its own certificate works, everything else is one clear error."""
    with temporary_postgres("15", {"shared_buffers": "32MB"}) as server:
        key, cert = certificate(server.data, "server")
        owner = server.data.stat()
        for file in (key, cert):
            os.chown(file, owner.st_uid, owner.st_gid)
        key.chmod(0o600)
        hba = server.data / "pg_hba.conf"
        hba.write_text("hostssl all all 127.0.0.1/32 trust\n")
        execute(server.url(), f"alter system set ssl_cert_file = '{cert}'", f"alter system set ssl_key_file = '{key}'")
        execute(server.url(), "alter system set ssl = on", *TABLE.strip().split(";\n"), "select pg_reload_conf()")
        trusted = tmp_path / "root.crt"
        trusted.write_bytes(cert.read_bytes())
        _, other = certificate(tmp_path, "other")
        base = f"postgresql://postgres@localhost:{server.port}/postgres?hostaddr=127.0.0.1"
        good = f"{base}&sslmode=verify-full&sslrootcert={trusted}"
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:  # the server reads its settings again when it comes to it
            with suppress(psycopg.OperationalError), psycopg.connect(good):
                break
            time.sleep(0.02)
        result = copy_table(good, "accounts", db15, "accounts", CopyOptions(), trusted_urls=True)
        assert result.entry.rows == ACCOUNTS
        assert rows(good, "select ssl from pg_stat_ssl where pid = pg_backend_pid()") == [(True,)]
        for bad, text in (
            (f"{base}&sslmode=verify-full&sslrootcert={other}", "certificate verify failed"),
            (f"{base}&sslmode=disable", "no encryption"),
            (good.replace("localhost", "otherhost"), "does not match host name"),
        ):
            with pytest.raises(AuthenticationFailed) as caught:
                copy_table(bad, "accounts", db15, "other", CopyOptions(), trusted_urls=True)
            assert text in str(caught.value)
