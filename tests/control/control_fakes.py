"""A world that counts ticks, and a policy whose actions say when they were meant."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray

from specpolicy.control.action_space import ActionSpec
from specpolicy.control.inference import InferenceKind, InferenceRequest, InferenceResult
from specpolicy.speculative.predraft import PreDraft

SPEC = ActionSpec(delta_dims=(0, 1), absolute_dims=(2,), initial=(-1.0,))
GRIP = 0.5


class TickEnv(gymnasium.Env[Any, Any]):
    """Observes the number of steps since reset; remembers the actions; succeeds after ``succeed_at`` steps."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - gymnasium's own convention

    def __init__(
        self, limit: int = 40, succeed_at: int = 10**6, bound: float = 1000.0, render_mode: str | None = None
    ) -> None:
        self.limit, self.succeed_at, self.render_mode = limit, succeed_at, render_mode
        self.observation_space = gymnasium.spaces.Dict({"tick": gymnasium.spaces.Box(-1e6, 1e6, (1,), np.float64)})
        self.action_space = gymnasium.spaces.Box(-bound, bound, (3,), np.float32)
        self.actions: list[NDArray[np.float32]] = []
        self._buffer = np.zeros(1)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.actions = []
        self._buffer[0] = 0
        return {"tick": self._buffer}, {"success": False}

    def step(self, action: NDArray[np.float32]) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert action.dtype == np.float32 and np.isfinite(action).all() and action in self.action_space
        self.actions.append(action.copy())
        self._buffer[0] += 1  # in place, as simulators do
        success = len(self.actions) >= self.succeed_at
        return (
            {"tick": self._buffer},
            float(success),
            success,
            len(self.actions) >= self.limit,
            {"success": success},
        )

    def render(self) -> NDArray[np.uint8]:
        return np.full((4, 4, 3), len(self.actions) % 256, np.uint8)


gymnasium.register("Tick-v0", f"{__name__}:TickEnv")


@dataclass
class TickPolicy:
    """Action k of a chunk is ``(1 + tick observed, 1 + tick meant, GRIP)``.

    Attributes:
        spoil: may change an answer, given its number, before it is handed out.
        length: actions of a chunk. passes: of a whole inference; a finish takes a quarter of them.
        asked: every question.
    """

    length: int = 12
    passes: int = 8
    horizon: int = 2
    predrafts: bool = True
    spoil: Callable[[int, InferenceResult], InferenceResult] = lambda number, answer: answer
    asked: list[InferenceRequest] = field(default_factory=list)

    @property
    def n_obs_steps(self) -> int:
        return self.horizon

    def reset(self, seed: int, repeat: int) -> None:
        self.asked.clear()

    def infer(self, question: InferenceRequest) -> InferenceResult:
        self.asked.append(question)
        assert question.window["tick"].shape == (self.horizon, 1)
        if question.kind is InferenceKind.DRAFT:
            return self.spoil(len(self.asked) - 1, InferenceResult())
        tick = float(question.window["tick"][-1, 0])
        actions = np.stack([(1 + tick, 1 + tick + k, GRIP) for k in range(self.length)])
        passes = self.passes // 4 if question.kind is InferenceKind.FINISH else self.passes
        return self.spoil(len(self.asked) - 1, InferenceResult(actions, passes, 10 * passes, 0.75, 0.001))

    def ticks_asked(self, kind: InferenceKind | None = None) -> list[int]:
        """Ticks whose observations it was asked about."""
        asked = [each for each in self.asked if kind is None or each.kind is kind]
        return [int(each.window["tick"][-1, 0]) for each in asked]


@dataclass(frozen=True)
class Meant:
    """What an action that was sent was meant for; all None if the robot stood still."""

    observed: int | None
    tick: int | None


def meant(actions: Sequence[NDArray[np.float32]]) -> list[Meant]:
    """What each action was meant for; a hold has rates of zero."""
    return [
        Meant(int(action[0]) - 1, int(action[1]) - 1) if action[:2].any() else Meant(None, None) for action in actions
    ]


@dataclass(frozen=True)
class FakeConfig:
    n_obs_steps: int = 2
    n_action_steps: int = 4

    def to_dict(self) -> dict[str, Any]:
        return {"n_obs_steps": self.n_obs_steps, "n_action_steps": self.n_action_steps}


@dataclass(frozen=True)
class FakeSampler:
    """``passes``: evaluations a chunk; ``noise``: how much of the random stream enters its actions."""

    exact: bool = True
    passes: int = 8
    noise: float = 0.1

    def predraft(self) -> None:
        """Only there to be found."""


@dataclass(frozen=True)
class FewSteps:
    """A sampler that cannot pre-draft."""

    exact: bool = False
    passes: int = 2
    noise: float = 0.0


@dataclass(frozen=True)
class FakeResult:
    passes: torch.Tensor
    evaluations: torch.Tensor
    accepted: torch.Tensor
    proposed: torch.Tensor


@dataclass(frozen=True)
class FakeChunk:
    prediction: NDArray[np.float32]
    result: FakeResult


@dataclass
class FakeDiffusion:
    """Has ``act`` and ``predraft`` as a diffusion policy has them; 1 + 12 actions, the first for the step before.

    Attributes:
        poison: fails whenever a generator of this initial seed takes part.
        batches, drafted: sizes of the batches that ``act`` and ``predraft`` were given.
        finished: the pre-drafts that were handed in.
    """

    config: FakeConfig = field(default_factory=FakeConfig)
    poison: int | None = None
    batches: list[int] = field(default_factory=list)
    drafted: list[int] = field(default_factory=list)
    finished: list[PreDraft] = field(default_factory=list)

    def predict_action(self, observation: Any, sampler: Any, generator: Any, predraft: Any = None) -> FakeChunk:
        batch = len(generator)
        self.batches.append(batch)
        assert observation["tick"].shape == (batch, 2, 1)
        noise = np.array([float(torch.randn(1, generator=each)) for each in generator])
        if any(each.initial_seed() == self.poison for each in generator):
            raise ArithmeticError("simulated failure of the policy")
        if predraft is not None:
            self.finished.append(predraft)
        tick = observation["tick"][:, -1, 0]
        k = np.arange(-1, 12)
        grip = GRIP + sampler.noise * np.tanh(noise)
        tick = tick + 1
        parts = [np.broadcast_to(tick[:, None], (batch, 13)), tick[:, None] + k, np.repeat(grip[:, None], 13, 1)]
        passes = 2 if predraft is not None else sampler.passes
        spent = torch.full((batch,), passes)
        rounds = torch.full((3, batch), 4)
        return FakeChunk(
            np.stack(parts, -1).astype(np.float32), FakeResult(spent, 10 * spent, rounds, torch.full_like(rounds, 5))
        )

    def predraft(self, observation: Any, sampler: Any, generator: Any) -> PreDraft:
        states = torch.stack([torch.randn(3, generator=each) for each in generator], 1)[..., None]
        self.drafted.append(len(generator))
        return PreDraft(states, states[1:], states[1:])
