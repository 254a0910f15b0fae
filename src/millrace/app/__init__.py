"""The only place that wires: project and environment, or two databases, become targets, step kinds and an engine.

Each name is loaded when it is first asked for: a copy between two databases needs no project, few commands need all.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from millrace.app.backfill import run_intervals
    from millrace.app.comparing import Compared, compare, repair
    from millrace.app.copying import CopyOutcome, copy_dry_run, copy_intervals, copy_table
    from millrace.app.doctor import Finding, examine
    from millrace.app.export_sets import export_set, import_set, is_set, look_set
    from millrace.app.exporting import ExportOutcome, export_files, import_files
    from millrace.app.extras import require as require_extras
    from millrace.app.house import House, QueryResult, open_house
    from millrace.app.scaffold import init_from_database, init_project, variables_of, write_schemas
    from millrace.app.whole import copy_tables, is_pattern, look_whole
    from millrace.steps.spec import CopyOptions

__all__ = [
    "Compared",
    "CopyOptions",
    "CopyOutcome",
    "ExportOutcome",
    "Finding",
    "House",
    "QueryResult",
    "compare",
    "copy_dry_run",
    "copy_intervals",
    "copy_table",
    "copy_tables",
    "examine",
    "export_files",
    "export_set",
    "import_files",
    "import_set",
    "init_from_database",
    "init_project",
    "is_pattern",
    "is_set",
    "look_set",
    "look_whole",
    "open_house",
    "repair",
    "require_extras",
    "run_intervals",
    "variables_of",
    "write_schemas",
]

_PLACES = {
    "Compared": ("millrace.app.comparing", "Compared"),
    "CopyOptions": ("millrace.steps.spec", "CopyOptions"),
    "CopyOutcome": ("millrace.app.copying", "CopyOutcome"),
    "ExportOutcome": ("millrace.app.exporting", "ExportOutcome"),
    "Finding": ("millrace.app.doctor", "Finding"),
    "House": ("millrace.app.house", "House"),
    "QueryResult": ("millrace.app.house", "QueryResult"),
    "compare": ("millrace.app.comparing", "compare"),
    "copy_dry_run": ("millrace.app.copying", "copy_dry_run"),
    "copy_intervals": ("millrace.app.copying", "copy_intervals"),
    "copy_table": ("millrace.app.copying", "copy_table"),
    "copy_tables": ("millrace.app.whole", "copy_tables"),
    "examine": ("millrace.app.doctor", "examine"),
    "export_files": ("millrace.app.exporting", "export_files"),
    "export_set": ("millrace.app.export_sets", "export_set"),
    "import_files": ("millrace.app.exporting", "import_files"),
    "import_set": ("millrace.app.export_sets", "import_set"),
    "init_from_database": ("millrace.app.scaffold", "init_from_database"),
    "init_project": ("millrace.app.scaffold", "init_project"),
    "is_pattern": ("millrace.app.whole", "is_pattern"),
    "is_set": ("millrace.app.export_sets", "is_set"),
    "look_set": ("millrace.app.export_sets", "look_set"),
    "look_whole": ("millrace.app.whole", "look_whole"),
    "open_house": ("millrace.app.house", "open_house"),
    "repair": ("millrace.app.comparing", "repair"),
    "require_extras": ("millrace.app.extras", "require"),
    "run_intervals": ("millrace.app.backfill", "run_intervals"),
    "variables_of": ("millrace.app.scaffold", "variables_of"),
    "write_schemas": ("millrace.app.scaffold", "write_schemas"),
}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Load a name from where it stands."""
        if name not in _PLACES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        place, real = _PLACES[name]
        return getattr(importlib.import_module(place), real)
