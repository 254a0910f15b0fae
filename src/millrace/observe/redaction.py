"""Known secrets hidden in everything that leaves the process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from millrace.core.secrets import redact


def clean(value: Any) -> Any:
    """Return JSON types with known secrets hidden in every text, keys too; other types become their text."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {redact(str(key)): clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [clean(item) for item in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    return redact(str(value))
