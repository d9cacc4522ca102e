"""Exact samplers of every kind, for tests that ask the same of all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from specpolicy import (
    AdaptiveWindow,
    BlockVerifier,
    FreeDrafter,
    FrozenDrafter,
    RecyclingDrafter,
    ReflectionVerifier,
    ResidualVerifier,
    ReverseProcess,
    SequentialSampler,
    SpeculativeSampler,
    ZeroGuess,
)

SAMPLER_KINDS: dict[str, Callable[[ReverseProcess], Any]] = {
    "sequential": SequentialSampler,
    "free": lambda process: SpeculativeSampler(process, FreeDrafter(), BlockVerifier(), 8),
    "frozen": lambda process: SpeculativeSampler(process, FrozenDrafter(), ResidualVerifier(), 8),
    "recycled": lambda process: SpeculativeSampler(process, RecyclingDrafter(), ReflectionVerifier(), 8),
    "guess": lambda process: SpeculativeSampler(
        process, RecyclingDrafter(), ReflectionVerifier(), 8, initial_guess=ZeroGuess()
    ),
    "adaptive": lambda process: SpeculativeSampler(
        process, FreeDrafter(), ReflectionVerifier(), AdaptiveWindow(max_window=8)
    ),
}
