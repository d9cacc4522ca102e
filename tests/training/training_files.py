"""A small demonstration file, and a policy and settings that train on it within seconds."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from specpolicy.policies.config import PolicyConfig
from specpolicy.training.loop import TrainingSettings

KEYS = {"object": 3, "eef": 2}


def write_file(path: Path, demos: int = 6, length: int = 30, mask: bool = True) -> Path:
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for i in range(demos):
            group = file.create_group(f"data/demo_{i}")
            group["actions"] = np.tanh(rng.normal(size=(length + i, 4)))
            for key, dim in KEYS.items():
                group[f"obs/{key}"] = rng.normal(size=(length + i, dim))
        if mask:
            file["mask/valid"] = np.array([b"demo_1", b"demo_3"])
    return path


def config() -> PolicyConfig:
    return PolicyConfig(
        task="toy",
        observations=KEYS,
        action_dim=4,
        network={"name": "unet1d", "channels": [8, 16], "timestep_dim": 8},
        scheduler={"num_train_timesteps": 20, "beta_schedule": "squaredcos_cap_v2"},
    )


def settings(**changes: object) -> TrainingSettings:
    return TrainingSettings(**({"steps": 30, "batch_size": 16, "save_every": 10, "warmup_steps": 5} | changes))  # type: ignore[arg-type]
