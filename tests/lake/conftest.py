"""A lake in a temporary folder, and the few steps that every test of it takes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from millrace.core.names import AssetId
from millrace.core.ports import StageRequest
from millrace.core.position import Whole
from millrace.core.schema import Column, Kind, Schema
from millrace.core.segment import Segment
from millrace.core.staged import LedgerEntry, Staged
from millrace.lake.rowhash import digest_table
from millrace.lake.target import LakeTarget

ORDERS = AssetId("bronze", "orders")
SCHEMA = Schema(
    (
        Column("id", "bigint", Kind.INT64, nullable=False, hashed="int"),
        Column("name", "text", Kind.TEXT, hashed="text"),
        Column("price", "numeric(12,2)", Kind.DECIMAL, precision=12, scale=2, hashed="text"),
    ),
    ("id",),
)
ARROW = pa.schema([("id", pa.int64()), ("name", pa.string()), ("price", pa.decimal128(12, 2))])
PARTS = 4
PART_ROWS = 50


def table(rows: Sequence[tuple[Any, ...]]) -> pa.Table:
    """Return rows (id, name, price) as Arrow."""
    from decimal import Decimal

    columns = list(zip(*rows, strict=True)) if rows else [(), (), ()]
    prices = [None if price is None else Decimal(str(price)) for price in columns[2]]
    return pa.Table.from_arrays(
        [pa.array(columns[0], pa.int64()), pa.array(columns[1], pa.string()), pa.array(prices, pa.decimal128(12, 2))],
        schema=ARROW,
    )


def part(number: int) -> pa.Table:
    """Return one of PARTS parts of the table that kill tests load."""
    start = number * PART_ROWS
    return table([(key, f"name {key}", f"{key}.25") for key in range(start, start + PART_ROWS)])


@dataclass
class Lake:
    """A target, and what a step does with it."""

    target: LakeTarget
    asset: AssetId = ORDERS
    schema: Schema = SCHEMA

    def request(self, load: int, how: str = "replace", base: int | None = None, run: str | None = None) -> StageRequest:
        if base is None:
            entry = self.target.ledger(self.asset)
            base = entry.seq if entry else 0
        return StageRequest(self.asset, load, run or f"run{load}", f"copy:{self.asset}", base, how, self.schema, {})

    def stage(self, load: int, data: pa.Table, how: str = "replace", **options: Any) -> Staged:
        stage = self.target.open_stage(self.request(load, how, **options))
        stage.write(Segment.whole(), data.to_reader(), digest_table(data, self.schema))
        return stage.close(Whole())

    def publish(self, staged: Staged) -> LedgerEntry:
        (entry,) = self.target.publish([staged], [self.target.prove(staged)], {self.asset: staged.base})
        return entry

    def put(self, load: int, data: pa.Table, how: str = "replace", **options: Any) -> LedgerEntry:
        return self.publish(self.stage(load, data, how, **options))

    def rows(self, seq: int | None = None) -> list[tuple[Any, ...]]:
        """Return the visible rows of the schema's columns, sorted."""
        files = self.target.files(self.asset, seq)
        found: list[tuple[Any, ...]] = []
        for file in files:
            found += [
                tuple(row.values())
                for row in pq.read_table(file, columns=list(self.schema.names), partitioning=None).to_pylist()
            ]
        return sorted(found, key=repr)

    def load_parts(self, load: int, run: str | None = None) -> LedgerEntry | None:
        """Load PARTS parts as a copy step does: keep what a killed attempt left and still agrees, adopt what it published."""
        entry = self.target.ledger(self.asset)
        if entry is not None and entry.load == load:
            return entry
        stage = self.target.open_stage(self.request(load, run=run))
        expected = {f"range:{number}": digest_table(part(number), self.schema) for number in range(PARTS)}
        done = stage.done()
        self.kept = [name for name in done if expected.get(name) == done[name]]
        stage.drop([name for name in done if name not in self.kept])
        for number in range(PARTS):
            segment = Segment(f"range:{number}", "range", number)
            if segment.id not in self.kept:
                stage.write(segment, part(number).to_reader(), expected[segment.id])
        return self.publish(stage.close(Whole(), expected))

    def upsert_part(self, load: int) -> LedgerEntry | None:
        """Change ten rows and insert one."""
        import duckdb

        entry = self.target.ledger(self.asset)
        if entry is not None and entry.load == load:
            return entry
        data = table([(key, "changed", None) for key in [*range(10), 500]])
        scratch = self.target.root.parent / f"changes-{os.getpid()}.parquet"
        pq.write_table(data, scratch)
        with duckdb.connect() as connection:
            staged = self.target.upsert(
                self.request(load, "upsert"),
                [scratch],
                self.schema,
                connection,
                position=Whole(),
                expected={"changes": digest_table(data, self.schema)},
            )
        return self.publish(staged)

    def everything(self) -> list[str]:
        """Return every file in the asset's folder, relative, without logs and locks."""
        folder = self.target.folder(self.asset).path
        found = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
        return sorted(name for name in found if not name.startswith("_delta_log") and not name.endswith("/lock"))


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(LakeTarget(tmp_path / "lake"))


@pytest.fixture(name="part")
def part_fixture() -> Callable[[int], pa.Table]:
    return part


@pytest.fixture
def child(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start a process that works on the test's lake: `child("load_parts", 7, MILLRACE_KILL_AT="lake.prove")`."""

    def start(call: str, *arguments: Any, **environment: str) -> subprocess.Popen[str]:
        code = (
            "import importlib.util, os, sys, json\n"
            "spec = importlib.util.spec_from_file_location('lake_conftest', sys.argv[1])\n"
            "module = importlib.util.module_from_spec(spec); sys.modules['lake_conftest'] = module\n"
            "spec.loader.exec_module(module)\n"
            "from millrace.testing.killpoints import arm\n"
            "arm(os.environ)\n"
            "lake = module.Lake(module.LakeTarget(sys.argv[2]))\n"
            "getattr(lake, sys.argv[3])(*json.loads(sys.argv[4]))\n"
        )
        import json

        return subprocess.Popen(
            [sys.executable, "-c", code, __file__, str(tmp_path / "lake"), call, json.dumps(arguments)],
            env={**os.environ, **environment},
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def _together(*calls: Callable[[], object]) -> list[object]:
    """Run some calls at the same time; returns their results or errors."""
    barrier = threading.Barrier(len(calls))
    results: list[object] = [None] * len(calls)

    def run(place: int) -> None:
        barrier.wait()
        try:
            results[place] = calls[place]()
        except Exception as error:
            results[place] = error

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.fixture
def together() -> Callable[..., list[object]]:
    """Run some calls at the same time; gives their results or errors."""
    return _together
