"""Files of a folder to a Delta lake: each line or record one row, as it came, under its file and line.

The columns are those that the project declares (of CSV else those of the headers), as text, and `_file`, `_line` and
`_raw`: where the row stood, and all of what stood there. A load appends what is new: files that were not there, and of
a file that grew the lines that came. What cannot be read is set aside, or stops the load.

The proof: every row is digested as it was read, before it is written; the files of the stage, read back, and what was
set aside must add up to that. That what was read is what the file holds is counted by `connectors.lines`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from millrace.core.plan import Freshness, Step
from millrace.core.ports import Context, StageRequest, Target
from millrace.core.position import Files, Taken
from millrace.core.schema import Column, Kind, Schema
from millrace.core.staged import LedgerEntry, Staged
from millrace.errors import ContractBroken, ExtraMissing, GuardRefused
from millrace.observe.lines import count
from millrace.steps.archive import Archive
from millrace.steps.landing import FilesSpec
from millrace.steps.resources import Resources
from millrace.steps.routes.lines import EXAMPLES, FILE, LINE, RAW, Load, opened
from millrace.steps.spec import CopySpec

if TYPE_CHECKING:
    from millrace.connectors.folder import Found
    from millrace.lake.target import LakeTarget


def _require() -> None:
    """Raise ExtraMissing unless the libraries of this way are installed."""
    from importlib.util import find_spec

    if any(find_spec(name) is None for name in ("pyarrow", "numpy", "deltalake", "duckdb")):
        raise ExtraMissing("copying files into a lake", "lake")


def lake_of(target: Target) -> LakeTarget:
    """Return the target of files, which is a lake: the project's files are refused otherwise."""
    from millrace.lake.target import LakeTarget

    assert isinstance(target, LakeTarget)  # noqa: S101
    return target


def _seen(entry: LedgerEntry | None) -> Mapping[str, Taken] | None:
    """Return what was taken before; None: nothing that a load could build upon."""
    return entry.position.seen if entry is not None and isinstance(entry.position, Files) else None


def fresh(spec: CopySpec, files: FilesSpec, resources: Resources, target: LakeTarget) -> Freshness:
    """Say whether there are new files, and what a run would do; no file is read.

    Raises:
        NotFound, GuardRefused, PermissionMissing: what would also stop the run.
    """
    _require()
    from millrace.connectors.taking import changed

    entry = target.ledger(spec.asset)
    found = resources.files(spec.source).find(files.pattern)
    seen = _seen(entry)
    new = changed(found, {} if seen is None or spec.full_refresh else seen)
    size = sum(one.size - (seen[one.name].size if seen and one.name in seen else 0) for one in new)
    what = f"{count(len(new), 'new file')}, {_bytes(max(size, 0))}"
    if seen is None:
        return Freshness(False, f"never published: {what}", None, "new table", "transfer, table")
    if spec.full_refresh:
        return Freshness(False, f"full refresh: {what}", None, "replace", "transfer, table")
    if new:
        return Freshness(False, what, None, "append", "transfer")
    waiting = Archive.of(spec, files, resources, target).waiting(found, seen)
    if waiting:
        return Freshness(False, f"{count(len(waiting), 'file')} to archive")
    return Freshness(True, "no new files", 0)


def stage(
    spec: CopySpec, files: FilesSpec, resources: Resources, target: LakeTarget, step: Step, ctx: Context
) -> tuple[Staged, ...]:
    """Bring the new lines into files that no reader looks at yet.

    Raises:
        ContractBroken: lines that cannot be read, where they are not set aside or are too many; a file that became
            shorter or changed in what was taken already.
        GuardRefused: everything is to be read anew, and files that were taken are gone.
        NotFound, PermissionMissing, StepFailed: the folder is missing, or a file cannot be read.
        Interrupted: Ctrl-C.
    """
    _require()
    from millrace.connectors.taking import choose

    entry = target.ledger(spec.asset)
    folder, archive = resources.files(spec.source), Archive.of(spec, files, resources, target)
    found, seen = folder.find(files.pattern), _seen(entry)
    since = {} if seen is None or spec.full_refresh else dict(seen)
    if seen and not since:
        found = _all(spec, found, seen, archive)
    schema = _schema(files, found, since, None if entry is None or not since else target.schema(spec.asset))
    contract = step.spec.get("contract") or {}
    if since and entry is not None and (old := target.schema(spec.asset)).to_json() != schema.to_json():
        from millrace.steps.contracts import check_columns

        check_columns(spec.asset, contract, entry, old, schema)
        ctx.report.note("the columns changed: all files are read anew")
        found, since = _all(spec, found, since, archive), {}
    work = choose(found, since)
    if entry is not None and since and not work.tasks and not work.noted:
        moved = archive.settle(found, since)
        ctx.report.note(f"no new files; {count(moved, 'file')} moved to the archive" if moved else "no new files")
        return ()
    request = StageRequest(
        asset=spec.asset,
        load=ctx.load,
        run=ctx.run,
        step=step.key,
        base=0 if entry is None else entry.seq,
        how="append" if since else "replace" if entry else "create",
        schema=schema,
        inputs={},
        code=step.code,
    )
    staging = target.open_stage(request, replace=spec.replace)
    staging.drop(staging.left())  # what was told of their files is not known any more
    load = Load(spec, files, staging, ctx)
    load.read(work.tasks)
    load.keep_or_stop(contract, since)
    if step.spec.get("checks"):
        from millrace.steps.sieve import sieve_of

        sieve = sieve_of(step, spec.asset, schema.key, ctx, entry)
        if sieve is not None:
            with load.engine() as connection:
                sieve.stage(connection, staging)
    position = _position(since, load.taken, work.noted)
    ctx.report.note(_told(load, work.same, found))
    return (staging.close(Files(position), load.expected),)


def settle(spec: CopySpec, files: FilesSpec, resources: Resources, target: LakeTarget) -> None:
    """Move files that were published to the archive. Raises StepFailed for those that cannot be moved."""
    seen = _seen(target.ledger(spec.asset))
    if seen is not None:
        found = resources.files(spec.source).find(files.pattern)
        Archive.of(spec, files, resources, target).settle(found, seen)


def _position(since: Mapping[str, Taken], taken: Mapping[str, Taken], noted: Mapping[str, Taken]) -> dict[str, Taken]:
    """Return what has been taken after this load. A repeated content has the lines of the file that it repeats."""
    found = {**since, **taken}
    for name, one in noted.items():
        if one.same is None:
            found[name] = one
            continue
        known = [side[one.same] for side in (since, taken) if one.same in side and side[one.same].digest == one.digest]
        if known:  # else that file was left for the next run, and so is this one
            found[name] = replace(known[0], mtime=one.mtime, same=one.same)
    return dict(sorted(found.items()))


def _all(spec: CopySpec, found: Sequence[Found], seen: Mapping[str, Taken], archive: Archive) -> list[Found]:
    """Return the files to read when everything is read anew: those that are there, and those in the archive.

    Raises:
        GuardRefused: files that were taken are at neither place, so their rows would be lost, or other ones came in
            their place while they are in the archive.
    """
    from millrace.connectors.taking import goes_on

    here = {one.name: one for one in found}
    gone = {name: taken for name, taken in seen.items() if name not in here and taken.lines and taken.same is None}
    kept = archive.find(gone)
    lost = [name for name in gone if name not in {one.name for one in kept}]
    if lost and not spec.allow_deletes:
        lines = count(sum(gone[name].lines for name in lost), "line")
        raise GuardRefused(
            f"{spec.asset} would lose {lines} of files that are gone: {len(lost):,}",
            where=spec.source,
            detail=[*lost[:EXAMPLES], *(["…"] if len(lost) > EXAMPLES else [])],
            hint="bring the files back, or run again with --allow-deletes if that is meant",
        )
    archived = [one.name for one in archive.find({name: taken for name, taken in seen.items() if name in here})]
    if other := [name for name in archived if not goes_on(here[name], seen[name])]:
        raise GuardRefused(
            f"{other[0]} is in the archive with another content, which this one would replace",
            where=str(here[other[0]].path),
            hint="put the new file under another name, then: millrace run",
        )
    return sorted([*found, *kept], key=lambda one: one.name)


# --- columns -------------------------------------------------------------------------------------------------------


def _schema(files: FilesSpec, found: Sequence[Found], since: Mapping[str, Taken], old: Schema | None) -> Schema:
    """Return the asset's columns: those declared, else those of the headers that are known or new."""
    columns = dict(files.columns)
    if not columns and files.format == "csv":
        from millrace.connectors.csv_records import header_of
        from millrace.connectors.taking import changed

        names = [] if old is None else [name for name in old.names if name not in (FILE, LINE, RAW)]
        for one in changed(found, since):
            names += _usable(header_of(opened(one, None, files), files.delimiter), names, one)
        columns = dict.fromkeys(names, "text")
    made = [Column(name, kind, Kind.TEXT, hashed="text") for name, kind in columns.items()]
    made.append(Column(FILE, "text", Kind.TEXT, nullable=False, hashed="text"))
    made.append(Column(LINE, "bigint", Kind.INT64, nullable=False, hashed="int"))
    made.append(Column(RAW, "text", Kind.TEXT, hashed="text"))
    return Schema(tuple(made), (FILE, LINE))


def _usable(header: Sequence[str], known: Sequence[str], one: Found) -> Sequence[str]:
    """Return the columns of a header. Raises ContractBroken where a table cannot have one of them."""
    cases = {name.lower(): name for name in known}
    for name in header:
        low = name.lower()
        if low in (FILE, LINE, RAW) or low.startswith("_millrace"):
            why = "which is a name of Millrace's own"
        elif cases.get(low, name) != name:
            why = f"which is {cases[low]} in another file"
        else:
            continue
        raise ContractBroken(
            f"the header of {one.name} has the column {name}, {why}",
            where=str(one.path),
            hint="correct the header, or name the columns that are wanted: columns: of the table",
        )
    return header


# --- words ---------------------------------------------------------------------------------------------------------


def _told(load: Load, same: Sequence[str], found: Sequence[Found]) -> str:
    """Return what happened, in one sentence."""
    parts = [count(len(load.taken), "file") if load.taken else "no new files" if found else "no files"]
    if load.bad:
        parts.append(f"{count(len(load.bad), 'line')} → quarantine")
    if load.blank:
        parts.append(count(load.blank, "empty line") + " skipped")
    if same:
        parts.append(f"{_names(same)} left out: the same content was taken under another name")
    if load.left:
        parts.append(f"{_names(load.left)} changed while read: left for the next run")
    if load.foreign:
        parts.append(f"read as {', '.join(sorted(load.foreign))}, as the byte order mark says")
    return "; ".join(parts)


def _names(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {count(len(names) - 1, 'more file')}"


def _bytes(size: int) -> str:
    for unit, step in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= step:
            return f"{size / step:,.1f} {unit}"
    return f"{size} bytes"
