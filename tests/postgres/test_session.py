"""Databases on the command line, sessions, and what errors mean."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
import traceback
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
from psycopg import sql

from millrace.core import secrets
from millrace.core.names import TableRef
from millrace.core.secrets import redact
from millrace.errors import (
    AuthenticationFailed,
    ConnectionRefused,
    ContractBroken,
    Handling,
    KeyInvalid,
    MillraceError,
    NotFound,
    PermissionMissing,
    TransientFailure,
    UsageError,
)
from millrace.postgres.session import (
    Database,
    connect,
    database_from_url,
    not_connected,
    parse_database,
    pins,
    translate,
    translated,
)

PASSWORD = 'p@ss:/%"'


def hidden(text: str) -> bool:
    return PASSWORD not in text and quote(PASSWORD, safe="") not in text


def everything(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)) + repr(error) + str(vars(error))


class TestParse:
    def test_env_holds_a_url(self) -> None:
        found = parse_database("env:SRC", {"SRC": f"postgresql://reader:{quote(PASSWORD, safe='')}@db:6000/shop"})
        assert found.password is not None
        assert found.password.reveal() == PASSWORD
        assert dict(found.parameters) == {"user": "reader", "host": "db", "port": "6000", "dbname": "shop"}
        assert hidden(repr(found))
        assert hidden(found.place)
        assert found.place == "env:SRC (host db, port 6000, user reader, database shop)"

    def test_env_holds_keywords_with_the_raw_password(self) -> None:
        found = parse_database("env:SRC", {"SRC": f"host=db user=reader password={PASSWORD} dbname=shop"})
        assert found.password is not None
        assert found.password.reveal() == PASSWORD
        assert hidden(repr(found))

    def test_missing_variable_is_named(self) -> None:
        with pytest.raises(UsageError, match="SRC is not set"):
            parse_database("env:SRC", {"OTHER": "x"})

    def test_unreadable_value_is_not_repeated(self) -> None:
        with pytest.raises(UsageError) as caught:
            parse_database("env:SRC", {"SRC": f"postgresql://reader:{PASSWORD}@db/shop"})
        assert hidden(everything(caught.value))
        assert "%40" in str(caught.value)

    @pytest.mark.parametrize(
        "url",
        [
            f"postgresql://reader:{quote(PASSWORD, safe='')}@db/shop",
            f"postgresql://reader:{PASSWORD}@db/shop",
            f"postgresql://reader@db/shop?password={quote(PASSWORD, safe='')}",
            f"postgresql://reader@db/shop?sslpassword={quote(PASSWORD, safe='')}",
        ],
    )
    def test_password_on_the_command_line_is_refused(self, url: str) -> None:
        with pytest.raises(UsageError) as caught:
            parse_database(url, {})
        assert "env:" in str(caught.value)
        assert hidden(everything(caught.value))

    def test_keywords_on_the_command_line_are_not_repeated(self) -> None:
        with pytest.raises(UsageError) as caught:
            parse_database(f"host=db password={PASSWORD}", {})
        assert hidden(everything(caught.value))

    def test_the_name_of_a_variable_alone_is_told_what_it_lacks(self) -> None:
        with pytest.raises(UsageError, match="SRC is not a database") as caught:
            parse_database("SRC", {"SRC": "postgresql://reader@db/shop"})
        assert "did you mean env:SRC?" in (caught.value.hint or "")

    def test_url_without_password(self) -> None:
        found = parse_database("postgresql://reader:@127.0.0.1/shop", {})
        assert found.password is None
        assert found.label == "shop on 127.0.0.1"

    def test_service(self, tmp_path: Path, db15: str, monkeypatch: pytest.MonkeyPatch) -> None:
        file = tmp_path / "services"
        parameters = psycopg.conninfo.conninfo_to_dict(db15)
        file.write_text("[shop]\n" + "\n".join(f"{name}={value}" for name, value in parameters.items()) + "\n")
        monkeypatch.setenv("PGSERVICEFILE", str(file))
        with connect(parse_database("service:shop", {})) as connection:
            assert connection.info.dbname == parameters["dbname"]
        with pytest.raises(NotFound, match="service is not defined"):
            connect(parse_database("service:nope", {}))


class TestConnect:
    def test_session_is_pinned(self, db15: str, db18: str) -> None:
        for url in (db15, db18):
            with psycopg.connect(url, autocommit=True) as admin:
                name = sql.Identifier(admin.info.dbname)
                for setting in ("timezone = 'Asia/Seoul'", "statement_timeout = 1", "intervalstyle = 'iso_8601'"):
                    admin.execute(sql.SQL("alter database {} set ").format(name) + sql.SQL(setting))
            with connect(database_from_url(url, "db"), purpose="test") as connection:
                row = connection.execute(
                    "select timestamptz '2024-11-03 01:30-07', interval '1 month 3 days', 0.1::float8, '\\xff'::bytea,"
                    " current_setting('application_name'), current_setting('row_security'),"
                    " current_setting('statement_timeout'), current_setting('client_encoding')"
                ).fetchone()
                texts = connection.execute("select (timestamptz '2024-11-03 01:30-07')::text, (interval '1 mon')::text")
                assert texts.fetchone() == ("2024-11-03 08:30:00+00", "1 mon")
                assert row is not None
                assert row[4:] == ("millrace test", "off", "0", "UTF8")
                assert connection.autocommit

    def test_autocommit_can_be_off(self, db18: str) -> None:
        with connect(database_from_url(db18, "db"), autocommit=False) as connection:
            connection.execute("select 1")
            assert connection.info.transaction_status is psycopg.pq.TransactionStatus.INTRANS

    def test_pins_are_valid_on_both_majors(self, db15: str, db18: str) -> None:
        for url in (db15, db18):
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute(pins(connection.info.server_version))

    def test_unreachable_host(self) -> None:
        with pytest.raises(ConnectionRefused) as caught:
            connect(database_from_url(f"postgresql://reader:{quote(PASSWORD, safe='')}@127.0.0.1:1/shop", "SRC"))
        text = str(caught.value)
        for part in ("SRC", "127.0.0.1", "port 1", "reader", "shop", "nothing listens there"):
            assert part in text
        assert hidden(everything(caught.value))

    def test_a_host_that_does_not_answer(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            port = silent.getsockname()[1]
            database = database_from_url(f"postgresql://reader@127.0.0.1:{port}/shop?connect_timeout=2", "SRC")
            with pytest.raises(ConnectionRefused, match="no answer in time"):
                connect(database)
        assert database_from_url("postgresql://h/x", "SRC").keywords()["connect_timeout"] == "10"

    def test_unknown_host(self) -> None:
        with pytest.raises(ConnectionRefused, match="host is not known"):
            connect(database_from_url("postgresql://reader@no.such.host.invalid/shop", "SRC"))

    def test_unknown_database_and_user(self, db15: str) -> None:
        with pytest.raises(NotFound, match="database does not exist"):
            connect(database_from_url(psycopg.conninfo.make_conninfo(db15, dbname="nope"), "SRC"))
        with pytest.raises(AuthenticationFailed):
            connect(database_from_url(psycopg.conninfo.make_conninfo(db15, user="nobody here"), "SRC"))

    def test_database_without_connect_right(self, db15: str) -> None:
        with psycopg.connect(db15, autocommit=True) as admin:
            name = admin.info.dbname
            admin.execute("drop role if exists outsider; create role outsider login")
            admin.execute(sql.SQL("revoke connect on database {} from public").format(sql.Identifier(name)))
        try:
            with pytest.raises(PermissionMissing) as caught:
                connect(database_from_url(psycopg.conninfo.make_conninfo(db15, user="outsider"), "SRC"))
            assert caught.value.hint == f"GRANT CONNECT ON DATABASE {name} TO outsider;"
        finally:
            with psycopg.connect(db15, autocommit=True) as admin:
                admin.execute("drop role outsider")

    def test_old_server_is_refused(self, db15: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("millrace.postgres.session.OLDEST", 999_999)
        with pytest.raises(MillraceError, match="too old"):
            connect(database_from_url(db15, "SRC"))


@pytest.fixture
def with_password(pg15, db15: str):  # type: ignore[no-untyped-def]
    """A role that must give the awkward password: pg_hba asks for it."""
    hba = pg15.data / "pg_hba.conf"
    before = hba.read_text()
    with psycopg.connect(db15, autocommit=True) as admin:
        admin.execute("drop role if exists locked")
        admin.execute(sql.SQL("create role locked login password {}").format(sql.Literal(PASSWORD)))
        hba.write_text("host all locked 127.0.0.1/32 scram-sha-256\n" + before)
        admin.execute("select pg_reload_conf()")
        try:
            yield psycopg.conninfo.make_conninfo(db15, user="locked")
        finally:
            hba.write_text(before)
            admin.execute("select pg_reload_conf()")
            admin.execute("drop role locked")


class TestPassword:
    def test_works_raw_and_encoded(self, with_password: str, caplog: pytest.LogCaptureFixture) -> None:
        parameters = psycopg.conninfo.conninfo_to_dict(with_password)
        url = f"postgresql://locked:{quote(PASSWORD, safe='')}@127.0.0.1:{parameters['port']}/{parameters['dbname']}"
        with caplog.at_level(logging.DEBUG):
            for value in (url, f"{with_password} password={PASSWORD}"):
                with connect(parse_database("env:SRC", {"SRC": value})) as connection:
                    assert connection.execute("select current_user").fetchone() == ("locked",)
        assert hidden(caplog.text)

    def test_wrong_and_missing(self, with_password: str) -> None:
        database = database_from_url(f"{with_password} password={PASSWORD}x", "SRC")
        with pytest.raises(AuthenticationFailed, match="wrong user or password") as caught:
            connect(database)
        assert hidden(everything(caught.value))
        assert "PGPASSWORD" in (caught.value.hint or "")
        with pytest.raises(AuthenticationFailed, match="a password is needed"):
            connect(database_from_url(with_password, "SRC"))

    def test_server_words_are_redacted(self, with_password: str) -> None:
        with (
            connect(database_from_url(f"{with_password} password={PASSWORD}", "SRC")) as connection,
            pytest.raises(MillraceError) as caught,
            translated("SRC", "cast", connection=connection),
        ):
            connection.execute(sql.SQL("select {}::int").format(sql.Literal(PASSWORD)))
        assert hidden(str(caught.value))
        assert hidden(redact(PASSWORD))

    @pytest.mark.parametrize("word", ["wrong", "user", "password", "could not", "nothing"])
    def test_a_password_of_common_words_leaves_no_gap(self, word: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """A gap in a sentence that everybody knows would give it away; elsewhere it is hidden as any other."""
        monkeypatch.setattr(secrets, "_known", set())
        secrets.remember(word)
        database = Database("env:BAD", {"host": "db1", "user": "reader", "dbname": "shop"})
        words = f'FATAL:  password authentication failed for user "reader"\nit was {word}, or {word}.'
        said = redact(str(not_connected(words, database)))
        assert "cannot connect to env:BAD: wrong user or password" in said
        assert 'password authentication failed for user "reader"' in said
        assert "it was ***, or ***." in said
        assert "\n  look at both where they come from: the URL, ~/.pgpass or PGPASSWORD;" in said

    def test_a_password_that_contains_a_fixed_sentence_is_hidden(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(secrets, "_known", set())
        secrets.remember("wrong user or password!")
        assert redact("so: wrong user or password!") == "so: ***"


STATES = [
    ("40001", TransientFailure),
    ("40P01", TransientFailure),
    ("55P03", TransientFailure),
    ("57014", TransientFailure),
    ("25P03", TransientFailure),
    ("25P04", TransientFailure),
    ("53300", TransientFailure),
    ("53200", TransientFailure),
    ("57P01", TransientFailure),
    ("57P02", TransientFailure),
    ("57P03", TransientFailure),
    ("57P05", TransientFailure),
    ("08006", TransientFailure),
    ("08001", TransientFailure),
    ("55006", TransientFailure),
    ("53100", MillraceError),
    ("08P01", MillraceError),
    ("XX001", MillraceError),
    ("0A000", MillraceError),
    ("25006", MillraceError),
    ("28P01", AuthenticationFailed),
    ("28000", AuthenticationFailed),
    ("42501", PermissionMissing),
    ("42P01", NotFound),
    ("42703", NotFound),
    ("3D000", NotFound),
    ("3F000", NotFound),
    ("23505", KeyInvalid),
    ("23514", ContractBroken),
    ("22P05", ContractBroken),
    ("P0001", MillraceError),
]


def test_case_24_every_state_has_a_class(db15: str) -> None:
    found = []
    with connect(database_from_url(db15, "SRC")) as connection:
        raise_it = sql.SQL("do $do$ begin raise exception 'said so' using errcode = {}; end $do$")
        for state, _ in STATES:
            with pytest.raises(MillraceError) as caught, translated("SRC", "do it", connection=connection):
                connection.execute(raise_it.format(sql.Literal(state)))
            assert f"said so (SQLSTATE {state})" in str(caught.value)
            retryable = type(caught.value) in (TransientFailure, ConnectionRefused)
            assert (caught.value.handling is Handling.RETRYABLE) is retryable
            found.append((state, type(caught.value)))
    assert found == STATES


def test_lost_connection_is_transient(db15: str) -> None:
    with connect(database_from_url(db15, "SRC")) as admin:
        connection = connect(database_from_url(db15, "SRC"))
        admin.execute("select pg_terminate_backend(%s)", [connection.info.backend_pid])
        with pytest.raises(TransientFailure), translated("SRC", "read", connection=connection):
            connection.execute("select pg_sleep(1)")
        with pytest.raises(TransientFailure), translated("SRC", "read", connection=connection):
            connection.execute("select 1")
        connection.close()


class TestGrants:
    @pytest.fixture
    def reader(self, db18: str):  # type: ignore[no-untyped-def]
        with psycopg.connect(db18, autocommit=True) as admin:
            admin.execute('drop role if exists "user"; create role "user" login')
            admin.execute("create table orders (id int); create schema sealed; create table sealed.t (id int)")
            admin.execute("create sequence counter")
            with connect(database_from_url(psycopg.conninfo.make_conninfo(db18, user="user"), "SRC")) as connection:
                yield connection
            admin.execute('drop owned by "user"; drop role "user"')

    @pytest.mark.parametrize(
        ("statement", "privilege", "on", "hint"),
        [
            ("select * from orders", None, TableRef("public", "orders"), 'GRANT SELECT ON public.orders TO "user";'),
            ("select * from orders", None, None, 'GRANT SELECT ON orders TO "user";'),
            (
                "insert into orders values (1)",
                "INSERT",
                TableRef("public", "orders"),
                'GRANT INSERT ON public.orders TO "user";',
            ),
            ("select * from sealed.t", None, TableRef("sealed", "t"), 'GRANT USAGE ON SCHEMA sealed TO "user";'),
            ("create table sealed.x (id int)", "CREATE", None, 'GRANT CREATE ON SCHEMA sealed TO "user";'),
            ("select nextval('counter')", None, None, 'GRANT USAGE ON SEQUENCE counter TO "user";'),
        ],
    )
    def test_hint_is_the_grant(
        self, reader: psycopg.Connection, statement: str, privilege: str | None, on: TableRef | None, hint: str
    ) -> None:
        with (
            pytest.raises(PermissionMissing) as caught,
            translated("SRC", "do it", connection=reader, privilege=privilege, on=on),
        ):
            reader.execute(sql.SQL(statement))
        assert caught.value.hint == hint

    def test_create_schema(self, reader: psycopg.Connection) -> None:
        with pytest.raises(PermissionMissing) as caught, translated("SRC", "make a schema", connection=reader):
            reader.execute("create schema mine")
        assert caught.value.hint == f'GRANT CREATE ON DATABASE {reader.info.dbname} TO "user";'

    def test_owner(self, reader: psycopg.Connection) -> None:
        with pytest.raises(psycopg.Error) as raised:
            reader.execute("drop table orders")
        found = translate(raised.value, where="SRC", doing="drop orders")
        assert isinstance(found, PermissionMissing)
        assert "owner of table orders" in str(found.hint)


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_the_base_install_is_enough() -> None:
    code = (
        "import sys, millrace.postgres.diff, millrace.postgres.reader;"
        "print([m for m in ('pyarrow', 'adbc_driver_postgresql', 'sqlglot', 'numpy', 'duckdb') if m in sys.modules])"
    )
    assert run_python(code) == "[]"


def test_a_missing_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['adbc_driver_postgresql'] = None\n"
        "from millrace.errors import ExtraMissing\n"
        "try:\n    import millrace.postgres.arrow\nexcept ExtraMissing as error:\n    print(error.hint)"
    )
    assert "millrace[lake]" in run_python(code)
