"""Recipes that wrap others."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from specpolicy import BlockVerifier, FreeDrafter, RecyclingDrafter, recipes
from specpolicy.commands.serve import serve
from specpolicy.composition import ConfigError
from specpolicy.policies import DiffusionPolicy
from specpolicy.speculative.compiled import CompiledChain, CompiledSampler

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def policy() -> DiffusionPolicy:
    return DiffusionPolicy.load(ROOT / "checkpoints" / "square")


def test_compiled_samplers_act_as_the_samplers_do(policy: DiffusionPolicy) -> None:
    observation = {
        name: np.zeros((1, policy.observations.horizon, dim), np.float32)
        for name, dim in policy.observations.keys.items()
    }
    eager = partial(
        recipes.speculative, num_inference_steps=20, drafter=FreeDrafter(), verifier=BlockVerifier(), window=12
    )
    for recipe, kind in ((eager, CompiledSampler), (partial(recipes.ddim, num_inference_steps=5), CompiledChain)):
        made = recipes.compiled(policy, recipe, "plain")
        assert isinstance(made, kind)
        assert made.exact is recipe(policy).exact
        wanted = policy.act(observation, recipe(policy), [torch.Generator().manual_seed(3)])
        got = policy.act(observation, made, [torch.Generator().manual_seed(3)])
        np.testing.assert_allclose(got.actions, wanted.actions, atol=1e-5)
        assert torch.equal(got.result.passes, wanted.result.passes)


def test_auto_takes_what_there_is(policy: DiffusionPolicy, tmp_path: Path) -> None:
    known = recipes.auto(policy)
    assert isinstance(known.drafter, RecyclingDrafter) and known.drafter.gains is not None and known.opening is not None
    assert (known.window, known.exact) == (24, True)
    policy.save(tmp_path / "bare")
    bare = recipes.auto(DiffusionPolicy.load(tmp_path / "bare"), 20, window=7)
    assert isinstance(bare.drafter, RecyclingDrafter) and bare.drafter.gains is None and bare.opening is None
    assert (bare.window, bare.process.num_steps) == (7, 20)


def test_compiled_policies_are_served_one_request_at_a_time() -> None:
    with pytest.raises(ConfigError, match="add max_batch=1"):
        serve(["compile=plain"])
