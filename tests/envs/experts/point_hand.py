"""A scene without a simulator: a hand that does at once a part of what it is told, and one thing to grasp."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from specpolicy_envs.experts.base import Arm
from specpolicy_envs.experts.geometry import Pose, down_facing, rotation_about

NOWHERE = np.array([9.0, 9.0, 9.0])


class PointHand:
    """Stands in for a Scene with one arm."""

    arms = 1

    def __init__(self, position: tuple[float, float, float] = (0.0, 0.0, 0.2), thing: NDArray[Any] = NOWHERE) -> None:
        self.pose = Pose(np.array(position), down_facing([0, 1, 0]))
        self.opening = 0.08
        self.thing = thing
        self.thickness = 0.03

    def hand(self, arm: int) -> Pose:
        return self.pose

    def fingers(self, arm: int) -> NDArray[np.float64]:
        return np.array([self.opening / 2, -self.opening / 2])

    def step(self, action: NDArray[np.float64]) -> None:
        turn = 0.2 * action[3:6]
        angle = float(np.linalg.norm(turn))
        rotation = rotation_about(turn / angle, angle) @ self.pose.rotation if angle > 0 else self.pose.rotation
        self.pose = Pose(self.pose.position + 0.015 * action[:3], rotation)
        around = np.linalg.norm(self.pose.position - self.thing) < 0.02
        self.opening = float(np.clip(self.opening - 0.01 * action[6], self.thickness if around else 0.0, 0.08))


def play(hand: PointHand, arm: Arm, plan: Generator[None, None, Any]) -> tuple[Any, list[NDArray[np.float64]]]:
    """What the plan returns, and the actions until then."""
    actions = []
    while True:
        try:
            next(plan)
        except StopIteration as stop:
            return stop.value, actions
        actions.append(arm.intended())
        hand.step(actions[-1])
