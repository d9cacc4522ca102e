"""What a control loop asks of a policy, and what it is told."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from specpolicy.history import Window


class Kind(StrEnum):
    """Kinds of computation."""

    WHOLE = "whole"
    """A chunk for the present observation, from nothing."""

    DRAFT = "draft"
    """A chain ahead of time, under a predicted observation; the policy keeps it for the next :attr:`FINISH`."""

    FINISH = "finish"
    """A chunk for the present observation, with the chain drafted before."""


@dataclass(frozen=True)
class Question:
    """One computation that a control loop wants.

    Attributes:
        kind: what to compute.
        window: the observations to compute it from, ``{name: (observation_horizon, …)}``, the present step last.
    """

    kind: Kind
    window: Window


@dataclass(frozen=True)
class Answer:
    """What came of a :class:`Question`.

    Attributes:
        actions: shape ``(n, action_dim)``, environment units; the first is for the tick of the observation. None
            after a draft, or if the computation failed.
        passes: sequential network passes; None where they are not told.
        evaluations: rows that the network computed; None likewise.
        acceptance: share of drafted steps that were accepted; None without drafts.
        seconds: wall time of the computation; None if it shared its passes with other loops.
        error: why the computation failed; None if it did not.
    """

    actions: NDArray[np.float64] | None = None
    passes: int | None = None
    evaluations: int | None = None
    acceptance: float | None = None
    seconds: float | None = None
    error: str | None = None


class LoopPolicy(Protocol):
    """A policy as a control loop sees it; :class:`SampledPolicy` makes one of a diffusion policy and a sampler."""

    @property
    def observation_horizon(self) -> int:
        """Observation steps that it sees."""
        ...

    @property
    def predrafts(self) -> bool:
        """Whether it can answer :attr:`Kind.DRAFT` and :attr:`Kind.FINISH`."""
        ...

    def begin(self, seed: int, repeat: int) -> None:
        """A new episode: random numbers from its own stream, no draft left over."""
        ...

    def answer(self, question: Question) -> Answer:
        """Compute; failures are answers too."""
        ...
