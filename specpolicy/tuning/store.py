"""Tuned windows on disk: ``windows-<device>.json`` beside the checkpoint, an entry for each sampler."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import torch

from specpolicy.policies.checkpoint import checkpoint_digest, companion
from specpolicy.speculative.sampler import SpeculativeSampler
from specpolicy.utils.digests import note_input
from specpolicy.utils.errors import one_line
from specpolicy.utils.files import DAMAGED, atomic_path
from specpolicy.utils.machine import cpu_model

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
    path, digest = windows_path(checkpoint, device), checkpoint_digest(checkpoint)
    content: dict[str, Any] = {"format": FORMAT, "checkpoint": digest, "samplers": {}}
    if path.exists():
        earlier = _read(path)
        content = earlier if earlier["checkpoint"] == digest else content
    content["samplers"][key] = entry
    path.parent.mkdir(exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path


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
    note_input(f"{path.name}: {key}", hashlib.sha256(json.dumps(windows).encode()).hexdigest())
    return windows


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT or not isinstance(content["samplers"], dict) or not content["checkpoint"]:
            raise KeyError(f"format {FORMAT}")
    except DAMAGED as error:
        raise WindowsError(
            f"{path} cannot be read ({one_line(error, 300)}); remove it and run `specpolicy tune` again"
        ) from error
    return content


def _is_window(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 2**31
