"""The clock around one call of a policy: it stops when the device has."""

from __future__ import annotations

import time

import torch

from .protocols import ActionChunk, Observation, Policy, Sampler


def device_of(policy: Policy, device: torch.device | str | None = None) -> torch.device:
    """``device`` if given, else what ``policy.device`` says, else the CPU."""
    return torch.device(device if device is not None else getattr(policy, "device", "cpu"))


def timed_act(
    policy: Policy, sampler: Sampler, observation: Observation, generator: torch.Generator, device: torch.device
) -> tuple[int, ActionChunk]:
    """Nanoseconds that ``policy.act`` takes for one observation, device included, and what it gives."""
    _synchronize(device)
    begin = time.perf_counter_ns()
    chunk = policy.act(observation, sampler, [generator])
    _synchronize(device)
    return time.perf_counter_ns() - begin, chunk


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
