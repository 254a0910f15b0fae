"""What the warehouse's tests share."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from millrace.core.names import AssetId, load_id
from millrace.core.ports import StageRequest
from millrace.core.schema import Column, Kind, Schema
from millrace.duck import engine

ORDERS = AssetId("silver", "orders")
SCHEMA = Schema(
    (Column("id", "BIGINT", Kind.INT64), Column("amount", "DECIMAL(12,2)", Kind.DECIMAL, True, 12, 2)), ("id",)
)


def request(run: str, base: int, asset: AssetId = ORDERS, step: str = "", **more: object) -> StageRequest:
    """Return the request of a step that loads an asset."""
    step = step or f"load:{asset}"
    values: dict[str, object] = {"inputs": {"bronze.orders": 1}, "how": "member", "schema": SCHEMA, **more}
    return StageRequest(asset=asset, load=load_id(run, step, "warehouse"), run=run, step=step, base=base, **values)  # type: ignore[arg-type]


@pytest.fixture
def parquet(tmp_path: Path) -> Callable[..., list[str]]:
    """Write orders lo..hi into one Parquet file."""

    def write(low: int, high: int, name: str = "orders", factor: str = "1.25") -> list[str]:
        path = tmp_path / f"{name}-{low}-{high}.parquet"
        connection = engine.connect()
        connection.execute(
            f"copy (select i as id, cast(i * {factor} as decimal(12,2)) as amount, 3 as _millrace_seq"
            f" from range({low}, {high}) r(i)) to '{path}'"
        )
        connection.close()
        return [str(path)]

    return write


@pytest.fixture
def child() -> Callable[..., subprocess.Popen[str]]:
    """Start tests/duck/child.py in a process of its own."""

    def start(arguments: Sequence[str], environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
        import os

        return subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("child.py")), *arguments],
            env={**os.environ, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.PIPE,
            text=True,
        )

    return start
