"""``specpolicy calibrate``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from specpolicy.commands.common import dataset_for, histories_for
from specpolicy.config import ConfigError, compose

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from specpolicy.calibration.calibrate import ObservationSet
    from specpolicy.policies.diffusion_policy import DiffusionPolicy

_ACCEPTANCE_CHAINS = 60
"""To see how far the fitted drafts are accepted, which ``window=auto`` plans from."""


def calibrate(overrides: Sequence[str]) -> None:
    """Fit the linear drafter and its initial guess to a checkpoint, and record how far its drafts are accepted.

    With ``forward_model=true``: fit what predicts its observations instead.

    Args:
        overrides: ``name=value``, in Hydra's grammar.
    """
    cfg = compose("calibrate", overrides)

    import torch

    from specpolicy.calibration.calibrate import calibrate
    from specpolicy.interop.loading import load_policy
    from specpolicy.utils.provenance import software_and_machine

    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    policy = load_policy(Path(cfg.checkpoint), cfg.device)
    if cfg.forward_model:
        _fit_forward_model(policy, cfg)
        return
    steps = f"{cfg.num_inference_steps}{'-analytic' if cfg.analytic else ''}"
    name = f"calibrate-{Path(cfg.checkpoint).resolve().name}-{steps}"
    histories = histories_for(policy, cfg.dataset, cfg.observations)
    calibration, path = calibrate(
        policy,
        histories,
        cfg.num_inference_steps,
        Path(cfg.out or f"runs/{name}"),
        analytic=cfg.analytic,
        chains=cfg.chains,
        seed=cfg.seed,
        provenance=software_and_machine(policy.device),
    )
    _keep_acceptance(policy, histories, cfg)
    held_out = calibration.about["held_out"]
    for lag, distance in held_out["distance"].items():
        print(f"{lag}: drafts are off by {distance['linear']:.2f} standard deviations (free: {distance['free']:.2f})")
    initial_guess, errors = calibration.about["initial_guess"], held_out["initial_guess"]
    print(f"initial guess: {initial_guess}, {errors[initial_guess]:.2f} (zero: {errors['zero']:.2f})")
    print(f"on {held_out['chains']} chains held out of {calibration.about['chains']}; calibration in {path}")


def _fit_forward_model(policy: DiffusionPolicy, cfg: DictConfig) -> None:
    """Train a forward model, keep it beside the checkpoint, and show its errors on held-out episodes."""
    from dataclasses import replace

    from rich.console import Console
    from rich.table import Table

    from specpolicy.calibration.calibrate import demonstrations_for, origin_of
    from specpolicy.policies.forward_model import ForwardModelError, forward_model_path, save_forward_model
    from specpolicy.training.forward_model import AHEAD, SETTINGS, fit_forward_model
    from specpolicy.utils.provenance import software_and_machine

    if images := sorted(policy.observations.images):
        raise ForwardModelError(
            f"{cfg.checkpoint} looks at images ({', '.join(images)}); a forward model predicts vectors alone: take "
            "predictor=last or none"
        )
    if cfg.observations:
        raise ConfigError("observations= holds no actions; a forward model is fitted on a dataset=")
    dataset = Path(dataset_for(policy, cfg.dataset))
    origin = origin_of("demonstrations", dataset)
    model, errors = fit_forward_model(
        list(demonstrations_for(policy, dataset)),
        policy.observations.keys,
        Path(cfg.out or f"runs/calibrate-{Path(cfg.checkpoint).resolve().name}-forward-model"),
        replace(SETTINGS, steps=cfg.forward_model_steps, seed=cfg.seed, threads=cfg.threads),
        {"demonstrations": origin},
    )
    path = forward_model_path(cfg.checkpoint)
    about = {"demonstrations": origin, "seed": cfg.seed, "steps": cfg.forward_model_steps}
    about |= {"errors": [each._asdict() for each in errors]}
    about["provenance"] = software_and_machine(policy.device)
    save_forward_model(model, path, about)
    table = Table(title="mean error on held-out episodes: model, last value, linear extrapolation")
    for column in ("observation", *(f"{ahead} tick{'s' * (ahead > 1)} ahead" for ahead in AHEAD)):
        table.add_column(column, overflow="fold")
    for name in model.observations:
        mine = [each for each in errors if each.name == name]
        table.add_row(name, *(f"{each.model:.1e}, {each.last:.1e}, {each.linear:.1e}" for each in mine))
    Console().print(table)
    print(
        f"{int(model.gate.sum())} of {len(model.gate)} entries are predicted, the others stay; forward model in {path}"
    )


def _keep_acceptance(policy: DiffusionPolicy, histories: ObservationSet, cfg: DictConfig) -> None:
    """Record how far recycled drafts of the new calibration are accepted."""
    import numpy as np
    import torch

    from specpolicy import samplers
    from specpolicy.speculative.drafters.recycling import RecyclingDrafter
    from specpolicy.speculative.verifiers import ReflectionVerifier
    from specpolicy.tuning.store import sampler_key, save_acceptance
    from specpolicy.tuning.tune import record_acceptance

    sampler = samplers.calibrated(
        policy, cfg.num_inference_steps, ReflectionVerifier(), 1, drafter=RecyclingDrafter, analytic=cfg.analytic
    )
    if not int(sampler.table.max()):
        return  # so short a chain has nothing to draft
    picks = np.random.default_rng(cfg.seed).permutation(len(histories.observations))[:_ACCEPTANCE_CHAINS]
    cond = histories.conditions(policy, torch.from_numpy(picks))
    profile = record_acceptance(policy, sampler, cond, chains=_ACCEPTANCE_CHAINS, seed=cfg.seed)
    save_acceptance(profile, sampler_key(sampler), cfg.checkpoint, {"observations": histories.origin})
