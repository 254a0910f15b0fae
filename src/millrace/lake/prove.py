"""Proving a stage on the files as they lie on the disk, since the library checks nothing of what it commits.

A replace, create or append is proven when the digest of its files read back is the sum of the segments' digests in
the source. An upsert is proven twice: the changes against the source, and the rewritten files by arithmetic: what
they hold is what the replaced files held, less the before-images, plus the after-images.

Rows that were set aside count as the source's: D(source) = D(files less fixed rows) + D(rows set aside).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from millrace.core.digest import Digest
from millrace.core.schema import Schema
from millrace.core.staged import Level, Proof, Staged
from millrace.errors import ProofFailed
from millrace.lake.layout import Folder, disk
from millrace.lake.partitions import wrong_value
from millrace.lake.table import arrow_schema, check_file, rows_of


def hashable(schema: Schema) -> bool:
    """Whether every column says how it enters the row digest."""
    return bool(schema.columns) and all(column.hashed for column in schema.columns)


def prove(folder: Folder, staged: Staged) -> Proof:
    """Check every staged file and compare the stage with `staged.expected`.

    Raises:
        ProofFailed: a file is missing or torn, has other columns, nulls or rows, or the digests differ.
    """
    files = staged.detail["files"]
    wanted = arrow_schema(staged.schema)
    for file in files:
        check_size(folder, file, staged)
        wrong = partial(wrong_value, path=file["name"], asset=str(staged.asset))
        check_file(folder.path / file["name"], wanted, file["rows"], str(staged.asset), wrong)
    with disk(folder.path, f"proving {staged.asset}"):
        _check_quarantine(folder, staged)
        if staged.how == "upsert":
            return _prove_upsert(folder, staged, files)
        return _prove_files(staged, [folder.path / file["name"] for file in files], rows_of(files))


def check_size(folder: Folder, file: Mapping[str, Any], staged: Staged) -> None:
    """Raise ProofFailed unless a staged file is there in its size."""
    path = folder.path / file["name"]
    size = path.stat().st_size if path.exists() else None
    if size != file["size"]:
        found = "is missing" if size is None else f"has {size:,} bytes, {file['size']:,} were written"
        raise ProofFailed(
            f"{staged.asset}: a staged file {found}", where=str(path), hint="nothing was published; run again"
        )


def digest(paths: Sequence[Path], schema: Schema) -> Digest:
    """Return the digest of the rows in some files."""
    if not paths:
        return Digest(0, 0, schema.shape)
    from millrace.lake.filehash import digest_files

    return digest_files([str(path) for path in paths], schema)


def _prove_files(staged: Staged, paths: Sequence[Path], rows: int) -> Proof:
    expected = staged.expected
    if not hashable(staged.schema):
        wanted = sum(one.rows for one in expected.values()) + _aside(staged).rows
        if expected and wanted != rows:
            raise _differs(staged, f"source: {wanted:,} rows", f"files: {rows:,} rows")
        return Proof(staged.asset, staged.load, "none")
    found = digest(paths, staged.schema)
    if not expected:  # made here: there is no source to compare with, but later loads can be compared with this
        return Proof(staged.asset, staged.load, "none", found)
    _compare(staged, found)
    return Proof(staged.asset, staged.load, "transfer", found)


def _compare(staged: Staged, found: Digest) -> None:
    shapes = {one.shape for one in staged.expected.values()} | {found.shape}
    if len(shapes) > 1:
        raise ProofFailed(
            f"{staged.asset} cannot be proven: source and files were digested over different columns or types",
            hint="run again: it is staged anew",
        )
    wanted, aside = Digest.sum(staged.expected.values(), found.shape), _aside(staged)
    if wanted + aside != found:
        lines = [
            f"source: {wanted.rows:,} rows, digest {wanted.total}",
            f"files: {found.rows:,} rows, digest {found.total}",
        ]
        if aside.rows or aside.total:
            lines.append(f"set aside, less rows fixed: {-aside.rows:,} rows, digest {-aside.total}")
        raise _differs(staged, *lines)


def _aside(staged: Staged) -> Digest:
    """Return by how much the files differ from the source on purpose: fixed rows come, rows set aside are not there."""
    record = staged.detail.get("quarantine")
    if record is None:
        return Digest(0, 0, staged.schema.shape)
    return Digest.from_json(record["put"]) - Digest.from_json(record["load"])


def _check_quarantine(folder: Folder, staged: Staged) -> None:
    """Raise ProofFailed unless the quarantine's file holds, read back, what was set aside."""
    record = staged.detail.get("quarantine")
    if record is None or record["file"] is None:
        return
    path = folder.quarantine / record["file"]
    size = path.stat().st_size if path.exists() else None
    if size != record["size"]:
        found = "is missing" if size is None else f"has {size:,} bytes, {record['size']:,} were written"
        raise ProofFailed(f"{staged.asset}: the quarantine's file {found}", where=str(path), hint="run again")
    from millrace.lake.quarantine import digest_of, read_file

    wanted = Digest.from_json(record["digest"])
    if hashable(staged.schema) and digest_of(read_file(path, staged.asset), staged.schema) != wanted:
        raise ProofFailed(f"{staged.asset}: the quarantine's file does not hold what was set aside", where=str(path))


def _differs(staged: Staged, *lines: str) -> ProofFailed:
    return ProofFailed(
        f"{staged.asset}: the staged files are not what the source holds",
        where=staged.place,
        detail=lines,
        hint="nothing was published",
    )


def _prove_upsert(folder: Folder, staged: Staged, files: Sequence[Mapping[str, Any]]) -> Proof:
    detail = staged.detail
    images: Mapping[str, Any] = detail["images"]
    for image in images.values():
        path = folder.changes / image["name"]
        if not path.exists() or path.stat().st_size != image["size"]:
            raise ProofFailed(f"{staged.asset}: the staged changes are not whole", where=str(path))
    rows = {side: int(image["rows"]) for side, image in images.items()}
    left, added = rows_of(detail["removed"]), rows_of(files)
    if added != left - rows["before"] + rows["after"]:
        raise _differs(
            staged,
            f"rewritten files held {left:,} rows, {rows['before']:,} go, {rows['after']:,} come",
            f"new files hold {added:,} rows",
        )
    if not hashable(staged.schema):
        return Proof(staged.asset, staged.load, "none")
    change = {side: digest([folder.changes / image["name"]], staged.schema) for side, image in images.items()}
    old = digest([folder.path / file["name"] for file in detail["removed"]], staged.schema)
    new = digest([folder.path / file["name"] for file in files], staged.schema)
    wanted = old - change["before"] + change["after"]
    if new != wanted:
        raise _differs(staged, f"wanted: {wanted}", f"files: {new}")
    changed, same = Digest.from_json(detail["changes"]), Digest.from_json(detail["unchanged"])
    coming = Digest(rows["after"], change["after"].total, staged.schema.shape)
    if changed != coming + same:
        raise _differs(staged, f"changes: {changed}", f"files: {coming} changed, {same} as they were")
    level: Level = "none"
    if staged.expected:
        _compare(staged, changed)
        # all rows that were not read stood as they do in the source: a scrub of every part found that
        level = "table" if detail.get("level") == "table" else "applied"
    return Proof(staged.asset, staged.load, level, change["after"] - change["before"])
