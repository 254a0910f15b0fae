"""Rows whose texts cannot be carried: bytes that are not valid in the source's encoding, characters the target lacks.

The server's error says which bytes, not where they stand, and no predicate tells before: so the source's rows are read
text by text, each such row in a way that fails alone. Its texts leave the server as hexadecimal digits.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from psycopg import sql

from millrace.core.names import AssetId
from millrace.postgres.catalog import PgColumn
from millrace.postgres.digest import row_hash_of
from millrace.postgres.names import sql_name
from millrace.postgres.session import Connection, translated
from millrace.postgres.source import Source
from millrace.postgres.types import digest_expression, hashed, text_form

_FOUND = "millrace.found"
_LACKING = "22P05"

_LOOK = sql.SQL("""
declare
    r record; v pg_catalog.bytea[]; marks text; lines text[] := array[]::text[]; rows int := 0;
    encoding text := pg_catalog.current_setting('client_encoding');
begin
    perform pg_catalog.set_config('client_encoding', 'SQL_ASCII', true); -- textsend gives the bytes as they are
    for r in {rows} loop
        begin
            {all}
        exception when character_not_in_repertoire or untranslatable_character then
            rows := rows + 1;
            if rows <= {most} then
                v := array[]::pg_catalog.bytea[];
                marks := '';
                {each}
                lines := pg_catalog.array_append(lines, pg_catalog.concat_ws('|', {place}, {hash}, marks, {values}));
            end if;
        end;
    end loop;
    perform pg_catalog.set_config('client_encoding', encoding, true);
    perform pg_catalog.set_config({name}, rows || E'\\n' || pg_catalog.array_to_string(lines, E'\\n'), true);
end""")
_ONE = sql.SQL("""
                begin
                    {check}
                    v := pg_catalog.array_append(v, pg_catalog.convert_to({text}, 'UTF8'));
                    marks := marks || case when {text} is null then '-' else '=' end;
                exception when character_not_in_repertoire or untranslatable_character then
                    marks := marks || case sqlstate when {lacking} then 'c' else 'b' end;
                    v := pg_catalog.array_append(v, pg_catalog.textsend({text}));
                end;""")


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A row whose texts cannot be carried.

    Attributes:
        ctid: where it stands in its table, in the snapshot that was read; empty where that says nothing.
        digest: its hash: `digest.row_hash`, of the bytes of its texts.
        key: the key's values as text; of one that cannot be carried its bytes, as the server prints bytea.
        row: all values as text, null where they cannot be carried.
        bytes: those, by column, as hexadecimal digits.
        encoding: of those bytes.
        reason: one sentence.
    """

    ctid: str
    digest: int
    key: tuple[str, ...]
    row: Mapping[str, str | None]
    bytes: Mapping[str, str]
    encoding: str
    reason: str

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON types, for `Staged.detail["unreadable"]`."""
        return asdict(self) | {"key": list(self.key)}

    def entry(self, asset: AssetId) -> str:
        """Return the id of its entry."""
        text = json.dumps([str(asset), self.key, self.digest])
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def told(self) -> str:
        """The columns, and their bytes as far as they can be read."""
        return ", ".join(sql_name(name) for name in self.bytes)


def unreadable_of(detail: Mapping[str, Any]) -> tuple[Unreadable, ...]:
    """Return what a stage says of rows that cannot be carried."""
    return tuple(Unreadable(**{**one, "key": tuple(one["key"])}) for one in detail.get("unreadable", ()))


def payload(one: Unreadable) -> bytes:
    """Return what an entry keeps of texts that cannot be carried: JSON of their encoding and their bytes by column."""
    return json.dumps({"encoding": one.encoding, "columns": dict(one.bytes)}, ensure_ascii=True).encode()


def legible(data: bytes) -> dict[str, str]:
    """Return the texts of a payload as people can read them, what is no UTF-8 as backslash, x and two digits."""
    columns = json.loads(data)["columns"]
    return {name: bytes.fromhex(text).decode("utf-8", "backslashreplace") for name, text in columns.items()}


def kept_hash(
    columns: Sequence[PgColumn], values: Mapping[str, sql.Composable], data: sql.Composable
) -> sql.Composable:
    """Return the expression of `Unreadable.digest`, of what is kept.

    Args:
        values: each column's value, as its type.
        data: the payload.
    """
    held = sql.SQL("pg_catalog.convert_from({}, 'UTF8')::pg_catalog.jsonb operator(pg_catalog.->) 'columns'").format(
        data
    )
    parts = []
    for column in columns:
        value = values[column.name]
        if hashed(column) != "text":
            parts.append(digest_expression(column, value))
            continue
        parts.append(
            sql.SQL(
                "coalesce(pg_catalog.decode(({}) operator(pg_catalog.->>) {}, 'hex'),"
                " pg_catalog.convert_to({}, 'UTF8'))"
            ).format(held, sql.Literal(column.name), text_form(column, value))
        )
    return row_hash_of(parts)


def look_for_unreadable(
    connection: Connection, source: Source, key: Sequence[str], encoding: str, most: int
) -> tuple[int, list[Unreadable]]:
    """Read all rows of a source, and return how many have texts that cannot be carried, and those, up to some.

    Args:
        connection: with the snapshot.
        key: the key columns.
        encoding: of the target's server.
        most: rows to return.
    """
    texts = [column for column in source.columns if hashed(column) == "text"]
    if not texts:
        return 0, []
    encodings = [name for name in dict.fromkeys(("UTF8", encoding)) if name != "SQL_ASCII"]
    with translated(source.database, f"look for texts of {source.label}", connection=connection):
        row = connection.execute(_body(connection, source, texts, encodings, most)).connection.execute(
            "select pg_catalog.current_setting(%s), pg_catalog.current_setting('server_encoding')", (_FOUND,)
        )
        found, own = row.fetchone() or ("0", "")
    first, *lines = str(found).splitlines()
    return int(first), [_read(line, source, key, own, encoding) for line in lines]


def _body(
    connection: Connection, source: Source, texts: Sequence[PgColumn], encodings: Sequence[str], most: int
) -> sql.Composed:
    def form(column: PgColumn) -> sql.Composable:
        return text_form(column, sql.Identifier("r", column.name))

    def check(column: PgColumn) -> sql.Composable:
        return sql.SQL(" ").join(
            sql.SQL("perform pg_catalog.convert_to({}, {});").format(form(column), sql.Literal(name))
            for name in encodings
        )

    nothing = sql.SQL("null;")
    hashes, values, each = [], [], []
    for number, column in enumerate(source.columns, 1):
        text = hashed(column) == "text"
        mine = sql.SQL("v[{}]").format(sql.Literal(number))
        hashes.append(mine if text else digest_expression(column, sql.Identifier("r", column.name)))
        values.append(sql.SQL("coalesce(pg_catalog.encode({}, 'hex'), '')").format(mine))
        each.append(
            _ONE.format(check=check(column) if text else nothing, text=form(column), lacking=sql.Literal(_LACKING))
        )
    names: list[sql.Composable] = [column.identifier for column in source.columns]
    place: sql.Composable = sql.SQL("''")
    if source.paged:
        names.append(sql.SQL("ctid as millrace_ctid"))
        place = sql.SQL("r.millrace_ctid")
    body = _LOOK.format(
        rows=source.select(names),
        all=sql.SQL(" ").join(map(check, texts)) or nothing,
        each=sql.SQL("").join(each),
        most=sql.Literal(most),
        place=place,
        hash=row_hash_of(hashes),
        values=sql.SQL(", ").join(values),
        name=sql.Literal(_FOUND),
    )
    return sql.SQL("do {}").format(sql.Literal(body.as_string(connection)))


def _read(line: str, source: Source, key: Sequence[str], own: str, target: str) -> Unreadable:
    ctid, digest, marks, *values = line.split("|")
    row: dict[str, str | None] = {}
    bad: dict[str, str] = {}
    reasons = []
    for name, mark, text in zip(source.names, marks, values, strict=True):
        row[name] = bytes.fromhex(text).decode() if mark == "=" else None
        if mark in "bc":
            bad[name] = text
            what = f"holds characters that {target} lacks" if mark == "c" else "holds bytes that are no text"
            reasons.append(f"{sql_name(name)} {what}")
    return Unreadable(
        ctid=ctid,
        digest=int(digest),
        key=tuple(f"\\x{bad[name]}" if name in bad else str(row[name]) for name in key),
        row=row,
        bytes=bad,
        encoding=own,
        reason="; ".join(reasons),
    )
