"""Sessions: where a database is, how a connection is opened and pinned, and what its errors mean.

Every session is pinned to the same settings, so that a value has one text on every server: UTF8, UTC, ISO dates.
`row_security` is off: a policy that would hide rows makes the query fail instead. Passwords are `Secret`s from the
first line on; no message of this module holds one.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, LiteralString
from weakref import WeakKeyDictionary

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from millrace.core.names import TableRef
from millrace.core.secrets import Secret, fixed, redact, remember
from millrace.errors import (
    AuthenticationFailed,
    ConnectionRefused,
    MillraceError,
    NotFound,
    PermissionMissing,
    TransientFailure,
    UsageError,
)
from millrace.postgres.sqlstates import translate_state

Connection = psycopg.Connection[tuple[Any, ...]]

OLDEST = 140_000  # hash_record_extended, TID range scans and numeric infinity came with PostgreSQL 14
CONNECT_SECONDS = 10  # a database that needs longer is down or unreachable
_URL = re.compile(r"postgres(?:ql)?://", re.IGNORECASE)
_URL_PASSWORD = re.compile(r"postgres(?:ql)?://[^@/?#]*:[^@]+@", re.IGNORECASE)
_SECRET_KEYWORDS = frozenset({"sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key"})

# What a value's text depends on, and time-outs that would end a long copy. Settings of newer majors come by version.
PINS: Mapping[LiteralString, LiteralString] = {
    "client_encoding": "UTF8",
    "timezone": "UTC",
    "datestyle": "ISO, YMD",
    "intervalstyle": "postgres",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "array_nulls": "on",  # off: a null in an array comes from text as the word NULL
    "standard_conforming_strings": "on",
    "xmloption": "content",
    "xmlbinary": "base64",
    "lc_monetary": "C",
    "quote_all_identifiers": "off",
    "row_security": "off",
    "jit": "off",  # compiling costs more than it saves on the digest, which is one long expression
    "default_transaction_isolation": "read committed",
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
}
PINS_17: Mapping[LiteralString, LiteralString] = {"transaction_timeout": "0"}


@dataclass(frozen=True, slots=True)
class Database:
    """A database to connect to; its repr shows no secret.

    Attributes:
        label: what messages call it: `shop_db`, `env:SRC`.
        parameters: libpq keywords without secrets: host, port, dbname, user, service, sslmode …
        password: the password, or None: libpq looks into PGPASSWORD and pgpass.
        hidden: further secret keywords, like `sslpassword`.
    """

    label: str
    parameters: Mapping[str, str]
    password: Secret | None = None
    hidden: Mapping[str, Secret] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """Label, host, port, user and database for messages, with libpq's defaults filled in."""
        found = self.parameters
        if "service" in found:
            return f"{self.label} (service {found['service']})"
        user = found.get("user") or os.environ.get("PGUSER") or _login()
        host = found.get("host") or found.get("hostaddr") or os.environ.get("PGHOST") or "local socket"
        port = found.get("port") or os.environ.get("PGPORT") or "5432"
        name = found.get("dbname") or os.environ.get("PGDATABASE") or user
        return f"{self.label} (host {host}, port {port}, user {user}, database {name})"

    def keywords(self, purpose: str = "") -> dict[str, str]:
        """Return libpq's keywords with the secrets revealed: for the one call that connects."""
        found = {"connect_timeout": str(CONNECT_SECONDS), **self.parameters}
        found |= {"application_name": f"millrace {purpose}".strip()[:63], "client_encoding": "UTF8"}
        if self.password is not None:
            found["password"] = self.password.reveal()
        return found | {name: secret.reveal() for name, secret in self.hidden.items()}


def _login() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())


def parse_database(text: str, environ: Mapping[str, str]) -> Database:
    """Read a database from the command line: `env:NAME`, `service:NAME` or a URL without a password.

    Args:
        text: what was typed.
        environ: the environment, `.env` included. `env:NAME` may hold a URL or libpq's `host=… password=…`.

    Raises:
        UsageError: another form, a missing variable, or a password in the URL (which is not repeated).
    """
    if inherited := environ.get("PGPASSWORD"):
        remember(inherited)
    if text.startswith("env:"):
        name = text.removeprefix("env:")
        value = environ.get(name, "")
        if not value.strip():
            raise UsageError(
                f"the environment variable {name} is not set",
                where=text,
                hint=f"set it to a URL like postgresql://user:password@host:5432/database: export {name}=…",
            )
        return database_from_url(value, text)
    if text.startswith("service:") and len(text) > len("service:"):
        return Database(text, {"service": text.removeprefix("service:")})
    if not _URL.match(text):
        # the text may be a conninfo with a password: only the name of a variable is repeated
        meant = f"did you mean env:{text}? " if text in environ else ""
        raise UsageError(
            f"{text} is not a database" if meant else "not a database",
            hint=f"{meant}write env:NAME, service:NAME, a URL like postgresql://user@host:5432/database, or, in a"
            " project, the name of a connection",
        )
    refused = UsageError(
        "a password on the command line is visible to every user of this machine",
        hint="put the URL into an environment variable and write env:NAME here, or use ~/.pgpass or PGPASSWORD",
    )
    if _URL_PASSWORD.match(text):
        raise refused
    database = database_from_url(text, "")
    if database.password is not None or database.hidden:
        raise refused
    found = database.parameters
    host = found.get("host") or found.get("hostaddr") or "localhost"
    label = f"{found.get('dbname') or found.get('user') or 'postgres'} on {host}"
    return Database(label, found)


def database_from_url(url: str, label: str) -> Database:
    """Read a URL or libpq's `keyword=value` form, which may hold a password.

    Raises:
        UsageError: libpq cannot read it; the text is not repeated, for it may hold a password.
    """
    try:
        found = {name: str(value) for name, value in conninfo_to_dict(url.strip()).items() if value is not None}
    except psycopg.Error:
        found = {}
    if not found:
        raise UsageError(
            "not a PostgreSQL URL or connection string",
            where=label or None,
            hint="the form is postgresql://user:password@host:5432/database; "
            "in a URL write @ : / % in a password as %40 %3A %2F %25",
        ) from None
    password = found.pop("password", "")
    hidden = {name: Secret(found.pop(name)) for name in _SECRET_KEYWORDS & found.keys()}
    return Database(label, found, Secret(password) if password else None, hidden)


def connect(db: Database, *, autocommit: bool = True, purpose: str = "") -> Connection:
    """Open a connection and pin its session.

    Args:
        db: where to.
        autocommit: psycopg's; with False a transaction begins with the first statement.
        purpose: shown in `pg_stat_activity` as `millrace <purpose>`.

    Raises:
        ConnectionRefused, AuthenticationFailed, NotFound, PermissionMissing: naming label, host, port, user, database.
        MillraceError: the server is too old, or a proxy gives each transaction another session.
    """
    connection = _opened(db, purpose)
    try:
        process = pin(connection)
        if process != connection.info.backend_pid:  # a proxy answers with a number of its own
            _refuse_pooling(connection, db, process)
    except psycopg.Error as error:
        connection.close()
        raise translate(error, where=db.place, doing="set up the session") from error
    except BaseException:
        connection.close()
        raise
    connection.autocommit = autocommit
    return connection


def _opened(db: Database, purpose: str) -> Connection:
    try:
        return psycopg.connect(autocommit=True, prepare_threshold=None, **db.keywords(purpose))  # type: ignore[arg-type]
    except psycopg.Error as error:
        raise not_connected(_words(error), db) from None


def _process(connection: Connection) -> int:
    row = connection.execute("select pg_catalog.pg_backend_pid()").fetchone()
    return int(row[0]) if row else 0


def _refuse_pooling(connection: Connection, db: Database, process: int) -> None:
    """Refuse a proxy that gives each transaction another session of the server.

    Two sessions that are open at once have two server processes, and each keeps its own. Behind such a proxy the second
    one's transaction runs in the process that the first one left a moment ago, or takes it away from it.

    Args:
        connection: a session that is in no transaction.
        process: the server process that it had a moment ago.

    Raises:
        MillraceError: what was set in the session, or seen in a snapshot, would be another session's.
    """
    with contextlib.closing(_opened(db, "look")) as other:
        try:
            other.execute("begin")
            pooled = _process(other) == process or _process(connection) != process
        except psycopg.errors.ProtocolViolation:  # a proxy that gives each statement another one forbids transactions
            pooled = True
    if pooled:
        raise MillraceError(
            f"{db.label} is behind a proxy that gives each transaction another session of the server"
            " (transaction pooling)",
            where=db.place,
            detail=["settings and snapshots of a session would not hold from one statement to the next"],
            hint="name the server itself, or a port of the proxy with session pooling (PgBouncer: pool_mode = session)",
        )


def pins(version: int) -> sql.Composed:
    """Return the statements that pin a session of a server version, in one text."""
    found = {**PINS, **(PINS_17 if version >= 170_000 else {})}
    statement = sql.SQL("set {} = {};")
    return sql.Composed(
        [
            statement.format(sql.Identifier(name), sql.SQL(", ").join(sql.Literal(part) for part in value.split(", ")))
            for name, value in found.items()
        ]
    )


def pin(connection: Connection) -> int:
    """Pin a session's settings; returns the server process that has it.

    Raises:
        MillraceError: the server is too old.
    """
    version = connection.info.server_version
    if version < OLDEST:
        raise MillraceError(
            f"PostgreSQL {version // 10_000} is too old: Millrace needs {OLDEST // 10_000} or newer",
            where=connection.info.dbname,
        )
    cursor = connection.execute(pins(version) + sql.SQL("select pg_catalog.pg_backend_pid()"))
    while cursor.nextset():  # one answer for each statement
        pass
    row = cursor.fetchone()
    return int(row[0]) if row else 0


_prepared: WeakKeyDictionary[Connection, set[str]] = WeakKeyDictionary()


def prepared(connection: Connection, name: LiteralString, query: LiteralString, *values: object) -> sql.Composed:
    """Return a statement that runs a fixed query, which its session plans once instead of each time.

    Planning a look into the catalogue costs ten times as much as running it. psycopg's own prepared statements do not
    help: it forgets them all at each ALTER, DROP and ROLLBACK.

    Args:
        connection: a session of ours, pinned by `connect`.
        name: the query's, unique in all of Millrace.
        query: with $1, $2 … for the values, in SQL's own way of writing.
    """
    known = _prepared.setdefault(connection, set())
    if name not in known:
        connection.execute(sql.SQL("prepare {} as {}").format(sql.Identifier(name), sql.SQL(query)))
        known.add(name)
    return sql.SQL("execute {} ({})").format(sql.Identifier(name), sql.SQL(", ").join(map(sql.Literal, values)))


@contextmanager
def bare_path(connection: Connection) -> Iterator[None]:
    """Empty the search path inside the block, so that the server prints every name with its schema."""
    statement = "select pg_catalog.current_setting('search_path'), pg_catalog.set_config('search_path', %s, false)"
    row = connection.execute(statement, ("",)).fetchone()
    try:
        yield
    finally:
        with suppress(psycopg.Error):  # the transaction has failed: its rollback brings the path back
            connection.execute(statement, (row[0] if row else "",))


# libpq gives no SQLSTATE for a failed connection, only the server's words (in English unless lc_messages says else).
_CONNECT_WORDS: tuple[tuple[str, type[MillraceError], str], ...] = (
    (r"definition of service|service file", NotFound, "the service is not defined"),
    (r'database ".*" does not exist', NotFound, "the database does not exist"),
    (r'role ".*" does not exist', AuthenticationFailed, "the user does not exist"),
    (r"no password supplied", AuthenticationFailed, "a password is needed"),
    (r"password authentication failed", AuthenticationFailed, "wrong user or password"),
    (r"no pg_hba\.conf entry|pg_hba\.conf rejects", AuthenticationFailed, "the server does not let this user in"),
    (r"authentication failed|not permitted to log in", AuthenticationFailed, "the server refused the user"),
    (r"permission denied for database", PermissionMissing, "the user may not connect to this database"),
    (r"too many (clients|connections)|remaining connection slots", ConnectionRefused, "too many connections"),
    (r"starting up|shutting down|recovery mode", ConnectionRefused, "the server is not ready"),
    (r"timeout expired|timed out", ConnectionRefused, f"no answer in time ({CONNECT_SECONDS} s unless set)"),
    (r"translate host name|resolve|Name or service not known|getaddrinfo", ConnectionRefused, "the host is not known"),
    (
        r"certificate verify failed|does not match host name|root certificate file",
        AuthenticationFailed,
        "its certificate is not trusted",
    ),
    (r"server does not support SSL", AuthenticationFailed, "the server does not encrypt, and sslmode demands it"),
    (r"SSL|certificate", ConnectionRefused, "the encrypted connection could not be made"),
    (r"Connection refused", ConnectionRefused, "nothing listens there"),
)
_CANNOT = fixed("cannot connect to")
_UNREACHED = fixed("the database cannot be reached")
_NEEDED = fixed("put it into the URL of an env:NAME, into ~/.pgpass or into PGPASSWORD")
_WRONG = fixed(
    "look at both where they come from: the URL, ~/.pgpass or PGPASSWORD; in a URL @ : / % are %40 %3A %2F %25"
)
for _sentence in (*(what for _, _, what in _CONNECT_WORDS), "password authentication failed for user"):
    fixed(_sentence)  # the server's most frequent one as well


def not_connected(words: str, db: Database) -> MillraceError:
    """Return the error for a connection that could not be made, from libpq's words."""
    hint = None
    kind, what = next(
        ((kind, what) for pattern, kind, what in _CONNECT_WORDS if re.search(pattern, words)),
        (ConnectionRefused, _UNREACHED),
    )
    if kind is PermissionMissing:
        from millrace.postgres.names import sql_name

        name = db.parameters.get("dbname") or db.parameters.get("user", "")
        hint = f"GRANT CONNECT ON DATABASE {sql_name(name)} TO {sql_name(db.parameters.get('user') or _login())};"
    elif what == "a password is needed":
        hint = _NEEDED
    elif what == "wrong user or password":
        hint = _WRONG
    return kind(f"{_CANNOT} {db.label}: {what}", where=db.place, detail=_lines(words), hint=hint)


def _words(error: psycopg.Error) -> str:
    return redact(str(error)).strip()


def _lines(words: str) -> list[str]:
    """Return the first lines of the server's words, at most three, each whole."""
    return [line.strip() for line in words.splitlines() if line.strip()][:3]


def translate(
    error: psycopg.Error,
    *,
    where: str,
    doing: str,
    role: str | None = None,
    privilege: str | None = None,
    on: TableRef | None = None,
) -> MillraceError:
    """Return Millrace's error for one of psycopg's.

    Args:
        error: what psycopg raised.
        where: connection or table, for the message.
        doing: what was being done, in words that follow "could not": `read public.orders`.
        role: the user, for the GRANT in the hint.
        privilege: the right that the statement needs, where it is not the usual one: `INSERT`, `CREATE`.
        on: the table that was worked on, with its schema, for the GRANT.
    """
    if error.sqlstate is not None:
        primary = redact(error.diag.message_primary or str(error))
        more = [redact(text) for text in (error.diag.message_detail, error.diag.message_hint) if text]
        return translate_state(
            error.sqlstate, primary, more, where=where, doing=doing, role=role, privilege=privilege, on=on
        )
    detail = _lines(_words(error))
    if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
        return TransientFailure(f"could not {doing}: the connection was lost", where=where, detail=detail)
    return MillraceError(f"could not {doing}", where=where, detail=detail)


@contextmanager
def translated(
    where: str,
    doing: str,
    *,
    connection: Connection | None = None,
    privilege: str | None = None,
    on: TableRef | None = None,
) -> Iterator[None]:
    """Turn psycopg's errors inside the block into Millrace's: see `translate`."""
    try:
        yield
    except psycopg.Error as error:
        role = None
        if connection is not None:
            try:
                role = connection.info.user
            except psycopg.Error:  # the connection is closed
                role = None
        raise translate(error, where=where, doing=doing, role=role, privilege=privilege, on=on) from error
