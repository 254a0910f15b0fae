"""`partitions` of a model, from its file to the lake: full and upsert, what changes when they change, what is refused."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from millrace.app import open_house
from millrace.app.quarantine import drop
from millrace.core.names import AssetId
from millrace.engine.records import StepOutcome
from millrace.errors import ProjectError
from millrace.lake.target import LakeTarget

MANIFEST = """\
version: 1
name: sales
layers: {bronze: lake, silver: lake}
environments: {dev: {connections: {landing: {type: files, path: ./landing}}, lake: ./lake}}
"""
COPIES = """\
from: landing
to: bronze
tables: {sales: {files: "*.jsonl", columns: {id: text, region: text, amount: text, at: text}}}
"""
SQL = """\
select
  cast(id as integer) as id, region, cast(amount as integer) as amount,
  cast("at" as timestamptz) as "at", cast(cast("at" as timestamptz) as date) as "day", amount <> '0' as paid
from bronze.sales
qualify row_number() over (partition by id order by _file desc, _line desc) = 1
"""
SALES = AssetId("silver", "sales")


class Sales:
    """A project that makes one table of lines."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lake = LakeTarget(folder / "lake")
        for name in ("landing", "copies", "models/silver"):
            (folder / name).mkdir(parents=True)
        (folder / "millrace.yaml").write_text(MANIFEST)
        (folder / "copies/sales.yaml").write_text(COPIES)
        (folder / "models/silver/sales.sql").write_text(SQL)

    def options(self, text: str) -> None:
        (self.folder / "models/silver/sales.yaml").write_text(text)

    def land(self, name: str, *rows: tuple[int, str | None, int, str]) -> None:
        lines = [json.dumps(dict(zip(("id", "region", "amount", "at"), row, strict=True))) for row in rows]
        (self.folder / f"landing/{name}.jsonl").write_text("\n".join(lines) + "\n")

    def run(self) -> StepOutcome:
        with open_house(self.folder) as house:
            result = house.run(house.plan(()), show_as="silent", logical_time="2024-02-01T00:00:00+00:00")
        return result.steps[-1]

    def plan(self) -> str:
        with open_house(self.folder) as house:
            return house.explain(house.plan())[-1][1].publishes

    def query(self, sql: str) -> list[Any]:
        with open_house(self.folder) as house:
            return [tuple(row) for row in house.query(sql, 1000).rows]

    def places(self) -> dict[int, str]:
        """Return in which folder each row's file lies; every row stands in one."""
        table = DeltaTable(self.folder / "lake/silver/sales")
        found: dict[int, str] = {}
        for uri in table.file_uris():
            for key in pq.read_table(uri, columns=["id"], partitioning=None)["id"].to_pylist():
                assert key not in found
                found[key] = str(Path(uri).parent.relative_to(self.folder / "lake/silver/sales"))
        return dict(sorted(found.items()))


@pytest.fixture
def sales(tmp_path: Path) -> Sales:
    made = Sales(tmp_path / "sales")
    made.land(
        "1",
        (1, "EU", 5, "2024-01-01T10:00:00Z"),
        (2, None, 6, "2024-01-01T11:00:00Z"),
        (3, "EU", 7, "2024-01-02T00:00:00Z"),
    )
    return made


NONE = "region=__HIVE_DEFAULT_PARTITION__"


@pytest.mark.parametrize("kind", ["full", "upsert"])
def test_a_model_is_split_and_split_anew(sales, kind):
    sales.options(f"kind: {kind}\nkey: id\n")
    assert sales.run().status == "published"
    assert set(sales.places().values()) == {"."}

    sales.options(f"kind: {kind}\nkey: id\npartitions: [day, region]\n")
    assert sales.plan() == "replaced in one commit, split by day, region"
    outcome = sales.run()
    assert (outcome.status, outcome.entries[0].rows) == ("published", 3)
    before = {1: "day=2024-01-01/region=EU", 2: f"day=2024-01-01/{NONE}", 3: "day=2024-01-02/region=EU"}
    assert sales.places() == before, "in one commit, though only the layout changed"
    assert sales.run().status == "fresh"

    sales.options(f"kind: {kind}\nkey: id\n")
    assert sales.plan() == "replaced in one commit, not split any more"
    sales.options(f"kind: {kind}\nkey: id\npartitions: [day, region]\n")
    sales.land("2", (2, "US", 6, "2024-01-01T11:00:00Z"), (4, "EU", 1, "2024-01-02T00:00:00Z"))
    counts = sales.run().entries[0].counts.to_json()
    assert (
        counts
        == {"full": {"inserted": 4, "updated": 0, "deleted": 3}, "upsert": {"inserted": 1, "updated": 1, "deleted": 0}}[
            kind
        ]
    )
    assert sales.places() == {**before, 2: "day=2024-01-01/region=US", 4: "day=2024-01-02/region=EU"}
    where = "select id from silver.sales where region = 'EU' and day = '2024-01-02' order by id"
    assert sales.query(where) == [(3,), (4,)]

    sales.options(f"kind: {kind}\nkey: id\npartitions: paid\n")
    assert sales.run().status == "published"
    assert set(sales.places().values()) == {"paid=true"}
    assert sales.lake.changes(SALES, 3) is None, "who reads the changes reads it all"
    sales.lake.vacuum(SALES, retain=timedelta(0), versions=1)
    assert [path.name for path in (sales.folder / "lake/silver/sales").glob("*=*")] == ["paid=true"]


def test_bad_rows_are_set_aside_and_dropped(sales):
    late = "2024-01-02T00:00:00Z"
    sales.land("2", (4, "EU", -4, late), (5, "US", 5, late), (6, "AP", -6, late))
    rules = "contract: {bad_rows: quarantine}\nchecks: {between: {amount: {min: 0}}}\n"
    sales.options(f"partitions: [region]\n{rules}")
    assert sales.run().status == "published"
    assert sales.places() == {1: "region=EU", 2: NONE, 3: "region=EU", 5: "region=US"}
    with open_house(sales.folder) as house:
        assert drop(house, SALES, []).status == "done"
    assert set(sales.places()) == {1, 2, 3, 5}
    assert not (sales.folder / "lake/silver/sales/region=AP").exists()


@pytest.mark.parametrize(
    ("partitions", "says"),
    [
        ("[day, regoin]", 'the model has no column regoin to be split by{at}did you mean "region"?'),
        (
            "at",
            'the model cannot be split by at, which is TIMESTAMP WITH TIME ZONE{at}split by a day of it: cast("at" as date) as at_date',
        ),
    ],
)
def test_what_a_model_cannot_be_split_by_is_told_with_its_line(sales, partitions, says):
    sales.options(f"description: sales\npartitions: {partitions}\n")
    (sales.folder / "models/silver/sales.sql").write_text(f"select * from ({SQL})")
    outcome = sales.run()
    assert outcome.status == "failed"
    assert str(outcome.error) == says.format(at="\n  models/silver/sales.yaml:2\n  ")


@pytest.mark.parametrize(("partitions", "column"), [("[day, regoin]", 19), ("regoin", 13)])
def test_a_column_that_is_seen_to_be_missing_is_told_before_anything_runs(sales, partitions, column):
    sales.options(f"description: sales\npartitions: {partitions}\n")
    with pytest.raises(
        ProjectError, match=r'has no column regoin to be split by(.|\n)*did you mean "region"'
    ) as caught:
        sales.run()
    assert f"models/silver/sales.yaml:2:{column}" in str(caught.value)


def test_partitions_of_a_copy_are_refused(sales):
    (sales.folder / "copies/sales.yaml").write_text(COPIES.replace("at: text}", "at: text}, partitions: region"))
    with pytest.raises(ProjectError, match=r"partitions of a copy are not built yet(.|\n)*model"):
        sales.run()
