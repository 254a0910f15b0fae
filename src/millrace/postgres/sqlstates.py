"""What each SQLSTATE means for a runner, as data: the class of error and what helps. Pure.

Appendix A of PostgreSQL's manual lists the codes. A code is looked up whole, then by its class (two characters);
what is not listed is fatal.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from millrace.core.names import TableRef
from millrace.errors import (
    AuthenticationFailed,
    ContractBroken,
    KeyInvalid,
    MillraceError,
    NotFound,
    PermissionMissing,
    TransientFailure,
)
from millrace.postgres.names import sql_name

STATES: dict[str, tuple[type[MillraceError], str | None]] = {
    "08": (TransientFailure, None),
    "08P01": (MillraceError, None),
    "22021": (ContractBroken, "a text holds bytes that are not valid in the server's encoding"),
    "22P02": (ContractBroken, "the column's type there does not know this value: compare its definition on both sides"),
    "22P05": (ContractBroken, "a character does not exist in the other database's encoding"),
    "23": (ContractBroken, None),
    "23505": (KeyInvalid, None),
    "25006": (MillraceError, "the server is a standby, or the role's default_transaction_read_only is on"),
    "25P03": (TransientFailure, "idle_in_transaction_session_timeout ended the session"),
    "25P04": (TransientFailure, "transaction_timeout ended the session"),
    "28": (AuthenticationFailed, None),
    "3D000": (NotFound, None),
    "3F000": (NotFound, None),
    "40": (TransientFailure, None),
    "42501": (PermissionMissing, None),
    "42703": (NotFound, None),
    "42704": (NotFound, None),
    "42883": (NotFound, None),
    "42P01": (NotFound, None),
    "53100": (MillraceError, "the server's disk is full: make room, then run again; what was staged can be resumed"),
    "53200": (TransientFailure, "the server ran out of memory"),
    "53300": (TransientFailure, "raise max_connections or lower the number of workers"),
    "53400": (MillraceError, None),
    "55006": (TransientFailure, None),
    "55P03": (TransientFailure, "someone else holds the lock"),
    "57014": (TransientFailure, None),
    "57P": (TransientFailure, None),
    "57P04": (NotFound, "the database was dropped"),
    "58": (MillraceError, "the server's storage fails: see its log"),
    "72000": (TransientFailure, None),
    "XX001": (MillraceError, "data on the server's disk is damaged: see its log"),
    "XX002": (MillraceError, "an index on the server's disk is damaged: REINDEX it"),
}

_DENIED = re.compile(r"permission denied for (?P<kind>[a-z]+(?: [a-z]+)?) (?P<name>.+)", re.DOTALL)
_OWNER = re.compile(r"must be owner of (?P<kind>[a-z]+(?: [a-z]+)?) (?P<name>.+)", re.DOTALL)
_POLICY = re.compile(r'row-level security policy for table "(?P<name>.*)"', re.DOTALL)

# Kind of object in the message → key word of GRANT, the usual right, and the rights that exist.
_TABLE_RIGHTS = ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER", "MAINTAIN")
_GRANTS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "table": ("", "SELECT", _TABLE_RIGHTS),
    "view": ("", "SELECT", _TABLE_RIGHTS),
    "materialized view": ("", "SELECT", _TABLE_RIGHTS),
    "foreign table": ("", "SELECT", _TABLE_RIGHTS),
    "relation": ("", "SELECT", _TABLE_RIGHTS),
    "sequence": ("SEQUENCE ", "USAGE", ("USAGE", "SELECT", "UPDATE")),
    "schema": ("SCHEMA ", "USAGE", ("USAGE", "CREATE")),
    "database": ("DATABASE ", "CREATE", ("CREATE", "CONNECT", "TEMPORARY")),
    "function": ("FUNCTION ", "EXECUTE", ("EXECUTE",)),
    "procedure": ("PROCEDURE ", "EXECUTE", ("EXECUTE",)),
    "type": ("TYPE ", "USAGE", ("USAGE",)),
    "language": ("LANGUAGE ", "USAGE", ("USAGE",)),
    "foreign server": ("FOREIGN SERVER ", "USAGE", ("USAGE",)),
    "tablespace": ("TABLESPACE ", "CREATE", ("CREATE",)),
}


def translate_state(
    state: str,
    primary: str,
    more: Sequence[str],
    *,
    where: str,
    doing: str,
    role: str | None = None,
    privilege: str | None = None,
    on: TableRef | None = None,
) -> MillraceError:
    """Return the error for an SQLSTATE and the server's words; the arguments are those of `session.translate`."""
    kind, hint = STATES.get(state) or STATES.get(state[:3]) or STATES.get(state[:2]) or (MillraceError, None)
    detail = [f"{primary} (SQLSTATE {state})", *more]
    if kind is PermissionMissing:
        return _permission(primary, detail, where=where, doing=doing, role=role, privilege=privilege, on=on)
    return kind(f"could not {doing}", where=where, detail=detail, hint=hint)


def grant(privilege: str, kind: str, name: str, role: str | None) -> str:
    """Return the GRANT that gives a right; `name` is as SQL writes it."""
    who = sql_name(role) if role else "the user of this connection"
    return f"GRANT {privilege} ON {_GRANTS[kind][0]}{name} TO {who};"


def _permission(
    primary: str,
    detail: Sequence[str],
    *,
    where: str,
    doing: str,
    role: str | None,
    privilege: str | None,
    on: TableRef | None,
) -> PermissionMissing:
    who = role or "the user of this connection"
    if match := _POLICY.search(primary):
        return row_security_error(match["name"] if on is None else str(on), role, where=where, detail=detail)
    hint = None
    if match := _DENIED.match(primary):
        kind = match["kind"]
        if kind in _GRANTS:
            _, usual, rights = _GRANTS[kind]
            wanted = privilege if privilege in rights else usual
            same = on is not None and on.name == match["name"] and rights is _TABLE_RIGHTS and on.schema is not None
            name = sql_name(on.schema or "", on.name) if same and on is not None else sql_name(match["name"])
            hint = grant(wanted, kind, name, role)
    elif match := _OWNER.match(primary):
        hint = f"run this as the owner of {match['kind']} {match['name']}, or make {who} a member of the owning role"
    return PermissionMissing(f"{who} may not {doing}", where=where, detail=detail, hint=hint)


def row_security_error(table: str, role: str | None, *, where: str, detail: Sequence[str] = ()) -> PermissionMissing:
    """Return the error for a table whose policies would hide rows: a copy of a part is not a copy."""
    who = role or "the user of this connection"
    return PermissionMissing(
        f"row-level security would hide rows of {table} from {who}",
        where=where,
        detail=detail,
        hint=f"connect as the table's owner, or as a superuser run: "
        f"ALTER ROLE {sql_name(role) if role else 'the_user'} BYPASSRLS;",
    )
