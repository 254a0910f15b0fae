"""The real command line in processes of its own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest
from tests import forked

SECONDS = 120


@dataclass(frozen=True, slots=True)
class Done:
    code: int
    out: str
    err: str


class Millrace(Protocol):
    def __call__(self, *arguments: str, cwd: Path | None = None, **environment: str) -> Done: ...


def environment(more: Mapping[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MILLRACE_", "PG"))}
    return {**kept, "NO_COLOR": "1", "COLUMNS": "100", **more}


@pytest.fixture
def millrace(tmp_path: Path) -> Millrace:
    """Run `millrace …` to its end; keyword arguments are environment variables."""

    def run(*arguments: str, cwd: Path | None = None, **more: str) -> Done:
        done = forked.run(arguments, cwd=cwd or tmp_path, env=environment(more), timeout=SECONDS)
        return Done(done.returncode, done.stdout, done.stderr)

    return run
