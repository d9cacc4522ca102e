"""Randomize an expert's episodes."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from specpolicy_envs.experts.geometry import Pose, Scene, Vector, rotation_vector

_METRES, _RADIANS = 0.05, 0.5  # what an action of 1 asks of the controller
_FAR_METRES, _FAR_RADIANS = 0.06, 0.5  # from here on disturbances have their full size
_LEAST_NOISE = 0.3
_PERSISTENCE = 0.7  # of a disturbance from step to step: one that changes its mind at each step moves nothing


class Arm:
    """One arm: its hand's pose, the goal of that hand, and the action that leads there.

    Attributes:
        goal: pose that the hand is drawn to; plans write it.
        closed: whether the gripper is told to close; plans write it.
        gain: how far the action reaches beyond the error; 3 is brisk and overshoots a little; plans write it.
        speed: largest component of an action, as a fraction of the episode's ``pace``, in (0, 1]; plans write it.
        noise: disturbances as a fraction of the episode's ``sigma``; plans lower it where precision counts.
        errs: whether a plan does something wrong on purpose at present, which nobody should learn; plans write it.

    Args:
        scene: where the arm is.
        index: which of its arms.
        pace: largest component of an action, in (0, 1].
        sigma: standard deviation of a disturbance far from the goal, in action units.
    """

    def __init__(self, scene: Scene, index: int, pace: float = 1.0, sigma: float = 0.0) -> None:
        self.index = index
        self.closed = False
        self.gain = 3.0
        self.speed = 1.0
        self.noise = 1.0
        self.errs = False
        self._scene = scene
        self._pace = pace
        self._sigma = sigma
        self._push = np.zeros(6)
        self.goal = self.pose

    @property
    def pose(self) -> Pose:
        """The hand as it is now."""
        return self._scene.hand(self.index)

    @property
    def opening(self) -> float:
        """Metres between the fingers, 0 to 0.08."""
        left, right = self._scene.fingers(self.index)
        return float(left - right)

    def error(self) -> tuple[Vector, Vector]:
        """What is missing to the goal: metres, shape ``(3,)``, and axis times angle in rad, shape ``(3,)``."""
        pose = self.pose
        return self.goal.position - pose.position, rotation_vector(pose.rotation, self.goal.rotation)

    def within(self, tolerance: float, rotation_tolerance: float) -> bool:
        """Whether the hand is closer to its goal than ``tolerance`` (m) and ``rotation_tolerance`` (rad)."""
        shift, turn = self.error()
        return bool(np.linalg.norm(shift) < tolerance and np.linalg.norm(turn) < rotation_tolerance)

    def intended(self) -> NDArray[np.float64]:
        """The action towards the goal, shape ``(7,)``, in [-1, 1]: proportional, its direction kept when limited."""
        shift, turn = self.error()
        limit = self._pace * self.speed
        gripper = 1.0 if self.closed else -1.0
        return np.concatenate(
            [_limited(self.gain * shift / _METRES, limit), _limited(self.gain * turn / _RADIANS, limit), [gripper]]
        )

    def disturbance(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """Noise on the six motions of an action, shape ``(6,)``; it shrinks near the goal, where precision counts."""
        shift, turn = self.error()
        far = max(np.linalg.norm(shift) / _FAR_METRES, np.linalg.norm(turn) / _FAR_RADIANS)
        scale = self._sigma * self.noise * float(np.clip(far, _LEAST_NOISE, 1.0))
        self._push = _PERSISTENCE * self._push + np.sqrt(1 - _PERSISTENCE**2) * rng.normal(0.0, 1.0, 6)
        return scale * self._push


def _limited(values: Vector, limit: float) -> Vector:
    return values * min(1.0, limit / max(float(np.abs(values).max()), 1e-9))


Plan = Generator[None, None, Any]
"""Sets the goals of one arm; runs on for one control step at each ``next``."""


class PlanFailed(Exception):
    """A plan sees that it cannot go on; the message says at what."""


class Expert(Protocol):
    """Plays one task from what the simulator knows."""

    name: str
    """The task, as in :data:`specpolicy_envs.experts.EXPERTS`."""

    horizon: int
    """Longest performance, control steps."""

    grasps: tuple[str, ...]
    """Names of the grasps at which a slip can be asked for."""

    def plan(
        self, scene: Scene, arms: Sequence[Arm], episode: EpisodeVariation, rng: np.random.Generator
    ) -> Mapping[int, Plan]:
        """One plan for each arm that moves, by the arm's index; they run side by side, lower indices first.

        Plans may raise :class:`PlanFailed` at any step. An arm whose plan has ended holds its last goal.
        """
        ...


class GraspFault(Enum):
    """A deliberate fault at a grasp, followed by its repair."""

    BESIDE = "beside"
    """The fingers close beside the object; open, and try again."""
    DROPPED = "dropped"
    """The object is lifted a little and let go; grasp it again where it fell."""


@dataclass(frozen=True)
class EpisodeVariation:
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
    slips: Mapping[str, GraspFault] | None = None

    def slip(self, grasp: str) -> GraspFault | None:
        """What goes wrong at the first attempt of this grasp, None if nothing does."""
        return (self.slips or {}).get(grasp)

    def offset(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """A displacement for a waypoint where nothing depends on a centimetre, m, shape ``(3,)``."""
        return rng.uniform(-self.jitter, self.jitter, 3)


@dataclass(frozen=True)
class Randomization:
    """Ranges from which an :class:`EpisodeVariation` is drawn.

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

    def draw(self, rng: np.random.Generator, grasps: Iterable[str]) -> EpisodeVariation:
        """An episode in which the named ``grasps`` may slip."""
        kinds = list(GraspFault)
        slips = {}
        for grasp in grasps:
            kind = kinds[int(rng.integers(len(kinds)))]
            if rng.random() < self.slip:
                slips[grasp] = kind
        return EpisodeVariation(self.sigma, float(rng.uniform(self.slowest, 1.0)), self.jitter, slips)
