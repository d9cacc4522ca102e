"""Calibrations on disk: ``calibration-<K>[-analytic].safetensors`` beside the checkpoint; never pickle."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from specpolicy.policies.checkpoint import checkpoint_digest, companion
from specpolicy.speculative.drafters.linear import X0Jacobian
from specpolicy.speculative.initial_guess import KernelGuess, LinearGuess, X0Guess, ZeroGuess
from specpolicy.utils.files import atomic_path


class CalibrationError(RuntimeError):
    """A calibration is missing, damaged, or of another policy."""


@dataclass(frozen=True)
class Calibration:
    """Gains and an initial guess for one policy and one number of steps.

    Attributes:
        jacobian: for a :class:`~specpolicy.LinearDrafter`.
        initial_guess: what stands in for x̂0 before the first pass.
        about: where it comes from and what it was worth on chains that it was not fitted on, as plain JSON types.
    """

    jacobian: X0Jacobian
    initial_guess: X0Guess
    about: dict[str, Any] = field(default_factory=dict)


FORMAT = 2
_HEADER = "calibration"


def calibration_path(checkpoint: str | Path, num_inference_steps: int, analytic: bool = False) -> Path:
    """Where the calibration of a checkpoint for chains of so many steps lies, with analytic noise or without."""
    return companion(checkpoint) / f"calibration-{num_inference_steps}{'-analytic' if analytic else ''}.safetensors"


def save_calibration(calibration: Calibration, checkpoint: str | Path, analytic: bool = False) -> Path:
    """Write it beside the checkpoint that it is of, at once or not at all; returns the path.

    Args:
        calibration: to write. checkpoint: that it is of.
        analytic: whether it is of chains with analytic noise.

    Raises:
        TypeError: the initial_guess is none of this library's.
        FileNotFoundError: there is no checkpoint.
    """
    jacobian = calibration.jacobian
    tensors = {"jacobian.values": jacobian.values.half(), **_parts_of(calibration.initial_guess)}
    if jacobian.basis is not None:
        tensors["jacobian.basis"] = jacobian.basis.half()
    about = {**calibration.about, "format": FORMAT, "checkpoint": checkpoint_digest(checkpoint)}
    path = calibration_path(checkpoint, jacobian.num_steps, analytic)
    content = save({name: part.contiguous() for name, part in tensors.items()}, {_HEADER: json.dumps(about)})
    path.parent.mkdir(exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return path


def load_calibration(checkpoint: str | Path, num_inference_steps: int, analytic: bool = False) -> Calibration:
    """Read the calibration of a checkpoint for chains of so many steps, with analytic noise or without.

    Raises:
        CalibrationError: there is none, it is damaged, or it is of other weights. The message names the command that
            makes one.
    """
    path = calibration_path(checkpoint, num_inference_steps, analytic)
    which, switch = ("analytic steps", " analytic=true") if analytic else ("steps", "")
    command = f"`specpolicy calibrate checkpoint={checkpoint} num_inference_steps={num_inference_steps}{switch}`"
    if not path.is_file():
        raise CalibrationError(f"{checkpoint} has no calibration for {num_inference_steps} {which}; run {command}")
    try:
        with safe_open(path, framework="pt") as file:
            about: dict[str, Any] = json.loads(file.metadata()[_HEADER])
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 - no mapping
        if about["format"] != FORMAT:
            raise KeyError(f"format {about['format']}, this version reads {FORMAT}")
        calibration = Calibration(
            X0Jacobian(tensors["jacobian.values"], tensors.get("jacobian.basis")), _guess_of(tensors), about
        )
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CalibrationError(f"{path} cannot be read ({error}); run {command} again") from error
    if about["checkpoint"] != checkpoint_digest(checkpoint):
        raise CalibrationError(
            f"{path} is of another policy: its checkpoint's SHA-256 is {about['checkpoint'][:12]}…, this one's "
            f"{checkpoint_digest(checkpoint)[:12]}…; run {command} again"
        )
    return calibration


def _parts_of(initial_guess: X0Guess) -> dict[str, Tensor]:
    if isinstance(initial_guess, ZeroGuess):
        return {}
    if isinstance(initial_guess, LinearGuess):
        return {
            "initial_guess.weight": initial_guess.weight.float(),
            "initial_guess.offset": initial_guess.offset.float(),
        }
    if isinstance(initial_guess, KernelGuess):
        return {
            **_parts_of(initial_guess.linear),
            "initial_guess.scale": initial_guess.scale.float(),
            "initial_guess.centres": initial_guess.centres.half(),
            "initial_guess.weights": initial_guess.weights.half(),
        }
    raise TypeError(
        f"a {type(initial_guess).__name__} cannot be stored; expected a zero, linear or kernel initial guess"
    )


def _guess_of(tensors: dict[str, Tensor]) -> X0Guess:
    if "initial_guess.weight" not in tensors:
        return ZeroGuess()
    linear = LinearGuess(tensors["initial_guess.weight"], tensors["initial_guess.offset"])
    if "initial_guess.centres" not in tensors:
        return linear
    return KernelGuess(
        linear, tensors["initial_guess.scale"], tensors["initial_guess.centres"], tensors["initial_guess.weights"]
    )
