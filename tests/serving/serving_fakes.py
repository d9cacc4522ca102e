"""Engines whose answers betray whose question they belong to, and servers to put them into."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from specpolicy.control.inference import EpisodeState, InferenceKind, InferenceRequest, InferenceResult
from specpolicy.policies.config import PolicyConfig
from specpolicy.policies.diffusion_policy import DiffusionPolicy
from specpolicy.policies.observations import ObservationSpec
from specpolicy.policies.prefix import PrefixError
from specpolicy.serving.auth import Token
from specpolicy.serving.batching import Engine, Job, SharedRounds, error_for_client
from specpolicy.serving.server import PolicyServer, ServerSettings

SPEC = ObservationSpec({"pose": 3, "grip": 1}, horizon=2)
BREAKING = -13.0
"""An observation that breaks the echo engine."""
SECRET = "correct-horse-battery-staple"


def observation(value: float = 0.0) -> dict[str, NDArray[np.float32]]:
    """One step of what :data:`SPEC` wants, all of it ``value``."""
    return {name: np.full(dim, value, np.float32) for name, dim in SPEC.keys.items()}


@dataclass
class EchoEngine:
    """Answers with what it was asked: row 0 the older pose, row 1 the present one, row 2 numbers of the stream.

    It takes ``seconds`` a batch, and waits while ``gate`` is closed.
    """

    seconds: float = 0.0
    gate: threading.Event = field(default_factory=threading.Event)
    entered: threading.Event = field(default_factory=threading.Event)
    batches: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.gate.set()

    @property
    def observations(self) -> ObservationSpec:
        return SPEC

    def describe(self) -> dict[str, Any]:
        return {"task": "echo", "observations": dict(SPEC.keys), "exact": False}

    def check_prefix(self, actions: NDArray[Any]) -> None:
        raise PrefixError("echoes continue nothing")

    def run(self, jobs: Sequence[Job]) -> list[InferenceResult]:
        self.batches.append(len(jobs))
        self.entered.set()
        self.gate.wait()
        time.sleep(self.seconds)
        return [self.answer(job) for job in jobs]

    def answer(self, job: Job) -> InferenceResult:
        state, request = job
        if request.window["grip"][-1] == BREAKING:
            return InferenceResult(error=error_for_client(ZeroDivisionError("secret detail")))
        drawn = torch.rand((1, 3), generator=state.generator).numpy()
        return InferenceResult(np.vstack([request.window["pose"], drawn]), 5, 5, 0.75)


def numbers(seed: int, count: int, repeat: int = 0) -> list[list[float]]:
    """What :class:`EchoEngine` draws from a stream, answer by answer."""
    generator = EpisodeState.start(seed, repeat).generator
    return [torch.rand((1, 3), generator=generator)[0].tolist() for _ in range(count)]


def whole(window: dict[str, NDArray[Any]], seed: int) -> Job:
    """A session's request for a chunk, at the beginning of its stream."""
    return EpisodeState.start(seed), InferenceRequest(InferenceKind.WHOLE, window)


@dataclass
class Running:
    """A server in a thread of its own."""

    url: str
    server: PolicyServer
    loop: asyncio.AbstractEventLoop

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def stop(self) -> None:
        """Shut down gracefully, and wait until it has."""
        asyncio.run_coroutine_threadsafe(self.server.stop(), self.loop).result(60)


@contextmanager
def running(
    engine: Engine, token: Token | None = None, rounds: SharedRounds | None = None, **settings: Any
) -> Iterator[Running]:
    """A server that listens on a free port while the block runs."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server = PolicyServer(engine, ServerSettings(**{"port": 0, "grace_s": 5.0, **settings}), token, rounds)
    asyncio.run_coroutine_threadsafe(server.start(), loop).result(60)
    running = Running(server.url, server, loop)
    try:
        yield running
    finally:
        running.stop()
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def eventually(holds: Callable[[], bool], within_s: float = 20.0) -> bool:
    """Whether ``holds`` becomes true; machines that run tests can be slow."""
    deadline = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def tiny_policy(steps: int = 20, max_delay: int = 0) -> DiffusionPolicy:
    """An untrained policy that sees :data:`SPEC`; cheap, and not constant."""
    torch.manual_seed(0)
    config = PolicyConfig(
        task="echo",
        observations=dict(SPEC.keys),
        action_dim=3,
        n_obs_steps=SPEC.horizon,
        horizon=6,
        n_action_steps=4,
        network={"name": "mlp", "width": 16, "blocks": 1, "embed": 16, "timestep_dim": 8},
        scheduler={"num_train_timesteps": steps, "beta_schedule": "squaredcos_cap_v2"},
        max_delay=max_delay,
    )
    return DiffusionPolicy(config).eval().requires_grad_(False)
