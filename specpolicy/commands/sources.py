"""Where commands that look at a policy's observations take them from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from specpolicy.composition import ConfigError, choices, compose

if TYPE_CHECKING:
    from specpolicy.calibration import Histories
    from specpolicy.policies import DiffusionPolicy


def histories_for(policy: DiffusionPolicy, dataset: str | None, observations: str | None) -> Histories:
    """Those of a dataset or of an archive; of the demonstrations of the policy's task if neither is given.

    Raises:
        ConfigError: both are given, or neither and the task is none of this library's.
        CalibrationError, DemonstrationError, ObservationError: the file is missing or does not fit.
    """
    from specpolicy.calibration import histories_of_demonstrations, histories_of_observations

    if dataset and observations:
        raise ConfigError("dataset= and observations= both say where observations are; give one of them")
    if observations:
        return histories_of_observations(policy, observations)
    if not dataset and policy.config.task not in choices("task"):
        raise ConfigError(
            f"nothing says where observations of task {policy.config.task!r} are; give dataset= or observations="
        )
    return histories_of_demonstrations(policy, dataset or compose("train", [f"task={policy.config.task}"]).dataset)
