"""Steps from a project's files and its dbt graph: what each makes, reads, and needs to know.

What a step's spec holds, by kind (paths are relative to the project folder):

    copy   {"copy": a CopySpec as JSON, "checks": {…}, "contract"}
    model  {"path", "kind", "key", "checks", "contract", "partitions", "partitions_at"}; the last two when it is split
    load   {"source": {"layer", "name"}, "table": {"layer", "name"}}
    dbt    {"path": the dbt folder, "models": ["marts.fct_orders", …], "shown": columns that pages read of them}
    gate   {"checks": {…}, "path"}
    page   {"dashboard": the file's content, "columns": [{"asset", "column", "use", "place", "lines"}]}

A lake asset that dbt reads is loaded into the warehouse under its own name (`silver.orders`), but it is another asset
than the lake's: it is called `warehouse/silver.orders` in plans and ledgers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from millrace.core.names import AssetId, fingerprint
from millrace.core.plan import Step
from millrace.errors import Place, ProjectError, did_you_mean
from millrace.planner.copies import asset_json, check_contract, copy_spec, said, what_counts
from millrace.project import AssetChecks, CopyTable, Dashboard, ModelFile, Project
from millrace.project.dashboards import Column
from millrace.project.fields import RowContract
from millrace.project.load import same_name
from millrace.project.source import Document, excerpt, together

WAREHOUSE = "warehouse"
"""Name of the warehouse's target and of its publish group: all of it becomes visible in one step."""
PAGES = "pages"

MAX_BAD = 0.001
"""Share of a load's rows that may be set aside, unless a contract says otherwise."""

KINDS = ("copy", "model", "load", "dbt", "gate", "page")
"""In the order in which independent steps stand in a plan."""


class ModelInputs(Protocol):
    """What an SQL model reads."""

    @property
    def inputs(self) -> Sequence[AssetId]:
        """Assets in the order of the text."""

    @property
    def dated(self) -> bool:
        """Whether it uses the logical date."""

    @property
    def columns(self) -> Sequence[str] | None:
        """Names of its columns; None where only the engine can say them."""


InputsOf = Callable[[ModelFile], ModelInputs]
"""Parses a model; raises ProjectError when it does not parse."""


class DbtRelation(Protocol):
    """A model or source table of a dbt project: where it lies in the warehouse."""

    @property
    def schema(self) -> str:
        """Its schema: the layer."""

    @property
    def name(self) -> str:
        """Its name in that schema."""


class DbtGraph(Protocol):
    """What the planner needs of a parsed dbt project."""

    @property
    def models(self) -> Sequence[DbtRelation]:
        """Models, seeds and snapshots that become relations."""

    @property
    def sources(self) -> Sequence[DbtRelation]:
        """Source tables."""


@dataclass(frozen=True)
class Made:
    """The steps of a project, not yet in order, and where each was written.

    Attributes:
        places: where a step stands in the project's files, by step key.
        reads: where an input is read, by step key and asset.
    """

    steps: tuple[Step, ...]
    places: Mapping[str, Place]
    reads: Mapping[tuple[str, AssetId], Place]


def loaded(asset: AssetId) -> AssetId:
    """Return the asset that a lake asset becomes when it is loaded into the warehouse."""
    return AssetId(f"{WAREHOUSE}/{asset.layer}", asset.name)


def make_steps(project: Project, dbt: DbtGraph | None, inputs_of: InputsOf) -> Made:
    """Return the steps of a whole project.

    Raises:
        ProjectError: an input, a checked asset or a dbt source does not exist, or two assets have one name.
    """
    maker = _Maker(project)
    for copy in project.copies:
        maker.copy(copy)
    for model, parsed in _parsed(sorted(project.models, key=maker.order_of_model), inputs_of):
        maker.model(model, parsed)
    if dbt is not None and project.dbt is not None:
        maker.dbt(dbt)
    for checks in project.checks:
        maker.check(checks)
    for dashboard in project.dashboards:
        maker.page(dashboard)
    return maker.made()


def _parsed(models: Sequence[ModelFile], inputs_of: InputsOf) -> list[tuple[ModelFile, ModelInputs]]:
    """Parse all models, so that all that do not parse are told at once, with their lines."""
    found, errors = [], []
    for model in models:
        try:
            found.append((model, inputs_of(model)))
        except ProjectError as error:
            shown = excerpt(model.text, error.where) if isinstance(error.where, Place) else ()
            if not set(shown) <= set(error.detail):
                detail = (*shown, *error.detail)
                error = ProjectError(error.what, where=error.where, detail=detail, hint=error.hint)
            errors.append(error)
    if errors:
        raise together(errors)
    return found


class _Maker:
    def __init__(self, project: Project) -> None:
        self.project = project
        self.steps: dict[str, Step] = {}
        self.places: dict[str, Place] = {}
        self.checks = {one.asset: one for one in project.checks}
        self._layers = list(project.layers)

    def add(self, step: Step, place: Place) -> None:
        self.steps[step.key] = step if step.group else replace(step, group=step.key)
        self.places[step.key] = place

    def order_of_model(self, model: ModelFile) -> tuple[int, str]:
        """Models stand in the order of their layers in millrace.yaml."""
        return self._layers.index(model.asset.layer), model.asset.name

    def copy(self, copy: CopyTable) -> None:
        spec = copy_spec(copy)
        checks = self._checks_of(copy.asset)
        if (wanted := copy.options.contract) is not None:
            check_contract(self.project, copy, wanted)
        if wanted is not None and copy.target != "lake":
            for name in ("new_columns", "type_changes"):
                spec[name] = getattr(wanted, name) or "evolve"
        where = said(self.project, copy, "contract")
        contract = _contract(copy.options.contract, f"{where.file}:{where.line}")
        step = Step(
            key=f"copy:{copy.asset}",
            kind="copy",
            label=str(copy.asset),
            assets=(copy.asset,),
            target=copy.target,
            code=_code("copy", {**what_counts(spec), "checks": checks, **_sifted(contract)}),
            spec={"copy": spec, "checks": checks, "contract": contract},
        )
        self.add(step, copy.place)

    def model(self, model: ModelFile, parsed: ModelInputs) -> None:
        options = model.options
        spec: dict[str, Any] = {
            "path": model.file,
            "kind": options.kind,
            "key": list(options.key or ()),
            "checks": self._checks_of(model.asset),
        }
        if options.partitions:  # the code of models without any stays what it was
            spec["partitions"] = list(options.partitions)
        file = model.options_file or f"{model.file.removesuffix('.sql')}.yaml"  # where it would stand
        found = self.project.documents[file].values.get(("contract",)) if options.contract else None
        contract = _contract(options.contract, f"{file}:{found.line}" if found else file)
        told = self._split(model, file, parsed.columns) if options.partitions else {}
        step = Step(
            key=f"model:{model.asset}",
            kind="model",
            label=str(model.asset),
            assets=(model.asset,),
            inputs=tuple(dict.fromkeys(parsed.inputs)),
            target="lake",
            code=_code("model", {**spec, **_sifted(contract), "text": model.text.replace("\r\n", "\n")}),
            dated=parsed.dated,
            spec={**spec, **told, "contract": contract},
        )
        self.add(step, model.place)

    def _split(self, model: ModelFile, file: str, columns: Sequence[str] | None) -> dict[str, str]:
        """Return where the partitions stand. Raises ProjectError for a column that the model is seen not to have."""
        places = self.project.documents[file].values
        whole = places["partitions",]
        for index, name in enumerate(model.options.partitions or ()):
            if columns is not None and name.lower() not in map(str.lower, columns):
                what = f"{model.asset} has no column {name} to be split by"
                note = did_you_mean(name, columns)
                raise self.project.problem(what, places.get(("partitions", index), whole), note=note)
        return {"partitions_at": f"{file}:{whole.line}"}

    def dbt(self, graph: DbtGraph) -> None:
        folder = self.project.dbt or ""
        place = Place(f"{folder}/dbt_project.yml")
        sources = list(dict.fromkeys(AssetId(one.schema, one.name) for one in graph.sources))
        if self.project.warehouse_in_postgres:
            self._copied(sources, place)
        else:
            self._loads(sources, place)
        models = tuple(dict.fromkeys(AssetId(one.schema, one.name) for one in graph.models))
        self._distinct(models, place)
        step = Step(
            key=f"dbt:{self.project.name}",
            kind="dbt",
            label=self._last_layer(models),
            assets=models,
            inputs=tuple(sources if self.project.warehouse_in_postgres else map(loaded, sources)),
            target=WAREHOUSE,
            group=WAREHOUSE,
            code=_code("dbt", self.project.dbt_hash),
            spec={"path": folder, "models": [str(model) for model in models], "shown": []},
        )
        self.add(step, place)

    def _copied(self, sources: Sequence[AssetId], place: Place) -> None:
        """Refuse sources that no copy brings into the PostgreSQL warehouse's database."""
        wanted = self.project.warehouse_connection()
        made = {asset: step.target for step in self.steps.values() for asset in step.assets}
        there = [asset for asset, target in made.items() if target.startswith("connection:")]
        for source in sources:
            if source not in there:
                hint = did_you_mean(str(source), sorted(map(str, there)))
                raise ProjectError(
                    f"the dbt source {source} is not copied into the warehouse's database",
                    where=place,
                    hint=hint or f"copy it with a file in copies/, to: {wanted or 'connection'}.{source.layer}",
                )
            if wanted is not None and made[source] != f"connection:{wanted}":
                where = made[source].removeprefix("connection:")
                raise ProjectError(
                    f"the dbt source {source} is copied to connection {where}, the warehouse is in {wanted}",
                    where=place,
                    hint=f"copy it there: to: {wanted}.{source.layer}",
                )

    def _loads(self, sources: Sequence[AssetId], place: Place) -> None:
        """Make the steps that load what dbt reads from the lake into the DuckDB warehouse."""
        known = {asset for step in self.steps.values() for asset in step.assets}
        for source in sources:
            if source not in known or self.project.layers.get(source.layer) != "lake":
                hint = did_you_mean(str(source), sorted(map(str, known)))
                raise ProjectError(
                    f"the dbt source {source} is not an asset of the lake",
                    where=place,
                    hint=hint or "copy it with a file in copies/, or make it with a model",
                )
            table = loaded(source)
            step = Step(
                key=f"load:{source}",
                kind="load",
                label=str(table),
                assets=(table,),
                inputs=(source,),
                target=WAREHOUSE,
                group=WAREHOUSE,
                code=_code("load", str(source)),
                spec={"source": asset_json(source), "table": asset_json(source)},
            )
            self.add(step, place)

    def check(self, checks: AssetChecks) -> None:
        """Make the gate of an asset of the warehouse; checks of other assets stand in their steps' specs."""
        maker = next((step for step in self.steps.values() if checks.asset in step.assets), None)
        if maker is None:
            raise self.unknown("checks of", checks.asset, checks.place)
        for reference in (checks.checks.relationships or {}).values():
            self._referred(AssetId.parse(reference.to.rpartition(".")[0]), checks, maker)
        self._portable(checks, maker)
        if maker.kind != "dbt":
            return
        step = Step(
            key=f"gate:{checks.asset}",
            kind="gate",
            label=str(checks.asset),
            assets=(),
            inputs=(checks.asset,),
            after=(maker.key,),
            target=WAREHOUSE,
            group=WAREHOUSE,
            code=_code("gate", checks.checks.to_json()),
            spec={"checks": checks.checks.to_json(), "path": checks.place.file},
        )
        self.add(step, checks.place)

    def page(self, dashboard: Dashboard) -> None:
        """Make a page's step. The columns it reads are dbt's to prove too, before anything of the warehouse is seen."""
        if self.project.warehouse_in_postgres:
            what = "dashboards over a PostgreSQL warehouse are not built yet"
            raise self.project.problem(what, dashboard.place, hint="use a DuckDB warehouse, or leave the dashboard out")
        document = self.project.documents[dashboard.file]
        columns = [_column(column, document) for column in dashboard.content.columns()]
        step = Step(
            key=f"page:{dashboard.name}",
            kind="page",
            label=f"{PAGES}/{dashboard.name}.html",
            assets=(AssetId(PAGES, dashboard.name),),
            inputs=tuple(dashboard.content.reads()),
            target=PAGES,
            code=_code("page", document.text),
            spec={"dashboard": dashboard.content.model_dump(mode="json", exclude_none=True), "columns": columns},
        )
        self.add(step, dashboard.place)
        for key, maker in list(self.steps.items()):
            if maker.kind == "dbt":
                made = [column for column in columns if AssetId.parse(column["asset"]) in maker.assets]
                spec = {**maker.spec, "shown": [*maker.spec["shown"], *made]}
                self.steps[key] = replace(maker, spec=spec)

    def made(self) -> Made:
        """Return the steps after a look at every input."""
        makers = {asset: step for step in self.steps.values() for asset in step.assets}
        reads: dict[tuple[str, AssetId], Place] = {}
        for step in self.steps.values():
            for asset in step.inputs:
                reads[step.key, asset] = place = self._place_of(step, asset)
                self._readable(step, asset, makers.get(asset), place)
        gates = {step.inputs[0]: step.key for step in self.steps.values() if step.kind == "gate"}
        self._gate_the_group([self.steps[key].code for key in gates.values()])
        for key, step in self.steps.items():
            waits = tuple(gates[asset] for asset in step.inputs if asset in gates and step.kind not in ("gate", "dbt"))
            self.steps[key] = replace(step, after=tuple(dict.fromkeys((*step.after, *waits))))
        return Made(tuple(self.steps.values()), self.places, reads)

    def _gate_the_group(self, codes: Sequence[str]) -> None:
        """Let a changed check count as changed code of what it guards: a gate has no ledger of its own."""
        for key, step in self.steps.items():
            if step.kind == "dbt":
                self.steps[key] = replace(step, code=_code("dbt", [step.code, *codes]))

    def unknown(self, who: str, asset: AssetId, place: Place) -> ProjectError:
        """Return the error about an asset that nothing makes."""
        known = sorted(str(one) for step in self.steps.values() if step.kind != "load" for one in step.assets)
        note = did_you_mean(str(asset), known)
        return self.project.problem(f"{who} {asset}, which nothing makes", place, note=note)

    def _referred(self, asset: AssetId, checks: AssetChecks, maker: Step) -> None:
        """Refuse a relationship to an asset that does not exist, or that a database cannot see from where it is."""
        other = next((step for step in self.steps.values() if asset in step.assets), None)
        if other is None:
            raise self.unknown(f"a relationship of {checks.asset} goes to", asset, checks.place)
        if _in_database(maker) and other.target != maker.target:
            what = f"a relationship of {checks.asset} goes to {asset}, which is not in the same database"
            raise self.project.problem(
                what, checks.place, hint="copy both into it, or check the relationship elsewhere"
            )

    def _portable(self, checks: AssetChecks, maker: Step) -> None:
        """Refuse expressions of a table in a database that cannot be written for PostgreSQL."""
        if not _in_database(maker) or not checks.checks.expression:
            return
        from millrace.project.sql import unportable  # sqlglot costs a tenth of a second that few projects need

        for one in maker.spec["checks"]["expression"]:
            text = one["sql"] if isinstance(one, dict) else one
            if why := unportable(text):
                what = f"an expression of {checks.asset} is nothing for PostgreSQL, where it is checked: {text}"
                hint = "write it with what both DuckDB and PostgreSQL have"
                raise self.project.problem(what, checks.place, note=why, hint=hint)

    def _readable(self, step: Step, asset: AssetId, maker: Step | None, place: Place) -> None:
        """Refuse inputs that do not exist or cannot be read from there."""
        reader = step.label if step.kind != "page" else f"the dashboard {step.assets[0].name}"
        if maker is None:
            raise self.unknown(f"{reader} reads", asset, place)
        if step.kind == "model" and maker.target != "lake":
            lives = "the warehouse" if maker.target == WAREHOUSE else maker.target.replace(":", " ")
            what = f"{reader} reads {asset}, which lives in {lives}"
            raise self.project.problem(what, place, hint="models read assets of the lake")
        if step.kind == "page" and maker.target != WAREHOUSE:
            what = f"{reader} reads {asset}, which does not live in the warehouse"
            raise self.project.problem(what, place, hint="dashboards read tables that dbt makes")

    def _place_of(self, step: Step, asset: AssetId) -> Place:
        if step.kind == "model":
            text = next(model.text for model in self.project.models if model.file == step.spec["path"])
            return find_input(text, asset, step.spec["path"])
        if step.kind == "page":
            dashboard = next(one for one in self.project.dashboards if one.name == step.assets[0].name)
            return self.project.documents[dashboard.file].place(dashboard.content.reads()[asset])
        return self.places[step.key]

    def _checks_of(self, asset: AssetId) -> dict[str, Any]:
        found = self.checks.get(asset)
        return {} if found is None else found.checks.to_json()

    def _distinct(self, models: Sequence[AssetId], place: Place) -> None:
        """A dbt model must not be a copy or model too."""
        taken = {(asset.layer, same_name(asset.name)): key for key, step in self.steps.items() for asset in step.assets}
        for model in models:
            other = taken.get((model.layer, same_name(model.name)))
            if other is not None:
                detail = (f"dbt makes it, and {self.places[other]}",)
                raise ProjectError(f"two assets are named {model}", where=place, detail=detail)

    def _last_layer(self, models: Sequence[AssetId]) -> str:
        """Return the layer that readers see: the last of millrace.yaml's that dbt fills."""
        filled = {model.layer for model in models}
        return next((layer for layer in reversed(self._layers) if layer in filled), self.project.name)


def find_input(text: str, asset: AssetId, file: str) -> Place:
    """Return where an SQL text names an asset, outside comments; the file's start when it is not found."""
    bare = re.sub(r"--[^\n]*|/\*.*?\*/", lambda match: re.sub(r"[^\n]", " ", match[0]), text, flags=re.DOTALL)
    layer, name = re.escape(asset.layer), re.escape(asset.name.replace('"', '""'))
    match = re.search(rf'(?<![\w"])"?{layer}"?\s*\.\s*"?{name}"?(?!\w)', bare, re.IGNORECASE)
    if match is None:
        return Place(file, 1, 1)
    start = match.start()
    line_start = text.rfind("\n", 0, start) + 1
    length = len(match[0].split("\n", 1)[0])
    return Place(file, text.count("\n", 0, start) + 1, start - line_start + 1, length)


def _column(column: Column, document: Document) -> dict[str, Any]:
    """Return a column that a dashboard reads, with what an error about it shows of the file."""
    place = document.place(column.path)
    return {
        "asset": str(column.asset),
        "column": column.name,
        "use": column.use,
        "place": [place.file, place.line, place.column, place.length],
        "lines": list(excerpt(document.text, place)),
    }


def _in_database(step: Step) -> bool:
    """Say whether a step copies a table into a database."""
    return step.kind == "copy" and step.target != "lake"


def _contract(contract: RowContract | None, place: str) -> dict[str, Any]:
    """Return a contract with its defaults as JSON, and where it stands or would stand."""
    said = {} if contract is None else contract.model_dump(exclude_none=True)
    return {
        "bad_rows": "block",
        "max_bad": MAX_BAD,
        "new_columns": "evolve",
        "type_changes": "evolve",
        **said,
        "place": place,
    }


def _sifted(contract: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a contract decides which rows an asset has: when it changes, all rows are read again."""
    names = ("bad_rows", "new_columns", "type_changes")
    kept = {name: contract[name] for name in names if contract[name] == "quarantine"}
    return {**kept, "type_changes": "discard"} if contract["type_changes"] == "discard" else kept


def _code(kind: str, content: object) -> str:
    return fingerprint(kind, json.dumps(content, sort_keys=True, ensure_ascii=False))


def needs(steps: Sequence[Step]) -> dict[str, tuple[str, ...]]:
    """Return the keys of the steps that must run before each step, among the given ones."""
    makers = {asset: step.key for step in steps for asset in step.assets}
    keys = {step.key for step in steps}

    def before(step: Step) -> Iterator[str]:
        for asset in step.inputs:
            if asset in makers:
                yield makers[asset]
        yield from (key for key in step.after if key in keys)

    return {step.key: tuple(dict.fromkeys(before(step))) for step in steps}
