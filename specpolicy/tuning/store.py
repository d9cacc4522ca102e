"""Windows on disk: ``windows-<device>.json`` beside the checkpoint, and ``acceptance.json``, which they follow from.

Both hold an entry for each sampler. How far drafts are accepted depends on the policy, windows on the device as well.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from specpolicy.policies.checkpoint import companion
from specpolicy.speculative.sampler import SpeculativeSampler
from specpolicy.tuning.acceptance import AcceptanceProfile
from specpolicy.utils.digests import checkpoint_digest, note_input
from specpolicy.utils.errors import one_line
from specpolicy.utils.files import DAMAGED, atomic_path
from specpolicy.utils.provenance import cpu_model

FORMAT = 1


class WindowsError(RuntimeError):
    """Windows are missing, damaged, or of another policy."""


def device_name(device: torch.device | str) -> str:
    """What windows are kept for: the GPU's model, or the CPU's."""
    used = torch.device(device)
    name = torch.cuda.get_device_name(used) if used.type == "cuda" else f"cpu {cpu_model()}"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def windows_path(checkpoint: str | Path, device: torch.device | str) -> Path:
    """Where the windows of a checkpoint for a device lie."""
    return companion(checkpoint) / f"windows-{device_name(device)}.json"


def sampler_key(sampler: SpeculativeSampler) -> str:
    """What the windows of a sampler depend on, besides device and policy."""
    verifier, initial_guess = (
        "none" if part is None else type(part).__name__ for part in (sampler.verifier, sampler.initial_guess)
    )
    analytic = ", analytic noise" if sampler.process.analytic else ""
    return f"K={sampler.process.num_steps}{analytic}, {sampler.drafter.name}, {verifier}, initial guess {initial_guess}"


def save_windows(entry: dict[str, Any], key: str, checkpoint: str | Path, device: torch.device | str) -> Path:
    """Write the windows of one sampler, beside those of others; returns the path.

    Args:
        entry: ``windows`` (K whole numbers), and whatever tells where they come from, as plain JSON types.
        key: see :func:`sampler_key`.
        checkpoint: folder of the policy.
        device: that they were measured on.

    Returns:
        The path.
    """
    return _save(windows_path(checkpoint, device), entry, key, checkpoint, indent=1)


def has_windows(key: str, checkpoint: str | Path, device: torch.device | str) -> bool:
    """Tell whether there are windows of a sampler, of these weights.

    Args:
        key: see :func:`sampler_key`.
        checkpoint: folder of the policy.
        device: where it computes.

    Returns:
        Whether :func:`load_windows` finds them.

    Raises:
        WindowsError: the file is damaged.
    """
    path = windows_path(checkpoint, device)
    content = _read(path) if path.is_file() else {"checkpoint": "", "samplers": {}}
    return content["checkpoint"] == checkpoint_digest(checkpoint) and key in content["samplers"]


def load_windows(key: str, num_steps: int, checkpoint: str | Path, device: torch.device | str) -> list[int]:
    """Read the windows of a sampler.

    Raises:
        WindowsError: there are none for this sampler on this device, the file is damaged, or it is of other weights.
            The message names the command that makes them.
    """
    path = windows_path(checkpoint, device)
    command = f"run `specpolicy tune checkpoint={checkpoint} sampler=...` for it, or give a number as window"
    if not path.is_file():
        raise WindowsError(f"{checkpoint} has no windows for this device ({path.name}) and ({key}); {command}")
    content = _read(path)
    if content["checkpoint"] != checkpoint_digest(checkpoint):
        raise WindowsError(f"{path} is of another policy than {checkpoint}; {command}")
    if key not in content["samplers"]:
        known = "; ".join(f"({each})" for each in sorted(content["samplers"]))
        raise WindowsError(f"{path} has no windows for ({key}), only for {known}; {command}")
    entry = content["samplers"][key]
    windows = entry.get("windows") if isinstance(entry, dict) else None
    if not isinstance(windows, list) or len(windows) != num_steps or not all(_is_window(each) for each in windows):
        raise WindowsError(f"{path}: the windows for ({key}) are not {num_steps} whole numbers from 1 on; {command}")
    note_windows(path, key, windows)
    return windows


def note_windows(path: Path, key: str, windows: list[int]) -> None:
    """Tell that these windows decide what a sampler draws.

    Args:
        path: where they are kept.
        key: see :func:`sampler_key`.
        windows: K of them.
    """
    note_input(f"{path.name}: {key}", hashlib.sha256(json.dumps(windows).encode()).hexdigest())


def acceptance_path(checkpoint: str | Path) -> Path:
    """Where it is kept how far the drafts of a checkpoint's samplers are accepted."""
    return companion(checkpoint) / "acceptance.json"


def save_acceptance(profile: AcceptanceProfile, key: str, checkpoint: str | Path, about: dict[str, Any]) -> Path:
    """Write how far a sampler's drafts are accepted, which is the same on every device.

    Args:
        profile: of a sampler whose verifier goes step by step, see :func:`~specpolicy.tuning.acceptance.is_stepwise`.
        key: see :func:`sampler_key`.
        checkpoint: folder of the policy.
        about: where the observations come from, as plain JSON types.

    Returns:
        The path.
    """
    return _save(acceptance_path(checkpoint), {**about, **profile.to_dict()}, key, checkpoint, indent=None)


def load_acceptance(key: str, reach: Int[Tensor, " k"], checkpoint: str | Path) -> AcceptanceProfile | None:
    """Read what :func:`save_acceptance` wrote.

    Args:
        key: see :func:`sampler_key`.
        reach: steps that can be drafted from each position, shape ``(K,)``.
        checkpoint: folder of the policy.

    Returns:
        The profile; None if there is none of this sampler and these weights.

    Raises:
        WindowsError: the file is damaged.
    """
    path = acceptance_path(checkpoint)
    content = _read(path) if path.is_file() else None
    if content is None or content["checkpoint"] != checkpoint_digest(checkpoint) or key not in content["samplers"]:
        return None
    try:
        return AcceptanceProfile.from_dict(content["samplers"][key], reach)
    except DAMAGED as error:
        raise WindowsError(f"{path}: ({key}) cannot be read ({one_line(error, 300)}); {_AGAIN}") from error


_AGAIN = "remove it and run `specpolicy tune` again"


def _save(path: Path, entry: dict[str, Any], key: str, checkpoint: str | Path, indent: int | None) -> Path:
    """Write an entry beside those of the same weights."""
    digest = checkpoint_digest(checkpoint)
    content: dict[str, Any] = {"format": FORMAT, "checkpoint": digest, "samplers": {}}
    if path.exists():
        earlier = _read(path)
        content = earlier if earlier["checkpoint"] == digest else content
    content["samplers"][key] = entry
    path.parent.mkdir(exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=indent) + "\n", encoding="utf-8")
    return path


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT or not isinstance(content["samplers"], dict) or not content["checkpoint"]:
            raise KeyError(f"format {FORMAT}")
    except DAMAGED as error:
        raise WindowsError(f"{path} cannot be read ({one_line(error, 300)}); {_AGAIN}") from error
    return content


def _is_window(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 2**31
