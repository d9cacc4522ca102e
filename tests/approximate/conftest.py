"""Shapes are checked here, too."""

from __future__ import annotations

from jaxtyping import install_import_hook

install_import_hook("specpolicy.approximate.specdiff", "beartype.beartype")
