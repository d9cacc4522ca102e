"""Every kind of chain that can be read off a scheduler, with every verifier, eager and compiled, is exact."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from mixtures import Mixture, chains
from scipy import stats
from torch import Tensor

from specpolicy import (
    BlockVerifier,
    FreeDrafter,
    ReflectionVerifier,
    ResidualVerifier,
    ReverseProcess,
    SequentialSampler,
    SpeculativeSampler,
)
from specpolicy.speculative.compiled.sampler import CompiledSampler
from specpolicy.speculative.exactness import check_exactness
from specpolicy.speculative.verifiers import Verifier

pytestmark = pytest.mark.usefixtures("unchecked_shapes")  # test_exactness.py makes the same calls

STEPS, WINDOW, BATCH, DIM = 6, 4, 1_500, 2
SPACINGS = ["leading", "trailing", "linspace"]
PREDICTIONS = ["epsilon", "sample", "v_prediction"]
VERIFIERS: list[Verifier] = [BlockVerifier(), ReflectionVerifier(), ResidualVerifier()]
# Limits of x̂0 take turns.
LIMITS = itertools.cycle([{"clip_sample": False}, {"clip_sample": True, "clip_sample_range": 0.7}])

KINDS: list[dict[str, Any]] = [
    {"variance_type": variance, "timestep_spacing": spacing, "prediction_type": prediction} | next(LIMITS)
    for variance, spacing, prediction in itertools.product(["fixed_small", "fixed_large"], SPACINGS, PREDICTIONS)
] + [
    {"eta": eta, "set_alpha_to_one": to_one, "timestep_spacing": spacing, "prediction_type": prediction} | next(LIMITS)
    for eta, to_one, spacing, prediction in itertools.product([0.5, 1.0], [True, False], SPACINGS, PREDICTIONS)
]
# About 450 p-values are looked at, each corrected for the tests that it is the smallest of.
LEAST = 1e-6


def make(kind: dict[str, Any]) -> tuple[ReverseProcess, Mixture]:
    """A chain, and two wide modes as its data: drafts are kept often, and rejected often."""
    settings = dict(kind)
    eta = settings.pop("eta", None)
    scheduler = (DDPMScheduler if eta is None else DDIMScheduler)(60, beta_schedule="squaredcos_cap_v2", **settings)
    process = ReverseProcess.from_scheduler(scheduler, STEPS, **({} if eta is None else {"eta": eta}))
    means = torch.tensor([[-0.5, 0.3], [0.8, -0.4]])
    return process, Mixture(means, 0.4, scheduler.alphas_cumprod.double(), kind["prediction_type"])


def two_sample(first: Tensor, second: Tensor) -> float:
    """Kolmogorov–Smirnov along both coordinates and both diagonals; Bonferroni's smallest p."""
    lines = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, -1.0]], dtype=first.dtype)
    tests = [stats.ks_2samp((first @ line).numpy(), (second @ line).numpy()).pvalue for line in lines]
    return min(1.0, len(tests) * min(tests))


def name(kind: dict[str, Any]) -> str:
    return "-".join(str(value) for value in kind.values())


@pytest.mark.parametrize(("number", "kind"), list(enumerate(KINDS)), ids=[*map(name, KINDS)])
def test_every_verifier_is_exact(number: int, kind: dict[str, Any]) -> None:
    process, target = make(kind)
    noise, generator = chains(BATCH, DIM, seed=100)
    sequential = SequentialSampler(process)(target, noise, generator=generator).sample
    samplers = [SpeculativeSampler(process, FreeDrafter(), verifier, WINDOW) for verifier in VERIFIERS]
    compiled = CompiledSampler(samplers[number % 3], "plain", widths=[WINDOW])  # with one width: its own numbers
    for seed, sampler in enumerate([*samplers, compiled]):
        noise, generator = chains(BATCH, DIM, seed)
        result = sampler(target, noise, generator=generator, record=True)
        assert 0.1 < result.acceptance < 0.99, "nothing to test otherwise"
        assert check_exactness(process, result).smallest > LEAST
        assert two_sample(result.sample, sequential) > LEAST


@pytest.mark.parametrize(("spacing", "prediction"), list(itertools.product(SPACINGS, PREDICTIONS)))
def test_the_logarithm_of_a_small_variance_is_the_same_chain(spacing: str, prediction: str) -> None:
    settings = {"timestep_spacing": spacing, "prediction_type": prediction}
    plain, logarithm = (make(settings | {"variance_type": kind})[0] for kind in ("fixed_small", "fixed_small_log"))
    assert torch.equal(plain.sigma, logarithm.sigma)
