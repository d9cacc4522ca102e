"""``specpolicy convert``."""

from __future__ import annotations

from collections.abc import Sequence

from specpolicy.config import ConfigError, compose


def convert(overrides: Sequence[str]) -> None:
    """bring a task's published recordings into robomimic HDF5"""
    from specpolicy.datasets.pusht import convert_pusht

    cfg = compose("convert", overrides)
    if cfg.task.name not in ("pusht", "pusht_image"):
        raise ConfigError(f"no converter for task {cfg.task.name!r}; there are those for 'pusht' and 'pusht_image'")
    episodes = convert_pusht(cfg.source, cfg.out, images=cfg.task.name == "pusht_image")
    print(f"{episodes} demonstrations in {cfg.out}")
