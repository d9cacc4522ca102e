"""Random numbers for a batch of chains, from one generator or from one generator a chain."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from specpolicy.speculative.inputs import Generators, check_generators


class ChainGenerators:
    """Draws random numbers for all chains of a batch.

    With a list of generators every chain draws from its own, always the same numbers for the same history: its sample
    does not depend on which chains share the batch. With a single generator one call serves all chains.

    Args:
        generator: None (torch's default), one generator, or a list of ``batch`` generators.
        batch: number of chains.
        device: of the numbers handed out; generators may live on the CPU while it is another one.
        dtype: of the normal numbers handed out.

    Raises:
        TypeError: ``generator`` is, or holds, something else than torch generators.
        ValueError: the list has another length than ``batch``.
    """

    def __init__(self, generator: Generators, batch: int, device: torch.device, dtype: torch.dtype) -> None:
        checked = check_generators(generator, batch)
        self.device, self.dtype, self.batch = device, dtype, batch
        alone = checked is None or isinstance(checked, torch.Generator)
        self.shared: torch.Generator | None = checked if isinstance(checked, torch.Generator) else None
        self.generators: list[torch.Generator] | None = None if alone else list(checked)  # type: ignore[arg-type]

    def _draw(
        self, shape: Sequence[int], generator: torch.Generator | None, normal: bool, dtype: torch.dtype
    ) -> Tensor:
        source = generator.device if generator is not None else self.device
        draw = torch.randn if normal else torch.rand
        return draw(tuple(shape), generator=generator, device=source, dtype=dtype).to(self.device)

    def noise(self, event: Sequence[int], chains: Sequence[int] | None = None) -> Float[Tensor, "n ..."]:
        """Draw standard normal numbers.

        Args:
            event: shape of one event.
            chains: for which chains; None for all.

        Returns:
            Shape ``(chains, *event)``.
        """
        chains = range(self.batch) if chains is None else chains
        if not self.generators:  # no list, or one for no chain at all
            return self._draw((len(chains), *event), self.shared, True, self.dtype)
        drawn = [self._draw(event, self.generators[chain], True, self.dtype) for chain in chains]
        return drawn[0][None] if len(drawn) == 1 else torch.stack(drawn)

    def window_noise(
        self, lengths: Sequence[int], event: Sequence[int], chains: Sequence[int]
    ) -> Float[Tensor, "n w ..."]:
        """Draw standard normal numbers for windows of different lengths.

        A chain draws exactly its own length, so that its stream does not depend on its neighbours' windows. There is
        always at least one column, so that drafters and verifiers never see an empty window.

        Args:
            lengths: steps of each window.
            event: shape of one event.
            chains: for which chains.

        Returns:
            Padded with zeros to the longest, shape ``(chains, w, *event)``.
        """
        longest = max(1, *lengths)
        if self.generators is None:
            return self._draw((len(chains), longest, *event), self.shared, True, self.dtype)
        if len(lengths) == 1 and lengths[0]:
            return self._draw((longest, *event), self.generators[chains[0]], True, self.dtype)[None]
        padded = torch.zeros((len(chains), longest, *event), device=self.device, dtype=self.dtype)
        for row, (chain, length) in enumerate(zip(chains, lengths, strict=True)):
            padded[row, :length] = self._draw((length, *event), self.generators[chain], True, self.dtype)
        return padded

    def window_uniform(self, lengths: Sequence[int], chains: Sequence[int]) -> Float64[Tensor, "n w1"]:
        """Draw uniform numbers in [0, 1): one for each step of a window and one for the repair.

        Args:
            lengths: steps of each window.
            chains: for which chains.

        Returns:
            Shape ``(chains, w + 1)`` with w the longest window; the repair's number stands last.
        """
        longest = max(1, *lengths) + 1
        if self.generators is None:
            return self._draw((len(chains), longest), self.shared, False, torch.float64)
        if len(lengths) == 1 and lengths[0]:
            return self._draw((longest,), self.generators[chains[0]], False, torch.float64)[None]
        padded = torch.zeros((len(chains), longest), device=self.device, dtype=torch.float64)
        for row, (chain, length) in enumerate(zip(chains, lengths, strict=True)):
            # The repair's number stands last in the row, whatever the window's length.
            drawn = self._draw((length + 1,), self.generators[chain], False, torch.float64)
            padded[row, :length], padded[row, -1] = drawn[:length], drawn[length]
        return padded
