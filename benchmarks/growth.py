"""How the cost of a copy grows with the table: time per row and memory, from one million rows to thirty.

    python benchmarks/growth.py measure FILE [--rounds 2] [--rows 1000000 3000000 10000000 30000000]
                                             [--wide 100000 300000 1000000]     tables of 200 columns
    python benchmarks/growth.py plot FILE IMAGE.svg

FILE (JSON) keeps the median of each case at each size; a size that stands in it already is not measured again. The plot
is drawn by Plotly in the browser that the tests use. Thirty million rows need some 30 GB of disk below BENCH_DIR
(default /var/tmp).
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
COMPARE = [sys.executable, str(HERE / "compare.py")]
KEYS = 'psql -qX "$DST" -c "alter table events add primary key (id)" -c "create index on events (updated_at)"'
PIPE = (
    'psql -qX "$SRC" -c "copy events to stdout (format binary)"'
    ' | psql -qX "$DST" -c "copy events from stdin (format binary)"'
)
FORGET = (
    'psql -qX "$DST" -c "drop table if exists events"'
    ' -c "drop schema if exists _millrace, _millrace_stage cascade" 2>/dev/null'
)
COPY = "millrace copy env:SRC events env:DST events"
CHANGE = 'psql -qX "$SRC" -c "update events set amount = amount + 1 where id % 100 = 0" -c "vacuum events"'
CASES = {  # name: (command, what comes before)
    "pipe, then key and index": (f"{PIPE} && {KEYS}", "reset"),
    "first load, proven": (COPY, FORGET),
    "nothing changed": (COPY, "true"),
    "1 % changed": (COPY, CHANGE),
    "first load into Delta, proven": (f"{sys.executable} {HERE / 'postgres_to_delta.py'}", "true"),
}
WIDE = ("pipe, then key and index", "first load, proven", "nothing changed", "first load into Delta, proven")


def measure(file: Path, shape: str, rows: int, rounds: int) -> None:
    """Measure one size and keep its medians."""
    kept = json.loads(file.read_text()) if file.exists() else {}
    if str(rows) in kept.get(shape, {}):
        return
    with tempfile.TemporaryDirectory(prefix="millrace-growth-", dir=os.environ.get("BENCH_DIR", "/var/tmp")) as name:
        # The servers' user must be able to reach their folder.
        Path(name).chmod(0o755)
        servers = Path(name) / "servers"
        lines = subprocess.run([*COMPARE, "servers", servers], check=True, capture_output=True, text=True).stdout
        urls = dict(line.removeprefix("export ").split("=", 1) for line in lines.splitlines())
        env = {**os.environ, **urls, "LAKE_DIR": name, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        try:
            columns = "200" if shape == "wide" else "10"
            subprocess.run([*COMPARE, "seed", "--rows", str(rows), "--columns", columns], check=True, env=env)
            output = Path(name) / "result.json"
            command = [*COMPARE, "run", "--rounds", str(rounds), "--json", str(output), "--timeout", "3600"]
            for case in WIDE if shape == "wide" else CASES:
                line, before = CASES[case]
                command += ["--case", f"{case}={line}", "--before", f"{case}={before}"]
            subprocess.run(command, check=True, env=env)
            report = json.loads(output.read_text())
        finally:
            subprocess.run([*COMPARE, "stop", servers], check=False)
    kept.setdefault("facts", {}).update(date=report["facts"]["date"][:10], rounds=rounds)
    kept.setdefault(shape, {})[str(rows)] = {
        case: {
            "seconds": round(found["summary"]["med s"], 2),
            "us_per_row": round(found["summary"]["med s"] / rows * 1e6, 3),
            "cpu_us_per_row": round((found["summary"]["CPU s"] + found["summary"]["servers"]) / rows * 1e6, 3),
            "others_cpu_s": round(found["summary"]["others"], 1),
            "peak_mb": round(found["summary"]["MB max"]),
        }
        for case, found in report["cases"].items()
    }
    file.write_text(json.dumps(kept, indent=1) + "\n")


def plot(file: Path, image: Path) -> None:
    """Draw CPU per row and memory over the number of rows (wall time depends on the disk of the hour)."""
    from plotly.colors import qualitative
    from plotly.offline import get_plotlyjs
    from plotly.subplots import make_subplots

    kept = json.loads(file.read_text())
    figure = make_subplots(
        cols=2,
        horizontal_spacing=0.1,
        subplot_titles=("µs of CPU per row, client and servers", "memory of the largest process, MB"),
    )
    sizes = sorted(kept["rows"], key=int)
    for number, case in enumerate(CASES):
        style = {"color": qualitative.Safe[number], "dash": "dot" if case.startswith("pipe") else "solid"}
        for column, value in ((1, "cpu_us_per_row"), (2, "peak_mb")):
            if column == 2 and case.startswith("pipe"):
                continue
            seen = {int(size): kept["rows"][size][case][value] for size in sizes if case in kept["rows"][size]}
            figure.add_scatter(
                x=list(seen), y=list(seen.values()), name=case, line=style, legendgroup=case,
                showlegend=column == 1, mode="lines+markers", row=1, col=column,
            )  # fmt: skip
    figure.update_xaxes(type="log", tickvals=[int(size) for size in sizes], title="rows")
    figure.update_yaxes(rangemode="tozero")
    figure.update_layout(
        width=1000, height=400, template="plotly_white", font_family="sans-serif", legend={"orientation": "h", "y": -0.25},
        margin={"l": 50, "r": 20, "t": 40, "b": 20},
    )  # fmt: skip
    image.write_bytes(svg(figure.to_json(), get_plotlyjs()))


def svg(figure: str, plotly: str) -> bytes:
    """Let the system's Chromium draw a figure."""
    from urllib.parse import unquote

    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = shutil.which("chromium") or shutil.which("google-chrome")
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        page = browser.new_page()
        page.add_script_tag(content=plotly)
        address: str = page.evaluate(f"Plotly.toImage({figure}, {{format: 'svg', width: 1000, height: 400}})")
        browser.close()
    return unquote(address.partition(",")[2]).encode()


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    first = commands.add_parser("measure")
    first.add_argument("file", type=Path)
    first.add_argument("--rounds", type=int, default=2)
    first.add_argument("--rows", type=int, nargs="*", default=[1_000_000, 3_000_000, 10_000_000, 30_000_000])
    first.add_argument("--wide", type=int, nargs="*", default=[100_000, 300_000, 1_000_000])
    second = commands.add_parser("plot")
    second.add_argument("file", type=Path)
    second.add_argument("image", type=Path)
    args = parser.parse_args()
    if args.command == "plot":
        plot(args.file, args.image)
        return
    for shape, sizes in (("rows", args.rows), ("wide", args.wide)):
        for rows in sizes:
            measure(args.file, shape, rows, args.rounds)


if __name__ == "__main__":
    main()
