"""Write the shop's synthetic clickstream: JSON lines in a landing folder, as a web shop's collector leaves them.

Each line is one event. Its time is in seconds, in milliseconds, or ISO 8601 with a zone. As in life, some lines are
broken: one in 2,000 is not an event, and each day's last file ends in the middle of a line; some events come twice (one
in 100), half of these a day later; some have no `event_id` or no `user_id`, and a few clocks are wrong by years.
"""

from __future__ import annotations

import datetime as dt
import random
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

PAGES = ("/", "/search", "/cart", "/checkout", "/account")
PERIOD = 4000  # lines after which each kind of fault comes again
TWICE = 100
MALFORMED, NOT_AN_EVENT, NO_EVENT_ID, NO_USER_ID, WRONG_CLOCK = 11, 23, 37, 53, 71  # their places in a period
KOREA = dt.timezone(dt.timedelta(hours=9))


@dataclass(frozen=True, slots=True)
class Landed:
    """What was written, so that what comes of it can be judged.

    Attributes:
        files: how many files.
        lines: how many lines, broken ones counted, empty ones none.
        unreadable: lines that are not a JSON object: malformed, half, or something else.
        without_id: events without `event_id` or `user_id`.
        wrong_clock: events long before 2022 or years ahead.
        repeated: lines that repeat an earlier event.
    """

    files: int
    lines: int
    unreadable: int
    without_id: int
    wrong_clock: int
    repeated: int

    @property
    def events(self) -> int:
        """Events that are right, each counted once."""
        return self.lines - self.unreadable - self.without_id - self.wrong_clock - self.repeated


def write_events(
    landing: Path,
    *,
    events: int = 20_000,
    users: int = 1000,
    seed: int = 42,
    end: dt.date | None = None,
    days: int = 3,
    parts: int = 2,
) -> Landed:
    """Write `clickstream/<date>/part-<n>.jsonl` below a folder; files of these names are replaced.

    Args:
        landing: the folder; it is made.
        events: how many lines, besides repeats and half lines: at least 100.
        users: events are of users 1 to this.
        seed: same seed and end, same bytes.
        end: the day after the last events' day; default: today in UTC.
        days: on how many days the events lie, evenly.
        parts: files of a day.
    """
    last = end or dt.datetime.now(dt.UTC).date()
    counts = dict.fromkeys(("files", "unreadable", "without_id", "wrong_clock", "repeated", "lines"), 0)
    part_of = events / (days * parts)
    late: list[str] = []
    source = random.Random(seed)  # noqa: S311 - the same for the same seed is what is wanted
    numbered = ((int(i // part_of), i) for i in range(events))
    for part, group in groupby(numbered, key=lambda pair: pair[0]):
        day = last - dt.timedelta(days=days - part // parts)
        begins, ends = part % parts == 0, part % parts == parts - 1
        lines = late if begins else []
        late = [] if begins else late
        for _, i in group:
            at = dt.datetime.combine(day, dt.time(), dt.UTC) + dt.timedelta(
                milliseconds=int(86_400_000 * (i / part_of / parts % 1))
            )
            line, kind = _line(i, at, users, source)
            lines.append(line)
            if kind:
                counts[kind] += 1
            elif i % TWICE == 5:
                counts["repeated"] += 1
                # in the last day's stead of a day after: at once
                (lines if i % (2 * TWICE) == 5 or part // parts == days - 1 else late).append(line)
        if ends:
            lines.append(lines[-1][: len(lines[-1]) // 2])
            counts["unreadable"] += 1
        counts["files"] += 1
        counts["lines"] += len(lines)
        folder = landing / "clickstream" / day.isoformat()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"part-{part % parts + 1}.jsonl").write_text("\n".join(lines) + ("" if ends else "\n"), "utf-8")
    return Landed(**counts)


def _line(i: int, at: dt.datetime, users: int, source: random.Random) -> tuple[str, str | None]:
    """Return an event's line, and what is wrong with it: the name of a count, or None."""
    place = i % PERIOD
    user, product, dice = 1 + int(source.random() * users), 1 + int(source.random() * 500), source.random()
    event_type, page = _act(dice, product)
    event_id: str | None = f"e-{i:09d}"
    user_id: str | None = str(user)
    kind = None
    if place == NO_EVENT_ID:
        event_id, kind = None, "without_id"
    elif place == NO_USER_ID:
        user_id, kind = None, "without_id"
    elif place == WRONG_CLOCK:
        at, kind = at.replace(year=1970 if i // PERIOD % 2 == 0 else at.year + 10, day=1), "wrong_clock"
    text = (
        f'{{"event_id": {_quoted(event_id)}, "user_id": {_quoted(user_id)}, "session_id": "s-{user}-{at:%Y%m%d}", '
        f'"event_type": "{event_type}", "page_url": "{page}", "timestamp": {_time(i, at)}, '
        f'"properties": {{"product_id": "{product}", "device": "{("phone", "desktop", "tablet")[i % 3]}"}}}}'
    )
    if place == MALFORMED:
        return text.replace(": ", " ", 1), "unreadable"
    if place == NOT_AN_EVENT:
        return '"collector restarted"', "unreadable"
    return text, kind


def _act(dice: float, product: int) -> tuple[str, str]:
    """Return what happens on which page; most of it is looking."""
    if dice < 0.80:
        return "page_view", f"/products/{product}" if dice < 0.6 else PAGES[int(dice * 1000) % len(PAGES)]
    if dice < 0.90:
        return "add_to_cart", f"/products/{product}"
    if dice < 0.94:
        return "purchase", "/checkout"
    return ("login", "/account") if dice < 0.97 else ("logout", "/")


def _quoted(text: str | None) -> str:
    return "null" if text is None else f'"{text}"'


def _time(i: int, at: dt.datetime) -> str:
    """Return a moment in one of the three forms, as JSON."""
    if i % 3 == 0:
        return str(int(at.timestamp()))
    if i % 3 == 1:
        return str(int(at.timestamp() * 1000))
    shown = at.astimezone(KOREA if i % 2 else dt.UTC)
    return f'"{shown.isoformat(timespec="milliseconds")}"'
