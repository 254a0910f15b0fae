"""Parquet files of a lake, as other engines read them."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from millrace.lake.table import writer


@pytest.mark.parametrize("kind", [pa.string(), pa.binary()])
@pytest.mark.parametrize("sampled", [True, False])
def test_nulls_beside_one_value_are_found(tmp_path: Path, kind: pa.DataType, sampled: bool) -> None:
    """DuckDB 2.0.0 finds every row where statistics of a plain column say that its values are equal."""
    first = pa.table({"name": pa.array([str(number) for number in range(100)]).cast(kind), "n": range(100)})
    then = pa.table({"name": pa.array(["same", None, "same"]).cast(kind), "n": range(100, 103)})
    path = tmp_path / "a.parquet"
    with writer(path, first.schema, first if sampled else None) as output:
        output.write_table(first)
        output.write_table(then)
    found = duckdb.sql(f"select n from read_parquet('{path}') where name is null").fetchall()
    assert found == [(101,)]
    column = pq.read_metadata(path).row_group(0).column(0)
    assert ("RLE_DICTIONARY" in column.encodings) is not sampled
