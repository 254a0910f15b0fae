"""The process that dbt runs in: `python -m millrace.transform.dbt_runner`, started by `transform.dbt` only.

dbt keeps its database open after a command, prints where it likes and reads options from everywhere, so it gets a
process of its own. Standard input is a socket whose first line is the request, with files to keep open; standard output
carries one JSON object a line: events while it goes, then one result. dbt is brought into memory while the request is
awaited. Standard input stays open as long as the parent lives: when it ends, this process ends at once, so none is left
behind whatever became of the parent.
"""

from __future__ import annotations

import gc
import json
import os
import queue
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

Send = Callable[[dict[str, Any]], None]
SQL_LIMIT = 20_000  # a test's compiled SQL is for looking at its failing rows; a longer one is not looked at


def main() -> None:
    """Read the request, run dbt, send the result."""
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what dbt and the project's macros print goes to the log
    sys.stdout = sys.stderr
    lock = threading.Lock()

    def send(message: dict[str, Any]) -> None:
        with lock:
            output.write(json.dumps(message, ensure_ascii=False, default=str) + "\n")
            output.flush()

    asked: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_follow_parent, args=(asked,), daemon=True).start()
    gc.set_threshold(50_000)  # thousands of classes are made, none of which goes
    import dbt.cli.main  # noqa: F401 -- takes longer than most builds

    request = asked.get()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    send({"kind": "result", **run(request, send)})
    output.close()
    os._exit(0)  # dbt leaves threads and connections behind


def _follow_parent(asked: queue.SimpleQueue[dict[str, Any]]) -> None:
    """Pass on the request, and end with the parent."""
    with socket.socket(fileno=0) as parent:
        line, files, _, _ = socket.recv_fds(parent, 1, 8)  # noqa: RUF059 -- open as long as this process
        with parent.makefile("rb") as rest:
            line += rest.readline()
            if line.endswith(b"\n"):
                asked.put(json.loads(line))
                rest.read()
    os.kill(os.getpid(), signal.SIGKILL)


def run(request: dict[str, Any], send: Send) -> dict[str, Any]:
    """Run one command of dbt and return what it found as JSON types."""
    from dbt.cli.main import dbtRunner

    def heard(event: Any) -> None:
        if event.info.name in ("LogStartLine", "NodeFinished"):
            send(_event(event))

    options = ["--quiet"]
    if request["vars"]:
        options += ["--vars", json.dumps(request["vars"])]
    manifest = None
    if request["suffix"]:
        parsed: Any = dbtRunner().invoke(["parse", *options])
        if not parsed.success:
            return {"success": False, "error": _words(parsed.exception), "nodes": [], "graph": None}
        manifest = redirected(parsed.result, request["suffix"])
    if request["full_refresh"]:
        options.append("--full-refresh")
    found: Any = dbtRunner(manifest=manifest, callbacks=[heard]).invoke([request["command"], *options])
    answer: dict[str, Any] = {"success": bool(found.success), "error": None, "nodes": [], "graph": None}
    if found.exception is not None:
        answer["error"] = _words(found.exception)
    elif request["command"] == "parse":
        answer["graph"] = _graph(found.result)
    else:
        answer["nodes"] = [_node(result) for result in found.result or ()]
    return answer


def _words(error: Any) -> str:
    return f"{type(error).__name__}: {error}"


def redirected(manifest: Any, suffix: str) -> Any:
    """Move everything that a build makes into schemas of other names, in the parsed project only.

    References between models follow; sources stay where they are, and so do names that are written into SQL.
    """
    for node in manifest.nodes.values():
        if not _makes(node):
            continue
        old, node.schema = node.schema, node.schema + suffix
        if node.relation_name:
            before, _, name = node.relation_name.rpartition(f'"{old}".')  # the database may have the same name
            node.relation_name = f'{before}"{node.schema}".{name}'
    return manifest


def _makes(node: Any) -> bool:
    """Say whether a node becomes a relation; of tests, those whose failures are stored."""
    resource = str(node.resource_type.value)
    return resource in ("model", "seed", "snapshot") or (
        resource == "test" and bool(getattr(node.config, "store_failures", False))
    )


def _event(event: Any) -> dict[str, Any]:
    data, node = event.data, event.data.node_info
    started = event.info.name == "LogStartLine"
    return {
        "kind": "start" if started else "done",
        "id": node.unique_id,
        "name": node.node_name,
        "resource": node.resource_type,
        "status": node.node_status,
        "index": data.index if started else 0,
        "total": data.total if started else 0,
        "seconds": 0.0 if started else data.run_result.execution_time,
    }


def _node(result: Any) -> dict[str, Any]:
    node = result.node
    status = str(getattr(result.status, "value", result.status))
    compiled = getattr(node, "compiled_code", None) if status in ("fail", "warn") else None
    return {
        "id": node.unique_id,
        "name": node.name,
        "resource": str(node.resource_type.value),
        "path": node.original_file_path,
        "status": status,
        "seconds": result.execution_time,
        "message": result.message,
        "failures": result.failures,
        "sql": compiled if compiled and len(compiled) < SQL_LIMIT else None,
    }


def _graph(manifest: Any) -> dict[str, Any]:
    made = []
    tests = []
    for node in manifest.nodes.values():
        resource = str(node.resource_type.value)
        shared = {
            "id": node.unique_id,
            "name": node.name,
            "path": node.original_file_path,
            "after": list(getattr(node.depends_on, "nodes", ())),
        }
        if resource in ("model", "seed", "snapshot"):
            made.append(
                {
                    **shared,
                    "resource": resource,
                    "schema": node.schema,
                    "relation": node.alias,
                    "materialized": node.config.materialized,
                    "description": node.description,
                    "unique_key": _names(getattr(node.config, "unique_key", None)),
                    "tags": list(node.tags),
                }
            )
        elif resource == "test" or resource == "unit_test":
            severity = str(getattr(node.config, "severity", "error")).lower()
            tests.append({**shared, "attached": getattr(node, "attached_node", None), "severity": severity})
    tests += [
        {
            "id": test.unique_id,
            "name": test.name,
            "path": test.original_file_path,
            "after": list(test.depends_on.nodes),
            "attached": f"model.{test.package_name}.{test.model}",
            "severity": "error",
        }
        for test in manifest.unit_tests.values()
    ]
    sources = [
        {
            "id": source.unique_id,
            "schema": source.schema,
            "relation": source.identifier,
            "path": source.original_file_path,
        }
        for source in manifest.sources.values()
    ]
    filled = {
        node.schema
        for node in manifest.nodes.values()
        if _makes(node) and getattr(node.config, "materialized", "") != "ephemeral"
    }
    return {
        "made": made,
        "tests": tests,
        "sources": sources,
        "schemas": sorted(filled),
        "env": sorted(manifest.env_vars),
    }


def _names(value: Any) -> list[str]:
    if value is None:
        return []
    return [value] if isinstance(value, str) else list(value)


if __name__ == "__main__":
    main()
