"""A small environment, policy and samplers, as much of them as an evaluation sees."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specpolicy.evaluation.comparison import Comparison, PolicyAndSamplers
from specpolicy.rollout.env_worker import MakeEnv
from specpolicy.rollout.episodes import EpisodeResult


class ReachEnv(gymnasium.Env[Any, NDArray[np.float32]]):
    """A point walks to a goal; both are placed by the seed. Certain seeds misbehave at their third step."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012 - gymnasium's own convention

    def __init__(
        self,
        raising: Sequence[int] = (),
        dying: Sequence[int] = (),
        hanging: Sequence[int] = (),
        step_s: float = 0.0,
        limit: int = 30,
        render_mode: str | None = None,
    ) -> None:
        self.raising, self.dying, self.hanging, self.step_s, self.limit = raising, dying, hanging, step_s, limit
        self.render_mode = render_mode
        box = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.observation_space = gymnasium.spaces.Dict({"position": box, "goal": box})
        self.action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def _observation(self) -> dict[str, NDArray[np.float64]]:
        return {"position": self._position, "goal": self._goal}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, NDArray[np.float64]], dict[str, Any]]:
        super().reset(seed=seed)
        self._seed, self._steps = seed, 0
        self._position, self._goal = self.np_random.normal(size=(2, 2))
        return self._observation(), {"success": False}

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[dict[str, NDArray[np.float64]], float, bool, bool, dict[str, Any]]:
        assert action.dtype == np.float32
        self._steps += 1
        if self._steps == 3 and self._seed in self.raising:
            raise RuntimeError(f"simulated failure of seed {self._seed}")
        if self._steps == 3 and self._seed in self.dying:
            os._exit(7)
        if self._steps == 3 and self._seed in self.hanging:
            time.sleep(60)
        time.sleep(self.step_s)
        self._position += 0.2 * np.clip(action, -1, 1)  # in place, as simulators do with their buffers
        success = bool(np.linalg.norm(self._position - self._goal) < 0.25)
        return self._observation(), float(success), success, self._steps >= self.limit, {"success": success}

    def render(self) -> NDArray[np.uint8]:
        frame = np.full((48, 64, 3), 235, np.uint8)
        for place, color in ((self._goal, (0, 160, 0)), (self._position, (200, 0, 0))):
            row, column = np.clip((24 + 8 * place[1], 32 + 8 * place[0]), 2, (45, 61)).astype(int)
            frame[row - 2 : row + 3, column - 2 : column + 3] = color
        return frame


gymnasium.register("Reach-v0", f"{__name__}:ReachEnv")
gymnasium.register("SlowReach-v0", f"{__name__}:ReachEnv", kwargs={"step_s": 0.01, "limit": 12})


@dataclass(frozen=True)
class FakeSampler:
    """Stands for a sampler: ``noise`` is how far its actions stray."""

    exact: bool = True
    passes: int = 10
    noise: float = 0.3
    rounds: tuple[tuple[int, int], ...] | None = None


@dataclass(frozen=True)
class FakeResult:
    """A sampler's account."""

    passes: Tensor
    evaluations: Tensor
    start: Tensor | None = None
    proposed: Tensor | None = None
    accepted: Tensor | None = None


@dataclass(frozen=True)
class FakeChunk:
    """Actions and account."""

    actions: NDArray[np.float32]
    result: FakeResult

    @property
    def prediction(self) -> NDArray[np.float32]:
        """The actions after those for the steps before the present one."""
        return np.concatenate([np.zeros_like(self.actions[:, :1]), self.actions], axis=1)


@dataclass(frozen=True)
class FakeConfig:
    """Horizons."""

    n_obs_steps: int = 2
    n_action_steps: int = 4

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class FakePolicy:
    """Walks towards the goal with noise from the generators; remembers the batches it was given.

    ``poison``: a generator's initial seed on which it fails, ``nan``: one on which its actions are not finite.
    """

    config: FakeConfig = field(default_factory=FakeConfig)
    poison: int | None = None
    nan: int | None = None
    batches: list[dict[str, NDArray[Any]]] = field(default_factory=list)

    def predict_action(
        self,
        observation: Mapping[str, NDArray[Any]],
        sampler: FakeSampler,
        generator: torch.Generator | Sequence[torch.Generator] | None,
    ) -> FakeChunk:
        assert isinstance(generator, Sequence)
        self.batches.append(dict(observation))
        batch = len(generator)
        assert all(part.shape == (batch, self.config.n_obs_steps, 2) for part in observation.values())
        noise = np.stack([torch.randn(self.config.n_action_steps, 2, generator=each).numpy() for each in generator])
        towards = observation["goal"][:, -1] - observation["position"][:, -1]
        actions = (towards[:, None] + sampler.noise * noise).astype(np.float32)
        seeds = [each.initial_seed() for each in generator]
        if self.poison in seeds:
            raise ArithmeticError("simulated failure of the policy")
        if self.nan in seeds:
            actions[seeds.index(self.nan)] = np.nan
        spent = torch.full((batch,), sampler.passes)
        if sampler.rounds is None:
            return FakeChunk(actions, FakeResult(spent, 2 * spent))
        start, accepted = torch.tensor(sampler.rounds).T[:, :, None].expand(2, -1, batch)
        proposed = torch.where(start >= 0, 8, -1)
        return FakeChunk(actions, FakeResult(spent, 2 * spent, start, proposed, accepted))


@dataclass
class LethalPolicy(FakePolicy):
    """Kills its own process when asked for the fifth time: once, if it has a place for a marker, else always."""

    marker: Path | None = None

    def predict_action(self, observation: Any, sampler: Any, generator: Any) -> FakeChunk:
        if len(self.batches) == 4 and not (self.marker and self.marker.exists()):
            if self.marker:
                self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().predict_action(observation, sampler, generator)


@dataclass(frozen=True)
class FakeContestants:
    """Opens a policy and its samplers in whichever process needs them."""

    policy: FakePolicy = field(default_factory=FakePolicy)
    samplers: Mapping[str, FakeSampler] = field(
        default_factory=lambda: {"ddpm": FakeSampler(passes=100), "free": FakeSampler(passes=12, noise=0.5)}
    )

    def __call__(self) -> PolicyAndSamplers:
        return PolicyAndSamplers(replace(self.policy, batches=[]), self.samplers)


@dataclass(frozen=True)
class HomeOnly(FakeContestants):
    """Opens in the process that it was made in, and nowhere else."""

    home: int = field(default_factory=os.getpid)

    def __call__(self) -> PolicyAndSamplers:
        if os.getpid() != self.home:
            raise FileNotFoundError("no such checkpoint on this machine")
        return super().__call__()


def reach(
    checkpoint: Path, *, task: str = "reach", seeds: Sequence[int] = range(6), env: Any = None, **more: Any
) -> Comparison:
    """Two samplers on the point that walks to a goal. ``env``: arguments of :class:`ReachEnv`."""
    checkpoint.touch()
    make_env = MakeEnv("Reach-v0", {"disable_env_checker": True, "limit": 12, **(env or {})}, imports=(__name__,))
    values: dict[str, Any] = {"num_envs": 1, "block_size": 3, "latency_calls": 0, "repeats": {"ddpm": 2, "free": 1}}
    values |= {"contestants": FakeContestants()} | more
    return Comparison(task=task, make_env=make_env, seeds=seeds, checkpoint=str(checkpoint), **values)


def outcomes(records: Iterable[EpisodeResult]) -> list[EpisodeResult]:
    """Records without their wall time."""
    return [replace(record, duration_s=0.0) for record in records]


def record(
    sampler: str = "ddpm", seed: int = 0, repeat: int = 0, success: bool = True, error: str | None = None, **more: Any
) -> EpisodeResult:
    """A finished episode."""
    values: dict[str, Any] = {"steps": 5, "return_": float(success), "passes": (10, 12), "evaluations": 40}
    values |= {"duration_s": 0.5} | more
    return EpisodeResult("reach", sampler, seed, repeat, success, error=error, **values)
