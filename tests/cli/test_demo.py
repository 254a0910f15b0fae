"""`millrace demo` as a newcomer calls it, from an empty folder to its end, and what is left of it."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from millrace.testing.servers import remove_postgres, server_place

from .conftest import Millrace, environment

pytestmark = [pytest.mark.servers, pytest.mark.slow]

SECONDS = 300
ACTS = 5
WIDE = (" look", " the page", "  ")  # lines with a path or a query in them


def call(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "millrace", *arguments],
        cwd=folder,
        env=environment({"COLUMNS": "80"}),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def running_with(*folders: Path) -> list[str]:
    """Programs that name one of the folders, or work in it."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        told = " ".join([*(process.info["cmdline"] or []), process.info["cwd"] or ""])
        if any(str(folder) in told for folder in folders):
            found.append(told)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Where the demo will be; its server goes with it, wherever root's rights have put it."""
    yield tmp_path / "shop"
    remove_postgres(tmp_path / "shop" / "shop_db")


def test_all_injuries_end_as_promised_and_nothing_is_left(folder: Path) -> None:
    done = call(folder.parent, "demo", folder.name, "--orders", "1000")
    log = folder / ".millrace/injuries.log"
    assert done.returncode == 0, f"{done.stdout}{done.stderr}{log.read_text() if log.exists() else ''}"
    lines = done.stdout.splitlines()
    injuries = lines[next(number for number, line in enumerate(lines) if "injuries" in line) :]
    assert sum(line.startswith(" result ") for line in injuries) == ACTS
    assert "not as promised" not in done.stdout
    assert [line for line in injuries if len(line) > 80 and not line.startswith(WIDE)] == []
    assert "with nothing new: fresh " in done.stdout
    assert running_with(folder, server_place(folder / "shop_db")) == []

    look = next(line.split("millrace ", 1)[1] for line in injuries if line.startswith(" look ") and " diff " in line)
    shown = call(folder, *look.split())
    assert (shown.returncode, "1,000 equal" in shown.stdout) == (0, True), shown.stdout + shown.stderr

    with subprocess.Popen(
        [sys.executable, "-m", "millrace", "demo", str(folder), "--open"],
        env=environment({}),
        stdout=subprocess.PIPE,
        text=True,
    ) as keeper:
        assert keeper.stdout is not None
        with psycopg.connect(keeper.stdout.readline().strip()) as connection:
            assert connection.execute("select count(*) from orders").fetchone() == (1000,)
        keeper.send_signal(signal.SIGTERM)
    assert keeper.returncode == 0
    assert running_with(folder, server_place(folder / "shop_db")) == []


def test_only_the_database_of_a_demo_can_be_opened(millrace: Millrace, tmp_path: Path) -> None:
    done = millrace("demo", "nowhere", "--open")
    assert done.code == 2
    assert "make one: millrace demo nowhere" in done.err
    assert not (tmp_path / "nowhere").exists()
