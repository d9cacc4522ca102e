"""Notes in which process it was imported."""

import os
import sys

sys.preloaded = os.getpid()  # type: ignore[attr-defined]
