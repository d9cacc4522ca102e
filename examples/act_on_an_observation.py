"""One observation of the Square task, one action chunk, three samplers. Needs the extra ``sim``."""

from __future__ import annotations

import time

import gymnasium
import numpy as np
import specpolicy_envs  # noqa: F401  (registers the environment)
import torch

import specpolicy


def main() -> None:
    policy = specpolicy.load_policy("checkpoints/square")
    env = gymnasium.make("specpolicy/Square-v0")
    observation, _ = env.reset(seed=0)
    history = {name: np.stack([value, value])[None] for name, value in observation.items()}  # two steps, batch of one
    for name in ("ddpm", "ddim10", "free_block"):
        sampler = specpolicy.samplers.load(name, policy)
        kind = "exact" if sampler.exact else "approximate"
        policy.predict_action(history, sampler)  # warm-up
        start = time.perf_counter()
        chunk = policy.predict_action(history, sampler, torch.Generator().manual_seed(0))
        milliseconds = 1e3 * (time.perf_counter() - start)
        passes = int(chunk.result.passes)
        print(
            f"{name:10s} {kind:11s} {passes:4d} evaluations {milliseconds:7.0f} ms, first action {chunk.actions[0, 0]}"
        )
    env.close()


if __name__ == "__main__":
    main()
