"""Train an image network on Fashion-MNIST, or on another network's predictions; saved in diffusers' format.

python -m benchmarks.images.train data=datasets/usr/share/datasets/fashion-mnist network=unet out=runs/fashion_mnist
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial

from hydra.utils import instantiate

from benchmarks.images.command_line import compose_script, run_script
from specpolicy.config import to_container


def train(overrides: Sequence[str]) -> None:
    """Train, or finish an interrupted training.

    Args:
        overrides: of ``configs/train.yaml``.
    """
    from benchmarks.images.training import train_image_model
    from specpolicy.training.loop import TrainingSettings

    cfg = compose_script("train", overrides)
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as from the command line; returns the exit status."""
    return run_script(train, arguments)


if __name__ == "__main__":
    sys.exit(main())
