"""The shipped transformer for Square: an exact sample in few passes, and an approximate one from cached tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate

from specpolicy.config import compose
from specpolicy.policies.diffusion_policy import DiffusionPolicy
from specpolicy.policies.networks.transformer import TransformerDenoiser
from specpolicy.speculative.exactness import check_exactness

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def policy() -> DiffusionPolicy:
    return DiffusionPolicy.from_pretrained(ROOT / "checkpoints" / "square_transformer")


@pytest.fixture(scope="module")
def observations() -> dict[str, Any]:
    with np.load(ROOT / "benchmarks" / "results" / "square_transformer" / "observations.npz") as stored:
        return {key: stored[key] for key in stored.files}


def sampler_of(name: str, policy: DiffusionPolicy) -> Any:
    return instantiate(compose("rollout", [f"sampler={name}"]).sampler)(policy)


def test_it_is_a_transformer_that_computes_in_float32(policy: DiffusionPolicy) -> None:
    assert isinstance(policy.network, TransformerDenoiser)
    assert {parameter.dtype for parameter in policy.parameters()} == {torch.float32}
    assert policy.config.n_action_steps == 4


@pytest.mark.parametrize(("name", "most"), [("recycled", 12), ("analytic10_recycled", 7)])
def test_drafts_save_passes_and_keep_the_law(
    policy: DiffusionPolicy, observations: dict[str, Any], name: str, most: float
) -> None:
    sampler = sampler_of(name, policy)
    result = policy.predict_action(observations, sampler, torch.Generator().manual_seed(0), record=True).result
    assert sampler.exact and float(result.passes.double().mean()) < most
    assert check_exactness(sampler.process, result).smallest > 1e-3


def test_cached_tokens_are_approximate_and_less_work(policy: DiffusionPolicy, observations: dict[str, Any]) -> None:
    chunks = {}
    for name in ("ddpm20", "specdiff"):
        chunks[name] = policy.predict_action(observations, sampler_of(name, policy), torch.Generator().manual_seed(0))
    assert not sampler_of("specdiff", policy).exact
    work = chunks["specdiff"].result.work
    assert work is not None and float(work.max()) < 15 < 20 == int(chunks["ddpm20"].result.passes.max())
    off = np.abs(chunks["specdiff"].actions - chunks["ddpm20"].actions)
    assert 0 < float(np.median(off)) < 0.1
