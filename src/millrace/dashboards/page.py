"""One dashboard as one HTML file: no request to anywhere, light and dark, phone and desktop, printable."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from importlib.resources import files
from typing import Any

from millrace.core.names import AssetId
from millrace.dashboards import figures
from millrace.errors import ExtraMissing, ProjectError

MINUS = "\N{MINUS SIGN}"
# Okabe and Ito's palette without its yellow, which is too pale on white: safe for colour-blind readers.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


@dataclass(frozen=True, slots=True)
class Source:
    """Where a page's figures come from, for its foot.

    Attributes:
        asset: what was read.
        load: ledger seq of the load.
        time: when it was published, UTC.
        proof: proof level and checks in words.
        rows: rows of the asset, or None.
    """

    asset: str
    load: int
    time: str
    proof: str
    rows: int | None = None


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
    return (text + (f" {unit}" if unit else "")).replace("-", MINUS)


def short(value: Any) -> str:
    """Return a KPI's figure in at most seven characters: 7,241 stays, 12.4 M is shortened."""
    if value is None:
        return "–"
    size = abs(float(value))
    for limit, divisor, letter in ((1e9, 1e9, " B"), (1e6, 1e6, " M"), (1e5, 1e3, " k")):
        if size >= limit:
            return f"{float(value) / divisor:,.1f}{letter}".replace("-", MINUS)
    return (f"{int(value):,}" if size >= 1000 or value == int(value) else f"{float(value):,.2f}").replace("-", MINUS)


def _spark(values: Sequence[Any]) -> str:
    """Return the points of a small line, 100 by 24, for an SVG polyline."""
    if len(values) < 2:
        return ""
    numbers = [float(value) for value in values]
    low, high = min(numbers), max(numbers)
    span = (high - low) or 1.0
    step = 100 / (len(numbers) - 1)
    return " ".join(f"{i * step:.1f},{22 - 20 * (value - low) / span:.1f}" for i, value in enumerate(numbers))


def _plain(value: Any) -> Any:
    """Return a value that JSON and Plotly know."""
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, dt.date | dt.datetime):
        return value.isoformat()
    return value


def _needed(dashboard: Mapping[str, Any]) -> dict[AssetId, set[str]]:
    """Return the columns that a dashboard reads, by asset."""
    default = AssetId.parse(dashboard["asset"])
    needed: dict[AssetId, set[str]] = {default: set()}
    for item in dashboard.get("kpis") or ():
        needed[default] |= {dashboard["date"], item["measure"]} | ({item["per"]} if item.get("per") else set())
    for item in dashboard.get("charts") or ():
        asset = AssetId.parse(item["asset"]) if item.get("asset") else default
        needed.setdefault(asset, set())
        needed[asset] |= {item["x"], item["y"]} | ({item["per"]} if item.get("per") else set())
    if wanted := dashboard.get("table"):
        needed[default] |= {*wanted["columns"], *(wanted.get("by") or ())}
    return needed


def render(
    dashboard: Mapping[str, Any],
    query: figures.Query,
    sources: Sequence[Source],
    *,
    made: str,
    notes: Sequence[str] = (),
    where: str = "",
) -> str:
    """Return the page's HTML.

    Args:
        dashboard: a dashboard file's content.
        query: runs SQL in the warehouse and returns rows.
        sources: for the foot.
        made: the run's time, UTC, as shown.
        notes: sentences for the foot, like rows in quarantine.
        where: the dashboard file, for errors.

    Raises:
        NotFound: an asset or column does not exist.
        ExtraMissing: the extra `pages` is not installed.
    """
    try:
        import jinja2
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise ExtraMissing("a page", "pages") from None
    if dashboard.get("kpis") and not dashboard.get("date"):
        raise ProjectError("the dashboard has kpis but names no date column", where=where, hint="add date: <column>")
    default = AssetId.parse(dashboard["asset"])
    types = {
        asset: figures.check_columns(query, asset, sorted(names), where) for asset, names in _needed(dashboard).items()
    }
    kpis = [figures.kpi(query, default, dashboard["date"], item) for item in dashboard.get("kpis") or ()]
    charts = [
        figures.chart(query, AssetId.parse(item["asset"]) if item.get("asset") else default, item)
        for item in dashboard.get("charts") or ()
    ]
    table = figures.table(query, default, dashboard["table"], types[default]) if dashboard.get("table") else None
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": number, "short": short, "spark": _spark}
    template = environment.from_string(files(__package__).joinpath("page.html").read_text("utf-8"))
    drawn = [
        {"kind": item.kind, "unit": item.unit, "x": [_plain(v) for v in item.x], "y": [_plain(v) for v in item.y]}
        for item in charts
    ]
    return template.render(
        title=dashboard["title"],
        kpis=kpis,
        charts=charts,
        table=table,
        sources=sources,
        made=made,
        notes=notes,
        style=files(__package__).joinpath("page.css").read_text("utf-8"),
        script=files(__package__).joinpath("page.js").read_text("utf-8"),
        plotly=get_plotlyjs() if charts else "",
        # "<" is escaped, so that no value can end the script element
        data=json.dumps({"charts": drawn, "series": SERIES}, ensure_ascii=False).replace("<", "\\u003c"),
    )
