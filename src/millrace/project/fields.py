"""Field types that the files' models share, and errors that point at one key of a model."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints
from pydantic_core import PydanticCustomError

_DURATION = re.compile(r"([1-9][0-9]{0,6})(s|m|h|d)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Part(BaseModel):
    """The base of every model of a project file: frozen, and a key it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, defer_build=True)


def wrong(what: str, *, at: str | None = None, key: bool = False, hint: str | None = None) -> PydanticCustomError:
    """Return an error for a validator to raise.

    Args:
        what: the whole sentence; `{}` in it is replaced by the name of what is wrong, like `table orders`.
        at: the key to mark, when a model raises it.
        key: mark the key instead of its value.
        hint: what would be right.
    """
    return PydanticCustomError("millrace", "{what}", {"what": what, "at": at, "key": key, "hint": hint})


def seconds(duration: str) -> int:
    """Return the seconds of `30s`, `5m`, `2h` or `7d`."""
    match = _DURATION.fullmatch(duration)
    if match is None:
        raise wrong(f'"{duration}" is not a duration', hint="write a number and a unit: 30s, 5m, 2h, 7d")
    return int(match[1]) * _SECONDS[match[2]]


def _duration(value: str) -> str:
    seconds(value)
    return value


def _many(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _not_twice(values: tuple[str, ...]) -> tuple[str, ...]:
    for index, value in enumerate(values):
        if value in values[:index]:
            raise wrong(f'"{value}" stands twice in {{}}')
    return values


def unbuilt(words: dict[str, str], renamed: dict[str, str] | None = None) -> Callable[[Any], Any]:
    """Return a validator that refuses words which mean something that is not there yet, and renames others."""

    def check(value: Any) -> Any:
        if isinstance(value, str) and value in words:
            raise wrong(words[value])
        return (renamed or {}).get(value, value) if isinstance(value, str) else value

    return check


Text = Annotated[str, StringConstraints(strict=True, min_length=1)]
"""A text that is not empty."""
Texts = Annotated[
    tuple[Text, ...],
    BeforeValidator(_many, json_schema_input_type=str | list[str]),
    Field(min_length=1),
    AfterValidator(_not_twice),
]
"""One text or a list of texts; none twice."""
Share = Annotated[float, Field(strict=True, ge=0, le=1)]
"""A number from 0 to 1."""
Count = Annotated[int, Field(strict=True, ge=0)]
Positive = Annotated[int, Field(strict=True, ge=1)]
Duration = Annotated[Text, AfterValidator(_duration)]
"""`30s`, `5m`, `2h`, `7d`."""


class RowContract(Part):
    """What becomes of rows that break a row rule (`not_null`, `between`, `in_set`, `expression`) that blocks.

    Attributes:
        bad_rows: `block`: they stop the publish; `quarantine`: they are set aside.
        max_bad: share of a load's rows that may be set aside; up to 10 rows may be anyway, unless it is 0.
    """

    bad_rows: Literal["quarantine", "block"] | None = None
    max_bad: Share | None = None


def or_empty(value: Any) -> Any:
    """Let `orders:` with nothing behind it stand for an empty mapping."""
    return {} if value is None else value
