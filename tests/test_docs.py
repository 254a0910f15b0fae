"""The documentation is true: links lead somewhere, tables are complete, examples are read by the code they speak of."""

from __future__ import annotations

import inspect
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from millrace import api, errors
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


def test_every_name_of_the_api_is_documented() -> None:
    """docs/reference/python-api.md has a row for each name of `millrace.api`, and no other before the last table."""
    page = (ROOT / "docs" / "reference" / "python-api.md").read_text(encoding="utf-8")
    here = re.findall(r"^\| `(\w+)` \|", page.partition("## Not here")[0], re.MULTILINE)
    assert sorted(here) == sorted(api.__all__)


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


def test_every_key_of_a_project_is_documented() -> None:
    """docs/reference/project-files.md names each key that the files may have, in the section of its file."""
    from millrace.project.schemas import FILES, schemas

    page = (ROOT / "docs" / "reference" / "project-files.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    heads = {"models/*/*.yaml": "models/LAYER/NAME.sql and .yaml"}
    checks = keys(schemas()["checks"])
    for name, schema in schemas().items():
        if name == "checks":
            continue
        text = sections[heads.get(FILES[name][0], FILES[name][0])]
        missing = {key for key in keys(schema) - checks if f"`{key}`" not in text and f"`{key}:" not in text}
        assert not missing, f"{FILES[name][0]}: {missing}"


def keys(schema: object) -> set[str]:
    """Return every key that a JSON Schema knows."""
    if isinstance(schema, list):
        return {key for part in schema for key in keys(part)}
    if not isinstance(schema, dict):
        return set()
    properties = schema.get("properties")
    found = set(properties) if isinstance(properties, dict) else set()
    return found | {key for part in schema.values() for key in keys(part)}


def commands() -> dict[str, Any]:
    """Return the commands of the command line; those of a group under both names."""
    import typer.main

    from millrace.cli import (  # noqa: F401 - they register their commands
        copying,
        demo,
        exporting,
        looking,
        projects,
        quarantine,
        verifying,
    )
    from millrace.cli.main import app

    found: dict[str, Any] = {}
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        parts = getattr(command, "commands", None)
        found |= {name: command} if parts is None else {f"{name} {part}": one for part, one in parts.items()}
    return dict(sorted(found.items()))


def commands_page() -> str:
    """Return docs/reference/commands.md as the command line describes itself."""
    lines = [
        "# Commands",
        "",
        "Made from the commands' own help by `make docs`. Exit codes: 0 done, 1 failed, 2 wrong usage or project, 130",
        "interrupted. `NO_COLOR` switches colour off; where output is not a terminal there is none.",
    ]
    for name, command in commands().items():
        usage = [f"millrace {name}"]
        rows = []
        for parameter in command.params:
            if parameter.param_type_name == "argument":
                shown = re.sub(r"[\[\]]", "", parameter.metavar or parameter.name.upper())
                usage.append(shown if parameter.required else f"[{shown}]")
                rows.append((f"`{shown}`", parameter.help or ""))
            else:
                names = ", ".join(f"`{text}`" for text in (*parameter.opts, *parameter.secondary_opts))
                value = "" if parameter.is_flag or not parameter.metavar else f" `{parameter.metavar}`"
                default = parameter.default
                plain = isinstance(default, str | int | float) and not isinstance(default, bool)
                rows.append((names + value, (parameter.help or "") + (f" Default: {default}." if plain else "")))
        lines += ["", f"## {name}", "", " ".join((command.help or "").split()), ""]
        lines += ["```", " ".join([*usage, "[OPTIONS]"]), "```", "", "| | |", "|---|---|"]
        lines += [
            f"| {left} | {' '.join(right.split())} |".replace("[bold]", "").replace("[/bold]", "")
            for left, right in rows
        ]
        examples = [line.strip() for line in (command.epilog or "").splitlines() if line.strip()]
        examples = [line for line in examples if not line.startswith("[bold]")]
        if examples:
            lines += ["", "```bash", *examples, "```"]
    return "\n".join(lines) + "\n"


def test_commands_page_is_what_the_commands_say() -> None:
    """docs/reference/commands.md is up to date; `make docs` writes it."""
    page = ROOT / "docs" / "reference" / "commands.md"
    assert page.read_text(encoding="utf-8") == commands_page(), "write it anew with: make docs"


def test_every_command_has_an_example_and_help_for_every_option() -> None:
    """--help of each command shows an example, and says what each option does."""
    for name, command in commands().items():
        assert f"millrace {name}" in (command.epilog or ""), name
        silent = [parameter.name for parameter in command.params if not parameter.help and parameter.name != "help"]
        assert not silent, (name, silent)


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
    known = {
        name: {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        for name, command in commands().items()
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
                    name = " ".join(words[1:3]) if " ".join(words[1:3]) in known else words[1]
                    if name not in known or not options <= known[name]:
                        wrong.append(f"{name_of(page)}: {part.strip()}")
    assert not wrong


def test_makefile_help_names_every_target() -> None:
    """`make` without a target lists what people may call."""
    done = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    for target in ("demo", "test", "test-fast", "check", "bench", "format", "clean"):
        assert re.search(rf"make {target} +\w", done.stdout), target


if __name__ == "__main__":
    (ROOT / "docs" / "reference" / "commands.md").write_text(commands_page(), encoding="utf-8")
