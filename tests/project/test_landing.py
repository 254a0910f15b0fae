"""A copies file whose connection is a folder of files: its keys, and what does not go together, with file and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from millrace.errors import ProjectError
from millrace.project import load_project

MANIFEST = """\
version: 1
name: clicks
layers: {bronze: lake}
environments:
  dev:
    connections:
      landing: {type: files, path: "${env:LANDING}/in"}
      db: {type: postgres, url: "${env:DB}"}
    lake: ./lake
"""


def load(folder: Path, table: str, *, source: str = "landing", to: str = "bronze", manifest: str = MANIFEST) -> object:
    (folder / "copies").mkdir(exist_ok=True)
    (folder / "millrace.yaml").write_text(manifest)
    (folder / "copies" / "c.yaml").write_text(f"from: {source}\nto: {to}\ntables:\n  clicks: {table}\n")
    return load_project(folder, environ={"LANDING": str(folder / "data")})


def refused(folder: Path, table: str, **more: str) -> str:
    with pytest.raises(ProjectError) as error:
        load(folder, table, **more)
    return str(error.value)


def test_what_is_said_is_kept(tmp_path: Path) -> None:
    project = load(tmp_path, "{files: 'c/*.ndjson', columns: {id: text, p: json}, archive: old, max_line: 100}")
    (copy,) = project.copies  # type: ignore[attr-defined]
    options = copy.options
    assert (options.files, options.format, options.mode, options.archive) == ("c/*.ndjson", "jsonl", "append", "old")
    assert options.columns == {"id": "text", "p": "json"}
    assert project.folder_path("landing") == str(tmp_path / "data" / "in")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("table", "what", "marked"),
    [
        ("{}", "table clicks names no files, and landing is a folder", "clicks"),
        ("{files: '*.jsonl', key: id}", '"key" is for tables of a database', "key"),
        ("{files: '*.jsonl', where: 'x > 1'}", '"where" is for tables of a database', "where"),
        ("{files: '*.jsonl', mode: full}", "files are appended, so mode full means nothing here", "mode"),
        ("{files: '../*.jsonl'}", '"../*.jsonl" leaves the folder of the connection', "'../*"),
        ("{files: '/etc/*.jsonl'}", "leaves the folder of the connection", "'/etc"),
        ("{files: 'a**.jsonl'}", "has ** beside other characters", "'a**"),
        ("{files: '*.txt'}", 'the suffix of "*.txt" says no format', "files"),
        ("{files: '*.csv', format: parquet}", '"format" parquet is not built yet', "parquet"),
        ("{files: '*.jsonl', delimiter: ';'}", '"delimiter" is for CSV', "delimiter"),
        ("{files: '*.csv', delimiter: ';;'}", "cannot delimit values", "';;'"),
        ("{files: '*.csv', encoding: utf-7000}", '"utf-7000" is not an encoding', "utf-7000"),
        ("{files: '*.csv', columns: {a: json}}", "values of CSV are text", "columns"),
        ("{files: '*.jsonl', columns: {a: int}}", '"int" of column a is not built: use text or json', "int"),
        ("{files: '*.jsonl', columns: {_line: text}}", '"_line" cannot be a column', "_line"),
        ("{files: '*.jsonl', columns: {a: text, A: text}}", 'columns "a" and "A" differ only by case', "A:"),
    ],
)
def test_what_does_not_go_together(tmp_path: Path, table: str, what: str, marked: str) -> None:
    text = refused(tmp_path, table)
    assert what in text
    assert f"copies/c.yaml:4:{f'  clicks: {table}'.index(marked) + 1}\n" in text


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        ("a/*.jsonl", "b/*.jsonl", False),
        ("**/*.jsonl", "**/*.csv", False),
        ("**/*.jsonl", "a/b/*.jsonl", True),
        ("a/**/x.jsonl", "**/b/*.jsonl", True),
        ("a/**/x.jsonl", "b/**/x.jsonl", False),
        ("events-*.jsonl", "clicks-*.jsonl", False),
        ("e*.jsonl", "events-[0-9].jsonl", True),
        ("a/*.jsonl", "*.jsonl", False),
    ],
)
def test_an_archive_takes_no_files_of_another_table(tmp_path: Path, one: str, other: str, shared: bool) -> None:
    table = "{files: '%s', format: jsonl, archive: true}\n  other: {files: '%s', format: jsonl}" % (one, other)  # noqa: UP031
    if shared:
        assert "bronze.clicks and bronze.other may take the same files" in refused(tmp_path, table)
    else:
        load(tmp_path, table)


def test_files_go_to_the_lake_and_come_from_a_folder(tmp_path: Path) -> None:
    assert '"files" is for files, and connection db is a database' in refused(tmp_path, "{files: '*.csv'}", source="db")
    assert "files go to a layer of the lake" in refused(tmp_path, "{files: '*.csv'}", to="db.raw")
    for path, what in (
        ("{type: files}", 'connection landing of environment dev needs a "path"'),
        (
            "{type: files, path: ./x, url: y}",
            'connection landing of environment dev is a folder of files: it has no "url"',
        ),
        (
            '{type: postgres, url: "${env:DB}", path: ./x}',
            'connection landing of environment dev is a database: it has no "path"',
        ),
    ):
        manifest = MANIFEST.replace('{type: files, path: "${env:LANDING}/in"}', path)
        assert what in refused(tmp_path, "{files: '*.csv'}", manifest=manifest)
