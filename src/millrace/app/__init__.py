"""The only place that wires: project and environment, or two databases, become targets, step kinds and an engine."""

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
