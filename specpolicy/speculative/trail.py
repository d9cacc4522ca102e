"""Settled states of a batch of chains, for a reader that goes along while the sampler runs ahead."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Trail:
    """Keeps states from the reader's position on and forgets those behind it.

    Chains of a batch are at different positions: a state waits here until the slowest chain has come that far. In
    place of K + 1 events a chain it holds as many as the fastest chain is ahead.
    """

    def __init__(self) -> None:
        self._states: dict[int, Tensor] = {}
        self._chains: dict[int, Tensor] = {}
        self._reader = 0

    def keep(self, where: Int[Tensor, " m"], chain: Int[Tensor, " m"], states: Float[Tensor, "m ..."]) -> None:
        """Keep ``states[i]``, which is the state of chain ``chain[i]`` at position ``where[i]``."""
        for position in torch.unique(where).tolist():
            if position < self._reader:
                continue
            here = where == position
            if position in self._states:
                self._chains[position] = torch.cat([self._chains[position], chain[here]])
                self._states[position] = torch.cat([self._states[position], states[here]])
            else:
                self._chains[position], self._states[position] = chain[here], states[here]

    def take(self, position: int, latest: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """The states of all chains at ``position``, and forget what is before it.

        Args:
            position: one that every chain has reached.
            latest: states of all chains where they are now; those that are just there have not been kept yet.
        """
        self._reader = position
        for old in [each for each in self._states if each < position]:
            del self._states[old], self._chains[old]
        if position not in self._states:
            return latest.clone()  # the chains go on in place
        return latest.index_copy(0, self._chains[position], self._states[position])
