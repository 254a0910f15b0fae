"""Whole schemas, or all of a database: each table a step of one run, all read from one snapshot of the source."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from millrace.app.copying import SOURCE, TARGET, copy_step, runtime_of, through_engine
from millrace.app.runtime import CONNECTION
from millrace.core.names import AssetId, TableRef, quoted
from millrace.errors import MillraceError, NotFound, UsageError, did_you_mean
from millrace.steps.spec import CopyOptions, CopySpec

if TYPE_CHECKING:
    from millrace.app.runtime import Runtime
    from millrace.engine.records import RunResult
    from millrace.postgres.inventory import ForeignKey, Holding
    from millrace.postgres.target import PostgresTarget

SNAPSHOT = "this copy"
TOGETHER = "together"
_PART = r'"(?:[^"]|"")+"|[\w$*]+'
_PATTERN = re.compile(rf"(?:(?P<schema>{_PART})\s*\.\s*)?(?P<name>{_PART})")
_QUOTED = re.compile(r'"(?:[^"]|"")*"')
WORDS = {
    "v": ("view", "views"),
    "m": ("materialized view", "materialized views"),
    "f": ("foreign table", "foreign tables"),
    "S": ("sequence without a column", "sequences without a column"),
}


def is_pattern(text: str) -> bool:
    """Say whether a name means several tables: a * outside quotes."""
    return "*" in _QUOTED.sub("", text)


@dataclass(frozen=True, slots=True)
class Pattern:
    """Names of tables: `sales.*`, `*`, `sales.order_*`, `"Odd".*`; without a schema in all schemas."""

    text: str
    schema: re.Pattern[str] | None
    name: re.Pattern[str]

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Read a pattern; a * in quotes is a letter like others.

        Raises:
            UsageError: it is none.
        """
        match = _PATTERN.fullmatch(text.strip())
        if match is None:
            raise UsageError(
                f"not a pattern of tables: {text!r}",
                hint="write sales.*, sales.order_*, or * for all schemas; in quotes",
            )
        return cls(text.strip(), None if match["schema"] is None else _regex(match["schema"]), _regex(match["name"]))

    def takes(self, ref: TableRef) -> bool:
        """Say whether it means a table."""
        of_schema = self.schema is None or self.schema.fullmatch(ref.schema or "") is not None
        return of_schema and self.name.fullmatch(ref.name) is not None


def _regex(part: str) -> re.Pattern[str]:
    if part.startswith('"'):
        return re.compile(re.escape(part[1:-1].replace('""', '"')))
    return re.compile(".*".join(map(re.escape, part.lower().split("*"))), re.DOTALL)


@dataclass(frozen=True, slots=True)
class Chosen:
    """What a pattern means in a database.

    Attributes:
        tables: by size, the largest first: beside it the small ones find time.
        others: what the pattern means and is no table.
        excluded: tables that `--exclude` left out.
        keys: foreign keys of the tables.
    """

    tables: tuple[Holding, ...]
    others: tuple[Holding, ...]
    excluded: int
    keys: tuple[ForeignKey, ...]

    @property
    def left_out(self) -> str:
        """What is not copied, in words; empty when there is nothing."""
        counted = Counter[str](one.kind for one in self.others)
        parts = [f"{counted[kind]:,} {words[counted[kind] != 1]}" for kind, words in WORDS.items() if counted[kind]]
        names = [str(one.ref) for one in self.others]
        shown = ", ".join(names[:4]) + (f" and {len(names) - 4:,} more" if len(names) > 4 else "")
        return f"{', '.join(parts)} ({shown})" if parts else ""


@dataclass(frozen=True, slots=True)
class WholeOutcome:
    """What copying many tables came to.

    Attributes:
        result: of the run; its steps are the tables.
        tables: source and target of each step, in their order.
        made: how many foreign keys were made.
        not_made: foreign keys that were not, with the reason.
    """

    result: RunResult
    chosen: Chosen
    tables: Mapping[str, tuple[TableRef, TableRef]]
    made: int
    not_made: tuple[tuple[ForeignKey, str], ...]
    seconds: float

    @property
    def rows(self) -> int:
        """Rows of the tables that are right now, as far as they are known."""
        good = (outcome for outcome in self.result.steps if outcome.status in ("published", "fresh"))
        return sum(max(entry.rows, 0) for outcome in good for entry in outcome.entries)

    def to_json(self) -> dict[str, Any]:
        """Return the outcome as JSON types; tables by name."""
        steps = sorted(self.result.steps, key=lambda outcome: outcome.label)
        return {
            "status": self.result.status,
            "seconds": round(self.seconds, 3),
            "rows": self.rows,
            "counts": dict(self.result.counts),
            "tables": [
                {
                    "table": str(self.tables[outcome.key][0]),
                    "into": str(self.tables[outcome.key][1]),
                    "status": outcome.status,
                    "rows": outcome.rows,
                    "seconds": round(outcome.seconds, 3),
                    "message": outcome.message,
                    "entry": outcome.entries[0].to_json() if outcome.entries else None,
                    "error": None if outcome.error is None else outcome.error.to_json(),
                }
                for outcome in steps
            ],
            "not_copied": others_json(self.chosen),
            "excluded": self.chosen.excluded,
            "foreign_keys": {
                "made": self.made,
                "not_made": [{"table": str(key.ref), "name": key.name, "why": why} for key, why in self.not_made],
            },
        }


def others_json(chosen: Chosen) -> list[dict[str, str]]:
    """Return what is not copied as JSON types."""
    return [{"name": str(one.ref), "kind": WORDS[one.kind][0]} for one in chosen.others]


def choose(runtime: Runtime, pattern: str, exclude: Sequence[str], *, shared: str = "") -> Chosen:
    """Return what a pattern means in the source.

    Raises:
        UsageError: a pattern is none.
        NotFound: there is no such table.
    """
    from millrace.postgres.inventory import foreign_keys, holdings

    wanted, unwanted = Pattern.parse(pattern), [Pattern.parse(text) for text in exclude]
    reader = runtime.reader(SOURCE)
    label = reader.database.label
    with reader.snapshot(shared=shared) as snap:
        found = holdings(snap.connection, label)
        meant = [one for one in found if wanted.takes(one.ref)]
        kept = [one for one in meant if not any(other.takes(one.ref) for other in unwanted)]
        tables = sorted((one for one in kept if one.table), key=lambda one: -one.bytes)
        keys = foreign_keys(snap.connection, {one.ref for one in tables}, label) if tables else []
    if not tables and any(one.table for one in meant):
        raise NotFound(
            f"every table that matches {pattern} is excluded", where=label, hint=f"not by {', '.join(exclude)}"
        )
    if not tables:
        schemas = list(dict.fromkeys(one.schema_name for one in found if one.table))
        asked = pattern.rpartition(".")[0].strip('"')
        hint = did_you_mean(asked, schemas) if asked else None
        listed = f"schemas with tables: {', '.join(map(quoted, schemas))}" if schemas else "there is no table at all"
        raise NotFound(f"no table matches {pattern}", where=reader.database.place, hint=hint or listed)
    excluded = sum(one.table for one in meant) - len(tables)
    others = sorted((one for one in kept if not one.table), key=lambda one: list(WORDS).index(one.kind))
    return Chosen(tuple(tables), tuple(others), excluded, tuple(keys))


def schema_of(into: str | None) -> str | None:
    """Return the schema of `raw.*`, into which all tables go; None: each into its own."""
    if into is None or into.strip() == "*":
        return None
    schema, _, star = into.strip().rpartition(".")
    if star.strip() != "*" or is_pattern(schema):
        raise UsageError(
            f"not a place for several tables: {into!r}", hint="write one schema, like raw.*, or leave it out"
        )
    return TableRef.parse(schema).name


def _specs(chosen: Chosen, into: str | None, options: CopyOptions) -> list[CopySpec]:
    """Return how each table is copied.

    Raises:
        UsageError: two tables would go into one.
    """
    schema = schema_of(into)
    specs = []
    taken: dict[AssetId, TableRef] = {}
    for one in chosen.tables:
        asset = AssetId(schema or one.schema_name, one.name)
        if asset in taken:
            raise UsageError(f"{taken[asset]} and {one.ref} would both go into {TableRef(asset.layer, asset.name)}")
        taken[asset] = one.ref
        said = {field.name: getattr(options, field.name) for field in fields(options)}
        spec = CopySpec(source=SOURCE, table=one.ref, asset=asset, snapshot=SNAPSHOT, **said)
        if options.mode == "full" and not one.keyed:  # nothing tells its rows apart: they are all replaced
            spec = replace(spec, mode="truncate")
        specs.append(spec)
    return specs


def copy_tables(
    source: str,
    pattern: str,
    target: str,
    into: str | None,
    options: CopyOptions,
    *,
    exclude: Sequence[str] = (),
    together: bool = False,
    with_foreign_keys: bool = False,
    trusted_urls: bool = False,
    show_progress: bool = False,
) -> WholeOutcome:
    """Copy all tables that a pattern means, from one snapshot; each is published as soon as it is proven.

    Args:
        source, target: `env:NAME`, `service:NAME`, a URL, or the name of a connection of the project here.
        pattern: `sales.*`, `sales.order_*`, `*`.
        into: a schema for all of them, as `raw.*`; None: the schemas that they have.
        options: mode and guards, for every table. A table without a primary key is copied in mode truncate.
        exclude: patterns of tables to leave out.
        together: publish all in one transaction, or nothing.
        with_foreign_keys: make the foreign keys between the copied tables that the target lacks.
        trusted_urls: whether a URL may hold a password.
        show_progress: whether a terminal watches.

    Raises:
        MillraceError: what is wrong before the first table; what a table failed of stands in the outcome.
    """
    since = time.monotonic()
    jobs = 1 if together else options.workers + 1
    # of the source one connection holds the snapshot, and each table has one at least
    with runtime_of(source, target, most=options.workers + 2, trusted_urls=trusted_urls) as runtime:
        chosen = choose(runtime, pattern, exclude, shared=SNAPSHOT)
        specs = _specs(chosen, into, options)
        with target_of(runtime).connect("look"):  # a target that is away is one error, not one for each table
            pass
        steps = [copy_step(spec, group=TOGETHER if together else "") for spec in specs]
        result = through_engine(runtime, steps, jobs=jobs, show_progress=show_progress)
        good = {outcome.key for outcome in result.steps if outcome.status in ("published", "fresh")}
        places = {spec.table: spec.place for spec, step in zip(specs, steps, strict=True) if step.key in good}
        made, not_made = tie(runtime, chosen, places, wanted=with_foreign_keys)
    tables = {step.key: (spec.table, spec.place) for spec, step in zip(specs, steps, strict=True)}
    return WholeOutcome(result, chosen, tables, made, tuple(not_made), time.monotonic() - since)


def target_of(runtime: Runtime) -> PostgresTarget:
    """Return the target of a runtime of two databases."""
    from millrace.postgres.target import PostgresTarget

    found = runtime.target(f"{CONNECTION}{TARGET}")
    assert isinstance(found, PostgresTarget)  # noqa: S101 - made for a database
    return found


def tie(
    runtime: Runtime, chosen: Chosen, places: Mapping[TableRef, TableRef], *, wanted: bool
) -> tuple[int, list[tuple[ForeignKey, str]]]:
    """Make the foreign keys whose both ends are there now; returns how many, and the others with the reason."""
    from millrace.postgres.inventory import foreign_keys, make_foreign_key

    if not chosen.keys:
        return 0, []
    made, not_made = 0, []
    place = target_of(runtime)
    with place.connect("foreign keys") as connection:
        if not wanted:
            found = foreign_keys(connection, set(places.values()), place.database.label)
            there = {(key.ref, key.name) for key in found}
            possible = [key for key in chosen.keys if key.ref in places and key.other in places]
            return 0, [(key, "not asked for") for key in possible if (places[key.ref], key.name) not in there]
        for key in chosen.keys:
            if key.ref not in places or key.other not in places:
                missing = key.ref if key.ref not in places else key.other
                not_made.append((key, f"{missing} was not copied"))
            elif not key.whole:
                not_made.append((key, "ON DELETE SET of some columns is not built yet"))
            else:
                problem = make_foreign_key(connection, key, places[key.ref], places[key.other], place.database.label)
                made += problem is None
                if problem is not None:
                    not_made.append((key, _sentence(problem)))
    return made, not_made


def _sentence(problem: MillraceError) -> str:
    return problem.detail[0] if problem.detail else problem.what


def look_whole(
    source: str, pattern: str, target: str, into: str | None, options: CopyOptions, exclude: Sequence[str]
) -> tuple[Chosen, list[CopySpec]]:
    """Return what `copy_tables` would copy, and into what; changes nothing.

    Raises:
        MillraceError: see `copy_tables`.
    """
    with runtime_of(source, target, most=options.workers + 2) as runtime:
        chosen = choose(runtime, pattern, exclude)
        return chosen, _specs(chosen, into, options)
