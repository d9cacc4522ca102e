"""Verification by a threshold: approximate."""

from __future__ import annotations

from dataclasses import dataclass
from math import isinf
from typing import ClassVar

from jaxtyping import Bool, Float
from torch import Tensor

NORMS = ("l1", "l2")


@dataclass(frozen=True)
class ThresholdVerifier:
    """Takes a draft's prediction for the target's if they are closer than ``delta``. Not exact: it never corrects.

    Attributes:
        delta: bound on the distance, not below 0. 0 accepts nothing; infinity accepts everything, unseen.
        norm: ``"l1"`` is the mean absolute difference over an event, ``"l2"`` the root of the mean square.

    Raises:
        ValueError: ``delta`` is negative or NaN, or the norm unknown.
    """

    delta: float
    norm: str = "l1"
    exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.delta >= 0:
            raise ValueError(f"delta={self.delta}; give a distance of 0 or more, or infinity to accept everything")
        if self.norm not in NORMS:
            raise ValueError(f"norm={self.norm!r}; known: {', '.join(NORMS)}")

    @property
    def looks(self) -> bool:
        """Whether the target has to be asked at all."""
        return not isinf(self.delta)

    def agrees(self, draft: Float[Tensor, "n ..."], target: Float[Tensor, "n ..."]) -> Bool[Tensor, " n"]:
        """Which rows are closer than ``delta``."""
        difference = (draft - target).flatten(1).double()
        distance = difference.abs().mean(1) if self.norm == "l1" else difference.square().mean(1).sqrt()
        return distance < self.delta
