"""Calibrations on disk: ``calibration-<K>[-analytic].safetensors`` beside the checkpoint; never pickle."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from specpolicy.policies.checkpoint import companion
from specpolicy.speculative.drafters.linear import X0Jacobian
from specpolicy.speculative.initial_guess import LinearGuess, X0Guess, ZeroGuess
from specpolicy.utils.digests import checkpoint_digest, file_digest, note_input
from specpolicy.utils.errors import one_line
from specpolicy.utils.files import DAMAGED, atomic_path


class CalibrationError(RuntimeError):
    """A calibration is missing, damaged, or of another policy."""


@dataclass(frozen=True)
class Calibration:
    """Fitted parts of the drafters for one policy and one number of steps.

    Attributes:
        jacobian: for a :class:`~specpolicy.LinearDrafter` or :class:`~specpolicy.RecyclingDrafter`.
        initial_guess: stands in for x̂0 before the first network evaluation.
        about: origin, and errors on chains that it was not fitted on, as plain JSON types.
    """

    jacobian: X0Jacobian
    initial_guess: X0Guess
    about: dict[str, Any] = field(default_factory=dict)


FORMAT = 2
_HEADER = "calibration"
_LARGEST = {"jacobian.values": 1e4, "jacobian.basis": 2.0, "initial_guess.weight": 1e6, "initial_guess.offset": 1e6}
"""Beyond these a tensor is damaged: states and x̂0 are about 1, and columns of the basis have unit length."""


def calibration_path(checkpoint: str | Path, num_inference_steps: int, analytic: bool = False) -> Path:
    """Locate the calibration of a checkpoint.

    Args:
        checkpoint: folder of the policy.
        num_inference_steps: K.
        analytic: of chains with analytic noise.

    Returns:
        The path, whether there is a file or not.
    """
    return companion(checkpoint) / f"calibration-{num_inference_steps}{'-analytic' if analytic else ''}.safetensors"


def save_calibration(calibration: Calibration, checkpoint: str | Path, analytic: bool = False) -> Path:
    """Write a calibration beside its checkpoint, at once or not at all.

    Args:
        calibration: to write.
        checkpoint: that it is of.
        analytic: whether it is of chains with analytic noise.

    Returns:
        The path.

    Raises:
        TypeError: the initial guess is none of this library's.
        CalibrationError: a number in it is not finite.
        FileNotFoundError: there is no checkpoint.
    """
    jacobian = calibration.jacobian
    tensors = {"jacobian.values": jacobian.values.half(), **_parts_of(calibration.initial_guess)}
    if jacobian.basis is not None:
        tensors["jacobian.basis"] = jacobian.basis.half()
    about = {**calibration.about, "format": FORMAT, "checkpoint": checkpoint_digest(checkpoint)}
    path = calibration_path(checkpoint, jacobian.num_steps, analytic)
    try:
        _check_numbers(tensors)
    except ValueError as error:
        raise CalibrationError(
            f"{path} is not written: {error}; record more chains, or chains of other observations"
        ) from error
    content = save({name: part.contiguous() for name, part in tensors.items()}, {_HEADER: json.dumps(about)})
    path.parent.mkdir(exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return path


def load_calibration(checkpoint: str | Path, num_inference_steps: int, analytic: bool = False) -> Calibration:
    """Read the calibration of a checkpoint.

    Args:
        checkpoint: folder of the policy.
        num_inference_steps: K.
        analytic: of chains with analytic noise.

    Returns:
        The calibration, in float32 on the CPU.

    Raises:
        CalibrationError: there is none, it is damaged, holds numbers that are not finite, or is of other weights. The
            message names the command that makes one.
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
            raise ValueError(f"format {about['format']}, this version reads {FORMAT}")
        _check_numbers(tensors)
        calibration = Calibration(
            X0Jacobian(tensors["jacobian.values"], tensors.get("jacobian.basis")), _guess_of(tensors), about
        )
        if calibration.jacobian.num_steps != num_inference_steps:
            raise ValueError(f"it is for {calibration.jacobian.num_steps} steps")
        digest = str(about["checkpoint"])
    except (SafetensorError, *DAMAGED) as error:
        raise CalibrationError(f"{path} cannot be read ({one_line(error, 300)}); run {command} again") from error
    if digest != checkpoint_digest(checkpoint):
        raise CalibrationError(
            f"{path} is of another policy: its checkpoint's SHA-256 is {digest[:12]}…, this one's "
            f"{checkpoint_digest(checkpoint)[:12]}…; run {command} again"
        )
    note_input(path.name, file_digest(path))
    return calibration


def _check_numbers(tensors: dict[str, Tensor]) -> None:
    """Raise ``ValueError`` for numbers that are not finite or far too large."""
    for name, part in tensors.items():
        if not bool(part.isfinite().all()):
            raise ValueError(f"{name} holds NaN or infinity")
        if part.numel() and float(part.abs().max()) > _LARGEST.get(name, float("inf")):
            raise ValueError(f"{name} holds numbers up to {float(part.abs().max()):.3g}")


def _parts_of(guess: X0Guess) -> dict[str, Tensor]:
    if isinstance(guess, ZeroGuess):
        return {}
    if isinstance(guess, LinearGuess):
        return {"initial_guess.weight": guess.weight.float(), "initial_guess.offset": guess.offset.float()}
    raise TypeError(f"a {type(guess).__name__} cannot be stored; expected a zero or linear initial guess")


def _guess_of(tensors: dict[str, Tensor]) -> X0Guess:
    if "initial_guess.weight" not in tensors:
        return ZeroGuess()
    weight, offset = tensors["initial_guess.weight"], tensors["initial_guess.offset"]
    if weight.ndim != 2 or offset.shape != weight.shape[:1]:
        raise ValueError(f"initial guess with weight {tuple(weight.shape)} and offset {tuple(offset.shape)}")
    return LinearGuess(weight, offset)
