"""The folder of pages: what a kill leaves can be gone on from, or is cleaned up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from millrace.core.names import AssetId
from millrace.core.position import Versions
from millrace.core.schema import Schema
from millrace.core.staged import Staged
from millrace.dashboards.target import PageTarget
from millrace.errors import SeqMoved

ASSET = AssetId("pages", "days")
HTML = "<!doctype html><p>구천 rows"


def staged(pages: PageTarget, load: int = 7, base: int = 0) -> Staged:
    page = Staged(
        asset=ASSET,
        load=load,
        run=f"run{load}",
        step="page:days",
        target="pages",
        base=base,
        how="file",
        place=str(pages.stage_file(load)),
        schema=Schema(()),
        position=Versions({}),
        detail={"size": len(HTML.encode())},
    )
    return pages.stage(page, HTML)


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


WHOLE = [".millrace/.lock", ".millrace/days.json", "days.html"]

CHILD = """
import sys
sys.path.insert(0, sys.argv[1])
from test_target import staged
from pathlib import Path
from millrace.dashboards.target import PageTarget
from millrace.testing import killpoints
import os
killpoints.arm(os.environ)
pages = PageTarget(Path(sys.argv[2]))
one = staged(pages)
pages.publish([one], [pages.prove(one)], {one.asset: 0})
"""


@pytest.mark.parametrize(
    "point", ["pages.publish.before_commit", "pages.publish.replaced", "pages.publish.after_commit"]
)
def test_a_killed_publish_is_repeated_with_the_same_stage(tmp_path: Path, point: str) -> None:
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(Path(__file__).parent), str(tmp_path)],
        env={**os.environ, "MILLRACE_KILL_AT": point},
        check=False,
    )
    assert child.returncode == -signal.SIGKILL
    pages = PageTarget(tmp_path)
    one = next(iter(pages.stages()))
    (entry,) = pages.publish([one], [pages.prove(one)], {ASSET: 0})
    assert entry.seq == 1
    assert pages.page(ASSET).read_text("utf-8") == HTML
    pages.gc(lambda _run: False)
    assert files(tmp_path) == WHOLE


def test_a_stage_that_was_given_up_is_refused(tmp_path: Path) -> None:
    pages = PageTarget(tmp_path)
    slept = staged(pages)
    proof = pages.prove(slept)
    pages.gc(lambda _run: False)
    with pytest.raises(SeqMoved, match="given up"):
        pages.publish([slept], [proof], {ASSET: 0})
    won = staged(pages, 8)
    pages.publish([won], [pages.prove(won)], {ASSET: 0})
    again = staged(pages, 9)
    with pytest.raises(SeqMoved, match="another run"):
        pages.publish([again], [pages.prove(again)], {ASSET: 0})
    pages.discard(again)
    assert files(tmp_path) == WHOLE


def test_half_written_files_of_dead_processes_go(tmp_path: Path) -> None:
    pages = PageTarget(tmp_path)
    one = staged(pages)
    pages.publish([one], [pages.prove(one)], {ASSET: 0})
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    halves = [f".days.html.{gone.pid}", f".millrace/.days.json.{gone.pid}", f".millrace/stage/.7.html.{gone.pid}"]
    for half in halves:
        (tmp_path / half).write_text("<!doct")
    mine = tmp_path / f".days.html.{os.getpid()}"
    mine.write_text("<!doct")
    live = staged(pages, 8, 1)
    pages.gc(lambda run: run == live.run)
    assert files(tmp_path) == sorted([*WHOLE, mine.name, ".millrace/stage/8.html", ".millrace/stage/8.json"])
    assert tuple(pages.stages()) == (live,)
