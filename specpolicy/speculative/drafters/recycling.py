"""Drafts that reuse network outputs beyond the first rejected step."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from specpolicy.speculative.drafters.base import Draft, Drafter, DraftStart, UnverifiedTail, within_bounds
from specpolicy.speculative.drafters.linear import JacobianCache, X0Jacobian
from specpolicy.speculative.linear_chain import affine_scan


class RecyclingDrafter(Drafter):
    """x̂0 at a drafted state = the target's x̂0 at the old state of that step + J_k (x − old x), with the old noises.

    Rows that were evaluated and rejected are thus used. The difference from the old path has
    no noise in it, only what the repair moved and the errors of the old drafts; so even without a Jacobian (J = 0) the
    old x̂0 is nearer than the latest one. Where the old path ends or is left, and in a first round, drafts go on as
    those of :class:`~specpolicy.LinearDrafter`: from the last x̂0, with the Jacobian for the innovation. See
    :class:`~specpolicy.speculative.drafters.base.UnverifiedTail` for why the sample stays exact, and with which
    verifiers.

    Args:
        jacobian: of the process that is to be sampled and the network that samples it; None for J = 0. Wrong ones cost
            evaluations, never exactness.
        trust: the old path is left where a draft is farther from it than this share of its distance from x̄, the mean
            path since the last known x̂0: an old x̂0 is then no better a guess than the last one. Above 0.

    Raises:
        ValueError: ``trust`` is not above 0.
    """

    recycles = True

    def __init__(self, jacobian: X0Jacobian | None = None, trust: float = 0.5) -> None:
        if not trust > 0:
            raise ValueError(f"trust={trust}; give a share above 0, or infinity to follow the old path to its end")
        self.jacobian, self.trust = jacobian, trust
        self._on = None if jacobian is None else JacobianCache(jacobian)

    def __repr__(self) -> str:
        """Name the settings."""
        inside = (
            "no Jacobian"
            if self.jacobian is None
            else f"K={self.jacobian.num_steps}, rank={self.jacobian.values.shape[1]}"
        )
        return f"RecyclingDrafter({inside}, trust={self.trust})"

    @property
    def name(self) -> str:
        """With Jacobian or without."""
        return super().name + ("" if self.jacobian is not None else " without Jacobian")

    def draft(self, start: DraftStart) -> Draft:
        """Draft the window.

        Raises:
            ValueError: the Jacobian is of another number of steps or another event, or there is no tail.
        """
        if start.tail is None:
            raise ValueError("a recycling drafter needs the tail of the last round; the samplers hand it in")
        old = start.tail.width(start.noise.shape[1])
        along = self._follow(start, old)
        return self._follow(
            start, old._replace(num_noises=torch.minimum(old.num_noises, self._trusted(start, old, along)))
        )

    def _trusted(self, start: DraftStart, old: UnverifiedTail, draft: Draft) -> Int[Tensor, " n"]:
        """The last step, one after another, at which the old path is near enough; −1 if none is."""
        states, chain = draft.states[:, :-1].flatten(2), start.chain
        position = start.k[:, None] + torch.arange(states.shape[1], device=states.device)
        position = position.clamp(max=chain.process.num_steps)  # what is beyond is padding
        reached = chain.mean_at(start.last_eval_k, position, start.last_eval_x, start.last_eval_x0).flatten(2)
        from_old = torch.linalg.vector_norm(states - old.states[:, :-1].flatten(2), dim=2)
        from_mean = torch.linalg.vector_norm(states - reached, dim=2)
        return (from_old <= self.trust * from_mean).cumprod(dim=1).sum(dim=1) - 1

    def _follow(self, start: DraftStart, old: UnverifiedTail) -> Draft:
        """Draft along the first ``old.num_noises + 1`` old states, and from the last x̂0 on after them."""
        turn = old.num_noises[:, None]
        column = torch.arange(start.noise.shape[1], device=turn.device)
        # Where x̂0 is measured from: up to the turn those of the old states; after it, from the very start if there is
        # no old path, the last one.
        known = old.target_x0[:, :-1].flatten(2)
        last = torch.where(turn < 0, start.last_eval_x0.flatten(1), _at(old.target_x0.flatten(2), old.num_noises))
        base = torch.where((column <= turn)[..., None], known, last[:, None])
        if self._on is not None:
            jacobian = self._on.at(start.chain.process, start.x)
            answer = _answer(start, old, jacobian)
            at_turn = torch.where(
                (column > turn)[..., None] & (turn >= 0)[..., None], _at(answer, old.num_noises)[:, None], 0
            )
            response = jacobian.expand(answer + at_turn)
            # As in a linear draft: what grows without bound is left out.
            base = base + torch.where(within_bounds(response, start.x)[..., None], response, 0.0)
        x0 = base.view_as(start.noise)
        return Draft(start.chain.draft_per_step(start.k, start.x, x0, start.noise), x0)


def _answer(start: DraftStart, old: UnverifiedTail, jacobian: X0Jacobian) -> Float[Tensor, "n w r"]:
    """J (x − where x̂0 is measured from) at each step, in the Jacobian's basis.

    Along the old path the difference from it grows by the errors of the old drafts; at the turn it begins anew, as the
    innovation since then.
    """
    process, turn = start.chain.process, old.num_noises[:, None]
    column = torch.arange(start.noise.shape[1], device=turn.device)
    k = (start.k[:, None] + column).clamp(max=process.num_steps - 1)
    a, b, sigma = (coefficient[k][..., None] for coefficient in (process.a, process.b, process.sigma))
    mean = start.chain.mean(start.last_eval_k, start.k, start.last_eval_x, start.last_eval_x0).flatten(1)
    away = start.x.flatten(1) - torch.where(turn < 0, mean, old.states[:, 0].flatten(1))
    errors = b * jacobian.project((old.target_x0[:, :-1] - old.drafted_x0).flatten(2))
    shift = torch.where((column < turn)[..., None], errors, sigma * jacobian.project(start.noise.flatten(2)))
    scale = torch.where((column == turn)[..., None], 0.0, a + b * jacobian.values[k])
    return jacobian.values[k] * affine_scan(scale, shift, jacobian.project(away))[:, :-1]


def _at(columns: Float[Tensor, "n w d"], which: Int[Tensor, " n"]) -> Float[Tensor, "n d"]:
    """One column of each row; numbers outside are taken for the nearest inside."""
    row = torch.arange(len(columns), device=columns.device)
    return columns[row, which.clamp(min=0, max=columns.shape[1] - 1)]
