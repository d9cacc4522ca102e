"""What the benchmarks share: ways of doing something take turns, and results are kept with where they come from."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from specpolicy.evaluation.results import read_observations
from specpolicy.evaluation.statistics import ratio_of_medians
from specpolicy.policies.diffusion_policy import DiffusionPolicy
from specpolicy.utils.files import atomic_path
from specpolicy.utils.progress import progress_bar
from specpolicy.utils.provenance import collect_provenance

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def take_turns(
    ways: Mapping[str, Callable[[int], Any]],
    repeats: int,
    device: torch.device,
    warmup: int = 2,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Milliseconds of each call of each way, by a clock in seconds.

    Every round calls all ways once, in shuffled order and with the round's number, so that what disturbs the machine
    hits all of them alike and ratios are paired.
    """
    taken: dict[str, list[float]] = {name: [] for name in ways}
    turns, names = np.random.default_rng(seed), list(ways)
    with progress_bar("timed rounds", repeats + warmup) as bar:
        for number in range(-warmup, repeats):
            for index in turns.permutation(len(names)):
                synchronize(device)
                begin = clock()
                ways[names[index]](number + warmup)
                synchronize(device)
                if number >= 0:
                    taken[names[index]].append(1e3 * (clock() - begin))
            bar.advance()
    return taken


def synchronize(device: torch.device) -> None:
    """Wait until the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ratio(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    """Of medians, with its bootstrap interval."""
    return ratio_of_medians(above, below)._asdict()


def shown(estimate: Mapping[str, float], digits: int = 2) -> str:
    """An estimate with its interval."""
    value, low, high = (f"{estimate[name]:.{digits}f}" for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def conditions(policy: DiffusionPolicy, count: int) -> torch.Tensor:
    """Conditions of recorded observations, spread over the record and repeated if it has fewer, ``(count, c)``."""
    name = policy.folder.name if policy.folder is not None else ""
    recorded = read_observations(RESULTS / name)
    if not recorded:
        raise SystemExit(f"no observations in {RESULTS / name}: run an evaluation of {name} first")
    chosen = [recorded[i % len(recorded)] for i in np.linspace(0, len(recorded) - 1, count).astype(int)]
    with torch.inference_mode():
        return policy.encode({key: np.concatenate([each[key] for each in chosen]) for key in chosen[0]}).clone()


def parameters(policy: torch.nn.Module) -> int:
    """How many numbers the network has."""
    return sum(each.numel() for each in policy.parameters())


def device_name(device: torch.device) -> str:
    """As people call it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def keep(folder: str, name: str, content: Mapping[str, Any], table: Sequence[str], device: torch.device) -> None:
    """Write ``RESULTS/folder/name.json`` and ``.md``, each at once or not at all."""
    provenance = {
        **collect_provenance(device=device),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
    }
    (RESULTS / folder).mkdir(parents=True, exist_ok=True)
    for suffix, text in (
        (".json", json.dumps({**content, "provenance": provenance}, indent=1)),
        (".md", "\n".join(table)),
    ):
        with atomic_path(RESULTS / folder / f"{name}{suffix}") as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    print("\n".join(table))
