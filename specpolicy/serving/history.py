"""The observations of one session: checked as they come, and remembered as far back as the policy looks."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specpolicy.policies import ObservationSpec

from .errors import RequestRefused

Step = Mapping[str, NDArray[np.float32]]


class ObservationHistory:
    """The last ``spec.horizon`` observations.

    A robot sends either the present observation, with parts of shape ``(dim,)``, which is added to those before it (the
    first is repeated, as at the start of an episode), or all that the policy looks at, with parts of shape
    ``(horizon, dim)``, the present step last, which replaces them.
    """

    def __init__(self, spec: ObservationSpec) -> None:
        self.spec = spec
        self._steps: deque[Step] = deque(maxlen=spec.horizon)

    def clear(self) -> None:
        """Forget everything."""
        self._steps.clear()

    def add(self, observation: Mapping[str, Any]) -> tuple[str, ...]:
        """Remember an observation, if all of it is right.

        Returns:
            The names in it that the policy does not use, sorted.

        Raises:
            RequestRefused: a part is missing, has another shape or type, or is not finite as float32; nothing is
                remembered.
        """
        spec = self.spec
        if missing := [name for name in spec.keys if name not in observation]:
            raise RequestRefused(
                f"observation lacks {missing}; expected {self.expected()}; there are {sorted(observation)!r:.300}"
            )
        parts = {name: self._checked(name, observation[name]) for name in spec.keys}
        if len(kinds := {part.ndim for part in parts.values()}) > 1:
            shapes = {name: part.shape for name, part in parts.items()}
            raise RequestRefused(f"some parts are one step and some a history: {shapes}; expected {self.expected()}")
        if kinds == {1}:
            present = [parts]
        else:
            present = [{name: part[step] for name, part in parts.items()} for step in range(spec.horizon)]
        missing_steps = spec.horizon - len(self._steps) - len(present)
        self._steps.extend(present[:1] * (missing_steps if not self._steps else 0) + present)
        return tuple(sorted(set(observation) - set(spec.keys)))

    def stacked(self) -> dict[str, NDArray[np.float32]]:
        """Each part over the remembered steps, shape ``(horizon, dim)``. There has been an observation."""
        return {name: np.stack([step[name] for step in self._steps]) for name in self.spec.keys}

    def expected(self) -> str:
        """The shapes that :meth:`add` takes, for people."""
        parts = ", ".join(f"{name} ({dim},)" for name, dim in self.spec.keys.items())
        horizon = self.spec.horizon
        return f"{parts} for the present step, or ({horizon}, dim) each for {horizon} steps, the present one last"

    def _checked(self, name: str, value: Any) -> NDArray[np.float32]:
        dim, horizon = self.spec.keys[name], self.spec.horizon
        part = _as_array(name, value)
        if part.shape not in ((dim,), (horizon, dim)):
            raise RequestRefused(
                f"observation[{name!r}] has shape {part.shape}; expected ({dim},) for the present step, or "
                f"({horizon}, {dim}) for {horizon} steps, the present one last"
            )
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused as such
            part = part.astype(np.float32)
        if not np.isfinite(part).all():
            raise RequestRefused(
                f"observation[{name!r}] is not finite as float32; check the sensor for NaN, infinity and huge values"
            )
        return part


def _as_array(name: str, value: Any) -> NDArray[Any]:
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, list) and all(_is_number(each) for row in value for each in _listed(row)):
        try:
            return np.asarray(value, dtype=np.float64)
        except (ValueError, OverflowError) as error:  # rows of different lengths, integers without end
            raise RequestRefused(f"observation[{name!r}] is not an array: {error}") from error
    raise RequestRefused(f"observation[{name!r}] is {value!r:.80}; expected a numeric array or a list of numbers")


def _listed(row: Any) -> list[Any]:
    return row if isinstance(row, list) else [row]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number)
