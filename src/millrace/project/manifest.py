"""`millrace.yaml`: name, owners, layers, environments, pipelines."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from millrace.project.fields import Count, Duration, Part, Text, Texts, or_empty, wrong
from millrace.project.variables import check_references, literal_password

VERSION = 1
"""The version of the files' format that this version of Millrace reads."""

# AssetId.parse reads these layers, and no SQL engine claims them for itself.
_LAYER = re.compile(r"[A-Za-z_]\w{0,62}", re.ASCII)
_NAME = re.compile(r"[^\W\d][\w-]*")
RESERVED_LAYERS = frozenset({"pages", "information_schema", "pg_catalog", "_millrace", "_millrace_stage"})
_CRON_FIELD = re.compile(r"[\w*,/#?-]+", re.ASCII)


def _referring(value: str) -> str:
    check_references(value)
    return value


def _url(value: str) -> str:
    check_references(value)
    if literal_password(value):
        raise wrong(
            "the password of {} stands in the file",
            hint='keep it out of the project: url: "${env:NAME}", with NAME in the environment or in .env',
        )
    return value


def _layers(value: Mapping[str, str]) -> Mapping[str, str]:
    for name in value:
        if not _LAYER.fullmatch(name):
            raise wrong(
                f'"{name}" cannot be a layer', at=name, key=True, hint="layers are ASCII words: bronze, raw_data"
            )
        if name.lower() in RESERVED_LAYERS:
            raise wrong(f'"{name}" cannot be a layer: the name is taken', at=name, key=True)
    lowered: dict[str, str] = {}
    for name in value:
        if name.lower() in lowered:
            raise wrong(f'layers "{lowered[name.lower()]}" and "{name}" differ only by case', at=name, key=True)
        lowered[name.lower()] = name
    return value


def _named(what: str) -> AfterValidator:
    def check(value: Mapping[str, object]) -> Mapping[str, object]:
        for name in value:
            if not _NAME.fullmatch(name):
                raise wrong(f'"{name}" cannot name {what}', at=name, key=True, hint="use letters, digits, _ and -")
        return value

    return AfterValidator(check)


def _cron(value: str) -> str:
    fields = value.split()
    if len(fields) != 5 or not all(_CRON_FIELD.fullmatch(field) for field in fields):
        raise wrong(
            f'"{value}" is not a schedule',
            hint='five cron fields, minute hour day month weekday: "0 6 * * *" is every day at 6',
        )
    return value


class Owners(Part):
    """Who to ask."""

    team: Text | None = None
    email: Text | None = None


class Connection(Part):
    """A database or a folder of files outside the project; or a PostgreSQL that Millrace starts itself, to try out.

    Attributes:
        path: the folder of a connection of type files, relative to the project.
        embedded: the embedded server's data folder, relative to the project.
        seed: an SQL file that the embedded connection's database is made from, once.
        max_connections: how many connections a run has open at once to read from the database, and to write to it.
    """

    type: Literal["postgres", "files"]
    url: Annotated[Text, AfterValidator(_url)] | None = Field(default=None, repr=False)
    embedded: Text | None = None
    seed: Text | None = None
    path: Annotated[Text, AfterValidator(_referring)] | None = None
    ledger_schema: Text = "_millrace"
    max_connections: Annotated[int, Field(strict=True, ge=3)] = 4

    @model_validator(mode="after")
    def _one_of_both(self) -> Connection:
        if self.type == "files":
            for other in ("url", "embedded", "seed", "ledger_schema", "max_connections"):
                if other in self.model_fields_set:
                    raise wrong(f'{{}} is a folder of files: it has no "{other}"', at=other, key=True)
            if self.path is None:
                raise wrong('{} needs a "path"', hint="path: ./landing, the folder that the files come to")
            return self
        if self.path is not None:
            raise wrong('{} is a database: it has no "path"', at="path", key=True)
        if self.url is None and self.embedded is None:
            raise wrong('{} needs a "url"', hint='url: "${env:NAME}"')
        if self.url is not None and self.embedded is not None:
            raise wrong('{} has a "url" and is embedded', at="embedded", key=True)
        if self.seed is not None and self.embedded is None:
            raise wrong('{} is not embedded: only a database that Millrace makes has a "seed"', at="seed", key=True)
        return self


class Warehouse(Part):
    """Where the warehouse's layers live: a DuckDB folder or a PostgreSQL database.

    Attributes:
        path: the DuckDB folder.
        connection: the connection whose database is the warehouse; dbt reads what copies brought there.
        url: the database, where no connection of the environment leads to it.
    """

    type: Literal["duckdb", "postgres"]
    path: Annotated[Text, AfterValidator(_referring)] | None = None
    connection: Text | None = None
    url: Annotated[Text, AfterValidator(_url)] | None = Field(default=None, repr=False)

    @model_validator(mode="after")
    def _fits(self) -> Warehouse:
        own = ("path",) if self.type == "duckdb" else ("connection", "url")
        for other in {"path", "connection", "url"}.difference(own):
            if getattr(self, other) is not None:
                raise wrong(f'a {self.type} warehouse has no "{other}"', at=other, key=True)
        said = [name for name in own if getattr(self, name) is not None]
        if not said:
            raise wrong(f'a {self.type} warehouse needs "{own[0]}"')
        if len(said) > 1:
            raise wrong('a warehouse has a "connection" or a "url", not both', at="url", key=True)
        return self


class Environment(Part):
    """Connections and places of one environment; what is not said comes from `extends`."""

    extends: Text | None = None
    connections: Annotated[dict[str, Connection], _named("a connection"), BeforeValidator(or_empty)] = Field(default={})
    lake: Annotated[Text, AfterValidator(_referring)] | None = None
    warehouse: Warehouse | None = None
    state: Annotated[Text, AfterValidator(_url)] | None = Field(default=None, repr=False)
    engine: Literal["local", "spark"] | None = None

    def over(self, base: Environment) -> Environment:
        """Return this environment with what it does not say taken from another; connections by name."""
        said = {name: getattr(self, name) for name in self.model_fields_set if getattr(self, name) is not None}
        said["connections"] = {**base.connections, **self.connections}
        return base.model_copy(update=said)


class Pipeline(Part):
    """A named selection of assets with a schedule."""

    schedule: Annotated[Text, AfterValidator(_cron)] | None = None
    select: Texts | None = None
    description: Text | None = None
    retries: Count = 0
    retry_delay: Duration = "1m"
    deadline: Duration | None = None


class Manifest(Part):
    """`millrace.yaml`."""

    version: int
    name: Text
    description: Text | None = None
    owners: Owners = Owners()
    layers: Annotated[dict[str, Literal["lake", "warehouse"]], AfterValidator(_layers)] = Field(default={})
    environments: Annotated[dict[str, Annotated[Environment, BeforeValidator(or_empty)]], _named("an environment")]
    pipelines: Annotated[
        dict[str, Annotated[Pipeline, BeforeValidator(or_empty)]], _named("a pipeline"), BeforeValidator(or_empty)
    ] = Field(default={})

    @model_validator(mode="after")
    def _some_environment(self) -> Manifest:
        if not _NAME.fullmatch(self.name):
            raise wrong(f'"{self.name}" cannot name a project', at="name", hint="use letters, digits, _ and -")
        if not self.environments:
            raise wrong("no environment is defined", at="environments", key=True, hint="environments: {dev: {…}}")
        return self
