"""Putting a cache between the blocks of a network, and taking it out again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias

from torch import nn

from .settings import CachingError
from .token_cache import TokenCache

Current: TypeAlias = Callable[[], TokenCache]
"""The cache of the chain that goes on."""


@contextmanager
def replaced(thing: Any, name: str, value: Any) -> Iterator[None]:
    """``thing.name = value`` while the block runs, whether the attribute is the object's own or its class's."""
    own, before = name in vars(thing), vars(thing).get(name)
    setattr(thing, name, value)
    try:
        yield
    finally:
        if own:
            setattr(thing, name, before)
        else:
            delattr(thing, name)


def gate(stack: ExitStack, first: nn.Module, last: nn.Module, current: Current, place: int | None = None) -> None:
    """Let only chosen tokens into ``first``, and make all of them again behind ``last``, until ``stack`` is closed.

    Args:
        stack: of what is to be undone.
        first, last: blocks. ``first`` is called with hidden states as its first argument or as ``hidden_states``.
        current: the cache.
        place: where the hidden states are in the tuple that ``last`` returns; None: it returns them alone.
    """

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], Any]:
        if "hidden_states" in kwargs:
            return args, kwargs | {"hidden_states": current().enter(kwargs["hidden_states"])}
        return (current().enter(args[0]), *args[1:]), kwargs

    def leave(module: nn.Module, args: tuple[Any, ...], answer: Any) -> Any:
        if place is None:
            return current().leave(answer)
        return (*answer[:place], current().leave(answer[place]), *answer[place + 1 :])

    for handle in (first.register_forward_pre_hook(enter, with_kwargs=True), last.register_forward_hook(leave)):
        stack.callback(handle.remove)


def answer_attention(stack: ExitStack, attention: Any, kind: str, processor: Any) -> None:
    """Let ``processor`` answer for a diffusers attention until ``stack`` is closed.

    Raises:
        CachingError: what answers now is not diffusers' own ``kind``, and would be lost.
    """
    found = type(attention.processor).__name__
    if found != kind:
        raise CachingError(
            f"an attention of this network is processed by {found}; caching knows {kind}. Adapters, fused projections "
            "and other processors have to be taken out first"
        )
    stack.enter_context(replaced(attention, "processor", processor))
