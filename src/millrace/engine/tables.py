"""The journal's tables: times are UTC ISO 8601 texts, `heartbeat` counts seconds since the epoch, JSON is text."""

from __future__ import annotations

import sqlalchemy as sa

FORMAT = 1
"""Version of the journal; docs/reference/formats.md describes it. A newer one is refused."""

metadata = sa.MetaData()

format_table = sa.Table("format", metadata, sa.Column("version", sa.Integer, primary_key=True))

runs = sa.Table(
    "runs",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("project", sa.Text, nullable=False),
    sa.Column("env", sa.Text, nullable=False),
    sa.Column("pipeline", sa.Text, nullable=False),
    sa.Column("started", sa.Text, nullable=False, index=True),
    sa.Column("ended", sa.Text),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("logical_time", sa.Text, nullable=False),
    sa.Column("host", sa.Text, nullable=False),
    sa.Column("pid", sa.Integer),  # null: an orchestrator runs the phases, each in a process of its own
    sa.Column("command", sa.Text, nullable=False),
)

steps = sa.Table(
    "steps",
    metadata,
    sa.Column("run", sa.Text, sa.ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("key", sa.Text, primary_key=True, index=True),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("label", sa.Text, nullable=False),
    sa.Column("target", sa.Text, nullable=False),
    sa.Column("phase", sa.Text, nullable=False, index=True),
    sa.Column("started", sa.Text),
    sa.Column("ended", sa.Text),
    sa.Column("rows", sa.Integer),
    sa.Column("seconds", sa.Float),
    sa.Column("peak_rss", sa.Integer),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("bases", sa.Text),
    sa.Column("staged", sa.Text),
    sa.Column("proofs", sa.Text),
    sa.Column("entry", sa.Text),
    sa.Column("error", sa.Text),
)

leases = sa.Table(
    "leases",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("run", sa.Text, nullable=False, index=True),
    sa.Column("host", sa.Text, nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("acquired", sa.Text, nullable=False),
    sa.Column("heartbeat", sa.Float, nullable=False),
)

checks = sa.Table(
    "checks",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("run", sa.Text, nullable=False),
    sa.Column("step", sa.Text, nullable=False),
    sa.Column("layer", sa.Text, nullable=False),
    sa.Column("asset", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("passed", sa.Boolean, nullable=False),
    sa.Column("blocking", sa.Boolean, nullable=False),
    sa.Column("failing", sa.Integer),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Column("sample", sa.Text, nullable=False),
    sa.ForeignKeyConstraint(["run", "step"], ["steps.run", "steps.key"], ondelete="CASCADE"),
)
sa.Index("checks_by_step", checks.c.run, checks.c.step)

published = sa.Table(  # the last publish that was seen: a ledger behind it means that the target was restored
    "published",
    metadata,
    sa.Column("scope", sa.Text, primary_key=True),
    sa.Column("target", sa.Text, primary_key=True),
    sa.Column("layer", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("seq", sa.Integer, nullable=False),
    sa.Column("load", sa.Text, nullable=False),
    sa.Column("run", sa.Text, nullable=False),
    sa.Column("time", sa.Text, nullable=False),
)

strangers = sa.Table(  # runs of other journals whose stages were met in a target, and since when we know of them
    "strangers",
    metadata,
    sa.Column("run", sa.Text, primary_key=True),
    sa.Column("seen", sa.Text, nullable=False),
)
