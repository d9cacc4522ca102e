"""Tunes windows: measures costs and acceptance, chooses window lengths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specpolicy.policies.diffusion_policy import DiffusionPolicy, draw_noise
from specpolicy.speculative.inputs import seeded_generator
from specpolicy.speculative.linear_chain import max_draft_lengths
from specpolicy.speculative.result import SampleResult
from specpolicy.speculative.sampler import SpeculativeSampler
from specpolicy.tuning.acceptance import AcceptanceProfile, record_profile
from specpolicy.tuning.cost_model import RoundCost, TimedCall, fit_overhead, measure_evaluations, timed_call
from specpolicy.tuning.windows import WindowChoice, choose_windows
from specpolicy.utils.progress import progress_bar

_ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
_OVERHEAD_CALLS = 6


@dataclass(frozen=True)
class TunedWindows:
    """Chosen windows, and what they rest on.

    Attributes:
        choice: the windows. Times in milliseconds.
        cost: of rounds on this device.
        profile: of the sampler's drafts.
    """

    choice: WindowChoice
    cost: RoundCost
    profile: AcceptanceProfile

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {
            "windows": self.choice.windows,
            "expected_ms": self.choice.expected,
            "neighbours": self.choice.neighbours,
            "best_constant": {"window": self.choice.constant, "expected_ms": self.choice.constant_expected},
            "plans_expected_ms": {str(pool): time for pool, time in self.choice.tried.items()},
            "rounds_recorded": len(self.profile.start),
            "pass_ms": dict(zip(map(str, self.cost.rows), self.cost.milliseconds, strict=True)),
            "overhead_ms": {"round": self.cost.overhead_ms, "row": self.cost.overhead_row_ms},
        }


def tune_windows(
    policy: DiffusionPolicy,
    sampler: SpeculativeSampler,
    observations: Mapping[str, NDArray[np.floating]],
    *,
    longest: int = 64,
    chains: int = 120,
    repeats: int = 20,
    seed: int = 0,
) -> TunedWindows:
    """Windows for single chunks of a policy, on the device where it is.

    Args:
        policy: on the device to tune for.
        sampler: whose window is to be chosen; its own is not looked at.
        observations: arrays of shape ``(n, n_obs_steps, dim)`` to draw chunks at.
        longest: window to consider.
        chains: to record rounds of, at least.
        repeats: timed evaluations of each batch size.
        seed: of all draws.

    Raises:
        ValueError: ``longest`` is below 1, ``chains`` below 2, or no step of the chain can be drafted.
        ObservationError: the observations do not fit the policy.
    """
    if longest < 1 or chains < 2:
        raise ValueError(f"longest={longest}, chains={chains}; expected at least 1 and 2, better 64 and a hundred")
    drafted = int(max_draft_lengths(sampler.process).max())
    if drafted < 1:
        raise ValueError(
            f"no step of this chain of {sampler.process.num_steps} can be drafted, so that there is no window to "
            "choose: take more steps"
        )
    longest = min(longest, drafted)
    cond = policy.encode(observations)
    with torch.inference_mode():
        cost = measure_rounds(policy, sampler, cond, longest, repeats, seed)
        profile = record_acceptance(policy, sampler, cond, longest, chains, seed)
    return TunedWindows(choose_windows(profile, cost), cost, profile)


@torch.inference_mode()
def record_acceptance(
    policy: DiffusionPolicy,
    sampler: SpeculativeSampler,
    cond: Tensor,
    longest: int = 64,
    chains: int = 60,
    seed: int = 0,
) -> AcceptanceProfile:
    """Record how far the drafts of a sampler are accepted.

    Args:
        policy: that is sampled.
        sampler: whose window is not looked at.
        cond: conditions to sample chunks at, shape ``(n, c)``.
        longest: window, at most what can be drafted.
        chains: at least so many.
        seed: of all draws.

    Returns:
        The profile.
    """
    longest = min(longest, int(max_draft_lengths(sampler.process).max()))
    repeats = -(-chains // len(cond))
    generator = seeded_generator(seed)
    with progress_bar("recording rounds", repeats) as bar:

        def run(listening: SpeculativeSampler) -> SampleResult:
            noise = draw_noise((len(cond), *policy.event_shape), generator, policy.device)
            result = listening(policy, noise, cond=cond, generator=generator)
            bar.advance()
            return result

        return record_profile(sampler, run, longest, max_draft_lengths(sampler.process), repeats)


def measure_rounds(
    policy: DiffusionPolicy, sampler: SpeculativeSampler, cond: Tensor, longest: int, repeats: int = 20, seed: int = 0
) -> RoundCost:
    """What rounds of one chain cost: the network by its rows, and the rest from whole calls with several windows."""
    device = policy.device
    wait = (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else (lambda: None)
    rows = [each for each in _ROWS if each <= longest] + [longest + 1]
    generator = seeded_generator(seed)
    points = draw_noise((max(rows), *policy.event_shape), generator, device)
    timestep = sampler.process.timesteps.to(device)[:1].expand(max(rows))

    def evaluate(count: int) -> None:
        policy(points[:count], timestep[:count], cond[:1].expand(count, -1))

    milliseconds = measure_evaluations(evaluate, rows, repeats=repeats, synchronize=wait, seed=seed)
    windows, calls = sorted({min(4, longest), min(12, longest), longest}), list[TimedCall]()
    with progress_bar("timing rounds", len(windows) * _OVERHEAD_CALLS) as bar:
        for window in windows:
            fixed = SpeculativeSampler(
                sampler.process, sampler.drafter, sampler.verifier, window, sampler.initial_guess
            )
            for call in range(_OVERHEAD_CALLS):
                here, one = cond[call % len(cond)][None], [seeded_generator(seed + call)]
                noise = draw_noise((1, *policy.event_shape), one, device)
                calls.append(timed_call(lambda net, f=fixed, h=here, n=noise, g=one: f(net, n, h, g), policy, wait))  # type: ignore[misc]
                bar.advance()
    warm = [call for index, call in enumerate(calls) if index % _OVERHEAD_CALLS]  # the first of each is not counted
    round_ms, row_ms = fit_overhead(warm)
    return RoundCost(rows, milliseconds, round_ms, row_ms, sampler.drafter.refreshes, sampler.initial_guess is not None)
