"""dbt's commands on a dbt project with a profile of its own. In a Millrace project dbt is a step of every run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from millrace.api.records import Record
from millrace.core.secrets import redact
from millrace.errors import ExtraMissing, NotFound, StepFailed

_DBT = "from dbt.cli.main import cli; cli()"  # `-m dbt.cli.main` warns of a module imported twice
LAST_LINES = 20  # of dbt's output that an error carries


@dataclass(frozen=True, slots=True)
class DbtResult(Record):
    """Commands of dbt that all succeeded: the commands, and dbt's output."""

    commands: tuple[str, ...]
    output: str


def execute_dbt_commands(
    commands: Sequence[str | Sequence[str]],
    project_dir: str | os.PathLike[str] = ".",
    profiles_dir: str | os.PathLike[str] | None = None,
) -> DbtResult:
    """Run commands of dbt one after the other; the first that fails ends it.

    Args:
        commands: each a word (`"run"`) or a list of arguments (`["run", "--select", "staging"]`); no shell is involved.
        project_dir: folder of `dbt_project.yml`.
        profiles_dir: folder of `profiles.yml`; by default dbt's own search.

    Raises:
        NotFound: there is no dbt project.
        ExtraMissing: dbt is not installed.
        StepFailed: a command failed; the error has its last lines.
    """
    folder = Path(project_dir).resolve()
    if not (folder / "dbt_project.yml").is_file():
        raise NotFound("there is no dbt project here", where=str(folder), hint="dbt_project.yml makes a folder one")
    if find_spec("dbt.cli") is None:
        raise ExtraMissing("dbt", "dbt")
    environment = {**os.environ, "DBT_SEND_ANONYMOUS_USAGE_STATS": "false", "DBT_USE_COLORS": "false"}
    if profiles_dir is not None:
        environment["DBT_PROFILES_DIR"] = str(Path(profiles_dir).resolve())
    lists = [[command] if isinstance(command, str) else list(command) for command in commands]
    outputs = []
    for arguments in lists:
        done = subprocess.run(
            [sys.executable, "-c", _DBT, *arguments],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        output = redact(done.stdout + done.stderr)
        if done.returncode:
            raise StepFailed(
                f"dbt {' '.join(arguments)} failed with exit code {done.returncode}",
                where=str(folder),
                detail=output.strip().splitlines()[-LAST_LINES:],
                hint="nothing after it was run",
            )
        outputs.append(output)
    return DbtResult(tuple(" ".join(one) for one in lists), "".join(outputs))


def run_dbt_command(command: str | Sequence[str], project_dir: str | os.PathLike[str] = ".") -> DbtResult:
    """Run one command of dbt; see `execute_dbt_commands`."""
    return execute_dbt_commands([command], project_dir)


def execute_dbt_snapshot(project_dir: str | os.PathLike[str] = ".") -> DbtResult:
    """Run `dbt snapshot`; see `execute_dbt_commands`."""
    return execute_dbt_commands(["snapshot"], project_dir)


def execute_dbt_models(project_dir: str | os.PathLike[str] = ".") -> DbtResult:
    """Run `dbt run`, then `dbt test`; see `execute_dbt_commands`."""
    return execute_dbt_commands(["run", "test"], project_dir)


def run_dbt_pipeline(project_dir: str | os.PathLike[str] = ".") -> DbtResult:
    """Run `dbt snapshot`, `dbt run`, `dbt test`; see `execute_dbt_commands`."""
    return execute_dbt_commands(["snapshot", "run", "test"], project_dir)
