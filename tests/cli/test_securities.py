"""The template `securities` as written: `init`, `run`, `query`; then a day of changes, read here by plain SQL."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from millrace.app.embedded import embedded_url
from millrace.errors import MillraceError, NotFound
from millrace.testing.servers import remove_postgres, shared_postgres

from .conftest import Millrace

pytestmark = [pytest.mark.servers, pytest.mark.slow]


@pytest.fixture
def desk(tmp_path: Path, millrace: Millrace) -> Iterator[Path]:
    """A new project, and its server running, so that no command has to start it."""
    assert millrace("init", "desk", "--template", "securities").out.endswith(
        "cd desk && millrace validate && millrace run\n"
    )
    folder = tmp_path / "desk"
    with shared_postgres(folder / "postgres"):
        yield folder
    remove_postgres(folder / "postgres")


def statuses(out: str) -> dict[str, str]:
    return {step["key"]: step["status"] for step in json.loads(out)["steps"]}


def test_the_template_runs_as_written_and_follows_its_source(desk: Path, millrace: Millrace) -> None:
    done = millrace("run", cwd=desk)
    assert done.code == 0, done.out + done.err
    assert "published 3, passed 2" in done.out
    again = millrace("run", "--json", cwd=desk)
    assert set(statuses(again.out).values()) == {"fresh"}, again.err

    asked = millrace(
        "query", "select count(*) as n, count(distinct security_key) as s from marts.fact_events", "--json", cwd=desk
    )
    (row,) = json.loads(asked.out)
    assert row["n"] > 3000
    assert row["s"] > 100
    refused = millrace("query", "delete from marts.fact_events", cwd=desk)
    assert (refused.code, "it changes nothing" in refused.err) == (2, True)

    with shared_postgres(desk / "postgres") as url:
        with psycopg.connect(url, autocommit=True) as target:
            columns = target.execute(
                "select count(*) from pg_attribute where attrelid = 'raw_data.edi_690'::regclass and attnum > 0"
            )
            assert columns.fetchone() == (114,)
            unknown = target.execute(
                "select count(*) from marts.fact_events where security_key = '(unknown)'"
            ).fetchone()
            assert unknown is not None
            assert unknown[0] >= 75  # one in 40 of 3,000 events, and those of stocks that are not active
            assert target.execute(
                "select pg_typeof(priority)::text, min(priority), max(priority) from marts.fact_events group by 1"
            ).fetchall() == [("integer", 1, 2)]
            assert target.execute(
                "select name_ko ~ '[가-힣]' from marts.dim_securities where security_key = 'XKRX:000010'"
            ).fetchone() == (True,)
        with psycopg.connect(url.rpartition("/")[0] + "/edi_source", autocommit=True) as source:
            withdrawn = source.execute(
                "update edi_690 set actflag = 'D', changed = to_char(now(), 'YYYY/MM/DD HH24:MI:SS') where eventid = 1000004 returning eventcd"
            ).fetchall()
            source.execute("delete from stock_master where stock_code = '000010'")
            source.execute(
                "update stock_master set name_ko = '새한빛전자', updated_at = now() where stock_code = '000020'"
            )

    done = millrace("run", "--json", cwd=desk)
    assert statuses(done.out) == {
        "copy:raw_data.edi_690": "published", "copy:raw_data.stock_master": "published", "dbt:desk": "published",
        "gate:marts.fact_events": "passed", "gate:marts.dim_securities": "passed",
    }  # fmt: skip
    with shared_postgres(desk / "postgres") as url, psycopg.connect(url, autocommit=True) as target:
        marked = target.execute(
            "select is_deleted, count(*) from marts.fact_events where event_id = 1000004 group by 1"
        ).fetchall()
        assert marked == [(True, len(withdrawn))]
        versions = target.execute(
            "select count(*), count(dbt_valid_to) from snapshots.edi_690 where eventid = 1000004"
        ).fetchone()
        assert versions == (2 * len(withdrawn), len(withdrawn))
        ended = target.execute("select is_current from marts.dim_securities where stock_code = '000010'").fetchall()
        assert ended == [(False,)]
        names = target.execute(
            "select name_ko from marts.dim_securities where security_key = 'XKRX:000020' order by valid_from"
        ).fetchall()
        assert len(names) == 2
        assert names[1] == ("새한빛전자",)


def test_a_seed_makes_its_database_whole_or_not_at_all(desk: Path, tmp_path: Path) -> None:
    seed = tmp_path / "seed.sql"
    with pytest.raises(NotFound, match="connection shop has no seed"), embedded_url(desk / "postgres", "shop", seed):
        pass
    seed.write_text("create table t as select 1 as id; select 1 / 0;")
    broken = embedded_url(desk / "postgres", "shop", seed)
    with pytest.raises(MillraceError, match="could not make the database") as caught, broken:
        pass
    assert "division by zero" in str(caught.value)
    for id_ in (1, 2):  # the second time nothing is made
        seed.write_text(f"create table t as select {id_} as id;")
        with embedded_url(desk / "postgres", "shop", seed) as url, psycopg.connect(url) as connection:
            assert connection.execute("select id from t").fetchall() == [(1,)]
            assert connection.info.dbname == "shop"
