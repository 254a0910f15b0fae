"""Quarantine: rows of a source that are kept out of an asset, exact as they came, with the reason.

Each load that changes it writes one file, the complete state after that load, and its manifest names the file. So it
becomes visible with the rows that it belongs to, in the same commit. An entry counts as dealt with as long as its
source row keeps its digest: D(source) = D(asset less replayed rows) + D(entries: open, replayed and dropped).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from millrace.core.digest import Digest
from millrace.core.names import AssetId
from millrace.core.position import Versions
from millrace.core.quarantine import Balance, Entry
from millrace.core.schema import Schema
from millrace.errors import ContractBroken, StepFailed
from millrace.lake.layout import Folder
from millrace.lake.ledger import Manifest
from millrace.lake.prove import hashable
from millrace.lake.table import OWN, arrow_schema

if TYPE_CHECKING:
    import pyarrow as pa

ENTRY, STATUS, RULE = "_millrace_entry", "_millrace_status", "_millrace_rule"
COLUMN, REASON, DIGEST = "_millrace_column", "_millrace_reason", "_millrace_digest"
SOURCE, BYTES, SINCE = "_millrace_source", "_millrace_bytes", "_millrace_since"
RUN, FIX = "_millrace_run", "_millrace_fix"
SAID = (RULE, COLUMN, REASON, SOURCE, BYTES)
"""Columns beside the asset's own that whoever sets rows aside may give; of these only the reason must be there."""
UNREAD = "readable"
"""The rule that a line of a file breaks that cannot be read into columns."""
UNFIT = "fits"
"""The rule that a row breaks that has values which the lake cannot hold.

They are null in the entry and stand as texts in BYTES, a JSON object; DIGEST is the row's at its source.
"""


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
    """Return rows in the schema of `bad_schema` and DIGEST; what need not be said is null. Raises ContractBroken."""
    import pyarrow as pa

    arrays = []
    wanted = bad_schema(schema).append(pa.field(DIGEST, pa.string()))
    for field in wanted:
        if field.name in bad.schema.names:
            try:
                arrays.append(bad.column(field.name).cast(field.type))
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise ContractBroken(f"{field.name} of a bad row is no {field.type}", detail=[str(error)]) from error
        elif field.name in (*SAID, DIGEST) and field.name != REASON:
            arrays.append(pa.chunked_array([pa.nulls(bad.num_rows, field.type)]))
        else:
            raise ContractBroken(f"rows to set aside lack the column {field.name}")
    return pa.Table.from_arrays(arrays, schema=wanted)


def unfit(rows: pa.Table) -> pa.BooleanArray:
    """Return which rows, set aside or in a state, have values that the lake cannot hold."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if RULE not in rows.schema.names:
        return pa.repeat(False, rows.num_rows)
    return pc.equal(rows.column(RULE), UNFIT).fill_null(False).combine_chunks()


def row_digests(rows: pa.Table, schema: Schema) -> list[str]:
    """Return the digest of each row: its hash where the columns have exact ones, else a hash of its values' text.

    Rows that do not fit the lake keep the one that they came with.
    """
    if hashable(schema):
        from millrace.lake.rowhash import row_hashes

        found = [str(one) for one in row_hashes(rows.select(list(schema.names)), schema)]
        for place, other in enumerate(unfit(rows).to_pylist()):
            if other:
                found[place] = rows.column(DIGEST)[place].as_py()
        return found
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
    import pyarrow.compute as pc

    from millrace.lake.rowhash import digest_table

    given = unfit(rows)
    if not given.true_count:
        return digest_table(rows.select(list(schema.names)), schema)
    sums = rows.filter(given).column(DIGEST).to_pylist()
    rest = digest_table(rows.filter(pc.invert(given)).select(list(schema.names)), schema)
    return rest + Digest(len(sums), sum(map(int, sums)), schema.shape)


def packed(row: pa.Table) -> bytes:
    """Return one row as the bytes of an Arrow stream."""
    import pyarrow as pa

    output = pa.BufferOutputStream()
    with pa.ipc.new_stream(output, row.schema) as stream:
        stream.write_table(row)
    found: bytes = output.getvalue().to_pybytes()
    return found


def unpacked(data: bytes) -> pa.Table:
    """Return the row that `packed` made bytes of."""
    import pyarrow as pa

    found: pa.Table = pa.ipc.open_stream(data).read_all()
    return found


def fixes(state: pa.Table, schema: Schema) -> pa.Table:
    """Return the rows that stand in the asset instead of replayed entries."""
    import pyarrow as pa

    plain = pa.schema([field for field in arrow_schema(schema) if field.name not in OWN])
    held = zip(state.column(STATUS).to_pylist(), state.column(FIX).to_pylist(), strict=True)
    rows = [unpacked(fix).cast(plain) for status, fix in held if status == "replayed"]
    return pa.concat_tables(rows) if rows else plain.empty_table()


def read(folder: Folder, manifest: Manifest | None) -> pa.Table | None:
    """Return the complete state that a manifest names, or None when nothing is in quarantine.

    Raises:
        StepFailed: the file is missing or cannot be read.
    """
    if manifest is None or manifest.quarantine is None:
        return None
    return read_file(folder.quarantine / manifest.quarantine["file"], manifest.entry.asset)


def read_file(path: Path, asset: AssetId) -> pa.Table:
    """Return the state in a file. Raises StepFailed: it is missing or cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path, partitioning=None)
    except (pa.ArrowException, OSError) as error:
        raise StepFailed(
            f"the quarantine of {asset} cannot be read", where=str(path), detail=[str(error)[:200]]
        ) from error


def entries(state: pa.Table | None, asset: AssetId, schema: Schema) -> list[Entry]:
    """Return a state's entries, the oldest first."""
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
                fix=None if fix is None else unpacked(fix).to_pylist()[0],
            )
        )

    def order(entry: Entry) -> tuple[Any, ...]:
        return entry.since, entry.source or "", [(entry.row[name] is not None, entry.row[name]) for name in schema.key]

    return sorted(found, key=order)


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
    compared = manifest.entry.level == "table" or isinstance(manifest.entry.position, Versions)
    return Balance(source, compared, asset, counts["open"], counts["replayed"], counts["dropped"], agree)


def told(rows: pa.Table, key: Sequence[str], examples: int) -> list[str]:
    """Return lines for an error about rows that do not fit: each column, how many, and some of them."""
    counts: Counter[str] = Counter(rows.column(COLUMN).to_pylist())
    lines = []
    for name, count in counts.items():
        shown = [row for row in rows.select([COLUMN, REASON, *key]).to_pylist() if row[COLUMN] == name]
        lines.append(f"{UNFIT}({name}): {count:,} {'row does' if count == 1 else 'rows do'} not fit the lake")
        for row in shown[:examples]:
            named = ", ".join(f"{part} {row[part]}" for part in key)
            lines.append(f"  {row[REASON]}" + (f" ({named})" if named else ""))
    return lines
