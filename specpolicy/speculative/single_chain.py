"""One chain on a CPU, in NumPy and float64.

A robot samples one chunk at a time, of some hundred numbers: operations on arrays so small that each costs what its
call costs, and a call into NumPy costs a fraction of one into PyTorch. States are kept in float64 here, and in the
dtype of the batch elsewhere: equal seeds give the same samples up to rounding.

A network that takes arrays (:class:`ArrayDenoiser`) is handed them as they are: nothing of PyTorch is left between two
evaluations but the random numbers, whose streams are those of the batched samplers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specpolicy.speculative.denoiser import Cond, Denoiser, check_output, prepared
from specpolicy.speculative.inputs import state_dtype
from specpolicy.speculative.process import ReverseProcess
from specpolicy.speculative.random_streams import ChainGenerators
from specpolicy.speculative.result import SampleResult

Array = NDArray[np.float64]

_LARGEST_EVENT = 4096

ChainNetwork = Callable[[Array, NDArray[np.integer[Any]]], NDArray[np.floating[Any]]]
"""From states ``(n, d)`` of one chain and the timestep of each to the network's output, an array ``(n, *event)``."""


class ArrayDenoiser(Denoiser, Protocol):
    """A denoiser that can be asked about one chain in arrays; this is optional."""

    def for_chain(self, event: tuple[int, ...], cond: Cond) -> ChainNetwork:
        """Fix the condition of one chain, of leading dimension 1; its states are in float32 for the network."""
        ...


class HostProcess:
    """A process in NumPy, and a network that is asked about the states of one chain."""

    def __init__(self, process: ReverseProcess) -> None:
        self.num_steps, self.timesteps = process.num_steps, process.timesteps.cpu().numpy()
        parts = (process.a, process.b, process.sigma, process.from_state, process.from_output)
        self.a, self.b, self.sigma, self.from_state, self.from_output = (as_array(part)[:, None] for part in parts)
        self.unclipped, self.carried = (
            None if part is None else as_array(part)[:, None] for part in (process.unclipped_weight, process.carried)
        )
        self.clip = process.thresholding.clip

    def x0(self, x: Array, output: NDArray[np.floating[Any]], k: int) -> Array:
        """x̂0 of the steps from ``k`` on, as :meth:`ReverseProcess.x0`."""
        end = k + len(x)
        raw = self.from_state[k:end] * x
        raw += self.from_output[k:end] * output
        if self.clip is None and self.carried is None:
            return raw
        clipped = raw if self.clip is None else np.minimum(np.maximum(raw, -self.clip), self.clip)
        used = clipped
        if self.unclipped is not None:
            used = clipped + self.unclipped[k:end] * (raw - clipped)
        if self.carried is not None:
            used = used + self.carried[k:end] * (x - clipped)
        return used

    def step(self, x: Array, x0: Array, k: int, noise: Array | None) -> Array:
        """The state after step ``k``."""
        after = self.a[k] * x
        after += self.b[k] * x0
        if noise is not None:
            after += self.sigma[k] * noise
        return after


class HostNetwork:
    """The network for one chain: its condition, the kind of its inputs, and how often it was asked."""

    def __init__(self, chain: HostProcess, denoiser: Denoiser, noise: Tensor, cond: Cond) -> None:
        self.chain, self.event = chain, tuple(noise.shape[1:])
        self._ask = _chain_network(denoiser, self.event, noise.dtype, cond)
        self.passes = self.rows = 0

    def x0(self, states: Array, k: int) -> Array:
        """x̂0 of the states from ``k`` on, in one evaluation."""
        rows = len(states)
        timesteps = self.chain.timesteps[k : k + rows]
        output = self._ask(states, timesteps)
        # A sum says whether all are finite, unless it is infinite itself; the check says where.
        if output.shape[1:] != self.event or not math.isfinite(np.add.reduce(output, axis=None)):
            check_output(torch.from_numpy(output), torch.empty(rows, *self.event), torch.from_numpy(timesteps))
        self.passes += 1
        self.rows += rows
        return self.chain.x0(states, output.reshape(rows, -1), k)


def _chain_network(denoiser: Denoiser, event: tuple[int, ...], dtype: torch.dtype, cond: Cond) -> ChainNetwork:
    """The denoiser for arrays: by its own means if it has them, else through tensors."""
    own: Callable[..., ChainNetwork] | None = getattr(denoiser, "for_chain", None)
    if own is not None and dtype == torch.float32:
        return own(event, cond)
    fixed = prepared(denoiser, cond)

    def ask(states: Array, timesteps: NDArray[np.integer[Any]]) -> Array:
        x, timestep = torch.from_numpy(states).to(dtype).view(-1, *event), torch.from_numpy(timesteps)
        output = denoiser(x, timestep, fixed if len(states) == 1 else _repeated(fixed, len(states)))
        if not isinstance(output, Tensor) or output.shape != x.shape or not output.is_floating_point():
            check_output(output, x, timestep)
        return as_array(output)

    return ask


def _repeated(cond: Cond, rows: int) -> Cond:
    """The condition of one chain for several states, without copying it."""
    if isinstance(cond, Tensor):
        return cond.expand(rows, *cond.shape[1:])
    if isinstance(cond, dict):
        return {key: _repeated(value, rows) for key, value in cond.items()}
    if isinstance(cond, (tuple, list)):
        parts = [_repeated(value, rows) for value in cond]
        return type(cond)(*parts) if hasattr(cond, "_fields") else type(cond)(parts)
    return cond


def is_small(process: ReverseProcess, noise: Tensor) -> bool:
    """Tell whether one chain can be sampled here.

    Args:
        process: of the sampler.
        noise: that chains start from, shape ``(B, *event)``.

    Returns:
        Whether it is one chain of few numbers on the CPU, without dynamic thresholding.
    """
    fits = len(noise) == 1 and noise.device.type == "cpu" and noise.numel() <= _LARGEST_EVENT
    return fits and process.thresholding.quantile is None


class StepwiseChain:
    """The steps of one chain, one evaluation each.

    Args:
        process: the chain; without noise it is deterministic.
    """

    def __init__(self, process: ReverseProcess) -> None:
        self.process, self._chain = process, HostProcess(process)

    def sample(
        self, denoiser: Denoiser, noise: Tensor, cond: Cond, random: ChainGenerators, record: bool = False
    ) -> SampleResult:
        """Sample the chain.

        Args:
            denoiser: the network.
            noise: its start, shape ``(1, *event)``.
            cond: its condition.
            random: its random numbers.
            record: keep all states and x̂0.

        Returns:
            As of the batched sampler.

        Raises:
            DenoiserError: the network returned NaN, infinity or another shape.
        """
        chain, event = self._chain, noise.shape[1:]
        network, x = HostNetwork(chain, denoiser, noise, cond), as_array(noise).reshape(1, -1)
        states, found = [x], []
        for k in range(chain.num_steps):
            x0 = network.x0(x, k)
            drawn = as_array(random.noise(event)).reshape(1, -1) if chain.sigma[k, 0] > 0 else None
            x = chain.step(x, x0, k, drawn)
            if record:
                states.append(x)
                found.append(x0)
        count = torch.tensor([chain.num_steps])
        return SampleResult(
            sample=as_events(x, noise.dtype, event)[0][None],
            passes=count,
            evaluations=count.clone(),
            trajectory=as_events(np.concatenate(states), state_dtype(noise), event)[:, None] if record else None,
            x0=as_events(np.concatenate(found), state_dtype(noise), event)[:, None] if record else None,
        )


def as_array(tensor: Tensor) -> Array:
    """Copy a tensor into an array in float64."""
    if tensor.dtype == torch.float32 and tensor.device.type == "cpu":
        return tensor.detach().numpy().astype(np.float64)
    found: Any = tensor.detach().to("cpu", torch.float64, copy=True).numpy()
    return found


def as_events(rows: Array, dtype: torch.dtype, event: tuple[int, ...]) -> Tensor:
    """Turn rows of numbers into a tensor of events."""
    return torch.from_numpy(rows).to(dtype).view(len(rows), *event)
