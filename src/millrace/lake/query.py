"""What a query over the lake reads: every published asset with its files, as of one moment."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from millrace.core.names import AssetId

if TYPE_CHECKING:
    from millrace.lake.target import LakeTarget


def views(target: LakeTarget, assets: Iterable[AssetId] | None = None) -> list[tuple[str, str, list[str]]]:
    """Return layer, name and data files of some published assets, or of all.

    An asset that was published without rows has no files.
    """
    return [(asset.layer, asset.name, target.files(asset)) for asset in (target.assets() if assets is None else assets)]
