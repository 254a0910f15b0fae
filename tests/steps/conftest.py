"""Helpers of the route tests: one step through its three doors without an engine, and what must not be left behind."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
