"""Check observations and stack them: named vectors and images over the policy's last steps."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


class ObservationError(ValueError):
    """An observation does not have the keys, types, shapes or finite values that the policy was trained on."""


def check_numbers(name: str, value: Any) -> NDArray[np.float32]:
    """Check what enters as numbers: the same for the library, the command line and the server.

    Args:
        name: key of the observation, for the message.
        value: an array, a tensor, or nested lists of numbers.

    Returns:
        The numbers as float32, a copy.

    Raises:
        ObservationError: it is text or an object, ragged, or holds NaN, infinity or what float32 cannot hold.
    """
    array = _array(name, value)
    if array.dtype.kind not in "biuf":
        what = "text" if array.dtype.kind in "SU" else f"values of type {array.dtype}"
        what = "nothing (None)" if array.ndim == 0 and array[()] is None else what
        raise ObservationError(f"observation[{name!r}] holds {what}; expected numbers")
    with np.errstate(over="ignore"):
        numbers = array.astype(np.float32)
    if not np.isfinite(numbers).all():
        raise ObservationError(
            f"observation[{name!r}] contains NaN, infinity or values beyond float32; check the sensor or the simulator"
        )
    return numbers


def _array(name: str, value: Any) -> NDArray[Any]:
    try:
        if isinstance(value, Tensor):  # bfloat16 is no type of numpy's
            value = value.detach().cpu()
            value = value.float() if value.is_floating_point() else value
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ObservationError(
            f"observation[{name!r}] is a {type(value).__name__} and no array of numbers: {' '.join(str(error).split())}"
        ) from error


@dataclass(frozen=True)
class ObservationSpec:
    """Names and shapes of the observation's parts, in the order in which they are joined.

    Args:
        keys: length of each part in the condition; the order is the policy's.
        horizon: number of observation steps that the policy sees, the present one last.
        images: shape of one image of each camera, in its own layout.
    """

    keys: dict[str, int]
    horizon: int
    images: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def dim(self) -> int:
        """Length of one joined observation step, images as their features."""
        return sum(self.keys.values())

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of one step of each part: of a vector its length, of a camera its image."""
        return {key: self.images.get(key, (dim,)) for key, dim in self.keys.items()}

    def zeros(self, *batch: int) -> dict[str, NDArray[Any]]:
        """Make an observation of zeros: float32 vectors and black images, with ``batch`` axes before the steps."""
        return {
            key: np.zeros((*batch, self.horizon, *shape), np.uint8 if key in self.images else np.float32)
            for key, shape in self.shapes.items()
        }

    def check(self, observation: Any) -> dict[str, NDArray[Any]]:
        """Check an observation and take the policy's parts out of it.

        Args:
            observation: vectors of shape ``(batch, horizon, dim)`` and images ``(batch, horizon, ...)`` of bytes. A
                camera may also give the features that its images have been encoded into, as numbers. Further keys are
                ignored.

        Returns:
            Vectors as float32, images as they are, in the policy's order.

        Raises:
            ObservationError: a key is missing, a shape or type is wrong, batch sizes differ, or a value is NaN,
                infinite or beyond float32.
        """
        if not isinstance(observation, Mapping):
            raise ObservationError(
                f"the observation is a {type(observation).__name__}; expected a mapping of {self.keys}"
            )
        missing = [key for key in self.keys if key not in observation]
        if missing:
            raise ObservationError(
                f"observation lacks {missing}; the policy needs {self.keys}, "
                f"it was given {sorted(map(str, observation))}"
            )
        parts = {key: self._checked(key, _array(key, observation[key])) for key in self.keys}
        sizes = {key: part.shape[0] for key, part in parts.items()}
        if len(set(sizes.values())) > 1:
            raise ObservationError(f"observation parts have different batch sizes: {sizes}")
        return parts

    def _checked(self, key: str, part: NDArray[Any]) -> NDArray[Any]:
        if key in self.images and part.ndim != 3:
            expected = (self.horizon, *self.images[key])
            if part.ndim == 0 or part.shape[1:] != expected:
                raise ObservationError(
                    f"observation[{key!r}] has shape {part.shape}; expected (batch, {str(expected)[1:-1]}): the "
                    f"policy's {self.horizon} steps, each an image"
                )
            if part.dtype != np.uint8:
                raise ObservationError(
                    f"observation[{key!r}] has type {part.dtype}; expected uint8, an image's bytes from 0 to 255"
                )
            return part
        dim, part = self.keys[key], check_numbers(key, part)
        if part.ndim != 3 or part.shape[1:] != (self.horizon, dim):
            raise ObservationError(
                f"observation[{key!r}] has shape {part.shape}; expected (batch, {self.horizon} steps, {dim})"
            )
        return part


HistoryWindow = dict[str, NDArray[Any]]
"""``{name: (n_obs_steps, …)}``, the present step last."""


class ObservationHistory:
    """The last ``horizon`` observations; the first one fills it.

    Args:
        horizon: observation steps that the policy sees, at least 1.
        observation: what ``reset`` returned: a mapping of arrays, or one array, which is then named "observation".
    """

    def __init__(self, horizon: int, observation: Any) -> None:
        if horizon < 1:
            raise ValueError(f"observation horizon {horizon}; it must be at least 1")
        self._steps: deque[Mapping[str, NDArray[Any]]] = deque([_named(observation)] * horizon, maxlen=horizon)

    def add(self, observation: Any) -> None:
        """Take in the next observation, of the form of the first."""
        self._steps.append(_named(observation))

    def window(self) -> HistoryWindow:
        """Stack all of them; each part has shape ``(horizon, ...)``."""
        return {name: np.stack([step[name] for step in self._steps]) for name in self._steps[-1]}

    @property
    def latest(self) -> Mapping[str, NDArray[Any]]:
        """Present observation."""
        return self._steps[-1]


def _named(observation: Any) -> Mapping[str, NDArray[Any]]:
    parts = observation if isinstance(observation, Mapping) else {"observation": observation}
    return {name: np.array(part) for name, part in parts.items()}  # copied: simulators reuse their buffers
