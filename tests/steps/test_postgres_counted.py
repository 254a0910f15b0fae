"""`proof: count`: rows are counted and not compared, which everything says; later copies compare."""

from __future__ import annotations

import pytest
from doors import Copy, execute, leftovers, rows, table

from millrace.core.position import Cursor, Whole
from millrace.core.staged import Counts, LedgerEntry, Staged
from millrace.errors import Interrupted, ProofFailed

CREATE = "create table t (id int primary key, name text not null, at timestamptz default '2026-01-01')"
FILL = (
    "insert into t select i, 'row ' || i, timestamptz '2026-01-01' + i * interval '1 s' from generate_series(1, 3000) i"
)


@pytest.fixture
def pair(db18: str, other18: str) -> Copy:
    execute(db18, CREATE, FILL)
    return Copy(db18, other18, segment_rows=500, proof="count")


def run(copy: Copy) -> LedgerEntry:
    entry = copy.run()
    assert entry is not None
    assert LedgerEntry.from_json(entry.to_json()) == entry
    assert leftovers(copy.urls[0]) == leftovers(copy.urls[1]) == []
    return entry


def test_a_first_load_is_counted_and_the_next_copy_compares_all(pair: Copy) -> None:
    assert pair.fresh().proves == "the number of rows; none is compared"
    entry = run(pair)
    assert (entry.level, entry.rows, entry.counts, entry.witness) == ("counted", 3000, Counts(3000), None)
    assert entry.digest is not None
    assert (entry.digest.rows, entry.digest.total, entry.digest.shape) == (3000, 0, "counted")
    assert isinstance(entry.position, Whole)
    assert (entry.position.digest, entry.position.read) == (None, None)
    assert pair.ctx.report.notes == ["rows counted, not compared"]
    assert table(pair.urls[0]) == table(pair.urls[1])

    found = pair.fresh()
    assert (found.fresh, found.reason, found.proves) == (False, "rows were counted, not compared", "transfer, table")
    entry = run(pair)
    assert (entry.level, entry.counts) == ("table", Counts())
    assert "no row differs" in pair.ctx.report.notes[-1]
    assert pair.fresh().fresh

    execute(pair.urls[1], "drop table t", "drop schema _millrace, _millrace_stage cascade")
    run(pair)
    execute(pair.urls[1], "update t set name = 'by hand' where id = 7", "delete from t where id = 8")
    execute(pair.urls[0], "update t set name = name || '!' where id % 100 = 0")
    entry = run(pair)
    assert (entry.level, entry.counts) == ("table", Counts(1, 31, 0))
    assert table(pair.urls[0]) == table(pair.urls[1])


def test_truncate_is_counted_each_time(pair: Copy) -> None:
    copy = pair.with_(mode="truncate")
    run(copy)
    assert not copy.fresh().fresh
    entry = run(copy)
    assert (entry.level, entry.counts, entry.rows) == ("counted", Counts(3000, 0, 3000), 3000)
    execute(
        pair.urls[1],
        "create function skip() returns trigger language plpgsql as 'begin return null; end'",
        "create trigger skip before insert on t for each row when (new.id = 7) execute function skip()",
    )
    with pytest.raises(ProofFailed, match=r"the number of rows of .* would not equal"):
        copy.run()
    entry = run(copy.with_(mode="full"))
    assert entry.level == "table"
    assert table(pair.urls[0]) == table(pair.urls[1])


def test_changes_after_a_counted_load_are_proven_and_the_rest_waits_for_the_scrub(pair: Copy) -> None:
    copy = pair.with_(mode="incremental", cursor="at")
    entry = run(copy)
    assert entry.level == "counted"
    assert isinstance(entry.position, Cursor)
    assert entry.position.scrub is not None
    assert entry.position.scrub.since is None
    execute(pair.urls[0], "insert into t values (5000, 'new', '2026-02-01')")
    entry = run(copy)
    assert (entry.level, entry.counts) == ("applied", Counts(1, 0, 0))
    assert isinstance(entry.position, Cursor)
    assert entry.position.scrub is not None
    assert entry.position.scrub.since is None, "nobody has compared the rest"
    execute(pair.urls[0], "insert into t values (5001, 'new', '2026-02-02')")
    assert run(copy.with_(verify_all=True)).level == "table"


def test_what_is_counted_is_what_lies_there(pair: Copy) -> None:
    seen = 0

    def stopping() -> bool:
        nonlocal seen
        seen += 1
        return seen > 40

    with pytest.raises(Interrupted):
        pair.run(stopping=stopping)
    execute(pair.urls[0], "delete from t where id <= 10")  # what was staged holds rows that are gone
    assert run(pair).rows == 2990
    assert table(pair.urls[0]) == table(pair.urls[1])

    execute(pair.urls[1], "drop table t", "drop schema _millrace, _millrace_stage cascade")
    (staged,) = pair.stage()
    assert Staged.from_json(staged.to_json()).counted
    execute(pair.urls[1], f"delete from {staged.place} where id = 11")
    with pytest.raises(ProofFailed, match="not what the source holds"):
        pair.prove((staged,))
    pair.target.discard(staged)
    assert rows(pair.urls[1], "select to_regclass('t')") == [(None,)]
