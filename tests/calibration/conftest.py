"""Makes ``calibration_fakes`` importable, whichever import mode pytest uses."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from calibration_fakes import save_untrained


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """An untrained policy on disk."""
    save_untrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"
