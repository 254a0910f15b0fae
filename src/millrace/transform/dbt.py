"""dbt over the warehouse: what a project makes (its graph), and building it in a clone.

dbt runs in a process of its own (`dbt_runner`), in the run's folder, with a profile that Millrace writes; the user's
folder is only read. The graph is kept by the hash of that folder, so a run in which nothing changed starts no dbt.
Millrace's own files lie in `cache_dir`: the profile, dbt's target folder (its partial parse makes the next start a
second faster; it wants the same profile and target each time) and the graph.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from millrace.core.names import AssetId
from millrace.errors import GateFailed, Place, StepFailed
from millrace.transform.dbt_process import DbtOptions, run_dbt, versions

FORMAT = 2
NOWHERE = {"host": "localhost", "port": "5432", "user": "nobody", "dbname": "nowhere"}
"""Where a PostgreSQL warehouse is for a parse, which connects to none."""
_SKIPPED = {"target", "logs", "__pycache__", "venv"}
_ANEW = {"table", "view", "seed", "materialized_view"}
_BAD = {"error", "fail", "runtime error"}


@dataclass(frozen=True, slots=True)
class DbtModel:
    """A model, seed or snapshot that becomes a relation; ephemeral models do not.

    Attributes:
        unique_id: dbt's id, like `model.shop.fct_orders`.
        schema, name: where it lies in the warehouse.
        resource: `model`, `seed` or `snapshot`.
        materialized: `view`, `table`, `incremental`, `snapshot`, `seed` …
        inputs: assets it reads: sources and other models, through ephemeral ones.
        path: file relative to the dbt folder.
        unique_key: of incremental models and snapshots.
        tests: ids of tests attached to it.
    """

    unique_id: str
    schema: str
    name: str
    resource: str
    materialized: str
    inputs: tuple[AssetId, ...]
    path: str
    description: str = ""
    unique_key: tuple[str, ...] = ()
    tests: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()

    @property
    def asset(self) -> AssetId:
        """What it is called in a project."""
        return AssetId(self.schema, self.name)

    @property
    def snapshot(self) -> bool:
        """Whether it keeps versions, which no build can make again."""
        return self.resource == "snapshot"

    @property
    def carried(self) -> bool:
        """Whether a build goes on from what the one before left: everything that is not known to be made anew."""
        return self.materialized not in _ANEW


@dataclass(frozen=True, slots=True)
class DbtSource:
    """A source: a relation that dbt reads and something else makes."""

    unique_id: str
    schema: str
    name: str
    path: str

    @property
    def asset(self) -> AssetId:
        """What it is called in a project."""
        return AssetId(self.schema, self.name)


@dataclass(frozen=True, slots=True)
class DbtTest:
    """A test.

    Attributes:
        assets: what it looks at; the first is what it is attached to.
        severity: `error` (blocks) or `warn`.
    """

    unique_id: str
    name: str
    assets: tuple[AssetId, ...]
    severity: str
    path: str


@dataclass(frozen=True, slots=True)
class DbtGraph:
    """What a dbt project makes, reads and tests.

    Attributes:
        code: the hash of the folder: equal as long as nothing in it changed.
        schemas: what a build fills: those of the models, and of tests whose failures are stored.
    """

    code: str
    models: tuple[DbtModel, ...]
    sources: tuple[DbtSource, ...]
    tests: tuple[DbtTest, ...]
    schemas: tuple[str, ...] = ()

    @property
    def assets(self) -> tuple[AssetId, ...]:
        """What a build makes."""
        return tuple(model.asset for model in self.models)

    @property
    def inputs(self) -> tuple[AssetId, ...]:
        """What a build reads and does not make."""
        made = set(self.assets)
        read = [source.asset for source in self.sources] + [asset for model in self.models for asset in model.inputs]
        return tuple(dict.fromkeys(asset for asset in read if asset not in made))


@dataclass(frozen=True, slots=True)
class DbtNode:
    """What became of one node of a build.

    Attributes:
        resource: `model`, `seed`, `snapshot`, `test`, `unit_test`.
        status: dbt's: `success`, `pass`, `warn`, `fail`, `error`, `skipped`.
        failures: failing rows of a test.
        message: dbt's own words, if any.
        path: file relative to the dbt folder.
        sql: of a test that failed or warned: the query whose rows are the failing ones.
    """

    unique_id: str
    name: str
    resource: str
    status: str
    seconds: float
    failures: int | None
    message: str
    path: str
    sql: str | None = None

    @property
    def failed(self) -> bool:
        """Whether it ended badly; a warning has not."""
        return self.status in _BAD


@dataclass(frozen=True, slots=True)
class DbtResult:
    """A build that ran to its end, well or badly: see `check`."""

    folder: str
    nodes: tuple[DbtNode, ...]
    seconds: float

    @property
    def models(self) -> tuple[DbtNode, ...]:
        """Models, seeds and snapshots."""
        return tuple(node for node in self.nodes if node.resource in ("model", "seed", "snapshot"))

    @property
    def tests(self) -> tuple[DbtNode, ...]:
        """Tests and unit tests."""
        return tuple(node for node in self.nodes if node.resource in ("test", "unit_test"))

    def check(self) -> None:
        """Refuse a build in which anything failed.

        Raises:
            StepFailed: a model failed, or a test could not be run.
            GateFailed: a test failed.
        """
        broken = [node for node in self.nodes if node.failed and node.status != "fail"]
        failed = [node for node in self.nodes if node.status == "fail"]
        for node in (*broken, *failed):
            others = len(broken) + len(failed) - 1
            more = f" and {others} more" if others else ""
            detail = [line.strip() for line in node.message.splitlines() if line.strip()][:8]
            if node.status == "fail":
                rows = "" if node.failures is None else f": {node.failures:,} failing {_plural('row', node.failures)}"
                raise GateFailed(
                    f"dbt test {node.name} failed{rows}{more}",
                    where=Place(f"{self.folder}/{node.path}"),
                    detail=detail,
                    hint="nothing was published",
                )
            raise StepFailed(
                f"dbt {node.resource} {node.name} failed{more}",
                where=Place(f"{self.folder}/{node.path}"),
                detail=detail,
            )


def _plural(word: str, count: int) -> str:
    return word if count == 1 else word + "s"


def folder_hash(project_dir: Path) -> str:
    """Return the hash of a dbt folder's files: names and contents, without what dbt itself writes there."""
    found = hashlib.sha256()
    for base, folders, files in os.walk(project_dir, followlinks=False):
        folders[:] = sorted(name for name in folders if name not in _SKIPPED and not name.startswith("."))
        for name in sorted(files):
            if name.startswith("."):
                continue
            path = Path(base) / name
            found.update(f"{path.relative_to(project_dir)}\0{path.stat().st_size}\0".encode())
            found.update(path.read_bytes())
    return found.hexdigest()[:32]


def graph(
    project_dir: Path,
    cache_dir: Path,
    variables: Mapping[str, Any] | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    postgres: bool = False,
) -> DbtGraph:
    """Return what a dbt project makes; dbt is started only when the folder is not as it was.

    Args:
        project_dir: the folder of `dbt_project.yml`.
        cache_dir: Millrace's folder for this project and environment.
        variables: dbt's vars.
        environment: as for `build`; their values do not count as a change.
        postgres: the project is for a PostgreSQL warehouse; it is not connected to.

    Raises:
        ExtraMissing: dbt is not installed.
        NotFound: there is no `dbt_project.yml`.
        ProjectError: dbt cannot read the project; its own words are in the detail.
    """
    code = folder_hash(project_dir)
    key = hashlib.sha256(
        json.dumps([FORMAT, code, versions(postgres=postgres), dict(variables or {})]).encode()
    ).hexdigest()[:16]
    cached = cache_dir / f"graph-{key}.json"
    try:
        data = json.loads(cached.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        data = None
    given = dict(environment or {})
    if data is None or data["env"] != _environment(data["env"], given):
        with tempfile.TemporaryDirectory(prefix="millrace-dbt-") as scratch:
            where = NOWHERE if postgres else None
            options = DbtOptions(variables=variables or {}, environment=given, postgres=where)
            answer = run_dbt("parse", project_dir, Path(scratch), cache_dir, options)
        data = answer["graph"]
        data["env"] = _environment(data["env"], given)
        fresh = cached.with_suffix(".tmp")
        fresh.write_text(json.dumps(data), encoding="utf-8")
        fresh.replace(cached)
        for old in cache_dir.glob("graph-*.json"):
            if old != cached:
                old.unlink(missing_ok=True)
    return _graph(code, data)


def _environment(names: Iterable[str], given: Mapping[str, str]) -> dict[str, str]:
    """Return hashes of the environment variables that the project reads: their values may be secret."""
    return {
        name: "" if name in given else hashlib.sha256(os.environ.get(name, "\0").encode()).hexdigest()[:16]
        for name in names
    }


def _graph(code: str, data: Mapping[str, Any]) -> DbtGraph:
    made = {node["id"]: node for node in data["made"]}
    assets = {source["id"]: AssetId(source["schema"], source["relation"]) for source in data["sources"]}
    for node in made.values():
        if node["materialized"] != "ephemeral":
            assets[node["id"]] = AssetId(node["schema"], node["relation"])

    def read(node: Mapping[str, Any]) -> Iterator[AssetId]:
        for parent in node["after"]:
            if parent in assets:
                yield assets[parent]
            elif parent in made:
                yield from read(made[parent])

    tests = []
    attached: dict[str, list[str]] = {}
    for test in data["tests"]:
        first = test["attached"] or next(iter(test["after"]), None)
        ids = [first, *(parent for parent in test["after"] if parent != first)]
        found = tuple(assets[one] for one in ids if one in assets)
        tests.append(DbtTest(test["id"], test["name"], found, test["severity"], test["path"]))
        attached.setdefault(first or "", []).append(test["id"])
    models = tuple(
        DbtModel(
            unique_id=node["id"],
            schema=node["schema"],
            name=node["relation"],
            resource=node["resource"],
            materialized=node["materialized"],
            inputs=tuple(dict.fromkeys(read(node))),
            path=node["path"],
            description=node["description"],
            unique_key=tuple(node["unique_key"]),
            tests=tuple(attached.get(node["id"], ())),
            tags=tuple(node["tags"]),
        )
        for node in made.values()
        if node["id"] in assets
    )
    sources = tuple(
        DbtSource(source["id"], source["schema"], source["relation"], source["path"]) for source in data["sources"]
    )
    return DbtGraph(code, models, sources, tuple(tests), tuple(data["schemas"]))


def build(project_dir: Path, run_folder: Path, cache_dir: Path, options: DbtOptions) -> DbtResult:
    """Run `dbt build` on a PostgreSQL warehouse, or on the `warehouse.duckdb` of a folder, open nowhere else.

    Args:
        project_dir: the folder of `dbt_project.yml`; it is only read.
        run_folder: dbt's working folder: the clone's.
        cache_dir: Millrace's folder for this project and environment.
        options: how.

    Returns:
        What became of every node; call its `check` to refuse failures.

    Raises:
        ExtraMissing: dbt is not installed.
        ProjectError: dbt cannot read the project.
        StepFailed: dbt itself broke.
        Interrupted: `stopping` said so.
    """
    begin = time.monotonic()
    answer = run_dbt("build", project_dir, run_folder, cache_dir, options)
    nodes = tuple(
        DbtNode(
            unique_id=node["id"],
            name=node["name"],
            resource=node["resource"],
            status=node["status"],
            seconds=node["seconds"],
            failures=node["failures"],
            message=node["message"] or "",
            path=node["path"],
            sql=node["sql"],
        )
        for node in answer["nodes"]
    )
    return DbtResult(project_dir.name, nodes, time.monotonic() - begin)
