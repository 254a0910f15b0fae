"""One dashboard as one HTML file: no request to anywhere, light and dark, phone and desktop, printable."""

from __future__ import annotations

import base64
import datetime as dt
import gzip
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from importlib.resources import files
from typing import Any

from millrace.core.names import AssetId
from millrace.core.staged import CheckResult, score
from millrace.dashboards import figures
from millrace.dashboards.columns import Query, types_of
from millrace.errors import ExtraMissing, NotFound

MINUS = "\N{MINUS SIGN}"
SERIES = 5  # colours in the style sheet: a measure has the same one wherever it is drawn


@dataclass(frozen=True, slots=True)
class Source:
    """Where a page's figures come from: one asset, as of the load that they were made from.

    Attributes:
        load: ledger seq.
        time: when it was published, ISO 8601; empty: never.
        proof: what was proven of it, in words.
        rows: rows of the asset, or None.
        checks: what its checks found.
        quarantine: entries that wait, None where there is no quarantine.
    """

    asset: str
    load: int
    time: str
    proof: str
    rows: int | None = None
    checks: tuple[CheckResult, ...] = ()
    quarantine: int | None = None

    @property
    def failed(self) -> tuple[CheckResult, ...]:
        """Checks that warned: a blocking one would have stopped the publish."""
        return tuple(check for check in self.checks if not check.passed)

    @property
    def minute(self) -> str:
        """When it was published, to the minute in UTC."""
        return minute(self.time) if self.time else ""


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar of a chart: where it begins and how long it is, as shares of the width, 0 to 100."""

    label: str
    value: figures.Number | None
    text: str
    share: float | None
    start: float
    length: float


def minute(time: str) -> str:
    """Return an ISO 8601 time to the minute in UTC, as it is shown where no script runs."""
    return dt.datetime.fromisoformat(time).astimezone(dt.UTC).strftime("%Y-%m-%d %H:%M UTC")


def day(value: dt.date | None) -> str:
    """Return a day as people write it: 20 Nov 2026."""
    return "" if value is None else value.strftime("%-d %b %Y")


def number(value: Any, unit: str = "") -> str:
    """Return a figure as people read it: thousands separators, money and ratios with two decimals, a real minus."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        text = f"{value:,}"
    elif isinstance(value, Decimal | float):
        text = f"{value:,.2f}"
    else:
        return str(value)
    return text.replace("-", MINUS) + (f" {unit}" if unit else "")


def short(value: Any) -> str:
    """Return a figure in at most seven characters: 7,241 stays, 12.4 M is shortened."""
    if value is None:
        return "–"
    size = abs(float(value))
    for limit, divisor, letter in ((1e9, 1e9, " B"), (1e6, 1e6, " M")):
        if size >= limit:
            return f"{float(value) / divisor:,.1f}{letter}".replace("-", MINUS)
    if size >= 1000 or isinstance(value, int):
        return f"{round(value):,}".replace("-", MINUS)
    return f"{float(value):,.2f}".replace("-", MINUS)


def alike(value: figures.Number | None, greatest: float) -> str:
    """Return a figure in the form that suits the greatest beside it, so that a column of them can be compared."""
    if value is None:
        return "–"
    text = f"{float(value) / 1e6:,.1f} M" if greatest >= 1e8 else f"{value:,.{2 if greatest < 1000 else 0}f}"
    return (f"{value:,}" if isinstance(value, int) and greatest < 1e8 else text).replace("-", MINUS)


def spark(values: Sequence[Any]) -> str:
    """Return the points of a small line, 100 by 24, for an SVG polyline."""
    if len(values) < 2:
        return ""
    numbers = [float(value) for value in values]
    low, high = min(numbers), max(numbers)
    span = (high - low) or 1.0
    step = 100 / (len(numbers) - 1)
    return " ".join(f"{i * step:.1f},{22 - 20 * (value - low) / span:.1f}" for i, value in enumerate(numbers))


def bars(chart: figures.Chart) -> Iterator[Bar]:
    """Yield a chart's bars; those below zero go to the left of the common zero."""
    values = [float(y or 0) for y in chart.y]
    low, high = min(0.0, *values), max(0.0, *values)
    span = (high - low) or 1.0
    for index, (x, y) in enumerate(zip(chart.x, chart.y, strict=True)):
        start, length = min(values[index], 0.0) - low, abs(values[index])
        share = chart.shares[index] if chart.shares else None
        yield Bar(str(x), y, alike(y, max(-low, high)), share, 100 * start / span, 100 * length / span)


def _plain(value: Any) -> Any:
    """Return a value that JSON and Plotly know."""
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, dt.date | dt.datetime):
        return value.isoformat()
    return value


def packed(text: str) -> str:
    """Return a script compressed, as text: Plotly is 5 MB plain, and 2 MB so."""
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode("ascii")


class _Figures:
    """Answers a dashboard's questions; types of an asset's columns are asked once."""

    def __init__(self, dashboard: Mapping[str, Any], query: Query) -> None:
        self._dashboard = dashboard
        self._query = query
        self._types: dict[AssetId, dict[str, str]] = {}

    def _asset(self, item: Mapping[str, Any]) -> AssetId:
        return AssetId.parse(item.get("asset") or self._dashboard["asset"])

    def _columns(self, asset: AssetId) -> dict[str, str]:
        if asset not in self._types:
            self._types[asset] = types_of(self._query, asset)
            if not self._types[asset]:
                raise NotFound(f"{asset} is not in the warehouse", where=self._dashboard["title"])
        return self._types[asset]

    def kpis(self) -> list[figures.Kpi]:
        date = self._dashboard.get("date") or ""
        return [figures.kpi(self._query, self._asset(item), date, item) for item in self._dashboard.get("kpis") or ()]

    def charts(self) -> list[figures.Chart]:
        found = []
        for item in self._dashboard.get("charts") or ():
            asset, date = self._asset(item), self._dashboard.get("date")
            known = date if date in self._columns(asset) else None
            found.append(figures.chart(self._query, asset, item, known))
        return found

    def table(self) -> figures.Table | None:
        item = self._dashboard.get("table")
        if not item:
            return None
        asset = self._asset(item)
        return figures.table(self._query, asset, item, self._columns(asset))


def _colours(kpis: Sequence[figures.Kpi], charts: Sequence[figures.Chart]) -> dict[str, int]:
    """Return the number of each measure's colour."""
    measures = dict.fromkeys([*(kpi.measure for kpi in kpis), *(chart.measure for chart in charts)])
    return {measure: index % SERIES for index, measure in enumerate(measures)}


def _quality(sources: Sequence[Source]) -> dict[str, Any]:
    """Return what the page says about all its sources at once."""
    checks = [check for source in sources for check in source.checks]
    return {
        "passed": sum(check.passed for check in checks),
        "checks": len(checks),
        "score": score(checks),
        "quarantine": sum(source.quarantine or 0 for source in sources),
        "published": max((source.time for source in sources if source.time), default=""),
    }


def render(dashboard: Mapping[str, Any], query: Query, sources: Sequence[Source], *, made: str, run: str = "") -> str:
    """Return the page's HTML.

    Args:
        dashboard: a dashboard file's content.
        query: runs SQL in the warehouse and returns rows.
        sources: for the foot: what the page reads first, then what that came from.
        made: the run's time, ISO 8601.
        run: its id.

    Raises:
        NotFound: an asset does not exist.
        ExtraMissing: the extra `pages` is not installed.
    """
    try:
        import jinja2
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise ExtraMissing("a page", "pages") from None
    found = _Figures(dashboard, query)
    kpis, charts, table = found.kpis(), found.charts(), found.table()
    colours = _colours(kpis, charts)
    lines = [chart for chart in charts if chart.kind == "line" and chart.x]
    drawn = [
        {
            "title": chart.title,
            "unit": chart.unit,
            "colour": colours[chart.measure],
            "x": [_plain(x) for x in chart.x],
            "y": [_plain(y) for y in chart.y],
        }
        for chart in lines
    ]
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": number, "short": short, "spark": spark, "bars": bars, "day": day}
    environment.filters |= {"minute": minute}
    template = environment.from_string(files(__package__).joinpath("page.html").read_text("utf-8"))
    return template.render(
        title=dashboard["title"],
        description=dashboard.get("description"),
        asset=dashboard["asset"],
        newest=max((kpi.day for kpi in kpis if kpi.day), default=None),
        kpis=kpis,
        rows=[(kind, list(group)) for kind, group in itertools.groupby(charts, key=lambda chart: chart.kind)],
        colours=colours,
        lines=lines,
        table=table,
        sources=sources,
        quality=_quality(sources),
        made=made,
        run=run,
        style=files(__package__).joinpath("page.css").read_text("utf-8"),
        script=files(__package__).joinpath("page.js").read_text("utf-8"),
        plotly=packed(get_plotlyjs()) if lines else "",
        # "<" is escaped, so that no value can end the script element
        data=json.dumps(drawn, ensure_ascii=False).replace("<", "\\u003c"),
    )
