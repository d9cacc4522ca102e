"""``specpolicy demonstrate``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from hydra.utils import instantiate

from specpolicy.config import compose, refuse_sealed, to_container


def demonstrate(overrides: Sequence[str]) -> None:
    """Record demonstrations of a task's scripted expert.

    Args:
        overrides: ``name=value``, in Hydra's grammar.
    """
    cfg = compose("demonstrate", overrides)
    if isinstance(cfg.seed, int) and isinstance(cfg.episodes, int):  # else the settings say what is wrong
        refuse_sealed(range(cfg.seed, cfg.seed + 2 * cfg.episodes), f"seed={cfg.seed} episodes={cfg.episodes}")

    from gymnasium import make

    from specpolicy.datasets.record import RecordingSettings, record_demonstrations

    recorded = record_demonstrations(
        cfg.out,
        partial(make, cfg.task.env),
        instantiate(cfg.perform),
        source={"env": cfg.task.env, "perform": to_container(cfg.perform)},
        settings=RecordingSettings(cfg.episodes, cfg.seed, cfg.next_obs, cfg.model_file, cfg.valid_every),
        workers=cfg.workers,
        overwrite=cfg.overwrite,
    )
    print(recorded.summary())
