"""The command line in processes of its own, forked from one that has imported everything.

Half a second to a second of most commands is imports. A test that wants a process, and not to see it start, saves them:
`run` is `subprocess.run([sys.executable, "-m", "millrace", …], capture_output=True, text=True)`. The process that is
forked from never runs a command, so it holds no thread, connection or lock.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

HEAVY = (
    "adbc_driver_postgresql.dbapi", "deltalake", "duckdb", "jinja2", "psycopg", "pyarrow.compute", "pyarrow.csv",
    "pyarrow.parquet", "pydantic", "rich.progress", "sqlglot", "yaml",
)  # fmt: skip
LEAVE = ("millrace.__main__", "millrace.templates", "millrace.testing.killpoints")
MESSAGE = 2**20  # bytes of a request at most


def run(
    arguments: Sequence[str], *, cwd: Path, env: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """Run `millrace …` to its end, and that of all that it started.

    Raises:
        subprocess.TimeoutExpired: it was killed.
    """
    ends, outputs = zip(*(os.pipe() for _ in range(3)), strict=True)
    request = json.dumps({"arguments": list(arguments), "cwd": str(cwd), "env": dict(env)}).encode()
    socket.send_fds(_server(), [request], outputs)
    for output in outputs:
        os.close(output)
    texts: list[str] = ["", "", ""]
    streams = [os.fdopen(end, encoding="utf-8") for end in ends]

    def read(number: int, stream: IO[str]) -> None:
        with stream:
            texts[number] = stream.read()

    pid = int(streams[2].readline())
    readers = [threading.Thread(target=read, args=pair, daemon=True) for pair in enumerate(streams)]
    for reader in readers:
        reader.start()
    deadline = time.monotonic() + timeout
    for reader in readers:
        reader.join(max(0, deadline - time.monotonic()))
        if reader.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            raise subprocess.TimeoutExpired(["millrace", *arguments], timeout)
    return subprocess.CompletedProcess(["millrace", *arguments], int(texts[2]), texts[0], texts[1])


@functools.cache
def _server() -> socket.socket:
    """Start the process that commands are forked from; it ends when this one does."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (ours, its):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MESSAGE)
    with its:
        subprocess.Popen(
            [sys.executable, __file__, str(its.fileno())],
            stdin=subprocess.DEVNULL,
            pass_fds=[its.fileno()],
            env={name: value for name, value in os.environ.items() if not name.startswith(("MILLRACE_", "PG"))},
        ).returncode = 0  # no warning at the end
    return ours


def _serve(requests: socket.socket) -> None:
    """Fork a command for each request; returns in the command's process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the tests', at Ctrl-C; they end this one by going
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the keepers
    while True:
        request, outputs, _, _ = socket.recv_fds(requests, MESSAGE, 3)
        if not request:
            os._exit(0)
        if not os.fork() and not _keep(outputs):
            break
        for output in outputs:
            os.close(output)
    requests.close()
    said = json.loads(request)
    for number, output in enumerate(outputs[:2], 1):
        os.dup2(output, number)
    for output in outputs:
        os.close(output)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(said["env"])
    time.tzset()
    os.chdir(said["cwd"])
    sys.path[0] = said["cwd"]
    sys.argv = [str(Path(sys.executable).with_name("millrace")), *said["arguments"]]


def _keep(outputs: Sequence[int]) -> bool:
    """Fork again: in the new process return False; in this one tell its id, and how it ended, and end."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    child = os.fork()
    if not child:
        return False
    for output in outputs[:2]:
        os.close(output)
    status = outputs[2]
    os.write(status, f"{child}\n".encode())
    _, ended = os.waitpid(child, 0)
    os.write(status, f"{os.waitstatus_to_exitcode(ended)}\n".encode())
    os._exit(0)


def _prepare() -> None:
    os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"  # as the command line says before it is loaded
    import pkgutil

    import millrace

    names = [found.name for found in pkgutil.walk_packages(millrace.__path__, "millrace.", onerror=lambda _name: None)]
    for name in (*HEAVY, *names):
        if not name.startswith(LEAVE):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()


if __name__ == "__main__":
    _prepare()
    _serve(socket.socket(fileno=int(sys.argv[1])))
    from millrace.cli.main import main

    ended = 0
    try:
        main()
    except SystemExit as found:
        ended = found.code if isinstance(found.code, int) else int(found.code is not None)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(ended)  # as multiprocessing does: to take everything down that was imported costs as much as a command
