"""Marks tests by what they need, so that `make test-fast` can leave out servers and what starts many processes."""

from __future__ import annotations

import pytest

SERVERS = {"pg15", "pg18"}
SLOW_FILES = {"test_kill.py", "test_phases.py", "test_dbt.py", "test_shop.py", "test_page.py"}


def needs_servers(item: pytest.Item) -> bool:
    """Whether a test asks for a PostgreSQL server: by name, through a fixture, or by a name that a fixture makes."""
    if SERVERS.intersection(getattr(item, "fixturenames", ())):
        return True
    info = getattr(item, "_fixtureinfo", None)
    definitions = [one for found in info.name2fixturedefs.values() for one in found] if info else []
    return any(
        "getfixturevalue" in getattr(one.func, "__code__", needs_servers.__code__).co_names for one in definitions
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the marks `servers` and `slow`."""
    for item in items:
        if needs_servers(item):
            item.add_marker("servers")
        if item.path.name in SLOW_FILES:
            item.add_marker("slow")
