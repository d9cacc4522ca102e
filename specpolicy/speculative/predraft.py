"""A whole chain drafted before its condition was known."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from specpolicy.speculative.inputs import state_dtype
from specpolicy.speculative.process import ReverseProcess
from specpolicy.speculative.result import SampleResult


@dataclass(frozen=True)
class PreDraft:
    """Chains sampled under a predicted condition, to be verified under the true one.

    Attributes:
        states: x_0 … x_K, shape ``(K + 1, B, *event)``.
        x0: the x̂0 that each step used, shape ``(K, B, *event)``.
        noise: the z that made each step, shape ``(K, B, *event)``; 0 where the step has no noise.

    A pre-draft is itself an exact sample, so its noises are independent standard normal numbers, and are as good as
    fresh ones for the true condition. That holds only if nothing that the true condition depends on has looked at
    them: use a pre-draft once, do not play it, and do not choose among several by what is in them.

    Raises:
        ValueError: the shapes do not fit one another.
    """

    states: Float[Tensor, "k1 b ..."]
    x0: Float[Tensor, "k b ..."]
    noise: Float[Tensor, "k b ..."]

    def __post_init__(self) -> None:
        """Check the shapes."""
        steps = len(self.states) - 1
        expected = (steps, *self.states.shape[1:])
        if self.states.ndim < 3 or steps < 1 or self.x0.shape != expected or self.noise.shape != expected:
            raise ValueError(
                f"pre-draft with states {tuple(self.states.shape)}, x0 {tuple(self.x0.shape)} and noise "
                f"{tuple(self.noise.shape)}; expected (K + 1, B, *event), (K, B, *event) and (K, B, *event)"
            )

    @property
    def start(self) -> Float[Tensor, "b ..."]:
        """x_0, the noise that the chains start from: what to hand to the sampler as ``noise``."""
        return self.states[0]

    @property
    def num_steps(self) -> int:
        """K, the steps of the chain."""
        return len(self.x0)

    @staticmethod
    def of(process: ReverseProcess, result: SampleResult) -> PreDraft:
        """Recover the noises of a recorded result of an exact sampler.

        Args:
            process: the chain that was sampled.
            result: of a call with ``record=True``.

        Raises:
            ValueError: nothing was recorded, or it is not of this process.
        """
        if result.trajectory is None or result.x0 is None:
            raise ValueError("the result holds no trajectory; call the sampler with record=True")
        states, x0 = result.trajectory, result.x0
        if len(x0) != process.num_steps:
            raise ValueError(f"the result has {len(x0)} steps; this process has {process.num_steps}")
        shape = (-1, *[1] * (states.ndim - 1))
        a, b, sigma = (c.to(states.device, torch.float64).view(shape) for c in (process.a, process.b, process.sigma))
        difference = states[1:].double() - a * states[:-1].double() - b * x0.double()
        noise = torch.where(sigma > 0, difference / torch.where(sigma > 0, sigma, 1.0), 0.0)
        return PreDraft(states, x0, noise.to(states.dtype))

    def check(self, noise: Tensor, process: ReverseProcess) -> None:
        """Check that this can be replayed.

        Args:
            noise: that the sampler was given, shape ``(B, *event)``.
            process: of the sampler.

        Raises:
            ValueError: the steps, shapes, kinds or numbers differ.
        """
        if self.num_steps != process.num_steps:
            raise ValueError(
                f"the pre-draft has {self.num_steps} steps and the sampler's process {process.num_steps}; "
                "pre-draft with the sampler that is to use it"
            )
        if noise.shape != self.start.shape:
            raise ValueError(
                f"noise has shape {tuple(noise.shape)} and the pre-draft is of chains {tuple(self.start.shape)}; "
                "hand in predraft.start as noise"
            )
        dtype = state_dtype(noise)
        if noise.device != self.states.device or dtype != self.states.dtype:
            raise ValueError(
                f"noise on {noise.device} is sampled in {dtype}, but the pre-draft is on {self.states.device} in "
                f"{self.states.dtype}; pre-draft on the same device with noise of the same dtype"
            )
        if not torch.equal(noise.to(self.states.dtype), self.start):
            raise ValueError(
                "noise is not what the pre-draft started from: its states and noises belong to that start alone; "
                "hand in predraft.start as noise"
            )
