"""What is known of a policy's chains of so many steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from specpolicy.speculative.gains import Gains
from specpolicy.speculative.opening import Opening


class CalibrationError(RuntimeError):
    """A calibration is missing, damaged, or of another policy."""


@dataclass(frozen=True)
class Calibration:
    """Gains and an opening for one policy and one number of steps.

    Attributes:
        gains: for a :class:`~specpolicy.LinearDrafter`.
        opening: what stands in for x̂0 before the first pass.
        about: where it comes from and what it was worth on chains that it was not fitted on, as plain JSON types.
    """

    gains: Gains
    opening: Opening
    about: dict[str, Any] = field(default_factory=dict)
