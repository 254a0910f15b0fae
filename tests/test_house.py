"""The house of CONTRIBUTING.md holds: layers, sizes, what may load, what may stand in a file."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "millrace"
CORE = PACKAGE / "core"
CORE_MODULES = {
    "names",
    "schema",
    "position",
    "segment",
    "scrub",
    "digest",
    "quarantine",
    "staged",
    "plan",
    "ports",
    "events",
    "secrets",
}
# Values and protocols only: nothing here opens files, sockets or processes, reads the clock or the environment.
CORE_IMPORTS = {
    "__future__", "abc", "collections", "contextlib", "dataclasses", "datetime", "decimal", "difflib", "enum", "functools",
    "hashlib", "itertools", "json", "math", "millrace", "operator", "pathlib", "re", "secrets", "string", "types", "typing",
    "urllib", "uuid",
}  # fmt: skip
# `urllib` for quoting, `pathlib` for the type of a folder: neither may touch anything.
CORE_NAMES = {"urllib": {"quote", "unquote", "quote_plus"}, "pathlib": {"Path", "PurePath", "PurePosixPath"}}
CALLS_WITH_IO = {"open", "print", "input", "exec", "eval", "__import__", "Path", "compile"}
HEAVY = {
    "adbc_driver_manager", "adbc_driver_postgresql", "dbt", "deltalake", "duckdb", "jinja2", "narwhals", "numpy", "plotly",
    "psycopg", "pyarrow", "pydantic", "sqlalchemy", "sqlglot", "playwright",
}  # fmt: skip
TEXT = {
    ".py", ".md", ".toml", ".yaml", ".yml", ".sql", ".sh", ".ini", ".cfg", ".json", ".html", ".css", ".js", ".j2", ".txt", ""
}  # fmt: skip
NOT_OURS = {".git", ".venv", ".tools", "dist", "build", "demo", "node_modules", "__pycache__"}


def modules(folder: Path) -> list[Path]:
    """Return the Python files below a folder."""
    return sorted(folder.rglob("*.py"))


def lines(path: Path) -> int:
    """Return the number of lines of a file."""
    return len(path.read_text(encoding="utf-8").splitlines())


def repository() -> Iterator[Path]:
    """Yield the text files of the repository: what git tracks, or all files where git does not answer."""
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z"],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    if listed.returncode == 0:
        paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    else:  # an unpacked archive, or a clone that belongs to somebody else
        paths = [
            Path(folder) / name
            for folder, folders, names in os.walk(ROOT)
            if not folders.__setitem__(
                slice(None), [f for f in folders if f not in NOT_OURS and not f.endswith("_cache")]
            )
            for name in names
        ]
    for path in paths:
        if path.suffix in TEXT and path.is_file():
            yield path


def test_layers() -> None:
    """import-linter's contracts hold."""
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


@pytest.mark.parametrize("statement", ["import millrace", "import millrace.core.ports", "import millrace.steps.spec"])
def test_import_loads_no_driver(statement: str) -> None:
    """Importing the package costs no driver."""
    assert not loaded(statement) & HEAVY


def test_help_loads_no_driver() -> None:
    """`millrace --help` prints its help without any driver."""
    found = loaded("import sys; sys.argv = ['millrace', '--help']\nfrom millrace.cli.main import main\nmain()")
    assert "millrace" in found, "the help did not end as expected"
    assert not found & HEAVY


BLOCKED = (
    "import sys\n"
    "for name in ('pyarrow', 'duckdb', 'deltalake', 'numpy', 'adbc_driver_postgresql', 'dbt', 'jinja2', 'plotly', 'narwhals'):\n"
    "    sys.modules[name] = None\n"
)


def test_base_install_is_enough_for_copies() -> None:
    """All that `millrace copy` and `diff` touch loads without the extras; what needs one says which."""
    statements = (
        "import millrace.cli.main, millrace.cli.copying, millrace.api\n"
        "import millrace.app.copying, millrace.steps.copy, millrace.steps.routes.postgres_postgres\n"
        "import millrace.postgres.target, millrace.postgres.diff, millrace.engine.runner, millrace.engine.journal\n"
        "import millrace.observe.progress, millrace.observe.logs, millrace.project, millrace.planner\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED + statements], capture_output=True, text=True, check=False, cwd="/"
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_base_install_is_small() -> None:
    """What `pip install millrace` brings without extras is at most 100 MB of files."""
    sizes: dict[str, int] = {}
    pending = [("millrace", frozenset[str]())]
    while pending:
        name, extras = pending.pop()
        found = distribution(name)
        sizes[name] = sum(
            path.stat().st_size for file in found.files or () if (path := Path(str(file.locate()))).is_file()
        )
        for text in found.requires or ():
            needed = Requirement(text)
            wanted = needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in {"", *extras})
            if wanted and canonicalize_name(needed.name) not in sizes:
                pending.append((canonicalize_name(needed.name), frozenset(needed.extras)))
    sizes["millrace"] = sum(path.stat().st_size for path in PACKAGE.rglob("*") if path.is_file())
    assert "psycopg-binary" in sizes
    assert "pyarrow" not in sizes
    assert sum(sizes.values()) <= 100 * 2**20, sorted(sizes.items(), key=lambda item: -item[1])


@pytest.mark.parametrize(
    ("module", "extra"),
    [("millrace.lake.target", "lake"), ("millrace.duck.warehouse", "warehouse"), ("millrace.dashboards.page", "pages")],
)
def test_a_missing_extra_is_named(module: str, extra: str) -> None:
    """A room whose packages are not installed either loads, or says which extra brings them."""
    code = (
        f"{BLOCKED}"
        "from millrace.errors import ExtraMissing\n"
        "import importlib\n"
        "try:\n"
        f"    importlib.import_module({module!r})\n"
        "except ExtraMissing as missing:\n"
        f"    assert 'millrace[{extra}]' in missing.hint, missing.hint\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stderr[-2000:]


def loaded(statements: str) -> set[str]:
    """Return the top-level packages that are loaded once the statements have run in a new process."""
    code = f"try:\n    exec({statements!r})\nexcept SystemExit:\n    pass\nimport sys\nprint('LOADED', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    return {name.partition(".")[0] for name in done.stdout.rpartition("LOADED")[2].split()}


def module_names() -> dict[str, Path]:
    """Return the package's modules by dotted name; templates hold files for projects, not modules of ours."""
    return {
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
        for path in modules(PACKAGE)
        if path.parent.name not in ("ecommerce", "securities") and path.name != "__main__.py"
    }


def test_every_module_imports() -> None:
    """Each module of the package can be imported."""
    code = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)"
    done = subprocess.run(
        [sys.executable, "-c", code, *module_names()], capture_output=True, text=True, check=False, cwd="/"
    )
    assert done.returncode == 0, done.stderr


def test_no_import_cycles() -> None:
    """No module needs itself to be imported: then each can be imported first."""
    names = module_names()
    graph = {name: imported(path, name, set(names)) for name, path in names.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


def imported(path: Path, name: str, known: set[str]) -> set[str]:
    """Return the modules of ours that a module imports when it is imported itself."""
    found: set[str] = set()
    pending: list[ast.AST] = list(ast.parse(path.read_text(encoding="utf-8")).body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            pending += node.orelse
        elif isinstance(node, ast.If | ast.Try | ast.With):
            pending += ast.iter_child_nodes(node)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inner & known or {node.module}
    return (found & known) - {name}


def test_core_is_small() -> None:
    """Core stays twelve modules and 1,600 lines."""
    found = {path.stem for path in modules(CORE)} - {"__init__"}
    assert found <= CORE_MODULES
    assert sum(lines(path) for path in modules(CORE)) <= 1600


@pytest.mark.parametrize("path", modules(CORE), ids=lambda path: path.stem)
def test_core_has_no_input_or_output(path: Path) -> None:
    """Core imports only what computes, and calls nothing that reads or writes."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    only_types = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in only_types:
            continue
        if isinstance(node, ast.Import):
            assert {name.name.partition(".")[0] for name in node.names} <= CORE_IMPORTS - set(CORE_NAMES)
        elif isinstance(node, ast.ImportFrom):
            package = (node.module or "").partition(".")[0]
            assert package in CORE_IMPORTS, f"core imports {package}"
            assert {name.name for name in node.names} <= CORE_NAMES.get(package, {name.name for name in node.names})
            if package == "millrace":
                assert str(node.module).startswith(("millrace.core", "millrace.errors"))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in CALLS_WITH_IO, f"core calls {node.func.id}"


def test_modules_are_short() -> None:
    """No module is above 700 lines."""
    long = {str(path.relative_to(ROOT)): lines(path) for path in modules(PACKAGE) if lines(path) > 700}
    assert not long


def test_functions_are_short() -> None:
    """No function is far above 60 lines, its docstring not counted."""
    long: dict[str, int] = {}
    for path in modules(PACKAGE):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
                size = (node.end_lineno or 0) - body[0].lineno + 1
                if size > 80:
                    long[f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"] = size
    assert not long


def test_no_places_of_one_machine() -> None:
    """No file names a folder of the machine it was written on, or a package host (the lock file aside)."""
    words = [
        "/" + "work/", r"\.\." + "/shared", "/" + "root/", "/home" + "/[a-z]+/", "files" + r"\.pythonhosted\.org",
        "pypi" + r"\.org/simple", "artifact" + "registry", "AKIA" + "[A-Z0-9]{16}", "-----BEGIN " + "[A-Z ]*PRIVATE",
    ]  # fmt: skip
    wrong = re.compile("|".join(words))
    found = []
    for path in repository():
        if path.name == "uv.lock":
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if wrong.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}")
    assert not found
