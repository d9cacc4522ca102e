"""Makes ``calibration_fakes`` importable, whichever import mode pytest uses."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
