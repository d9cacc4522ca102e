"""Policies on disk: ``config.json`` beside ``policy.safetensors``; never pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from .config import PolicyConfig

if TYPE_CHECKING:
    from .diffusion_policy import DiffusionPolicy

CONFIG = "config.json"
WEIGHTS = "policy.safetensors"


class CheckpointError(RuntimeError):
    """A checkpoint is missing, damaged, or not what was asked for."""


def save_policy(policy: DiffusionPolicy, folder: Path, half: bool = False) -> None:
    """Write a policy so that a kill at any moment leaves the old or the new files, never half of one.

    Args:
        policy: to write. folder: where to.
        half: store the network's weights in 16 bits, for half the space. They are read into float32 again, rounded by
            up to a two thousandth; normalizers, and the policy in memory, stay as they are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in policy.state_dict().items()}
    for name in dict(policy.network.named_parameters(prefix="network")) if half else ():
        weights[name] = weights[name].half()
    partial = folder / (WEIGHTS + ".partial")
    save_file(weights, partial)
    partial.replace(folder / WEIGHTS)
    partial = folder / (CONFIG + ".partial")
    partial.write_text(json.dumps(policy.config.to_dict(), indent=2) + "\n")
    partial.replace(folder / CONFIG)


def read_config(folder: Path) -> PolicyConfig:
    """What a checkpoint is of, without its weights. Raises :class:`CheckpointError` as :func:`load_policy` does."""
    for file in (folder / CONFIG, folder / WEIGHTS):
        if not file.is_file():
            raise CheckpointError(
                f"no checkpoint at {folder}: {file.name} is missing; expected a folder with {CONFIG} and {WEIGHTS}, "
                "as written by `specpolicy train`"
            )
    try:
        return PolicyConfig.from_dict(json.loads((folder / CONFIG).read_text()))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{folder / CONFIG} cannot be read: {error}") from error


def load_policy(folder: Path, device: str | torch.device = "cpu", task: str | None = None) -> DiffusionPolicy:
    """Read a policy.

    Args:
        folder: holds ``config.json`` and ``policy.safetensors``.
        device: where to put the weights.
        task: refuse a checkpoint that was trained on another task.

    Raises:
        CheckpointError: the folder or a file is missing, the config cannot be read, the weights are truncated or do
            not fit the config, or the task is another one.
    """
    from .diffusion_policy import DiffusionPolicy

    config = read_config(folder)
    if task is not None and config.task != task:
        raise CheckpointError(
            f"{folder} is of task {config.task!r}, not {task!r}; choose another checkpoint, or task={config.task}"
        )
    policy = DiffusionPolicy(config)
    try:
        policy.load_state_dict(load_file(folder / WEIGHTS))
    except SafetensorError as error:
        raise CheckpointError(
            f"{folder / WEIGHTS} is damaged or truncated ({error}); copy or train it again"
        ) from error
    except RuntimeError as error:
        raise CheckpointError(f"{folder / WEIGHTS} does not fit {CONFIG}: {error}") from error
    policy.folder = folder
    return policy.to(device).eval().requires_grad_(False)
