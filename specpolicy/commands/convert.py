"""``specpolicy convert``."""

from __future__ import annotations

from collections.abc import Sequence

from specpolicy.config import ConfigError, compose


def convert(overrides: Sequence[str]) -> None:
    """bring a task's published recordings into robomimic HDF5"""
    from specpolicy.datasets.pusht import convert_pusht

    cfg = compose("convert", overrides)
    if cfg.task.name != "pusht":
        raise ConfigError(f"there is no converter for task {cfg.task.name!r}; the only one is for 'pusht'")
    episodes = convert_pusht(cfg.source, cfg.out)
    print(f"{episodes} demonstrations in {cfg.out}")
