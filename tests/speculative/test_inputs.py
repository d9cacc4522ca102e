"""What samplers accept: one check, the same words, and numpy's integers where a whole number is meant."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from jaxtyping import config
from mixtures import ddpm, mixture

from specpolicy import (
    BlockVerifier,
    DenoiserError,
    FreeDrafter,
    RecyclingDrafter,
    ReflectionVerifier,
    ReverseProcess,
    SchedulerSampler,
    SequentialSampler,
    SpeculativeSampler,
)
from specpolicy.speculative.compiled import CompiledChain, CompiledSampler
from specpolicy.speculative.inputs import seeded_generator
from specpolicy.utils.checks import check_integer


@pytest.fixture(autouse=True)
def as_users_call_it() -> Iterator[None]:
    """Annotations are checked at run time in tests alone: here the library's own messages are wanted."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


def samplers() -> list[Any]:
    scheduler, process = ddpm(6)
    speculative = SpeculativeSampler(process, window=3)
    few = DDIMScheduler.from_config(scheduler.config, num_train_timesteps=100)
    return [
        speculative,
        SequentialSampler(process),
        SchedulerSampler(few, 5),
        CompiledSampler(speculative, "plain"),
        CompiledChain(process, True, "plain"),
    ]


KINDS = [type(sampler).__name__ for sampler in samplers()]
BAD = [
    ({"noise": np.zeros((2, 3))}, TypeError, r"noise is a numpy.ndarray; expected a torch tensor .*torch.from_numpy"),
    ({"noise": "noise"}, TypeError, "noise is a str; expected a torch tensor"),
    ({"noise": torch.zeros(2, 3, dtype=torch.long)}, ValueError, "dtype torch.int64; expected floating point"),
    ({"noise": torch.zeros(3)}, ValueError, r"shape \(3,\).*expected floating point \(batch, \*event\)"),
    ({"noise": torch.full((2, 3), torch.inf)}, ValueError, "noise holds NaN or infinity"),
    ({"generator": np.random.default_rng(0)}, TypeError, r"is a numpy.Generator; expected a torch.Generator, .*manual"),
    ({"generator": 7}, TypeError, "generator is a int; expected a torch.Generator"),
    ({"generator": "seed"}, TypeError, "generator is a str; expected a torch.Generator"),
    ({"generator": [torch.Generator(), 3]}, TypeError, r"generator\[1\] is a int; expected a torch.Generator"),
    ({"generator": [torch.Generator()]}, ValueError, "1 generators for a batch of 2; give one, or one for each chain"),
    ({"cond": {"state": np.zeros(2)}}, TypeError, r"cond\['state'\] is a numpy.ndarray; expected tensors"),
    ({"cond": [torch.zeros(3, 1)]}, ValueError, r"cond\[0\] has shape \(3, 1\); expected leading dimension 2"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD)
@pytest.mark.parametrize("which", range(len(KINDS)), ids=KINDS)
def test_every_sampler_says_the_same(
    which: int, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    def never(*_: Any) -> torch.Tensor:
        raise AssertionError("the network was evaluated")

    with pytest.raises(error, match=message):
        samplers()[which](never, **({"noise": torch.zeros(2, 3)} | arguments))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("which", range(len(KINDS)), ids=KINDS)
def test_networks_in_half_precision_get_half_precision(which: int, dtype: torch.dtype) -> None:
    seen: set[torch.dtype] = set()

    def network(x: torch.Tensor, timestep: torch.Tensor, cond: Any) -> torch.Tensor:
        seen.add(x.dtype)
        return 0.1 * x

    noise = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    result = samplers()[which](network, noise, generator=torch.Generator().manual_seed(1))
    assert seen == {dtype} and result.sample.dtype == dtype and torch.isfinite(result.sample).all()


def test_half_precision_is_sampled_in_float32() -> None:
    """Rounding to half precision happens at the network and at the end, not at every step."""
    scheduler, process = ddpm(30)
    target = mixture(scheduler, 3)
    noise = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).half()

    def network(x: torch.Tensor, timestep: torch.Tensor, cond: Any) -> torch.Tensor:
        return target(x.double(), timestep, cond).to(x.dtype)

    sampler = SpeculativeSampler(process, RecyclingDrafter(), ReflectionVerifier(), 8)
    result = sampler(network, noise, generator=torch.Generator().manual_seed(1), record=True)
    assert result.trajectory is not None and result.trajectory.dtype == torch.float32
    assert result.sample.dtype == torch.float16


def test_flow_matching_schedulers_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'FlowMatchEulerDiscreteScheduler' is a flow-matching scheduler; expected"):
        SchedulerSampler(FlowMatchEulerDiscreteScheduler(), 5)
    with pytest.raises(ValueError, match="has no known Gaussian kernel"):
        ReverseProcess.from_scheduler(FlowMatchEulerDiscreteScheduler(), 5)


# The loops of diffusers around these are others than step(model_output, timestep, sample) from noise to a sample.
OTHER_LOOPS = {
    "AmusedScheduler": "no scheduler with timesteps and noise levels",
    "BlockRefinementScheduler": "no scheduler with timesteps and noise levels",
    "CogVideoXDPMScheduler": "step wants sample and timestep_back as well",
    "DDIMInverseScheduler": "steps towards noise",
    "DDPMWuerstchenScheduler": "fails at its first timestep",
    "DPMSolverMultistepInverseScheduler": "steps towards noise",
    "DiscreteDDIMScheduler": "no scheduler with timesteps and noise levels",
    "EntropyBoundScheduler": "no scheduler with timesteps and noise levels",
    "KarrasVeScheduler": "no scheduler with timesteps and noise levels",
    "RePaintScheduler": "step wants mask and original_image as well",
    "SCMScheduler": "prediction_type='trigflow'",
    "ScoreSdeVeScheduler": r"no step\(model_output, timestep, sample\)",
    "VQDiffusionScheduler": "no scheduler with timesteps and noise levels",
}
ARGUMENTS = {"AmusedScheduler": {"mask_token_id": 1}, "VQDiffusionScheduler": {"num_vec_classes": 2}}


@pytest.mark.parametrize("name", sorted(name for name in dir(diffusers) if name.endswith("Scheduler")))
@pytest.mark.filterwarnings("ignore")
def test_every_scheduler_of_diffusers_is_stepped_or_refused_by_name(name: str) -> None:
    try:
        scheduler = getattr(diffusers, name)(**ARGUMENTS.get(name, {}))
    except (ImportError, TypeError) as error:
        pytest.skip(f"not made without more: {error}")
    flow = not hasattr(scheduler, "init_noise_sigma")
    if "FlowMatch" in name or name in OTHER_LOOPS or flow:
        with pytest.raises(ValueError, match=OTHER_LOOPS.get(name, "no scheduler with|flow-matching")) as refused:
            SchedulerSampler(scheduler, 5)
        assert name in str(refused.value) and "DDIMScheduler" in str(refused.value)
        assert "\n" not in str(refused.value)
        return
    before = torch.get_rng_state()
    sampler = SchedulerSampler(scheduler, 5)
    torch.testing.assert_close(torch.get_rng_state(), before)  # the trial step draws nothing from it
    noise = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    result = sampler(lambda x, timestep, cond: 0.1 * x, noise)
    assert result.sample.shape == noise.shape and result.sample.isfinite().all()


def test_repainting_goes_back_and_forth() -> None:
    known = {"original_image": torch.zeros(1, 2, 2), "mask": torch.zeros(1, 2, 2)}
    with pytest.raises(ValueError, match="'RePaintScheduler' steps towards noise somewhere"):
        SchedulerSampler(diffusers.RePaintScheduler(), 50, known)


def test_something_else_is_no_scheduler() -> None:
    with pytest.raises(ValueError, match="scheduler 'str' is no scheduler with timesteps"):
        SchedulerSampler("ddim", 5)


def test_unknown_step_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"step_arguments \['ate'\] are no arguments of DDIMScheduler.step.*eta"):
        SchedulerSampler(DDIMScheduler(100), 5, {"ate": 0.0})


@pytest.mark.parametrize("steps", [0, -1, 2.5, "ten", None, True])
def test_numbers_of_steps(steps: Any) -> None:
    with pytest.raises(ValueError, match="num_inference_steps="):
        SchedulerSampler(DDIMScheduler(100), steps)


@pytest.mark.parametrize("number", [np.int64(4), np.uint8(4), torch.tensor(4)])
def test_integers_of_other_libraries_are_whole_numbers(number: Any) -> None:
    _, process = ddpm(6)
    assert (
        SpeculativeSampler(process, window=number).table.tolist()
        == SpeculativeSampler(process, window=4).table.tolist()
    )
    assert SchedulerSampler(DDIMScheduler(100), number).num_inference_steps == 4
    assert seeded_generator(number).initial_seed() == 4
    assert check_integer("calls", number) == 4


def test_windows_of_numpy() -> None:
    _, process = ddpm(6)
    lengths = np.array([3, 2, 1, 1, 1, 1])
    assert SpeculativeSampler(process, window=lengths).table.tolist() == [3, 2, 1, 1, 1, 0]


@pytest.mark.parametrize("window", ["24", "auto", 2.5, True, None, [1.5] * 6, [[1] * 6], object(), 0, -3, [0] * 6])
def test_windows_that_are_none(window: Any) -> None:
    with pytest.raises(ValueError, match="window="):
        SpeculativeSampler(ddpm(6)[1], window=window)


@pytest.mark.parametrize("replay", [0, -2])
def test_replays_that_are_none(replay: Any) -> None:
    with pytest.raises(ValueError, match="replay="):
        SpeculativeSampler(ddpm(6)[1], replay=replay)


@pytest.mark.parametrize("seed", [-1, 2**63, 1.5, "1", None, True])
def test_seeds_that_are_none(seed: Any) -> None:
    with pytest.raises(ValueError, match="seed="):
        seeded_generator(seed)


def test_the_network_is_still_blamed_for_what_it_does() -> None:
    for sampler in samplers():
        with pytest.raises(DenoiserError, match="NaN or infinity"):
            sampler(lambda x, t, c: x * torch.nan, torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"verifier": "block"}, "verifier is a str; expected an object such as BlockVerifier()"),
        ({"verifier": BlockVerifier}, "verifier is the class BlockVerifier; expected an object"),
        ({"drafter": FreeDrafter}, "drafter is the class FreeDrafter; expected an object such as FreeDrafter()"),
        ({"initial_guess": "zero"}, "initial_guess is a str; expected an object such as ZeroGuess()"),
    ],
)
def test_parts_of_a_sampler_that_are_none(parts: dict[str, Any], says: str) -> None:
    with pytest.raises(TypeError, match=re.escape(says)):
        SpeculativeSampler(ddpm(6)[1], **parts)


def test_true_is_no_number_of_steps() -> None:
    with pytest.raises(ValueError, match="num_inference_steps=True: expected a whole number"):
        ReverseProcess.from_scheduler(ddpm(6)[0], True)


@pytest.mark.parametrize("which", range(3), ids=KINDS[:3])
def test_no_chains_give_no_samples(which: int) -> None:
    for generator in (None, []):
        result = samplers()[which](lambda x, t, cond: x, torch.zeros(0, 3), generator=generator)
        assert result.sample.shape == (0, 3)


@pytest.mark.parametrize("timesteps", [[40.5, 2], [4.0, 2.0], 4, "abc", [["a"]], [True, False], [2, 4], []])
def test_custom_timesteps_are_whole_numbers_that_fall(timesteps: Any) -> None:
    with pytest.raises(ValueError, match="expected a list of whole numbers that falls"):
        ReverseProcess.from_scheduler(ddpm(6)[0], timesteps=timesteps)


@pytest.mark.parametrize("timesteps", [np.array([4, 2, 0]), torch.tensor([4, 2, 0]), range(4, -1, -2)])
def test_custom_timesteps_of_other_libraries(timesteps: Any) -> None:
    assert ReverseProcess.from_scheduler(ddpm(6)[0], timesteps=timesteps).timesteps.tolist() == [4, 2, 0]


@pytest.mark.parametrize("eta", ["1", None, float("nan"), -1])
def test_etas_that_are_none(eta: Any) -> None:
    with pytest.raises(ValueError, match="eta="):
        ReverseProcess.from_scheduler(DDIMScheduler(100), 10, eta=eta)
