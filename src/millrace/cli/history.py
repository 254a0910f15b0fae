"""How `millrace runs` and `millrace status` are shown."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any

from millrace.app import House
from millrace.cli import show
from millrace.core.names import short_run
from millrace.core.position import Cursor
from millrace.core.scrub import instant
from millrace.core.staged import LedgerEntry
from millrace.errors import MillraceError


def _when(time: str | None) -> str:
    """Return a time in the reader's zone."""
    if not time:
        return "–"
    return dt.datetime.fromisoformat(time).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def print_runs(house: House, limit: int, *, as_json: bool) -> None:
    """Print the last runs."""
    rows = house.journal.list_runs(limit)
    if as_json:
        show.as_json(
            [
                {
                    "run": row.id,
                    "env": row.env,
                    "pipeline": row.pipeline,
                    "started": row.started,
                    "ended": row.ended,
                    "status": row.status,
                    "logical_time": row.logical_time,
                }
                for row in rows
            ]
        )
        return
    if not rows:
        show.out(" no run yet: millrace run")
        return
    show.table(
        [
            (short_run(row.id), row.status, _when(row.started), _when(row.ended), row.env, row.pipeline or "–")
            for row in rows
        ],
        ("run", "status", "started", "ended", "env", "pipeline"),
    )


def print_run(house: House, run: str, *, as_json: bool) -> None:
    """Print the steps of one run."""
    row = house.journal.run(run)
    steps = house.journal.steps(row.id)
    if as_json:
        show.as_json(
            {
                "run": row.id,
                "status": row.status,
                "started": row.started,
                "ended": row.ended,
                "steps": [
                    {
                        "key": step.key,
                        "phase": step.phase,
                        "rows": step.rows,
                        "seconds": step.seconds,
                        "peak_rss": step.peak_rss,
                        "message": step.message,
                        "error": step.error,
                    }
                    for step in steps
                ],
            }
        )
        return
    show.out(f" run {short_run(row.id)} · {row.status} · {_when(row.started)}")
    show.table(
        [
            (
                step.kind,
                step.label,
                step.phase,
                None if step.kind in ("page", "gate") else step.rows,  # figures and checks, not rows
                step.seconds,
                None if step.peak_rss is None else step.peak_rss // 2**20,
                step.message,
            )
            for step in steps
        ],
        ("kind", "step", "phase", "rows", "seconds", "peak MB", "message"),
        (False, False, False, True, True, True, False),
    )


def print_status(house: House, *, as_json: bool) -> Sequence[MillraceError]:
    """Print every asset: load, rows, proof, age, and which inputs have moved on; return why some cannot be read."""
    found = house.outlook()
    latest = {str(asset): entry.seq for _, asset, entry in found if isinstance(entry, LedgerEntry)}
    rows: list[tuple[Any, ...]] = []
    data: list[dict[str, Any]] = []
    for step, asset, entry in found:
        if isinstance(entry, MillraceError):
            rows.append((str(asset), step.kind, None, None, "–", "–", f"unknown: {entry.what}"))
            data.append({"asset": str(asset), "error": entry.to_json()})
            continue
        if entry is None:
            rows.append((str(asset), step.kind, None, None, "–", "–", "never published"))
            data.append({"asset": str(asset), "published": None})
            continue
        behind = [f"{number} behind {name}" for name, number in house.behind(entry, latest).items()]
        known = entry.rows if entry.rows >= 0 else None
        proof = {"dbt": "checked", "page": "–"}.get(step.kind, "–") if entry.level == "none" else entry.level
        aside = [f"{entry.quarantined:,} in quarantine"] if entry.quarantined else []
        compared, said = _compared(entry)
        uncompared = ["not compared"] if entry.level == "counted" else []
        more = ", ".join([*behind, *aside, *said, *uncompared])
        rows.append((str(asset), step.kind, entry.seq, known, proof, _when(entry.time)[:16], more))
        data.append({"asset": str(asset), "published": entry.to_json(), "behind": behind, "compared": compared})
    if as_json:
        show.as_json(data)
    else:
        numeric = (False, False, True, True, False, False, False)
        show.table(rows, ("asset", "by", "load", "rows", "proof", "published", ""), numeric)
    return [entry for _, _, entry in found if isinstance(entry, MillraceError)]


WITHIN = dt.timedelta(days=7)


def _compared(entry: LedgerEntry) -> tuple[dict[str, Any], list[str]]:
    """Return when the whole table was compared with its source, as JSON types and in words.

    `since`: the time at or after which every part was, or None; `share`: of the parts, in the last seven days.
    """
    now = dt.datetime.now(dt.UTC)
    state = entry.position.scrub if isinstance(entry.position, Cursor) else None
    if state is None:
        whole = entry.time if entry.level == "table" else None
        recent = whole is not None and instant(whole) >= now - WITHIN
        return {"since": whole, "share": float(recent)}, []
    share = state.share(now - WITHIN)
    found = {"since": state.since, "share": round(share, 4)}
    if entry.level == "table":
        return found, []
    if state.since is None:
        return found, [f"{share:.0%} of it compared in 7 days"]
    return found, [f"compared since {_when(state.since)[:10]}"]
