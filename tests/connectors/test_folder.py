"""What a pattern finds in a folder, and that nothing outside it is looked at."""

from __future__ import annotations

import contextlib
import os
import pwd
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from millrace.connectors.folder import FileFolder, move
from millrace.errors import ContractBroken, GuardRefused, NotFound, PermissionMissing


def make(folder: Path, *names: str) -> FileFolder:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return FileFolder(folder, "landing")


def names(folder: FileFolder, pattern: str) -> list[str]:
    return [one.name for one in folder.find(pattern)]


def test_patterns(tmp_path: Path) -> None:
    folder = make(tmp_path, "a.jsonl", "b.csv", "d/a.jsonl", "d/e/a.jsonl", "d/.a.jsonl", ".d/a.jsonl", "d/a.jsonl.tmp")
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    assert names(folder, "*.jsonl") == ["a.jsonl"]
    assert names(folder, "**/*.jsonl") == ["a.jsonl", "d/a.jsonl", "d/e/a.jsonl"]
    assert names(folder, "d/**/a.jsonl") == ["d/a.jsonl", "d/e/a.jsonl"]
    assert names(folder, "*/?.jsonl") == ["d/a.jsonl"]
    assert names(folder, "**/**/[ab].[!j]*") == ["b.csv"]
    assert names(folder, "d/.*.jsonl") == ["d/.a.jsonl"]
    assert names(folder, "d/**") == ["d/a.jsonl", "d/a.jsonl.tmp", "d/e/a.jsonl"]
    assert names(folder, "none/*.jsonl") == []


def test_links_that_lead_out_are_refused(tmp_path: Path) -> None:
    folder = make(tmp_path / "landing", "a.jsonl", "d/b.jsonl")
    make(tmp_path / "secret", "s.jsonl")
    (tmp_path / "landing" / "in.jsonl").symlink_to(tmp_path / "landing" / "d" / "b.jsonl")
    (tmp_path / "landing" / "loop").symlink_to(tmp_path / "landing")
    (tmp_path / "landing" / "dead.jsonl").symlink_to(tmp_path / "nowhere")
    (tmp_path / "landing" / "self.jsonl").symlink_to("self.jsonl")
    assert names(folder, "**/*.jsonl") == ["a.jsonl", "d/b.jsonl", "in.jsonl"]
    for name, to in (("out.jsonl", "secret/s.jsonl"), ("out", "secret")):
        link = tmp_path / "landing" / name
        link.symlink_to(tmp_path / to)
        with pytest.raises(GuardRefused, match=f"{name} leads out of the folder of connection landing"):
            folder.find("**/*.jsonl")
        link.unlink()


def test_a_missing_folder_and_a_name_that_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="the folder of connection landing is missing"):
        FileFolder(tmp_path / "none", "landing").find("*")
    (tmp_path / os.fsdecode(b"\xff.jsonl")).write_bytes(b"")
    with pytest.raises(ContractBroken, match="name of a file is not UTF-8"):
        FileFolder(tmp_path, "landing").find("*.jsonl")


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    """Be a user who may not read everything, where this is root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(pwd.getpwnam("nobody").pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_folder_that_cannot_be_read_is_an_error() -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:  # pytest's own is closed to nobody
        root = Path(name)
        root.chmod(0o755)
        folder = make(root, "d/a.jsonl")
        (root / "d").chmod(0)
        try:
            with nobody(), pytest.raises(PermissionMissing, match="no permission"):
                folder.find("**/*.jsonl")
        finally:
            (root / "d").chmod(0o700)


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs a second file system")
def test_moving_to_another_file_system(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"content")
    before = (tmp_path / "a").stat().st_mtime_ns
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        place = Path(other) / "deep" / "a"
        move(tmp_path / "a", place)
        assert place.read_bytes() == b"content"
        assert place.stat().st_mtime_ns == before
        assert [one.name for one in place.parent.iterdir()] == ["a"]
    assert not (tmp_path / "a").exists()
