"""What a copy of files is told; JSON, so that it can stand in a plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Format = Literal["jsonl", "csv"]
MAX_LINE = 10_000_000


@dataclass(frozen=True, slots=True)
class FilesSpec:
    """How files become rows.

    Attributes:
        pattern: which files of the connection's folder.
        format: one JSON object a line, or CSV with a header.
        columns: names and `text` or `json`, in order; empty: of CSV those of the headers, of JSON lines none.
        encoding: Python's name of it; None: as a byte order mark says, else UTF-8.
        delimiter: of CSV.
        max_line: bytes that a line may have.
        archive: where files go after they were published: a folder, `""`: `archive` beside the lake, None: they stay.
    """

    pattern: str
    format: Format = "jsonl"
    columns: Mapping[str, str] = field(default_factory=dict)
    encoding: str | None = None
    delimiter: str = ","
    max_line: int = MAX_LINE
    archive: str | None = None

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> FilesSpec:
        """Read what `dataclasses.asdict` made of one."""
        return cls(**data)
