from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from filetarget import CopyLines, Shop, Upper

from millrace.core.names import AssetId, short_run
from millrace.core.plan import Step
from millrace.engine.session import RunOptions
from millrace.errors import (
    CommitUnknown,
    ConnectionRefused,
    MillraceError,
    NotFound,
    PositionRegressed,
    SeqMoved,
    UsageError,
)

ALL = {
    "bronze.customers": (1, ["ann", "bob"]),
    "bronze.orders": (1, ["one", "two", "three"]),
    "silver.orders": (1, ["ONE", "TWO", "THREE", "ANN", "BOB"]),
}


def statuses(result) -> list[str]:
    for error in result.errors:
        print(error, error.__cause__)
    return [step.status for step in result.steps]


def test_a_run_publishes_and_a_second_one_does_nothing(shop: Shop) -> None:
    result = shop.run(pipeline="daily")
    assert (statuses(result), result.exit_code) == (["published"] * 3, 0)
    assert shop.state() == ALL
    assert [step.rows for step in result.steps] == [3, 2, 5]
    assert result["copy:bronze.orders"].entries[0].seq == 1
    assert shop.watch.finished == ["bronze.orders published", "bronze.customers published", "silver.orders published"]
    again = shop.run()
    assert statuses(again) == ["fresh"] * 3
    assert [step.message for step in again.steps] == ["nothing changed"] * 3
    assert again["copy:bronze.orders"].rows == 3
    assert shop.state() == ALL
    assert shop.lake.leftovers() == []
    assert not list((shop.root / "work" / "scratch").glob("*"))


def test_a_model_sees_what_the_same_run_published(shop: Shop) -> None:
    shop.run()
    shop.orders.write_text("four\n")
    result = shop.run()
    assert statuses(result) == ["published", "fresh", "published"]
    assert shop.state()["silver.orders"] == (2, ["FOUR", "ANN", "BOB"])
    assert result["model:silver.orders"].entries[0].inputs == {"bronze.orders": 2, "bronze.customers": 1}


def test_the_journal_tells_what_happened(shop: Shop) -> None:
    result = shop.run(pipeline="daily", command="millrace run")
    journal = shop.journal()
    row = journal.run(result.run.id[:4])
    assert (row.project, row.env, row.pipeline, row.status, row.command) == (
        "shop",
        "dev",
        "daily",
        "done",
        "millrace run",
    )
    assert journal.list_runs(5) == [row]
    step = journal.last("copy:bronze.orders")
    assert step is not None
    assert (step.phase, step.rows, step.run, step.bases) == ("published", 3, row.id, None)
    assert step.entries == result["copy:bronze.orders"].entries
    assert step.seconds is not None
    assert step.peak_rss is not None
    assert step.peak_rss > 10_000_000
    with pytest.raises(NotFound, match="there is no run 'nope'"):
        journal.run("nope")


def test_a_failure_skips_what_is_downstream_and_nothing_else(shop: Shop) -> None:
    shop.failing(0, "ContractBroken", text="column gone")
    result = shop.run()
    assert statuses(result) == ["failed", "published", "skipped"]
    assert result["model:silver.orders"].message == "bronze.orders failed"
    assert result["copy:bronze.orders"].message == "column gone"
    assert result.exit_code == 1
    assert list(shop.state()) == ["bronze.customers"]
    assert shop.lake.leftovers() == []
    row = shop.journal().step(result.run.id, "copy:bronze.orders")
    assert row is not None
    assert row.error is not None
    assert row.error["code"] == "ContractBroken"


def test_the_first_cause_is_named_through_a_chain(shop: Shop) -> None:
    shop.steps.append(shop.model("gold.orders", ["silver.orders"]))
    shop.failing(0, "ContractBroken")
    assert shop.run()["model:gold.orders"].message == "bronze.orders failed"


def test_fail_fast_starts_nothing_more(shop: Shop) -> None:
    shop.failing(0, "ContractBroken")
    result = shop.run(fail_fast=True)
    assert statuses(result) == ["failed", "skipped", "skipped"]
    assert "stopped at the first failure" in result.steps[1].message


def test_an_unexpected_error_is_fatal_and_its_traceback_goes_to_the_journal(shop: Shop) -> None:
    shop.failing(0, "no such class", text="k")
    result = shop.run()
    error = result.steps[0].error
    assert error is not None
    assert error.what == "unexpected KeyError: 'k'"
    assert (shop.root / "count0").read_text() == "1"
    row = shop.journal().step(result.run.id, "copy:bronze.orders")
    assert row is not None
    assert row.error is not None
    assert "stumble" in row.error["traceback"]
    assert "Traceback" not in str(error)
    assert any(event == "traceback" and "stumble" in text for event, text in shop.watch.said)


@pytest.mark.parametrize("door", ["fresh", "stage", "prove"])
def test_retryable_errors_are_tried_again(shop: Shop, door: str) -> None:
    shop.failing(0, "TransientFailure", times=2, door=door)
    assert statuses(shop.run()) == ["published"] * 3
    assert shop.state() == ALL
    assert [event for event, _ in shop.watch.said] == ["retry", "retry"]
    assert "attempt 2 of 3" in shop.watch.said[0][1]


def test_retries_end(shop: Shop) -> None:
    shop.failing(0, "ConnectionRefused", times=3)
    result = shop.run()
    assert statuses(result) == ["failed", "published", "skipped"]
    assert (shop.root / "count0").read_text() == "3"


def test_fatal_errors_are_not_tried_again(shop: Shop) -> None:
    shop.failing(0, "ProofFailed", door="prove")
    assert statuses(shop.run())[0] == "failed"
    assert (shop.root / "count0").read_text() == "1"
    assert shop.lake.leftovers() == []


def test_a_step_may_find_nothing_to_publish(shop: Shop) -> None:
    shop.steps = [shop.copy("orders", empty=True)]
    result = shop.run()
    assert (statuses(result), result.steps[0].message) == (["fresh"], "nothing to publish")


def test_a_gate_alone_stops_what_comes_after(shop: Shop) -> None:
    shop.orders.write_text("bad\n")
    shop.steps = [shop.copy("orders"), shop.gate("bronze.orders", ["bronze.orders"])]
    shop.steps.append(shop.model("silver.orders", ["bronze.orders"], after=("gate:bronze.orders",)))
    result = shop.run()
    assert statuses(result) == ["published", "failed", "skipped"]
    checks = shop.journal().checks(result.run.id)
    assert [(check.name, check.passed, check.failing, check.sample) for check in checks] == [
        ("no_bad", False, 1, ("bad",))
    ]
    shop.orders.write_text("good\n")
    assert statuses(shop.run()) == ["published", "passed", "published"]


def test_a_group_is_published_as_a_whole(shop: Shop) -> None:
    shop.together()
    result = shop.run()
    assert statuses(result) == ["published"] * 3 + ["passed"]
    assert shop.state() == ALL
    assert result["model:silver.orders"].entries[0].inputs == {"bronze.orders": 1, "bronze.customers": 1}
    assert statuses(shop.run()) == ["fresh"] * 3 + ["passed"]
    shop.customers.write_text("eve\n")
    assert statuses(shop.run()) == ["fresh", "published", "published", "passed"]
    assert shop.state()["silver.orders"] == (2, ["ONE", "TWO", "THREE", "EVE"])


def test_a_failure_discards_the_whole_group(shop: Shop) -> None:
    shop.together()
    shop.run()
    before = shop.state()
    shop.orders.write_text("bad\n")
    result = shop.run()
    assert statuses(result) == ["discarded", "fresh", "discarded", "failed"]
    assert result["copy:bronze.orders"].message == "not published: silver.orders failed"
    assert shop.state() == before
    assert shop.lake.leftovers() == []


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_kind_is_told_once_that_a_step_will_have_work(shop: Shop, monkeypatch: pytest.MonkeyPatch, jobs: int) -> None:
    told: list[str] = []

    @contextmanager
    def expect(_kind: Upper, step: Step) -> Iterator[None]:
        told.append(f"{step.label} of {len(shop.state())}")
        yield
        told.append("left")

    monkeypatch.setattr(Upper, "expect", expect, raising=False)
    shop.run(jobs=jobs)
    assert told in (["silver.orders of 1", "left"], ["silver.orders of 2", "left"]), "before it is published"
    told.clear()
    shop.run(jobs=jobs)
    assert told == [], "nothing was published that it reads"
    shop.orders.write_text("four\n")
    shop.failing(1, "ContractBroken", door="fresh")
    assert statuses(shop.run(jobs=jobs)) == ["published", "failed", "skipped"]
    assert told == ["silver.orders of 3", "left"], "it is left although its turn never came"


def test_a_failure_before_a_group_skips_all_of_it(shop: Shop) -> None:
    shop.steps = [
        shop.copy("orders"),
        shop.copy("customers", group="g"),
        shop.model("silver.x", ["bronze.orders"], "g"),
    ]
    shop.failing(0, "ContractBroken")
    assert statuses(shop.run()) == ["failed", "skipped", "skipped"]
    assert shop.state() == {}


def test_a_target_behind_the_journal_stops_until_it_is_accepted(shop: Shop) -> None:
    shop.run()
    ledger = shop.lake.root / "ledger.json"
    old = json.loads(ledger.read_text())
    shop.orders.write_text("four\n")
    shop.run()
    new = json.loads(ledger.read_text())
    ledger.write_text(json.dumps({**new, "bronze.orders": old["bronze.orders"]}))
    result = shop.run()
    error = result["copy:bronze.orders"].error
    assert isinstance(error, PositionRegressed)
    assert "expected load 2" in str(error)
    assert "--accept-restored" in str(error)
    assert statuses(shop.run(accept_restored=True)) == ["published", "fresh", "fresh"]
    assert shop.state()["bronze.orders"] == (2, ["four"])
    assert statuses(shop.run()) == ["fresh"] * 3


def test_an_emptied_target_is_restored_too(shop: Shop) -> None:
    shop.run()
    (shop.lake.root / "ledger.json").unlink()
    assert statuses(shop.run()) == ["failed", "failed", "skipped"]
    assert statuses(shop.run(accept_restored=True)) == ["published"] * 3


class Lossy:
    """The file target behind a connection that breaks around its commits."""

    def __init__(self, inner, answers: list[str]) -> None:
        self._inner, self.answers, self.published = inner, answers, 0

    def __getattr__(self, name: str):
        return getattr(self._inner, name)

    def publish(self, staged, proofs, expect):
        answer = self.answers.pop(0) if self.answers else "fine"
        if answer == "lost before":
            raise CommitUnknown("no answer to the commit")
        if answer == "moved":
            raise SeqMoved("someone else published")
        self.published += 1
        entries = self._inner.publish(staged, proofs, expect)
        if answer == "lost after":
            raise CommitUnknown("no answer to the commit")
        return entries


@pytest.mark.parametrize("answers", [["lost after"], ["lost before"], ["lost before", "lost after"]])
def test_an_unknown_commit_is_looked_up_in_the_ledger(shop: Shop, answers: list[str]) -> None:
    lossy = Lossy(shop.lake, list(answers))
    assert statuses(shop.run(targets={"lake": lossy})) == ["published"] * 3
    assert shop.state() == ALL
    assert lossy.published == 3


def test_a_commit_that_stays_unknown_is_adopted_by_resume(shop: Shop) -> None:
    shop.steps = shop.steps[:1]
    lossy = Lossy(shop.lake, ["lost before"] * 3)
    result = shop.run(targets={"lake": lossy})
    assert isinstance(result.steps[0].error, CommitUnknown)
    staged = shop.journal().steps(result.run.id)[0].staged
    shop.lake.publish(staged, [shop.lake.prove(staged[0])], {staged[0].asset: 0})  # it came through late
    resumed = shop.run(resume=result.run.id[:5])
    assert resumed.run.id == result.run.id
    assert resumed.steps[0].adopted
    assert shop.state() == {"bronze.orders": ALL["bronze.orders"]}


def test_a_moved_ledger_fails_the_step_and_drops_its_stage(shop: Shop) -> None:
    result = shop.run(targets={"lake": Lossy(shop.lake, ["moved"])})
    assert statuses(result) == ["failed", "published", "skipped"]
    assert "run again" in str(result.steps[0].error)
    assert shop.lake.leftovers() == []
    assert statuses(shop.run()) == ["published", "fresh", "published"]


def test_a_target_that_cannot_be_read_is_told_once(shop: Shop) -> None:
    class Away(type(shop.lake)):
        def ledger(self, asset):
            raise ConnectionRefused("cannot connect to lake")

        def gc(self, live):
            raise ConnectionRefused("cannot connect to lake")

    class Unswept(type(shop.lake)):
        def gc(self, live):
            raise ConnectionRefused("cannot list the lake")

    away = shop.run(targets={"lake": Away(shop.lake.root)})
    assert away.errors[0].what == "cannot connect to lake"
    assert "left" not in [event for event, _ in shop.watch.said]
    assert statuses(shop.run(targets={"lake": Unswept(shop.lake.root)})) == ["published"] * 3
    assert shop.watch.said[-1] == ("left", "leftovers could not be looked for: cannot list the lake")


def test_a_step_kind_cannot_publish_what_is_not_its_own(shop: Shop) -> None:
    shop.steps = shop.steps[:1]
    engine = shop.engine()

    class Thief(CopyLines):
        def stage(self, step, ctx):
            return (shop.lake.write(step, ctx, AssetId("gold", "bars"), ["x"], position=self._position(step)),)

    engine.kinds = {"copy": Thief()}
    result = engine.run(shop.plan)
    assert "gold.bars, which is not of this step" in str(result.steps[0].error)
    assert shop.state() == {}
    assert shop.lake.leftovers() == []


def test_a_run_is_told_from_all_others_by_four_digits(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = iter(["7f3a0001", "7f3a0002", "7f3a0003", "81bc0004"])
    monkeypatch.setattr("secrets.token_hex", lambda size: next(drawn))
    assert shop.run().run.id == "7f3a0001"
    second = shop.run().run.id
    assert second == "81bc0004"
    assert shop.journal().run(short_run(second)).id == second
    assert short_run("airflow-2026-11-20") == "airflow-2026-11-20"


def test_resume_is_refused_elsewhere(shop: Shop) -> None:
    run = shop.run().run.id
    engine = shop.engine()
    engine.env = "prod"
    with pytest.raises(UsageError, match="is of shop, environment dev"):
        engine.run(shop.plan, resume=run)


def test_resume_keeps_what_was_published_and_runs_the_rest(shop: Shop) -> None:
    shop.failing(1, "ContractBroken", times=1)
    first = shop.run(logical_time="2026-11-20T06:00:00Z")
    assert statuses(first) == ["published", "failed", "skipped"]
    shop.orders.write_text("changed meanwhile\n")
    second = shop.run(resume=first.run.id)
    assert statuses(second) == ["published"] * 3
    assert second.steps[0].message == "kept from the first attempt"
    assert second.run.logical_time == "2026-11-20T06:00:00Z"
    assert shop.state() == ALL
    assert shop.journal().run(first.run.id).status == "done"


def test_full_refresh_calls_nothing_fresh(shop: Shop) -> None:
    shop.run()
    assert statuses(shop.run(full_refresh=True)) == ["published"] * 3
    assert shop.state()["silver.orders"][0] == 2


def test_an_unknown_kind_or_target_is_one_clear_error(shop: Shop) -> None:
    engine = shop.engine(targets={"other": shop.lake})
    errors = engine.run(shop.plan).errors
    assert [error.what for error in errors] == ["there is no target 'lake'"] * 2
    engine = shop.engine()
    engine.kinds = {}
    assert isinstance(engine.run(shop.plan).errors[0], MillraceError)


def test_independent_steps_run_at_once_with_jobs(shop: Shop) -> None:
    meet = threading.Barrier(2, timeout=20)
    shop.steps += [shop.gate("silver.orders", ["silver.orders"])]
    engine = shop.engine()

    class Meeting(CopyLines):
        def stage(self, step, ctx):
            meet.wait()  # both copies must be here at once
            return super().stage(step, ctx)

    engine.kinds = {**engine.kinds, "copy": Meeting()}
    result = engine.run(shop.plan, options=RunOptions(jobs=2))
    assert statuses(result) == ["published"] * 3 + ["passed"]
    assert shop.state() == ALL
    shop.orders.write_text("x\n")
    shop.failing(0, "ContractBroken")
    assert statuses(shop.run(jobs=2)) == ["failed", "fresh", "skipped", "skipped"]


def test_jobs_leave_groups_whole(shop: Shop) -> None:
    shop.together()
    shop.steps.append(shop.model("gold.orders", ["silver.orders"]))
    assert statuses(shop.run(jobs=2)) == ["published"] * 3 + ["passed", "published"]
