"""Tell by its content which package wrote a checkpoint, and read it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from specpolicy.interop.checkpoint_files import listed, read_torch_archive, refuse
from specpolicy.interop.diffusion_policy_checkpoint import is_diffusion_policy, read_diffusion_policy
from specpolicy.interop.foreign import ForeignPolicy
from specpolicy.interop.lerobot_checkpoint import CONFIG, WEIGHTS, is_lerobot, read_lerobot
from specpolicy.interop.robomimic_checkpoint import is_robomimic, read_robomimic

_RUN = "pretrained_model"
"""Name of the folder with a policy inside a checkpoint of LeRobot's training."""


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
        refuse(path, "there is no such file or folder; expected a policy's folder, a .pth of robomimic or a .ckpt of "
                     "diffusion_policy")  # fmt: skip
    payload = read_torch_archive(path)
    if is_robomimic(payload):
        return read_robomimic(path, payload)
    if is_diffusion_policy(payload):
        return read_diffusion_policy(path, payload)
    refuse(path, f"{_description(payload)}; checkpoints of robomimic hold model, config and algo_name, those of "
                 "diffusion_policy cfg and state_dicts")  # fmt: skip


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
    there = listed(sorted(entry.name for entry in folder.iterdir()), 6) or "nothing"
    refuse(folder, f"no policy is in this folder; expected config.json with policy.safetensors (this library's) or "
                   f"{WEIGHTS} (LeRobot's); there is {there}")  # fmt: skip


def _description(payload: Any) -> str:
    """Say what was found in an archive that is no checkpoint of a known layout."""
    if not isinstance(payload, Mapping):
        return f"holds a {type(payload).__name__}"
    if any(str(key).startswith("pytorch-lightning") for key in payload):
        return "is a checkpoint of PyTorch Lightning, whose policies are not known here"
    if payload and all(hasattr(value, "shape") for value in payload.values()):
        return "is a bare state dict: without its configuration, normalization and slice a policy cannot be played"
    return f"holds {listed(payload, 8) or 'nothing'}"
