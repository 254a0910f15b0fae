"""Files as numbered lines: whatever the blocks, each line once, under its number, exactly."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from millrace.connectors import lines
from millrace.connectors.folder import FileFolder, Found
from millrace.connectors.lines import LineFile, digest
from millrace.core.position import Taken
from millrace.errors import ContractBroken

LIMIT = 40


def found_at(folder: Path, data: bytes) -> Found:
    (folder / "a.jsonl").write_bytes(data)
    (one,) = FileFolder(folder, "landing").find("*.jsonl")
    return one


def read(file: LineFile) -> dict[int, str]:
    rows = {}
    for piece in file.pieces():
        rows |= dict(zip(piece.numbers.tolist(), piece.text.to_pylist(), strict=True))
    return rows


def plainly(data: bytes) -> tuple[dict[int, str], set[int]]:
    """Read lines as one would without any care for speed: those that are text, and the numbers of those that are bad."""
    rows, bad = {}, set()
    for number, line in enumerate(data.split(b"\n"), 1):
        line = line.removesuffix(b"\r")
        if len(line) > LIMIT:
            bad.add(number)
            continue
        try:
            text = line.decode()
        except UnicodeDecodeError:
            bad.add(number)
            continue
        if text:
            rows[number] = text
    return rows, bad


PARTS = st.sampled_from([b"\n", b"\r\n", b"\r", b"x", b'{"a": 1}', "é".encode(), b"\xff", b"\x00", b"y" * LIMIT, b" "])


@settings(deadline=None, max_examples=150)
@given(st.lists(PARTS, max_size=25).map(b"".join), st.integers(1, 30), st.integers(0, 60))
@example(b"y" * LIMIT + b"\r\n", 1, 0)
def test_each_line_once_whatever_the_blocks(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, block: int, before: int
) -> None:
    folder = tmp_path_factory.mktemp("landing")
    rows, bad = plainly(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "BLOCK", block)
        file = LineFile(found_at(folder, data), None, limit=LIMIT)
        assert read(file) == rows
        assert {one.line for one in file.tally.bad} == bad
        assert file.taken().digest == hashlib.sha256(data).hexdigest()
        # what was taken in two looks is what one look takes, when the first ended at a line's end
        cut = data.rfind(b"\n", 0, before) + 1
        first = LineFile(found_at(folder, data[:cut]), None, limit=LIMIT)
        early = read(first)
        later = LineFile(found_at(folder, data), first.taken(), limit=LIMIT)
        assert {**early, **read(later)} == rows
        assert not early.keys() & read(LineFile(found_at(folder, data), first.taken(), limit=LIMIT)).keys()


def test_bytes_that_are_not_text_are_kept_and_do_not_touch_their_neighbours(tmp_path: Path) -> None:
    file = LineFile(found_at(tmp_path, b"\xc3\n\xa9\nok\n"), None, limit=LIMIT)  # together they would be an é
    assert read(file) == {3: "ok"}
    assert [(one.line, one.data) for one in file.tally.bad] == [(1, b"\xc3"), (2, b"\xa9")]
    assert file.tally.bad[0].reason == "byte 1 of the line is not UTF-8: 0xc3"


@pytest.mark.parametrize(
    ("encoding", "data"),
    [
        (None, b"\xef\xbb\xbf" + "ä\n한\n".encode()),
        (None, "ä\n한\n".encode("utf-16")),  # the mark says it
        ("utf-16", "ä\n한\n".encode("utf-16-be")[0:0] + b"\xfe\xff" + "ä\n한\n".encode("utf-16-be")),
        ("utf-16-le", "ä\n한\n".encode("utf-16-le")),
        ("euc-kr", "ä\n한\n".replace("ä", "가").encode("euc-kr")),
        ("latin-1", "ä\nß\n".encode("latin-1")),
    ],
)
def test_encodings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str | None, data: bytes) -> None:
    monkeypatch.setattr(lines, "BLOCK", 3)  # cuts characters
    rows = read(LineFile(found_at(tmp_path, data), None, limit=LIMIT, encoding=encoding))
    assert list(rows) == [1, 2]
    assert rows[1] in ("ä", "가")
    assert rows[2] in ("한", "ß")


def test_a_file_that_is_not_what_its_encoding_says(tmp_path: Path) -> None:
    with pytest.raises(ContractBroken, match=r"a\.jsonl is not utf-16-le, as it begins says"):
        read(LineFile(found_at(tmp_path, b"\xff\xfe{\x00\n"), None, limit=LIMIT))


def test_a_half_line_that_became_whole(tmp_path: Path) -> None:
    first = LineFile(found_at(tmp_path, b"one\ntw"), None, limit=LIMIT)
    assert read(first) == {1: "one", 2: "tw"}
    kept = first.taken()
    assert (kept.lines, kept.ended, kept.kept) == (2, False, True)
    set_aside = Taken(kept.size, kept.mtime, kept.digest, kept.lines, ended=False, kept=False)
    # its end came: nothing is new in it; it went on: what was taken is not what stands there now
    assert read(LineFile(found_at(tmp_path, b"one\ntw\nthree\n"), kept, limit=LIMIT)) == {3: "three"}
    with pytest.raises(ContractBroken, match=r"a.jsonl:2 was taken when it had no newline, and has gone on since"):
        read(LineFile(found_at(tmp_path, b"one\ntwo\n"), kept, limit=LIMIT))
    assert read(LineFile(found_at(tmp_path, b"one\ntwo\n"), set_aside, limit=LIMIT)) == {2: "two"}
    blank = LineFile(found_at(tmp_path, b"one\n  "), None, limit=LIMIT)
    read(blank)
    assert read(LineFile(found_at(tmp_path, b"one\n  two\n"), blank.taken(), limit=LIMIT)) == {2: "  two"}


def test_what_was_taken_must_stay(tmp_path: Path) -> None:
    first = LineFile(found_at(tmp_path, b"one\ntwo\n"), None, limit=LIMIT)
    read(first)
    with pytest.raises(ContractBroken, match="changed in its first 8 bytes"):
        read(LineFile(found_at(tmp_path, b"0ne\ntwo\nthree\n"), first.taken(), limit=LIMIT))


LONG = """
import resource, sys
from pathlib import Path
from millrace.connectors.folder import FileFolder
from millrace.connectors.lines import LineFile
(found,) = FileFolder(Path(sys.argv[1]), "landing").find("*.jsonl")
file = LineFile(found, None, limit=10_000_000)
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rows = [text for piece in file.pieces() for text in piece.text.to_pylist()]
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base
print(rows, [(bad.line, bad.reason) for bad in file.tally.bad], grown // 1024, sep="|")
"""


def test_a_line_of_100_mb_is_passed_over_in_flat_memory(tmp_path: Path) -> None:
    line = b"x" * 100_000_000
    found_at(tmp_path, b"before\n" + line + b"\nafter\n")
    done = subprocess.run(
        [sys.executable, "-c", LONG, tmp_path], capture_output=True, text=True, check=True, env={**os.environ}
    )
    rows, bad, grown = done.stdout.strip().split("|")
    assert rows == "['before', 'after']"
    assert "(2, 'the line has 100,000,000 bytes, more than max_line (10,000,000); it stays in the file, sha256" in bad
    assert hashlib.sha256(line).hexdigest() in bad
    assert int(grown) < 60  # MB; the line alone would be 100


def test_the_digest_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    found = found_at(tmp_path, b"abc" * 1000)
    assert digest(found) == hashlib.sha256(b"abc" * 1000).hexdigest()
