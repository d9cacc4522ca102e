"""How long to wait before trying again."""

from __future__ import annotations

import random
from collections.abc import Iterator


def delays(first_s: float = 0.05, longest_s: float = 2.0) -> Iterator[float]:
    """Seconds to wait, without end: doubling up to ``longest_s``, each shortened by up to a half at random.

    The randomness keeps robots that lost the same server from coming back all at once.
    """
    delay = first_s
    while True:
        yield delay * random.uniform(0.5, 1.0)
        delay = min(2 * delay, longest_s)
