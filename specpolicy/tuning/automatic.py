"""Windows from the price of a row on this device and backend, measured in seconds where nobody has tuned.

How far drafts are accepted is known of a policy (``acceptance.json``, by ``specpolicy calibrate`` and ``tune``); what a
row costs depends on device, backend and threads. The first time that a sampler with ``window="auto"`` is made there,
evaluations of a few batch sizes and some whole calls are timed, windows are planned from both, and the outcome is kept.
Any windows are exact: what is measured decides time alone.

A window that is evaluated in two bites, its beginning first and the rest only if all of that is kept, is what two
rounds of shorter windows do, which draft the rest anew from a better x̂0 and for the same rows. So the plan, which
weighs short windows at each position, contains it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from specpolicy.policies.diffusion_policy import DiffusionPolicy, draw_noise
from specpolicy.speculative.compiled.openvino_network import Precision
from specpolicy.speculative.compiled.runtime import RuntimeSampler
from specpolicy.speculative.denoiser import Denoiser, gather_rows, prepared
from specpolicy.speculative.inputs import seeded_generator
from specpolicy.speculative.linear_chain import max_draft_lengths
from specpolicy.speculative.sampler import SpeculativeSampler
from specpolicy.tuning.cost_model import RoundCost, measure_evaluations
from specpolicy.tuning.store import (
    has_windows,
    load_acceptance,
    load_windows,
    note_windows,
    sampler_key,
    save_windows,
    windows_path,
)
from specpolicy.tuning.windows import choose_windows
from specpolicy.utils.extras import require

_ROWS = (1, 2, 4, 8, 16, 32)
_REPEATS = 10
_WINDOWS, _CALLS = (4, 12), 4
_MEASURED = (None, "openvino")


@dataclass
class AutoWindow:
    """Windows that follow from the device and from what evaluates the network there.

    Attributes:
        backend: None for PyTorch as it is, or a :data:`specpolicy.speculative.compiled.Backend`. Compiled and captured
            rounds have a shape for each window: they take what ``specpolicy tune`` chose.
        precision: of OpenVINO's network.
        network: what was timed; kept while the sampler is made, so that nothing is compiled twice.
    """

    backend: str | None = None
    precision: Precision | None = None
    network: Denoiser | None = field(default=None, repr=False)

    def setting(self) -> str:
        """Name what the price of a row depends on, besides policy and device."""
        match self.backend:
            case None:
                runtime = f"PyTorch {torch.__version__}"
            case "openvino":
                version = require("openvino", "openvino").__version__.partition("-")[0]
                runtime = f"OpenVINO {version} {self.precision or 'f32'}"
            case other:
                runtime = other
        return f"{runtime}, threads {torch.get_num_threads()}"


def automatic_windows(
    policy: DiffusionPolicy, checkpoint: Path, make: Callable[..., SpeculativeSampler], asked: AutoWindow
) -> list[int]:
    """Find the windows of a sampler where it is to be used: kept ones, or from a measurement that is then kept.

    Args:
        policy: on its device.
        checkpoint: folder that it was loaded from.
        make: makes the sampler with a ``window``.
        asked: backend and precision.

    Returns:
        A window for each step.

    Raises:
        WindowsError: neither windows nor an acceptance is known of this sampler, or a file is damaged.
    """
    sampler, device = make(window=1), policy.device
    steps, tuned = sampler.process.num_steps, sampler_key(sampler)
    key = f"{tuned}, {asked.setting()}"
    if asked.backend != "openvino" and has_windows(tuned, checkpoint, device):
        return load_windows(tuned, steps, checkpoint, device)
    if has_windows(key, checkpoint, device):
        return load_windows(key, steps, checkpoint, device)
    profile = load_acceptance(tuned, max_draft_lengths(sampler.process), checkpoint)
    if profile is None or asked.backend not in _MEASURED:
        return load_windows(tuned, steps, checkpoint, device)  # says what is missing, and which command makes it
    cost = price_rounds(policy, make, asked, profile.longest)
    choice = choose_windows(profile, cost)
    entry: dict[str, Any] = {
        "windows": choice.windows,
        "expected_ms": choice.expected,
        "best_constant": {"window": choice.constant, "expected_ms": choice.constant_expected},
        "pass_ms": dict(zip(map(str, cost.rows), cost.milliseconds, strict=True)),
        "overhead_ms": cost.overhead_ms,
    }
    with suppress(OSError):  # a checkpoint that cannot be written to: measured again the next time
        save_windows(entry, key, checkpoint, device)
    note_windows(windows_path(checkpoint, device), key, choice.windows)
    return choice.windows


@torch.inference_mode()
def price_rounds(
    policy: DiffusionPolicy, make: Callable[..., SpeculativeSampler], asked: AutoWindow, longest: int
) -> RoundCost:
    """Measure what the rounds of one chain cost, by their rows.

    Args:
        policy: on its device.
        make: makes the sampler with a ``window``.
        asked: backend and precision; its network is set.
        longest: window that may be chosen.

    Returns:
        Milliseconds of evaluations, and of all else in a round.
    """
    sampler, device = make(window=1), policy.device
    asked.network = network = _network(policy, sampler, asked)
    wait = (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else (lambda: None)
    rows = [each for each in _ROWS if each <= longest] + [each for each in (longest + 1,) if each < 2 * _ROWS[-1]]
    cond = torch.zeros(1, policy.observations.dim * policy.observations.horizon, device=device)
    x = draw_noise((max(rows), *policy.event_shape), seeded_generator(0), device)
    timestep, fixed = sampler.process.timesteps.to(device)[:1].expand(len(x)), prepared(network, cond)
    conds = {count: gather_rows(fixed, torch.zeros(count, dtype=torch.long, device=device)) for count in rows}

    def evaluate(count: int) -> None:
        network(x[:count], timestep[:count], conds[count])

    times = measure_evaluations(evaluate, rows, repeats=_REPEATS, warmup=2, synchronize=wait)
    cost = RoundCost(
        rows,
        np.maximum.accumulate(times).tolist(),  # more rows do not cost less
        extra_evaluation=sampler.drafter.refreshes,
        has_initial_guess=sampler.initial_guess is not None,
    )
    return replace(cost, overhead_ms=_overhead(policy, network, make, cost, cond, longest, wait))


def _network(policy: DiffusionPolicy, sampler: SpeculativeSampler, asked: AutoWindow) -> Denoiser:
    if asked.backend is None:
        return policy
    return RuntimeSampler(sampler, asked.precision or "f32").network(policy)


def _overhead(
    policy: DiffusionPolicy,
    network: Denoiser,
    make: Callable[..., SpeculativeSampler],
    cost: RoundCost,
    cond: torch.Tensor,
    longest: int,
    wait: Callable[[], None],
) -> float:
    """Milliseconds of a round that are no evaluation: the median over whole calls, less what their rows cost."""
    spare = []
    for window in (each for each in _WINDOWS if each <= longest or each == _WINDOWS[0]):
        sampler = make(window=window)
        for call in range(_CALLS + 1):
            generator = seeded_generator(call)
            noise = draw_noise((1, *policy.event_shape), generator, policy.device)
            wait()
            begin = time.perf_counter_ns()
            result = sampler(network, noise, cond, [generator])
            wait()
            taken = (time.perf_counter_ns() - begin) / 1e6
            if call and result.start is not None and result.proposed is not None:  # the first is not counted
                rounds = list(zip(result.start[:, 0].tolist(), result.proposed[:, 0].tolist(), strict=True))
                spare.append((taken - sum(cost(*each) for each in rounds)) / len(rounds))
    return max(0.0, float(np.median(spare)))
