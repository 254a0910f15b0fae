"""From a landing folder to bronze through a project: each line once, whatever happens to the files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from millrace.app.house import open_house
from millrace.app.quarantine import drop, replay
from millrace.connectors.lines import LineFile
from millrace.core.names import AssetId
from millrace.core.position import Files
from millrace.core.quarantine import Entry
from millrace.engine.records import StepOutcome
from millrace.engine.session import RunOptions
from millrace.errors import ContractBroken, GuardRefused, MillraceError, NotFound
from millrace.lake.filehash import digest_files
from millrace.lake.target import LakeTarget

MANIFEST = """\
version: 1
name: clicks
layers: {bronze: lake}
environments:
  dev:
    connections: {landing: {type: files, path: ./landing}}
    lake: ./lake
"""
ASSET = AssetId("bronze", "clicks")
SET_ASIDE = "contract: {bad_rows: quarantine}"


class Landing:
    """A project with one copy of files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lake = LakeTarget(folder / "lake")
        (folder / "landing").mkdir(parents=True)
        (folder / "copies").mkdir()
        (folder / "millrace.yaml").write_text(MANIFEST)
        self.options("")

    def options(self, *more: str, files: str = "**/*.jsonl", columns: str = "{id: text, props: json}") -> None:
        lines = [f'files: "{files}"', *([f"columns: {columns}"] if columns else []), *[one for one in more if one]]
        text = "from: landing\nto: bronze\ntables:\n  clicks:\n" + "".join(f"    {line}\n" for line in lines)
        (self.folder / "copies" / "clicks.yaml").write_text(text)

    def put(self, name: str, data: str | bytes, *, more: bool = False) -> Path:
        path = self.folder / "landing" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab" if more else "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
        return path

    def run(self, *, full_refresh: bool = False, **options: Any) -> StepOutcome:
        with open_house(self.folder, full_refresh=full_refresh, **options) as house:
            asked = RunOptions(full_refresh=full_refresh)
            (outcome,) = house.run(house.plan(), options=asked, show_as="silent").steps
        if outcome.error is not None:
            raise outcome.error
        return outcome

    def plan(self) -> str:
        with open_house(self.folder) as house:
            ((_, found),) = house.explain(house.plan())
        return f"{'fresh' if found.fresh else 'run'}: {found.reason}"

    def query(self, sql: str) -> list[Any]:
        with open_house(self.folder) as house:
            return [tuple(row) for row in house.query(sql, 1000).rows]

    def rows(self) -> list[tuple[str, str, int]]:
        tables = [pq.read_table(path, partitioning=None) for path in self.lake.files(ASSET)]
        found = [row for table in tables for row in table.select(["id", "_file", "_line"]).to_pylist()]
        return sorted(((row["id"], row["_file"], row["_line"]) for row in found), key=lambda row: row[1:])

    def ids(self) -> list[str]:
        return [row[0] for row in self.rows()]

    def quarantine(self) -> list[Entry]:
        return list(self.lake.entries(ASSET))

    def position(self) -> Files:
        entry = self.lake.ledger(ASSET)
        assert entry is not None
        assert isinstance(entry.position, Files)
        return entry.position

    def agree(self) -> None:
        """Raise unless rows and quarantine make up the source, by the digests of the files themselves."""
        entry = self.lake.ledger(ASSET)
        assert entry is not None
        assert digest_files(self.lake.files(ASSET), self.lake.schema(ASSET)) == entry.digest
        assert self.lake.balance(ASSET).agree in (True, None)


@pytest.fixture
def landing(tmp_path: Path) -> Landing:
    return Landing(tmp_path / "project")


def line(number: int | str) -> str:
    return json.dumps({"id": str(number), "props": {"n": number}}) + "\n"


def lines(first: int, last: int) -> str:
    return "".join(line(number) for number in range(first, last + 1))


def numbers(first: int, last: int) -> list[str]:
    return [str(number) for number in range(first, last + 1)]


def test_new_files_and_new_lines_are_taken_once(landing: Landing) -> None:
    landing.put("d1/a.jsonl", lines(1, 3))
    assert landing.plan() == "run: never published: 1 new file, 93 bytes"
    assert landing.run().message == "1 file"
    assert landing.plan() == "fresh: no new files"
    assert landing.run().status == "fresh"
    landing.put("d1/a.jsonl", lines(4, 5), more=True)
    landing.put("d2/b.jsonl", lines(6, 7))
    assert landing.plan() == "run: 2 new files, 124 bytes"
    landing.run()
    assert landing.rows() == [
        *((str(number), "d1/a.jsonl", number) for number in range(1, 6)),
        ("6", "d2/b.jsonl", 1),
        ("7", "d2/b.jsonl", 2),
    ]
    assert landing.query("select props, _raw from bronze.clicks where id = '6'") == [('{"n":6}', line(6).rstrip())]
    landing.agree()
    landing.run(full_refresh=True)
    assert landing.ids() == numbers(1, 7)
    assert landing.run().status == "fresh"


def test_an_unchanged_file_is_not_read(landing: Landing, monkeypatch: pytest.MonkeyPatch) -> None:
    landing.put("a.jsonl", lines(1, 2))
    landing.run()
    landing.put("b.jsonl", lines(3, 3))
    read: list[str] = []
    pieces = LineFile.pieces
    monkeypatch.setattr(LineFile, "pieces", lambda self: (read.append(self.found.name), pieces(self))[1])
    landing.run()
    assert read == ["b.jsonl"]


def test_nothing_there(landing: Landing) -> None:
    assert landing.run().message == "no files"
    assert landing.rows() == []
    assert landing.plan() == "fresh: no new files"
    landing.put("empty.jsonl", "")
    landing.run()
    assert landing.position().seen["empty.jsonl"].lines == 0
    landing.put("empty.jsonl", line(1))
    landing.run()
    assert landing.ids() == ["1"]
    (landing.folder / "landing" / "empty.jsonl").unlink()
    (landing.folder / "landing").rmdir()
    with pytest.raises(NotFound, match="the folder of connection landing is missing"):
        landing.run()
    assert landing.ids() == ["1"]


@pytest.mark.parametrize(
    "data", [lines(1, 1), lines(9, 9) + line(2), lines(9, 11)], ids=["shrunk", "same size", "grown"]
)
def test_a_file_that_changed_in_what_was_taken_stops_the_load(landing: Landing, data: str) -> None:
    landing.put("a.jsonl", lines(1, 2))
    landing.run()
    landing.put("a.jsonl", data)
    landing.put("b.jsonl", line(3))
    with pytest.raises(ContractBroken, match=r"a\.jsonl (became shorter|changed in)") as broken:
        landing.run()
    assert "2 lines of it are in the lake as they were" in str(broken.value)
    assert landing.ids() == ["1", "2"]  # nothing of b either: a load is whole or not at all
    landing.put("a.jsonl", lines(1, 2))
    landing.run()
    assert landing.ids() == ["1", "2", "3"]


def test_the_same_content_is_taken_once(landing: Landing) -> None:
    landing.put("a.jsonl", lines(1, 3))
    landing.put("copy.jsonl", lines(1, 3))
    assert landing.run().message == "1 file; copy.jsonl left out: the same content was taken under another name"
    landing.put("again.jsonl", lines(1, 3))
    landing.run()
    assert landing.ids() == numbers(1, 3)
    landing.put("copy.jsonl", line(4), more=True)  # what comes after the copy is new
    landing.run()
    assert landing.rows() == [("1", "a.jsonl", 1), ("2", "a.jsonl", 2), ("3", "a.jsonl", 3), ("4", "copy.jsonl", 4)]
    os.utime(landing.folder / "landing" / "a.jsonl")
    assert landing.run().status == "published"  # the position alone: the new time is known from now on
    assert landing.plan() == "fresh: no new files"
    assert landing.ids() == numbers(1, 4)


def test_a_file_that_changes_while_it_is_read_is_left(landing: Landing, monkeypatch: pytest.MonkeyPatch) -> None:
    path = landing.put("a.jsonl", lines(1, 2))
    landing.put("b.jsonl", line(9))
    pieces = LineFile.pieces

    def growing(self: LineFile) -> Any:
        yield from pieces(self)
        if self.found.name == "a.jsonl":
            landing.put("a.jsonl", line(3), more=True)

    with monkeypatch.context() as patch:
        patch.setattr(LineFile, "pieces", growing)
        assert landing.run().message == "1 file; a.jsonl changed while read: left for the next run"
    assert landing.ids() == ["9"]
    landing.run()
    assert landing.ids() == ["1", "2", "3", "9"]

    def shrinking(self: LineFile) -> Any:
        os.truncate(path, 10)
        return pieces(self)

    landing.put("a.jsonl", line(4), more=True)
    whole = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(LineFile, "pieces", shrinking)
        landing.run()
    path.write_bytes(whole)
    landing.run()
    assert landing.ids() == ["1", "2", "3", "4", "9"]
    landing.agree()


BAD = line(1).encode() + b'{"id": "2", \n[3]\n\n\xff{}\n' + line(5).encode() + b'{"id": "ha'


def test_lines_that_cannot_be_read_block(landing: Landing) -> None:
    landing.put("a.jsonl", BAD)
    with pytest.raises(ContractBroken) as broken:
        landing.run()
    text = str(broken.value)
    assert "bronze.clicks was not published: 4 of 6 lines cannot be read" in text
    assert "a.jsonl:2: the line is half a JSON object: it ends after character 12: " in text
    assert "a.jsonl:3: the line is a list, not an object: [3]" in text
    assert "a.jsonl:5: byte 1 of the line is not UTF-8: 0xff" in text
    assert "and 1 further line" in text
    assert "copies/clicks.yaml:4" in text
    assert landing.lake.ledger(ASSET) is None
    assert not list((landing.folder / "lake").rglob("*.parquet"))


def test_lines_that_cannot_be_read_are_set_aside(landing: Landing) -> None:
    landing.options(SET_ASIDE)
    landing.put("a.jsonl", BAD)
    assert landing.run().message == "1 file; 4 lines → quarantine; 1 empty line skipped"
    assert landing.ids() == ["1", "5"]
    found = {entry.source: entry for entry in landing.quarantine()}
    assert list(found) == ["a.jsonl:2", "a.jsonl:3", "a.jsonl:5", "a.jsonl:7"]
    assert found["a.jsonl:5"].bytes == b"\xff{}"
    assert found["a.jsonl:5"].row["_raw"] is None
    assert found["a.jsonl:3"].row == {"id": None, "props": None, "_file": "a.jsonl", "_line": 3, "_raw": "[3]"}
    assert landing.run().status == "fresh"
    landing.agree()
    # the half line becomes whole: it is taken, and waits no more
    landing.put("a.jsonl", b'lf"}\n' + line(8).encode(), more=True)
    landing.run()
    assert landing.ids() == ["1", "5", "half", "8"]
    assert [entry.source for entry in landing.quarantine()] == ["a.jsonl:2", "a.jsonl:3", "a.jsonl:5"]
    assert landing.lake.balance(ASSET).agree
    landing.run(full_refresh=True)
    assert [entry.source for entry in landing.quarantine()] == ["a.jsonl:2", "a.jsonl:3", "a.jsonl:5"]
    assert landing.lake.balance(ASSET).agree


def test_max_bad_is_judged_over_the_lines_of_the_load(landing: Landing) -> None:
    landing.options("contract: {bad_rows: quarantine, max_bad: 0.1}")
    landing.put("a.jsonl", lines(1, 180) + "no\n" * 20)
    landing.run()
    landing.put("b.jsonl", lines(1, 110) + "no\n" * 12)
    landing.run()
    landing.put("c.jsonl", lines(1, 90) + "no\n" * 11)
    with pytest.raises(ContractBroken, match=r"11 of 101 lines cannot be read, and max_bad is 10 lines"):
        landing.run()
    (landing.folder / "landing" / "c.jsonl").unlink()
    landing.run(full_refresh=True)  # 32 of 322, which are known already
    assert len(landing.quarantine()) == 32
    landing.options("contract: {bad_rows: quarantine, max_bad: 0}")
    landing.put("d.jsonl", "no\n")
    with pytest.raises(ContractBroken, match="max_bad is 0 lines"):
        landing.run()


def test_row_rules_quarantine_rows_of_files_too(landing: Landing) -> None:
    landing.options(SET_ASIDE, "checks: {not_null: [id]}")
    landing.put("a.jsonl", line(1) + '{"props": {}}\n' + "half\n")
    landing.run()
    assert landing.ids() == ["1"]
    assert {entry.source or f"line {entry.row['_line']}" for entry in landing.quarantine()} == {"a.jsonl:3", "line 2"}
    landing.agree()


def test_values_come_as_text(landing: Landing) -> None:
    landing.options(columns="{id: text, props: json, n: text}")
    rows = [
        (
            {"id": "ä\n\0", "props": [1, {"x": None}], "n": 12345678901234567890123},
            "ä\n\0",
            '[1,{"x":null}]',
            "12345678901234567890123",
        ),
        ({"id": 1.5, "props": "text", "n": True}, "1.5", '"text"', "true"),
        ({"id": None, "props": None, "n": {"a": [1]}}, None, None, '{"a":[1]}'),
        ({"other": 1}, None, None, None),
    ]
    landing.put("a.jsonl", "".join("  " + json.dumps(row[0]) + "\r\n" for row in rows))
    landing.run()
    assert landing.query("select id, props, n from bronze.clicks order by _line") == [row[1:] for row in rows]


def test_csv(landing: Landing) -> None:
    landing.options(files="*.csv", columns="")
    landing.put("a.csv", 'id,name\n1,"a\nb"\n2,\n')
    landing.run()
    query = "select id, name, _file, _line, _raw from bronze.clicks order by _file, _line"
    assert landing.query(query) == [("1", "a\nb", "a.csv", 2, '1,"a\nb"'), ("2", "", "a.csv", 4, "2,")]
    landing.put("a.csv", "3,c\n", more=True)
    landing.options("contract: {new_columns: freeze}", files="*.csv", columns="")
    landing.put("b.csv", "id,more\n4,x\n")
    with pytest.raises(ContractBroken, match="the contract freezes them"):
        landing.run()
    landing.options(files="*.csv", columns="")  # a column comes: everything is read anew under the new columns
    assert landing.run().message.startswith("2 files")
    assert landing.query("select id, name, more, _file, _line from bronze.clicks order by _file, _line") == [
        ("1", "a\nb", None, "a.csv", 2),
        ("2", "", None, "a.csv", 4),
        ("3", "c", None, "a.csv", 5),
        ("4", None, "x", "b.csv", 2),
    ]
    landing.agree()


def test_csv_with_another_delimiter_and_encoding(landing: Landing) -> None:
    landing.options('delimiter: ";"', "encoding: latin-1", files="*.csv", columns="{id: text}")
    landing.put("a.csv", "id;größe\n1;ß\n".encode("latin-1"))
    landing.run()
    assert landing.query("select id, _raw from bronze.clicks") == [("1", "1;ß")]
    landing.options('delimiter: ";"', "encoding: latin-1", files="*.csv", columns="{ID: text}")
    with pytest.raises(ContractBroken, match=r"the header of a\.csv has no column ID: did you mean id\?"):
        landing.run()


def test_what_was_taken_moves_to_the_archive(landing: Landing) -> None:
    landing.options("archive: landing/old", SET_ASIDE)
    path = landing.put("d/a.jsonl", BAD)
    with pytest.raises(GuardRefused, match="lies in the folder of connection landing"):
        landing.run()
    landing.options("archive: true", SET_ASIDE)
    os.utime(path, ns=(0, 1_600_000_000_000_000_000))
    landing.run()
    archived = landing.folder / "archive" / "bronze" / "clicks" / "year=2020" / "d" / "a.jsonl"
    assert archived.read_bytes() == BAD
    assert not path.exists()
    assert landing.plan() == "fresh: no new files"
    landing.put("b.jsonl", line(9))
    landing.run(full_refresh=True)  # reads the archive too
    assert sorted(landing.ids()) == ["1", "5", "9"]
    assert len(landing.quarantine()) == 4
    landing.put("d/a.jsonl", line(1))  # a name that was taken is not taken again with another content
    with pytest.raises(ContractBroken, match="became shorter"):
        landing.run()
    (landing.folder / "landing" / "d" / "a.jsonl").unlink()
    archived.unlink()
    with pytest.raises(GuardRefused, match="would lose 7 lines of files that are gone: 1"):
        landing.run(full_refresh=True)


def test_a_declared_column_reads_everything_anew(landing: Landing) -> None:
    landing.put("a.jsonl", lines(1, 2))
    landing.run()
    landing.options(columns="{id: text, props: json, more: text}")
    assert landing.plan() == "run: its options changed"
    landing.run()
    assert landing.query("select id, more from bronze.clicks order by id") == [("1", None), ("2", None)]
    assert landing.run().status == "fresh"


@pytest.mark.parametrize("point", ["engine.staged", "lake.publish.before_commit", "engine.after_publish"])
def test_killed_anywhere_every_line_is_there_once(landing: Landing, point: str) -> None:
    landing.options(SET_ASIDE, "archive: true")
    landing.put("old.jsonl", lines(1, 2))
    landing.run()
    landing.put("a.jsonl", lines(3, 5) + "half")
    environment = {**os.environ, "MILLRACE_KILL_AT": point}
    done = subprocess.run(
        [sys.executable, "-m", "millrace", "run"], cwd=landing.folder, env=environment, capture_output=True, check=False
    )
    assert done.returncode == -signal.SIGKILL
    before = landing.ids()
    assert sorted(before) in (numbers(1, 2), numbers(1, 5))
    landing.run()
    assert sorted(landing.ids()) == numbers(1, 5)
    assert [entry.source for entry in landing.quarantine()] == ["a.jsonl:4"]
    assert landing.run().status == "fresh"
    assert not list((landing.folder / "landing").iterdir())  # both are in the archive
    named = {Path(path).name for path in landing.lake.files(ASSET)}
    assert {path.name for path in (landing.folder / "lake" / "bronze" / "clicks").glob("*.parquet")} == named


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_full_disk_leaves_nothing_half(landing: Landing) -> None:
    lake = landing.folder / "lake"
    lake.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", lake], check=False).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        landing.put("a.jsonl", lines(1, 10))
        landing.run()
        noise = "".join(json.dumps({"id": os.urandom(400).hex()}) + "\n" for _ in range(3000))
        landing.put("b.jsonl", noise)
        with pytest.raises(MillraceError, match="the disk is full"):
            landing.run()
        assert sorted(landing.ids(), key=int) == numbers(1, 10)
        subprocess.run(["mount", "-o", "remount,size=64m", lake], check=True)
        landing.run()
        assert landing.query("select count(*), count(distinct id) from bronze.clicks") == [(3010, 3010)]
    finally:
        subprocess.run(["umount", "-l", lake], check=True)


def test_a_line_that_cannot_be_read_is_not_replayed_as_an_empty_row(landing: Landing) -> None:
    landing.options(SET_ASIDE)
    landing.put("a.jsonl", line(1) + "half\n" + line(2))
    landing.run()
    with open_house(landing.folder) as house:
        (error,) = replay(house, ASSET, [], {}).errors
    assert error.what.startswith("nothing of bronze.clicks was replayed")
    assert "could not be read into columns; put it right in a new file" in str(error)
    assert landing.ids() == ["1", "2"]
    (entry,) = landing.quarantine()
    with open_house(landing.folder) as house:
        assert drop(house, ASSET, [entry.id]).status == "done"
    landing.put("b.jsonl", line(3))
    landing.run()
    assert landing.run().status == "fresh"
    assert [one.status for one in landing.quarantine()] == ["dropped"]
    assert landing.lake.balance(ASSET).agree


CSV = {"files": "**/*.csv", "columns": ""}


def test_an_archived_csv_keeps_its_columns_when_it_is_read_anew(landing: Landing) -> None:
    landing.options("archive: true", **CSV)
    landing.put("a.csv", "id,v\n1,x\n")
    landing.run()
    landing.run(full_refresh=True)
    assert landing.query("select id, v, _raw from bronze.clicks") == [("1", "x", "1,x")]


def test_a_record_that_becomes_whole_leaves_quarantine(landing: Landing) -> None:
    landing.options(SET_ASIDE, **CSV)
    landing.put("a.csv", 'id,v\n1,x\n2,"ab\n')
    landing.run()
    assert [entry.source for entry in landing.quarantine()] == ["a.csv:3"]
    landing.put("a.csv", 'cd"\n3,z\n', more=True)
    landing.run()
    assert (landing.ids(), landing.quarantine()) == (["1", "2", "3"], [])
    landing.agree()


def test_the_archive_is_not_replaced_by_another_file_of_the_same_name(landing: Landing) -> None:
    landing.options("archive: true")
    landing.put("a.jsonl", lines(1, 3))
    landing.run()
    again = landing.put("a.jsonl", lines(7, 8))
    with pytest.raises(GuardRefused, match=r"a\.jsonl is in the archive with another content"):
        landing.run(full_refresh=True)
    again.rename(again.with_name("b.jsonl"))
    landing.run(full_refresh=True)
    assert landing.ids() == ["1", "2", "3", "7", "8"]
    landing.put("a.jsonl", lines(1, 4))
    landing.run(full_refresh=True)
    assert landing.ids() == ["1", "2", "3", "4", "7", "8"], "one that goes on replaces it"


def test_a_deep_list_is_a_line_that_cannot_be_read(landing: Landing) -> None:
    landing.options(SET_ASIDE)
    landing.put("a.jsonl", line(1) + "[" * 100_000 + "]" * 100_000 + "\n")
    landing.run()
    assert (landing.ids(), [entry.source for entry in landing.quarantine()]) == (["1"], ["a.jsonl:2"])


@pytest.mark.parametrize(("header", "what"), [("ID,v", "which is id in another file"), ("id,_line", "Millrace's own")])
def test_headers_that_a_table_cannot_have_name_their_file(landing: Landing, header: str, what: str) -> None:
    landing.options(**CSV)
    landing.put("a.csv", "id,v\n1,x\n")
    landing.put("b.csv", f"{header}\n2,y\n")
    with pytest.raises(ContractBroken, match=f"the header of b.csv has the column .*{what}"):
        landing.run()


def test_a_check_on_a_column_that_is_not_there_names_those_that_are(landing: Landing) -> None:
    landing.options(SET_ASIDE, "checks: {not_null: [user]}")
    landing.put("a.jsonl", lines(1, 2))
    with pytest.raises(MillraceError, match=r"columns: id, props, _file, _line, _raw$"):
        landing.run()
