"""JSON Schemas of the project's files, for editors: `# yaml-language-server: $schema=…` or a workspace setting."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from millrace.project.checks import ChecksFile
from millrace.project.copies import CopiesFile
from millrace.project.dashboards import DashboardFile
from millrace.project.manifest import Manifest
from millrace.project.models import ModelOptions

FILES: dict[str, tuple[str, type[BaseModel]]] = {
    "millrace": ("millrace.yaml", Manifest),
    "copies": ("copies/*.yaml", CopiesFile),
    "model": ("models/*/*.yaml", ModelOptions),
    "checks": ("checks/*.yaml", ChecksFile),
    "dashboard": ("dashboards/*.yaml", DashboardFile),
}
"""Schema names with the files they are for."""


def schemas() -> dict[str, dict[str, Any]]:
    """Return a JSON Schema (2020-12) by name; `FILES` says which files each is for."""
    made = {}
    for name, (pattern, model) in FILES.items():
        schema = model.model_json_schema(mode="validation", by_alias=True)
        made[name] = {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            **schema,
            "title": f"Millrace: {pattern}",
        }
    return made
