"""One command of dbt in a process of its own: the profile, the environment, the lock, the pipe, and its end.

Contract: the user's folder is only read; nothing is passed as a process argument; no process is left, whether the
command ends, fails, is stopped, or we are killed.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import yaml

from millrace.errors import (
    ExtraMissing,
    Interrupted,
    MillraceError,
    NotFound,
    Place,
    ProjectError,
    StepFailed,
    TargetBusy,
)

PASSWORD = "DBT_ENV_SECRET_MILLRACE_PASSWORD"  # noqa: S105 (a name; dbt keeps values of such names out of its logs)
_STOP_SECONDS = 10.0
_LOCK_SECONDS = 600.0  # a build before ours may take that long
_FILE = re.compile(r"(?<![\w./-])((?:[\w.-]+/)*[\w.-]+\.(?:sql|ya?ml|csv|py|md))\b")
_LINE = re.compile(r"\bline (\d+)(?:, column (\d+))?")


@dataclass(frozen=True, slots=True)
class DbtEvent:
    """A node began or ended; `index` of `total` at the start."""

    kind: str
    unique_id: str
    name: str
    resource: str
    status: str
    index: int
    total: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DbtOptions:
    """How dbt is run.

    Attributes:
        variables: dbt's vars. A change of them makes dbt parse the whole project again, so what differs from run to
            run belongs into `environment`.
        environment: variables that models may read by `env_var()`; dbt parses only the files that do again.
        full_refresh: make incremental models anew.
        on_event: called as nodes begin and end.
        stopping: asked several times a second; true ends dbt, and what it was building is worthless.
        inherit: open files that dbt's process keeps open as long as it lives (the clone's lock).
        process: a process that was started before, which saves the wait; it is used up. None: a new one.
        memory_limit: DuckDB's limit in dbt's process.
        threads: dbt's and DuckDB's threads.
        postgres: where the PostgreSQL warehouse is: host, port, user, dbname … without the password, which stands in
            `environment` under PASSWORD. None: the warehouse is a DuckDB file.
        suffix: added to the schemas of everything that dbt makes, in the parsed project only.
    """

    variables: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    full_refresh: bool = False
    on_event: Callable[[DbtEvent], None] | None = None
    stopping: Callable[[], bool] | None = None
    inherit: Sequence[int] = ()
    process: DbtProcess | None = None
    memory_limit: str = "1GB"
    threads: int = 2
    postgres: Mapping[str, str] | None = None
    suffix: str = ""


def versions(*, postgres: bool = False) -> str:
    """Return what dbt is made of here, without importing it. Raises ExtraMissing."""
    names = ("dbt-core", "dbt-postgres") if postgres else ("dbt-core", "dbt-duckdb", "duckdb")
    try:
        return " ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    except importlib.metadata.PackageNotFoundError:
        raise ExtraMissing("dbt", "dbt-postgres" if postgres else "dbt") from None


def _profile_name(project_dir: Path) -> str:
    """Return the name under which the project looks for its profile.

    Raises:
        NotFound: there is no `dbt_project.yml`.
        ProjectError: it is not YAML.
    """
    path = project_dir / "dbt_project.yml"
    shown = f"{project_dir.name}/dbt_project.yml"
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotFound(
            "there is no dbt project here", where=str(path), hint="dbt_project.yml makes a folder one"
        ) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = Place(shown, mark.line + 1, mark.column + 1) if mark else Place(shown)
        raise ProjectError("dbt_project.yml is not YAML", where=place, detail=[error.problem or str(error)]) from None
    if not isinstance(data, dict):
        raise ProjectError("dbt_project.yml is empty", where=Place(shown), hint="it needs at least a name")
    name = data.get("profile")
    return name if isinstance(name, str) and "{" not in name else "millrace"


def _output(options: DbtOptions) -> dict[str, Any]:
    """Return how dbt reaches the warehouse, as a profile says it; a password is never in it."""
    if options.postgres is not None:
        return {
            "type": "postgres",
            "schema": "public",
            "threads": options.threads,
            "application_name": "millrace dbt",
            **options.postgres,
            "port": int(options.postgres["port"]),
            "password": f"{{{{ env_var('{PASSWORD}', '') }}}}",
        }
    return {
        "type": "duckdb",
        "path": "warehouse.duckdb",
        "schema": "main",
        "threads": options.threads,
        "settings": {"memory_limit": options.memory_limit, "temp_directory": "spill", "TimeZone": "UTC"},
        "config_options": {
            "threads": options.threads,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
        },
    }


def _write_profile(folder: Path, name: str, output: Mapping[str, Any]) -> None:
    """Write the profile, unless it is there: a changed one makes dbt parse everything again."""
    text = yaml.safe_dump({name: {"target": "millrace", "outputs": {"millrace": dict(output)}}}, sort_keys=False)
    path = folder / "profiles.yml"
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        fresh = path.with_suffix(".tmp")
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(path)


@contextmanager
def _locked(cache_dir: Path, stopping: Callable[[], bool] | None) -> Iterator[None]:
    """Hold the cache's lock: two dbt at once would write one target folder."""
    with (cache_dir / "dbt.lock").open("w") as file:
        deadline = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if stopping is not None and stopping():
                    raise Interrupted("stopped while another run's dbt was awaited") from None
                if time.monotonic() > deadline:
                    raise TargetBusy("another run's dbt has been working for long", where=str(cache_dir)) from None
                time.sleep(0.1)
        yield


class DbtProcess:
    """A process for one command of dbt: it brings dbt into memory, which takes seconds, and waits to be told.

    Whoever starts one calls `end`; it ends by itself when this process does.
    """

    def __init__(self) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 -- closed by `end`
        self._ours, theirs = socket.socketpair()
        kept = {
            name: value
            for name, value in os.environ.items()
            if name != "PYTHONWARNINGS" and (not name.startswith("DBT_") or name.startswith("DBT_ENV_"))
        }
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "millrace.transform.dbt_runner"],
                env=kept | {"PYTHONUTF8": "1"},
                stdin=theirs.fileno(),
                stdout=subprocess.PIPE,
                stderr=self._log,
                start_new_session=True,  # Ctrl-C is ours to handle
            )

    def ask(self, request: Mapping[str, Any], options: DbtOptions, project_dir: Path) -> dict[str, Any]:
        """Have the command run, and return its answer. Raises Interrupted, and StepFailed when dbt dies without one."""
        try:
            line = json.dumps(request).encode() + b"\n"
            if options.inherit:
                socket.send_fds(self._ours, [line[:1]], list(options.inherit))
                line = line[1:]
            self._ours.sendall(line)  # it stays open: the child ends when we do
            answer = self._listen(options.on_event, options.stopping)
        except BrokenPipeError:
            answer = None
        finally:
            self._stop()
        if answer is None:
            self._log.seek(0)
            raise _broken(self._process.returncode, self._log, project_dir)
        return answer

    def _listen(
        self, on_event: Callable[[DbtEvent], None] | None, stopping: Callable[[], bool] | None
    ) -> dict[str, Any] | None:
        """Read until the answer; None when dbt died without one."""
        output = self._process.stdout
        assert output is not None  # noqa: S101
        rest = b""
        with selectors.DefaultSelector() as selector:
            selector.register(output, selectors.EVENT_READ)
            while True:
                if stopping is not None and stopping():
                    raise Interrupted("stopped while dbt was building", hint="the next run builds it from the start")
                if not selector.select(0.2):
                    continue
                chunk = os.read(output.fileno(), 1 << 16)
                if not chunk:
                    return None
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    message = json.loads(line)
                    kind = message.pop("kind")
                    if kind == "result":
                        return dict(message)
                    if on_event is not None:
                        on_event(DbtEvent(kind, message.pop("id"), **message))

    def _stop(self) -> None:
        """Leave no process: it ends by itself after its answer, else it and its children are killed."""
        self._ours.close()
        if self._process.stdout is not None:
            self._process.stdout.close()
        try:
            self._process.wait(_STOP_SECONDS)
        finally:
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            except PermissionError:  # macOS: the group has only a dead process left
                pass
            self._process.wait()

    def end(self) -> None:
        """End it, whether it was asked or not."""
        if self._process.returncode is None:
            self._stop()
        self._log.close()


def run_dbt(command: str, project_dir: Path, folder: Path, cache_dir: Path, options: DbtOptions) -> dict[str, Any]:
    """Run one command of dbt in a process of its own, and return its answer. Raises what `dbt.build` raises."""
    versions(postgres=options.postgres is not None)
    name = _profile_name(project_dir)
    profiles = cache_dir / "profiles"
    profiles.mkdir(parents=True, exist_ok=True)
    request = {
        "command": command,
        "folder": str(folder.resolve()),
        "environment": _settings(project_dir, profiles, cache_dir, name) | dict(options.environment),
        "vars": dict(options.variables),
        "full_refresh": options.full_refresh,
        "suffix": options.suffix,
    }
    with _locked(cache_dir, options.stopping):
        _write_profile(profiles, name, _output(options))
        process = options.process or DbtProcess()
        try:
            answer = process.ask(request, options, project_dir)
        finally:
            process.end()
    if answer["error"]:
        raise _project_error(answer["error"], project_dir)
    return answer


def _settings(project_dir: Path, profiles: Path, cache_dir: Path, profile: str) -> dict[str, str]:
    """Return dbt's settings; they come before what the user's environment says."""
    return {
        "DBT_PROJECT_DIR": str(project_dir.resolve()),
        "DBT_PROFILES_DIR": str(profiles.resolve()),
        "DBT_PROFILE": profile,
        "DBT_TARGET_PATH": str((cache_dir / "target").resolve()),
        "DBT_LOG_PATH": str((cache_dir / "logs").resolve()),
        "DBT_LOG_LEVEL_FILE": "none",
        "DBT_SEND_ANONYMOUS_USAGE_STATS": "false",
        "DBT_USE_COLORS": "false",
        "DBT_VERSION_CHECK": "false",
        "DO_NOT_TRACK": "1",
        "PGTZ": "UTC",  # libpq's; a DuckDB profile says it itself
    }


def _broken(code: int, log: IO[bytes], project_dir: Path) -> MillraceError:
    words = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    ended = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
    return StepFailed(f"dbt {ended} before its answer", where=project_dir.name, detail=words[-8:])


def _project_error(text: str, project_dir: Path) -> ProjectError:
    """Return dbt's refusal of the project, with the file and line it names."""
    _, _, words = text.partition(": ")
    lines = [line.strip() for line in words.splitlines() if line.strip(" -")]
    place: Place | None = None
    for found in _FILE.findall(words):
        path = next((path for path in (project_dir / found, *project_dir.glob(f"*/{found}")) if path.is_file()), None)
        if path is not None:  # dbt names YAML files from their models folder, SQL files from the project's
            line = _LINE.search(words)
            name = f"{project_dir.name}/{path.relative_to(project_dir)}"
            place = Place(name, int(line[1]) if line else 0, int(line[2]) if line and line[2] else 0)
            break
    return ProjectError(
        "dbt cannot read the project", where=place if place is not None else project_dir.name, detail=lines[:10]
    )
