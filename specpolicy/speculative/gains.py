"""How x̂0 answers to an innovation of the state, step by step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .process import ReverseProcess


@dataclass(frozen=True)
class Gains:
    """Linear gains J_k = U diag(λ_k) Uᵀ with one orthonormal basis U for all steps.

    For Gaussian data the gains of all noise levels are functions of one covariance and share its eigenvectors; on
    trained policies a shared basis predicts better than gains fitted step by step, since there is so much less to fit.

    Attributes:
        values: λ_k, shape ``(K, r)``, one row for each step, not negative.
        basis: U, shape ``(d, r)`` with orthonormal columns and d the numbers of an event; r < d gains nothing in the
            other directions. None is the identity: one gain for each coordinate, and r = d.

    Raises:
        ValueError: the shapes do not fit one another.
    """

    values: Float[Tensor, "k r"]
    basis: Float[Tensor, "d r"] | None = None

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or (self.basis is not None and self.basis.shape[-1] != self.values.shape[1]):
            basis = None if self.basis is None else tuple(self.basis.shape)
            raise ValueError(f"gains {tuple(self.values.shape)} with basis {basis}; expected (K, r) and (d, r)")

    @property
    def num_steps(self) -> int:
        """K, the steps of the chain that they are for."""
        return len(self.values)

    @property
    def event_numbers(self) -> int:
        """d, the numbers of the event that they are for."""
        return len(self.basis) if self.basis is not None else self.values.shape[1]

    def to(self, device: torch.device, dtype: torch.dtype) -> Gains:
        """The same on ``device`` in ``dtype``."""
        return Gains(self.values.to(device, dtype), None if self.basis is None else self.basis.to(device, dtype))

    def project(self, vectors: Float[Tensor, "*n d"]) -> Float[Tensor, "*n r"]:
        """Coordinates in the basis."""
        return vectors if self.basis is None else vectors @ self.basis

    def expand(self, coordinates: Float[Tensor, "*n r"]) -> Float[Tensor, "*n d"]:
        """Vectors from coordinates."""
        return coordinates if self.basis is None else coordinates @ self.basis.T


class GainsOn:
    """Gains wherever they are asked for, brought there once.

    Args:
        gains: on any device, in any dtype.
    """

    def __init__(self, gains: Gains) -> None:
        self.gains = gains
        self._placed: dict[tuple[torch.device, torch.dtype], Gains] = {}

    def at(self, process: ReverseProcess, x: Float[Tensor, "n ..."]) -> Gains:
        """The gains on the device and in the dtype of the states ``x`` of ``process``.

        Raises:
            ValueError: they are of another number of steps or another event.
        """
        gains, numbers = self.gains, x[0].numel()
        if (gains.num_steps, gains.event_numbers) != (process.num_steps, numbers):
            raise ValueError(
                f"the gains are for {gains.num_steps} steps and events of {gains.event_numbers} numbers; the sampler's "
                f"process has {process.num_steps} steps and its events {numbers} numbers: fit gains for this process"
            )
        place = (x.device, x.dtype)
        if place not in self._placed:
            self._placed[place] = gains.to(*place)
        return self._placed[place]
