"""Motions that experts share: reach, follow, grip, approach from above, pick with or without a fault."""

from __future__ import annotations

from collections.abc import Callable, Generator

import numpy as np
from numpy.typing import ArrayLike

from specpolicy_envs.experts.base import Arm, GraspFault, PlanFailed
from specpolicy_envs.experts.geometry import Pose

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

    Args:
        arm: the arm that moves.
        goal: where to, live.
        at_most: steps after which to give up.

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


_SLOPE = 4.0  # metres of height for each metre that is missing sideways
_ARM_LENGTH = 0.1  # metres of sideways error that a turn of one radian counts for
_FALL = 0.03  # a dropped thing falls from here
_FIRM, _LOOSE = 7, 5  # steps until fingers hold firmly, and until they have let go
_STILL = 0.0005  # metres that fingers move in a step when they are still


def approach_height(
    moving: Callable[[], Pose], target: Callable[[], Pose], height: float, allowance: float = 0.004
) -> Callable[[], Pose]:
    """Make a goal that stays above ``target`` while what moves is beside it, and sinks to it as the way becomes free.

    The height is a function of what is seen, not of what was done before: pushed aside, a hand rises again by itself.

    Args:
        moving: what has to come to the target: the hand, or something that it holds.
        target: where to, in the end.
        height: where to begin, metres above the target.
        allowance: sideways error at which the descent is free all the way, m.

    Returns:
        The goal of ``moving``, live.
    """

    def goal() -> Pose:
        now, end = moving(), target()
        aside = float(np.linalg.norm((end.position - now.position)[:2])) + _ARM_LENGTH * now.angle(end)
        return end.raised(float(np.clip(_SLOPE * (aside - allowance), 0.0, height)))

    return goal


def pick(
    arm: Arm,
    at: Callable[[], Pose],
    *,
    thinnest: float,
    beside: ArrayLike,
    height: float = 0.1,
    tolerance: float = 0.006,
    allowance: float = 0.004,
    slip: GraspFault | None = None,
    attempts: int = 4,
) -> Motion:
    """Grasp something from above until it is held; the hand stays where it closed.

    Args:
        arm: the arm that grasps; its gripper is opened first.
        at: where the hand closes, live.
        thinnest: opening below which the fingers hold nothing, m.
        beside: from ``at`` to where a faulty grasp closes beside the object, m, in the hand's own axes, shape ``(3,)``.
        height: where the descent begins, m above ``at``.
        tolerance: how near the end of the approach the fingers close, m.
        allowance: as for :func:`approach_height`; above ``tolerance`` the fingers never close above ``at``.
        slip: what goes wrong at first.
        attempts: how often to try, deliberate faults included.

    Raises:
        PlanFailed: nothing is held after the last attempt.
    """
    fault = slip
    for _ in range(attempts):
        arm.closed = False
        shift = np.asarray(beside, dtype=np.float64) * (fault is GraspFault.BESIDE)

        arm.errs = fault is GraspFault.BESIDE

        def place(shift: np.ndarray = shift) -> Pose:
            pose = at()
            return pose.moved(pose.rotation @ shift)

        yield from reach(arm, approach_height(lambda: arm.pose, place, height, allowance), tolerance, 0.06, at_most=120)
        yield from grip(arm, True, _FIRM)
        yield from _come_to_rest(arm)
        if fault is GraspFault.DROPPED:
            lifted = arm.pose.raised(_FALL)
            yield from reach(arm, lifted, 0.008, 0.2, at_most=15)
        held = fault is None and arm.opening > thinnest
        if held:
            return True
        arm.errs = fault is GraspFault.DROPPED
        fault = None
        arm.closed = False
        yield from wait(_LOOSE)
        arm.errs = False
    raise PlanFailed(f"the hand closed {attempts} times and holds nothing")


def _come_to_rest(arm: Arm) -> Motion:
    """Wait until the fingers have closed on something or on each other."""
    for _ in range(8):
        before = arm.opening
        yield
        if abs(arm.opening - before) < _STILL:
            return True
    return False
