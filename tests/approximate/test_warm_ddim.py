"""DDIM from the tail of the last chunk: what it starts from, what it costs, and whose chunk it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

import specpolicy
from specpolicy import samplers
from specpolicy.approximate.warm_ddim import WarmDDIM, warm_ddim
from specpolicy.control import Blocking, Lockstep, RecedingHorizon
from specpolicy.control.clocks import SimulatedLatencyClock
from specpolicy.control.inference import (
    EpisodeState,
    InferenceKind,
    InferenceRequest,
    InferenceResult,
    PolicyRunner,
    infer_batch,
    steady_state,
)
from specpolicy.control.latency import Constant
from specpolicy.control.loop import ControlLoop
from specpolicy.evaluation.fidelity import measure_fidelity
from specpolicy.interop.in_place import UnsupportedPolicy, _sampler
from specpolicy.policies.config import PolicyConfig
from specpolicy.policies.diffusion_policy import DiffusionPolicy
from specpolicy.policies.protocols import PreviousChunk

SCHEDULER = {"num_train_timesteps": 100, "beta_schedule": "squaredcos_cap_v2"}
NOISE_LEVEL = 39


@pytest.fixture(scope="module")
def policy() -> DiffusionPolicy:
    torch.manual_seed(0)
    network = {"name": "unet1d", "channels": [8, 8], "timestep_dim": 8}
    return DiffusionPolicy(PolicyConfig("toy", {"state": 3}, 2, network=network, scheduler=SCHEDULER)).eval()


def window(value: float = 0.0, steps: int = 2) -> dict[str, np.ndarray]:
    return {"state": np.full((steps, 3), value, np.float32)}


def ask(policy: DiffusionPolicy, sampler: Any, state: EpisodeState, elapsed: int | None = None) -> InferenceResult:
    return infer_batch(policy, sampler, [(state, InferenceRequest(InferenceKind.WHOLE, window(), elapsed))])[0]


def test_a_perfect_network_gives_back_what_it_is_started_from() -> None:
    """With ε known exactly, DDIM from any noise level returns the clean chunk: the level is the start's own."""
    scheduler = DDPMScheduler(**SCHEDULER, clip_sample=False)
    sampler = warm_ddim(scheduler, 4, NOISE_LEVEL)
    clean = torch.linspace(-0.9, 0.9, 16)[:, None].expand(16, 2)
    noise = torch.randn(3, 16, 2, generator=torch.Generator().manual_seed(0))
    seen: list[int] = []

    def network(x: Tensor, timestep: Tensor, cond: Any) -> Tensor:
        seen.append(int(timestep[0]))
        alpha_bar = scheduler.alphas_cumprod[timestep][:, None, None]
        return (x - alpha_bar.sqrt() * clean) / (1 - alpha_bar).sqrt()

    result = sampler.continuing([PreviousChunk(clean, 0)] * 3)(network, noise)
    assert seen == [39, 29, 19, 9]
    torch.testing.assert_close(result.sample, clean.expand(3, -1, -1), atol=1e-5, rtol=0)
    moved = sampler.tail(PreviousChunk(clean, 5))
    assert moved is not None
    torch.testing.assert_close(moved, torch.cat([clean[5:], clean[-1:].expand(5, -1)]))
    assert sampler.tail(PreviousChunk(clean, 16)) is None, "nothing is left: the chunk counts as the first"
    assert torch.equal(warm_ddim(scheduler, 4, NOISE_LEVEL, shift=0).tail(PreviousChunk(clean, 5)), clean)  # type: ignore[arg-type]


def test_chunks_after_the_first_take_fewer_evaluations_and_stay_near_the_last(policy: DiffusionPolicy) -> None:
    sampler, state = warm_ddim(policy, 2, 9), EpisodeState.start(0)
    first = ask(policy, sampler, state)
    kept = state.last_sample
    second = ask(policy, sampler, state, 4)
    cold = ask(policy, sampler, EpisodeState.start(1))
    assert (first.passes, second.passes, cold.passes) == (10, 2, 10) and not sampler.exact
    assert first.actions is not None and second.actions is not None and cold.actions is not None and kept is not None
    shifted = np.concatenate([first.actions[4:], np.repeat(first.actions[-1:], 4, axis=0)])
    assert np.abs(second.actions - shifted).mean() < 0.5 * np.abs(cold.actions - shifted).mean()
    state.forget()
    assert state.last_sample is None and ask(policy, sampler, state).passes == 10


def test_a_batch_of_old_and_new_episodes_is_that_of_each_alone(policy: DiffusionPolicy) -> None:
    sampler = warm_ddim(policy, 2, NOISE_LEVEL, first_num_inference_steps=5)
    request = InferenceRequest(InferenceKind.WHOLE, window(0.3))

    def begun(seed: int, chunks: int) -> EpisodeState:
        state = EpisodeState.start(seed)
        for _ in range(chunks):
            ask(policy, sampler, state)
        return state

    ages = (0, 2, 1, 0)
    together = infer_batch(policy, sampler, [(begun(seed, age), request) for seed, age in enumerate(ages)])
    alone = [infer_batch(policy, sampler, [(begun(seed, age), request)])[0] for seed, age in enumerate(ages)]
    assert [each.passes for each in together] == [5, 2, 2, 5] == [each.evaluations for each in together]
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one.actions, other.actions, atol=1e-5)  # type: ignore[arg-type]


def test_an_inference_that_failed_leaves_the_episode_where_it_was(policy: DiffusionPolicy) -> None:
    sampler, state = warm_ddim(policy, 2, NOISE_LEVEL), EpisodeState.start(0)
    ask(policy, sampler, state)
    kept = state.last_sample
    bad = InferenceRequest(InferenceKind.WHOLE, {"state": np.full((2, 3), np.nan, np.float32)})
    assert infer_batch(policy, sampler, [(state, bad)])[0].error is not None and state.last_sample is kept


@pytest.mark.parametrize("compiled", [False, True])
def test_compiled_parts_make_the_same_chunks(policy: DiffusionPolicy, compiled: bool) -> None:
    eager = warm_ddim(policy, 4, NOISE_LEVEL)
    made = samplers.compiled(policy, lambda each: warm_ddim(each, 4, NOISE_LEVEL), "plain", [1, 2])
    used = made if compiled else eager
    assert isinstance(used, WarmDDIM) and not used.exact
    states = EpisodeState.start(0), EpisodeState.start(0)
    for _ in range(2):
        wanted, got = (ask(policy, sampler, state) for sampler, state in zip((eager, used), states, strict=True))
        np.testing.assert_allclose(got.actions, wanted.actions, atol=1e-5)  # type: ignore[arg-type]
        assert got.passes == wanted.passes
    later = steady_state(policy, used, {"state": window()["state"][None]}, 2)
    assert later(policy, torch.zeros(2, *policy.event_shape), torch.zeros(2, 6)).passes.tolist() == [4, 4]


class Still(gymnasium.Env[Any, Any]):
    """Nothing happens for so many ticks."""

    observation_space = gymnasium.spaces.Dict({"state": gymnasium.spaces.Box(-1, 1, (3,), np.float32)})
    action_space = gymnasium.spaces.Box(-9, 9, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return {"state": np.zeros(3, np.float32)}, {}

    def step(self, action: Any) -> Any:
        return {"state": np.zeros(3, np.float32)}, 0.0, False, False, {"success": False}


@pytest.mark.parametrize(
    ("executor", "latency", "elapsed"),
    [
        (Lockstep(6), 0.0, [None, 6, 6, 6]),
        (RecedingHorizon(4), 0.1, [None, 6, 6]),  # two actions have gone by when a chunk arrives, four are played
        (Blocking(5, idle="hold"), 0.1, [None, 5, 5]),  # what was played counts, not the ticks that it stood still
    ],
)
def test_the_shift_is_what_the_executor_has_played(
    policy: DiffusionPolicy, executor: Any, latency: float, elapsed: list[int | None]
) -> None:
    asked: list[int | None] = []

    class Listening(PolicyRunner):
        def infer(self, request: InferenceRequest) -> InferenceResult:
            asked.append(request.elapsed)
            return super().infer(request)

    runner = Listening(policy, warm_ddim(policy, 2, NOISE_LEVEL))
    clock = SimulatedLatencyClock(20.0, Constant(latency))
    ControlLoop(Still(), runner, executor, clock, max_ticks=22).run(seed=0)
    assert asked[: len(elapsed)] == elapsed


def test_where_there_is_no_chunk_before_it_says_so(policy: DiffusionPolicy) -> None:
    sampler = warm_ddim(policy, 2, NOISE_LEVEL)
    observation = {"state": window()["state"][None]}
    with pytest.raises(ValueError, match="warm: chunks that start from the one before have no distribution"):
        measure_fidelity(policy, {"ddpm": samplers.ddim(policy, 2), "warm": sampler}, [observation], chunks=8)
    with pytest.raises(UnsupportedPolicy, match="starts from the chunk before, which a live policy"):
        _sampler(sampler, samplers.make_process(policy, 100))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_inference_steps": 3, "start_timestep": 39}, "start_timestep=39 is no start for 3 even steps; take 38"),
        ({"num_inference_steps": 2, "start_timestep": 100}, "start_timestep=100: expected a whole number from 0 to 99"),
        ({"num_inference_steps": 0, "start_timestep": 39}, "num_inference_steps=0"),
        ({"num_inference_steps": 2, "start_timestep": 39, "shift": -1}, "shift=-1"),
    ],
)
def test_settings_that_cannot_be_are_named(policy: DiffusionPolicy, settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        warm_ddim(policy, **settings)


def test_wrong_batches_and_records_are_refused(policy: DiffusionPolicy) -> None:
    bound = warm_ddim(policy, 2, NOISE_LEVEL).continuing([None])
    noise, cond = torch.zeros(2, 16, 2), torch.zeros(2, 6)
    with pytest.raises(ValueError, match="1 chunks before for a batch of 2"):
        bound(policy, noise, cond)
    with pytest.raises(ValueError, match="keep no trajectory"):
        bound(policy, noise[:1], cond[:1], record=True)
    other = warm_ddim(policy, 2, NOISE_LEVEL).continuing([PreviousChunk(torch.zeros(8, 2), 0)])
    with pytest.raises(ValueError, match="expected what this policy sampled last"):
        other(policy, noise[:1], cond[:1])


def test_named_samplers_are_approximate_and_start_from_the_last_chunk() -> None:
    policy = DiffusionPolicy.from_pretrained(Path(specpolicy.__file__).parents[1] / "checkpoints" / "pusht")
    for name, steps in (("warm2", 2), ("warm4", 4)):
        sampler = samplers.load(name, policy)
        observation = policy.observations.zeros(1)
        assert not sampler.exact
        chunk = policy.predict_action(observation, steady_state(policy, sampler, observation))
        assert chunk.result.passes.tolist() == [steps]
