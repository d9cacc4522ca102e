"""What a network can compute ahead: the timesteps' part once a policy, the observation's part once a chunk.

Timestep and observation enter the networks of this package through layers that are linear in each of them: FiLM is
W·mish([t, o]) = W_t·mish(t) + W_o·mish(o), the entry layers of the MLP are sums in the same way, and in the transformer
both are tokens whose keys and values depend on nothing else. A speculative sampler evaluates dozens of rows a chunk,
all of one observation and of timesteps that are known beforehand: those rows then gather and add.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn

_MOST_NUMBERS = 2**24
"""Larger tables (64 MB) are not made: they would cost more memory than they save time."""


@runtime_checkable
class SeparableNetwork(Protocol):
    """A network that computes ahead what depends on the timestep alone and on the observation alone.

    ``forward_from(x, timestep_table(t), condition(o))`` is ``network(x, t, o)`` up to rounding, row by row.
    """

    def timestep_table(self, timesteps: Tensor) -> Tensor:
        """From timesteps ``(n,)`` to a row of numbers for each."""
        ...

    def condition(self, cond: Tensor) -> Tensor:
        """From observations ``(b, cond_dim)`` to a row of numbers for each."""
        ...

    def forward_from(self, x: Tensor, t_rows: Tensor, c_rows: Tensor) -> Tensor:
        """Evaluate the network at noisy chunks ``(n, horizon, action_dim)``, given both rows of each."""
        ...


class ConditionTables:
    """The tables of one network, made anew when its weights have changed.

    A change is noticed by what torch knows of a parameter: its storage, dtype, device and version. What is written
    through ``parameter.data`` in place leaves no trace there; call :meth:`forget` after that.
    """

    def __init__(self) -> None:
        self._table: Tensor | None = None
        self._made_from: Any = None

    def forget(self) -> None:
        """Make the table anew when it is needed next."""
        self._made_from = None

    def condition(
        self, network: nn.Module, cond: Float[Tensor, "b cond"], timesteps: Callable[[], int]
    ) -> Float[Tensor, "b features"] | None:
        """Compute the observation's part for a chunk, and the timesteps' part if it is not known yet.

        Args:
            network: any; of one that is not a :class:`SeparableNetwork` nothing is computed ahead.
            cond: what the network sees of the observation.
            timesteps: says T when a table is made; timesteps 0 … T − 1 get a row of it.

        Returns:
            A row for each observation, to be gathered and handed to :meth:`forward`; None where nothing is computed
            ahead: in training, where gradients are wanted, in half precision (sums would be rounded twice), and for
            networks that cannot.
        """
        if not isinstance(network, SeparableNetwork) or network.training or torch.is_grad_enabled():
            return None
        if cond.dtype not in (torch.float32, torch.float64):
            return None
        state = _fingerprints(network)
        if state != self._made_from:
            count = timesteps()
            with torch.inference_mode(False), torch.no_grad():
                first = network.timestep_table(torch.zeros(1, dtype=torch.long, device=cond.device))
                self._table = None
                if first.numel() * count <= _MOST_NUMBERS:
                    self._table = network.timestep_table(torch.arange(count, device=cond.device))
            self._made_from = state
        return None if self._table is None else network.condition(cond)

    def forward(
        self,
        network: Any,
        x: Float[Tensor, "n time action"],
        timestep: Num[Tensor, " n"],
        rows: Float[Tensor, "n features"],
    ) -> Float[Tensor, "n time action"]:
        """Evaluate the network.

        Args:
            network: as for :meth:`condition`.
            x: noisy chunks.
            timestep: of each; one that is no integer is computed rather than looked up.
            rows: of each, from :meth:`condition`.

        Returns:
            What the network returns.
        """
        if self._table is None or timestep.is_floating_point():
            return network.forward_from(x, network.timestep_table(timestep), rows)
        return network.forward_from(x, self._table[timestep], rows)


def _fingerprints(network: nn.Module) -> list[tuple[Any, ...]]:
    """One for each parameter; by a plain walk, in a third of the time of ``parameters()``."""
    modules, found = [network], list[tuple[Any, ...]]()
    for module in modules:  # grows meanwhile
        modules += [child for child in module._modules.values() if child is not None]
        found += [_fingerprint(parameter) for parameter in module._parameters.values() if parameter is not None]
    return found


def _fingerprint(parameter: Tensor) -> tuple[Any, ...]:
    version = 0 if parameter.is_inference() else parameter._version
    return parameter.untyped_storage()._cdata, version, parameter.dtype, parameter.device
