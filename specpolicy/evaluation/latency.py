"""Latency of an action chunk, measured apart from success and side by side for all samplers.

One observation at a time, as on a robot; warm-up calls are not counted; the clock stops when the device has. Samplers
take turns on the same recorded observations with the same random streams, in an order shuffled each round, so that
drift and neighbours of the machine hit all of them alike and ratios are paired.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress

from specpolicy.control.inference import episode_generator
from specpolicy.policies.protocols import ChunkPolicy, ChunkSampler, Observation, PredictedChunk, SampleCost
from specpolicy.utils.files import atomic_path


@runtime_checkable
class Resettable(Protocol):
    """A policy that remembers something of its last chunk, such as encoded frames."""

    def reset(self) -> None:
        """Forget it."""
        ...


def device_of(policy: ChunkPolicy, device: torch.device | str | None = None) -> torch.device:
    """Choose where a policy computes: ``device`` if given, else what ``policy.device`` says, else the CPU.

    Args:
        policy: the policy.
        device: where it is said to compute.
    """
    return torch.device(device if device is not None else getattr(policy, "device", "cpu"))


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


FORMAT = 1


def _check_numbers(what: str, values: Any, least: int = 0) -> None:
    if not isinstance(values, list) or not all(type(value) is int and value >= least for value in values):
        raise TypeError(f"{what} must be whole numbers from {least} on")


@dataclass(frozen=True)
class CallLog:
    """Timed calls of one sampler, in order; entry ``i`` of every sampler saw the same observation and noise.

    Attributes:
        exact: whether the sampler's distribution is the policy's own.
        nanoseconds: duration of each call.
        passes: sequential network evaluations of each call.
        evaluations: all network evaluations of each call, batched ones counted one by one.
        rounds: for each call ``(position in the chain, drafted steps accepted)`` of each round; ``None`` for samplers
            without rounds.
        drafted: for each call how many steps each of these rounds drafted; ``None`` without rounds, and in older files.
    """

    exact: bool
    nanoseconds: list[int] = field(default_factory=list)
    passes: list[int] = field(default_factory=list)
    evaluations: list[int] = field(default_factory=list)
    rounds: list[list[list[int]]] | None = None
    drafted: list[list[int]] | None = None


@dataclass(frozen=True)
class LatencyRun:
    """Timed calls of all samplers, and under which conditions.

    Attributes:
        samplers: calls by sampler, in the order in which the samplers were given.
        device: where the policy computed.
        threads: torch's threads.
        warmup: calls of each sampler that were not counted.
        observations: distinct observations in turn.
        provenance: see :func:`collect_provenance`.
    """

    samplers: dict[str, CallLog]
    device: str
    threads: int
    warmup: int
    observations: int
    provenance: dict[str, Any] = field(default_factory=dict)

    def write(self, path: str | Path) -> None:
        """Write as JSON, completely or not at all.

        Args:
            path: the file.
        """
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(Path(path)) as temporary:
            temporary.write_text(json.dumps({"format": FORMAT, **asdict(self)}) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: str | Path) -> LatencyRun:
        """Read what :meth:`write` wrote.

        Args:
            path: the file.

        Raises:
            ValueError: it is something else.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            if content.pop("format") != FORMAT:
                raise KeyError("another format")
            samplers = {name: CallLog(**log) for name, log in content.pop("samplers").items()}
            run = cls(samplers=samplers, **content)
            run._check()
            return run
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"{path} is not a latency measurement of format {FORMAT} ({reason}): delete it and measure again"
            ) from error

    def _check(self) -> None:
        """Raise ``ValueError`` or ``TypeError`` where a field is not what it should be."""
        if not isinstance(self.device, str) or not isinstance(self.provenance, dict):
            raise TypeError("device must be a text and provenance an object")
        for number in (self.threads, self.warmup, self.observations):
            _check_numbers("threads, warmup, observations", [number])
        for name, log in self.samplers.items():
            if not isinstance(log.exact, bool):
                raise TypeError(f"{name}: exact must be true or false")
            _check_numbers(f"{name}: nanoseconds", log.nanoseconds, least=1)
            _check_numbers(f"{name}: passes", log.passes)
            _check_numbers(f"{name}: evaluations", log.evaluations)
            rounds = log.rounds or []
            for each in (one for call in rounds for one in call):
                _check_numbers(f"{name}: rounds", each)
                if len(each) != 2:
                    raise ValueError(f"{name}: a round has a start and a number of accepted steps")
            for drafted in log.drafted or []:
                _check_numbers(f"{name}: drafted", drafted)
            if log.drafted is not None and [len(each) for each in log.drafted] != [len(call) for call in rounds]:
                raise ValueError(f"{name}: as many drafts as rounds are expected")


def measure_latency(
    policy: ChunkPolicy,
    samplers: Mapping[str, ChunkSampler],
    observations: Sequence[Observation],
    *,
    calls: int = 200,
    warmup: int = 5,
    seed: int = 0,
    device: torch.device | str | None = None,
    threads: int | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> LatencyRun:
    """Time ``policy.predict_action`` at batch size 1 for several samplers in turn.

    Args:
        policy: whom to ask.
        samplers: by name.
        observations: recorded ones (see :class:`ObservationRecorder`), arrays of shape ``(1, n_obs_steps, dim)``.
        calls: counted calls of each sampler; p99 takes at least 100.
        warmup: calls of each sampler before these.
        seed: of the random streams and of the order of turns.
        device: where the policy computes; by default what ``policy.device`` says, else the CPU.
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
    used = device_of(policy, device)
    logs = {name: CallLog(exact=bool(sampler.exact)) for name, sampler in samplers.items()}
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
                nanoseconds, chunk = timed_act(policy, samplers[name], observation, generator, used)
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
