"""Code that draws from numpy's global generator, made reproducible without disturbing anyone else's draws."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


@contextmanager
def seeded_global_numpy(seed: int) -> Iterator[None]:
    """Seed ``numpy.random`` inside the block and put its former state back afterwards.

    robosuite draws initial poses and object shapes from the global generator and offers no other way to seed them.

    Args:
        seed: any integer ≥ 0. Below 2³² it means what ``numpy.random.seed(seed)`` means, so that a seed names the same
            initial state as in evaluations that call that; larger ones are hashed.
    """
    former = np.random.get_state()
    np.random.seed(seed if seed < 2**32 else np.random.SeedSequence(seed).generate_state(8))
    try:
        yield
    finally:
        np.random.set_state(former)
