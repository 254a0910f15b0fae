"""`millrace init --from`: a live database's catalogue becomes the files of a project that runs as written.

The catalogue is read once; all else here is text. What is proposed stands in the files with its reason beside it, and
what is left out stands there as a comment, so that the files are a start and not a riddle.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from millrace.core.names import TableRef
from millrace.errors import NotFound, UsageError

if TYPE_CHECKING:
    from millrace.postgres.listing import Listed, ListedIndex

LAYER = "bronze"
_SELECT = "add select: the columns to copy"
LONGEST_NAME = 63  # bytes of an asset's name
LINE = 120  # characters; a comment that would make a line longer stands above it
WIDEST_KEY, WIDEST_HEAD = 24, 86  # cells; what is longer does not push the others to the right

# Names of columns that say when a row changed: `updated_at`, `LastModified`, `sys_upd_ts`, `최종수정일시`; compared in
# lower case and letters only. Names with other words in them (`password_changed_at`) say when something else did.
_CHANGED = re.compile(
    r"(?:sys|system|row|rec|record|last|latest|date|time|dt|ts)*"
    r"(?P<word>updated?|upd|modified|modify|modification|mod|changed?|chg|mtime)"
    r"(?:at|on|date|time|datetime|timestamp|ts|dt|dttm|utc|tz)*"
    r"|(?:최종|마지막)?(?P<korean>수정|갱신|변경|업데이트)(?:한)?(?:일시|일자|시각|시간|날짜|일)?"
)
_PLAIN_ASSET = re.compile(r"\w(?:[\w -]*\w)?")
_PLAIN_SCALAR = re.compile(r"[^\W\d][\w-]*(?:\.[^\W\d][\w-]*)?")
_YAML_WORDS = frozenset(["null", "true", "false", "yes", "no", "on", "off", "y", "n"])
_VARIABLE_END = re.compile(r"_(?:database_url|db_url|url|uri|dsn)$")
_NAME_START = re.compile(r"^[^A-Za-z_]+")


@dataclass(frozen=True, slots=True)
class Origin:
    """How the project names the database that it came from.

    Attributes:
        connection: its name in the project.
        variable: the environment variable that holds its URL.
        value: what the variable must be set to; None: it was read from there, so it is set.
        told: how people named it.
    """

    connection: str
    variable: str
    value: str | None
    told: str


@dataclass(frozen=True, slots=True)
class Proposal:
    """One line of the copies file.

    Attributes:
        name: the table as SQL writes it, as text for YAML.
        options: key, mode, cursor: texts for YAML, in order.
        reason: why so, or why it is left out.
    """

    name: str
    options: Mapping[str, str] = field(default_factory=dict)
    reason: str = ""

    @property
    def mapping(self) -> str:
        """The options as a YAML mapping in one line."""
        return "{" + ", ".join(f"{name}: {value}" for name, value in self.options.items()) + "}"


@dataclass(frozen=True, slots=True)
class Proposed:
    """The files of a project, by path, and what to say about them."""

    files: Mapping[Path, str]
    origin: Origin
    copied: int
    left_out: int


def propose(name: str, text: str, schemas: Sequence[str], environ: Mapping[str, str]) -> Proposed:
    """Read a database's catalogue and return the files of a project that copies its tables into a lake.

    Args:
        name: the project's name.
        text: `env:NAME`, `service:NAME` or a URL without a password.
        schemas: SQL names of the schemas to read.
        environ: the process environment.

    Raises:
        UsageError: the text names no database, or its variable cannot stand in a file.
        ConnectionRefused, AuthenticationFailed, NotFound, PermissionMissing: there is no way into the database.
        NotFound: a schema does not exist, or holds nothing that could be copied.
    """
    from millrace.postgres import listing
    from millrace.postgres.session import connect, parse_database

    names = tuple(dict.fromkeys(map(_schema_name, schemas)))
    database = parse_database(text, environ)
    origin = origin_of(text, database.parameters.get("dbname", ""))
    with connect(database, purpose="init") as connection:
        found = listing.relations(connection, names, label=database.place)
        user = connection.info.user
    copied, left_out = proposals(found, user)
    if not copied:
        shown = [f"{printable(one.name)}: {one.reason}" for one in left_out]
        raise NotFound(
            f"nothing in {_listed('schema', [_sql(one) for one in names])} can be copied",
            where=database.place,
            detail=[*shown[:5], *([f"and {len(shown) - 5:,} more"] if len(shown) > 5 else [])],
            hint="mend one of them, name another --schema, or begin with: millrace init NAME --template blank",
        )
    texts = {
        Path("millrace.yaml"): manifest_text(name, origin),
        Path("copies", f"{origin.connection}.yaml"): copies_text(origin, names, copied, left_out),
        Path(".gitignore"): files("millrace.templates").joinpath("blank", ".gitignore").read_text("utf-8"),
    }
    return Proposed(texts, origin, len(copied), len(left_out))


def _schema_name(text: str) -> str:
    try:
        found = TableRef.parse(text)
    except UsageError:
        found = TableRef("", "")
    if found.schema is not None:
        raise UsageError(
            f"not a schema: {text!r}", where="--schema", hint='write one SQL name: sales, or "Odd" with quotes'
        )
    return found.name


def origin_of(text: str, database: str) -> Origin:
    """Return how the project names a database.

    Args:
        text: `env:NAME`, `service:NAME` or a URL without a password, as it was typed.
        database: the database's name, where it is known.

    Raises:
        UsageError: the variable's name cannot stand in `${env:NAME}`.
    """
    if text.startswith("env:"):
        variable = text.removeprefix("env:")
        if not variable.isprintable() or set(variable) & set("{}") or variable != variable.strip():
            raise UsageError(
                f"the variable's name {variable!a} cannot stand in a project's file",
                where="--from",
                hint="use letters, digits and _: env:SHOP_DB_URL",
            )
        return Origin(_connection(_VARIABLE_END.sub("", variable.lower())), variable, None, text)
    if text.startswith("service:"):
        from psycopg.conninfo import make_conninfo

        service = text.removeprefix("service:")
        connection = _connection(service)
        return Origin(connection, _variable(connection), make_conninfo(service=service), text)
    connection = _connection(database)
    return Origin(connection, _variable(connection), text, f"database {database}" if database else "the database")


def _connection(text: str) -> str:
    """Return a name for the connection that is also a file's name."""
    return _NAME_START.sub("", re.sub(r"[^A-Za-z0-9_-]+", "_", text)).strip("_-")[:LONGEST_NAME].lower() or "source"


def _variable(connection: str) -> str:
    return connection.upper().replace("-", "_") + "_URL"


# --- what is proposed ----------------------------------------------------------------------------------------------


def proposals(found: Sequence[Listed], user: str) -> tuple[list[Proposal], list[Proposal]]:
    """Return what to copy and what not, each in the order given.

    Args:
        found: tables and what else the schemas hold.
        user: whom the database knows the reader as, for the GRANT of a missing right.
    """
    left: dict[TableRef, str] = {one.ref: reason for one in found if (reason := hindrance(one, user))}
    copied = [one for one in found if one.ref not in left]
    taken: set[str] = set()
    names = asset_names(copied, taken)
    names |= asset_names([one for one in found if one.ref in left], taken)
    return (
        [_proposal(one, names[one.ref]) for one in copied],
        [_proposal(one, names[one.ref], left[one.ref]) for one in found if one.ref in left],
    )


def hindrance(table: Listed, user: str) -> str:
    """Return why a table, view … is not copied as it stands, or ""."""
    from millrace.lake.table import OWN
    from millrace.postgres.catalog import KIND_WORDS
    from millrace.postgres.names import sql_name
    from millrace.postgres.sqlstates import grant

    full = sql_name(table.schema_name, table.name)
    if table.extension:
        return f"belongs to the extension {table.extension}"
    if table.kind in ("v", "m"):
        return f"a {KIND_WORDS[table.kind]}: make it a model over the copies of its tables"
    if table.kind == "f":
        return "a foreign table: copy it from the database that holds its rows"
    if not table.usable:
        return f"{user} may not use the schema: {grant('USAGE', 'schema', sql_name(table.schema_name), user)}"
    if not table.readable:
        return f"{user} may not read it: {grant('SELECT', 'table', full, user)}"
    if table.policies:
        return f"row-level security would hide rows from {user}"
    if table.kind == "r" and table.has_children:
        return "has inheriting tables: it shows their rows too, and its key does not bind them"
    lowered: dict[str, str] = {}
    for name in table.columns:
        if name.lower() in lowered:
            twins = f"{sql_name(lowered[name.lower()])} and {sql_name(name)}"
            return f"{twins} differ only by case: {_SELECT}"
        if name.lower() in OWN:
            return f"{sql_name(name)} is a name of the lake's own: {_SELECT}"
        lowered[name.lower()] = name
    if not table.columns:
        return "it has no columns"
    return "" if _key_index(table) else "no key: add key: the columns that tell its rows apart"


def _key_index(table: Listed) -> ListedIndex | None:
    """Return the primary key's index, else the smallest unique one over columns without nulls."""
    found = [
        index for index in table.indexes if index.unique and index.whole and table.not_null.issuperset(index.columns)
    ]
    return min(found, key=lambda index: (not index.primary, len(index.columns), index.name), default=None)


def cursor_of(table: Listed) -> tuple[str | None, str]:
    """Return the column by which changes are found, or None; and the reason."""
    named = [column for column in table.columns if _CHANGED.fullmatch(_squashed(column))]
    times = [column for column in named if table.times.get(column) in ("timestamp", "timestamptz")]
    usable = [column for column in times if column in table.not_null]
    if table.kind == "p" and usable:
        return None, "partitioned: misses late commits"
    if usable:
        best = min(usable, key=lambda column: (not _indexed(table, column), table.columns.index(column)))
        return best, f"{table.times[best]}, not null, " + ("indexed" if _indexed(table, best) else "no index")
    if times:
        return None, f"{times[0]} may be null"
    if named and table.times.get(named[0]) == "date":
        return None, f"{named[0]} is only a date"
    if named:
        return None, f"{named[0]} is not a timestamp"
    return None, "no column like updated_at"


def _squashed(name: str) -> str:
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFC", name).lower())


def _indexed(table: Listed, column: str) -> bool:
    """Return whether an index begins with the column."""
    return any(index.whole and index.columns[:1] == (column,) for index in table.indexes)


def _proposal(table: Listed, asset: str, left_out: str = "") -> Proposal:
    options = {} if asset == table.name else {"as": scalar(asset)}
    index = _key_index(table)
    if index is not None:
        key = index.columns
        options["key"] = scalar(key[0]) if len(key) == 1 else "[" + ", ".join(map(scalar, key)) + "]"
    elif table.kind in ("r", "p"):
        options["key"] = "…"
    if left_out.endswith(_SELECT):
        options["select"] = "…"
    cursor, reason = cursor_of(table)
    options["mode"] = "full" if cursor is None else "incremental"
    if cursor is not None:
        options["cursor"] = scalar(cursor)
    if index is not None and not index.primary:
        reason += "; key: unique index"
    return Proposal(scalar(_table_key(table)), options, printable(left_out or reason))


def _table_key(table: Listed) -> str:
    """Return the table's name as SQL writes it, and as `TableRef.parse` reads it; bare where that is enough."""
    name = _sql(table.name)
    return name if table.schema_name == "public" and table.visible else f"{_sql(table.schema_name)}.{name}"


def _sql(name: str) -> str:
    """Return a name in quotes only where SQL would read another one without: Hangul needs none."""
    try:
        plain = TableRef.parse(name) == TableRef(None, name)
    except UsageError:
        plain = False
    return name if plain else '"' + name.replace('"', '""') + '"'


def asset_names(tables: Sequence[Listed], taken: set[str]) -> dict[TableRef, str]:
    """Return a name in the layer for each table: its own where the lake can bear it and no other table has it.

    Args:
        tables: what wants a name.
        taken: names that are given away, folded; those given here are added.
    """
    groups: dict[str, list[Listed]] = {}
    for table in tables:
        groups.setdefault(_folded(table.name), []).append(table)
    names: dict[TableRef, str] = {}
    for folded, group in groups.items():
        first = min(group, key=lambda one: (one.schema_name != "public", one.name != one.name.lower()))
        owned = first.schema_name == "public" or len({one.schema_name for one in group}) == 1
        if owned and folded not in taken and _bearable(first.name):
            names[first.ref] = first.name
    taken.update(map(_folded, names.values()))
    for table in tables:
        if table.ref not in names:
            name = next(one for one in _other_names(table) if _folded(one) not in taken)
            names[table.ref] = name
            taken.add(_folded(name))
    return names


def _folded(name: str) -> str:
    from millrace.project.load import same_name

    return same_name(name)


def _bearable(name: str) -> bool:
    fits = len(name.encode()) <= LONGEST_NAME and not name.startswith("_millrace")
    return fits and _PLAIN_ASSET.fullmatch(name) is not None


def _other_names(table: Listed) -> Iterator[str]:
    """Yield names that the lake can bear: the table's, mended; then with its schema; then numbered."""
    bare, full = (_mended(text) for text in (table.name, f"{table.schema_name}_{table.name}"))
    if bare != table.name:
        yield bare
    yield full
    number = 2
    while True:
        end = f"_{number}"
        yield _cut(full, LONGEST_NAME - len(end)) + end
        number += 1


def _mended(name: str) -> str:
    text = re.sub(r"[^\w]+", "_", unicodedata.normalize("NFC", name)).strip("_") or "table"
    return _cut(text, LONGEST_NAME)


def _cut(text: str, most: int) -> str:
    return text.encode()[:most].decode(errors="ignore")


# --- how it is written ---------------------------------------------------------------------------------------------


def manifest_text(name: str, origin: Origin) -> str:
    """Return `millrace.yaml`."""
    url = "${env:" + origin.variable.replace("\\", "\\\\").replace('"', '\\"') + "}"
    return f"""\
version: 1
name: {scalar(name)}
layers: {{bronze: lake, silver: lake}}
environments:
  dev:
    connections:
      # The URL, with the password, stands in the environment or in .env beside this file, never here.
      {scalar(origin.connection)}: {{type: postgres, url: "{url}"}}
    lake: ./lake
"""


def copies_text(
    origin: Origin, schemas: Sequence[str], copied: Sequence[Proposal], left_out: Sequence[Proposal]
) -> str:
    """Return the copies file: what is copied, how and why; and as comments what is not."""
    where = printable(_listed("schema", [_sql(schema) for schema in schemas]))
    lines = [
        f"# Proposed from the catalogue of {printable(origin.told)}, {where}; yours to change from here on.",
        "#",
        "# full: the whole table is read and the copy made equal; what was deleted goes there too.",
        "# incremental: what changed is read, found by cursor and row versions; what was deleted goes within 7 days.",
        "",
        f"from: {scalar(origin.connection)}",
        f"to: {LAYER}",
        "tables:",
        *_block(copied, "  "),
    ]
    if left_out:
        lines += ["", "  # Left out, and why; a line works without its # once that is settled:"]
        lines += _block(left_out, "  # ")
    return "\n".join(lines) + "\n"


def _block(found: Sequence[Proposal], margin: str) -> list[str]:
    """Return lines in three columns: table, options, reason."""
    wide = max([_width(one.name) for one in found if _width(one.name) <= WIDEST_KEY], default=0) + 2
    heads = [f"{margin}{_padded(one.name + ':', wide - 1)} {one.mapping}" for one in found]
    column = max([_width(head) for head in heads if _width(head) <= WIDEST_HEAD], default=0) + 2
    lines = []
    for head, one in zip(heads, found, strict=True):
        aligned = f"{_padded(head, column - 2)}  # {one.reason}"
        close = f"{head}  # {one.reason}"
        if _width(aligned) <= LINE:
            lines.append(aligned)
        elif _width(close) <= LINE or "#" in margin:  # a comment above a comment would belong to either
            lines.append(close)
        else:
            lines += [f"{margin}# {one.reason}", head]
    return lines


def _padded(text: str, width: int) -> str:
    return text + " " * (width - _width(text))


def _width(text: str) -> int:
    """Return how many cells a text takes: Hangul and the like take two."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def scalar(text: str) -> str:
    """Return a text as YAML writes it: plain where every reader takes it for that text, else quoted, in one line."""
    if _PLAIN_SCALAR.fullmatch(text) and text.lower() not in _YAML_WORDS:
        return text
    if text.isprintable() and '"' in text:
        return "'" + text.replace("'", "''") + "'"
    return '"' + "".join(_escaped(c) for c in text) + '"'


def _escaped(char: str) -> str:
    if char in '"\\':
        return "\\" + char
    return printable(char)


def printable(text: str) -> str:
    """Return a text in one line that cannot steer a terminal: what is not printable is spelled as YAML escapes it."""
    return "".join(c if c.isprintable() else _ESCAPES.get(c) or _code(ord(c)) for c in text)


_ESCAPES = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}


def _code(number: int) -> str:
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def _listed(noun: str, names: Sequence[str]) -> str:
    return f"{noun} {names[0]}" if len(names) == 1 else f"{noun}s {', '.join(names[:-1])} and {names[-1]}"
