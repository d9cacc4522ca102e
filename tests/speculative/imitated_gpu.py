"""Runs the static functions of a checkpoint's samplers on a device that does not exist, and prints what went wrong.

    python imitated_gpu.py '[[CHECKPOINT, [SAMPLER, ...], null], ...]'     # no sampler: all of them

Tensors have shapes and a device but no numbers (FakeTensorMode), and the device is none of torch's own (PrivateUse1).
So a function that reads a number, which would break a CUDA graph, cannot go on; and a tensor that stays on the CPU,
which a graph would read from memory that is gone, is seen at the first operation it takes part in. A process of its
own, since torch takes one such device and keeps it. ``"read"`` and ``"cpu"`` in the place of null spoil the network.
"""

from __future__ import annotations

import copy
import json
import sys
import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

import specpolicy
from specpolicy.calibration.store import CalibrationError
from specpolicy.policies.diffusion_policy import DiffusionPolicy
from specpolicy.speculative import verifiers
from specpolicy.speculative.compiled.round import CompiledState, FixedShapeRound
from specpolicy.speculative.compiled.sampler import CompiledChain, CompiledSampler, _Steps, _Walk, compile_sampler
from specpolicy.speculative.denoiser import prepared
from specpolicy.speculative.drafters.base import Draft
from specpolicy.speculative.round import RoundNoise
from specpolicy.tuning.store import WindowsError

CHAINS, CPU = 3, torch.device("cpu")


def elsewhere(nested: Any, device: torch.device) -> Any:
    """A copy whose tensors are on the device; it is prepared where numbers can be read, as before a capture."""
    known = copy._deepcopy_dispatch  # type: ignore[attr-defined]
    known[torch.Tensor] = lambda part, memo: torch.empty(part.shape, dtype=part.dtype, device=device)
    try:
        return copy.deepcopy(nested)
    finally:
        del known[torch.Tensor]


class Broken:
    """A network that does what a captured one must not."""

    def __init__(self, policy: DiffusionPolicy, how: str) -> None:
        self.policy, self.how = policy, how

    def __call__(self, x: torch.Tensor, timestep: torch.Tensor, cond: Any) -> torch.Tensor:
        out = self.policy(x, timestep, cond)
        return out * float(out.sum()) if self.how == "read" else out + torch.ones(1)


class NothingElsewhere(TorchDispatchMode):
    """Refuses operations that take or make a tensor on another device, or copy one from it."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device, self.operations = device, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for part in tree_flatten((args, kwargs, out))[0]:
            if isinstance(part, torch.Tensor) and part.device != self.device:
                raise RuntimeError(f"{func} has a tensor of shape {tuple(part.shape)} on {part.device}")
        self.operations += 1
        return out


def rounds_of(rounds: FixedShapeRound, width: int, replays: bool, noise: torch.Tensor, cond: Any) -> list[Callable]:
    """A start, a replay and a round, each as a function of the state."""
    chains, *event = noise.shape

    def numbers(steps: int) -> RoundNoise:
        return RoundNoise(
            noise=noise.new_empty((chains, steps, *event)),
            uniform=noise.new_empty((chains, steps + 1), dtype=torch.float64),
            fresh=noise.new_empty((chains, *event)),
        )

    draft = Draft(noise.new_empty((chains, width + 1, *event)), noise.new_empty((chains, width, *event)))
    first = [lambda state: rounds.begin(state, None, cond)]
    if replays:
        first.append(lambda state: rounds.replay(state, (draft, numbers(width)), cond))
    return [*first, lambda state: rounds.advance(state, numbers(width), cond)]


def check(made: Any, policy: DiffusionPolicy, network: Any, device: torch.device, mode: FakeTensorMode) -> int:
    """Run what is captured; the operations that it took."""
    of = made.process if isinstance(made, CompiledChain) else made.sampler
    there = of.to("cpu", torch.float32) if isinstance(made, CompiledChain) else of.round_for(CPU, torch.float32)
    if not isinstance(made, CompiledChain):
        width, replays = max(1, int(made.sampler.table.max())), made.sampler.replayed > 0
    with mode, torch.no_grad():
        noise = torch.empty((CHAINS, *policy.event_shape), device=device)
        cond = torch.empty((CHAINS, policy.observations.dim * policy.observations.horizon), device=device)
        cond, moved = prepared(policy, cond), elsewhere(there, device)
        if isinstance(made, CompiledChain):
            steps = _Steps(moved, network, noise.dtype, compiled=False)
            first = torch.zeros(1, dtype=torch.long, device=device)
            states: list[Any] = [_Walk(noise, first, first.bool())]
            functions: list[Callable] = [lambda state: steps.all(state, noise.new_empty((2, *noise.shape)), cond)]
        else:
            table = torch.empty(made.sampler.table.shape, dtype=torch.long, device=device)
            rounds = FixedShapeRound(moved, network, noise.dtype, table)
            functions = rounds_of(rounds, width, replays, noise, cond)
            states = [
                CompiledState.start(noise, made.process.num_steps, record, made._recycled) for record in (False, True)
            ]
            for function in (functions[0], functions[-1]):  # drafters and guesses move their tables at first, not later
                function(states[0])
        with NothingElsewhere(device) as watched:
            for state in states:
                for function in functions:
                    state = function(state)
    return watched.operations


def findings(
    checkpoint: str, names: list[str], broken: str | None, device: torch.device, mode: FakeTensorMode
) -> dict[str, int | str]:
    """Operations of each sampler, or what went wrong; samplers without a static form are left out."""
    there = specpolicy.load_policy(checkpoint)
    with mode, device:  # fake parameters cannot be moved: they are made there
        policy = DiffusionPolicy(there.config).eval()
    network = Broken(policy, broken) if broken else policy
    found: dict[str, int | str] = {}
    for name in names or specpolicy.samplers.names():
        try:
            made = compile_sampler(specpolicy.samplers.load(name, there), "plain")
        except (CalibrationError, WindowsError, ValueError):
            continue
        if not isinstance(made, CompiledChain | CompiledSampler):
            continue
        try:
            found[name] = check(made, policy, network, device, mode)
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)
            ours = [f"{frame.name}, line {frame.lineno}" for frame in place if "specpolicy" in frame.filename]
            found[name] = f"{type(error).__name__} in {' > '.join(ours[-3:])}: {str(error)[:300]}"
    return found


def main() -> None:
    """Print ``{sampler: operations, or what went wrong}`` of each job in turn."""
    _setup_privateuseone_for_python_backend("imitated")
    device, mode = torch.device("imitated", 0), FakeTensorMode(allow_non_fake_inputs=True)
    verifiers._may_sync = lambda: False  # as in a capture, where Newton's method makes all of its steps
    print(json.dumps([findings(*job, device, mode) for job in json.loads(sys.argv[1])]))


if __name__ == "__main__":
    main()
