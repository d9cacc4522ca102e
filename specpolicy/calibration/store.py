"""Calibrations on disk: ``calibration-<K>[-matched].safetensors`` beside the checkpoint; never pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from specpolicy.atomic import atomic_path
from specpolicy.policies.digest import checkpoint_digest
from specpolicy.speculative.gains import Gains
from specpolicy.speculative.opening import KernelOpening, LinearOpening, Opening, ZeroOpening

from .calibration import Calibration, CalibrationError

FORMAT = 1
_HEADER = "calibration"


def calibration_path(checkpoint: str | Path, num_inference_steps: int, matched: bool = False) -> Path:
    """Where the calibration of a checkpoint for chains of so many steps lies, with matched noise or without."""
    return Path(checkpoint) / f"calibration-{num_inference_steps}{'-matched' if matched else ''}.safetensors"


def save_calibration(calibration: Calibration, checkpoint: str | Path, matched: bool = False) -> Path:
    """Write it beside the checkpoint that it is of, at once or not at all; returns the path.

    Args:
        calibration: to write. checkpoint: that it is of.
        matched: whether it is of chains with matched noise.

    Raises:
        TypeError: the opening is none of this library's.
        FileNotFoundError: there is no checkpoint.
    """
    gains = calibration.gains
    tensors = {"gains.values": gains.values.half(), **_parts_of(calibration.opening)}
    if gains.basis is not None:
        tensors["gains.basis"] = gains.basis.half()
    about = {**calibration.about, "format": FORMAT, "checkpoint": checkpoint_digest(checkpoint)}
    path = calibration_path(checkpoint, gains.num_steps, matched)
    content = save({name: part.contiguous() for name, part in tensors.items()}, {_HEADER: json.dumps(about)})
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return path


def load_calibration(checkpoint: str | Path, num_inference_steps: int, matched: bool = False) -> Calibration:
    """Read the calibration of a checkpoint for chains of so many steps, with matched noise or without.

    Raises:
        CalibrationError: there is none, it is damaged, or it is of other weights. The message names the command that
            makes one.
    """
    path = calibration_path(checkpoint, num_inference_steps, matched)
    which, switch = ("matched steps", " matched=true") if matched else ("steps", "")
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
            Gains(tensors["gains.values"], tensors.get("gains.basis")), _opening_of(tensors), about
        )
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CalibrationError(f"{path} cannot be read ({error}); run {command} again") from error
    if about["checkpoint"] != checkpoint_digest(checkpoint):
        raise CalibrationError(
            f"{path} is of another policy: its checkpoint's SHA-256 is {about['checkpoint'][:12]}…, this one's "
            f"{checkpoint_digest(checkpoint)[:12]}…; run {command} again"
        )
    return calibration


def _parts_of(opening: Opening) -> dict[str, Tensor]:
    if isinstance(opening, ZeroOpening):
        return {}
    if isinstance(opening, LinearOpening):
        return {"opening.weight": opening.weight.float(), "opening.offset": opening.offset.float()}
    if isinstance(opening, KernelOpening):
        return {
            **_parts_of(opening.linear),
            "opening.scale": opening.scale.float(),
            "opening.centres": opening.centres.half(),
            "opening.weights": opening.weights.half(),
        }
    raise TypeError(f"a {type(opening).__name__} cannot be stored; expected a zero, linear or kernel opening")


def _opening_of(tensors: dict[str, Tensor]) -> Opening:
    if "opening.weight" not in tensors:
        return ZeroOpening()
    linear = LinearOpening(tensors["opening.weight"], tensors["opening.offset"])
    if "opening.centres" not in tensors:
        return linear
    return KernelOpening(linear, tensors["opening.scale"], tensors["opening.centres"], tensors["opening.weights"])
