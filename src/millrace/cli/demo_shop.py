"""The demo's shop, as its injuries see it: the real command line in child processes, and what the data say."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg

from millrace.cli import show
from millrace.errors import StepFailed

if TYPE_CHECKING:
    from millrace.engine.records import StepRow

LOG = Path(".millrace/injuries.log")


@dataclass
class Shop:
    """A shop that ran once: its project's folder and its source database.

    Attributes:
        url: of the source, whose server stays up.
        environment: variables for the commands, beside those of this process.
    """

    folder: Path
    url: str
    verbose: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def log(self) -> Path:
        """What the commands printed."""
        return self.folder / LOG

    def millrace(self, *arguments: str, kill_at: str = "", code: int | None = 0) -> str:
        """Run the command line in a process of its own; returns what it printed.

        Args:
            arguments: like `run`, `--select`, `bronze.orders`.
            kill_at: a point of `core.events`, at which the process gets a SIGKILL.
            code: how it has to end; None: as it likes.

        Raises:
            StepFailed: it ended otherwise.
        """
        armed = {"MILLRACE_KILL_AT": kill_at} if kill_at else {}
        done = call(
            self.folder,
            arguments,
            env={**os.environ, "NO_COLOR": "1", "COLUMNS": "100", **self.environment, **armed},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        told = "".join(f"{name}={value} " for name, value in armed.items()) + f"millrace {typed(arguments)}"
        with self.log.open("a", encoding="utf-8") as log:
            log.write(f"$ {told}\n{done.stdout}{done.stderr}exit code {done.returncode}\n\n")
        if self.verbose:
            for line in (f"$ {told}", *(done.stdout + done.stderr).rstrip().splitlines()):
                show.out(show.painted(f"   │ {line}", "grey"))
        if code is not None and done.returncode != code:
            raise StepFailed(f"millrace {arguments[0]} ended with {done.returncode} instead of {code}")
        return done.stdout

    def source(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """Ask or change the source."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(query, values)
            return cursor.fetchall() if cursor.description else []

    def asked(self, query: str) -> list[tuple[Any, ...]]:
        """Ask what is published in lake and warehouse."""
        from millrace.app import open_house

        with open_house(self.folder) as house:
            return list(house.query(query, 1000).rows)

    def last_run(self) -> list[StepRow]:
        """Return the steps of the last run, as the journal has them."""
        from millrace.app import open_house

        with open_house(self.folder) as house:
            return [step for run in house.journal.list_runs(1) for step in house.journal.steps(run.id)]

    def last(self, key: str) -> StepRow | None:
        """Return a step of the last run."""
        return next((step for step in self.last_run() if step.key == key), None)


def call(folder: Path, arguments: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the real command line in a folder; when this process is told to stop, the command ends first, and cleanly."""
    command = [sys.executable, "-m", "millrace", *arguments]
    with subprocess.Popen(command, cwd=folder, text=True, **options) as process:
        try:
            out, err = process.communicate()
        except BaseException:
            process.terminate()
            process.communicate()
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def typed(arguments: Sequence[str]) -> str:
    """Return arguments as one types them."""
    return " ".join(f'"{argument}"' if " " in argument else argument for argument in arguments)
