"""``specpolicy tune``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.utils import instantiate

from specpolicy.commands.common import histories_for
from specpolicy.config import ConfigError, compose, to_container

if TYPE_CHECKING:
    from specpolicy.speculative.sampler import SpeculativeSampler


def tune(overrides: Sequence[str]) -> None:
    """Choose a sampler's windows for this device, from its latency and from how far drafts are kept.

    Args:
        overrides: ``name=value``, in Hydra's grammar.
    """
    cfg = compose("tune", overrides)
    if "window" not in cfg.sampler:
        raise ConfigError(f"{cfg.sampler._target_} has no window to tune; choose a speculative sampler")

    import numpy as np
    import torch

    from specpolicy.evaluation.latency import measure_latency
    from specpolicy.evaluation.statistics import ratio_of_medians
    from specpolicy.interop.loading import load_policy
    from specpolicy.tuning.acceptance import is_stepwise
    from specpolicy.tuning.store import sampler_key, save_acceptance, save_windows
    from specpolicy.tuning.tune import tune_windows
    from specpolicy.utils.provenance import software_and_machine

    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    policy = load_policy(Path(cfg.checkpoint), cfg.device)
    make = instantiate(cfg.sampler)
    histories = histories_for(policy, cfg.dataset, cfg.observations)
    picks = np.random.default_rng(cfg.seed).permutation(len(histories.observations))[: cfg.observations_used]
    batch = histories.named(policy, picks)
    sampler: SpeculativeSampler = make(policy, window=1)
    tuned = tune_windows(
        policy, sampler, batch, longest=cfg.longest, chains=cfg.chains, repeats=cfg.repeats, seed=cfg.seed
    )
    entry = tuned.to_dict() | {
        "observations": histories.origin,
        "settings": {name: cfg[name] for name in ("observations_used", "longest", "chains", "repeats", "seed")},
        "provenance": software_and_machine(policy.device),
    }
    configured = to_container(cfg.sampler.window)
    choice = tuned.choice
    print(f"windows {_short(choice.windows)}")
    print(f"expected: {choice.expected:.1f} ms; constant {choice.constant}: {choice.constant_expected:.1f} ms")
    if cfg.calls:
        rivals = {"tuned": choice.windows, f"constant {choice.constant}": choice.constant}
        if isinstance(configured, int):
            rivals[f"constant {configured}"] = configured
        samplers = {name: make(policy, window=window) for name, window in rivals.items()}
        single = [{name: part[row : row + 1] for name, part in batch.items()} for row in range(len(picks))]
        run = measure_latency(policy, samplers, single, calls=cfg.calls, warmup=2, seed=cfg.seed + 1)
        entry["measured"] = {}
        for name, log in run.samplers.items():
            ratio = ratio_of_medians(log.nanoseconds, run.samplers["tuned"].nanoseconds) if cfg.calls > 1 else None
            passes = float(np.mean(log.passes))
            entry["measured"][name] = {
                "median_ms": float(np.median(log.nanoseconds)) / 1e6, "passes": passes,
                "evaluations": float(np.mean(log.evaluations)), "calls": cfg.calls,
                "time_against_tuned": None if ratio is None else list(ratio),
            }  # fmt: skip
            against = "" if ratio is None else f", {ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}] of tuned"
            print(f"measured, {name}: {entry['measured'][name]['median_ms']:.1f} ms, {passes:.1f} passes{against}")
    if is_stepwise(sampler.verifier):
        save_acceptance(tuned.profile, sampler_key(sampler), cfg.checkpoint, {"observations": histories.origin})
    path = save_windows(entry, sampler_key(sampler), cfg.checkpoint, policy.device)
    print(f"in {path}; take them with sampler.window=auto")


def _short(windows: list[int]) -> str:
    """Runs of the same number in one."""
    runs: list[tuple[int, int]] = []
    for window in windows:
        runs = [*runs[:-1], (window, runs[-1][1] + 1)] if runs and runs[-1][0] == window else [*runs, (window, 1)]
    return " ".join(f"{window}×{count}" if count > 1 else str(window) for window, count in runs)
