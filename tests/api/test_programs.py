"""What programs call around a copy: batches, monitoring, retries, lists of tables, dbt's commands."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from millrace import api
from millrace.core.secrets import Secret
from millrace.errors import NotFound, ProjectError, StepFailed, TransientFailure, UsageError


@pytest.mark.parametrize(
    ("rows", "sizes"),
    [
        (0, (10_000, 20_000, 40_000)),
        (100_000, (10_000, 20_000, 40_000)),
        (100_001, (5_000, 10_000, 20_000)),
        (1_000_000, (5_000, 10_000, 20_000)),
        (1_000_001, (2_500, 5_000, 10_000)),
    ],
)
def test_batch_sizes_are_the_known_table(rows: int, sizes: tuple[int, int, int]) -> None:
    assert tuple(api.optimize_batch_size(rows, memory) for memory in (3, 4, 17)) == sizes
    assert api.optimize_batch_size(rows) == api.optimize_batch_size(rows, 16) == sizes[1]


def test_a_batch_is_bound_by_bytes_too() -> None:
    assert api.optimize_batch_size(10, row_bytes=100) == 20_000
    assert api.optimize_batch_size(10, row_bytes=1_000_000) == 80  # 80 MB of 8 GB
    assert api.optimize_batch_size(10, 1, row_bytes=10**9) == 1
    with pytest.raises(UsageError, match="no batch"):
        api.optimize_batch_size(10, 0)


def test_monitoring_keeps_checkpoints_and_no_secrets() -> None:
    monitoring = api.Monitoring("postgres_data_copy", "copy_table")
    assert monitoring.status == "running"
    monitoring.add_checkpoint("schema_validation", "114 columns")
    monitoring.add_checkpoint("data_copy", f"to {Secret('hunter2-or-so')._value}")
    report = monitoring.stop_monitoring("success")
    assert monitoring.status == report["status"] == "success"
    assert [point["step"] for point in report.to_dict()["checkpoints"]] == ["schema_validation", "data_copy"]
    assert "hunter2" not in json.dumps(report.to_dict())
    assert report.duration >= report.checkpoints[-1].seconds >= 0
    assert report.memory_mb > 10
    with pytest.raises(UsageError, match="unknown final status") as caught:
        monitoring.stop_monitoring("succes")  # type: ignore[arg-type]
    assert caught.value.hint == 'did you mean "success"?'


def test_performance_is_measured_of_what_fails_too() -> None:
    with api.performance_monitoring("sleep") as measured:
        time.sleep(0.02)
    assert measured.status == "success"
    assert measured.seconds >= 0.02
    assert measured.memory_change_mb >= 0
    with pytest.raises(ZeroDivisionError), api.performance_monitoring("divide") as failed:
        _ = 1 / 0
    assert failed.status == "failed"


def test_stats_count_rows_moved_and_know_zero() -> None:
    stats = api.collect_processing_stats(1000, 500, 2.0, 50.0)
    assert (stats["processing_rate"], stats["memory_efficiency"]) == (250.0, 10.0)
    assert set(stats) == {
        "source_records",
        "target_records",
        "processing_rate",
        "memory_efficiency",
        "execution_time",
        "memory_usage",
    }
    nothing = api.collect_processing_stats(0, 0, 0, 0)
    assert (nothing.processing_rate, nothing.memory_efficiency) == (0.0, 0.0)


def test_only_retryable_errors_are_tried_again() -> None:
    calls = []

    @api.retry_with_backoff(max_retries=3, base_delay=0.001)
    def flaky(wanted: int) -> int:
        """Fail until the third call."""
        calls.append(wanted)
        if len(calls) < 3:
            raise TransientFailure("deadlock")
        return wanted

    assert flaky(7) == 7
    assert calls == [7, 7, 7]
    assert flaky.__name__ == "flaky"

    tries = []

    @api.retry_with_backoff(max_retries=5, base_delay=0.001)
    def wrong() -> None:
        tries.append(1)
        raise UsageError("wrong SQL")

    with pytest.raises(UsageError, match="wrong SQL"):
        wrong()
    assert tries == [1]
    with pytest.raises(UsageError, match="cannot be tried"):
        api.retry_with_backoff(max_retries=0)


def write(folder: Path, text: str) -> Path:
    file = folder / "configs" / "production" / "table_configs.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return folder / "configs"


def test_a_list_of_tables_is_read_or_refused(tmp_path: Path) -> None:
    configs = write(tmp_path, '[{"source": "public.orders", "primary_keys": ["id"], "batch_size": 500}]')
    assert api.load_table_configs(folder=configs)[0]["primary_keys"] == ["id"]
    for text, what, line in (
        ('[\n {"source": "a",}\n]', "not JSON", 2),
        ('{"source": "a"}', "no list", 1),
        ('[{"source": "a", "primary_key": ["id"]}]', "unknown key 'primary_key'", 0),
        ('[{"source": "a", "primary_keys": "id"}]', "primary_keys must be list", 0),
        ('[{"source": "a", "batch_size": true}]', "batch_size must be int", 0),
        ('[{"target": "a"}]', "table 1 has no source", 0),
        ("[1]", "table 1 is not an object", 0),
    ):
        with pytest.raises(ProjectError, match=what) as caught:
            api.load_table_configs(folder=write(tmp_path, text))
        assert getattr(caught.value.where, "line", -1) == line, text
    with pytest.raises(ProjectError, match="there is no table configuration"):
        api.load_table_configs("staging", configs)


def test_no_tables_are_nothing_to_do() -> None:
    assert api.parallel_data_processing([]) == []
    with pytest.raises(UsageError, match="max_workers"):
        api.parallel_data_processing([], max_workers=0)
    with pytest.raises(UsageError, match="unknown failure point") as caught:
        api.recover_failed_pipeline({"source": "a"}, "merge_operations")
    assert caught.value.hint == 'did you mean "merge_operation"?'


@pytest.mark.slow
def test_a_command_of_dbt_that_fails_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotFound, match="no dbt project"):
        api.run_dbt_pipeline(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    (tmp_path / "dbt_project.yml").write_text("name: tiny\nversion: '1.0'\nprofile: tiny\n")
    (tmp_path / "profiles.yml").write_text(
        "tiny: {target: dev, outputs: {dev: {type: duckdb, path: ':memory:', threads: 1}}}\n"
    )
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "broken.sql").write_text("select 1 as x from nowhere_at_all")
    with pytest.raises(StepFailed, match=r"dbt run .* failed with exit code 1") as caught:
        api.execute_dbt_commands([["run", "--target-path", str(tmp_path / "out")], "test"], tmp_path, tmp_path)
    assert any("nowhere_at_all" in line for line in caught.value.detail)
    (tmp_path / "models" / "broken.sql").write_text("select 1 as x")
    done = api.run_dbt_command(["run", "--profiles-dir", str(tmp_path)], tmp_path)
    assert "Completed successfully" in done.output
    assert sys.executable not in done.output
