"""``specpolicy train_images``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from hydra.utils import instantiate

from specpolicy.config import compose, to_container


def train_images(overrides: Sequence[str]) -> None:
    """train an image network on Fashion-MNIST, or teach it another one's predictions; saved in diffusers' format"""
    from specpolicy.images.training import train_image_model
    from specpolicy.training.loop import TrainingSettings

    cfg = compose("train_images", overrides)
    made_from = {"network": to_container(cfg.network), "scheduler": to_container(cfg.scheduler)}
    train_image_model(
        partial(instantiate, cfg.network, _convert_="all"),
        instantiate(cfg.scheduler),
        cfg.data,
        TrainingSettings(**to_container(cfg.training)),
        cfg.out,
        cfg.device,
        made_from,
        cfg.teacher,
    )
    print(f"model in {cfg.out}")
