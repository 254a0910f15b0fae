"""The documentation is true: links lead somewhere, tables are complete, examples are read by the code they speak of."""

from __future__ import annotations

import inspect
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from millrace import errors
from millrace.core.names import AssetId
from millrace.core.staged import FORMAT
from millrace.quality.rules import parse_checks

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "benchmarks").glob("*.md"),
        *(ROOT / "src").rglob("*.md"),
    ]
)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def name_of(page: Path) -> str:
    """Return a page's path for test names."""
    return str(page.relative_to(ROOT))


def prose(page: Path) -> str:
    """Return a page without its code."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    """Each relative link names a file, and a heading in it."""
    lost = []
    for link in LINK.findall(prose(page)):
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            lost.append(link)
    assert not lost


def test_every_page_is_reached() -> None:
    """Each page of the documentation is linked from another page."""
    linked = {
        (page.parent / link.partition("#")[0]).resolve()
        for page in PAGES
        for link in LINK.findall(prose(page))
        if "://" not in link
    }
    pages = {page for page in PAGES if page.is_relative_to(ROOT / "docs") and not re.match(r"\d{3}-", page.name)}
    assert pages <= linked, [name_of(page) for page in sorted(pages - linked)]


def test_every_error_is_documented() -> None:
    """docs/reference/errors.md has a row for each class: exit code, handling, and what it means."""
    classes = [
        found
        for _, found in inspect.getmembers(errors, inspect.isclass)
        if issubclass(found, errors.MillraceError) and found is not errors.MillraceError
    ]
    page = (ROOT / "docs" / "reference" / "errors.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` (\|.*)$", page, re.MULTILINE))
    assert set(rows) == {found.__name__ for found in classes}
    for found in classes:
        _, code, handling, meaning, *_ = (part.strip() for part in rows[found.__name__].split("|"))
        assert code == str(found.exit_code), found
        assert handling == found.handling.value, found
        assert meaning, found


def test_format_is_the_documented_one() -> None:
    """docs/reference/formats.md speaks of the format that the code writes."""
    page = (ROOT / "docs" / "reference" / "formats.md").read_text(encoding="utf-8")
    assert f"Current format: **{FORMAT}**" in page


def test_every_table_of_ours_is_documented() -> None:
    """docs/reference/formats.md names the tables that the ledgers and the journal make."""
    page = (ROOT / "docs" / "reference" / "formats.md").read_text(encoding="utf-8")
    package = ROOT / "src" / "millrace"
    made = set()
    for path in (package / "postgres" / "ledger.py", package / "duck" / "ledger.py", package / "engine" / "tables.py"):
        text = path.read_text(encoding="utf-8")
        found = set(re.findall(r"create table (?:if not exists )?[\w{}.]*?(\w+) *\n? *\(", text))
        found |= set(re.findall(r'sa\.Table\(\s*"(\w+)"', text))
        assert found, path
        made |= found
    assert {table for table in made if f"`{table}" not in page} == set()


def test_checks_page_is_complete() -> None:
    """docs/reference/checks.md names each check, and its example is read."""
    page = (ROOT / "docs" / "reference" / "checks.md").read_text(encoding="utf-8")
    with pytest.raises(errors.ProjectError) as caught:
        parse_checks({"@": 1}, AssetId("a", "b"))
    known = (caught.value.hint or "").partition(": ")[2].split(", ")
    documented = set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) - {"severity"}
    assert documented == set(known)
    for text in blocks(ROOT / "docs" / "reference" / "checks.md", "yaml"):
        for asset, checks in yaml.safe_load(text).items():
            assert parse_checks(checks, AssetId.parse(asset))


def blocks(page: Path, language: str) -> list[str]:
    """Return a page's code of one language."""
    return [text for found, text in FENCE.findall(page.read_text(encoding="utf-8")) if found == language]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_yaml_examples_parse(page: Path) -> None:
    """Each YAML example is YAML."""
    for text in blocks(page, "yaml"):
        assert yaml.safe_load(text)


def test_commands_in_examples_exist() -> None:
    """Each `millrace …` line of an example names a command and options that exist, and each `make …` a target."""
    if not (ROOT / "src" / "millrace" / "cli" / "demo.py").exists():
        pytest.skip("the command line is not whole yet")
    import typer.main

    from millrace.cli import copying, demo, looking, projects  # noqa: F401 - they register their commands
    from millrace.cli.main import app

    group = typer.main.get_command(app)
    commands = {
        name: {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        for name, command in group.commands.items()  # type: ignore[attr-defined]
    }
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    wrong = []
    for page in PAGES:
        for line in "\n".join(blocks(page, "bash")).splitlines():
            for part in re.split(r"&&|;|\|", line.partition(" # ")[0]):
                words = part.split()
                if words[:1] == ["make"] and len(words) > 1 and words[1] not in targets:
                    wrong.append(f"{name_of(page)}: {part.strip()}")
                if words[:1] == ["millrace"] and len(words) > 1 and not words[1].startswith("-"):
                    options = {word.partition("=")[0] for word in words[2:] if word.startswith("--")}
                    if words[1] not in commands or not options <= commands[words[1]]:
                        wrong.append(f"{name_of(page)}: {part.strip()}")
    assert not wrong


def test_makefile_help_names_every_target() -> None:
    """`make` without a target lists what people may call."""
    done = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    for target in ("demo", "test", "test-fast", "check", "bench", "format", "clean"):
        assert re.search(rf"make {target} +\w", done.stdout), target
