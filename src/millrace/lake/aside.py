"""Setting rows aside while staging: what becomes of older entries, and the file with the state after the load."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from millrace.core.digest import Digest
from millrace.core.ports import StageRequest
from millrace.core.quarantine import STATUSES
from millrace.core.schema import Schema
from millrace.lake import ledger, log
from millrace.lake.layout import Folder, disk, sync_file, sync_folder
from millrace.lake.ledger import Manifest
from millrace.lake.quarantine import (
    DIGEST,
    ENTRY,
    FIX,
    RUN,
    SINCE,
    STATUS,
    bad_schema,
    digest_of,
    fitted,
    fixes,
    packed,
    read,
    row_digests,
    row_keys,
    state_schema,
    unpacked,
)
from millrace.lake.table import writer

if TYPE_CHECKING:
    import pyarrow as pa


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
        self._other: tuple[pa.Table, Schema] | None = None

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
            if state is not None and manifest is not None and not state.schema.equals(state_schema(self.schema)):
                self._other = state, manifest.schema  # only a load of the whole source may have other columns
                state = None
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

        bad = pa.concat_tables(self._bad or [fitted(bad_schema(self.schema).empty_table(), self.schema)])
        if self._other is not None:
            older = _widened(*self._other, bad, self.schema)
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
        touched = set(keys) if self._schema.key else set()  # a null is a key like any other
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


def _widened(older: pa.Table, before: Schema, bad: pa.Table, schema: Schema) -> pa.Table:
    """Return the entries of before columns were added, as far as their rows are among the bad ones.

    A row is the same when the columns that it had are. A fixed row takes the new columns from its source row. Where
    columns went or were retyped nothing can be told, and all entries are new.
    """
    import pyarrow as pa

    wanted = state_schema(schema)
    if any(name not in schema.names or schema[name].type != before[name].type for name in before.names):
        return wanted.empty_table()
    known = {field.name for field in older.schema}
    now = row_digests(bad, schema)
    keys = [(key, digest) for key, digest in zip(row_keys(bad, before.key), row_digests(bad, before), strict=True)]
    places = {one: place for place, one in enumerate(keys)}
    rows = []
    for key, row in zip(row_keys(older, before.key), older.to_pylist(), strict=True):
        place = places.get((key, row[DIGEST]))
        if place is None:
            continue
        source = bad.slice(place, 1)
        added = [name for name in schema.names if name not in known]
        fix = row[FIX]
        if fix is not None:
            wide = unpacked(fix)
            for name in added:
                wide = wide.append_column(wanted.field(name), source.column(name))
            fix = packed(wide.select(list(schema.names)))
        more = {name: source.column(name)[0].as_py() for name in added}
        rows.append({**row, **more, DIGEST: now[place], FIX: fix})
    return pa.Table.from_pylist(rows, schema=wanted)


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
