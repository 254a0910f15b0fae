"""The step kind `quarantine`: entries are replayed or dropped, as a load of its own through the same doors.

No plan has it; the command `millrace quarantine` makes one. The load takes the place of the step that makes the
asset: its key and lease, and the position, inputs and code of the load before, since the source has not moved. So the
next run finds nothing to do, and the unchanged bad row undoes nothing.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from millrace.core.plan import Freshness, Step
from millrace.core.ports import Context, StageRequest
from millrace.core.schema import Column, Kind, Schema
from millrace.core.segment import Segment
from millrace.core.staged import LedgerEntry, Proof, Staged
from millrace.duck import engine
from millrace.errors import UsageError
from millrace.lake import quarantine
from millrace.lake.quarantine import BYTES, ENTRY, FIX, REASON, RULE, STATUS, UNFIT, UNREAD
from millrace.lake.table import arrow_type
from millrace.lake.target import LakeTarget
from millrace.postgres.target import PostgresTarget
from millrace.quality.gate import reason
from millrace.steps import postgres_checks, postgres_quarantine
from millrace.steps.checking import check_lake_stage
from millrace.steps.entries import check_set, chosen, nothing_holds, nothing_there
from millrace.steps.resources import Resources
from millrace.steps.sieve import sieve_of

if TYPE_CHECKING:
    import pyarrow as pa

SEGMENT = "quarantine"


@dataclass(frozen=True)
class _Work:
    """What the parts of one staging share; `state` is the whole published quarantine."""

    step: Step
    ctx: Context
    lake: LakeTarget
    entry: LedgerEntry
    schema: Schema
    state: pa.Table

    def request(self, how: str) -> StageRequest:
        return StageRequest(
            asset=self.entry.asset,
            load=self.ctx.load,
            run=self.ctx.run,
            step=self.step.key,
            base=self.entry.seq,
            how=how,
            schema=self.schema,
            inputs=self.entry.inputs,
            code=self.entry.code,
            date=self.entry.date,
            partitions=self.lake.partitions(self.entry.asset),
        )


class QuarantineStep:
    """Replays entries (`spec["action"]` replay, `set`: columns and values as text) or drops them.

    `spec["entries"]` are ids or their beginnings; none: all open ones.
    """

    kind: ClassVar[str] = "quarantine"

    def __init__(self, resources: Resources) -> None:
        self._resources = resources

    def fresh(self, step: Step, ctx: Context) -> Freshness:
        """Somebody asked for it."""
        return Freshness(False, "asked for")

    def stage(self, step: Step, ctx: Context) -> tuple[Staged, ...]:
        """Stage the fixed rows, or nothing but the entries' new status.

        Raises:
            NotFound: there is no such entry.
            UsageError: an entry is not open, or a value does not fit its column.
            ContractBroken: none of the rows holds the rules.
        """
        (asset,) = step.assets
        lake = ctx.target(step.target)
        if isinstance(lake, PostgresTarget):
            return (postgres_quarantine.stage(lake, asset, step, ctx),)
        assert isinstance(lake, LakeTarget)  # noqa: S101 - the command names it
        entry = lake.ledger(asset)
        state = None if entry is None else lake.quarantine(asset, entry.seq)
        if entry is None or state is None:
            raise nothing_there(asset)
        work = _Work(step, ctx, lake, entry, lake.schema(asset, entry.seq), state)
        ids, statuses = state.column(ENTRY).to_pylist(), state.column(STATUS).to_pylist()
        places = chosen(asset, ids, statuses, step.spec["entries"])
        return (_drop(work, places) if step.spec["action"] == "drop" else self._replay(work, places),)

    def prove(self, step: Step, staged: Sequence[Staged], ctx: Context) -> tuple[Proof, ...]:
        """Read back what was staged, and run all checks on what the asset would be."""
        (one,) = staged
        lake = ctx.target(step.target)
        if isinstance(lake, PostgresTarget):
            proof = lake.prove(one)
            return (replace(proof, checks=postgres_checks.check_stage(lake, one, step, ctx)),)
        assert isinstance(lake, LakeTarget)  # noqa: S101 - see stage
        proof, before = lake.prove(one), lake.ledger(one.asset)
        if one.how == "position" and before is not None:
            proof = replace(proof, level=before.level)  # no row moved: what was proven of them still is
        checks = check_lake_stage(self._resources, lake, one, step, ctx)
        return (replace(proof, checks=checks),)

    def _replay(self, work: _Work, places: Sequence[int]) -> Staged:
        rows = _fixed(work, places)
        limits = {"memory_limit": self._resources.memory_limit, "threads": self._resources.threads}
        connecting = engine.connect(**limits, scratch=work.ctx.scratch() / "spill")  # type: ignore[arg-type]
        with contextlib.closing(connecting) as connection:
            file = work.ctx.scratch() / "replayed.parquet"
            good = _holding(work, rows, places, connection, file)
            rows, places = rows.take(good), [places[number] for number in good]
            _write(rows, file)
            state = _changed(work, places, "replayed", rows)
            expected = {SEGMENT: quarantine.digest_of(rows, work.schema)}
            if work.schema.key:
                return work.lake.upsert(
                    work.request("upsert"),
                    [file],
                    work.schema,
                    connection,
                    position=work.entry.position,
                    expected=expected,
                    state=state,
                )
        stage = work.lake.open_stage(work.request("append"))
        stage.drop(stage.left())
        stage.write_batches(Segment(SEGMENT, "all"), rows.to_batches(), expected[SEGMENT])
        stage.put_state(state)
        return stage.close(work.entry.position, expected)


def _drop(work: _Work, places: Sequence[int]) -> Staged:
    stage = work.lake.open_stage(work.request("position"))
    stage.put_state(_changed(work, places, "dropped"))
    return stage.close(work.entry.position, {})


def _changed(work: _Work, places: Sequence[int], status: str, rows: pa.Table | None = None) -> pa.Table:
    """Return the state in which some entries have another status, and those replayed their fixed rows."""
    import pyarrow as pa

    state = work.state
    statuses, fixes = state.column(STATUS).to_pylist(), state.column(FIX).to_pylist()
    for number, place in enumerate(places):
        statuses[place] = status
        fixes[place] = None if rows is None else quarantine.packed(rows.slice(number, 1))
    for name, values in ((STATUS, statuses), (FIX, fixes)):
        at = state.schema.get_field_index(name)
        state = state.set_column(at, state.schema.field(at), pa.array(values, state.schema.field(at).type))
    return state


# --- rows ----------------------------------------------------------------------------------------------------------


def _fixed(work: _Work, places: Sequence[int]) -> pa.Table:
    """Return the entries' rows with the columns that are set. Raises UsageError."""
    import pyarrow as pa

    rows = work.state.select(list(work.schema.names)).take(pa.array(places, pa.int64()))
    changes: Mapping[str, str] = work.step.spec["set"]
    for name, text in changes.items():
        check_set(work.entry.asset, name, work.schema.names, work.schema.key)
        at = rows.schema.get_field_index(name)
        value = _value(work.schema[name], text)
        rows = rows.set_column(at, rows.schema.field(at), pa.concat_arrays([value] * rows.num_rows))
    return rows


def _value(column: Column, text: str) -> pa.Array:
    """Return a value of a column from its text, exact; the word null is no value. Raises UsageError."""
    import pyarrow as pa

    kind = arrow_type(column)
    if text == "null":
        return pa.nulls(1, kind)
    try:
        if column.kind in (Kind.TIMESTAMP, Kind.TIMESTAMPTZ):
            moment = dt.datetime.fromisoformat(text)
            return pa.array([moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)], kind)
        return pa.array([text]).cast(kind)
    except (pa.ArrowException, ValueError) as error:
        raise UsageError(f"{text!r} does not fit {column.name}, which is {column.type}") from error


def _write(rows: pa.Table, file: Path) -> None:
    import pyarrow.parquet as pq

    pq.write_table(rows, file)


def _holding(work: _Work, rows: pa.Table, places: Sequence[int], connection: Any, file: Path) -> list[int]:
    """Return the numbers of the rows that hold the rules; tell of the others. Raises ContractBroken when none does."""
    unread = {
        number: "it could not be read into columns; put it right in a new file, then drop this entry"
        for number, place in enumerate(places)
        if work.state.column(RULE)[place].as_py() == UNREAD
    }
    unset = {
        number: str(work.state.column(REASON)[place])
        for number, place in enumerate(places)
        if work.state.column(RULE)[place].as_py() == UNFIT
        and not json.loads(work.state.column(BYTES)[place].as_py()).keys() <= work.step.spec["set"].keys()
    }
    broken: dict[int, str] = {}
    for column in work.schema.columns:
        if not column.nullable:
            values = enumerate(rows.column(column.name).to_pylist())
            broken |= {number: f"{column.name} is null" for number, value in values if value is None}
    sieve = sieve_of(work.step, work.entry.asset, work.schema.key, work.ctx, work.entry)
    if sieve is not None:
        _write(rows, file)
        for number, rules in sieve.broken(connection, [file], work.schema).items():
            row = rows.slice(number, 1).to_pylist()[0]
            broken[number] = "; ".join(reason(rule, row) for rule in rules)
    broken |= {**unset, **unread}
    told = [f"{work.state.column(ENTRY)[places[number]]}: {why}" for number, why in sorted(broken.items())]
    good = [number for number in range(rows.num_rows) if number not in broken]
    if not good:
        raise nothing_holds(work.entry.asset, told)
    for line in told:
        work.ctx.report.note(f"stays open: {line}")
    return good
