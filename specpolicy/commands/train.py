"""``specpolicy train``."""

from __future__ import annotations

from collections.abc import Sequence

from specpolicy.config import compose, to_container


def train(overrides: Sequence[str]) -> None:
    """Train a policy from robomimic HDF5.

    Args:
        overrides: ``name=value``, in Hydra's grammar.
    """
    cfg = compose("train", overrides)

    from specpolicy.policies.config import PolicyConfig
    from specpolicy.policies.diffusion_policy import DiffusionPolicy
    from specpolicy.training.loop import TrainingSettings
    from specpolicy.training.train import train_policy

    config = PolicyConfig.for_task(to_container(cfg.task), to_container(cfg.policy))
    settings = TrainingSettings(**to_container(cfg.training))
    teacher, init, donor = (
        None if cfg[name] is None else DiffusionPolicy.from_pretrained(cfg[name], cfg.device)
        for name in ("teacher", "init", "donor")
    )
    train_policy(
        config, to_container(cfg.dataset), settings, cfg.out, cfg.device, cfg.validation_demos, teacher,
        noise_draws=cfg.noise_draws, auxiliary=to_container(cfg.auxiliary) or {},
        filter_key=None if cfg.filter_key is None else str(cfg.filter_key),  # robomimic has masks named 20, 50, …
        environment=to_container(cfg.task).get("demonstrations"),
        init=init, donor=donor,
    )  # fmt: skip
    print(f"policy in {cfg.out}")
