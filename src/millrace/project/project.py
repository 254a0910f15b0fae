"""A project as the rest of the house sees it: one environment, everything validated, nothing resolved yet."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from millrace.core.names import AssetId, TableRef, fingerprint
from millrace.errors import NotFound, Place, ProjectError, UsageError, did_you_mean
from millrace.project.bundle import bundle_hash, folder_hash
from millrace.project.checks import CheckSet
from millrace.project.copies import TableOptions
from millrace.project.dashboards import DashboardFile
from millrace.project.manifest import Connection, Environment, Manifest, Pipeline, Warehouse
from millrace.project.models import ModelOptions
from millrace.project.source import Document, problem
from millrace.project.variables import Variables

MANIFEST = "millrace.yaml"


@dataclass(frozen=True)
class CopyTable:
    """One table to copy.

    Attributes:
        asset: `layer.name`; for a copy into a connection the layer is the schema.
        source: name of the connection it comes from.
        target: `lake` or `connection:<name>`.
        options: the table's, over the file's defaults.
        file: the copies file, relative to the project folder.
        place: where the table stands in it.
    """

    asset: AssetId
    source: str
    table: TableRef
    target: str
    options: TableOptions
    file: str
    place: Place


@dataclass(frozen=True)
class ModelFile:
    """One SQL model: `models/<layer>/<name>.sql` and what the YAML beside it says."""

    asset: AssetId
    file: str
    text: str = field(repr=False)
    options: ModelOptions
    options_file: str | None
    place: Place


@dataclass(frozen=True)
class AssetChecks:
    """The checks of one asset, and the place where they stand."""

    asset: AssetId
    checks: CheckSet
    place: Place


@dataclass(frozen=True)
class Dashboard:
    """One dashboard file; its name is the file's."""

    name: str
    file: str
    content: DashboardFile
    place: Place


@dataclass(frozen=True)
class Project:
    """A project folder, read in one environment.

    Attributes:
        root: the folder.
        environment: name of the environment in use; `settings` are its own over those it extends.
        copies, models, checks, dashboards: in the order of their files' names.
        dbt: `dbt` when the folder exists, else None.
        documents: the YAML files by path, to name places in them.
    """

    root: Path
    manifest: Manifest
    environment: str
    settings: Environment
    copies: tuple[CopyTable, ...]
    models: tuple[ModelFile, ...]
    checks: tuple[AssetChecks, ...]
    dashboards: tuple[Dashboard, ...]
    dbt: str | None
    documents: Mapping[str, Document] = field(repr=False)
    environ: Mapping[str, str] = field(repr=False, default_factory=lambda: os.environ)

    @property
    def name(self) -> str:
        """The project's name."""
        return self.manifest.name

    @property
    def layers(self) -> Mapping[str, str]:
        """What each layer is bound to: `lake` or `warehouse`."""
        return self.manifest.layers

    @cached_property
    def bundle(self) -> str:
        """Hash of the project's files."""
        return bundle_hash(self.root)

    @cached_property
    def dbt_hash(self) -> str:
        """Hash of the dbt folder's files; empty when there is none."""
        return folder_hash(self.root, self.dbt) if self.dbt else ""

    @cached_property
    def _variables(self) -> Variables:
        return Variables(self.root, self.environ)

    def connection(self, name: str) -> Connection:
        """Return a connection as the file says it, unresolved.

        Raises:
            NotFound: the environment has none of that name.
        """
        found = self.settings.connections.get(name)
        if found is None:
            known = list(self.settings.connections)
            raise NotFound(
                f"environment {self.environment} has no connection {name}",
                where=MANIFEST,
                hint=did_you_mean(name, known) or (f"it has: {', '.join(known)}" if known else None),
            )
        return found

    def connection_url(self, name: str) -> str:
        """Return a connection's URL with its variables resolved; it is a secret from now on.

        Raises:
            NotFound: the environment has no such connection, or it is embedded.
            ProjectError: a variable is not set; names it, the file and the environment.
        """
        found = self.connection(name)
        url = found.url
        if found.type == "files":
            raise NotFound(f"connection {name} is a folder of files, not a database", where=MANIFEST)
        if url is None:
            raise NotFound(f"connection {name} is embedded: it has no URL of its own", where=MANIFEST)
        return self._resolve(url, ("connections", name, "url"), f"connection {name}", secret=True)

    def folder_path(self, name: str) -> str:
        """Return the folder of a connection to files, resolved and absolute.

        Raises:
            NotFound: the environment has no such connection, or it is a database.
            ProjectError: a variable is not set.
        """
        path = self.connection(name).path
        if path is None:
            raise NotFound(f"connection {name} is a database, not a folder of files", where=MANIFEST)
        return self._path(self._resolve(path, ("connections", name, "path"), f"connection {name}", secret=False))

    def lake_path(self) -> str | None:
        """Return the lake's folder, resolved and absolute; None: the environment has no lake.

        Raises:
            ProjectError: a variable is not set, or the place or the engine is one that is not built yet.
        """
        text = self.settings.lake
        if text is None:
            return None
        if self.settings.engine == "spark":
            raise self._not_yet(("engine",), "engine spark", "leave it out: models run on this machine")
        resolved = self._resolve(text, ("lake",), "the lake", secret=False)
        if "://" in resolved:
            raise self._not_yet(("lake",), "a lake at a URL", "use a folder: lake: ./lake")
        return self._path(resolved)

    def warehouse_path(self) -> str | None:
        """Return the DuckDB warehouse's folder, resolved and absolute; None: the environment has no such warehouse.

        Raises:
            ProjectError: a variable is not set.
        """
        warehouse: Warehouse | None = self.settings.warehouse
        if warehouse is None or warehouse.path is None:
            return None
        return self._path(self._resolve(warehouse.path, ("warehouse", "path"), "the warehouse", secret=False))

    @property
    def warehouse_in_postgres(self) -> bool:
        """Whether the warehouse is a PostgreSQL database."""
        return self.settings.warehouse is not None and self.settings.warehouse.type == "postgres"

    def warehouse_connection(self) -> str | None:
        """Return the connection whose database is the warehouse; None: it is none of a connection.

        Raises:
            ProjectError: the environment has no such connection, or it is a folder of files.
        """
        warehouse = self.settings.warehouse
        name = None if warehouse is None else warehouse.connection
        if name is None:
            return None
        place = self._place_of(("warehouse", "connection"))
        if name not in self.settings.connections:
            known = list(self.settings.connections)
            hint = did_you_mean(name, known) or f"connections: {', '.join(known)}"
            raise self.problem(f"environment {self.environment} has no connection {name}", place, hint=hint)
        if self.settings.connections[name].type == "files":
            raise self.problem(f"connection {name} is a folder of files, not a database", place)
        return name

    def warehouse_url(self) -> str:
        """Return the PostgreSQL warehouse's URL with its variables resolved; it is a secret from now on.

        Raises:
            NotFound: the warehouse has no URL of its own.
            ProjectError: a variable is not set.
        """
        warehouse = self.settings.warehouse
        if warehouse is None or warehouse.url is None:
            raise NotFound("the warehouse has no URL of its own", where=MANIFEST)
        return self._resolve(warehouse.url, ("warehouse", "url"), "the warehouse", secret=True)

    def state_url(self) -> str | None:
        """Return where the state store is, resolved; None: the default beside the project."""
        text = self.settings.state
        return None if text is None else self._resolve(text, ("state",), "the state store", secret=True)

    def pipeline(self, name: str) -> Pipeline:
        """Return a pipeline by name.

        Raises:
            UsageError: there is none of that name.
        """
        found = self.manifest.pipelines.get(name)
        if found is None:
            known = list(self.manifest.pipelines)
            hint = did_you_mean(name, known) or (f"there are: {', '.join(known)}" if known else None)
            raise UsageError(f"no pipeline {name} in {MANIFEST}", hint=hint)
        return found

    def files_of(self, asset: AssetId) -> tuple[str, ...]:
        """Return the project's files behind an asset that a copy or model makes."""
        files: list[str] = [copy.file for copy in self.copies if copy.asset == asset]
        for model in self.models:
            if model.asset == asset:
                files += [model.file, *([model.options_file] if model.options_file else [])]
        files += [one.place.file for one in self.checks if one.asset == asset and one.place.file not in files]
        return tuple(files)

    def fingerprint_of(self, asset: AssetId) -> str:
        """Return a hash of the files behind an asset."""
        parts = [part for file in self.files_of(asset) for part in (file, self._text(file))]
        return fingerprint(str(asset), *parts)

    def problem(self, what: str, place: Place, *, note: str | None = None, hint: str | None = None) -> ProjectError:
        """Return an error at a place in one of the project's files, with its line."""
        return problem(what, place, self._text(place.file), note=note, hint=hint)

    def _text(self, file: str) -> str:
        if file in self.documents:
            return self.documents[file].text
        return next((model.text for model in self.models if model.file == file), "")

    def _path(self, text: str) -> str:
        return str((self.root / Path(text).expanduser()).resolve())

    def _not_yet(self, path: tuple[str, ...], what: str, hint: str) -> ProjectError:
        return self.problem(f"{what} is not built yet", self._place_of(path), hint=hint)

    def _place_of(self, path: tuple[str, ...]) -> Place:
        """Return where the environment in use, or the nearest one it extends, says something."""
        document = self.documents[MANIFEST]
        paths = (("environments", name, *path) for name in self._lineage())
        return next((document.values[one] for one in paths if one in document.values), document.place())

    def _resolve(self, text: str, path: tuple[str, ...], what: str, *, secret: bool) -> str:
        def fail(cause: str, hint: str | None) -> ProjectError:
            sentence = f"{cause}; {what} of environment {self.environment} needs it"
            return self.problem(sentence, self._place_of(path), hint=hint)

        return self._variables.resolve(text, fail, secret=secret)

    def _lineage(self) -> Iterator[str]:
        """Yield the environment in use and those it extends, nearest first."""
        name: str | None = self.environment
        while name is not None:
            yield name
            name = self.manifest.environments[name].extends
