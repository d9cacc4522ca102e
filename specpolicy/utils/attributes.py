"""Replacing an object's attribute for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def replaced(thing: Any, name: str, value: Any) -> Iterator[None]:
    """Set ``thing.name = value`` while the block runs, whether the attribute is the object's own or its class's.

    Args:
        thing: a network, a scheduler, a block of one.
        name: of the attribute.
        value: for the time of the block.
    """
    own, before = name in vars(thing), vars(thing).get(name)
    setattr(thing, name, value)
    try:
        yield
    finally:
        if own:
            setattr(thing, name, before)
        else:
            delattr(thing, name)
