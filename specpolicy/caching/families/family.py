"""What has to be known of each kind of network."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import nn

from specpolicy.caching.hook import Current
from specpolicy.caching.settings import CachingError

from . import dit, flux, policy, sd3


@dataclass(frozen=True)
class Family:
    """One kind of network.

    Attributes:
        install: lets the cache into a network until the stack is closed.
        times: what the network's own times are multiplied by to be the scheduler's.
    """

    install: Callable[[Any, Current, ExitStack], None]
    times: float = 1.0


FAMILIES: dict[str, Family] = {
    "TransformerDenoiser": Family(policy.install),
    "DiTTransformer2DModel": Family(dit.install),
    "SD3Transformer2DModel": Family(sd3.install),
    "FluxTransformer2DModel": Family(flux.install, times=1000.0),
}
"""The networks that can be cached, by class name: this library's own, and three of diffusers."""


def find_network(denoiser: Any) -> tuple[nn.Module, Family]:
    """The network inside a policy or any other module that can be cached, and its kind.

    Raises:
        CachingError: there is none.
    """
    for module in denoiser.modules() if isinstance(denoiser, nn.Module) else ():
        for each in type(module).__mro__:
            if each.__name__ in FAMILIES:
                return module, FAMILIES[each.__name__]
    network = getattr(denoiser, "network", denoiser)
    raise CachingError(
        f"{type(network).__name__} has no tokens to cache; caching works for {', '.join(FAMILIES)}. A policy with "
        "tokens is trained by `specpolicy train policy=transformer`"
    )
