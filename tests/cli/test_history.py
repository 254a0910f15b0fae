"""`millrace runs RUN`: what is shown of the steps of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from millrace.app import open_house
from millrace.cli.history import print_run
from millrace.core.names import AssetId
from millrace.core.plan import Step
from millrace.engine.records import RunInfo

from . import small


def test_rows_stand_where_there_are_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps = [
        Step("copy:bronze.accounts", "copy", "bronze.accounts", (AssetId("bronze", "accounts"),)),
        Step("page:daily", "page", "pages/daily.html", (AssetId("pages", "daily"),)),
    ]
    with open_house(small.write(tmp_path)) as house:
        house.journal.start_run(
            RunInfo("7f3a91c2", "small", "dev", started="2026-11-20T06:00:00Z"), host="", pid=1, command=""
        )
        house.journal.begin_steps("7f3a91c2", steps)
        for step in steps:
            house.journal.note_step("7f3a91c2", step.key, phase="published", rows=1, seconds=0.5)
        print_run(house, "7f3a", as_json=False)
    head, _, copy, page = capsys.readouterr().out.splitlines()
    assert head.startswith(" run 7f3a · running · ")
    assert copy.split() == ["copy", "bronze.accounts", "published", "1", "0.50", "–"]
    assert page.split() == ["page", "pages/daily.html", "published", "–", "0.50", "–"]
