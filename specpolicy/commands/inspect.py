"""``specpolicy inspect``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from specpolicy.config import ConfigError


def inspect(overrides: Sequence[str]) -> None:
    """Say what a checkpoint of this library, robomimic, diffusion_policy or LeRobot holds: specpolicy inspect PATH.

    Args:
        overrides: ``name=value``, in Hydra's grammar.
    """
    from specpolicy.interop.loading import load_policy

    if len(overrides) != 1:
        raise ConfigError(f"inspect takes one checkpoint, got {list(overrides)}; write specpolicy inspect PATH")
    print(load_policy(Path(overrides[0].removeprefix("checkpoint="))).report())
