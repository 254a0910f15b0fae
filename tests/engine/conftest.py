from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # filetarget is used by the tests and by their child processes

from filetarget import Shop


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    """Two source files, a lake of files, a journal."""
    return Shop(tmp_path)
