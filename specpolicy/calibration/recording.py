"""Recording a policy's sequential chains, a part at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from specpolicy.atomic import atomic_path
from specpolicy.policies import DiffusionPolicy
from specpolicy.progress import progress_bar
from specpolicy.speculative import ReverseProcess, SequentialSampler

from .calibration import CalibrationError
from .chains import RecordedChains
from .sources import Histories

PART = 50
"""Chains that share a pass, a stream of random numbers and a file."""

RECORDING = "recording.json"


def record_chains(
    policy: DiffusionPolicy,
    process: ReverseProcess,
    histories: Histories,
    folder: Path,
    *,
    chains: int,
    seed: int = 0,
    identity: dict[str, Any] | None = None,
) -> RecordedChains:
    """Sequential chains at histories drawn by lot, written into ``folder`` as they are made.

    What an earlier, interrupted call has written is not made again. More chains than an earlier call go on from its
    own.

    Args:
        policy: whose chains. process: of which steps.
        histories: to condition on. Without as many as chains, each is taken several times.
        folder: for the parts.
        chains: how many; rounded up to whole parts of 50.
        seed: of the lot and of the chains' noise.
        identity: what tells the policy from another one; kept to refuse parts of another one.

    Raises:
        CalibrationError: the folder holds parts of another policy, histories, seed or chain.
    """
    _claim(folder, {"steps": process.num_steps, "seed": seed, "origin": histories.origin, **(identity or {})})
    parts = -(-chains // PART)
    order = _order(len(histories.observations), parts * PART, seed)
    files = [folder / f"chains-{part:05d}.safetensors" for part in range(parts)]
    done = [file.exists() for file in files]
    with progress_bar("recording chains", parts * PART, completed=sum(done) * PART) as bar:
        for part, file in enumerate(files):
            if done[part]:
                continue
            which = order[part * PART : (part + 1) * PART]
            recorded = _record(policy, process, histories, which, torch.Generator().manual_seed(seed * 100_003 + part))
            with atomic_path(file) as temporary:
                temporary.write_bytes(save(recorded))
            bar.advance(PART)
    return _joined([_read(file) for file in files])


def _record(
    policy: DiffusionPolicy,
    process: ReverseProcess,
    histories: Histories,
    which: Int[Tensor, " n"],
    generator: torch.Generator,
) -> dict[str, Tensor]:
    cond = histories.conditions(policy, which)
    noise = torch.randn(len(which), *policy.event_shape, generator=generator).to(policy.device)
    result = SequentialSampler(process)(policy, noise, cond=cond, generator=generator, record=True)
    if result.trajectory is None or result.x0 is None:  # record=True gives both; for the type checker
        raise CalibrationError("the sampler recorded nothing")
    return {
        "states": result.trajectory.flatten(2).cpu(),
        "x0": result.x0.flatten(2).cpu(),
        "cond": cond.cpu(),
        "group": torch.from_numpy(histories.group)[which].long(),
    }


def _order(available: int, wanted: int, seed: int) -> Int[Tensor, " m"]:
    """Which history each chain gets: all in random order, again and again. A longer list begins as a shorter one."""
    rounds = -(-wanted // available)
    generator = torch.Generator().manual_seed(seed)
    return torch.cat([torch.randperm(available, generator=generator) for _ in range(rounds)])[:wanted]


def _claim(folder: Path, identity: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path, said = folder / RECORDING, json.dumps(identity, indent=2, sort_keys=True) + "\n"
    if not path.exists():
        with atomic_path(path) as temporary:
            temporary.write_text(said, encoding="utf-8")
    elif path.read_text(encoding="utf-8") != said:
        raise CalibrationError(
            f"{folder} holds chains of another policy, other observations, another seed or number of steps "
            f"({RECORDING} says which); choose another out=, or remove it"
        )


def _read(file: Path) -> RecordedChains:
    try:
        return RecordedChains(**load_file(file))
    except (SafetensorError, TypeError) as error:
        raise CalibrationError(f"{file} is damaged ({error}); remove it and run the same command again") from error


def _joined(parts: list[RecordedChains]) -> RecordedChains:
    return RecordedChains(
        torch.cat([part.states for part in parts], dim=1),
        torch.cat([part.x0 for part in parts], dim=1),
        torch.cat([part.cond for part in parts]),
        torch.cat([part.group for part in parts]),
    )
