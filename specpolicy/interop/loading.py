"""Load a policy from any checkpoint that is known: ours, robomimic's, diffusion_policy's or LeRobot's.

Which one it is, is told by the content, not by names.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from specpolicy.config import check_device
from specpolicy.interop.checkpoint_files import comma_list, read_torch_archive, refuse, shortened
from specpolicy.interop.diffusion_policy_checkpoint import is_diffusion_policy, read_diffusion_policy
from specpolicy.interop.foreign import ForeignPolicy
from specpolicy.interop.lerobot_checkpoint import CONFIG, WEIGHTS, is_lerobot, read_lerobot
from specpolicy.interop.robomimic_checkpoint import is_robomimic, read_robomimic
from specpolicy.policies import checkpoint as own
from specpolicy.policies.config import PolicyConfig
from specpolicy.policies.diffusion_policy import DiffusionPolicy
from specpolicy.utils.errors import one_line

_RUN = "pretrained_model"
"""Name of the folder with a policy inside a checkpoint of LeRobot's training."""


def load_policy(path: str | Path, device: str | torch.device = "cpu", task: str | None = None) -> DiffusionPolicy:
    """Load a policy, of this library or of another package.

    Args:
        path: a folder of this library; a ``.pth`` of robomimic (``diffusion_policy``); a ``.ckpt`` of
            diffusion_policy; a folder of LeRobot, of any generation. The packages need not be installed, and nothing
            that a file contains is executed.
        device: where to put the weights.
        task: refuse a checkpoint of this library that was trained on another task; others do not say it in our terms.

    Returns:
        The policy in evaluation mode. It takes observations under the package's own keys, in raw units, images as
        bytes in the package's own layout; :meth:`~specpolicy.policies.DiffusionPolicy.report` says what was found.

    Raises:
        CheckpointError: there is nothing that can be read safely; one line that names file and field.
        ConfigError: the device cannot be reached.
    """
    path, device = _path_of(path), check_device(device)
    if own.is_own(path):
        return DiffusionPolicy.from_pretrained(path, device, task)
    foreign = read_foreign(path)
    try:
        policy = DiffusionPolicy(PolicyConfig.from_dict(foreign.config))
        policy.load_state_dict(foreign.weights)
    except (TypeError, ValueError, RuntimeError) as error:
        refuse(path, f"describes no policy that can be built here: {shortened(str(error))}", error)
    policy.folder = path
    return policy.to(device).eval().requires_grad_(False)


def read_policy_config(path: str | Path) -> PolicyConfig:
    """Read what a checkpoint is of; arguments and errors as for :func:`load_policy`."""
    path = _path_of(path)
    return own.read_config(path) if own.is_own(path) else PolicyConfig.from_dict(read_foreign(path).config)


def read_foreign(path: str | Path) -> ForeignPolicy:
    """Read a checkpoint of robomimic, diffusion_policy or LeRobot.

    Args:
        path: a ``.pth`` of robomimic, a ``.ckpt`` of diffusion_policy, or a folder of LeRobot. Names do not matter.

    Returns:
        The policy in terms of our format.

    Raises:
        CheckpointError: there is nothing, or nothing that can be read safely; the message is one line, begins with the
            file, and names the field.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    if not path.exists():
        raise own.CheckpointError(
            f"no checkpoint at {path}: there is no such file or folder; expected a policy's folder, a .pth of "
            "robomimic or a .ckpt of diffusion_policy"
        )
    payload = read_torch_archive(path)
    if is_robomimic(payload):
        return read_robomimic(path, payload)
    if is_diffusion_policy(payload):
        return read_diffusion_policy(path, payload)
    refuse(path, f"{_description(payload)}; checkpoints of robomimic hold model, config and algo_name, those of "
                 "diffusion_policy cfg and state_dicts")  # fmt: skip


def _path_of(given: str | Path) -> Path:
    """Check what was given for a path before anything asks the file system about it."""
    if not isinstance(given, str | os.PathLike):
        raise own.CheckpointError(f"the checkpoint is given as a {type(given).__name__}; expected a path")
    path = Path(given)
    try:
        path.exists()
    except (OSError, ValueError) as error:
        raise own.CheckpointError(f"no checkpoint at {str(path)[:80]!r}: {one_line(error)[:80]}") from error
    return path


def _read_folder(folder: Path) -> ForeignPolicy:
    if is_lerobot(folder):
        return read_lerobot(folder)
    if is_lerobot(folder / _RUN):
        return read_lerobot(folder / _RUN)
    for inner in (folder, folder / _RUN):
        if (inner / f"{WEIGHTS}.index.json").is_file():
            refuse(inner, f"the weights are in several files ({WEIGHTS}.index.json); merge them into one {WEIGHTS}")
        if (inner / "adapter_config.json").is_file():
            refuse(inner, "holds an adapter (PEFT) and no policy; merge it into the weights first, with LeRobot")
        if (inner / WEIGHTS).is_file():
            refuse(inner / CONFIG, "is missing; copy the whole folder")
    there = comma_list(sorted(entry.name for entry in folder.iterdir()), 6) or "nothing"
    raise own.CheckpointError(
        f"no checkpoint at {folder}: expected config.json with policy.safetensors (this library's) or {WEIGHTS} "
        f"(LeRobot's); there is {there}"
    )


def _description(payload: Any) -> str:
    """Say what was found in an archive that is no checkpoint of a known layout."""
    if not isinstance(payload, Mapping):
        return f"holds a {type(payload).__name__}"
    if any(str(key).startswith("pytorch-lightning") for key in payload):
        return "is a checkpoint of PyTorch Lightning, whose policies are not known here"
    if payload and all(hasattr(value, "shape") for value in payload.values()):
        return "is a bare state dict: without its configuration, normalization and slice a policy cannot be played"
    return f"holds {comma_list(payload, 8) or 'nothing'}"
