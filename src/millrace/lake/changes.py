"""What a load changed, for readers that work on changes alone."""

from __future__ import annotations

from dataclasses import dataclass

from millrace.lake.layout import Folder
from millrace.lake.ledger import Manifest


@dataclass(frozen=True, slots=True)
class Change:
    """What one load changed, as Parquet files with the asset's columns.

    Files of an upsert also say in `_millrace_change` what became of a row: `insert`, `update` or `delete`.

    Attributes:
        seq: the load's.
        before: files with the old images of rows that were updated or deleted.
        after: files with the new images of rows that were updated or inserted.
    """

    seq: int
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()


def change_of(folder: Folder, manifest: Manifest) -> Change | None:
    """Return what a load changed; None when it replaced everything, or its files are not kept any more."""
    if manifest.how in ("create", "replace"):
        return None
    if manifest.how == "append":
        before, after = [], [folder.path / file["name"] for file in manifest.added]
    else:
        before = [folder.changes / manifest.images["before"]] if manifest.images else []
        after = [folder.changes / manifest.images["after"]] if manifest.images else []
    if not all(path.exists() for path in (*before, *after)):
        return None
    return Change(manifest.entry.seq, tuple(map(str, before)), tuple(map(str, after)))
