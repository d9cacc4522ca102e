"""Commands between actions: polynomials for positions, slerp for orientations."""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specpolicy.utils.extras import require

Vector = NDArray[np.float64]


class Interpolation(StrEnum):
    """How commands lead from one action to the next. Orientations take slerp with all of them."""

    LINEAR = "linear"
    """At constant speed."""

    CUBIC = "cubic"
    """Cubic Hermite: speed is continuous; at an action it is that from the present command to the next action
    (Catmull–Rom), or zero if no next action is known."""

    MINIMUM_JERK = "minimum_jerk"
    """The quintic that minimizes the integral of squared jerk between given positions, speeds and accelerations (Flash
    and Hogan 1985): speed and acceleration are continuous, the speeds at the actions are those of ``cubic``."""


def path(method: Interpolation, start: Vector, end: Vector, share: float) -> Vector:
    """Compute a point on the way from one action to the next.

    Args:
        method: see :class:`Interpolation`.
        start: position, speed and acceleration of the present command, shape ``(3, dim)``; the unit of time is the
            time between actions.
        end: position and speed at the next action, shape ``(2, dim)``.
        share: of the time between them that has gone by, 0 to 1.

    Returns:
        Shape ``(dim,)``; exactly the end's position at share 1.
    """
    if share >= 1.0:
        return end[0].copy()
    (x0, v0, a0), (x1, v1) = start, end
    s = share
    if method is Interpolation.LINEAR:
        moved: Vector = x0 + s * (x1 - x0)
    elif method is Interpolation.CUBIC:
        moved = x0 + s * v0 + s**2 * (3 * (x1 - x0) - 2 * v0 - v1) + s**3 * (v0 + v1 - 2 * (x1 - x0))
    else:
        # the quintic's three upper coefficients, from what the lower three leave open at s = 1; it ends unaccelerated
        rest, speed = x1 - x0 - v0 - a0 / 2, v1 - v0 - a0
        third, fourth, fifth = (
            10 * rest - 4 * speed - a0 / 2,
            -15 * rest + 7 * speed + a0,
            6 * rest - 3 * speed - a0 / 2,
        )
        moved = x0 + s * v0 + s**2 * a0 / 2 + s**3 * third + s**4 * fourth + s**5 * fifth
    return moved


class OrientationForm(StrEnum):
    """How an orientation is written."""

    ROTATION_VECTOR = "rotation_vector"
    EULER_XYZ = "euler_xyz"
    QUATERNION = "quaternion"

    @property
    def size(self) -> int:
        """Numbers of an orientation."""
        return 4 if self is OrientationForm.QUATERNION else 3

    @property
    def reach(self) -> float:
        """Largest number that it may be written with."""
        return 1.0 if self is OrientationForm.QUATERNION else math.pi

    def rotation(self, values: Vector) -> Any:
        """Read an orientation.

        Args:
            values: shape ``(size,)``.

        Returns:
            A ``scipy`` rotation; None if the values are none, such as a quaternion of zeros.

        Raises:
            ImportError: scipy is missing; the message names the extra.
        """
        rotation = require("scipy.spatial.transform", "eval").Rotation
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            length = float(np.linalg.norm(values))
        if not math.isfinite(length):
            return None
        if self is OrientationForm.QUATERNION:
            return rotation.from_quat(values / length) if length > 1e-6 else None
        if self is OrientationForm.EULER_XYZ:
            return rotation.from_euler("XYZ", values)
        return rotation.from_rotvec(values)

    def write(self, rotation: Any, near: Vector) -> Vector:
        """Write an orientation; of the two quaternions that mean it, the one nearer to the last is taken.

        Args:
            rotation: a ``scipy`` rotation.
            near: the last one as it was written, shape ``(size,)``.

        Returns:
            Shape ``(size,)``.
        """
        if self is OrientationForm.EULER_XYZ:
            angles: Vector = rotation.as_euler("XYZ")
            return angles
        if self is OrientationForm.ROTATION_VECTOR:
            vector: Vector = rotation.as_rotvec()
            return vector
        quaternion: Vector = rotation.as_quat()
        return -quaternion if quaternion @ near < 0 else quaternion
