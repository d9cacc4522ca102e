"""Pieces of plans: generators that set an arm's goal and yield once a control step.

``arrived = yield from reach(arm, goal)`` runs a piece inside another one and tells how it ended.
"""

from __future__ import annotations

from collections.abc import Callable, Generator

from .arm import Arm
from .poses import Pose

Motion = Generator[None, None, bool]
Goal = Pose | Callable[[], Pose]
"""A fixed pose, or what to ask at each step for the pose as it is then."""


def reach(
    arm: Arm,
    goal: Goal,
    tolerance: float = 0.01,
    rotation_tolerance: float = 0.06,
    at_most: int = 100,
    settle: int = 0,
) -> Motion:
    """Move the hand until it is at the goal.

    Args:
        arm: the arm that moves.
        goal: where to; a callable is asked at each step, so that the hand follows what moves.
        tolerance: m.
        rotation_tolerance: rad.
        at_most: steps after which to give up.
        settle: steps at the goal before going on.

    Returns:
        Whether it arrived. An arm that is there already takes no step.
    """
    stayed = 0
    for _ in range(at_most):
        arm.goal = goal() if callable(goal) else goal
        if arm.within(tolerance, rotation_tolerance):
            if stayed == settle:
                return True
            stayed += 1
        yield
    return False


def follow(arm: Arm, goal: Callable[[], Pose | None], at_most: int) -> Motion:
    """Draw the hand to a goal that is asked for at each step and is None when nothing is left to do.

    Returns:
        Whether that came about within ``at_most`` steps.
    """
    for _ in range(at_most):
        wanted = goal()
        if wanted is None:
            return True
        arm.goal = wanted
        yield
    return False


def wait(steps: int) -> Motion:
    """Let ``steps`` control steps pass, drawn to the goal as it is; always returns True."""
    for _ in range(steps):
        yield
    return True


def grip(arm: Arm, closed: bool, steps: int) -> Motion:
    """Close or open the gripper where the hand is, for ``steps`` control steps (8 for a firm grip); returns True."""
    arm.closed = closed
    arm.goal = arm.pose
    return (yield from wait(steps))
