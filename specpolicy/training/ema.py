"""Exponential moving average of weights with a warm-up of the decay."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MovingAverage:
    """Average of a module's state with decay ``min(limit, 1 − (1 + step)^−power)``.

    The decay starts near zero, so that the first random weights are soon forgotten; this is the schedule that
    Diffusion Policy uses (power 0.75).
    """

    def __init__(self, module: nn.Module, power: float = 0.75, limit: float = 0.9999) -> None:
        self.power, self.limit, self.step = power, limit, 0
        self.average = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take in the module's present weights."""
        self.step += 1
        decay = min(self.limit, 1.0 - (1.0 + self.step) ** -self.power)
        for name, tensor in module.state_dict().items():
            average = self.average[name]
            if average.is_floating_point():
                average.lerp_(tensor, 1.0 - decay)
            else:
                average.copy_(tensor)

    def state_dict(self) -> dict[str, Tensor | int]:
        """Averages and the step, as tensors and integers."""
        return {"step": self.step, **{f"average.{name}": tensor for name, tensor in self.average.items()}}

    def load_state_dict(self, state: dict[str, Tensor | int]) -> None:
        """Inverse of :meth:`state_dict`."""
        self.step = int(state["step"])
        for name, tensor in self.average.items():
            tensor.copy_(torch.as_tensor(state[f"average.{name}"]))
