"""Random numbers for a batch of chains, from one generator or from one generator a chain."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class ChainGenerators:
    """Draws for all chains of a batch.

    With a list of generators every chain draws from its own, always the same numbers for the same history: its sample
    does not depend on which chains share the batch. With a single generator one call serves all chains.

    Args:
        generator: None (torch's default), one generator, or a list of ``batch`` generators.
        batch: number of chains.
        device, dtype: of the numbers handed out. Generators may live on the CPU while ``device`` does not.

    Raises:
        ValueError: the list has another length than ``batch``.
    """

    def __init__(
        self,
        generator: torch.Generator | Sequence[torch.Generator] | None,
        batch: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.device, self.dtype = device, dtype
        self.generators: list[torch.Generator] | None = None
        self.shared: torch.Generator | None = None
        if generator is None or isinstance(generator, torch.Generator):
            self.shared = generator
        else:
            self.generators = list(generator)
            if len(self.generators) != batch:
                raise ValueError(
                    f"{len(self.generators)} generators for a batch of {batch}; give one, or one for each chain"
                )
        self.batch = batch

    def _draw(
        self, shape: Sequence[int], generator: torch.Generator | None, normal: bool, dtype: torch.dtype
    ) -> Tensor:
        source = generator.device if generator is not None else self.device
        draw = torch.randn if normal else torch.rand
        return draw(tuple(shape), generator=generator, device=source, dtype=dtype).to(self.device)

    def noise(self, event: Sequence[int], chains: Sequence[int] | None = None) -> Tensor:
        """Standard normal numbers, shape ``(chains, *event)``; all chains if ``chains`` is None."""
        chains = range(self.batch) if chains is None else chains
        if self.generators is None:
            return self._draw((len(chains), *event), self.shared, True, self.dtype)
        return torch.stack([self._draw(event, self.generators[chain], True, self.dtype) for chain in chains])

    def window_noise(self, lengths: Sequence[int], event: Sequence[int], chains: Sequence[int]) -> Tensor:
        """Standard normal numbers for windows of different lengths, zero-padded to ``(chains, longest, *event)``.

        A chain draws exactly its own length, so that its stream does not depend on its neighbours' windows. There is
        always at least one column, so that drafters and verifiers never see an empty window.
        """
        longest = max(1, *lengths)
        if self.generators is None:
            return self._draw((len(chains), longest, *event), self.shared, True, self.dtype)
        padded = torch.zeros((len(chains), longest, *event), device=self.device, dtype=self.dtype)
        for row, (chain, length) in enumerate(zip(chains, lengths, strict=True)):
            padded[row, :length] = self._draw((length, *event), self.generators[chain], True, self.dtype)
        return padded

    def window_uniform(self, lengths: Sequence[int], chains: Sequence[int]) -> Tensor:
        """Uniform numbers in [0, 1) in float64, shape ``(chains, longest + 1)``: one a step and one for the repair."""
        longest = max(1, *lengths) + 1
        if self.generators is None:
            return self._draw((len(chains), longest), self.shared, False, torch.float64)
        padded = torch.zeros((len(chains), longest), device=self.device, dtype=torch.float64)
        for row, (chain, length) in enumerate(zip(chains, lengths, strict=True)):
            # The repair's number stands last in the row, whatever the window's length.
            drawn = self._draw((length + 1,), self.generators[chain], False, torch.float64)
            padded[row, :length], padded[row, -1] = drawn[:length], drawn[length]
        return padded
