#!/usr/bin/env python3
"""Measure copies between two throwaway PostgreSQL servers, side by side in one sitting (Linux, Python 3.11+).

    eval "$(python3 compare.py servers DIR)"     # starts both, sets SRC and DST; DIR: new, on a real disk
    python3 compare.py seed --rows 3000000       # --columns 200 for a wide table, --table NAME for another one
    python3 compare.py run --rounds 5 --case pipe-binary --case mine='copy "$SRC" "$DST"' --before mine=reset
    python3 compare.py change --every 20         # the incremental scenario, between two runs
    python3 compare.py verify --table events     # is the target's table the source's, to the byte?
    python3 compare.py stop DIR                  # stops both and removes them

Cases are lines of bash (pipefail) that see SRC and DST. Before each run, untimed: its `--before` (a line of bash;
`reset`: the table made anew and empty on the target; `reset-keys`: with its key and indexes), CHECKPOINT on both
servers, sync. The pipes are reset unless told otherwise. PG_BIN may name the folder of PostgreSQL's programs.

Figures, over the good runs: wall seconds; ratio of minima and of medians to the first case; CPU seconds (median) of
the command with all descendants it waited for, of both servers, and of everything else on the machine meanwhile
(much of it: disturbed); peak MB of the largest process and of the process tree (shared pages counted in each), both
without the servers.
"""

import argparse
import contextlib
import datetime as dt
import hashlib
import itertools
import json
import os
import platform
import pwd
import re
import secrets
import select
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SAMPLE_MS = 50  # sampling a tree of five processes takes about 0.3 ms
SETTINGS = {
    "shared_buffers": "512MB",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "1h",  # CHECKPOINT comes before each run, none inside it
    "autovacuum": "off",  # would fall on a run by chance
    "jit": "off",
    "timezone": "UTC",
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
}
# One text for one value, whatever the server's or the shell's settings are.
SESSION = {
    "PGTZ": "UTC",
    "PGDATESTYLE": "ISO, YMD",
    "PGCLIENTENCODING": "UTF8",
    "PGOPTIONS": "-c intervalstyle=postgres -c extra_float_digits=1 -c bytea_output=hex -c xmloption=content",
}
# Types whose own hash is exact; floats go through float8send (-0 equals 0), all others through text.
EXACT_HASH = [
    "bool",
    "int2",
    "int4",
    "int8",
    "oid",
    "text",
    "varchar",
    "bytea",
    "uuid",
    "date",
    "time",
    "timestamp",
    "timestamptz",
]
# Short columns that keep a row of 200 under 2 kB, where TOAST would begin.
FILLERS = [
    "(random()*1000000)::int", "random()*100", "random()<0.5", "round((random()*1000)::numeric,2)::numeric(12,2)",
    "date '2026-01-01'+(random()*365)::int", "(i%1000)::smallint", "case when random()<0.5 then null else i end",
    "'v'||(random()*1000)::int", "timestamptz '2026-01-01'+i*interval '1 s'",
    "case when random()<0.9 then null else 'note' end",
]  # fmt: skip


class Failure(Exception):
    """A message for the user: a command that failed, or something missing."""


def binaries() -> Path | None:
    """Find the folder of PostgreSQL's programs (a distribution's `psql` on PATH may be a slower wrapper)."""
    if found := os.environ.get("PG_BIN"):
        return Path(found)
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    return max(Path("/usr/lib/postgresql").glob("[0-9]*/bin"), key=lambda p: int(p.parent.name), default=None)


def environment(**more: str) -> dict[str, str]:
    """Return the caller's environment with PostgreSQL's programs first on PATH."""
    path = os.environ.get("PATH") or os.defpath
    return {**os.environ, "PATH": f"{folder}:{path}" if (folder := binaries()) else path, **more}


def call(command: list[str], text: str = "", **options: Any) -> str:
    """Run a command to its end and return what it printed; raise Failure with its last line."""
    options = {"env": environment(**SESSION), **options}
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, **options)
    if done.returncode:
        raise Failure(f"{command[0]}: {last_line(done.stderr, done.stdout) or f'exit code {done.returncode}'}")
    return str(done.stdout).strip()


def last_line(*texts: str) -> str:
    """Return the last line of the first text that is not blank, without the place PostgreSQL marks below it."""
    plain = (re.sub(r"(?m)^LINE \d+:.*\n *\^\s*$", "", text).strip() for text in texts)
    return next((text.splitlines()[-1] for text in plain if text), "")


def psql(variable: str, *more: str) -> list[str]:
    """Return the psql command for the server whose URL is in SRC or DST."""
    url = os.environ.get(variable)
    if not url:
        raise Failure(f'{variable} is not set: eval "$(python3 compare.py servers DIR)"')
    return ["psql", "-XqAt", "-v", "ON_ERROR_STOP=1", "-d", url, *more]


def sql(variable: str, statements: str) -> str:
    """Run SQL on SRC or DST and return what psql printed, unaligned."""
    return call(psql(variable), statements)


# --- servers -------------------------------------------------------------------------------------------------------


def server_user(name: str | None) -> dict[str, Any]:
    """Return the subprocess options under which a server may run: PostgreSQL refuses root."""
    options: dict[str, Any] = {"cwd": "/", "env": environment(LC_ALL="C")}
    if os.geteuid() == 0:
        known = {entry.pw_name: entry for entry in pwd.getpwall()}
        user = next((known[n] for n in ([name] if name else ["postgres", "nobody"]) if n in known), None)
        if user is None:
            raise Failure(f"no such user: {name or 'postgres or nobody'}; name one with --user")
        options |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    return options


def servers(folder: Path, user: str | None, settings: dict[str, str]) -> None:
    """Start the source and the target in a new folder and print SRC and DST; if it is ours already, print only."""
    lines, password_file = folder / "env", folder / "password"
    if not lines.exists():
        options = server_user(user)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise Failure(f"{folder} is not empty")
        for path in (folder, password_file):
            path.touch(mode=0o600)
            os.chown(path, options.get("user", -1), options.get("group", -1))
        password_file.write_text(secrets.token_hex(8))
        try:
            if subprocess.run(["test", "-r", password_file], check=False, **options).returncode:
                raise Failure(
                    f"{folder}: the servers' user cannot reach it; take one whose parents are open, as /tmp is"
                )
            lines.touch(mode=0o600)
            for variable, data in (("SRC", folder / "source"), ("DST", folder / "target")):
                port = start(data, settings, password_file, options)
                url = f"postgresql://postgres:{password_file.read_text()}@127.0.0.1:{port}/postgres"
                with lines.open("a") as file:
                    file.write(f"export {variable}={url}\n")
        except BaseException:
            stop(folder)
            raise
    if not (postmaster(folder / "source") and postmaster(folder / "target")):
        raise Failure(f"{folder}: its servers have ended; remove them with `stop`")
    print(lines.read_text(), end="")


def start(data: Path, settings: dict[str, str], password_file: Path, options: dict[str, Any]) -> int:
    """Make a data folder, start its server and return the port."""
    login = ["-U", "postgres", "-A", "scram-sha-256", f"--pwfile={password_file}"]
    call(["initdb", "-D", str(data), "-E", "UTF8", "--locale=C", "--no-sync", *login], **options)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    with (data / "postgresql.conf").open("a") as file:
        file.writelines(f"{name} = '{value}'\n" for name, value in {**settings, "port": port}.items())
    log = data.with_suffix(".log")
    try:
        call(["pg_ctl", "start", "-w", "-D", str(data), "-l", str(log)], **options)
    except Failure as error:
        raise Failure(f"{error} {last_line(log.read_text() if log.exists() else '')}") from None
    return port


def postmaster(data: Path) -> int | None:
    """Return the process of the server that runs on a data folder."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        pid = int((data / "postmaster.pid").read_text().split()[0])
        return pid if Path(f"/proc/{pid}/cwd").resolve() == data else None
    return None


def stop(folder: Path) -> None:
    """Stop both servers at once and remove what `servers` made."""
    if not (folder / "password").exists():
        raise Failure(f"{folder} holds no servers of ours")
    for data in (folder / "source", folder / "target"):
        if pid := postmaster(data):
            os.kill(pid, signal.SIGQUIT)  # immediate: the data is thrown away
        while postmaster(data):
            time.sleep(0.05)
        shutil.rmtree(data, ignore_errors=True)
    for name in ("source.log", "target.log", "env", "password"):
        (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # something of the user's is in it
        folder.rmdir()


# --- data ----------------------------------------------------------------------------------------------------------


def seed(table: str, rows: int, columns: int) -> None:
    """Fill the source's table with the rows of seed.sql, the same ones each time, and more columns if asked."""
    generator, name = "\nfrom generate_series(1,3000000) i;", r"\bevents\b"
    script = (HERE / "seed.sql").read_text()
    if script.count(generator) != 1 or not re.search(name, script):
        raise Failure("seed.sql is not as expected")
    extra = "".join(f",\n {FILLERS[n % len(FILLERS)]} c{n}" for n in range(10, columns))
    script = re.sub(name, table, script.replace(generator, extra + generator.replace("3000000", str(rows))))
    # Frozen, so that the first reader does not pay for the hint bits.
    sql("SRC", f"set client_min_messages = warning; drop table if exists {table}; select setseed(0.5);\n{script}\n")
    sql("SRC", f"vacuum (freeze, analyze) {table};\ncheckpoint;")
    print(describe(table))


def change(table: str, every: int) -> None:
    """Change every n-th row of the source; `updated_at` passes all earlier ones, so it can be repeated."""
    newest = f"(select greatest(max(updated_at), '2026-11-01') from {table})"
    new = f"amount = amount + 1, updated_at = {newest} + (id || ' ms')::interval"
    update = f"update {table} set {new} where id % {every} = 0 returning 1"
    print(sql("SRC", f"with changed as ({update}) select count(*) || ' rows changed' from changed;"))


def reset(table: str, with_keys: bool) -> None:
    """Make the table anew and empty on the target, without or with its key and indexes."""
    section = [] if with_keys else ["--section=pre-data"]
    source = psql("SRC")[-1]
    ddl = call(["pg_dump", source, "-t", table, "--schema-only", "--no-owner", "--no-privileges", *section])
    sql("DST", f"set client_min_messages = warning; drop table if exists {table};\n{ddl}")


def columns_of(variable: str, table: str) -> dict[str, str]:
    """Return the table's columns, quoted, and their types in order."""
    query = f"""select quote_ident(attname) || chr(9) || format_type(atttypid, atttypmod) from pg_attribute
        where attrelid = '{table}'::regclass and attnum > 0 and not attisdropped order by attnum;"""
    return dict(line.split("\t") for line in sql(variable, query).splitlines())


def describe(table: str) -> str:
    """Return the size of the source's table in words."""
    size = f"pg_size_pretty(pg_table_size('{table}'))"
    query = f"select to_char(count(*), 'FM999,999,999,999') || ' rows, ' || {size} from {table};"
    return f"{table}: {sql('SRC', query)}, {len(columns_of('SRC', table))} columns"


def verify(table: str, target: str) -> bool:
    """Compare the ordered text of both tables row by row, in the source's columns and by its primary key."""
    source_columns, target_columns = columns_of("SRC", table), columns_of("DST", target)
    for name, kind in source_columns.items():
        if target_columns.get(name) != kind:
            print(f"column {name}: {kind} in the source, {target_columns.get(name, 'missing')} in the target")
    if extra := target_columns.keys() - source_columns.keys():
        print("not compared, only in the target:", ", ".join(sorted(extra)))
    if source_columns.keys() - target_columns.keys():
        return False
    key = f"""select string_agg(quote_ident(attname) || case when attcollation <> 0 then ' collate "C"' else '' end, ', '
        order by array_position(indkey, attnum)) from pg_index join pg_attribute on attrelid = indrelid
        and attnum = any(indkey) where indrelid = '{table}'::regclass and indisprimary;"""
    names = ", ".join(source_columns)
    order = sql("SRC", key) or f'row({names})::text collate "C"'
    sides = [("SRC", table), ("DST", target)]
    digests, counts, difference = [hashlib.sha256(), hashlib.sha256()], [0, 0], None
    with contextlib.ExitStack() as stack:
        copies = [psql(v, "-c", f"copy (select {names} from {t} order by {order}) to stdout") for v, t in sides]
        env = environment(**SESSION)
        readers = [stack.enter_context(subprocess.Popen(c, stdout=subprocess.PIPE, env=env)) for c in copies]
        for pair in itertools.zip_longest(*(reader.stdout or [] for reader in readers)):
            for side, line in enumerate(pair):
                if line is not None:
                    digests[side].update(line)
                    counts[side] += 1
            if difference is None and pair[0] != pair[1]:
                difference = pair
    if any(reader.returncode for reader in readers):
        raise Failure("a table could not be read to its end")
    for (variable, name), digest, count in zip(sides, digests, counts, strict=True):
        print(f"{variable} {name}: {count:,} rows, sha256 {digest.hexdigest()}")
    for variable, line in zip(("SRC", "DST"), difference or (), strict=False):
        print(
            f"first difference, {variable}: {line.decode(errors='replace').rstrip()[:300] if line else 'no such row'}"
        )
    print("different" if difference else "identical")
    return difference is None


# --- cases ---------------------------------------------------------------------------------------------------------


def digest_query(table: str) -> str:
    """Return the query of an exact hash of all rows, whatever their order."""
    query = f"""select coalesce(string_agg(case when typname = any('{{{",".join(EXACT_HASH)}}}') then quote_ident(attname)
        when typname in ('float4', 'float8') then typname || 'send(' || quote_ident(attname) || ')'
        else quote_ident(attname) || '::text' end, ', ' order by attnum), '') from pg_attribute join pg_type t
        on t.oid = atttypid where attrelid = '{table}'::regclass and attnum > 0 and not attisdropped;"""
    return f"select count(*), sum(hash_record_extended(row({sql('SRC', query)}), 1)) from {table}"


def built_in(name: str, table: str) -> str:
    """Return the command of a case known by its name."""
    out = f'psql -Xq -d "$SRC" -c "copy {table} to stdout (format FORMAT)"'
    pipe = f'{out} | psql -Xq -d "$DST" -c "copy {table} from stdin (format FORMAT)"'
    if name == "digest":
        return f"psql -XqAt -d \"$SRC\" <<'SQL'\n{digest_query(table)};\nSQL"
    cases = {
        "pipe-binary": pipe.replace("FORMAT", "binary"),
        "pipe-text": pipe.replace("FORMAT", "text"),
        "copy-out": out.replace("FORMAT", "binary") + " > /dev/null",
        "noop": "true",
    }
    if name not in cases:
        raise Failure(f"case {name}: write {name}='command', or one of {', '.join([*cases, 'digest'])}")
    return cases[name]


def children(pid: int) -> list[int]:
    """Return the living children of a process; none if it is gone."""
    with contextlib.suppress(OSError):
        return [int(c) for task in Path(f"/proc/{pid}/task").iterdir() for c in (task / "children").read_text().split()]
    return []


def tree(pid: int) -> Iterator[int]:
    """Yield a process and its living descendants."""
    yield pid
    for child in children(pid):
        yield from tree(child)


def memory(pid: int) -> tuple[int, int]:
    """Return a process's peak and present resident memory in kB. (ru_maxrss would begin at our own size.)"""
    with contextlib.suppress(OSError):
        found = dict(re.findall(r"Vm(HWM|RSS):\s+(\d+)", Path(f"/proc/{pid}/status").read_text()))
        return int(found.get("HWM", 0)), int(found.get("RSS", 0))
    return 0, 0


def ticks(path: str, fields: slice) -> float:
    """Return the sum of clock ticks in a file of /proc, in seconds; 0 if the process is gone."""
    with contextlib.suppress(OSError):
        line = Path(path).read_text().split("\n", 1)[0].rpartition(")")[2]
        return sum(map(int, line.split()[fields])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def machine_cpu() -> float:
    """Return the seconds all processors were busy, or stolen, since the machine's start."""
    return ticks("/proc/stat", slice(1, 4)) + ticks("/proc/stat", slice(6, 9))


class ServerCpu:
    """CPU time of the servers behind SRC and DST, if they run on this machine."""

    def __init__(self) -> None:
        self.postmasters: set[int] = set()
        for variable in ("SRC", "DST"):
            with contextlib.suppress(Failure, ValueError, OSError):
                pid = int(sql(variable, "select split_part(pg_read_file('postmaster.pid'), chr(10), 1);"))
                if Path(f"/proc/{pid}/comm").read_text().startswith("postgres"):
                    self.postmasters.add(pid)

    def backends(self) -> set[int]:
        """Return the processes below the postmasters."""
        return {child for pid in self.postmasters for child in children(pid)}

    def seconds(self) -> float:
        """Return the CPU used so far by the postmasters, the children they reaped and the living ones."""
        reaped = sum(ticks(f"/proc/{pid}/stat", slice(11, 15)) for pid in self.postmasters)
        return reaped + sum(ticks(f"/proc/{pid}/stat", slice(11, 13)) for pid in self.backends())

    def settle(self, known: set[int]) -> None:
        """Wait up to 2 s for the backends that a command left to end, so that each is counted once."""
        deadline = time.monotonic() + 2
        while self.backends() - known and time.monotonic() < deadline:
            time.sleep(0.01)


def prepare(before: str, table: str) -> None:
    """Do what comes before a run and is not timed."""
    if before in ("reset", "reset-keys"):
        reset(table, with_keys=before == "reset-keys")
    elif before:
        call(["bash", "-o", "pipefail", "-c", before], env=environment())
    for variable in ("SRC", "DST"):
        sql(variable, "checkpoint;")
    os.sync()


def watch(process: subprocess.Popen[bytes], timeout: float) -> tuple[float, int, int, bool]:
    """Sample a process tree until its root ends: wall seconds, kB of the largest process and of the tree, killed late."""
    largest = whole = 0
    late, start, ended = False, time.perf_counter(), select.poll()
    pidfd = os.pidfd_open(process.pid)
    ended.register(pidfd, select.POLLIN)
    try:
        while True:
            sizes = [memory(pid) for pid in tree(process.pid)]
            largest, whole = max(largest, *(peak for peak, _ in sizes)), max(whole, sum(now for _, now in sizes))
            if ended.poll(SAMPLE_MS):
                return time.perf_counter() - start, largest, whole, late
            if not late and time.perf_counter() - start > timeout:
                late = True
                os.killpg(process.pid, signal.SIGKILL)
    except KeyboardInterrupt:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    finally:
        os.close(pidfd)


def measure(command: str, before: str, table: str, servers_cpu: ServerCpu, timeout: float) -> dict[str, Any]:
    """Prepare and run a case once; a failure is part of the result."""
    result: dict[str, Any] = {"load": round(os.getloadavg()[0], 2), "exit": None}
    try:
        prepare(before, table)
    except Failure as error:
        return result | {"error": f"before the run: {error}"}
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        known = servers_cpu.backends()
        machine, server = machine_cpu(), servers_cpu.seconds()
        shell = ["bash", "-o", "pipefail", "-c", command]
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": err}
        process = subprocess.Popen(shell, **streams, env=environment(), start_new_session=True)
        wall, largest, whole, late = watch(process, timeout)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        servers_cpu.settle(known)
        cpu, server = usage.ru_utime + usage.ru_stime, servers_cpu.seconds() - server
        result |= {"exit": process.returncode, "wall_s": wall, "cpu_s": cpu}
        result |= {"servers_cpu_s": server, "others_cpu_s": max(0.0, machine_cpu() - machine - cpu - server)}
        result |= {"largest_mb": largest / 1024, "tree_mb": whole / 1024}
        if process.returncode:
            texts = []
            for file in (err, out):
                file.seek(max(0, file.seek(0, os.SEEK_END) - 4000))
                texts.append(file.read().decode(errors="replace"))
            reason = f"killed after {timeout:g} s" if late else last_line(*texts) or f"exit code {process.returncode}"
            result |= {"error": reason, "stderr": texts[0]}
    return result


def facts(table: str) -> dict[str, Any]:
    """Return what the figures hold for: machine, versions, settings, table, time."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    shown = [
        "server_version",
        "fsync",
        "synchronous_commit",
        "full_page_writes",
        "wal_level",
        "max_parallel_workers_per_gather",
    ]
    query = f"""select name || chr(9) || current_setting(name) from pg_settings
        where name = any('{{{",".join([*shown, *SETTINGS])}}}');"""
    result: dict[str, Any] = {
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "cores": len(os.sched_getaffinity(0)),
        "processor": cpu[1] if cpu else platform.machine(),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "load_before": os.getloadavg(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "psql": call(["psql", "--version"]),
        "servers": {v: dict(line.split("\t") for line in sql(v, query).splitlines()) for v in ("SRC", "DST")},
    }
    with contextlib.suppress(Failure):  # a run may need no such table
        result["table"] = describe(table)
    return result


def run(cases: dict[str, str], befores: dict[str, str], table: str, rounds: int, timeout: float, output: Path) -> bool:
    """Run all cases once per round, print the table, write the JSON; True if all went well."""
    if unknown := befores.keys() - cases.keys():
        raise Failure(f"--before {', '.join(sorted(unknown))}: no such case")
    report: dict[str, Any] = {"facts": facts(table), "rounds": rounds, "cases": {}}
    for name, command in cases.items():
        before = befores.get(name, "reset" if not command and name.startswith("pipe-") else "")
        report["cases"][name] = {"command": command or built_in(name, table), "before": before, "runs": []}
    servers_cpu = ServerCpu()
    if not servers_cpu.postmasters:
        print("the servers are not on this machine, or not ours to see: their CPU counts as 0", file=sys.stderr)
    try:
        for number, (name, case) in itertools.product(range(1, rounds + 1), report["cases"].items()):
            result = measure(case["command"], case["before"], table, servers_cpu, timeout)
            case["runs"].append(result)
            outcome = f"{result['wall_s']:.2f} s" if result["exit"] == 0 else f"failed: {result['error']}"
            print(f"round {number}/{rounds}  {name}  {outcome}", file=sys.stderr)
    except KeyboardInterrupt:
        print("interrupted: what was measured so far follows", file=sys.stderr)
    report["facts"]["load_after"] = os.getloadavg()
    summarize(report)
    output.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written: {output}")
    return all([run["exit"] for run in case["runs"]] == [0] * rounds for case in report["cases"].values())


def summarize(report: dict[str, Any]) -> None:
    """Add each case's figures over its good runs to the report and print them."""
    about, first = report["facts"], None
    version = " → ".join(about["servers"][v]["server_version"].split()[0] for v in ("SRC", "DST"))
    load = f"load {about['load_before'][0]:.1f} → {about['load_after'][0]:.1f}"
    print(f"{about['date']}  {about.get('table', '')}  PostgreSQL {version}  {about['cores']} cores, {load}")
    heads = ["runs", "min s", "med s", "max s", "×min", "×med", "CPU s", "servers", "others", "MB max", "MB tree"]
    width = max(map(len, report["cases"]))
    print(" " * width, *heads, sep="  ")
    for name, case in report["cases"].items():
        good = [result for result in case["runs"] if result["exit"] == 0]
        line = [f"{len(good)}/{len(case['runs'])}"]
        if good:
            walls = [result["wall_s"] for result in good]
            low, middle, high = min(walls), statistics.median(walls), max(walls)
            first = first or ((low, middle) if name == next(iter(report["cases"])) else None)
            ratios = (low / first[0], middle / first[1]) if first else (None, None)
            cpu = [
                statistics.median(result[key] for result in good) for key in ("cpu_s", "servers_cpu_s", "others_cpu_s")
            ]
            sizes = [max(result[key] for result in good) for key in ("largest_mb", "tree_mb")]
            figures = [low, middle, high, *ratios, *cpu, *sizes]
            case["summary"] = dict(zip(heads[1:], figures, strict=True))
            line += ["–" if f is None else f"{f:.{2 if n < 8 else 0}f}" for n, f in enumerate(figures)]
        print(f"{name:{width}}", *(f"{text:>{len(head)}}" for text, head in zip(line, heads, strict=False)), sep="  ")
        for reason in dict.fromkeys(result["error"] for result in case["runs"] if result["exit"] != 0):
            print(f"{'':{width}}  failed: {reason[:200]}")


# --- command line --------------------------------------------------------------------------------------------------


def named(text: str) -> tuple[str, str]:
    """Split NAME=VALUE; without a value it is empty."""
    name, _, value = text.partition("=")
    return name, value


def identifier(text: str) -> str:
    """Accept a plain table name, with a schema or without."""
    if not re.fullmatch(r"([a-z_][a-z0-9_]*\.)?[a-z_][a-z0-9_]*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a plain lower-case name")
    return text


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    table = argparse.ArgumentParser(add_help=False)
    table.add_argument("--table", type=identifier, default="events", help="default: events")

    start = commands.add_parser("servers", help="start the source and the target, print SRC and DST")
    start.add_argument("folder", type=Path, metavar="DIR")
    start.add_argument("--user", help="whom the servers run as when root asks; default: postgres, else nobody")
    start.add_argument("--no-fsync", action="store_true", help="measure without waiting for the disk")
    start.add_argument("--set", type=named, action="append", default=[], metavar="NAME=VALUE", help="one more setting")
    end = commands.add_parser("stop", help="stop both and remove them")
    end.add_argument("folder", type=Path, metavar="DIR")

    fill = commands.add_parser("seed", parents=[table], help="fill the source")
    fill.add_argument("--rows", type=int, required=True)
    fill.add_argument("--columns", type=int, default=10, help="default: 10, as in seed.sql; 200 is the wide table")

    measured = commands.add_parser("run", parents=[table], help="measure cases, interleaved")
    measured.add_argument("--case", type=named, action="append", required=True, metavar="NAME[=COMMAND]",
                          help="built in: pipe-binary, pipe-text, copy-out, digest, noop")  # fmt: skip
    measured.add_argument("--before", type=named, action="append", default=[], metavar="NAME=COMMAND",
                          help="a command, reset or reset-keys, before each run of a case")  # fmt: skip
    measured.add_argument("--rounds", type=int, default=5)
    measured.add_argument("--timeout", type=float, default=1800, metavar="S", help="kill a run after so many seconds")
    measured.add_argument("--json", type=Path, metavar="FILE", help="default: compare-TIME.json here")

    update = commands.add_parser("change", parents=[table], help="change every n-th row of the source")
    update.add_argument("--every", type=int, default=20)
    proof = commands.add_parser("verify", parents=[table], help="compare source and target; exit code 1 if they differ")
    proof.add_argument("--target", type=identifier, metavar="TABLE", help="the table's name on the target, if another")
    return parser.parse_args()


def main() -> int:
    """Run one command: 0 all well, 1 a difference or a failed case, 2 cannot work."""
    args = arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    good = True
    try:
        match args.command:
            case "servers":
                fsync = {"fsync": "off"} if args.no_fsync else {}
                servers(args.folder.resolve(), args.user, {**SETTINGS, **fsync, **dict(args.set)})
            case "stop":
                stop(args.folder.resolve())
            case "seed":
                seed(args.table, args.rows, args.columns)
            case "change":
                change(args.table, args.every)
            case "verify":
                good = verify(args.table, args.target or args.table)
            case "run":
                if len(dict(args.case)) < len(args.case):
                    raise Failure("two cases have the same name")
                output = args.json or Path(f"compare-{dt.datetime.now(dt.UTC):%Y%m%d-%H%M%S}.json")
                good = run(dict(args.case), dict(args.before), args.table, args.rounds, args.timeout, output)
    except (Failure, OSError) as error:
        print(f"compare.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
