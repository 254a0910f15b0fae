"""The template's shop at some sizes, in a memory limit: seconds, CPU and memory of a first run, and of two more.

    python benchmarks/shop.py [ORDERS ...]                  default: 1000000
    MEMORY=2GB python benchmarks/shop.py 1000000 10000000   as root, with cgroups: all of millrace below a limit

Each run is `millrace run` of the whole project as a process of its own, dbt and page included; the source is a throwaway
server outside the limit. There is one clickstream event for ten orders. The third run comes after one order in 1,000 has
changed, spread over the whole table, so that every file of the lake holds some.
"""

import contextlib
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg

from millrace.app import init_project
from millrace.templates.shop_events import write_events
from millrace.templates.shop_source import fill
from millrace.testing.servers import temporary_postgres

SETTINGS = {"shared_buffers": "256MB", "synchronous_commit": "off", "max_wal_size": "4GB"}
CHANGE = "update orders set status = 'cancelled', updated_at = now() where order_id % 1000 = 5"
UNITS = {"MB": 2**20, "GB": 2**30}


@contextlib.contextmanager
def limited(text: str | None) -> Iterator[Path | None]:
    """Make a cgroup with a memory limit like `2GB`, or none; page cache counts, and is given back first."""
    if not text:
        yield None
        return
    new = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    group = Path("/sys/fs/cgroup" if new else "/sys/fs/cgroup/memory") / f"millrace-bench-{os.getpid()}"
    group.mkdir()
    try:
        name = "memory.max" if new else "memory.limit_in_bytes"
        (group / name).write_text(str(int(float(text[:-2]) * UNITS[text[-2:]])))
        yield group
    finally:
        group.rmdir()


def spent() -> float:
    """Return the CPU seconds of the commands that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run(folder: Path, url: str, group: Path | None, what: str, orders: int) -> None:
    """Run the project once and print what it took."""
    command = [sys.executable, "-m", "millrace", "run"]
    if group is not None:
        command = ["sh", "-c", 'echo $$ > "$0/cgroup.procs"; exec "$@"', str(group), *command]
    before, start = spent(), time.perf_counter()
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "SHOP_DB_URL": url}, capture_output=True, text=True, check=False
    )
    wall, cpu = time.perf_counter() - start, spent() - before
    if done.returncode:
        raise SystemExit(f"{what} failed with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(
        f"  {what:<16} {wall:7.1f} s  CPU {cpu:6.1f} s, {cpu / orders * 1e6:5.1f} µs an order  largest process so far"
        f" {peak:,.0f} MB  load {os.getloadavg()[0]:.1f}",
        flush=True,
    )


def main() -> None:
    """Measure each size in turn."""
    with limited(os.environ.get("MEMORY")) as group:
        for orders in [int(text) for text in sys.argv[1:]] or [1_000_000]:
            place = os.environ.get("BENCH_DIR", "/var/tmp")
            with (
                tempfile.TemporaryDirectory(prefix="millrace-bench-", dir=place) as name,
                temporary_postgres("embedded", SETTINGS) as server,
                psycopg.connect(server.url(), autocommit=True) as connection,
            ):
                folder = Path(name) / "shop"
                fill(connection, orders=orders, bad_rows=True)
                init_project(folder, "ecommerce")
                write_events(folder / "landing", events=orders // 10)
                print(f"{orders:,} orders, limit {os.environ.get('MEMORY', 'none')}", flush=True)
                run(folder, server.url(), group, "first run", orders)
                run(folder, server.url(), group, "nothing new", orders)
                connection.execute(CHANGE)
                run(folder, server.url(), group, "0.1 % changed", orders)


if __name__ == "__main__":
    main()
