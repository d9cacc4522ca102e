"""``specpolicy train_images``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from hydra.utils import instantiate

from specpolicy.composition import compose, plain


def train_images(overrides: Sequence[str]) -> None:
    """train an image network on Fashion-MNIST, or teach it another one's predictions; saved in diffusers' format"""
    from specpolicy.images.training import train_image_model
    from specpolicy.training import TrainingSettings

    cfg = compose("train_images", overrides)
    made_from = {"network": plain(cfg.network), "scheduler": plain(cfg.scheduler)}
    train_image_model(
        partial(instantiate, cfg.network, _convert_="all"),
        instantiate(cfg.scheduler),
        cfg.data,
        TrainingSettings(**plain(cfg.training)),
        cfg.out,
        cfg.device,
        made_from,
        cfg.teacher,
    )
    print(f"model in {cfg.out}")
