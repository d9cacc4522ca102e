"""Foreign checkpoints for tests: the committed ones, variants of them, and files that must be refused."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from specpolicy.interop.checkpoint_files import plain_values, read_torch_archive

FIXTURES = Path(__file__).parent / "fixtures"
ROBOMIMIC = FIXTURES / "robomimic_image.pth"
TRANSFORMER = FIXTURES / "diffusion_policy_transformer.ckpt"
INPAINTING = FIXTURES / "diffusion_policy_inpainting.ckpt"
LEROBOT = FIXTURES / "lerobot"


class Payload:
    """Pickles to a call of ``os.system``."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.witness}",)


class Evaluated:
    """Pickles to a call of ``eval``."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (f"open({str(self.witness)!r}, 'w').close()",)


def archive(path: Path, program: bytes, compress: int = zipfile.ZIP_STORED) -> Path:
    """Write a zip file as torch does, around any pickle."""
    with zipfile.ZipFile(path, "w", compress) as file:
        file.writestr("archive/data.pkl", program)
        file.writestr("archive/byteorder", "little")
        file.writestr("archive/version", "3\n")
    return path


def pickled(thing: Any) -> bytes:
    """Pickle with the protocol that torch uses."""
    return pickle.dumps(thing, protocol=2)


def changed_robomimic(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Write a variant of robomimic's checkpoint; ``config`` is handed over parsed."""
    payload = dict(read_torch_archive(ROBOMIMIC))
    payload["config"] = json.loads(payload["config"])
    change(payload)
    if isinstance(payload.get("config"), dict):
        payload["config"] = json.dumps(payload["config"])
    torch.save(payload, path)
    return path


def changed_stanford(source: Path, path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Write a variant of a checkpoint of diffusion_policy, its configuration as plain values."""
    payload = dict(read_torch_archive(source))
    payload["cfg"] = plain_values(payload["cfg"])
    change(payload)
    torch.save(payload, path)
    return path


def changed_lerobot(
    folder: Path,
    config: Callable[[dict[str, Any]], None] | None = None,
    weights: Callable[[dict[str, torch.Tensor]], None] | None = None,
    preprocessor: Callable[[dict[str, Any]], None] | None = None,
    postprocessor: Callable[[dict[str, Any]], None] | None = None,
    statistics: Callable[[dict[str, torch.Tensor]], None] | None = None,
) -> Path:
    """Write a variant of LeRobot's folder."""
    shutil.copytree(LEROBOT, folder)
    for name, change in (
        ("config.json", config),
        ("policy_preprocessor.json", preprocessor),
        ("policy_postprocessor.json", postprocessor),
    ):
        if change is not None:
            values = json.loads((folder / name).read_text())
            change(values)
            (folder / name).write_text(json.dumps(values))
    if weights is not None:
        change_tensors(folder / "model.safetensors", weights)
    if statistics is not None:
        for file in folder.glob("policy_*.safetensors"):
            change_tensors(file, statistics)
    return folder


def change_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Change a safetensors file."""
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
