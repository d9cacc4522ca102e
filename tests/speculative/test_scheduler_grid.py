"""Every setting of DDPM and DDIM schedulers: the step is diffusers' own at the same noise, or refused with a reason.

Both sides compute in float64, from the float32 noise schedule that diffusers makes.
"""

from __future__ import annotations

import copy
import functools
import itertools
import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from mixtures import chains, mixture

from specpolicy import ReverseProcess, SchedulerSampler, SequentialSampler, SpeculativeSampler
from specpolicy.speculative.compiled.sampler import CompiledChain
from specpolicy.speculative.scheduler_sampler import SchedulerError
from specpolicy.speculative.schedulers import set_timesteps

TIMES = 17
STEPS = [1, 5, 14, 17, 18]  # 14 of 17: where trailing spacing rounds to a timestep too many
LIMITS: list[dict[str, Any]] = [
    {"clip_sample": False},
    {"clip_sample": True, "clip_sample_range": 0.8},
    {"thresholding": True, "sample_max_value": 1.5, "dynamic_thresholding_ratio": 0.8},
    {"thresholding": True, "sample_max_value": 0.5},
]
SPACINGS = ["leading", "trailing", "linspace"]
PREDICTIONS = ["epsilon", "sample", "v_prediction"]
REFUSED = ["fixed_large_log", "learned", "learned_range"]
VARIANCES = ["fixed_small", "fixed_small_log", "fixed_large", *REFUSED]


def reason(config: Any, steps: int) -> str | None:
    """What a refusal has to say with these settings; None: there must be none."""
    if steps > TIMES:
        return "num_inference_steps=18 is more than num_train_timesteps=17"
    if config.timestep_spacing == "leading" and steps == TIMES and config.steps_offset:
        return "asks for timestep 17 in 17 steps.*set steps_offset=0"
    if config.timestep_spacing == "trailing" and steps == 14:
        return "asks for timestep -1"
    noisiest = config.timestep_spacing == "trailing" or (config.timestep_spacing == "linspace" and steps > 1)
    noisiest |= config.timestep_spacing == "leading" and steps == TIMES - config.steps_offset
    if config.rescale_betas_zero_snr and config.prediction_type == "epsilon" and noisiest:
        return "prediction_type='epsilon' with rescale_betas_zero_snr=True"
    if config.get("variance_type") in REFUSED:
        return f"variance_type='{config.variance_type}'"
    return None


def in_double(scheduler: Any, steps: int) -> Any:
    """The stock scheduler, set, with its schedule in float64."""
    scheduler = copy.copy(scheduler)
    scheduler.set_timesteps(steps)
    for name in ("alphas_cumprod", "final_alpha_cumprod", "one"):
        if hasattr(scheduler, name):
            setattr(scheduler, name, getattr(scheduler, name).double())
    return scheduler


@functools.cache
def states_and_noise(steps: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random states and outputs, and the noise that a generator seeded with the step's place hands out."""
    generator, shape = torch.Generator().manual_seed(steps), (steps, 2, 2, 4)
    x, output = (2 * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    noise = [torch.randn(shape[1:], generator=generator.manual_seed(k), dtype=torch.float64) for k in range(steps)]
    return x, output, torch.stack(noise)


def compare(scheduler: Any, process: ReverseProcess, steps: int, **step: Any) -> int:
    """Step by step, at random states and outputs; returns how many of the stock scheduler's steps were finite."""
    stock, generator = in_double(scheduler, steps), torch.Generator()
    assert process.timesteps.tolist() == stock.timesteps.tolist()
    x, output, noise = states_and_noise(steps)
    expected = torch.stack(
        [
            stock.step(output[k], t, x[k], generator=generator.manual_seed(k), **step).prev_sample
            for k, t in enumerate(stock.timesteps)
        ]
    ).flatten(1)
    rows = torch.arange(steps).repeat_interleave(x.shape[1])
    states, outputs, noises = (each.flatten(0, 1) for each in (x, output, noise))
    found = process.step(states, process.x0(states, outputs, rows), rows, noises).view_as(expected)
    assert found.isfinite().all()
    finite = expected.isfinite().all(dim=1)
    torch.testing.assert_close(found[finite], expected[finite], atol=1e-5, rtol=1e-5)
    return int(finite.sum())


def check(scheduler: Any, steps: int, **read: Any) -> None:
    """The whole of one setting."""
    config, eta = scheduler.config, read.get("eta", 0.0)
    says = reason(config, steps)
    if "eta" in read and eta == 0:
        make = lambda: ReverseProcess.deterministic(scheduler, steps)  # noqa: E731
    else:
        make = lambda: ReverseProcess.from_scheduler(scheduler, steps, **read)  # noqa: E731
    if says is not None:
        with pytest.raises(ValueError, match=says):
            make()
        return
    process = make()
    finite = compare(scheduler, process, steps, **read)
    # In exact arithmetic every step is finite. Where η = 1 leaves nothing of ε, rounding can make the stock step NaN.
    assert finite == steps or (eta == 1 and finite >= steps - 1)


@pytest.mark.parametrize(("spacing", "prediction"), list(itertools.product(SPACINGS, PREDICTIONS)))
def test_ddpm(spacing: str, prediction: str) -> None:
    for variance, limit, offset, zero, steps in itertools.product(VARIANCES, LIMITS, (0, 1), (False, True), STEPS):
        if limit is not LIMITS[0] and (steps > TIMES or variance in REFUSED or (offset and spacing != "leading")):
            continue  # refused whatever the limit, or an offset that means nothing there
        scheduler = DDPMScheduler(
            TIMES,
            beta_schedule="squaredcos_cap_v2",
            variance_type=variance,
            prediction_type=prediction,
            timestep_spacing=spacing,
            steps_offset=offset,
            rescale_betas_zero_snr=zero,
            **limit,
        )
        check(scheduler, steps)


@pytest.mark.usefixtures("unchecked_shapes")  # test_ddpm makes the same calls
@pytest.mark.parametrize(("spacing", "prediction"), list(itertools.product(SPACINGS, PREDICTIONS)))
def test_ddim(spacing: str, prediction: str) -> None:
    settings = itertools.product(LIMITS, (False, True), (0, 1), (False, True), STEPS)
    for limit, to_one, offset, zero, steps in settings:
        if limit is not LIMITS[0] and (steps > TIMES or (offset and spacing != "leading")):
            continue  # refused whatever the limit, or an offset that means nothing there
        scheduler = DDIMScheduler(
            TIMES,
            beta_schedule="squaredcos_cap_v2",
            prediction_type=prediction,
            set_alpha_to_one=to_one,
            timestep_spacing=spacing,
            steps_offset=offset,
            rescale_betas_zero_snr=zero,
            **limit,
        )
        check(scheduler, steps, eta=0.0)
        for eta, kept in itertools.product((0.5, 1.0), (False, True)):
            check(scheduler, steps, eta=eta, use_clipped_model_output=kept)


# ---- the settings that gave NaN or somebody else's exception


@pytest.mark.parametrize("limit", LIMITS[1:])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_last_step_between_equal_noise_levels(limit: dict[str, Any], prediction: str) -> None:
    scheduler = DDIMScheduler(
        100,
        beta_schedule="squaredcos_cap_v2",
        set_alpha_to_one=False,
        prediction_type=prediction,
        **limit,
    )
    target = mixture(scheduler, 3)
    noise = chains(64, 3, dtype=torch.float32)[0][:, None]  # diffusers thresholds events of two dimensions or more
    stock = SchedulerSampler(scheduler, 10, {"eta": 1.0})(target, noise, generator=torch.Generator().manual_seed(1))
    process = ReverseProcess.from_scheduler(scheduler, 10, eta=1.0)
    ours = SequentialSampler(process)(target, noise, generator=torch.Generator().manual_seed(1), record=True)
    torch.testing.assert_close(ours.sample, stock.sample, atol=1e-4, rtol=1e-4)
    assert ours.x0 is not None
    torch.testing.assert_close(ours.x0[-1], ours.sample)  # the last x̂0 is the sample there
    result = SpeculativeSampler(process, window=6)(target, noise, generator=torch.Generator().manual_seed(2))
    assert result.sample.isfinite().all()
    plain = SchedulerSampler(scheduler, 10)(target, noise).sample
    chain = CompiledChain(ReverseProcess.deterministic(scheduler, 10), exact=False, backend="plain")
    torch.testing.assert_close(chain(target, noise).sample, plain, atol=1e-4, rtol=1e-4)


def betas(count: int) -> list[float]:
    return torch.linspace(0.001, 0.1, count).tolist()


@pytest.mark.parametrize("scheduler", [DDPMScheduler, DDIMScheduler])
def test_settings_that_do_not_fit_are_named(scheduler: Any) -> None:
    def read(steps: Any, **settings: Any) -> ReverseProcess:
        eta = {"eta": 1.0} if scheduler is DDIMScheduler else {}
        return ReverseProcess.from_scheduler(scheduler(100, **settings), steps, **eta)

    for settings, steps, says in (
        ({"steps_offset": 1}, 100, "steps_offset=1 asks for timestep 100 in 100 steps, .* 0 to 99: set steps_offset=0"),
        ({"steps_offset": -1}, 10, "asks for timestep -1 .* set steps_offset=0"),
        ({"trained_betas": betas(50)}, 100, "trained_betas has 50 entries, set num_train_timesteps=50"),
        ({"trained_betas": [0.0, *betas(99)]}, 100, "timestep 0 is not defined: .* Check trained_betas"),
        ({"trained_betas": [*betas(60), float("nan"), *betas(39)]}, 100, "timestep 99 .* trained_betas"),
        ({"beta_end": 1.5}, 100, "is not defined: .* its betas"),
        ({}, 101, "num_inference_steps=101 is more than num_train_timesteps=100"),
        ({"thresholding": True, "sample_max_value": 0.0}, 10, "sample_max_value=0.0"),
        ({"thresholding": True, "dynamic_thresholding_ratio": 99.5}, 10, "dynamic_thresholding_ratio=99.5"),
        ({"clip_sample_range": -1.0}, 10, "clip_sample_range=-1.0"),
        ({"prediction_type": "score"}, 10, "prediction_type='score'"),
    ):
        with pytest.raises(ValueError, match=says):
            read(steps, **settings)
    # where the short table is long enough, diffusers works, and so do we
    assert read(100, trained_betas=betas(100)).num_steps == 100


def test_a_short_table_of_betas_is_enough_for_its_own_timesteps() -> None:
    scheduler = DDPMScheduler(100, trained_betas=betas(50))
    assert ReverseProcess.from_scheduler(scheduler, timesteps=[49, 20, 3]).timesteps.tolist() == [49, 20, 3]
    with pytest.raises(ValueError, match="trained_betas has 50 entries"):
        ReverseProcess.from_scheduler(scheduler, timesteps=[50, 20, 3])


@pytest.mark.parametrize("timesteps", [[], [5, 5, 1], [1, 5], [100, 5], [5, -1]])
def test_custom_timesteps_that_do_not_fit(timesteps: list[int]) -> None:
    says = re.escape(f"timesteps={timesteps}; expected a list of whole numbers that falls")
    with pytest.raises(ValueError, match=says):
        ReverseProcess.from_scheduler(DDPMScheduler(100), timesteps=timesteps)


def test_both_kinds_of_timesteps() -> None:
    with pytest.raises(ValueError, match="give one of them"):
        ReverseProcess.from_scheduler(DDPMScheduler(100), 2, timesteps=[5, 1])


@pytest.mark.parametrize("eta", [-1.0, float("nan"), float("inf")])
def test_eta_out_of_range(eta: float) -> None:
    with pytest.raises(ValueError, match=f"eta={eta}"):
        ReverseProcess.from_scheduler(DDIMScheduler(100), 10, eta=eta)


def test_a_process_that_is_not_finite_names_the_step() -> None:
    good = ReverseProcess.from_scheduler(DDPMScheduler(100), 10)
    fields = {
        name: getattr(good, name) for name in ("timesteps", "a", "b", "from_state", "from_output", "thresholding")
    }
    with pytest.raises(ValueError, match=r"sigma of step 3 \(timestep 60\) is nan"):
        ReverseProcess(**fields, sigma=torch.where(torch.arange(10) == 3, torch.nan, good.sigma))


def test_a_scheduler_that_makes_nan_is_not_blamed_on_the_network() -> None:
    scheduler = DDPMScheduler(100, variance_type="fixed_large_log")
    with pytest.raises(SchedulerError, match=r"DDPMScheduler.step made NaN or infinity .* at timestep 90"):
        SchedulerSampler(scheduler, 10)(lambda x, t, c: x, torch.randn(2, 3))


def test_a_scheduler_that_runs_plainly_checks_its_timesteps() -> None:
    with pytest.raises(ValueError, match="steps_offset=1 asks for timestep 100"):
        SchedulerSampler(DDIMScheduler(100, steps_offset=1), 100)
    with pytest.raises(ValueError, match="num_inference_steps=101 is more than"):
        SchedulerSampler(DDIMScheduler(100), 101)
    with pytest.raises(ValueError, match=r"num_inference_steps=2\.5: expected a whole number"):
        set_timesteps(DDIMScheduler(100), 2.5)


def test_an_early_scheduler_without_later_settings() -> None:
    """Configurations of early diffusers know no spacing, thresholding or range of clipping."""
    new = DDPMScheduler(100, beta_schedule="squaredcos_cap_v2", clip_sample=True)
    early = type("DDPMScheduler", (), {"set_timesteps": lambda self, steps: None})()
    early.config = SimpleNamespace(num_train_timesteps=100, variance_type="fixed_small", clip_sample=True)
    early.alphas_cumprod, early.timesteps = new.alphas_cumprod, new.timesteps
    expected, found = ReverseProcess.from_scheduler(new, 100), ReverseProcess.from_scheduler(early, 100)
    assert found.thresholding == expected.thresholding and found.thresholding.clip == 1.0
    for name in ("timesteps", "a", "b", "sigma", "from_state", "from_output"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
