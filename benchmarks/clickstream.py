"""Clickstream JSON lines into bronze on one processor, every line proven, and where the time goes.

    python benchmarks/clickstream.py [LINES] [ROUNDS]

Each round is `millrace run` of a new project as a process of its own, on one processor, from start to end: reading the
files, setting 1 line in 2,000 aside that is no JSON, writing Parquet, reading it back, one commit. Afterwards the parts
run by themselves in this process, in turn, each on the same lines.
"""

import contextlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COLUMNS = dict.fromkeys(("event_id", "user_id", "session_id", "event_type", "page_url", "timestamp"), "text")
COLUMNS["properties"] = "json"
BAD = 2_000
FILE_LINES = 250_000

MANIFEST = """\
version: 1
name: clicks
layers: {bronze: lake}
environments:
  dev:
    connections: {landing: {type: files, path: ./landing}}
    lake: ./lake
"""
COPY = f"""\
from: landing
to: bronze
tables:
  clickstream:
    files: "**/*.jsonl"
    columns: {json.dumps(COLUMNS)}
    contract: {{bad_rows: quarantine}}
"""


def fill(folder, lines):
    """Write seeded events of about 280 bytes, as a shop's pages send them."""
    chance = random.Random(4)
    kinds = ["page_view", "page_view", "page_view", "add_to_cart", "purchase", "login", "logout"]
    folder.mkdir(parents=True)
    for first in range(0, lines, FILE_LINES):
        with (folder / f"part-{first // FILE_LINES}.jsonl").open("w") as file:
            for number in range(first, min(first + FILE_LINES, lines)):
                product = chance.randrange(2_000)
                event = {
                    "event_id": f"{chance.getrandbits(128):032x}",
                    "user_id": f"u{chance.randrange(50_000)}",
                    "session_id": f"{chance.getrandbits(64):016x}",
                    "event_type": chance.choice(kinds),
                    "page_url": f"https://shop.example.com/products/{product}",
                    "timestamp": f"2026-11-{chance.randrange(1, 21):02}T{chance.randrange(24):02}:{chance.randrange(60):02}:30.125Z",
                    "properties": {"product_id": str(product), "device": chance.choice(["phone", "desktop"])},
                }
                line = json.dumps(event)
                file.write((line[: chance.randrange(1, 200)] if number % BAD == BAD - 1 else line) + "\n")


def run(folder, lines):
    """Run the project once on one processor; return wall seconds, CPU seconds, and MB of memory."""
    for name in ("lake", ".millrace"):
        shutil.rmtree(folder / name, ignore_errors=True)
    subprocess.run(["sync"], check=True)
    start = time.perf_counter()
    child = subprocess.Popen([sys.executable, "-m", "millrace", "run"], cwd=folder, stdout=subprocess.PIPE, text=True)
    out = child.stdout.read()
    _, status, used = os.wait4(child.pid, 0)
    wall = time.perf_counter() - start
    wanted = f"{lines - lines // BAD:,} rows"
    if status or wanted not in out:
        raise SystemExit(f"the run failed, or has not {wanted}:\n{out}")
    return wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def parts(folder, lines):
    """Measure the parts on the first file, each in turn, best of three, as CPU microseconds a line."""
    import pyarrow.parquet as pq

    from millrace.connectors.folder import FileFolder
    from millrace.connectors.json_lines import JsonLines
    from millrace.connectors.lines import LineFile, digest
    from millrace.core.names import AssetId
    from millrace.duck.engine import connect
    from millrace.lake.filehash import digest_files
    from millrace.lake.rowhash import digest_batches
    from millrace.lake.table import writer
    from millrace.lake.target import LakeTarget

    lake, asset = LakeTarget(folder / "lake"), AssetId("bronze", "clickstream")
    files, schema = lake.files(asset), lake.schema(asset)
    table = pq.read_table(files[0]).slice(0, min(lines, FILE_LINES))
    found = FileFolder(folder / "landing", "landing").find("*.jsonl")[0]
    file = LineFile(found, None, limit=10_000_000)
    pieces = list(file.pieces())
    count = sum(map(len, pieces))
    engine = connect(memory_limit="300MB", threads=1)

    def write():
        with writer(folder / "o.parquet", table.schema, table) as output:
            for start in range(0, table.num_rows, 131_072):
                output.write_table(table.slice(start, 131_072))

    work = {
        "SHA-256 of the file": lambda: digest(found),
        "lines, with that": lambda: list(LineFile(found, None, limit=10_000_000).pieces()),
        "JSON into columns": lambda: [JsonLines(engine, COLUMNS).extract(piece, file) for piece in pieces],
        "digest of what was read": lambda: digest_batches(table.to_batches(), schema),
        "writing Parquet": write,
        "reading it back, digest": lambda: digest_files([str(folder / "o.parquet")], schema),
    }
    best = dict.fromkeys(work, float("inf"))
    for _ in range(3):
        for name, part in work.items():
            start = time.process_time()
            part()
            best[name] = min(best[name], time.process_time() - start)
    for name, seconds in best.items():
        print(f"  {name:<26} {seconds / count * 1e6:5.2f} µs a line")


def main():
    lines, rounds = [int(value) for value in [*sys.argv[1:], *("1000000", "3")[len(sys.argv) - 1 :]]]
    with contextlib.suppress(AttributeError):  # not on this system
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory(prefix="millrace-bench-", dir=os.environ.get("BENCH_DIR", "/var/tmp")) as name:
        folder = Path(name)
        (folder / "copies").mkdir()
        (folder / "millrace.yaml").write_text(MANIFEST)
        (folder / "copies" / "clickstream.yaml").write_text(COPY)
        fill(folder / "landing", lines)
        size = sum(path.stat().st_size for path in (folder / "landing").iterdir())
        found = [run(folder, lines) for _ in range(rounds)]
        wall, cpu, memory = (list(one) for one in zip(*found, strict=True))
        print(f"{lines:,} lines, {size / 1e6:,.0f} MB, one processor, {rounds} rounds")
        print(
            f"  wall {min(wall):.2f} s at best, {statistics.median(wall):.2f} s median: {lines / min(wall):,.0f} lines/s"
        )
        print(
            f"  CPU  {min(cpu):.2f} s at best, {statistics.median(cpu):.2f} s median: {lines / min(cpu):,.0f} lines/s"
        )
        print(f"  memory {max(memory):,.0f} MB")
        parts(folder, lines)


if __name__ == "__main__":
    main()
