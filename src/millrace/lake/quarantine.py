"""Quarantine: rows of a source that are kept out of an asset, exact as they came, with the reason.

Each load that changes it writes one file, the complete state after that load, and its manifest names the file. So it
becomes visible with the rows that it belongs to, in the same commit. An entry counts as dealt with as long as its
source row keeps its digest: D(source) = D(asset less replayed rows) + D(entries: open, replayed and dropped).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from millrace.core.digest import Digest
from millrace.core.names import AssetId
from millrace.core.ports import StageRequest
from millrace.core.schema import Schema
from millrace.errors import ContractBroken, StepFailed
from millrace.lake import ledger, log
from millrace.lake.layout import Folder, disk, sync_file, sync_folder
from millrace.lake.ledger import Manifest
from millrace.lake.prove import hashable
from millrace.lake.table import OWN, arrow_schema, writer

if TYPE_CHECKING:
    import pyarrow as pa

ENTRY, STATUS, RULE = "_millrace_entry", "_millrace_status", "_millrace_rule"
COLUMN, REASON, DIGEST = "_millrace_column", "_millrace_reason", "_millrace_digest"
SOURCE, BYTES, SINCE = "_millrace_source", "_millrace_bytes", "_millrace_since"
RUN, FIX = "_millrace_run", "_millrace_fix"
SAID = (RULE, COLUMN, REASON, SOURCE, BYTES)
"""Columns beside the asset's own that whoever sets rows aside may give; of these only the reason must be there."""
STATUSES = ("open", "replayed", "dropped")


@dataclass(frozen=True, slots=True)
class Entry:
    """One row in quarantine.

    Attributes:
        id: twelve hexadecimal digits, stable as long as the source row is.
        status: `open`: it waits; `replayed`: its fixed row is in the asset; `dropped`: it was given up.
        rule, column: the check that it broke, and the column that this is about; empty where there is none.
        reason: one sentence.
        key: the key's columns and values as text.
        digest: of the row as it came.
        source: where it stood, like `events-3.jsonl:17`.
        since: when it was first set aside; run: by which run.
        row: the row as it came.
        bytes: what could not be read into columns, exactly.
        fix: the row that stands in the asset instead, of a replayed entry.
    """

    id: str
    asset: AssetId
    status: str
    rule: str
    column: str
    reason: str
    key: Mapping[str, str | None]
    digest: str
    source: str | None
    since: datetime
    run: str
    row: Mapping[str, Any]
    bytes: bytes | None = None
    fix: Mapping[str, Any] | None = None


def bad_schema(schema: Schema) -> pa.Schema:
    """Return the Arrow schema in which rows of an asset are set aside. Raises ContractBroken for a reserved name."""
    import pyarrow as pa

    fields = [field.with_nullable(True) for field in arrow_schema(schema) if field.name not in OWN]
    types = {BYTES: pa.binary()}
    said = pa.schema([*fields, *(pa.field(name, types.get(name, pa.string())) for name in SAID)])
    taken = {ENTRY, STATUS, DIGEST, SINCE, RUN, FIX, *SAID} & set(schema.names)
    if taken:
        raise ContractBroken(f"the column {min(taken)} is the quarantine's own", hint="rename it in a select")
    return said


def state_schema(schema: Schema) -> pa.Schema:
    """Return the Arrow schema of the file."""
    import pyarrow as pa

    types = {SINCE: pa.timestamp("us", "UTC"), FIX: pa.binary()}
    more = [pa.field(name, types.get(name, pa.string())) for name in (ENTRY, STATUS, DIGEST, SINCE, RUN, FIX)]
    found: pa.Schema = pa.schema([*bad_schema(schema), *more])
    return found


def fitted(bad: pa.Table, schema: Schema) -> pa.Table:
    """Return rows in the schema of `bad_schema`; what need not be said is null. Raises ContractBroken."""
    import pyarrow as pa

    arrays = []
    for field in bad_schema(schema):
        if field.name in bad.schema.names:
            try:
                arrays.append(bad.column(field.name).cast(field.type))
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise ContractBroken(f"{field.name} of a bad row is no {field.type}", detail=[str(error)]) from error
        elif field.name in SAID and field.name != REASON:
            arrays.append(pa.chunked_array([pa.nulls(bad.num_rows, field.type)]))
        else:
            raise ContractBroken(f"rows to set aside lack the column {field.name}")
    return pa.Table.from_arrays(arrays, schema=bad_schema(schema))


def row_digests(rows: pa.Table, schema: Schema) -> list[str]:
    """Return the digest of each row: its hash where the columns have exact ones, else a hash of its values' text."""
    if hashable(schema):
        from millrace.lake.rowhash import row_hashes

        return [str(found) for found in row_hashes(rows.select(list(schema.names)), schema)]
    texts = (repr(tuple(row.values())) for row in rows.select(list(schema.names)).to_pylist())
    return [hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16] for text in texts]


def row_keys(rows: pa.Table, key: Sequence[str]) -> list[tuple[str | None, ...]]:
    """Return each row's key as texts."""
    columns = [[None if value is None else str(value) for value in rows.column(name).to_pylist()] for name in key]
    return list(zip(*columns, strict=True)) if columns else [()] * rows.num_rows


def digest_of(rows: pa.Table, schema: Schema) -> Digest:
    """Return the digest of some rows; of columns without exact hashes just how many there are."""
    if not hashable(schema):
        return Digest(rows.num_rows, 0, schema.shape)
    from millrace.lake.rowhash import digest_table

    return digest_table(rows.select(list(schema.names)), schema)


def packed(row: pa.Table) -> bytes:
    """Return one row as the bytes of an Arrow stream."""
    import pyarrow as pa

    output = pa.BufferOutputStream()
    with pa.ipc.new_stream(output, row.schema) as stream:
        stream.write_table(row)
    found: bytes = output.getvalue().to_pybytes()
    return found


def fixes(state: pa.Table, schema: Schema) -> pa.Table:
    """Return the rows that stand in the asset instead of replayed entries."""
    import pyarrow as pa

    plain = pa.schema([field for field in arrow_schema(schema) if field.name not in OWN])
    held = zip(state.column(STATUS).to_pylist(), state.column(FIX).to_pylist(), strict=True)
    rows = [pa.ipc.open_stream(fix).read_all().cast(plain) for status, fix in held if status == "replayed"]
    return pa.concat_tables(rows) if rows else plain.empty_table()


def read(folder: Folder, manifest: Manifest | None) -> pa.Table | None:
    """Return the complete state that a manifest names, or None when nothing is in quarantine.

    Raises:
        StepFailed: the file is missing or cannot be read.
    """
    if manifest is None or manifest.quarantine is None:
        return None
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder.quarantine / manifest.quarantine["file"]
    try:
        return pq.read_table(path, partitioning=None)
    except (pa.ArrowException, OSError) as error:
        raise StepFailed(
            f"the quarantine of {manifest.entry.asset} cannot be read", where=str(path), detail=[str(error)[:200]]
        ) from error


def entries(state: pa.Table | None, asset: AssetId, schema: Schema) -> list[Entry]:
    """Return a state's entries, the oldest first."""
    import pyarrow as pa

    if state is None:
        return []
    found = []
    for key, row in zip(row_keys(state, schema.key), state.to_pylist(), strict=True):
        fix = row[FIX] if row[STATUS] == "replayed" else None
        found.append(
            Entry(
                id=row[ENTRY],
                asset=asset,
                status=row[STATUS],
                rule=row[RULE] or "",
                column=row[COLUMN] or "",
                reason=row[REASON] or "",
                key=dict(zip(schema.key, key, strict=True)),
                digest=row[DIGEST],
                source=row[SOURCE],
                since=row[SINCE],
                run=row[RUN],
                row={name: row[name] for name in schema.names},
                bytes=row[BYTES],
                fix=None if fix is None else pa.ipc.open_stream(fix).read_all().to_pylist()[0],
            )
        )
    return sorted(found, key=lambda entry: (entry.since, entry.source or "", list(map(str, entry.key.values()))))


class Aside:
    """What one stage sets aside, and what becomes of older entries.

    Args:
        folder: the asset's.
        request: of the stage.
        moment: the time of the load.
    """

    def __init__(self, folder: Folder, request: StageRequest, moment: datetime) -> None:
        self._folder = folder
        self.request = request
        self.schema = request.schema
        self.moment = moment
        self._bad: list[pa.Table] = []
        self.gone: set[str] = set()
        self.reopened: set[str] = set()
        self.whole = request.how in ("create", "replace")
        self._asked = self.whole
        self._state: pa.Table | None = None
        self._older: tuple[Manifest | None, pa.Table | None] | None = None

    def add(
        self, bad: pa.Table, gone: Collection[str] = (), whole: bool = False, reopened: Collection[str] = ()
    ) -> None:
        """Set rows aside.

        Args:
            bad: the asset's columns and those of SAID.
            gone: ids of older entries of an upsert whose keys the load settles.
            whole: the load has all rows of the source: older entries that are not among the bad rows are settled.
            reopened: ids of replayed entries that are open again, because their fixed rows are bad now.
        """
        self._bad.append(fitted(bad, self.schema))
        self.gone |= set(gone)
        self.reopened |= set(reopened)
        self.whole = self.whole or whole
        self._asked = True

    def put_state(self, state: pa.Table) -> None:
        """Take a state as it is: entries of the older one whose status was changed."""
        self._state = state
        self._asked = True

    def older(self) -> pa.Table | None:
        """Return the published state that this load builds upon."""
        return self._known()[1]

    def _known(self) -> tuple[Manifest | None, pa.Table | None]:
        if self._older is None:
            snapshot = log.open_table(self._folder)
            manifest = ledger.current(self._folder, snapshot, self.request.asset)
            state = read(self._folder, manifest)
            if state is not None and not state.schema.equals(state_schema(self.schema)):
                state = None  # other columns: the source's rows have other digests, and a full load reads them anew
            self._older = manifest, state
        return self._older

    def settle(self) -> tuple[dict[str, Any] | None, pa.Table]:
        """Write the state after this load.

        Returns:
            What `Staged.detail["quarantine"]` says, None when there is nothing to say; and the fixed rows of replayed
            entries whose source rows are in this load unchanged: they belong into the asset again.
        """
        if self._state is not None:
            return self._written(self._state, {}), self._none()
        older = self.older()
        if not self._asked or (older is None and not any(bad.num_rows for bad in self._bad)):
            return None, self._none()
        import pyarrow as pa

        bad = pa.concat_tables(self._bad or [bad_schema(self.schema).empty_table()])
        merge = _Merge(self, bad, older)
        state = merge.state()
        put = fixes(merge.load, self.schema)
        facts = {
            "load": digest_of(bad, self.schema).to_json(),
            "put": digest_of(put, self.schema).to_json(),
            "out": digest_of(merge.settled, self.schema).to_json(),
            "out_fixes": digest_of(fixes(merge.settled, self.schema), self.schema).to_json(),
            "rows": sum(status == "open" for status in merge.load.column(STATUS).to_pylist()),
        }
        return self._written(state, facts), put

    def _none(self) -> pa.Table:
        return fixes(state_schema(self.schema).empty_table(), self.schema)

    def _written(self, state: pa.Table, facts: Mapping[str, Any]) -> dict[str, Any]:
        none = Digest(0, 0, self.schema.shape).to_json()
        counts = Counter(state.column(STATUS).to_pylist())
        manifest, older = self._known()
        record: dict[str, Any] = {
            "file": None,
            "size": 0,
            **{status: counts[status] for status in STATUSES},
            "digest": digest_of(state, self.schema).to_json(),
            "fixes": digest_of(fixes(state, self.schema), self.schema).to_json(),
            **dict.fromkeys(("load", "put", "out", "out_fixes"), none),
            "rows": 0,
            "same_source": self._state is not None,
            **facts,
        }
        if not state.num_rows:
            return record
        state = state.sort_by(ENTRY)
        if manifest is not None and manifest.quarantine is not None and older is not None and state.equals(older):
            name = manifest.quarantine["file"]
        else:
            name = f"{self.request.base + 1}-{self.request.load}.quarantine.parquet"
            self._write(state, name)
        return {**record, "file": name, "size": (self._folder.quarantine / name).stat().st_size}

    def _write(self, state: pa.Table, name: str) -> None:
        path = self._folder.quarantine / name
        with disk(self._folder.path, f"setting rows of {self.request.asset} aside"):
            path.parent.mkdir(parents=True, exist_ok=True)
            with writer(path, state.schema) as output:
                output.write_table(state)
            sync_file(path)
            sync_folder(path.parent)


class _Merge:
    """The state after a load: what stays, and the load's bad rows with the status that they had.

    Attributes:
        load: the entries of the load's bad rows.
        settled: the older entries that the load has dealt with: taken up in `load`, or gone.
    """

    def __init__(self, aside: Aside, bad: pa.Table, older: pa.Table | None) -> None:
        self._aside = aside
        self._schema = aside.schema
        self._older = older if older is not None else state_schema(self._schema).empty_table()
        digests, keys = row_digests(bad, self._schema), row_keys(bad, self._schema.key)
        known = row_keys(self._older, self._schema.key)
        again: Mapping[tuple[Any, str], list[int]] = defaultdict(list)
        if aside.request.how != "append":  # what is appended is new, even when it looks like an older row
            for place in reversed(range(self._older.num_rows)):
                again[known[place], self._older.column(DIGEST)[place].as_py()].append(place)
        same = [again[found].pop() if again.get(found) else None for found in zip(keys, digests, strict=True)]
        touched = {key for key in keys if None not in key} if self._schema.key else set()
        taken = {place for place in same if place is not None}
        ids = self._older.column(ENTRY).to_pylist()
        self._staying = [
            place
            for place in range(self._older.num_rows)
            if place not in taken
            and not aside.whole
            and ids[place] not in aside.gone
            and (aside.request.how == "append" or known[place] not in touched)
        ]
        self.settled = _take(self._older, sorted(set(range(self._older.num_rows)) - set(self._staying)))
        self.load = self._entries(bad, keys, digests, same, set(ids))

    def state(self) -> pa.Table:
        """Return all entries."""
        import pyarrow as pa

        return pa.concat_tables([_take(self._older, self._staying), self.load]).combine_chunks()

    def _entries(
        self,
        bad: pa.Table,
        keys: Sequence[tuple[str | None, ...]],
        digests: Sequence[str],
        same: Sequence[int | None],
        taken: set[str],
    ) -> pa.Table:
        """Return bad rows as entries: known ones as they were, new ones open."""
        import pyarrow as pa

        request = self._aside.request
        known = self._older.select([ENTRY, STATUS, SINCE, RUN, FIX]).to_pylist()
        fresh = {STATUS: "open", SINCE: self._aside.moment, RUN: request.run, FIX: None}
        rows = []
        for key, digest, place in zip(keys, digests, same, strict=True):
            if place is not None:
                again = known[place][ENTRY] in self._aside.reopened
                rows.append({**known[place], STATUS: "open", FIX: None} if again else known[place])
                continue
            name = next(name for name in _names(str(request.asset), key, digest) if name not in taken)
            taken.add(name)
            rows.append({ENTRY: name, **fresh})
        schema = state_schema(self._schema)
        arrays = []
        for field in schema:
            if field.name == DIGEST:
                arrays.append(pa.chunked_array([pa.array(digests, field.type)]))
            elif field.name in bad.schema.names:
                arrays.append(bad.column(field.name))
            else:
                arrays.append(pa.chunked_array([pa.array([row[field.name] for row in rows], field.type)]))
        return pa.Table.from_arrays(arrays, schema=schema)


def _take(table: pa.Table, places: Sequence[int]) -> pa.Table:
    import pyarrow as pa

    return table.take(pa.array(places, pa.int64()))


def _names(asset: str, key: Sequence[str | None], digest: str) -> Iterator[str]:
    """Yield ids for a row: the first, then those of further rows that are equal to it."""
    number = 0
    while True:
        text = json.dumps([asset, list(key), digest, *([number] if number else [])])
        yield hashlib.sha256(text.encode()).hexdigest()[:12]
        number += 1


@dataclass(frozen=True, slots=True)
class Balance:
    """D(source) = D(asset) − D(replayed rows) + D(entries), in rows, and whether the digests say the same.

    Attributes:
        source: rows of the source, by the other side of the equation.
        asset: rows of the asset.
        agree: whether the source's own digest equals the sum; None: it is not known.
    """

    source: int
    asset: int
    open: int
    replayed: int
    dropped: int
    agree: bool | None


def balance(folder: Folder, manifest: Manifest) -> Balance:
    """Return the arithmetic of an asset with its quarantine, the quarantine's part read back from its file."""
    state = read(folder, manifest)
    counts: Counter[str] = Counter() if state is None else Counter(state.column(STATUS).to_pylist())
    asset = manifest.entry.rows
    source = asset - counts["replayed"] + sum(counts.values())
    wanted = manifest.quarantine.get("source") if manifest.quarantine else None
    agree = None
    if wanted is not None and state is not None and manifest.whole and manifest.entry.digest is not None:
        schema = manifest.schema
        found = manifest.entry.digest - digest_of(fixes(state, schema), schema) + digest_of(state, schema)
        agree = found == Digest.from_json(wanted)
    return Balance(source, asset, counts["open"], counts["replayed"], counts["dropped"], agree)


def facts_of(
    record: Mapping[str, Any] | None, previous: Manifest | None, source: Digest | None
) -> dict[str, Any] | None:
    """Return what a manifest says about its quarantine.

    Args:
        record: of the stage; None: it set nothing aside and settled nothing.
        previous: the manifest before it.
        source: digest of the whole source after the load, where it is known.
    """
    if record is None or record["file"] is None:
        return None
    if record["same_source"] and previous is not None and previous.quarantine is not None:
        known = previous.quarantine.get("source")
    else:
        known = None if source is None else source.to_json()
    return {**{name: record[name] for name in ("file", *STATUSES, "digest", "fixes")}, "source": known}
