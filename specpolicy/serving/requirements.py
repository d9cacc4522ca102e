"""Looked at before anything else of this package, so that a missing dependency is reported by its extra."""

from __future__ import annotations

from specpolicy.utils.extras import require

for _module in ("msgpack", "websockets"):
    require(_module, "serving")
