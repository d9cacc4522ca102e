"""Shared by all tests: shapes are checked at run time, and one torch thread keeps the results steady."""

from __future__ import annotations

from jaxtyping import install_import_hook

# Must come before specpolicy is imported: checks every annotated shape on every call.
install_import_hook(["specpolicy.speculative", "specpolicy.policies"], "beartype.beartype")

import torch  # noqa: E402

torch.set_num_threads(1)
