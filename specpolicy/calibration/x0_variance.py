"""How far x0 still is from x̂0 along a policy's chains, for short chains with analytic noise."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from specpolicy.calibration.fit import RecordedChains
from specpolicy.calibration.store import CalibrationError
from specpolicy.policies.checkpoint import companion
from specpolicy.speculative.process import ReverseProcess, dense_timesteps
from specpolicy.utils.digests import checkpoint_digest, file_digest, note_input
from specpolicy.utils.errors import one_line
from specpolicy.utils.files import DAMAGED, atomic_path

X0_VARIANCE_FORMAT = 1
_LARGEST = 1e4  # x0 is normalized: its variance is about 1 at most


@dataclass(frozen=True)
class X0Variance:
    """Var(x0 | x_t) of a policy, mean over coordinates, chains and their conditions.

    Attributes:
        variance: at each timestep of training, from 0 on, shape ``(T,)``.
        about: where it comes from, as plain JSON types.
    """

    variance: Float[Tensor, " t"]
    about: dict[str, Any] = field(default_factory=dict)

    def chain(self, scheduler: Any, num_inference_steps: int) -> ReverseProcess:
        """The scheduler's chain at few, densely spaced timesteps, with analytic noise.

        Raises:
            ValueError: so many steps are impossible, or the scheduler was made for another number of timesteps.
        """
        if scheduler.config.num_train_timesteps != len(self.variance):
            raise ValueError(
                f"the scheduler has {scheduler.config.num_train_timesteps} timesteps; the x0_variance is known of "
                f"{len(self.variance)}"
            )
        timesteps = dense_timesteps(len(self.variance), num_inference_steps)
        process = ReverseProcess.from_scheduler(scheduler, timesteps=timesteps)
        return process.with_analytic_variance(self.variance[process.timesteps])


def measure_x0_variance(process: ReverseProcess, chains: RecordedChains, about: Mapping[str, Any]) -> X0Variance:
    """Mean square of x0 − x̂0(x_t), where x0 is what each chain ends in.

    Args:
        process: that the chains are of, with all timesteps.
        chains: recorded ones.
        about: kept with the result.

    Raises:
        ValueError: the process leaves timesteps out, or the chains are of another one.
    """
    falling = torch.arange(process.num_steps - 1, -1, -1)
    if not torch.equal(process.timesteps.cpu(), falling) or chains.num_steps != process.num_steps:
        raise ValueError("x0_variance is measured on chains that visit every timestep")
    squares = (chains.states[-1] - chains.x0).double().square().mean(dim=(1, 2))
    return X0Variance(squares.flip(0), {**about, "chains": len(chains)})


def x0_variance_path(checkpoint: str | Path) -> Path:
    """Where the x0_variance of a checkpoint lies."""
    return companion(checkpoint) / "x0_variance.json"


def save_x0_variance(x0_variance: X0Variance, checkpoint: str | Path) -> Path:
    """Write it beside the checkpoint that it is of; returns the path."""
    content = {
        "format": X0_VARIANCE_FORMAT,
        "checkpoint": checkpoint_digest(checkpoint),
        "variance": [float(f"{value:.6g}") for value in x0_variance.variance.tolist()],
        "about": x0_variance.about,
    }
    path = x0_variance_path(checkpoint)
    path.parent.mkdir(exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path


def load_x0_variance(checkpoint: str | Path) -> X0Variance:
    """Read the x0_variance of a checkpoint.

    Raises:
        CalibrationError: there is none, it is damaged, or it is of other weights. The message names the command that
            makes one.
    """
    path, command = x0_variance_path(checkpoint), f"`specpolicy calibrate checkpoint={checkpoint} analytic=true`"
    if not path.is_file():
        raise CalibrationError(
            f"{checkpoint} does not know how uncertain its x̂0 are, which analytic noise needs; run {command}"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != X0_VARIANCE_FORMAT:
            raise KeyError(f"format {content['format']}, this version reads {X0_VARIANCE_FORMAT}")
        x0_variance = X0Variance(torch.tensor(content["variance"], dtype=torch.float64), dict(content["about"]))
        values = x0_variance.variance
        if values.ndim != 1 or not bool(((values >= 0) & (values <= _LARGEST)).all()):
            raise ValueError(f"the variances are not a list of numbers from 0 to {_LARGEST:g}")
        digest = content["checkpoint"]
    except DAMAGED as error:
        raise CalibrationError(
            f"{path} cannot be read ({one_line(error, 300)}); remove it, and run {command} again"
        ) from error
    if digest != checkpoint_digest(checkpoint):
        raise CalibrationError(f"{path} is of another policy than {checkpoint}; remove it, and run {command} again")
    note_input(path.name, file_digest(path))
    return x0_variance
