"""Actions that are already under way: what a delay-conditioned policy knows of a chunk before it is sampled.

A robot that plays on while its policy computes has decided the first actions of the next chunk: those that play until
it is there. A policy that was trained with clean first actions (training-time real-time chunking, arXiv 2512.05964)
continues them. Here they are part of the condition, so that the chain of the chunk is an ordinary chain under it: its
known coordinates have x̂0 = the known action at every step, the others are the network's, and every exact sampler draws
from the policy's distribution given the prefix.

The first action of a prefix is that of the step of the observation, which in the chunk stands at ``first_executed``.
Actions of older steps, which stand before it, are never given: they add nothing to what the observations show.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from specpolicy.speculative.denoiser import Cond
from specpolicy.speculative.initial_guess import X0Guess

Prefixes = Sequence[NDArray[Any] | None]
"""Of each entry of a batch the actions under way, ``(d, action_dim)``, environment units; None for none."""


class PrefixError(ValueError):
    """Actions under way do not fit the policy."""


class PrefixLayout:
    """Where prefixes stand in the condition and in the chunk.

    The last ``width`` columns of a condition hold, position by position, the normalized action and a 1 where it is
    known, zeros where it is not.

    Args:
        first: position in the chunk of the action for the step of the observation.
        max_delay: D, longest prefix.
        action_dim: coordinates of one action.
        alphas_cumprod: ᾱ of the training chain, shape ``(T,)``.
        prediction_type: of the network: ``epsilon``, ``sample`` or ``v_prediction``.
    """

    def __init__(
        self, first: int, max_delay: int, action_dim: int, alphas_cumprod: Float[Tensor, " T"], prediction_type: str
    ) -> None:
        self.first, self.max_delay, self.action_dim = first, max_delay, action_dim
        self.prediction_type = prediction_type
        self._levels = alphas_cumprod

    @property
    def width(self) -> int:
        """Columns of the condition."""
        return self.max_delay * (self.action_dim + 1)

    def columns(self, actions: Float[Tensor, "b d action"], lengths: Int[Tensor, " b"]) -> Float[Tensor, "b width"]:
        """Write prefixes as columns of the condition.

        Args:
            actions: normalized, of the ``max_delay`` steps from that of the observation on; beyond its length nothing
                of a prefix is looked at.
            lengths: known actions of each, 0 to ``max_delay``.
        """
        known = torch.arange(self.max_delay, device=actions.device) < lengths[:, None]
        values = torch.where(known[..., None], actions, 0.0)
        return torch.cat([values, known[..., None].to(values.dtype)], dim=-1).flatten(1)

    def pack(
        self,
        prefixes: Prefixes | None,
        batch: int,
        normalize: Callable[[Tensor], Tensor],
        device: torch.device,
    ) -> Float[Tensor, "b width"]:
        """Check the prefixes of a batch, normalize them and write them as columns.

        Args:
            prefixes: of each entry; None if there are none.
            batch: entries.
            normalize: maps actions to the network's units.
            device: of the result.

        Raises:
            PrefixError: another number of prefixes, more than ``max_delay`` actions, another ``action_dim``, or values
                that are not finite.
        """
        if prefixes is None:
            prefixes = [None] * batch
        if len(prefixes) != batch:
            raise PrefixError(f"{len(prefixes)} prefixes for {batch} observations; expected one for each, or None")
        padded = np.zeros((batch, self.max_delay, self.action_dim), np.float32)
        lengths = torch.zeros(batch, dtype=torch.long)
        for row, prefix in enumerate(prefixes):
            if prefix is None or not len(prefix):
                continue
            actions = self.checked(prefix)
            padded[row, : len(actions)], lengths[row] = actions, len(actions)
        return self.columns(normalize(torch.from_numpy(padded).to(device)), lengths.to(device))

    def checked(self, prefix: NDArray[Any]) -> NDArray[Any]:
        """Check the actions under way of one chunk.

        Args:
            prefix: environment units.

        Returns:
            The same as an array.

        Raises:
            PrefixError: see :meth:`pack`.
        """
        actions = np.asarray(prefix)
        if actions.ndim != 2 or actions.shape[1] != self.action_dim or actions.dtype.kind not in "fiu":
            raise PrefixError(
                f"a prefix of shape {actions.shape} and type {actions.dtype}; expected (actions under way, "
                f"{self.action_dim}) numbers"
            )
        if len(actions) > self.max_delay:
            raise PrefixError(
                f"{len(actions)} actions under way; this policy was trained for at most max_delay={self.max_delay}"
            )
        if not (np.abs(actions) <= np.finfo(np.float32).max).all():
            raise PrefixError("a prefix contains NaN, infinity or numbers that float32 cannot hold")
        return actions

    def split(self, cond: Float[Tensor, "n cond"]) -> tuple[Float[Tensor, "n d action"], Bool[Tensor, "n d 1"]]:
        """Read the prefixes off conditions: normalized actions, zero where unknown, and whether each is known."""
        table = cond[:, cond.shape[1] - self.width :].view(len(cond), self.max_delay, self.action_dim + 1)
        return table[..., :-1], table[..., -1:] > 0.5

    def insert(
        self, x: Float[Tensor, "n time action"], cond: Float[Tensor, "n cond"]
    ) -> Float[Tensor, "n time action"]:
        """Put the known, clean actions into chunks."""
        actions, known = self.split(cond)
        first, end = self.first, self.first + self.max_delay
        middle = torch.where(known, actions.to(x.dtype), x[:, first:end])
        return torch.cat([x[:, :first], middle, x[:, end:]], dim=1)

    def answer(
        self,
        output: Float[Tensor, "n time action"],
        x: Float[Tensor, "n time action"],
        timestep: Tensor,
        cond: Float[Tensor, "n cond"],
    ) -> Float[Tensor, "n time action"]:
        """Make a network's output say x̂0 = the known action wherever one is known.

        Args:
            output: of the network, in its prediction type.
            x: the chain's own states.
            timestep: of each, shape ``(n,)``.
            cond: of each.
        """
        actions, known = self.split(cond)
        first, end = self.first, self.first + self.max_delay
        here, clean = x[:, first:end], actions.to(x.dtype)
        if self.prediction_type == "sample":
            said = clean
        else:
            if self._levels.device != x.device:
                self._levels = self._levels.to(x.device)
            level = self._levels[timestep.long()].to(x.dtype)[:, None, None]
            if self.prediction_type == "epsilon":
                said = (here - level.sqrt() * clean) / (1 - level).sqrt()
            else:  # v = √ᾱ ε − √(1−ᾱ) x0 with the ε of these x and x0
                said = (level.sqrt() * here - clean) / (1 - level).sqrt()
        middle = torch.where(known, said, output[:, first:end])
        return torch.cat([output[:, :first], middle, output[:, end:]], dim=1)

    def loss_mask(self, lengths: Int[Tensor, " b"], horizon: int) -> Bool[Tensor, "b time 1"]:
        """Say which actions of chunks are to be learned: all but the known ones.

        Args:
            lengths: of the prefixes.
            horizon: actions in a chunk.
        """
        place = torch.arange(horizon, device=lengths.device)
        known = (place >= self.first) & (place < self.first + lengths[:, None])
        return ~known[..., None]


class PrefixGuess(X0Guess):
    """An initial guess from the observations alone, overwritten by what is known.

    Args:
        guess: sees the observation's columns of the condition.
        layout: of the prefixes.
    """

    def __init__(self, guess: X0Guess, layout: PrefixLayout) -> None:
        self.guess, self.layout = guess, layout

    def x0(self, x: Float[Tensor, "n time action"], cond: Cond) -> Float[Tensor, "n time action"]:
        """Guess x̂0.

        Args:
            x: states.
            cond: the whole condition.

        Returns:
            The inner guess, with the known actions at their places.
        """
        return self.layout.insert(self.guess.x0(x, cond[:, : cond.shape[1] - self.layout.width]), cond)
