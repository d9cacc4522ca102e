"""Policies on disk: ``config.json`` beside ``policy.safetensors``; never pickle."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from specpolicy.policies.config import PolicyConfig
from specpolicy.utils.diffusers_schedulers import DDIMScheduler, DDPMScheduler
from specpolicy.utils.digests import DEMONSTRATIONS
from specpolicy.utils.errors import one_line
from specpolicy.utils.files import DAMAGED, atomic_path

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
    """Write the seeds of the demonstrations into a checkpoint's folder, at once or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / DEMONSTRATIONS) as path:
        path.write_text(json.dumps({"seeds": sorted(set(seeds))}) + "\n", encoding="utf-8")


def read_seen_seeds(folder: Path) -> frozenset[int]:
    """Read the seeds that a checkpoint was trained on.

    Args:
        folder: the checkpoint.

    Returns:
        The seeds; empty where none are on record, as for human demonstrations.

    Raises:
        CheckpointError: the record cannot be read.
    """
    path = folder / DEMONSTRATIONS
    if not path.is_file():
        return frozenset()
    try:
        return frozenset(int(seed) for seed in json.loads(path.read_text(encoding="utf-8"))["seeds"])
    except DAMAGED as error:
        raise CheckpointError(
            f"{path} cannot be read ({one_line(error, 300)}); copy it again, or train again"
        ) from error


CONFIG = "config.json"
WEIGHTS = "policy.safetensors"
_DIGEST = "sha256"  # entry of the weights file's metadata
_KINDS = ("F16", "BF16", "F32", "F64", "I64")


class CheckpointError(RuntimeError):
    """A checkpoint is missing, damaged, or not what was asked for."""


def write_checkpoint(folder: Path, config: PolicyConfig, weights: Mapping[str, Tensor]) -> None:
    """Write a policy so that a kill at any moment leaves the old or the new files, never half of one.

    Args:
        folder: where to; it is made if need be.
        config: what the policy is.
        weights: contiguous tensors on the CPU, by name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(weights, folder / WEIGHTS)
    with atomic_path(folder / CONFIG) as temporary:
        temporary.write_text(json.dumps(config.to_dict(), indent=2) + "\n", encoding="utf-8")


def is_own(path: Path) -> bool:
    """Tell whether a folder holds a policy in this library's own format, damaged or not."""
    return (path / WEIGHTS).is_file() or (path / (WEIGHTS + ".partial")).is_file()


def write_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors with their digest, at once or not at all.

    Args:
        weights: contiguous tensors on the CPU, by name.
        path: the safetensors file.
    """
    with atomic_path(path) as temporary:
        save_file(dict(weights), temporary, {_DIGEST: weights_digest(weights)})


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """Compute the SHA-256 over names, types, shapes and content of tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_config(folder: str | Path) -> PolicyConfig:
    """Read what a checkpoint is of, without its weights.

    Args:
        folder: holds ``config.json`` and ``policy.safetensors``.

    Raises:
        CheckpointError: a file is missing, or the configuration cannot be read.
    """
    folder = Path(folder)
    for file in (folder / CONFIG, folder / WEIGHTS):
        if not file.is_file():
            raise CheckpointError(
                f"no checkpoint at {folder}: {file.name} is missing; expected a folder with {CONFIG} and {WEIGHTS}, "
                "as written by `specpolicy train`"
            )
    try:
        return PolicyConfig.from_dict(json.loads((folder / CONFIG).read_text(encoding="utf-8")))
    except DAMAGED as error:
        raise CheckpointError(f"{folder / CONFIG} cannot be read: {one_line(error, 300)}") from error


def read_checkpoint(folder: Path, build: Callable[[PolicyConfig], Any], task: str | None = None) -> Any:
    """Read a policy in this library's own format.

    The weights' names, shapes and digest are compared before the network is allocated; nothing in a checkpoint is
    executed, and nothing is looked for elsewhere.

    Args:
        folder: holds ``config.json`` and ``policy.safetensors``.
        build: makes a policy with fresh weights from its configuration.
        task: refuse a checkpoint that was trained on another task.

    Returns:
        What ``build`` makes, with these weights, in float32.

    Raises:
        CheckpointError: the folder or a file is missing, the config cannot be read or describes no policy, the weights
            are damaged or do not fit the config, or the task is another one.
    """
    config = read_config(folder)
    if task is not None and config.task != task:
        raise CheckpointError(
            f"{folder} is of task {config.task!r}, not {task!r}; choose another checkpoint, or task={config.task}"
        )
    shapes = _read_shapes(folder / WEIGHTS)
    deep = [f"network.{key}" for key, value in config.network.items() if key in _DEPTHS and _depth(value) > len(shapes)]
    if deep:
        raise CheckpointError(
            f"{folder / WEIGHTS} does not fit {CONFIG}: {deep[0]} is more than its {len(shapes)} arrays"
        )
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in _build(folder, config, build).state_dict().items()}
    if shapes != expected:
        raise CheckpointError(f"{folder / WEIGHTS} does not fit {CONFIG}: {_difference(shapes, expected)}")
    weights = _read_weights(folder / WEIGHTS)
    policy = _build(folder, config, build)
    policy.load_state_dict(weights)
    return policy


_PREDICTIONS = ("epsilon", "sample", "v_prediction")
_DEPTHS = ("layers", "blocks", "encoder_layers", "channels")  # arguments that say how many arrays there are


def _scheduler_keys() -> set[str]:
    return {key for each in (DDPMScheduler, DDIMScheduler) for key in inspect.signature(each.__init__).parameters}


def _depth(value: Any) -> int:
    return len(value) if isinstance(value, list) else value if isinstance(value, int) else 0


def _build(folder: Path, config: PolicyConfig, build: Callable[[PolicyConfig], Any]) -> Any:
    """Build the network and the scheduler that a configuration describes."""
    try:
        policy = build(config)
        # On the device ``meta`` the scheduler's arithmetic would load torch's compiler, 3 s, and compute nothing.
        levels = None if policy.device.type == "meta" else policy.scheduler.alphas_cumprod
    except Exception as error:  # whatever torch and diffusers say of hostile arguments
        raise CheckpointError(
            f"{folder / CONFIG} describes no policy that can be built: {one_line(error, 300)}"
        ) from error
    if unknown := [key for key in config.scheduler if not key.startswith("_") and key not in _scheduler_keys()]:
        raise CheckpointError(f"{folder / CONFIG}: scheduler.{unknown[0]} is no setting of DDPMScheduler")
    check = config.scheduler.get("prediction_type", "epsilon"), config.scheduler.get("variance_type", "fixed_small")
    if check[0] not in _PREDICTIONS or str(check[1]).startswith("learned"):
        raise CheckpointError(
            f"{folder / CONFIG}: scheduler.prediction_type={check[0]!r}, variance_type={check[1]!r}; expected one of "
            f"{', '.join(_PREDICTIONS)}, and a fixed variance"
        )
    if levels is not None and not (len(levels) and bool(((levels > 0) & (levels <= 1)).all())):
        raise CheckpointError(f"{folder / CONFIG}: the scheduler's noise levels are not between 0 and 1")
    return policy


def _read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Read names and shapes from a file's header."""
    try:
        with safe_open(path, framework="pt") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            kinds = {name: str(part.get_dtype()) for name, part in parts.items()}
            shapes = {name: tuple(part.get_shape()) for name, part in parts.items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, error) from error
    if odd := [f"{name} ({kind})" for name, kind in kinds.items() if kind not in _KINDS]:
        raise CheckpointError(f"{path}: {odd[0]} is no array of weights; expected one of {', '.join(_KINDS)}")
    return shapes


def _read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file and compare their digest."""
    try:
        with safe_open(path, framework="pt") as file:
            noted = (file.metadata() or {}).get(_DIGEST)
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, error) from error
    if noted is None:
        raise CheckpointError(f"{path} carries no digest of its weights; write it with DiffusionPolicy.save_pretrained")
    if noted != weights_digest(weights):
        raise CheckpointError(f"{path} is damaged: its weights are not those of its digest; copy or train it again")
    if bad := [name for name, tensor in weights.items() if not tensor.isfinite().all()]:
        raise CheckpointError(f"{path}: {bad[0]} contains NaN or infinity; train it again")
    return weights


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path} is damaged or truncated ({one_line(error, 300)}); copy or train it again")


def _difference(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> str:
    """Say in what the arrays of a file differ from those of a network."""
    if missing := sorted(expected.keys() - found.keys()):
        return f"it lacks {missing[0]}" + (f" and {len(missing) - 1} more" if missing[1:] else "")
    if further := sorted(found.keys() - expected.keys()):
        return f"it has {further[0]}, which the network does not" + (
            f", and {len(further) - 1} more" if further[1:] else ""
        )
    name = next(name for name in expected if found[name] != expected[name])
    return f"{name} has shape {found[name]}; expected {expected[name]}"
