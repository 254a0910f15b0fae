"""The clickstream of the template, from files to one row per event: real files, through the real command line's engine."""

from __future__ import annotations

import datetime as dt
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import pytest
from deltalake import DeltaTable

from millrace.app import init_project, open_house
from millrace.core.names import AssetId
from millrace.lake.target import LakeTarget
from millrace.templates.shop_events import write_events

from .house import live_files

END = dt.date(2026, 3, 10)
BRONZE, SILVER = AssetId("bronze", "clickstream"), AssetId("silver", "clickstream")
COLUMNS = "event_id user_id session_id event_type page_url product_id event_date event_hour timestamp"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The template with its clickstream alone: no database."""
    folder = tmp_path / "events"
    init_project(folder, "ecommerce")
    for name in ("dbt", "checks", "dashboards"):
        shutil.rmtree(folder / name)
    for file in [*folder.glob("models/silver/*"), *folder.glob("copies/*")]:
        if file.stem != "clickstream":
            file.unlink()
    return folder


def run(folder: Path, day: dt.date = END) -> dict[str, str]:
    with open_house(folder) as house:
        result = house.run(house.plan(()), logical_time=f"{day}T06:00:00+00:00", show_as="silent")
    assert result.status == "done", [(step.key, step.message) for step in result.steps]
    return {step.key: step.status for step in result.steps}


def rows(folder: Path, asset: AssetId) -> list[dict[str, Any]]:
    table = folder / "lake" / asset.layer / asset.name
    with duckdb.connect() as connection:
        connection.execute("set timezone = 'UTC'")
        found = connection.read_parquet([str(table / file) for file in live_files(table)], union_by_name=True)
        return [dict(zip(found.columns, row, strict=True)) for row in found.fetchall()]


def quarantined(folder: Path, asset: AssetId) -> Counter[str]:
    entries = LakeTarget(folder / "lake").entries(asset)
    assert {entry.status for entry in entries} <= {"open"}
    return Counter(entry.rule for entry in entries)


def samples(landing: Path) -> list[tuple[str, dt.date]]:
    """What the documents' cleaning makes of the files: by day, malformed lines null and then filtered."""
    found = []
    with duckdb.connect() as duck:
        for day in sorted((landing / "clickstream").iterdir()):
            found += duck.execute(
                "select distinct on (event_id) event_id, ?::date from read_json(?, ignore_errors = true,"
                " columns = {event_id: 'varchar', user_id: 'varchar'}, format = 'newline_delimited')"
                " where event_id is not null and user_id is not null",
                [day.name, str(day / "*.jsonl")],
            ).fetchall()
    return found


def assert_split(folder: Path, events: list[dict[str, Any]]) -> None:
    """B2: an hour's rows are in the hour's folder; who asks for a day or an hour opens its files alone, and gets all."""
    table = folder / "lake/silver/clickstream"
    hours = Counter((row["event_date"], row["event_hour"]) for row in events)
    assert len(hours) > 24
    delta = DeltaTable(table)
    assert delta.metadata().partition_columns == ["event_date", "event_hour"]
    day, hour = next(iter(hours))
    of_day = delta.file_uris(file_pruning_predicate=[("event_date", "=", str(day))])
    assert 0 < len(of_day) < len(delta.file_uris())
    assert {Path(file).parent.parent.name for file in of_day} == {f"event_date={day}"}
    found = delta.to_pyarrow_table(filters=[("event_date", "=", day), ("event_hour", "=", hour)])
    assert found.num_rows == hours[day, hour]
    with duckdb.connect() as connection:
        rows = connection.execute(
            "select event_date, event_hour, count(*) from read_parquet(?, hive_partitioning = false) group by all",
            [of_day],
        ).fetchall()
    assert {row[:2]: row[2] for row in rows} == {place: count for place, count in hours.items() if place[0] == day}


def test_each_event_once_and_what_is_bad_set_aside(project: Path) -> None:
    """S2-7: theirs counts an event of two days twice, keeps impossible times and forgets what it could not read."""
    landed = write_events(project / "landing", events=9000, end=END)
    theirs = samples(project / "landing")
    assert len(theirs) > len({event for event, _ in theirs}), "an event that comes again a day later is two"
    assert len(theirs) > landed.events

    run(project)
    bronze, events = rows(project, BRONZE), rows(project, SILVER)
    assert len(bronze) == landed.lines - landed.unreadable
    assert sum(quarantined(project, BRONZE).values()) == landed.unreadable
    assert len(events) == len({row["event_id"] for row in events}) == landed.events
    out = quarantined(project, SILVER)
    assert sum(out.values()) == landed.without_id + landed.wrong_clock
    assert out["not_null(event_id)"] == out["not_null(user_id)"] == landed.without_id / 2
    assert [name for name in events[0] if not name.startswith("_millrace")] == COLUMNS.split()
    assert {row["event_date"] for row in events} == {END - dt.timedelta(days=ago) for ago in (1, 2, 3)}
    assert all(
        (row["timestamp"].date(), row["timestamp"].hour) == (row["event_date"], row["event_hour"]) for row in events
    )
    assert len({row["product_id"] for row in events}) > 400
    assert_split(project, events)

    assert set(run(project).values()) == {"fresh"}


def test_late_events_come_in_and_nothing_is_counted_twice(project: Path) -> None:
    """Files of a day long taken, with new events, repeats, and more without an id: as if all had come at once."""
    landing = project / "landing"
    write_events(landing, events=3000, end=END)
    (held,) = landing.glob("clickstream/2026-03-08/part-2.jsonl")
    late = held.rename(project / "late.jsonl")
    run(project)
    before = {row["event_id"] for row in rows(project, SILVER)}
    files = set(live_files(project / "lake/silver/clickstream"))

    first = json.loads(late.read_text().splitlines()[0])
    more = [{**first, "event_id": None, "page_url": f"/{number}"} for number in range(3)]
    late.write_text("".join(json.dumps(line) + "\n" for line in more) + late.read_text())
    late.rename(held)
    assert run(project)["model:silver.clickstream"] == "published"
    events = rows(project, SILVER)
    assert {row["event_id"] for row in events} > before
    assert_split(project, events)
    stayed = files & set(live_files(project / "lake/silver/clickstream"))
    assert {Path(file).parent.parent.name for file in stayed} >= {"event_date=2026-03-07", "event_date=2026-03-09"}
    assert quarantined(project, SILVER)["not_null(event_id)"] == 3 + 1

    once = project.with_name("once")
    shutil.copytree(project, once, ignore=shutil.ignore_patterns("lake", ".millrace"))
    run(once)
    plain = [{name: value for name, value in row.items() if not name.startswith("_millrace")} for row in events]
    assert sorted(plain, key=str) == sorted(
        [{name: row[name] for name in COLUMNS.split()} for row in rows(once, SILVER)], key=str
    )
    assert quarantined(project, SILVER) == quarantined(once, SILVER)
