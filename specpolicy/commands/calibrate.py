"""``specpolicy calibrate``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from specpolicy.commands.common import histories_for
from specpolicy.config import compose


def calibrate(overrides: Sequence[str]) -> None:
    """Fit the linear drafter and its initial guess to a checkpoint, from chains that this records.

    Args:
        overrides: ``name=value``, in Hydra's grammar.
    """
    import torch

    from specpolicy.calibration.calibrate import calibrate
    from specpolicy.interop.loading import load_policy
    from specpolicy.utils.machine import git_revision, machine, package_versions

    cfg = compose("calibrate", overrides)
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    policy = load_policy(Path(cfg.checkpoint), cfg.device)
    steps = f"{cfg.num_inference_steps}{'-analytic' if cfg.analytic else ''}"
    name = f"calibrate-{Path(cfg.checkpoint).resolve().name}-{steps}"
    calibration, path = calibrate(
        policy,
        histories_for(policy, cfg.dataset, cfg.observations),
        cfg.num_inference_steps,
        Path(cfg.out or f"runs/{name}"),
        analytic=cfg.analytic,
        chains=cfg.chains,
        seed=cfg.seed,
        provenance={"packages": package_versions(), "git": git_revision(), "machine": machine(policy.device)},
    )
    held_out = calibration.about["held_out"]
    for lag, distance in held_out["distance"].items():
        print(f"{lag}: drafts are off by {distance['linear']:.2f} standard deviations (free: {distance['free']:.2f})")
    initial_guess, errors = calibration.about["initial_guess"], held_out["initial_guess"]
    print(f"initial guess: {initial_guess}, {errors[initial_guess]:.2f} (zero: {errors['zero']:.2f})")
    print(f"on {held_out['chains']} chains held out of {calibration.about['chains']}; calibration in {path}")
