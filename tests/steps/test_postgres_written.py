"""A full sync that moves only the rows that were written: what it may take as known, and what must make it look again."""

from __future__ import annotations

import psycopg
import pytest
from doors import Copy, execute, leftovers, rows, table

from millrace.core.digest import Digest
from millrace.core.names import TableRef
from millrace.core.position import Whole
from millrace.core.segment import Segment
from millrace.core.staged import Counts, LedgerEntry
from millrace.errors import ProofFailed

CREATE = "create table t (id int primary key, name text not null, amount numeric(12,2), other int default 0)"
FILL = "insert into t select i, 'row ' || i, i * 1.10 from generate_series(1, 3000) as i"
SPREAD = "update t set name = name || '!' where id % 100 = 0"
ADDED_UP = "30 rows written since the last copy, no other by the row versions"
DIGESTED = "30 rows written since the last copy"


@pytest.fixture
def pair(db18: str, other18: str) -> Copy:
    execute(db18, CREATE, FILL)
    copy = Copy(db18, other18, segment_rows=500)
    copy.run()
    return copy


def synced(copy: Copy, **more: str) -> tuple[LedgerEntry, str]:
    """Copy; return the entry, of which the whole table was proven and is right, and what was said."""
    entry = copy.run(**more)
    assert entry is not None
    assert entry.level == "table"
    assert table(copy.urls[0]) == table(copy.urls[1])
    with copy.reader.snapshot() as snap:
        source = copy.reader.source(TableRef("public", "t"), connection=snap.connection)
        assert isinstance(entry.position, Whole)
        assert entry.position.digest == copy.reader.digest(source, [Segment.whole()], snap)["all"] == entry.digest
    return entry, copy.ctx.report.notes[-1]


def test_what_is_known_is_not_read_again(pair: Copy) -> None:
    source, target = pair.urls
    for statement in (SPREAD, "vacuum (freeze, analyze) t", SPREAD):
        execute(source, statement)
    entry, note = synced(pair)
    assert (entry.counts, note) == (Counts(0, 30, 0), ADDED_UP)
    assert isinstance(entry.position, Whole)
    assert entry.position.read == "2026-11-20T06:00:00+00:00"

    execute(target, "vacuum (freeze, analyze) t", "create index on t (name)", "begin; update t set name = ''; rollback")
    execute(source, SPREAD, "insert into t values (-1, 'new'), (0, 'new')")
    entry, note = synced(pair)
    assert (entry.counts, note) == (Counts(2, 30, 0), ADDED_UP.replace("30", "32"))

    with psycopg.connect(source) as late:  # began before the position and commits after it
        late.execute("update t set amount = 0 where id = 7")
        execute(source, SPREAD)
        assert pair.run() is not None
        assert pair.ctx.report.notes[-1] == ADDED_UP.replace("30", "31")
        late.commit()
    assert synced(pair)[0].counts == Counts(0, 1, 0)
    assert leftovers(source) == leftovers(target) == []


@pytest.mark.parametrize(
    ("change", "counts"),
    [
        (["delete from t where id = 5", "insert into t values (5000, 'new')"], Counts(1, 30, 1)),
        (["delete from t where id = 5"], Counts(0, 30, 1)),
        (["update t set id = 6000 where id = 6"], Counts(1, 30, 1)),
        (["begin; delete from t where id = 100; insert into t values (100, 'again'); commit"], Counts(0, 30, 0)),
        (["alter table t drop column other", "alter table t add column other int default 5"], Counts(0, 3000, 0)),
        (
            [
                "create table u (like t including all)",
                "insert into u select id, name, 7 from t",
                "drop table t",
                "alter table u rename to t",
            ],
            Counts(0, 3000, 0),
        ),
        (["vacuum full t"], Counts(0, 30, 0)),
    ],
)
def test_of_the_source_what_row_versions_do_not_tell_is_read(pair: Copy, change: list[str], counts: Counts) -> None:
    """Deletes leave no trace, another table or column no versions: segments are compared."""
    execute(pair.urls[0], SPREAD, *change)
    entry, note = synced(pair)
    assert entry.counts == counts
    assert (note == ADDED_UP) == change[0].startswith("begin")


def test_the_source_is_read_whole_where_it_need_not_add_up(pair: Copy) -> None:
    """Within `verify`, and where the server does not keep the key."""
    execute(pair.urls[0], SPREAD)
    entry, note = synced(pair, logical_time="2026-11-21T06:00:00Z")
    assert note == ADDED_UP
    copy = pair.with_(verify=60.0)
    execute(pair.urls[0], SPREAD)
    entry, note = synced(copy, logical_time="2026-11-21T06:00:00Z")
    assert note == DIGESTED
    assert isinstance(entry.position, Whole)
    assert entry.position.read == "2026-11-21T06:00:00+00:00"

    # A position that claims to have seen what it has not stands for a change without a new row version.
    execute(pair.urls[0], "update t set amount = 0 where id = 7")
    seen = "(select to_jsonb(pg_current_snapshot()::text))"
    execute(pair.urls[1], f"update _millrace.ledger set entry = jsonb_set(entry, '{{position,snapshot}}', {seen})")
    execute(pair.urls[0], SPREAD)
    entry, note = synced(pair.with_(verify_all=True))
    assert entry.counts == Counts(0, 31, 0)

    execute(pair.urls[0], "alter table t drop constraint t_pkey", SPREAD)
    assert synced(pair.with_(key=("id",)))[1] == DIGESTED


@pytest.mark.parametrize(
    "change",
    [
        ["update t set name = 'by hand' where id = 7"],
        ["update t set name = 'by hand' where id = 100"],  # a row that is copied anyway
        ["delete from t where id = 7"],
        ["delete from t where id = 7", "insert into t values (7000, 'by hand')"],
        ["create table kept as table t", "delete from kept where id = 7", "truncate t", "insert into t table kept"],
        ["alter table t add column note text default 'x'", "update t set amount = 0 where id = 7", "vacuum full t"],
    ],
)
def test_a_target_that_was_written_is_found_and_mended(pair: Copy, change: list[str]) -> None:
    execute(pair.urls[0], SPREAD)
    execute(pair.urls[1], *change)
    entry = pair.run()
    assert entry is not None
    assert "segments differ" in pair.ctx.report.notes[-1]
    query = "select id, name, amount, other from t order by 1"
    assert rows(pair.urls[0], query) == rows(pair.urls[1], query)


def test_who_writes_around_the_publish_is_found(pair: Copy) -> None:
    execute(pair.urls[0], SPREAD)
    with psycopg.connect(pair.urls[1]) as writer:
        writer.execute("create temporary table old (id int)")  # its transaction is older than the publish's
        assert synced(pair)[1] == ADDED_UP
        writer.execute("update t set name = 'by hand' where id = 7")
    execute(pair.urls[0], SPREAD)
    entry, note = synced(pair)
    assert "segments differ" in note
    assert entry.counts == Counts(0, 31, 0)

    execute(pair.urls[0], SPREAD)
    staged = pair.stage()
    assert pair.ctx.report.notes[-1] == ADDED_UP
    execute(pair.urls[1], "update t set name = 'meanwhile' where id = 7")
    with pytest.raises(ProofFailed, match="would not equal the source"):
        pair.publish(staged, pair.prove(staged))
    pair.target.discard(staged[0])
    assert "segments differ" in synced(pair)[1]


def test_a_ledger_of_an_older_version_has_all_read(pair: Copy) -> None:
    execute(pair.urls[1], "update _millrace.ledger set entry = entry - 'witness' #- '{position,read}'")
    execute(pair.urls[0], SPREAD)
    entry, note = synced(pair)
    assert note == DIGESTED
    assert entry.witness is not None
    assert LedgerEntry.from_json(entry.to_json()) == entry
    assert isinstance(entry.digest, Digest)
