"""How much do tables save that are computed once a policy (timesteps) and once a chunk (observations)?

    python benchmarks/bench_condition_tables.py square tool_hang

Whole chunks at batch size 1, with the tables and without, in turns; processor time on one thread, the same random
numbers both ways. OpenVINO evaluates the network as well where it is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable
from typing import Any

import torch
from side_by_side import ROOT, conditions, keep, ratio, shown, take_turns

from specpolicy import samplers
from specpolicy.calibration.store import CalibrationError
from specpolicy.policies.diffusion_policy import DiffusionPolicy
from specpolicy.speculative.compiled.sampler import compile_sampler

SAMPLERS = ("ddim10", "recycled", "recycled20")


class Plain:
    """The same network, which prepares nothing."""

    def __init__(self, policy: DiffusionPolicy) -> None:
        """Keep the policy."""
        self.policy = policy

    def __call__(self, x: torch.Tensor, timestep: torch.Tensor, cond: Any) -> torch.Tensor:
        """Evaluate the network."""
        output: torch.Tensor = self.policy(x, timestep, cond)
        return output


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "tasks", nargs="+", choices=sorted(each.parent.name for each in ROOT.glob("checkpoints/*/config.json"))
    )
    parser.add_argument("--calls", type=int, default=40)
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device("cpu")
    backends = [None, *(["openvino"] if importlib.util.find_spec("openvino") else [])]
    content: dict[str, Any] = {}
    table = [
        "# Condition tables: processor time of a chunk, one thread",
        "",
        "| task | network | sampler | computed by | without, ms | with / without [95 %] | n |",
        "| --- | --- | --- | --- | ---: | ---: | ---: |",
    ]
    for task in options.tasks:
        policy = DiffusionPolicy.from_pretrained(ROOT / "checkpoints" / task, device)
        cond = conditions(policy, options.calls + 2)
        content[task] = {}
        for backend in backends:
            for name, row in _measure(policy, cond, options.calls, device, backend).items():
                content[task][f"{name}, {backend or 'PyTorch'}"] = row
                table.append(
                    f"| {task} | {type(policy.network).__name__} | {name} | {backend or 'PyTorch'} "
                    f"| {row['without_ms']:.1f} | {shown(row['ratio'], 3)} | {options.calls} |"
                )
                keep("condition_tables", "cpu", content, table, device)


def _measure(
    policy: DiffusionPolicy, cond: torch.Tensor, calls: int, device: torch.device, backend: Any
) -> dict[str, dict[str, Any]]:
    denoisers = {"with": policy, "without": Plain(policy)}
    found = {name: samplers.load(name, policy) for name in SAMPLERS if _calibrated(name, policy)}
    if backend:
        found = {name: compile_sampler(each, backend) for name, each in found.items()}

    def way(sampler: Any, denoiser: Any) -> Callable[[int], None]:
        def call(number: int) -> None:
            generator = torch.Generator().manual_seed(number)
            noise = torch.randn((1, *policy.event_shape), generator=generator)
            with torch.inference_mode():
                sampler(denoiser, noise, cond[number % len(cond)][None], generator)

        return call

    ways = {
        f"{name}, {how}": way(sampler, denoiser)
        for name, sampler in found.items()
        for how, denoiser in denoisers.items()
    }
    taken = take_turns(ways, calls, device, clock=time.process_time)
    return {
        name: {
            "without_ms": float(torch.tensor(taken[f"{name}, without"]).median()),
            "with_ms": float(torch.tensor(taken[f"{name}, with"]).median()),
            "ratio": ratio(taken[f"{name}, with"], taken[f"{name}, without"]),
            "n": calls,
        }
        for name in found
    }


def _calibrated(name: str, policy: DiffusionPolicy) -> bool:
    try:
        samplers.load(name, policy)
    except CalibrationError:
        return False
    return True


if __name__ == "__main__":
    main()
