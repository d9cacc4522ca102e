"""Imported before anything else of this package, so that a missing dependency is reported by its extra."""

from __future__ import annotations

from importlib.util import find_spec

from specpolicy.utils.extras import require

for _module in ("scipy", "pyarrow", "matplotlib", "imageio_ffmpeg", "jinja2"):
    if find_spec(_module) is None:  # without importing: workers do not need most of them
        require(_module, "eval")
