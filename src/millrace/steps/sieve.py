"""The sieve: with `contract: {bad_rows: quarantine}`, rows that break a blocking row rule are set aside while staging.

So are rows with values that the lake cannot hold, which the caller has found while reading: no rule looks at them.

One scan of the staged Parquet finds them. When there are none nothing more happens; otherwise only the files that
hold some are written again, without them. The proof then counts what was set aside, and the checks in it see the
asset as it would be, where the same rules have to hold.
"""

from __future__ import annotations

import datetime as dt
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from millrace.core.names import AssetId
from millrace.core.plan import Step
from millrace.core.ports import Context
from millrace.core.schema import Schema
from millrace.core.segment import Segment
from millrace.core.staged import CheckResult, LedgerEntry
from millrace.duck import inputs
from millrace.errors import ContractBroken
from millrace.lake import quarantine
from millrace.lake.layout import disk
from millrace.lake.stage import LakeStage
from millrace.quality import sql
from millrace.quality.gate import reason, run_checks
from millrace.quality.rules import Expression, RowRule, Rule, parse_checks
from millrace.steps.checking import querying
from millrace.steps.contracts import local_time, most_bad

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

ROWS = "millrace_sieve"
"""Schema of the engine in which the staged rows are seen under the asset's name."""
EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class _Broken:
    """Rows of some files that break rules.

    Attributes:
        rows: how many rows were looked at.
        rules: those that quarantine.
        places: row numbers by file, each with which of the rules it breaks.
    """

    rows: int
    rules: tuple[RowRule, ...]
    places: dict[str, list[tuple[int, tuple[bool, ...]]]]

    def reasons(self, path: str, bad: pa.Table) -> pa.Table:
        """Return the bad rows of a file with what they break."""
        import pyarrow as pa

        said: dict[str, list[str]] = {quarantine.RULE: [], quarantine.COLUMN: [], quarantine.REASON: []}
        for row, (_, flags) in zip(bad.to_pylist(), self.places[path], strict=True):
            rules = [rule for rule, broken in zip(self.rules, flags, strict=True) if broken]
            said[quarantine.RULE].append(rules[0].name)
            said[quarantine.COLUMN].append("" if isinstance(rules[0], Expression) else rules[0].column)
            said[quarantine.REASON].append("; ".join(reason(rule, row) for rule in rules))
        for name, values in said.items():
            bad = bad.append_column(name, pa.array(values, pa.string()))
        return bad


@dataclass(frozen=True, slots=True)
class Sieve:
    """The row rules of one asset, and how many rows they may take out.

    Attributes:
        key: columns that tell rows apart in errors.
        max_bad: share of a load's rows that may be set aside.
        place: where the contract stands, file and line.
        where: the file or step that errors of the engine name.
        last_good: when the version was published that stays, if any.
    """

    asset: AssetId
    rules: tuple[Rule, ...]
    key: tuple[str, ...]
    max_bad: float
    place: str
    where: str
    now: dt.datetime
    last_good: str | None

    def stage(self, connection: duckdb.DuckDBPyConnection, opened: LakeStage, unfit: pa.Table | None = None) -> None:
        """Set the bad rows of an open stage aside; it is closed afterwards.

        Args:
            unfit: rows that are not in its files, since the lake cannot hold them; see `LakeStage.set_aside`.

        Raises:
            ContractBroken: more than `max_bad` of them.
        """
        files = opened.files()
        paths = [path for found in files.values() for path in found]
        schema = opened.request.schema
        older = opened.quarantined()
        broken = self._find(connection, paths, schema, older)
        bad: list[pa.Table] = [] if unfit is None else [unfit]
        for segment, found in files.items():
            if any(str(path) in broken.places for path in found):
                # without a digest: a killed attempt's leftover must not count as the whole segment
                opened.write_batches(Segment(segment, "all"), self._kept(found, broken, bad))
        rows = self._together(bad, schema)
        self._limit(connection, rows, _rows(broken, unfit), older, schema)
        opened.set_aside(rows, reopened=self._reopened(connection, older, schema))

    def changes(
        self,
        connection: duckdb.DuckDBPyConnection,
        files: Sequence[Path],
        schema: Schema,
        older: pa.Table | None,
        *,
        again: bool = False,
        unfit: pa.Table | None = None,
    ) -> tuple[pa.Table, list[str]]:
        """Take the bad rows out of files with changes.

        Args:
            unfit: as for `stage`.
            again: rows that lie in quarantine already are read again: they are none too many.

        Returns:
            the rows, for `LakeTarget.upsert(bad=…)`, and the ids of replayed entries whose fixed rows break the rules
            of today.

        Raises:
            ContractBroken: more than `max_bad` of them.
        """
        import pyarrow.parquet as pq

        broken = self._find(connection, files, schema, older, again=again)
        bad: list[pa.Table] = [] if unfit is None else [unfit]
        for path in files:
            if str(path) not in broken.places:
                continue
            half = path.with_suffix(".sieved")
            with disk(path.parent, f"setting rows of {self.asset} aside"):
                with pq.ParquetWriter(half, pq.read_schema(path)) as writer:
                    for batch in self._kept([path], broken, bad):
                        writer.write_batch(batch)
                half.replace(path)
        rows = self._together(bad, schema)
        self._limit(connection, rows, _rows(broken, unfit), older, schema, again=again)
        return rows, self._reopened(connection, older, schema)

    def _find(
        self,
        connection: duckdb.DuckDBPyConnection,
        files: Iterable[Path],
        schema: Schema,
        older: pa.Table | None,
        *,
        again: bool = False,
    ) -> _Broken:
        """Look for broken rows; where they are clearly too many, none is fetched. Raises ContractBroken."""
        paths = [str(path) for path in files]
        table = self._attached(connection, paths, schema)
        query = querying(connection, self.where)
        rules = sql.quarantining(self.rules, table)
        if not rules:
            return _Broken(_rows_in(paths), (), {})
        ((rows, count),) = query(sql.count_broken(rules, table), ())
        if not count:
            return _Broken(rows, rules, {})
        if count - len(_settled(older, schema, again=again)) > most_bad(self.max_bad, rows):
            raise self._too_many(connection, rules, count, rows, [])
        places: dict[str, list[tuple[int, tuple[bool, ...]]]] = {}
        for path, row, *flags in query(sql.broken_rows(rules, table, (inputs.FILE, inputs.ROW)), ()):
            places.setdefault(path, []).append((row, tuple(flags)))
        return _Broken(rows, rules, places)

    def _attached(self, connection: duckdb.DuckDBPyConnection, files: Sequence[str], schema: Schema) -> sql.Table:
        """Let the engine see some files under the asset's name, in a schema of the sieve's."""
        seen = AssetId(ROWS, self.asset.name)
        inputs.attach(connection, seen, files, schema, located=True)
        relation = (seen.layer, seen.name)
        found = querying(connection, self.where)(sql.describe(relation), ())
        types = {row[0]: row[1] for row in found if row[0] not in (inputs.FILE, inputs.ROW)}
        return sql.Table(self.asset, relation, types, self.now)

    def _kept(self, files: Iterable[Path], broken: _Broken, bad: list[pa.Table]) -> Iterator[pa.RecordBatch]:
        """Yield the good rows of some files; collect the bad ones with their reasons."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        for path in files:
            places = [row for row, _ in broken.places.get(str(path), ())]
            taken: list[pa.RecordBatch] = []
            at = first = 0
            with pq.ParquetFile(path, pre_buffer=False) as file:
                for batch in file.iter_batches():
                    last = first
                    while last < len(places) and places[last] < at + batch.num_rows:
                        last += 1
                    here = [row - at for row in places[first:last]]
                    taken.append(batch.take(pa.array(here, pa.int64())))
                    mask = [True] * batch.num_rows
                    for row in here:
                        mask[row] = False
                    yield batch.filter(pa.array(mask)) if here else batch
                    at, first = at + batch.num_rows, last
            if places:
                bad.append(broken.reasons(str(path), pa.Table.from_batches(taken)))

    def _together(self, bad: Sequence[pa.Table], schema: Schema) -> pa.Table:
        import pyarrow as pa

        none = quarantine.bad_schema(schema).empty_table()
        return pa.concat_tables([quarantine.fitted(table, schema) for table in (none, *bad)])

    # how many

    def _limit(
        self,
        connection: duckdb.DuckDBPyConnection,
        bad: pa.Table,
        rows: int,
        older: pa.Table | None,
        schema: Schema,
        *,
        again: bool = False,
    ) -> None:
        """Raise ContractBroken when more rows are bad than allowed; replayed and dropped ones do not count."""
        settled = _settled(older, schema, again=again)
        found = zip(
            quarantine.row_keys(bad, schema.key), quarantine.row_digests(bad, schema) if settled else (), strict=False
        )
        count = bad.num_rows - sum(one in settled for one in found)
        if count > most_bad(self.max_bad, rows):
            import pyarrow.compute as pc

            unfit = quarantine.unfit(bad)
            said = quarantine.told(bad.filter(unfit), schema.key, EXAMPLES)
            with tempfile.TemporaryDirectory(prefix="millrace-") as folder:
                broken = bad.filter(pc.invert(unfit)).select(list(schema.names))
                table = self._attached(connection, [_written(broken, folder)], schema)
                raise self._too_many(connection, sql.quarantining(self.rules, table), count, rows, said)

    def _too_many(
        self, connection: duckdb.DuckDBPyConnection, rules: Sequence[RowRule], count: int, rows: int, said: list[str]
    ) -> ContractBroken:
        results = run_checks(
            rules,
            querying(connection, self.where),
            (ROWS, self.asset.name),
            key=self.key,
            now=self.now,
        )
        return too_many(self.asset, results, count, rows, self.max_bad, self.last_good, self.place, said)

    # what was replayed

    def _reopened(self, connection: duckdb.DuckDBPyConnection, older: pa.Table | None, schema: Schema) -> list[str]:
        """Return the ids of replayed entries whose fixed rows break the rules: these have become stricter since."""
        if older is None:
            return []
        statuses = zip(
            older.column(quarantine.ENTRY).to_pylist(), older.column(quarantine.STATUS).to_pylist(), strict=True
        )
        replayed = [name for name, status in statuses if status == "replayed"]
        if not replayed:
            return []
        with tempfile.TemporaryDirectory(prefix="millrace-") as folder:
            file = _written(quarantine.fixes(older, schema), folder)
            broken = self.broken(connection, [Path(file)], schema)
        return [replayed[row] for row in broken]

    def broken(
        self, connection: duckdb.DuckDBPyConnection, files: Sequence[Path], schema: Schema
    ) -> dict[int, list[RowRule]]:
        """Return the rows of a file that break rules: their numbers, and which rules."""
        table = self._attached(connection, [str(path) for path in files], schema)
        rules = sql.quarantining(self.rules, table)
        if not rules:
            return {}
        found = querying(connection, self.where)(sql.broken_rows(rules, table, (inputs.ROW,)), ())
        return {row: [rule for rule, broken in zip(rules, flags, strict=True) if broken] for row, *flags in found}


def _rows(broken: _Broken, unfit: pa.Table | None) -> int:
    """Return how many rows a load has read."""
    return broken.rows + (0 if unfit is None else unfit.num_rows)


def _rows_in(paths: Iterable[str]) -> int:
    import pyarrow.parquet as pq

    return sum(pq.read_metadata(path).num_rows for path in paths)


def too_many(
    asset: AssetId,
    results: Sequence[CheckResult],
    count: int,
    rows: int,
    max_bad: float,
    last_good: str | None,
    place: str,
    said: Sequence[str] = (),
) -> ContractBroken:
    """Return the error for more bad rows than a contract allows.

    Args:
        results: of the rules on the load's rows.
        count: how many are bad of how many `rows`.
        max_bad, place: of the contract.
        last_good: when the version was published that stays, if any.
        said: what else is to be told, before the results.
    """
    detail = [*said]
    for result in results:
        if not result.passed:
            detail += [f"{result.name}: {result.detail}", *(f"  {line}" for line in result.sample[:EXAMPLES])]
    stays = f" ({local_time(last_good)})" if last_good else ""
    limit = f"{max_bad:g}" + (f" ({most_bad(max_bad, rows):,} rows)" if max_bad else "")
    noun = "row" if rows == 1 else "rows"
    return ContractBroken(
        f"{asset} was not published: {count:,} of {rows:,} {noun} broke the contract and max_bad is {limit}",
        detail=[*detail, f"the last good version{stays} stays"] if last_good else detail,
        hint=f"mend them at the source, or allow more of them in quarantine: max_bad of the contract, {place}",
    )


def sieve_of(
    step: Step,
    asset: AssetId,
    key: Sequence[str],
    ctx: Context,
    entry: LedgerEntry | None,
    *,
    values: bool = False,
) -> Sieve | None:
    """Return the sieve of an asset, or None where its contract sets nothing aside.

    Args:
        step: its spec has `contract` and `checks`.
        asset: what the step makes.
        key: the asset's key.
        ctx: of the step.
        entry: the ledger's, for errors.
        values: rows may be set aside for other reasons than checks.
    """
    contract = step.spec.get("contract") or {}
    checks = step.spec.get("checks") or {}
    if contract.get("bad_rows") != "quarantine" or not (checks or values):
        return None
    return Sieve(
        asset=asset,
        rules=parse_checks(checks, asset),
        key=tuple(key),
        max_bad=float(contract["max_bad"]),
        place=str(contract["place"]),
        where=str(step.spec.get("path", step.label)),
        now=dt.datetime.fromisoformat(ctx.logical_time),
        last_good=entry.time if entry else None,
    )


def _settled(older: pa.Table | None, schema: Schema, *, again: bool = False) -> set[tuple[tuple[str | None, ...], str]]:
    """Return key and digest of the entries that somebody has dealt with; with `again` of all."""
    if older is None:
        return set()
    found = zip(
        quarantine.row_keys(older, schema.key),
        older.column(quarantine.DIGEST).to_pylist(),
        older.column(quarantine.STATUS).to_pylist(),
        strict=True,
    )
    return {(key, digest) for key, digest, status in found if again or status != "open"}


def _written(rows: pa.Table, folder: str) -> str:
    import pyarrow.parquet as pq

    path = str(Path(folder) / "rows.parquet")
    pq.write_table(rows, path)
    return path
