"""Many tables from a list in JSON: `configs/<environment>/table_configs.json`, as earlier pipelines kept it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from millrace.api.copying import CopyResult, DataCopyEngine
from millrace.api.records import Record
from millrace.core.secrets import redact
from millrace.errors import MillraceError, Place, ProjectError, StepFailed, UsageError, did_you_mean

SOURCE, TARGET = "env:SOURCE_DATABASE_URL", "env:TARGET_DATABASE_URL"

KEYS: Mapping[str, tuple[type, ...]] = {
    "source": (str,),
    "target": (str,),
    "primary_keys": (list,),
    "sync_mode": (str,),
    "custom_where": (str, type(None)),
    "custom_select": (str, type(None)),
    "custom_count": (str, type(None)),
    "batch_size": (int,),
    "cursor": (str, type(None)),
    "cursor_format": (str, type(None)),
}
"""The keys of a table's configuration, with the types of their values; `source` must be there."""

FAILURE_POINTS = (
    "start",
    "connection_test",
    "schema_validation",
    "data_copy",
    "merge_operation",
    "data_validation",
    "cleanup",
    "end",
)
"""The points from which `recover_failed_pipeline` goes on."""


@dataclass(frozen=True, slots=True)
class TableResult(Record):
    """What became of one table of several: `success` with a result, or `error` with the error's text."""

    table: str
    status: str
    result: CopyResult | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Recovery(Record):
    """A run that was taken up again: `recovered`, one sentence, and what the copy did."""

    status: str
    message: str
    result: CopyResult


class TablesFailed(StepFailed):
    """Some of several tables failed; the others were copied.

    Attributes:
        results: one for each table, in the order given.
    """

    def __init__(self, results: Sequence[TableResult]) -> None:
        failed = [one for one in results if one.status == "error"]
        super().__init__(
            f"{len(failed)} of {len(results)} tables failed",
            detail=[f"{one.table}: {(one.error or '').splitlines()[0]}" for one in failed],
            hint="the others are published; run again after the cause is mended: they will be found unchanged",
        )
        self.results = tuple(results)


def load_table_configs(
    environment: str = "production", folder: str | os.PathLike[str] = "configs"
) -> list[dict[str, Any]]:
    """Read `<folder>/<environment>/table_configs.json`: a list of objects with the keys of `KEYS`.

    Raises:
        ProjectError: the file is missing, is not JSON, or has a wrong key or value; with file and line.
    """
    path = Path(folder) / environment / "table_configs.json"
    try:
        text = path.read_text(encoding="utf-8-sig")
        found = json.loads(text)
    except FileNotFoundError:
        raise ProjectError(
            "there is no table configuration", where=Place(str(path)), hint='a list like [{"source": "public.orders"}]'
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ProjectError(
            "the table configuration cannot be read", where=Place(str(path)), detail=[str(error)]
        ) from None
    except json.JSONDecodeError as error:
        place = Place(str(path), error.lineno, error.colno)
        raise ProjectError("the table configuration is not JSON", where=place, detail=[error.msg]) from None
    if not isinstance(found, list):
        raise ProjectError("the table configuration is no list", where=Place(str(path), 1), hint='[{"source": "…"}]')
    for number, config in enumerate(found, 1):
        _check(config, f"table {number}", Place(str(path)))
    return found


def _check(config: Any, name: str, where: Place | str) -> None:
    """Raises ProjectError for a configuration with a wrong key or value."""
    if not isinstance(config, Mapping):
        raise ProjectError(f"{name} is not an object", where=where, hint='{"source": "public.orders"}')
    for key, value in config.items():
        if key not in KEYS:
            hint = did_you_mean(str(key), list(KEYS)) or f"known: {', '.join(KEYS)}"
            raise ProjectError(f"{name} has an unknown key {key!r}", where=where, hint=hint)
        if not isinstance(value, KEYS[key]) or isinstance(value, bool):
            wanted = " or ".join("null" if one is type(None) else one.__name__ for one in KEYS[key])
            raise ProjectError(f"{name}: {key} must be {wanted}, not {json.dumps(value)}", where=where)
    if not config.get("source"):
        raise ProjectError(f"{name} has no source", where=where, hint='"source": "public.orders"')


def process_single_table(table_config: Mapping[str, Any], *, source: str = SOURCE, target: str = TARGET) -> TableResult:
    """Copy one table as its configuration says.

    Args:
        table_config: keys as in `KEYS`; `target` is the source's name if left out.
        source, target: the databases, as `DataCopyEngine` takes them.

    Raises:
        ProjectError: the configuration is wrong.
        MillraceError: what stopped the copy; an error is never returned as a status.
    """
    _check(table_config, f"table {table_config.get('source', '?')}", "table_config")
    options = {name: value for name, value in table_config.items() if name not in ("source", "target")}
    result = DataCopyEngine(source, target).copy_data_with_custom_sql(
        table_config["source"],
        table_config.get("target") or table_config["source"],
        options.pop("primary_keys", ()),
        **options,
    )
    return TableResult(table_config["source"], "success", result)


def copy_table_data(
    table_config: Mapping[str, Any], *, source: str = SOURCE, target: str = TARGET, **_context: Any
) -> str:
    """Copy one table; returns one sentence. Takes an orchestrator's context and needs none of it."""
    done = process_single_table(table_config, source=source, target=target)
    assert done.result is not None  # noqa: S101 - a copy that fails raises
    return f"{done.table}: {done.result.message}, {done.result.exported_rows:,} rows moved"


def parallel_data_processing(
    table_configs: Sequence[Mapping[str, Any]],
    max_workers: int | None = None,
    *,
    source: str = SOURCE,
    target: str = TARGET,
) -> list[TableResult]:
    """Copy several tables at once; one that fails does not stop the others.

    Args:
        table_configs: none: nothing to do.
        max_workers: tables at once; by default the number of processors, at most one a table.

    Returns:
        One result for each table, in the order given.

    Raises:
        TablesFailed: some failed; it carries all results.
        UsageError: `max_workers` is less than 1.
    """
    if max_workers is not None and max_workers < 1:
        raise UsageError(f"max_workers must be at least 1, not {max_workers}")
    if not table_configs:
        return []

    def one(config: Mapping[str, Any]) -> TableResult:
        try:
            return process_single_table(config, source=source, target=target)
        except MillraceError as error:
            return TableResult(str(config.get("source", "?")), "error", error=redact(str(error)))

    with ThreadPoolExecutor(min(max_workers or os.cpu_count() or 1, len(table_configs))) as pool:
        results = list(pool.map(one, table_configs))
    if any(result.status == "error" for result in results):
        raise TablesFailed(results)
    return results


def recover_failed_pipeline(
    table_config: Mapping[str, Any], failure_point: str, *, source: str = SOURCE, target: str = TARGET
) -> Recovery:
    """Take up a copy that failed, and bring it to its end: copied, merged, proven.

    Where it has to go on is found in the target, not taken from the point's name: whole segments that were staged are
    kept, what was published is found in the ledger.

    Args:
        failure_point: where it failed, one of `FAILURE_POINTS`.

    Raises:
        UsageError: there is no such point.
        MillraceError: the cause is still there.
    """
    if failure_point not in FAILURE_POINTS:
        hint = did_you_mean(failure_point, FAILURE_POINTS) or f"one of: {', '.join(FAILURE_POINTS)}"
        raise UsageError(f"unknown failure point {failure_point!r}", hint=hint)
    done = process_single_table(table_config, source=source, target=target)
    assert done.result is not None  # noqa: S101 - a copy that fails raises
    return Recovery("recovered", f"{done.table}: {done.result.message}", done.result)


def cleanup_temp_tables(target: str = TARGET) -> list[str]:
    """Drop stages that dead runs left in the target more than a day ago; live and resumable ones stay.

    Returns:
        Names of what was dropped.
    """
    from millrace.app.operations import drop_leftovers

    return list(drop_leftovers(target))
