from __future__ import annotations

import io
import json
import logging
import os
import pty
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from millrace.core.digest import Digest
from millrace.core.names import AssetId
from millrace.core.plan import Plan, Step
from millrace.core.position import Whole
from millrace.core.secrets import Secret
from millrace.core.staged import CheckResult, Counts, LedgerEntry
from millrace.engine.records import RunInfo, RunResult, StepOutcome
from millrace.errors import MillraceError, ProofFailed
from millrace.observe import lines
from millrace.observe.logs import LogObserver
from millrace.observe.progress import JsonReporter, PlainReporter, RichReporter, Running, observer, reporter_for

PASSWORD = 'p@ss:/%"'
FORMS = (PASSWORD, "p%40ss%3A%2F%25%22", 'p@ss:/%\\"')
RUN = RunInfo("7f3a99b2", "shop", "dev", "daily_ecommerce_pipeline")
ORDERS = AssetId("bronze", "orders")


def entry(**more) -> LedgerEntry:
    digest = Digest(1, 1, "s")
    given = LedgerEntry(ORDERS, 3, 9, Whole(digest), {}, digest, "transfer", "2026-11-20T06:00:00Z")
    return replace(given, **more)


STEPS = (
    Step("copy:bronze.orders", "copy", "bronze.orders", (ORDERS,)),
    Step("copy:bronze.customers", "copy", "bronze.customers", (AssetId("bronze", "customers"),)),
    Step("dbt:marts", "dbt", "marts", (AssetId("marts", "a"), AssetId("marts", "b"))),
    Step("gate:marts.daily", "gate", "marts.agg_daily_sales", ()),
    Step("model:silver.orders", "model", "silver.orders", (AssetId("silver", "orders"),)),
    Step("page:daily", "page", "pages/daily_sales.html", ()),
)
BAD = ProofFailed("bronze.x was not published", detail=["3 rows differ"], hint="look at it")
OUTCOMES = (
    StepOutcome("copy:bronze.orders", "copy", "bronze.orders", "published", 120_418, 1.23, "+418 since 06:00", (), (entry(),)),
    StepOutcome("copy:bronze.customers", "copy", "bronze.customers", "fresh", 8000, 0.31, "nothing changed"),
    StepOutcome("dbt:marts", "dbt", "marts", "published", 5, 4.1, "23 tests", (), (entry(level="none"), entry(level="none")),
                (CheckResult("t", ORDERS, True),)),
    StepOutcome("gate:marts.daily", "gate", "marts.agg_daily_sales", "passed", None, 0.01, "score 0.998"),
    StepOutcome("model:silver.orders", "model", "silver.orders", "failed", None, 0.6, BAD.what, error=BAD),
    StepOutcome("page:daily", "page", "pages/daily_sales.html", "skipped", message="silver.orders failed"),
)  # fmt: skip
RESULT = RunResult(RUN, OUTCOMES, "failed", 6.94)

PLAIN = """\
 shop · dev · daily_ecommerce_pipeline · run 7f3a

 copy   bronze.orders          120,418 rows   1.2 s  proven    +418 since 06:00
 copy   bronze.customers         8,000 rows   0.3 s  fresh     nothing changed
 dbt    marts                      2 models   4.1 s  checked   23 tests
 gate   marts.agg_daily_sales                        passed    score 0.998
 model  silver.orders                         0.6 s  failed    bronze.x was not published
 page   pages/daily_sales.html                       skipped   silver.orders failed

error: bronze.x was not published
  3 rows differ
  look at it

 failed after 6.9 s · published 2, passed 1, fresh 1, failed 1, skipped 1 · go on with: millrace run --resume 7f3a
"""


def play(watcher, result: RunResult = RESULT, steps: tuple[Step, ...] = STEPS) -> None:
    watcher.start_run(result.run, Plan(steps))
    for step, outcome in zip(steps, result.steps, strict=True):
        report = watcher.step_started(step)
        report.total(10)
        report.moved(5, 50)
        report.note(outcome.message)
        report.checks(outcome.checks)
        watcher.step_finished(step, outcome)
    watcher.end_run(result)
    watcher.close()


def test_plain_lines_are_aligned() -> None:
    out = io.StringIO()
    play(PlainReporter(out, resume="millrace run --resume {run}"))
    assert out.getvalue() == PLAIN


@pytest.mark.parametrize("form", ["plain", "rich"])
def test_errors_stand_on_the_error_stream_with_their_blank_lines(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    out, err = io.StringIO(), io.StringIO()
    play(reporter_for(out, form=form, resume="millrace run --resume {run}", errors=err))
    error = f"\nerror: {BAD}\n"
    assert err.getvalue() == error
    assert out.getvalue().splitlines() == PLAIN.replace(error, "").splitlines()


def test_a_step_that_was_staged_for_nothing_is_told_so() -> None:
    outcome = StepOutcome("copy:a.b", "copy", "a.b", "discarded", 2000, 0.8, "not published: marts failed")
    found = lines.line(outcome)
    assert (found.amount, found.word, found.note) == ("2,000 rows", "discarded", "not published: marts failed")
    assert "discarded 1" in lines.closing(RunResult(RUN, (outcome,), "failed"), None)


def test_the_closing_line_names_what_lies_in_quarantine():
    outcome = replace(OUTCOMES[0], entries=(replace(entry(), quarantined=17),))
    done = RunResult(RUN, (outcome,), "done", 6.94)
    assert lines.closing(done, None) == (
        " done in 6.9 s · published 1 · 17 rows in quarantine: millrace quarantine list"
    )
    failed = lines.closing(replace(done, status="failed"), "millrace run --resume {run}", 80).splitlines()
    assert [line.strip().partition(" ")[0] for line in failed] == ["failed", "17", "go"]
    assert "1 row in" in lines.closing(
        replace(done, steps=(replace(outcome, entries=(replace(entry(), quarantined=1),)),)), None
    )


def test_a_terminal_of_80_columns_is_never_exceeded_and_shows_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    out = io.StringIO()
    play(RichReporter(out, resume="millrace run --resume {run}", width=80))
    shown = out.getvalue().splitlines()
    assert all(len(line) <= 80 for line in shown)
    assert shown[2:4] == [
        " copy   bronze.orders         120,418 rows   1.2 s  proven    +418 since 06:00",
        " copy   bronze.customers        8,000 rows   0.3 s  fresh     nothing changed",
    ]
    assert shown[-2:] == [
        " failed after 6.9 s · published 2, passed 1, fresh 1, failed 1, skipped 1",
        " go on with: millrace run --resume 7f3a",
    ]


def test_names_that_do_not_fit_stay_apart() -> None:
    names = ["warehouse/silver.customers", "warehouse/silver.customer_segments", "pages/daily_sales.html"]
    assert [lines.fit(name, 21) for name in names] == [
        "warehou…ver.customers",
        "war…customer_segments",
        "pages/d…ly_sales.html",
    ]
    assert lines.fit(names[0], 26) == names[0]
    assert lines.fit("gold.고객별_주문_합계", 13) == "go…_주문_합계"
    assert lines.fit("x" * 50, 13) == "xx…" + "x" * 10


def test_on_a_narrow_line_quarantine_is_told_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    notes = ("20 rows → quarantine", "6 files; 13 lines → quarantine; 1 empty line skipped")
    outcomes = tuple(replace(OUTCOMES[0], label="warehouse/silver.customers", message=note) for note in notes)
    steps = (replace(STEPS[0], label="warehouse/silver.customers"),) * 2
    for width, wanted in ((80, ["20 → quarantine", "13 → quarantine"]), (140, list(notes))):
        out = io.StringIO()
        play(RichReporter(out, width=width), RunResult(RUN, outcomes, "done", 1.0), steps)
        shown = [line for line in out.getvalue().splitlines() if " proven " in line]
        assert [line.partition(" proven ")[2].strip() for line in shown] == wanted
        assert max(len(line) for line in shown) <= width
    assert lines.fit_note(notes[1], 27) == "13 → quarantine; 6 files"
    assert lines.fit_note("12 of 40 segments differ", 5) == "12 of 40 segments differ"  # the terminal cuts it


def test_large_numbers_and_wide_letters_keep_the_columns() -> None:
    big = replace(OUTCOMES[0], rows=1_204_000_123, seconds=812.04)
    korean = replace(OUTCOMES[0], label="gold.고객별_주문")
    widths = {len(lines.columns(lines.line(big), 22)[0])}
    before = lines.columns(lines.line(korean), 22)[0]
    widths.add(len(before) + 5)  # five letters of two cells
    widths.add(len(lines.columns(lines.line(replace(big, label="x" * 50)), 22)[0]))
    assert len(widths) == 1


def test_a_failed_check_that_does_not_block_is_a_warning() -> None:
    warned = replace(OUTCOMES[0], checks=(CheckResult("c", ORDERS, False, False),))
    assert (lines.line(warned).word, lines.line(warned).tone) == ("proven", "warned")


def test_without_a_note_the_changes_are_told() -> None:
    merged = replace(OUTCOMES[0], message="", entries=(entry(counts=Counts(418, 12, 0)),))
    assert lines.line(merged).note == "418 new, 12 changed"
    whole = replace(OUTCOMES[0], message="", entries=(entry(rows=417, counts=Counts(417, 0, 418)),))
    assert lines.line(whole).note == "all replaced, 418 before"
    first = replace(OUTCOMES[0], message="", entries=(entry(counts=Counts(120_418)),))
    assert lines.line(first).note == ""


def test_a_running_line_has_a_bar_a_rate_and_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("millrace.observe.progress.time.monotonic", lambda: clock[0])
    running = Running(STEPS[0])
    running.total(3_000_000)
    running.moved(1_200_000, 1)
    clock[0] = 104.0
    assert running.text(20, 80).plain == " copy   bronze.orders         ━━━━━━━━━━  40%  300,000 rows/s  6 s left"
    running.note("x" * 100)
    assert len(running.text(20, 80).plain) == 80
    other = Running(STEPS[2])
    clock[0] = 105.5
    assert other.text(20, 80).plain == " dbt    marts                   1.5 s"
    other.rest("waits for its group")
    clock[0] = 200.0
    assert other.text(20, 80).plain == " dbt    marts                 1.5 s  waits for its group"
    assert [lines.left(seconds) for seconds in (0.2, 89, 200, 9000)] == [
        "1 s left",
        "89 s left",
        "3 min left",
        "2.5 h left",
    ]


def test_json_events() -> None:
    out = io.StringIO()
    play(JsonReporter(out))
    events = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [event["event"] for event in events] == [
        "run_started", *["step_started", "step_finished"] * len(STEPS), "run_ended",
    ]  # fmt: skip
    assert events[2]["entries"][0]["seq"] == 3
    assert events[-1]["counts"] == {"published": 2, "fresh": 1, "passed": 1, "failed": 1, "skipped": 1}


def test_the_reporter_fits_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(reporter_for(io.StringIO()), PlainReporter)
    controller, terminal = pty.openpty()
    with os.fdopen(terminal, "w") as stream:
        monkeypatch.setenv("TERM", "xterm")
        assert isinstance(reporter_for(stream), RichReporter)
        monkeypatch.setenv("TERM", "dumb")
        assert isinstance(reporter_for(stream), PlainReporter)
    os.close(controller)


def test_on_a_real_terminal_the_line_moves_and_the_cursor_comes_back() -> None:
    code = """
import sys, time
sys.path.insert(0, sys.argv[1])
from test_observe import *
watcher = observer("terminal", root=Path("."))
watcher.start_run(RUN, Plan(STEPS[:1]))
report = watcher.step_started(STEPS[0])
report.total(1000)
for _ in range(10):
    report.moved(50, 1)
    time.sleep(0.05)
if sys.argv[2] == "end":
    watcher.step_finished(STEPS[0], OUTCOMES[0])
    watcher.end_run(RunResult(RUN, OUTCOMES[:1], "done", 0.5))
watcher.close()
"""
    for how in ("end", "break off"):
        controller, terminal = pty.openpty()
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(Path(__file__).parent), how],
            stdout=terminal, env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "80"},
        )  # fmt: skip
        os.close(terminal)
        shown = b""
        while True:
            try:
                part = os.read(controller, 65536)
            except OSError:  # the child has closed the terminal
                break
            if not part:
                break
            shown += part
        os.close(controller)
        assert child.wait(20) == 0
        text = shown.decode()
        assert "rows/s" in text
        assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
        if how == "end":
            assert "\x1b[32mproven" in text
            assert text.rstrip().endswith("done in 0.5 s · published 1")


def test_a_broken_pipe_does_not_end_a_run() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    stream = os.fdopen(writing, "w")
    play(PlainReporter(stream))
    with pytest.raises(BrokenPipeError):
        stream.close()


def log_lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / f"{RUN.id}.jsonl").read_text().splitlines()]


def test_log_lines_name_run_step_and_asset(tmp_path: Path) -> None:
    log = LogObserver(tmp_path / "logs")
    log.start_run(RUN, Plan(STEPS))
    log.say("retry", "connection lost", STEPS[0])
    logging.getLogger("some.library").warning("look at %s", "this")
    play(log)
    found = log_lines(tmp_path / "logs")
    for line in found:
        assert {"ts", "level", "event", "run"} <= set(line)
        assert line["run"] == RUN.id
        assert line["ts"].endswith("Z")
    retry = next(line for line in found if line["event"] == "retry")
    assert (retry["step"], retry["asset"], retry["level"]) == ("copy:bronze.orders", "bronze.orders", "warning")
    done = next(line for line in found if line["event"] == "step finished")
    assert (done["rows"], done["rows_per_second"], done["versions"]) == (120_418, 97_901, {"bronze.orders": 3})
    failed = next(line for line in found if line["event"] == "step finished" and line["level"] == "error")
    assert failed["error"]["code"] == "ProofFailed"
    library = next(line for line in found if line["event"] == "library")
    assert (library["logger"], library["text"]) == ("some.library", "look at this")
    assert found[-1]["event"] == "run ended"
    assert not [handler for handler in logging.getLogger().handlers if type(handler).__name__ == "_Bridge"]


def test_no_secret_is_shown_anywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Secret(PASSWORD)
    url = f"postgresql://u:{PASSWORD}@h/d postgresql://u:p%40ss%3A%2F%25%22@h/d"
    error = MillraceError(f"no way to {url}", where=url, detail=[url], hint=url)
    error.__cause__ = ValueError(url)
    check = CheckResult("c", ORDERS, False, True, 1, url, (url,))
    outcome = replace(
        OUTCOMES[0], status="failed", message=f"no way to {url}", error=error, checks=(check,), notes=(url,)
    )
    result = RunResult(replace(RUN, pipeline=url), (outcome,), "failed")
    outs = [io.StringIO() for _ in range(3)]
    watchers = [
        PlainReporter(outs[0]), JsonReporter(outs[1]), RichReporter(outs[2], width=200),
        LogObserver(tmp_path, stderr=True), observer("plain"),
    ]  # fmt: skip
    for watcher in watchers:
        watcher.start_run(result.run, Plan(STEPS[:1]))
        watcher.say("retry", url, STEPS[0])
        watcher.say("traceback", url, STEPS[0])
        play(watcher, result, STEPS[:1])
    running = Running(STEPS[0])
    running.note(url)
    captured = capsys.readouterr()
    texts = [out.getvalue() for out in outs]
    texts += [
        running.text(20, 500).plain,
        captured.out,
        captured.err,
        *(path.read_text() for path in tmp_path.iterdir()),
    ]
    for text in texts:
        assert "***" in text
        for form in FORMS:
            assert form not in text
