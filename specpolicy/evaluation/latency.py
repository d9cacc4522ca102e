"""Latency of an action chunk, measured apart from success and side by side for all samplers.

One observation at a time, as on a robot; warm-up calls are not counted; the clock stops when the device has. Samplers
take turns on the same recorded observations with the same random streams, in an order shuffled each round, so that
drift and neighbours of the machine hit all of them alike and ratios are paired.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress

from specpolicy.control.inference import episode_generator, steady_state
from specpolicy.control.latency_log import CallLog, LatencyRun
from specpolicy.policies.protocols import (
    ChunkPolicy,
    ChunkSampler,
    Observation,
    PredictedChunk,
    SampleCost,
    reduced_precision,
)


@runtime_checkable
class Resettable(Protocol):
    """A policy that remembers something of its last chunk, such as encoded frames."""

    def reset(self) -> None:
        """Forget it."""
        ...


def device_of(policy: ChunkPolicy) -> torch.device:
    """Tell where a policy computes: what ``policy.device`` says, else the CPU."""
    return torch.device(getattr(policy, "device", "cpu"))


def timed_act(
    policy: ChunkPolicy,
    sampler: ChunkSampler,
    observation: Observation,
    generator: torch.Generator,
    device: torch.device,
) -> tuple[int, PredictedChunk]:
    """Time ``policy.predict_action`` on one observation, device included.

    Images are encoded in every call, as for a robot that plays some actions between two chunks.

    Args:
        policy: whom to ask.
        sampler: whom to ask it with.
        observation: arrays of shape ``(1, n_obs_steps, dim)``.
        generator: of the policy's random numbers.
        device: where the policy computes.

    Returns:
        Nanoseconds, and the chunk.
    """
    if isinstance(policy, Resettable):
        policy.reset()
    _synchronize(device)
    begin = time.perf_counter_ns()
    chunk = policy.predict_action(observation, sampler, [generator])
    _synchronize(device)
    return time.perf_counter_ns() - begin, chunk


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_latency(
    policy: ChunkPolicy,
    samplers: Mapping[str, ChunkSampler],
    observations: Sequence[Observation],
    *,
    calls: int = 200,
    warmup: int = 5,
    seed: int = 0,
    threads: int | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> LatencyRun:
    """Time ``policy.predict_action`` at batch size 1 for several samplers in turn.

    Samplers that start from the chunk before are timed with one, as they run in all of an episode but its first chunk.

    Args:
        policy: whom to ask.
        samplers: by name.
        observations: recorded ones (see :class:`ObservationRecorder`), arrays of shape ``(1, n_obs_steps, dim)``.
        calls: counted calls of each sampler; p99 takes at least 100.
        warmup: calls of each sampler before these.
        seed: of the random streams and of the order of turns.
        threads: torch's number of threads meanwhile; by default as it is.
        provenance: kept with the result.

    Returns:
        The calls of all samplers.

    Raises:
        ValueError: nothing to measure, or observations that are not single.
    """
    if not samplers or not observations or calls < 1 or warmup < 0:
        raise ValueError("measuring takes at least one sampler, one observation and one call")
    for observation in observations:
        if any(len(part) != 1 for part in observation.values()):
            raise ValueError(
                "latency is measured one observation at a time: arrays of shape (1, horizon, dim) expected"
            )
    used = device_of(policy)
    ready = {name: steady_state(policy, sampler, observations[0]) for name, sampler in samplers.items()}
    logs = {
        name: CallLog(exact=bool(sampler.exact), precision=reduced_precision(sampler))
        for name, sampler in samplers.items()
    }
    turns = np.random.default_rng(seed)
    names = list(samplers)
    # No background refresh: its thread would take the interpreter from the call being timed.
    quiet = not sys.stderr.isatty()
    bar = Progress(console=Console(stderr=True), auto_refresh=False, disable=quiet)
    with bar, _threads(threads), _without_garbage_collection():
        task = bar.add_task("latency", total=(warmup + calls) * len(names))
        for call in range(-warmup, calls):
            observation = observations[call % len(observations)]
            for index in turns.permutation(len(names)):
                name = names[index]
                generator = episode_generator(seed, call + warmup)
                nanoseconds, chunk = timed_act(policy, ready[name], observation, generator, used)
                if call >= 0:
                    logs[name] = _noted(logs[name], nanoseconds, chunk.result)
                bar.update(task, advance=1)
            bar.refresh()
        used_threads = torch.get_num_threads()
    return LatencyRun(logs, str(used), used_threads, warmup, len(observations), dict(provenance or {}))


def _noted(log: CallLog, nanoseconds: int, account: SampleCost) -> CallLog:
    """Extend the log by one call; the lists are extended in place."""
    log.nanoseconds.append(nanoseconds)
    log.passes.append(int(account.passes[0]))
    log.evaluations.append(int(account.evaluations[0]))
    if account.start is None or account.proposed is None or account.accepted is None:
        return log
    rounds = torch.stack((account.start[:, 0], account.accepted[:, 0], account.proposed[:, 0]), dim=1)
    played = [[int(number) for number in numbers] for numbers in rounds.tolist() if min(numbers) >= 0]
    return replace(
        log,
        rounds=[*(log.rounds or []), [numbers[:2] for numbers in played]],
        drafted=[*(log.drafted or []), [numbers[2] for numbers in played]],
    )


@contextmanager
def _threads(threads: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
