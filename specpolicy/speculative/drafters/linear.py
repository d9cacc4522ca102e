"""Drafts that know how x̂0 answers to the noise that they themselves draw."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from specpolicy.speculative.drafters.base import Draft, Drafter, DraftStart
from specpolicy.speculative.linear_chain import affine_scan
from specpolicy.speculative.process import ReverseProcess


@dataclass(frozen=True)
class X0Jacobian:
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

    def to(self, device: torch.device, dtype: torch.dtype) -> X0Jacobian:
        """The same on ``device`` in ``dtype``."""
        return X0Jacobian(self.values.to(device, dtype), None if self.basis is None else self.basis.to(device, dtype))

    def project(self, vectors: Float[Tensor, "*n d"]) -> Float[Tensor, "*n r"]:
        """Coordinates in the basis."""
        return vectors if self.basis is None else vectors @ self.basis

    def expand(self, coordinates: Float[Tensor, "*n r"]) -> Float[Tensor, "*n d"]:
        """Vectors from coordinates."""
        return coordinates if self.basis is None else coordinates @ self.basis.T


class JacobianCache:
    """Gains wherever they are asked for, brought there once.

    Args:
        gains: on any device, in any dtype.
    """

    def __init__(self, gains: X0Jacobian) -> None:
        self.gains = gains
        self._placed: dict[tuple[torch.device, torch.dtype], X0Jacobian] = {}

    def at(self, process: ReverseProcess, x: Float[Tensor, "n ..."]) -> X0Jacobian:
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


class LinearDrafter(Drafter):
    """x̂0 at a drafted state = f + J_k (x − x̄): linear in the innovation, with gains fitted once per network.

    f is the x̂0 at the anchor, and x̄ the mean path from there under constant f. In the basis of the gains the
    innovation c = Uᵀ(x − x̄) obeys c_{j+1} = (a_j + b_j λ_j) c_j + σ_j Uᵀξ_j number by number, so that a window is
    drafted at once, by a few products and one recurrence. No network pass of its own; zero gains make it the free
    drafter.

    Args:
        gains: of the process that is to be sampled and the network that samples it. Wrong ones cost passes, never
            exactness.
    """

    def __init__(self, gains: X0Jacobian) -> None:
        self.gains = gains
        self._on = JacobianCache(gains)

    def __repr__(self) -> str:
        return f"LinearDrafter(K={self.gains.num_steps}, rank={self.gains.values.shape[1]})"

    def draft(self, start: DraftStart) -> Draft:
        """Draft the window.

        Raises:
            ValueError: the gains are of another number of steps or another event.
        """
        process, window = start.chain.process, start.noise.shape[1]
        gains = self._on.at(process, start.x)
        k = (start.k[:, None] + torch.arange(window, device=start.k.device)).clamp(max=process.num_steps - 1)
        a, b, sigma = (coefficient[k][..., None] for coefficient in (process.a, process.b, process.sigma))
        away = start.x - start.chain.mean(start.last_eval_k, start.k, start.last_eval_x, start.last_eval_x0)
        values = gains.values[k]
        noise = gains.project(start.noise.flatten(2))
        innovation = affine_scan(a + b * values, sigma * noise, gains.project(away.flatten(1)))
        answer = gains.expand(values * innovation[:, :-1])
        x0 = (start.last_eval_x0.flatten(1)[:, None] + answer).view_as(start.noise)
        return Draft(start.chain.draft_along(start.k, start.x, x0, start.noise), x0)
