"""``specpolicy train``."""

from __future__ import annotations

from collections.abc import Sequence

from specpolicy.composition import compose, plain


def train(overrides: Sequence[str]) -> None:
    """train a policy from robomimic HDF5"""
    from specpolicy.policies import DiffusionPolicy, PolicyConfig
    from specpolicy.training import TrainingSettings, train_policy

    cfg = compose("train", overrides)
    task = plain(cfg.task)
    config = PolicyConfig(
        task=task["name"], observations=task["observations"], action_dim=task["action_dim"], **plain(cfg.policy)
    )
    settings = TrainingSettings(**plain(cfg.training))
    teacher = None if cfg.teacher is None else DiffusionPolicy.load(cfg.teacher, cfg.device)
    train_policy(config, cfg.dataset, settings, cfg.out, cfg.device, cfg.validation_demos, teacher)
    print(f"policy in {cfg.out}")
