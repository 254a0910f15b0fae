"""What the façades return: frozen, and readable like the dictionaries that earlier pipelines returned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any


class Record(Mapping[str, Any]):
    """Base of frozen dataclasses that are mappings of the attributes that they show (`field(repr=True)`) too."""

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the record, and the records in it, as dictionaries."""
        return {name: _plain(self[name]) for name in self}

    def __getitem__(self, name: str) -> Any:
        if name not in self._shown():
            raise KeyError(name)
        return getattr(self, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shown())

    def __len__(self) -> int:
        return len(self._shown())

    def _shown(self) -> list[str]:
        return [field.name for field in fields(self) if field.repr]  # type: ignore[arg-type] # subclasses are dataclasses


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    return value
