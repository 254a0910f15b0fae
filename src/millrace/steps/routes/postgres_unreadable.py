"""Texts that cannot be carried: bytes that are not valid in the source's encoding, characters that the target lacks.

The server's error says which bytes, not where they stand. So when a copy fails for them, the source's rows are read
once more, text by text, and the error names the rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import psycopg
from psycopg import sql

from millrace.errors import ContractBroken, MillraceError
from millrace.postgres.catalog import PgColumn
from millrace.postgres.names import sql_name
from millrace.postgres.reader import PostgresReader
from millrace.postgres.session import Connection, translated
from millrace.postgres.source import Source
from millrace.postgres.target import PostgresTarget
from millrace.postgres.types import hashed, text_form
from millrace.steps.spec import CopySpec

CODES = frozenset({"22021", "22P05"})  # character not in repertoire, untranslatable character
EXAMPLES = 3
_FOUND = "millrace.found"

_LOOK = sql.SQL("""
declare
    r record; found text := ''; rows int := 0; bad text;
begin
    for r in {rows} loop
        begin
            {all}
        exception when character_not_in_repertoire or untranslatable_character then
            bad := null;
            {each}
            rows := rows + 1;
            if rows <= {examples} then
                found := found || {key} || ': ' || bad || E'\\n';
            end if;
        end;
    end loop;
    perform pg_catalog.set_config({name}, rows || E'\\n' || found, true);
end""")
_ONE = sql.SQL("""
            begin
                {check}
            exception when character_not_in_repertoire or untranslatable_character then
                bad := pg_catalog.concat_ws(', ', bad, {column});
            end;""")


@contextmanager
def naming(spec: CopySpec, reader: PostgresReader, target: PostgresTarget) -> Iterator[None]:
    """Name the rows of a source whose texts stop what the block does.

    Raises:
        ContractBroken: names table, key and columns.
    """
    try:
        yield
    except MillraceError as error:
        cause = error.__cause__
        if not isinstance(cause, psycopg.Error) or cause.sqlstate not in CODES:
            raise
        rows, examples = _unreadable(spec, reader, target)
        if not rows:
            raise
        noun = "row has a text" if rows == 1 else "rows have texts"
        raise ContractBroken(
            f"{rows:,} {noun} that cannot be carried: {str(cause.diag.message_primary or '').partition(':')[0]}",
            where=f"{spec.table} in {reader.database.label}",
            detail=[*examples, *([f"and {rows - len(examples):,} more"] if rows > len(examples) else [])],
            hint="mend them at the source, or leave them out by where:; such rows cannot be set aside yet",
        ) from error


def _unreadable(spec: CopySpec, reader: PostgresReader, target: PostgresTarget) -> tuple[int, list[str]]:
    """Return how many rows have such texts, and a few of them: their key, and the columns."""
    with target.connect("encoding") as there:
        row = there.execute("select pg_catalog.current_setting('server_encoding')").fetchone()
    encodings = dict.fromkeys(("UTF8", str(row[0]) if row else "UTF8"))
    with reader.snapshot() as snap:
        source = reader.source(spec.table, where=spec.where, select=spec.select, connection=snap.connection)
        texts = [column for column in source.columns if hashed(column) == "text"]
        if not texts:
            return 0, []
        key = source.pick(spec.key or source.key)
        with translated(source.database, f"look for texts of {source.label}", connection=snap.connection):
            return _looked(snap.connection, source, texts, key, [name for name in encodings if name != "SQL_ASCII"])


def _looked(
    connection: Connection, source: Source, texts: Sequence[PgColumn], key: Sequence[PgColumn], encodings: Sequence[str]
) -> tuple[int, list[str]]:
    checks = {
        column.name: sql.SQL(" ").join(
            sql.SQL("perform pg_catalog.convert_to({}, {});").format(
                text_form(column, sql.Identifier("r", column.name)), sql.Literal(encoding)
            )
            for encoding in encodings
        )
        for column in texts
    }
    named: list[sql.Composable] = [
        sql.SQL("{} || {}").format(
            sql.Literal(f"{sql_name(column.name)} "),
            # a key's own bytes may be those that nobody can read
            sql.SQL("coalesce(pg_catalog.encode(pg_catalog.textsend({}), 'escape'), 'null')").format(
                text_form(column, sql.Identifier("r", column.name))
            ),
        )
        for column in key
    ]
    body = _LOOK.format(
        rows=source.select(),
        all=sql.SQL(" ").join(checks.values()),
        each=sql.SQL("").join(
            _ONE.format(check=check, column=sql.Literal(sql_name(name))) for name, check in checks.items()
        ),
        examples=sql.Literal(EXAMPLES),
        key=sql.SQL("pg_catalog.concat_ws(', ', {})").format(sql.SQL(", ").join(named or [sql.SQL("'row ' || rows")])),
        name=sql.Literal(_FOUND),
    )
    connection.execute(sql.SQL("do {}").format(sql.Literal(body.as_string(connection))))
    row = connection.execute("select pg_catalog.current_setting(%s)", (_FOUND,)).fetchone()
    first, *examples = str(row[0] if row else "0").splitlines()
    return int(first), examples
