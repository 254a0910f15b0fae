"""The project on disk: files with their places → frozen, validated models; environments, variables, bundle.

`load_project` reads everything and resolves nothing: variables are looked up when a connection is opened, in the
environment in use, so a developer's machine needs none of production's secrets.
"""

from __future__ import annotations

from millrace.project.bundle import bundle_files, bundle_hash
from millrace.project.load import find_project, load_project
from millrace.project.project import AssetChecks, CopyTable, Dashboard, ModelFile, Project
from millrace.project.schemas import schemas

__all__ = [
    "AssetChecks",
    "CopyTable",
    "Dashboard",
    "ModelFile",
    "Project",
    "bundle_files",
    "bundle_hash",
    "find_project",
    "load_project",
    "schemas",
]
