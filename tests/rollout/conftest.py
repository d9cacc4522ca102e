"""Makes the fakes of environments and policies importable here and in worker processes."""

from __future__ import annotations

import sys
from pathlib import Path

for folder in ("evaluation", "control"):
    sys.path.insert(0, str(Path(__file__).parent.parent / folder))
