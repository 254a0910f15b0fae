"""From a folder to a `Project`: every file read and validated, every error with its place, up to ten at once."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ParamSpec

from pydantic_core import PydanticCustomError

from millrace.core.names import AssetId, TableRef
from millrace.errors import Place, ProjectError, UsageError, did_you_mean
from millrace.project.checks import CheckSet, ChecksFile
from millrace.project.copies import CopiesFile, TableOptions
from millrace.project.dashboards import DashboardFile
from millrace.project.landing import check_table, may_share
from millrace.project.manifest import VERSION, Environment, Manifest
from millrace.project.models import ModelOptions
from millrace.project.problems import context, validated
from millrace.project.project import MANIFEST, AssetChecks, CopyTable, Dashboard, ModelFile, Project
from millrace.project.source import Document, Path_, excerpt, parse_yaml, read_text, together

P = ParamSpec("P")

ENVIRONMENT_VARIABLE = "MILLRACE_ENV"
MOST_NAME_BYTES = 63  # PostgreSQL's limit for identifiers; file names bear more


def find_project(folder: Path) -> Path:
    """Return the folder with `millrace.yaml`: the given one or the nearest above it.

    Raises:
        ProjectError: there is none.
    """
    start = folder.expanduser().resolve()
    if not start.is_dir():
        raise ProjectError(f"there is no folder {folder}")
    for path in (start, *start.parents):
        if (path / MANIFEST).is_file():
            return path
    if (start / "millrace.yml").is_file():
        raise ProjectError("millrace.yml must be named millrace.yaml", where=str(start))
    raise ProjectError(f"no {MANIFEST} in {start} or above it", hint="make a project: millrace init NAME")


def load_project(
    folder: Path | None = None, environment: str | None = None, *, environ: Mapping[str, str] | None = None
) -> Project:
    """Read a project.

    Args:
        folder: its folder or one below it; the current one by default.
        environment: name; else `MILLRACE_ENV`, else `dev`, else the first one.
        environ: the process environment.

    Raises:
        ProjectError: a file is wrong; `others` holds up to nine further errors.
        UsageError: there is no such environment.
    """
    environ = os.environ if environ is None else environ
    root = find_project(Path.cwd() if folder is None else folder)
    loader = _Loader(root)
    manifest = loader.manifest()
    name = _choose(manifest, environment, environ)
    settings = loader.settings(manifest, name)
    loader.read(manifest, name, settings)
    if loader.errors:
        raise together(loader.errors)
    return Project(
        root=root,
        manifest=manifest,
        environment=name,
        settings=settings,
        copies=tuple(loader.copies),
        models=tuple(loader.models),
        checks=tuple(loader.checks),
        dashboards=tuple(loader.dashboards),
        dbt="dbt" if (root / "dbt").is_dir() else None,
        documents=loader.documents,
        environ=environ,
    )


def _choose(manifest: Manifest, asked: str | None, environ: Mapping[str, str]) -> str:
    """Return the environment to use."""
    known = list(manifest.environments)
    name = asked or environ.get(ENVIRONMENT_VARIABLE) or ("dev" if "dev" in known else known[0])
    if name not in known:
        where = "--env" if asked else ENVIRONMENT_VARIABLE
        hint = did_you_mean(name, known) or f"{MANIFEST} has: {', '.join(known)}"
        raise UsageError(f'unknown environment "{name}" in {where}', hint=hint)
    return name


class _Loader:
    """Reads the files of one project and gathers what is wrong with them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.documents: dict[str, Document] = {}
        self.errors: list[ProjectError] = []
        self.copies: list[CopyTable] = []
        self.models: list[ModelFile] = []
        self.checks: list[AssetChecks] = []
        self.dashboards: list[Dashboard] = []
        self._texts: dict[str, str] = {}

    # -- millrace.yaml ------------------------------------------------------------------------------------------

    def manifest(self) -> Manifest:
        """Read `millrace.yaml`; its errors end the look, since all else depends on it."""
        document = self._document(MANIFEST)
        version = document.value.get("version")
        if isinstance(version, int) and not isinstance(version, bool) and version != VERSION:
            if version > VERSION:
                raise document.problem(
                    f"the project has version {version}, this version of Millrace knows up to {VERSION}",
                    ("version",),
                    hint="use the newer version of Millrace here",
                )
            raise document.problem(f'"version" must be {VERSION}, not {version}', ("version",))
        return validated(Manifest, document)

    def settings(self, manifest: Manifest, name: str) -> Environment:
        """Return an environment over those it extends."""
        document = self.documents[MANIFEST]
        for one, settings in manifest.environments.items():
            if settings.extends is not None and settings.extends not in manifest.environments:
                raise document.problem(
                    f'environment {one} extends "{settings.extends}", which does not exist',
                    ("environments", one, "extends"),
                    note=did_you_mean(settings.extends, list(manifest.environments)),
                )
        for one in manifest.environments:
            chain = [one]
            while (parent := manifest.environments[chain[-1]].extends) is not None:
                if parent in chain:
                    circle = " → ".join([*chain[chain.index(parent) :], parent])
                    raise document.problem(
                        f"environments extend each other: {circle}", ("environments", one, "extends")
                    )
                chain.append(parent)
        found = manifest.environments[name]
        while found.extends is not None:
            base = manifest.environments[found.extends]
            found = found.over(base).model_copy(update={"extends": base.extends})
        return found

    # -- the folders --------------------------------------------------------------------------------------------

    def read(self, manifest: Manifest, environment: str, settings: Environment) -> None:
        """Read all other files."""
        self._places(manifest, environment, settings)
        for file in self._files("copies"):
            self._try(self._copies, file, manifest, environment, settings)
        for folder in sorted(self._children("models")):
            self._layer(folder, manifest)
        for file in self._files("checks"):
            self._try(self._checks, file, manifest)
        for file in self._files("dashboards"):
            self._try(self._dashboard, file)
        if (self.root / "dbt").is_dir() and not (self.root / "dbt" / "dbt_project.yml").is_file():
            self.errors.append(ProjectError("the folder dbt holds no dbt project", where=Place("dbt/dbt_project.yml")))
        self._names(manifest)
        self._archived()
        self._checked_once()

    def _places(self, manifest: Manifest, environment: str, settings: Environment) -> None:
        """Every layer must have the place it is bound to."""
        for layer, bound in manifest.layers.items():
            if getattr(settings, bound) is None:
                self.errors.append(
                    self.documents[MANIFEST].problem(
                        f'layer {layer} is bound to the {bound}, and environment {environment} has no "{bound}"',
                        ("layers", layer),
                    )
                )
                return

    def _copies(self, file: str, manifest: Manifest, environment: str, settings: Environment) -> None:
        document = self._document(file)
        content = validated(CopiesFile, document)
        if content.from_ not in settings.connections:
            raise _unknown_connection(document, ("from",), content.from_, environment, settings)
        layer, target = _destination(document, content.to, manifest, environment, settings)
        for name, options in content.tables.items():
            path: Path_ = ("tables", name)
            merged = options.over(content.defaults)
            folder = settings.connections[content.from_].type == "files"
            self._try(self._table, document, path, name, merged, content.from_, folder, layer, target)

    def _table(
        self,
        document: Document,
        path: Path_,
        name: str,
        options: TableOptions,
        source: str,
        folder: bool,
        layer: str,
        target: str,
    ) -> None:
        options = check_table(document, path, name, options, source, folder, target)
        self.copies.append(_table(document, path, name, options, source, layer, target))

    def _layer(self, folder: str, manifest: Manifest) -> None:
        layer = Path(folder).name
        if manifest.layers.get(layer) != "lake":
            lake = [name for name, bound in manifest.layers.items() if bound == "lake"]
            what = f'folder {folder} is not a layer of the lake: "{layer}" is'
            what += " bound to the warehouse" if layer in manifest.layers else f" not in layers of {MANIFEST}"
            hint = did_you_mean(layer, lake) or (f"layers of the lake: {', '.join(lake)}" if lake else None)
            if layer in manifest.layers:
                hint = "tables of the warehouse are made by dbt"
            self.errors.append(ProjectError(what, where=Place(folder), hint=hint))
            return
        stems = {path.stem for path in (self.root / folder).glob("*.sql")}
        for path in sorted((self.root / folder).iterdir()):
            file = path.relative_to(self.root).as_posix()
            if path.name.startswith(".") or path.name.endswith("~"):
                continue
            if path.is_dir():
                hint = "models live at models/<layer>/<name>.sql"
                self.errors.append(ProjectError("a folder inside a layer's folder", where=Place(file), hint=hint))
            elif path.suffix == ".sql":
                self._try(self._model, file, layer, path.stem)
            elif path.suffix == ".py":
                self.errors.append(ProjectError("Python models are not built yet", where=Place(file)))
            elif path.suffix == ".yml":
                self.errors.append(ProjectError(f"{path.name} must end in .yaml", where=Place(file)))
            elif path.suffix == ".yaml" and path.stem not in stems:
                hint = did_you_mean(path.stem, sorted(stems))
                what = f"there is no model {path.stem}.sql beside {path.name}"
                self.errors.append(ProjectError(what, where=Place(file), hint=hint))

    def _model(self, file: str, layer: str, name: str) -> None:
        text = read_text(self.root, file)
        self._texts[file] = text
        place = Place(file, 1, 1)
        _asset_name(name, file)
        if not text.strip():
            raise ProjectError("the model is empty", where=Place(file))
        options_file: str | None = file.removesuffix(".sql") + ".yaml"
        options = ModelOptions()
        if (self.root / str(options_file)).is_file():
            options = validated(ModelOptions, self._document(str(options_file)))
        else:
            options_file = None
        asset = AssetId(layer, name)
        self.models.append(ModelFile(asset, file, text, options, options_file, place))
        if options.checks is not None and options_file is not None:
            self._add_checks(asset, options.checks, self.documents[options_file].place(("checks",), key=True))

    def _checks(self, file: str, manifest: Manifest) -> None:
        document = self._document(file)
        for name, checks in validated(ChecksFile, document).root.items():
            try:
                asset = AssetId.parse(name)
            except UsageError:
                hint = "assets are named layer.name, like marts.fct_orders"
                self.errors.append(document.problem(f'"{name}" is not an asset', (name,), key=True, hint=hint))
                continue
            if asset.layer not in manifest.layers and not any(copy.asset == asset for copy in self.copies):
                near = did_you_mean(asset.layer, list(manifest.layers))
                what = f'unknown layer "{asset.layer}" in {name}'
                self.errors.append(document.problem(what, (name,), key=True, note=near))
                continue
            self._add_checks(asset, checks, document.place((name,), key=True))

    def _dashboard(self, file: str) -> None:
        document = self._document(file)
        content = validated(DashboardFile, document)
        name = Path(file).stem
        _asset_name(name, file)
        self.dashboards.append(Dashboard(name, file, content, document.place(("asset",))))

    # -- across files -------------------------------------------------------------------------------------------

    def _add_checks(self, asset: AssetId, checks: CheckSet, place: Place) -> None:
        self.checks.append(AssetChecks(asset, checks, place))

    def _checked_once(self) -> None:
        """One asset's checks stand in one place, so that one look shows them all."""
        for copy in self.copies:
            if copy.options.checks is not None:
                self._add_checks(copy.asset, copy.options.checks, copy.place)
        seen: dict[AssetId, Place] = {}
        for one in self.checks:
            if one.asset in seen:
                what = f"checks of {one.asset} stand in two places"
                self.errors.append(self._problem(what, one.place, f"also at {seen[one.asset]}"))
            seen.setdefault(one.asset, one.place)

    def _archived(self) -> None:
        """An archive must not take files away that another table has not read yet."""
        tables = [copy for copy in self.copies if copy.options.files is not None]
        for one in tables:
            for other in tables:
                shared = one is not other and one.source == other.source and one.options.archive
                if shared and may_share(str(one.options.files), str(other.options.files)):
                    what = (
                        f"{one.asset} and {other.asset} may take the same files, and the archive would move them away"
                    )
                    self.errors.append(self._problem(what, one.place, f"also at {other.place}"))

    def _names(self, manifest: Manifest) -> None:
        """No two assets may have one name; in layers, upper and lower case are the same."""
        seen: dict[tuple[str, str], tuple[AssetId, Place]] = {}
        folded = {*manifest.layers, "pages"}
        made = [(copy.asset, copy.place) for copy in self.copies]
        made += [(model.asset, model.place) for model in self.models]
        made += [(AssetId("pages", page.name), Place(page.file)) for page in self.dashboards]
        for asset, place in made:
            key = (asset.layer, same_name(asset.name) if asset.layer in folded else asset.name)
            if key in seen:
                first, where = seen[key]
                what = f"two assets are named {asset}"
                if first != asset:
                    what = f"assets {first} and {asset} have names that differ only by case"
                self.errors.append(self._problem(what, place, f"also at {where}"))
            seen.setdefault(key, (asset, place))

    # -- small things -------------------------------------------------------------------------------------------

    def _document(self, file: str) -> Document:
        text = read_text(self.root, file)
        self._texts[file] = text
        self.documents[file] = parse_yaml(text, file)
        return self.documents[file]

    def _problem(self, what: str, place: Place, note: str) -> ProjectError:
        text = self._texts.get(place.file, "")
        if place.file.endswith(".sql"):  # the whole file is meant, no line of it
            return ProjectError(what, where=Place(place.file), detail=(note,))
        return ProjectError(what, where=place, detail=(*excerpt(text, place), note))

    def _try(self, read: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        """Call and gather the errors."""
        try:
            read(*args, **kwargs)
        except ProjectError as error:
            others, error.others = error.others, ()
            self.errors += [error, *others]

    def _children(self, folder: str) -> list[str]:
        path = self.root / folder
        if not path.is_dir():
            return []
        return [
            f"{folder}/{one.name}" for one in path.iterdir() if one.is_dir() and not one.name.startswith((".", "_"))
        ]

    def _files(self, folder: str) -> list[str]:
        """Return a folder's YAML files; one that ends in .yml would be overlooked, so it is an error."""
        path = self.root / folder
        if not path.is_dir():
            return []
        files = sorted(one.name for one in path.iterdir() if one.is_file() and not one.name.startswith("."))
        self.errors += [
            ProjectError(f"{name} must end in .yaml", where=Place(f"{folder}/{name}"))
            for name in files
            if name.endswith(".yml")
        ]
        return [f"{folder}/{name}" for name in files if name.endswith(".yaml")]


def same_name(name: str) -> str:
    """Return what two names share when a file system or DuckDB takes them for one."""
    return unicodedata.normalize("NFC", name).casefold()


def _destination(
    document: Document, to: str, manifest: Manifest, environment: str, settings: Environment
) -> tuple[str, str]:
    """Return layer and target of `to`: a layer of the lake, or `connection.schema`."""
    connection, dot, schema = to.partition(".")
    if not dot:
        bound = manifest.layers.get(to)
        if bound == "lake":
            return to, "lake"
        if bound is not None:
            raise document.problem(
                f"layer {to} is bound to the warehouse; copies go to a layer of the lake or to connection.schema",
                ("to",),
            )
        near = did_you_mean(to, list(manifest.layers))
        hint = None if near else "name a layer of millrace.yaml, or connection.schema"
        raise document.problem(f'unknown layer "{to}"', ("to",), note=near, hint=hint)
    if connection not in settings.connections:
        if connection in manifest.layers:
            raise document.problem(f'"{to}" names a table: a layer alone is meant', ("to",), note=f"{connection}?")
        raise _unknown_connection(document, ("to",), connection, environment, settings)
    try:
        ref = TableRef.parse(schema)
    except UsageError:
        ref = TableRef("", "")
    if ref.schema is not None:
        raise document.problem(
            f'"{schema}" is not a schema', ("to",), hint="connection.schema, like edi_target.raw_data"
        )
    return ref.name, f"connection:{connection}"


def _unknown_connection(
    document: Document, path: Path_, name: str, environment: str, settings: Environment
) -> ProjectError:
    known = list(settings.connections)
    near = did_you_mean(name, known)
    hint = None if near else (f"it has: {', '.join(known)}" if known else f"connections go to {MANIFEST}")
    return document.problem(f'unknown connection "{name}" in environment {environment}', path, note=near, hint=hint)


def _table(
    document: Document, path: Path_, name: str, options: TableOptions, source: str, layer: str, target: str
) -> CopyTable:
    """Return one table's copy after a look at what its options mean together."""
    place = document.place(path, key=True)
    try:
        ref = TableRef.parse(name)
    except UsageError as error:
        raise document.problem(error.what, path, key=True, hint=error.hint) from None
    if options.mode == "incremental" and options.cursor is None:
        at = (*path, "mode") if (*path, "mode") in document.values else path
        hint = "cursor: updated_at, or mode: full"
        raise document.problem(f"table {name} is incremental and names no cursor column", at, key=True, hint=hint)
    _check_backfill(document, path, name, options)
    _check_stage(document, path, name, options, target)
    if options.mode not in ("incremental", "append", "backfill") and options.cursor is not None:
        # from the defaults; a full copy reads everything
        options = options.model_copy(update={"cursor": None, "cursor_format": None, "lookback": None})
    if options.proof == "count" and target == "lake":
        at = (*path, "proof") if (*path, "proof") in document.values else ("defaults", "proof")
        hint = "leave proof out: a copy into the lake compares every row"
        raise document.problem(f"table {name}: rows of the lake that are only counted are not built yet", at, hint=hint)
    if options.mode == "append" and options.soft_delete is not None:
        at = (*path, "soft_delete") if (*path, "soft_delete") in document.values else ("defaults", "soft_delete")
        raise document.problem(f"table {name} only appends, and soft_delete deletes", at, hint="mode: incremental")
    for word in ("where", "select", "count", "soft_delete"):
        text = getattr(options, word)
        if text is not None:
            from millrace.project.sql import check_sql  # sqlglot costs a tenth of a second that few projects need

            try:
                check_sql(word, text)
            except PydanticCustomError as error:
                what = str((error.context or {})["what"]).replace("{}", context(path, document.file))
                at = (*path, word) if (*path, word) in document.values else ("defaults", word)
                raise document.problem(what, at) from None
    asset = options.as_ or ref.name
    if target == "lake":
        _asset_name(asset, None, document, (*path, "as") if options.as_ else path)
    elif len(asset.encode()) > MOST_NAME_BYTES or "\0" in asset:
        raise document.problem(f"the name {asset} is longer than {MOST_NAME_BYTES} bytes", path, key=True)
    return CopyTable(AssetId(layer, asset), source, ref, target, options, document.file, place)


def _check_backfill(document: Document, path: Path_, name: str, options: TableOptions) -> None:
    """Refuse an interval without a backfill, and a backfill without an interval or a cursor. Raises ProjectError."""

    def at(key: str) -> Path_:
        return next((one for one in ((*path, key), ("defaults", key)) if one in document.values), path)

    bounded = options.start is not None or options.end is not None
    if options.mode != "backfill":
        if bounded:
            key = "from" if options.start is not None else "to"
            what = f'table {name}: "{key}" says nothing in mode {options.mode or "full"}'
            raise document.problem(what, at(key), key=True, hint="mode: backfill, or millrace run --from … --to …")
        return
    hint = "cursor: updated_at, from: 2026-01-01, to: 2026-02-01"
    if options.cursor is None or not bounded:
        missing = "names no cursor column" if options.cursor is None else "has neither from nor to"
        raise document.problem(f"table {name} is a backfill and {missing}", at("mode"), key=True, hint=hint)


def _check_stage(document: Document, path: Path_, name: str, options: TableOptions, target: str) -> None:
    """Refuse files between source and target where they are not built, or would be others. Raises ProjectError."""
    if options.stage is None or options.stage.file == "direct":
        return

    def at(key: str) -> Path_:
        return next((one for one in ((*path, key), ("defaults", key)) if one in document.keys), path)

    if options.mode == "backfill":
        what = f"table {name}: a backfill by way of files is not built yet"
        raise document.problem(what, at("stage"), key=True, hint="stage: direct, or mode: incremental")
    if target == "lake" and (options.stage.file == "csv" or options.stage.folder is not None):
        what = f"table {name} goes into the lake, where Parquet files are staged anyway, in the lake itself"
        raise document.problem(what, at("stage"), key=True, hint="leave stage out, or stage: parquet")
    if target != "lake" and options.proof == "count":
        what = f"table {name}: files are proven row by row, so proof: count says nothing with stage"
        raise document.problem(what, at("proof"), key=True, hint="leave one of the two out")
    if target != "lake" and options.verify is not None and options.verify.seconds is not None:
        what = f"table {name}: parts are compared with both ends at once, so by way of files they are not"
        hint = "leave verify out, and compare everything with millrace verify"
        raise document.problem(what, at("verify"), key=True, hint=hint)


def _asset_name(name: str, file: str | None, document: Document | None = None, path: Path_ = ()) -> None:
    """Refuse names that cannot be a folder and an SQL name at once.

    Raises:
        ProjectError: names the way out, `as`.
    """
    cause = None
    if len(name.encode("utf-8", "surrogateescape")) > MOST_NAME_BYTES:
        cause = f"it is longer than {MOST_NAME_BYTES} bytes"
    elif name.startswith("_millrace"):
        cause = "names that begin with _millrace are taken"
    elif bad := [c for c in name if c in '/\\.:*?"<>|%' or not c.isprintable()]:
        cause = f"it holds {bad[0]!a}"
    elif name != name.strip() or not name:
        cause = "it begins or ends with a space"
    if cause is None:
        return
    shown = name if name.isprintable() else ascii(name)[1:-1]
    what = f"{shown} cannot name an asset of the lake: {cause}"
    if document is None:
        raise ProjectError(what, where=Place(str(file)), hint="rename the file")
    raise document.problem(what, path, key=True, hint="name the asset: as: other_name")
