"""Getting the tool's ring over the hook of the frame.

The hook is a horizontal arm that ends in an upright piece, 7.5 mm thick and 19.5 mm high. The ring is 19.4 mm wide and
does not pass straight on. With its axis tilted far enough up, it does; behind the upright piece it turns back. Lengths
are in metres; a point in the hook's plane is (outwards along the arm, up), counted from the arm's end.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .arm import Arm
from .expert import PlanFailed
from .motions import Motion, follow
from .poses import Pose, Vector, hand_for
from .scene import Scene

_RADIUS = 0.0097  # of the ring's opening
_TILT = np.radians(60.0)  # of the ring's axis above the arm while the hook's end passes
_RESTING_TILT = np.radians(15.0)
_FREE_TILT = np.radians(40.0)  # from here on the ring cannot jam
_AXIS, _ACROSS = np.array([np.cos(_TILT), np.sin(_TILT)]), np.array([-np.sin(_TILT), np.cos(_TILT)])
_CORNERS = np.array([[0.0, -0.00375], [-0.0075, 0.01575]])  # of the hook's end: these two pass closest to the ring
_MIDDLE = (_CORNERS @ _ACROSS).mean() * _ACROSS  # of the ring, when it is around the hook's end
_EDGE = _MIDDLE + _RADIUS * _ACROSS  # the ring's inner edge, by then behind the hook's end

_READY = 0.028  # the ring waits this far before the hook's end until it is in line
_IN_LINE = 0.005
_LEVER = 0.03  # metres that a turn of one radian counts for
_THREADED = 0.002
_LAG = 0.002  # how far a turning ring may be from its way at full speed


class Hook:
    """Where the ring has to be, for the hook as it is now.

    Args:
        scene: with the frame.
    """

    def __init__(self, scene: Scene) -> None:
        self._scene = scene

    def before(self, gap: float) -> Pose:
        """The ring tilted, ``gap`` away from being around the hook's end."""
        return self._ring(_MIDDLE + gap * _AXIS, _TILT)

    def behind(self, tilt: float) -> Pose:
        """The ring turned back to ``tilt`` (rad) about its inner edge, and pushed inwards as it comes free."""
        free = float(np.clip((np.radians(45) - tilt) / np.radians(30), 0.0, 1.0))
        return self._ring(_EDGE + _RADIUS * np.array([np.sin(tilt), -np.cos(tilt)]) - [0.012 * free, 0.0], tilt)

    def tilt(self, ring: Pose) -> float:
        """Angle of the ring's axis above the arm, rad."""
        _, out, up = self._axes()
        axis = ring.rotation[:, 2]
        return float(np.arctan2(axis @ up, axis @ out))

    def _axes(self) -> tuple[Vector, Vector, Vector]:
        """The arm's end, the direction outwards along the arm, and the one up."""
        end = self._scene.site("frame_hang_site").position
        out = end - self._scene.site("frame_intersection_site").position
        out = out / np.linalg.norm(out)
        up = self._scene.body("frame_root").rotation[:, 2]
        up = up - (up @ out) * out
        return end, out, up / np.linalg.norm(up)

    def _ring(self, point: Vector, tilt: float) -> Pose:
        end, out, up = self._axes()
        axis = np.cos(tilt) * out + np.sin(tilt) * up
        x = np.cross(up, out)
        return Pose(end + point[0] * out + point[1] * up, np.stack([x, np.cross(axis, x), axis], axis=1))


def thread(arm: Arm, ring: Callable[[], Pose], hook: Hook) -> Motion:
    """Lower the held ring over the hook's end, waiting before it for as long as the two are not in line.

    Raises:
        PlanFailed: it does not get there.
    """

    def goal() -> Pose | None:
        now, end = ring(), hook.before(0.0)
        axis = end.rotation[:, 2]
        gap = float((now.position - end.position) @ axis)
        aside = now.distance(end.moved(gap * axis)) + _LEVER * now.angle(end)
        if gap < _THREADED:
            return None
        if gap > _READY + 0.006 or (gap > 0.01 and aside > _IN_LINE):
            wanted = max(gap - 0.015, _READY + float(np.clip(3.0 * (aside - 0.01), 0.0, 0.09)))
        else:
            wanted = max(gap - 0.005, 0.0)
        return hand_for(arm.pose, now, hook.before(wanted))

    if not (yield from follow(arm, goal, at_most=180)):
        raise PlanFailed("the ring does not pass the hook's end")
    return True


def turn_back(arm: Arm, ring: Callable[[], Pose], hook: Hook) -> Motion:
    """Turn the held ring behind the hook's end until it can hang there.

    Raises:
        PlanFailed: it jams.
    """

    def goal() -> Pose | None:
        now = ring()
        tilt = hook.tilt(now)
        if tilt < _RESTING_TILT + 0.15:
            return None
        turn = 0.11
        if tilt > _FREE_TILT:  # turned faster than it can follow, the ring wedges itself onto the arm
            lag = now.distance(hook.behind(min(tilt, _TILT)))
            turn = 0.07 * float(np.clip(2.0 - lag / _LAG, 0.1, 1.0))
        return hand_for(arm.pose, now, hook.behind(max(tilt - turn, _RESTING_TILT - 0.1)))

    if not (yield from follow(arm, goal, at_most=100)):
        raise PlanFailed("the ring does not turn behind the hook's end")
    return True
