"""CSV: records under their first line, exact; a broken one sets aside no more than itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from millrace.connectors import csv_records
from millrace.connectors.csv_records import Record, header_of, records
from millrace.connectors.folder import FileFolder
from millrace.connectors.lines import LineFile
from millrace.core.position import Taken
from millrace.errors import ContractBroken


def opened(folder: Path, text: str, taken: Taken | None = None) -> LineFile:
    (folder / "a.csv").write_bytes(text.encode())
    (found,) = FileFolder(folder, "landing").find("*.csv")
    return LineFile(found, taken, limit=1000, whole=True)


def read(file: LineFile) -> list[Record]:
    return [record for _, found in records(file, ",") for record in found]


def test_records_with_newlines_keep_their_line_and_their_text(tmp_path: Path) -> None:
    file = opened(tmp_path, 'id,note\r\n1,"two\r\n\r\nlines, and ""quotes"""\r\n\r\n2,\r\n3,"x"')
    assert header_of(opened(tmp_path, (tmp_path / "a.csv").read_bytes().decode()), ",") == ("id", "note")
    assert read(file) == [
        Record(2, '1,"two\r\n\r\nlines, and ""quotes"""', ["1", 'two\r\n\r\nlines, and "quotes"']),
        Record(6, "2,", ["2", ""]),
        Record(7, '3,"x"', ["3", "x"]),
    ]
    assert file.tally.blank == 1
    assert not file.tally.bad


def test_bad_records_are_set_aside_alone(tmp_path: Path) -> None:
    file = opened(tmp_path, 'id,note\n1,a,b\n2,"never closed\n3,c\n4\n5,"a"b\n6,d\n')
    assert [record.values for record in read(file)] == [["3", "c"], ["6", "d"]]
    assert [(bad.line, bad.reason, bad.text) for bad in sorted(file.tally.bad, key=lambda bad: bad.line)] == [
        (2, "the record has 3 values, the header 2", "1,a,b"),
        (3, "the record is not CSV: ',' expected after '\"'", '2,"never closed'),
        (5, "the record has 1 value, the header 2", "4"),
        (6, "the record is not CSV: ',' expected after '\"'", '5,"a"b'),
    ]
    alone = opened(tmp_path, 'id,note\n1,"never closed\n2,c\n')
    assert [record.values for record in read(alone)] == [["2", "c"]]
    assert [(bad.line, bad.reason) for bad in alone.tally.bad] == [(2, "a quote is never closed")]


def test_a_file_that_grows_gives_what_is_new(tmp_path: Path) -> None:
    first = opened(tmp_path, 'id,note\n1,a\n2,"be')
    assert [record.values for record in read(first)] == [["1", "a"]]
    whole = opened(tmp_path, 'id,note\n1,a\n2,"begun\nended"\n3,c\n', first.taken())
    assert [(record.line, record.values) for record in read(whole)] == [(3, ["2", "begun\nended"]), (5, ["3", "c"])]
    late = opened(tmp_path, 'id,note\n1,"a\n2,b\n')
    assert [record.values for record in read(late)] == [["2", "b"]]
    with pytest.raises(ContractBroken, match=r"a\.csv:2 has a quote that closes only now"):
        read(opened(tmp_path, 'id,note\n1,"a\n2,b\n3,c"\n', late.taken()))


@pytest.mark.parametrize(("header", "what"), [("id,ID", "has the column ID twice"), ("id,,x", "without a name")])
def test_headers_that_are_none(tmp_path: Path, header: str, what: str) -> None:
    with pytest.raises(ContractBroken, match=what):
        header_of(opened(tmp_path, f"{header}\n1,2\n"), ",")


@pytest.mark.parametrize("data", [b"id,caf\xe9\n1,x\n", b'"id,v\n1,x\n', b"\xff"])
def test_a_header_that_cannot_be_read_is_not_replaced_by_a_row(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.csv").write_bytes(data)
    (found,) = FileFolder(tmp_path, "landing").find("*.csv")
    with pytest.raises(ContractBroken, match=r"the header of a\.csv cannot be read"):
        header_of(LineFile(found, None, limit=1000, whole=True), ",")
    with pytest.raises(ContractBroken, match=r"the header of a\.csv cannot be read"):
        read(LineFile(found, None, limit=1000, whole=True))


def test_a_bad_line_of_a_file_that_grows_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"id\n1\n\xff\n" + b"y" * 1001 + b"\n")
    (found,) = FileFolder(tmp_path, "landing").find("*.csv")
    first = LineFile(found, None, limit=1000, whole=True)
    read(first)
    assert sorted(bad.line for bad in first.tally.bad) == [3, 4]
    with found.path.open("ab") as file:
        file.write(b"2\n")
    (found,) = FileFolder(tmp_path, "landing").find("*.csv")
    later = LineFile(found, first.taken(), limit=1000, whole=True)
    assert [record.values for record in read(later)] == [["2"]]
    assert later.tally.bad == []


def test_a_quote_that_stays_open_over_many_quotes_is_looked_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    parse = csv_records._parse
    monkeypatch.setattr(
        csv_records, "_parse", lambda found, by: (asked.append(sum(map(len, found))), parse(found, by))[1]
    )
    (tmp_path / "a.csv").write_text('id,v\n1,"open\n' + '2,a ""word""\n' * 500)
    (found,) = FileFolder(tmp_path, "landing").find("*.csv")
    file = LineFile(found, None, limit=100_000, whole=True)
    assert (len(read(file)), [bad.line for bad in file.tally.bad]) == (500, [2])
    assert sum(asked) < 4 * found.size
