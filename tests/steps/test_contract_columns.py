"""Columns that come, go or change their type, under each word of a contract, into PostgreSQL and into the lake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from doors import Copy, execute, leftovers, rows

from millrace.app import open_house
from millrace.errors import ContractBroken, MillraceError

pytestmark = pytest.mark.servers


@pytest.fixture
def pair(db15: str, other18: str) -> Copy:
    execute(
        db15,
        "create table t (id int primary key, v varchar(5), n int, changed timestamp)",
        "insert into t select i, 'v' || i, i, timestamp '2026-01-01' + i * interval '1 second' from generate_series(1, 900) i",
    )
    copy = Copy(db15, other18)
    copy.run()
    execute(other18, "create view seen as select id, v from t", "grant select on t to public")
    return copy


WIDER = "alter table t alter column n type bigint; alter table t add column more numeric(8, 2) default 1.50 not null"


def equal(copy: Copy) -> bool:
    query = "select to_jsonb(t)::text from t order by id"
    return rows(copy.urls[0], query) == rows(copy.urls[1], query)


@pytest.mark.parametrize("mode", ["full", "incremental", "truncate"])
def test_case_20_columns_evolve(pair: Copy, mode: str) -> None:
    cursor = {"cursor": "changed"} if mode == "incremental" else {}
    pair = pair.with_(mode=mode, new_columns="evolve", type_changes="evolve", **cursor)
    pair.run()
    execute(pair.urls[0], *WIDER.split("; "), "update t set n = 9000000000, changed = now() where id = 7")
    look = pair.fresh()
    assert (look.fresh, look.reason) == (False, "the columns changed: n, more")
    assert pair.dry_run() is not None
    entry = pair.run()
    assert entry is not None
    assert entry.level == "table"
    assert equal(pair)
    types = "select attname::text, format_type(atttypid, atttypmod) from pg_attribute where attrelid = 't'::regclass and attnum > 0"
    assert rows(pair.urls[1], types)[2:] == [
        ("n", "bigint"),
        ("changed", "timestamp without time zone"),
        ("more", "numeric(8,2)"),
    ]
    assert rows(pair.urls[1], "select count(*) from seen") == [(900,)], "views stay"
    assert rows(pair.urls[1], "select has_table_privilege('pg_monitor', 't', 'select')") == [(True,)], "grants stay"
    assert pair.fresh().fresh
    assert leftovers(pair.urls[1]) == []


def test_case_20_what_a_view_needs_is_not_altered(pair: Copy) -> None:
    execute(pair.urls[0], "alter table t alter column v type text")
    with pytest.raises(ContractBroken, match=r"column v is text in the source and character varying\(5\)"):
        pair.run()
    evolving = pair.with_(type_changes="evolve")
    with pytest.raises(MillraceError, match=r"could not publish public\.t") as caught:
        evolving.run()
    assert "used by a view" in str(caught.value)
    assert rows(pair.urls[1], "select count(*), max(length(v)) from t") == [(900, 4)]
    assert leftovers(pair.urls[1]) == []


def test_case_20_new_columns_are_left_out(pair: Copy) -> None:
    execute(pair.urls[0], "alter table t add column secret text default 'x'", "update t set v = 'new' where id = 7")
    with pytest.raises(ContractBroken, match="has no column secret"):
        pair.run()
    pair = pair.with_(new_columns="discard")
    entry = pair.run()
    assert entry is not None
    assert "left out by the contract: secret" in pair.ctx.report.notes
    assert rows(pair.urls[1], "select v from t where id = 7") == [("new",)]
    assert pair.fresh().fresh


START = "(id int primary key, a int, b varchar(5)); insert into {0} select i, i, 'b' || i from generate_series(1, 50) i"
CHANGES = {
    "new": "add column c text; update {0} set c = 'x' where id in (3, 4)",
    "dropped": "drop column b",
    "renamed": "rename column b to c",
    "retyped": "alter column a type text; update {0} set a = '07' where id = 3; update {0} set a = 'x' where id = 4",
    "widened": "alter column b type text; update {0} set b = 'longer' where id = 3",
}
WORDS = {  # columns besides the key and rows with a null in them, and a note; or the error
    "evolve": {
        "new": ("a integer, b character varying(5), c text", 48, ""),
        "dropped": ("a integer, b character varying(5)", 0, ""),
        "renamed": ("a integer, b character varying(5), c character varying(5)", 0, ""),
        "retyped": ("a text, b character varying(5)", 0, ""),
        "widened": ("a integer, b text", 0, ""),
    },
    "freeze": {
        "new": "has no column c, which the source has with type text",
        "dropped": ("a integer, b character varying(5)", 0, ""),
        "renamed": "has no column c",
        "retyped": "column a is text in the source and integer in",
        "widened": "column b is text in the source and character varying(5) in",
    },
    "discard": {
        "new": ("a integer, b character varying(5)", 0, "left out by the contract: c"),
        "dropped": ("a integer, b character varying(5)", 0, ""),
        "renamed": ("a integer, b character varying(5)", 0, "left out by the contract: c"),
        "retyped": ("a integer, b character varying(5)", 2, "2 values of a became null: no integer"),
        "widened": ("a integer, b character varying(5)", 1, "1 value of b became null: no character varying(5)"),
    },
}


@pytest.mark.parametrize("word", WORDS)
def test_case_20_columns_under_each_word(word: str, db15: str, other18: str) -> None:
    for number, (name, change) in enumerate(CHANGES.items()):
        execute(db15, *f"create table {name} {START}".format(name).split("; "))
        more = {"mode": "incremental", "cursor": "id"} if number % 2 else {}
        copy = Copy(db15, other18, table=f"public.{name}", new_columns=word, type_changes=word, **more)
        copy.run()
        execute(db15, *f"alter table {name} {change}".format(name).split("; "))
        wanted = WORDS[word][name]
        if isinstance(wanted, str):
            with pytest.raises(ContractBroken) as caught:
                copy.run()
            assert wanted in str(caught.value), name
            continue
        entry = copy.run()
        columns, nulls, note = wanted
        types = "select string_agg(attname || ' ' || format_type(atttypid, atttypmod), ', ' order by attnum) from pg_attribute"
        assert rows(other18, f"{types} where attrelid = '{name}'::regclass and attnum > 1") == [(columns,)], name
        assert rows(other18, f"select count(*), count(*) filter (where not t is not null) from {name} t") == [
            (50, nulls)
        ]
        assert note in copy.ctx.report.notes or not note, (name, copy.ctx.report.notes)
        assert entry is None or entry.level in ("table", "applied")
        assert copy.fresh().fresh, name
    execute(db15, "alter table widened alter id type bigint")
    if word == "discard":
        with pytest.raises(ContractBroken, match="column id was integer and is bigint: a key or cursor cannot"):
            copy.run()
    assert leftovers(other18) == []


def test_case_20_types_of_the_users_own_change(db15: str, other18: str) -> None:
    execute(
        db15,
        "create type mood as enum ('low', 'high')",
        "create domain small as int constraint few check (value < 5)",
        "create type pair as (a int, b int)",
        "create table t (id int primary key, m mood[], s small, p pair)",
        "insert into t select i, '{low}', 1, '(1,1)' from generate_series(1, 50) i",
    )
    copy = Copy(db15, other18, mode="incremental", cursor="id", verify=None)
    copy.run()
    execute(db15, "alter type mood add value 'mid' before 'high'", "update t set m = '{mid,low}' where id = 7")
    with pytest.raises(ContractBroken, match=r"types of public\.t are others") as caught:
        copy.run()
    assert "the enum public.mood has no value 'mid'" in str(caught.value)
    assert "alter type" in str(caught.value)
    evolving = copy.with_(type_changes="evolve")
    evolving.run()
    execute(db15, "alter type mood rename value 'low' to 'calm'")
    assert not evolving.fresh().fresh
    evolving.run()
    assert evolving.fresh().fresh
    assert equal(copy)
    words = "select string_agg(enumlabel, ' ' order by enumsortorder) from pg_enum where enumtypid = 'mood'::regtype"
    assert rows(other18, words) == [("calm low mid high",)]
    for change, said, statement in (
        ("alter domain small drop constraint few; update t set s = 9 where id = 8", "few", "drop constraint few;"),
        (
            "alter type pair add attribute c text; update t set p = '(1,1,x)' where id = 9",
            "(a integer, b integer)",
            ' add attribute "c" "pg_catalog"."text";',
        ),
    ):
        execute(db15, *change.split("; "))
        with pytest.raises(ContractBroken, match="are others") as caught:
            evolving.run()
        assert said in str(caught.value)
        assert caught.value.hint is not None
        found = caught.value.hint.removeprefix("run it there first: ")
        assert found.endswith(statement)
        execute(other18, found)
        evolving.run()
        assert equal(copy)
    assert leftovers(other18) == []


PROJECT = {
    "millrace.yaml": """
version: 1
name: t
layers: {bronze: lake}
environments: {dev: {lake: ./lake, connections: {src: {type: postgres, url: "${env:SRC}"}}}}
""",
    "copies/src.yaml": """
from: src
to: bronze
tables: {t: {mode: incremental, cursor: changed, contract: {new_columns: discard}}}
""",
}


@pytest.mark.slow
def test_case_20_new_columns_are_left_out_of_the_lake(
    pair: Copy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SRC", pair.urls[0])
    for name, text in PROJECT.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)

    def run() -> Any:
        with open_house(tmp_path) as house:
            (outcome,) = house.run(house.plan()).steps
            if outcome.error is not None:
                raise outcome.error
            found = house.query("select count(*), min(v) filter (where id = 7), count(distinct n) from bronze.t", 10)
        return outcome, [tuple(row) for row in found.rows]

    assert run()[1] == [(900, "v7", 900)]
    execute(
        pair.urls[0],
        "alter table t add column secret text default 'x'",
        "update t set v = 'new', changed = now() where id = 7",
    )
    outcome, found = run()
    assert found == [(900, "new", 900)]
    assert "left out by the contract: secret" in outcome.message
    assert run()[0].status == "fresh"
