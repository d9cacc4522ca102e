"""How performances of one expert differ from each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray


class Slip(Enum):
    """A deliberate fault at a grasp, followed by its repair."""

    BESIDE = "beside"
    """The fingers close beside the object; open, and try again."""
    DROPPED = "dropped"
    """The object is lifted a little and let go; grasp it again where it fell."""


@dataclass(frozen=True)
class Episode:
    """What is drawn for one episode.

    Attributes:
        sigma: standard deviation of the disturbances, in action units.
        pace: largest component of an action, in (0, 1].
        jitter: largest displacement of a waypoint along each axis, m.
        slips: the grasps at which something goes wrong, and how.
    """

    sigma: float = 0.0
    pace: float = 1.0
    jitter: float = 0.0
    slips: Mapping[str, Slip] | None = None

    def slip(self, grasp: str) -> Slip | None:
        """What goes wrong at the first attempt of this grasp, None if nothing does."""
        return (self.slips or {}).get(grasp)

    def offset(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """A displacement for a waypoint where nothing depends on a centimetre, m, shape ``(3,)``."""
        return rng.uniform(-self.jitter, self.jitter, 3)


@dataclass(frozen=True)
class Variety:
    """Ranges from which an :class:`Episode` is drawn.

    Attributes:
        sigma: standard deviation of the disturbances, in action units.
        slowest: smallest pace; paces are uniform between it and 1.
        jitter: largest displacement of a waypoint along each axis, m.
        slip: probability of a slip at each grasp.

    Raises:
        ValueError: a value is out of its range; the message names it.
    """

    sigma: float = 0.1
    slowest: float = 0.8
    jitter: float = 0.015
    slip: float = 0.1

    def __post_init__(self) -> None:
        for name, (low, high) in {
            "sigma": (0, np.inf),
            "slowest": (0.01, 1),
            "jitter": (0, np.inf),
            "slip": (0, 1),
        }.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name} must lie between {low} and {high}, not at {value}")

    def draw(self, rng: np.random.Generator, grasps: Iterable[str]) -> Episode:
        """An episode in which the named ``grasps`` may slip."""
        kinds = list(Slip)
        slips = {}
        for grasp in grasps:
            kind = kinds[int(rng.integers(len(kinds)))]
            if rng.random() < self.slip:
                slips[grasp] = kind
        return Episode(self.sigma, float(rng.uniform(self.slowest, 1.0)), self.jitter, slips)
