"""The documentation works: what it tells people to type is typed, on real servers, and what it shows is what comes out.

A block of bash below the line `<!-- run -->` is run; below `<!-- run: exits 1 -->` its last command must end so. What a
page takes for granted stands in a comment that begins with `given`. The blocks of a page are one session. A text block right after a run block is what the block prints: its lines are looked for
in the output, in their order; numbers, ids and widths may differ, `…` stands for lines left out. In addresses,
db1.example.com/shop is a shop on PostgreSQL 15 and db2.example.com/copy an empty database on 18, and the users `reader`
and `writer` have the rights that the pages speak of, no more.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from millrace.templates.shop_source import fill
from millrace.testing.servers import PostgresServer, remove_postgres

ROOT = Path(__file__).parent.parent
PAGES = [
    page
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    if "<!-- run" in page.read_text(encoding="utf-8")
]
# A mark, its block, and the output shown below it, if any.
BLOCK = re.compile(
    r"^<!-- run(?:: exits (\d+))? -->\n```bash\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL
)
GIVEN = re.compile(r"^<!-- given\n(.*?)^-->$", re.MULTILINE | re.DOTALL)
IDS = re.compile(
    r"^ ?[0-9a-f]{4}(?=  )|(?<!\w)(?:(runs? |--resume |--run )[0-9a-f]{4,8}|(?=[0-9a-f]*\d)[0-9a-f]{8}(?:[0-9a-f]{4})?)\b"
)
TOOK = re.compile(r"\b\d+\.\d s\b")  # not shown where next to nothing
NUMBERS = re.compile(r"\d[\d,.:]*")
SECONDS = 600  # of one page, at most; a loaded machine with two cores took 180
ORDERS = 2000

pytestmark = [pytest.mark.servers, pytest.mark.slow]


@dataclass(frozen=True, slots=True)
class Block:
    """What is typed, the exit code of its last command, and what is shown of its output."""

    typed: str
    code: int
    shown: tuple[str, ...]


def blocks(text: str) -> list[Block]:
    """Return a page's blocks that are run."""
    return [
        Block(typed, int(code or 0), tuple(line.strip() for line in shown.splitlines() if line.strip(" …")))
        for code, typed, shown in BLOCK.findall(GIVEN.sub(r"<!-- run -->\n```bash\n\1```", text))
    ]


def script(found: list[Block]) -> str:
    """Return a page's session: after each block a line with its number and exit code."""
    parts = [f"set {'+' if block.code else '-'}e\n{block.typed}\nprintf '\\n@@%s\\n' $?\n" for block in found]
    return "".join(parts)


def plain(line: str) -> str:
    """Return a line without what differs from run to run: ids, times, numbers, widths."""
    known = IDS.sub(lambda match: f"{match[1] or ''}#", TOOK.sub("", line))
    return " ".join(NUMBERS.sub("#", known).split())


def lost(block: Block, output: str) -> str | None:
    """Return the first shown line that the output does not have at or after the place of the one before."""
    lines = iter([plain(line) for line in output.splitlines()])
    for shown in block.shown:
        wanted = plain(shown.removesuffix("…"))
        if not any(wanted in line for line in lines):
            return shown
    return None


@pytest.fixture(scope="module")
def shop(pg15: PostgresServer) -> Iterator[PostgresServer]:
    """A shop's database, and a user who may only read it."""
    with psycopg.connect(pg15.url(), autocommit=True) as connection:
        connection.execute("create database shop")
        connection.execute("create user reader")
    with psycopg.connect(pg15.url("shop"), autocommit=True) as connection:
        fill(connection, orders=ORDERS)
        connection.execute("grant select on all tables in schema public to reader")
    yield pg15
    with psycopg.connect(pg15.url(), autocommit=True) as connection:
        connection.execute("drop database shop with (force)")
        connection.execute("drop user reader")


@pytest.fixture
def copies(pg18: PostgresServer) -> Iterator[PostgresServer]:
    """An empty database, and a user who may make schemas there and tables in public."""
    with psycopg.connect(pg18.url(), autocommit=True) as connection:
        connection.execute("create database copy")
        connection.execute("create user writer")
        connection.execute("grant create on database copy to writer")
    with psycopg.connect(pg18.url("copy"), autocommit=True) as connection:
        connection.execute("grant create on schema public to writer")
    yield pg18
    with psycopg.connect(pg18.url(), autocommit=True) as connection:
        connection.execute("drop database copy with (force)")
        connection.execute("drop user writer")


def environment(home: Path) -> dict[str, str]:
    """Return a new user's environment, in which `millrace` and `python` are ours."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MILLRACE_", "PG"))}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**kept, "PATH": path, "HOME": str(home), "NO_COLOR": "1", "COLUMNS": "100", "TZ": "UTC"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_page(page: Path, shop: PostgresServer, copies: PostgresServer, tmp_path: Path) -> None:
    """Each marked block of a page does what the page says, and prints what it shows."""
    found = blocks(page.read_text(encoding="utf-8"))
    text = script(found)
    for host, server in (("db1.example.com", shop), ("db2.example.com", copies)):
        text = text.replace(host, f"127.0.0.1:{server.port}")
    folder, output = tmp_path / "folder", tmp_path / "output"
    folder.mkdir()
    with output.open("wb") as stream:  # not a pipe: what a page leaves in the background would hold it open
        session = subprocess.Popen(
            ["bash", "-c", text],
            cwd=folder,
            env=environment(tmp_path),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
        try:
            session.wait(SECONDS)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(session.pid, signal.SIGTERM)  # the tutorial's server, where the page did not come to its end
            if "millrace demo" in text:
                remove_postgres(folder / "demo" / "shop_db")  # where root's rights have put it
    printed = output.read_text(encoding="utf-8")
    parts = re.split(r"\n@@(\d+)\n", printed)
    done = list(zip(parts[0::2], parts[1::2], strict=False))
    for block, (told, code) in zip(found, done, strict=False):
        assert int(code) == block.code, f"{block.typed}\n{told}"
        assert lost(block, told) is None, f"{block.typed}\n{told}\nnot printed: {lost(block, told)}"
    assert len(done) == len(found), f"the session ended in:\n{found[len(done)].typed}\n{parts[-1]}"


def test_every_mark_is_read() -> None:
    """Each mark has a block right below it."""
    assert PAGES
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert text.count("<!-- run") + text.count("<!-- given") == len(blocks(text)), page


def test_a_missing_line_is_seen() -> None:
    """Lines must be there, in their order; ids and numbers may differ."""
    block = Block("", 0, ("copy  bronze.orders  20,000 rows  1.2 s  proven", "done in 2.0 s …"))
    assert lost(block, " copy bronze.orders 7 rows 0.1 s proven\n\n done in 9 s · published 1\n") is None
    assert lost(block, " done in 9 s\n copy bronze.orders 7 rows 0.1 s proven\n") == "done in 2.0 s …"
    assert lost(block, " copy bronze.orders 7 rows 0.1 s fresh\n") == block.shown[0]
    assert plain("shop · dev · run 7f3a") == plain("shop · dev · run beef")
    assert plain("go on with: millrace run --resume 7f3a") == plain("go on with: millrace run --resume d413")


@pytest.mark.parametrize("page", ["README.md", "docs/operations.md"])
def test_a_korean_page_has_the_same_code(page: str) -> None:
    """It shows the same code, pictures and pages, in their order; only comments and the names of sections are its own."""

    def facts(name: str) -> list[str]:
        text = GIVEN.sub("", (ROOT / name).read_text(encoding="utf-8"))
        code = [
            re.sub(r" *# .*", "", found) for found in re.findall(r"^```\w*\n.*?^```$", text, re.MULTILINE | re.DOTALL)
        ]
        links = re.findall(r"\]\(([^)]+)\)", text)
        return code + [
            re.sub("#.*", "#", link.replace(".ko.md", ".md")) for link in links if not link.startswith(Path(page).stem)
        ]

    assert facts(page.replace(".md", ".ko.md")) == facts(page)
