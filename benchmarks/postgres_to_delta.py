"""Copy a table of the server in SRC into a Delta lake, every row proven, and say where the time went.

    SRC=postgresql://user:pw@host:port/db python benchmarks/postgres_to_delta.py [TABLE] [WORKERS] [SEGMENT_ROWS]

The lake is thrown away. Beside ConnectorX, which writes one Parquet file and proves nothing:

    python benchmarks/compare.py run --case connectorx='python benchmarks/peers.py connectorx_parquet' \
        --case millrace='python benchmarks/postgres_to_delta.py'
"""

import os
import resource
import sys
import tempfile
import time
from pathlib import Path

from millrace.core.names import AssetId, TableRef, load_id
from millrace.core.plan import Step
from millrace.lake.target import LakeTarget
from millrace.postgres.reader import PostgresReader
from millrace.postgres.session import database_from_url
from millrace.steps.routes import postgres_lake
from millrace.steps.spec import CopySpec


class Run:
    """What a step is told: here nothing but who it is, and nobody listens."""

    run = "benchmark"
    load = load_id(run, "copy", "lake")
    logical_time = "2026-01-01T00:00:00Z"
    retry = False

    def __init__(self):
        self.report = self

    def total(self, rows):
        pass

    def moved(self, rows, size):
        pass

    def note(self, text):
        print(text)

    def stopping(self):
        return False


def main():
    table, workers, rows = [*sys.argv[1:], *("events", "2", "250000")[len(sys.argv) - 1 :]]
    asset = AssetId("bronze", table)
    spec = CopySpec("src", TableRef.parse(table), asset, workers=int(workers), segment_rows=int(rows))
    step = Step("copy", "copy", table, (asset,), target="lake", spec=spec.to_json())
    with tempfile.TemporaryDirectory(prefix="millrace-lake-", dir=os.environ.get("LAKE_DIR")) as folder:
        lake, reader = LakeTarget(Path(folder)), PostgresReader(database_from_url(os.environ["SRC"], "src"))

        def now():
            return time.perf_counter(), time.process_time()

        times = [(0.0, 0.0), now()]
        staged = postgres_lake.stage(spec, reader, lake, step, Run())
        times.append(now())
        proofs = [lake.prove(one) for one in staged]
        times.append(now())
        entry = lake.publish(staged, proofs, {asset: 0})[0]
        times.append(now())
        size = sum(Path(path).stat().st_size for path in lake.files(asset))
    steps = ", ".join(
        f"{name} {after[0] - before[0] if before[0] else 0:.2f} s (CPU {after[1] - before[1]:.2f})"
        for name, before, after in zip(("start", "stage", "prove", "publish"), times, times[1:], strict=False)
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{entry.rows:,} rows, {size / 1e6:.0f} MB: {steps}, peak {peak:.0f} MB, proven: {entry.level}")


if __name__ == "__main__":
    main()
