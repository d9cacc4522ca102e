"""Drafts with a fitted Jacobian ∂x̂0/∂x, and its storage."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from specpolicy.speculative.drafters.base import Draft, Drafter, DraftStart, within_bounds
from specpolicy.speculative.linear_chain import affine_scan
from specpolicy.speculative.process import ReverseProcess


@dataclass(frozen=True)
class X0Jacobian:
    """Linear Jacobian J_k = U diag(λ_k) Uᵀ with one orthonormal basis U for all steps.

    For Gaussian data the Jacobian of all noise levels are functions of one covariance and share its eigenvectors; on
    trained policies a shared basis predicts better than Jacobians fitted step by step: there is less to fit.

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
        """Check the shapes."""
        rank = None if self.basis is None or self.basis.ndim != 2 else self.basis.shape[1]
        if self.values.ndim != 2 or (self.basis is not None and rank != self.values.shape[1]):
            basis = None if self.basis is None else tuple(self.basis.shape)
            raise ValueError(f"jacobian {tuple(self.values.shape)} with basis {basis}; expected (K, r) and (d, r)")

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
    """A Jacobian on every device and in every dtype that it is used in, copied once.

    Args:
        jacobian: on any device, in any dtype.
    """

    def __init__(self, jacobian: X0Jacobian) -> None:
        self.jacobian = jacobian
        self._placed: dict[tuple[torch.device, torch.dtype], X0Jacobian] = {}

    def at(self, process: ReverseProcess, x: Float[Tensor, "n ..."]) -> X0Jacobian:
        """The Jacobian on the device and in the dtype of the states ``x`` of ``process``.

        Raises:
            ValueError: they are of another number of steps or another event.
        """
        jacobian, numbers = self.jacobian, x[0].numel()
        if (jacobian.num_steps, jacobian.event_numbers) != (process.num_steps, numbers):
            raise ValueError(
                f"the Jacobian is for {jacobian.num_steps} steps and events of {jacobian.event_numbers} numbers; "
                f"the process has {process.num_steps} steps and its events {numbers} numbers: fit a Jacobian for it"
            )
        place = (x.device, x.dtype)
        if place not in self._placed:
            self._placed[place] = jacobian.to(*place)
        return self._placed[place]


class LinearDrafter(Drafter):
    """x̂0 at a drafted state = f + J_k (x − x̄): linear in the innovation, with Jacobian fitted once per network.

    f is the last evaluated x̂0, and x̄ the mean path from there under constant f. In the basis of the Jacobian the
    innovation c = Uᵀ(x − x̄) obeys c_{j+1} = (a_j + b_j λ_j) c_j + σ_j Uᵀξ_j number by number, so that a window is
    drafted at once, by a few products and one recurrence. No network evaluation of its own; a zero Jacobian makes it
    the free drafter.

    Args:
        jacobian: of the process that is to be sampled and the network that samples it. A wrong one costs evaluations,
            never exactness.
    """

    def __init__(self, jacobian: X0Jacobian) -> None:
        self.jacobian = jacobian
        self._on = JacobianCache(jacobian)

    def __repr__(self) -> str:
        """Name steps and rank."""
        return f"LinearDrafter(K={self.jacobian.num_steps}, rank={self.jacobian.values.shape[1]})"

    def draft(self, start: DraftStart) -> Draft:
        """Draft the window.

        Raises:
            ValueError: the Jacobian is of another number of steps or another event.
        """
        process, window = start.chain.process, start.noise.shape[1]
        jacobian = self._on.at(process, start.x)
        k = (start.k[:, None] + torch.arange(window, device=start.k.device)).clamp(max=process.num_steps - 1)
        a, b, sigma = (coefficient[k][..., None] for coefficient in (process.a, process.b, process.sigma))
        away = start.x - start.chain.mean(start.last_eval_k, start.k, start.last_eval_x, start.last_eval_x0)
        values = jacobian.values[k]
        noise = jacobian.project(start.noise.flatten(2))
        innovation = affine_scan(a + b * values, sigma * noise, jacobian.project(away.flatten(1)))
        answer = jacobian.expand(values * innovation[:, :-1])
        # A Jacobian that does not fit can make the innovation grow without bound: then the last x̂0 is the better draft.
        answer = torch.where(within_bounds(answer, start.x)[..., None], answer, 0.0)
        x0 = (start.last_eval_x0.flatten(1)[:, None] + answer).view_as(start.noise)
        return Draft(start.chain.draft_per_step(start.k, start.x, x0, start.noise), x0)
