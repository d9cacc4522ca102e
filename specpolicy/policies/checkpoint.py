"""Policies on disk: ``config.json`` beside ``policy.safetensors``; never pickle."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from specpolicy.policies.config import PolicyConfig
from specpolicy.utils.digests import DEMONSTRATIONS
from specpolicy.utils.digests import checkpoint_digest as checkpoint_digest
from specpolicy.utils.digests import file_digest as file_digest
from specpolicy.utils.files import atomic_path

COMPANION = ".specpolicy"
"""Ending of the folder beside a foreign checkpoint in which is kept what was found out about it."""


def companion(checkpoint: str | Path) -> Path:
    """Find the folder for what is found out about a policy: its own, or one beside a checkpoint that is not ours.

    Args:
        checkpoint: folder or file of the policy. It is not touched if another package wrote it.
    """
    path = Path(checkpoint)
    lerobot = (path / "model.safetensors").is_file() or (path / "pretrained_model").is_dir()
    if path.is_file() or (lerobot and not is_own(path)):
        return path.absolute().with_name(path.absolute().name + COMPANION)
    return path


def write_seen_seeds(folder: Path, seeds: Iterable[int]) -> None:
    """Write them into a checkpoint's folder, at once or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / DEMONSTRATIONS) as path:
        path.write_text(json.dumps({"seeds": sorted(set(seeds))}) + "\n", encoding="utf-8")


def read_seen_seeds(folder: Path) -> frozenset[int]:
    """Seeds that a checkpoint was trained on; empty where none are on record, as for demonstrations by people.

    Raises:
        CheckpointError: the record cannot be read.
    """
    path = folder / DEMONSTRATIONS
    if not path.is_file():
        return frozenset()
    try:
        return frozenset(int(seed) for seed in json.loads(path.read_text(encoding="utf-8"))["seeds"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); copy it again, or train again") from error


if TYPE_CHECKING:
    from specpolicy.policies.diffusion_policy import DiffusionPolicy

CONFIG = "config.json"
WEIGHTS = "policy.safetensors"


class CheckpointError(RuntimeError):
    """A checkpoint is missing, damaged, or not what was asked for."""


def save_policy(policy: DiffusionPolicy, folder: Path, half: bool = False) -> None:
    """Write a policy so that a kill at any moment leaves the old or the new files, never half of one.

    Args:
        policy: to write. folder: where to.
        half: store the weights of the network and the image encoders in 16 bits, for half the space. They are read
            into float32 again, rounded by up to a two thousandth; normalizers, and the policy in memory, stay as they
            are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in policy.state_dict().items()}
    for name in dict(policy.named_parameters()) if half else ():
        weights[name] = weights[name].half()
    partial = folder / (WEIGHTS + ".partial")
    save_file(weights, partial)
    partial.replace(folder / WEIGHTS)
    partial = folder / (CONFIG + ".partial")
    partial.write_text(json.dumps(policy.config.to_dict(), indent=2) + "\n")
    partial.replace(folder / CONFIG)


def is_own(path: Path) -> bool:
    """Tell whether a folder holds a policy in this library's own format, damaged or not."""
    return (path / WEIGHTS).is_file() or (path / (WEIGHTS + ".partial")).is_file()


def read_config(folder: Path) -> PolicyConfig:
    """What a checkpoint is of, without its weights. Raises :class:`CheckpointError` as :func:`load_pretrained` does."""
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


def load_pretrained(path: str | Path, device: str | torch.device = "cpu", task: str | None = None) -> DiffusionPolicy:
    """Read a policy in this library's own format.

    Args:
        path: folder that holds ``config.json`` and ``policy.safetensors``.
        device: where to put the weights.
        task: refuse a checkpoint that was trained on another task.

    Raises:
        CheckpointError: the folder or a file is missing, the config cannot be read, the weights are truncated or do
            not fit the config, or the task is another one.
    """
    from specpolicy.policies.diffusion_policy import DiffusionPolicy

    folder = Path(path)
    config = read_config(folder)
    if task is not None and config.task != task:
        raise CheckpointError(
            f"{folder} is of task {config.task!r}, not {task!r}; choose another checkpoint, or task={config.task}"
        )
    try:
        policy = DiffusionPolicy(config)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / CONFIG} describes no policy that can be built: {error}") from error
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
