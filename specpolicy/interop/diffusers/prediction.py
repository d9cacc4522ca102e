"""A pipeline's guided network as the samplers see it: any states, at any positions, in one pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from specpolicy.speculative.denoiser import Cond
from specpolicy.speculative.process import per_row

from .chain import PipelineChain
from .families import Guidance

Forward = Callable[..., Any]
"""The network's own forward: states, timesteps, and conditions by name."""


class Conditions:
    """The keyword arguments with which a pipeline asks its network, told apart into rows and constants.

    Args:
        given: as the pipeline hands them over, for ``branches`` × ``batch`` rows, one branch after the other.
    """

    def __init__(self, given: Mapping[str, Any], branches: int, batch: int) -> None:
        self.given, self.branches, self.batch = dict(given), branches, batch

    @property
    def rows(self) -> dict[str, Any]:
        """Tensors that belong to chains, with leading dimensions ``(batch, branches)``; None in place of the others."""
        return {name: _walk(value, self._split) for name, value in self.given.items() if name not in _CONSTANT}

    def of(self, rows: Mapping[str, Any]) -> dict[str, Any]:
        """What to ask the network with, when the rows are ``rows``, of leading dimensions ``(n, branches)``."""
        return {name: _merge(value, rows[name]) if name in rows else value for name, value in self.given.items()}

    def same(self, given: Mapping[str, Any]) -> bool:
        """Whether these are the very same objects again."""
        return self.given.keys() == given.keys() and all(_same(value, given[key]) for key, value in self.given.items())

    def _split(self, value: Any) -> Tensor | None:
        if not isinstance(value, Tensor) or value.ndim == 0 or len(value) != self.branches * self.batch:
            return None
        return value.view(self.branches, self.batch, *value.shape[1:]).transpose(0, 1)


_CONSTANT = ("cross_attention_kwargs", "return_dict")  # settings and masks, the same for every row


class GuidedPrediction:
    """The denoiser that a pipeline's chain is sampled with.

    Args:
        forward: the network's own. channels: of a state; the network may answer with more, which are left out.
        chain: of the pipeline's scheduler. guidance: how branches are combined. conditions: of the pipeline's batch.

    Attributes:
        answer, guided: of the first pass: what the network said, as it came, and the prediction made of it.
    """

    def __init__(
        self, forward: Forward, channels: int, chain: PipelineChain, guidance: Guidance, conditions: Conditions
    ) -> None:
        self.forward, self.channels = forward, channels
        self.chain, self.guidance, self.conditions = chain, guidance, conditions
        self.answer: Any = None
        self.guided: Tensor | None = None

    def __call__(
        self, x: Float[Tensor, "n c h w"], timestep: Int[Tensor, " n"], cond: Cond
    ) -> Float[Tensor, "n c h w"]:
        """One network pass over ``branches`` × n rows; ``timestep`` is the position in the chain."""
        at, branches = timestep.cpu(), self.guidance.branches
        shown = x * per_row(self.chain.input_scale[at].to(x.device, x.dtype), x)
        told = self.chain.timesteps[at].to(x.device).repeat(branches)
        answer = self.forward(shown.repeat(branches, *[1] * (x.ndim - 1)), told, **self.conditions.of(cond))
        output = answer[0][:, : self.channels].contiguous()
        guided = self.guidance(output.view(branches, len(x), *output.shape[1:]))
        if self.answer is None:
            self.answer, self.guided = answer, guided
        return guided


def _walk(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, Mapping):
        return {key: _walk(part, change) for key, part in value.items()}
    if isinstance(value, tuple | list):
        return [_walk(part, change) for part in value]
    return change(value)


def _merge(given: Any, rows: Any) -> Any:
    """``given`` with each tensor for which there are rows replaced by them, one branch after the other."""
    if isinstance(given, Mapping):
        return {key: _merge(part, rows[key]) for key, part in given.items()}
    if isinstance(given, tuple | list):
        return type(given)(_merge(part, row) for part, row in zip(given, rows, strict=True))
    return rows.transpose(0, 1).flatten(0, 1) if isinstance(rows, Tensor) else given


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return first.keys() == second.keys() and all(_same(part, second[key]) for key, part in first.items())
    if isinstance(first, tuple | list) and isinstance(second, tuple | list):
        return len(first) == len(second) and all(_same(a, b) for a, b in zip(first, second, strict=True))
    if isinstance(first, Tensor) or isinstance(second, Tensor):
        return first is second
    return bool(first == second)
