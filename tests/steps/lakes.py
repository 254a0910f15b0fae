"""A project that copies one table of PostgreSQL into a lake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
import pyarrow.parquet as pq

from millrace.app import open_house
from millrace.app.verify import verify
from millrace.core.names import AssetId
from millrace.engine.records import RunResult
from millrace.engine.session import RunOptions
from millrace.lake.quarantine import Entry
from millrace.lake.target import LakeTarget

T = AssetId("bronze", "t")
MANIFEST = """
version: 1
name: t
layers: {bronze: lake}
environments: {dev: {lake: ./lake, connections: {src: {type: postgres, url: "${env:SRC}"}}}}
"""


class Lake:
    """A project that copies one table into a lake."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.lake = LakeTarget(folder / "lake")
        self.source = psycopg.connect(url, autocommit=True)
        (folder / "copies").mkdir()
        (folder / "millrace.yaml").write_text(MANIFEST)

    def copy(self, options: str, contract: str = "bad_rows: quarantine") -> None:
        text = f"from: src\nto: bronze\ntables: {{t: {{{options}, contract: {{{contract}}}}}}}\n"
        (self.folder / "copies/src.yaml").write_text(text)

    def execute(self, *statements: str) -> None:
        for statement in statements:
            self.source.execute(statement)  # type: ignore[call-overload]

    def run(self, **options: Any) -> RunResult:
        with open_house(self.folder, **options) as house:
            return house.run(house.plan(), options=RunOptions(**options), show_as="silent")

    def good(self, **options: Any) -> str:
        """Run; return the copy's status and line."""
        (step,) = self.run(**options).steps
        if step.error is not None:
            raise step.error
        return f"{step.status}: {step.message}"

    def rows(self) -> dict[int, dict[str, Any]]:
        found = [row for path in self.lake.files(T) for row in pq.read_table(path, partitioning=None).to_pylist()]
        assert len({row["id"] for row in found}) == len(found)
        return {row["id"]: row for row in found}

    def entries(self) -> dict[str | None, Entry]:
        return {entry.key["id"]: entry for entry in self.lake.entries(T)}

    def sums(self) -> tuple[int, int, int, int]:
        found = self.lake.balance(T)
        assert found.agree is not False
        return found.source, found.asset, found.open, found.replayed

    def verified(self) -> bool:
        with open_house(self.folder) as house:
            return all(one.good for one in verify(house, [], 5))
