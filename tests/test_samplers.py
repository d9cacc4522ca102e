"""Recipes that wrap others."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate

from specpolicy import BlockVerifier, FreeDrafter, RecyclingDrafter, ReflectionVerifier, ResidualVerifier, samplers
from specpolicy.commands.common import recipe_of
from specpolicy.commands.serve import serve
from specpolicy.config import ConfigError, compose
from specpolicy.control.inference import EpisodeState, InferenceKind, InferenceRequest
from specpolicy.policies.diffusion_policy import DiffusionPolicy
from specpolicy.serving.batching import BatchedPolicy
from specpolicy.speculative.compiled.sampler import CompiledChain, CompiledSampler
from specpolicy.speculative.initial_guess import ZeroGuess

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def policy() -> DiffusionPolicy:
    return DiffusionPolicy.from_pretrained(ROOT / "checkpoints" / "square")


def test_compiled_samplers_act_as_the_samplers_do(policy: DiffusionPolicy) -> None:
    observation = {
        name: np.zeros((1, policy.observations.horizon, dim), np.float32)
        for name, dim in policy.observations.keys.items()
    }
    eager = partial(
        samplers.speculative, num_inference_steps=20, drafter=FreeDrafter(), verifier=BlockVerifier(), window=12
    )
    for recipe, kind in ((eager, CompiledSampler), (partial(samplers.ddim, num_inference_steps=5), CompiledChain)):
        made = samplers.compiled(policy, recipe, "plain")
        assert isinstance(made, kind)
        assert made.exact is recipe(policy).exact
        wanted = policy.predict_action(observation, recipe(policy), [torch.Generator().manual_seed(3)])
        got = policy.predict_action(observation, made, [torch.Generator().manual_seed(3)])
        np.testing.assert_allclose(got.actions, wanted.actions, atol=1e-5)
        assert torch.equal(got.result.passes, wanted.result.passes)


def test_auto_takes_what_there_is(policy: DiffusionPolicy, tmp_path: Path) -> None:
    known = samplers.default(policy)
    assert (
        isinstance(known.drafter, RecyclingDrafter)
        and known.drafter.jacobian is not None
        and known.initial_guess is not None
    )
    assert (known.window, known.exact) == (24, True)
    policy.save_pretrained(tmp_path / "bare")
    bare = samplers.default(DiffusionPolicy.from_pretrained(tmp_path / "bare"), 20, window=7)
    assert isinstance(bare.drafter, RecyclingDrafter) and bare.drafter.jacobian is None and bare.initial_guess is None
    assert (bare.window, bare.process.num_steps) == (7, 20)


def test_compiled_policies_are_served_in_batches_that_are_prepared(policy: DiffusionPolicy) -> None:
    eager = partial(
        samplers.calibrated, num_inference_steps=20, verifier=ReflectionVerifier(), window=8, drafter=RecyclingDrafter
    )
    made = samplers.compiled(policy, eager, "plain", [1, 2, 4])
    histories = [
        {name: np.full((2, dim), value, np.float32) for name, dim in policy.observations.keys.items()}
        for value in (0.0, 0.1, 0.2)
    ]
    wanted, got = (
        engine.run(
            [
                (EpisodeState.start(seed), InferenceRequest(InferenceKind.WHOLE, history))
                for seed, history in enumerate(histories)
            ]
        )
        for engine in (BatchedPolicy(policy, eager(policy)), BatchedPolicy(policy, made))
    )
    for one, other in zip(wanted, got, strict=True):
        assert one.error is None and other.error is None
        np.testing.assert_allclose(other.actions, one.actions, atol=1e-5)
        assert (other.passes, other.acceptance) == (one.passes, one.acceptance)


@pytest.mark.parametrize("sizes", ["[]", "[1,4]"])
def test_robots_do_not_wait_for_a_compiler(sizes: str) -> None:
    with pytest.raises(ConfigError, match="end the list with max_batch"):
        serve(["compile=plain", "max_batch=8", f"batches={sizes}"])


@pytest.mark.parametrize(("command", "predrafts"), [("rollout", False), ("evaluate", False), ("control", True)])
def test_one_switch_compiles_all_samplers_alike(policy: DiffusionPolicy, command: str, predrafts: bool) -> None:
    for name, kind in (("free_block20", CompiledSampler), ("ddim5", CompiledChain)):
        plain = recipe_of(compose(command, [f"sampler={name}"]), predrafts)
        assert plain == compose(command, [f"sampler={name}"]).sampler
        recipe = recipe_of(compose(command, [f"sampler={name}", "compile=plain", "num_envs=3"]), predrafts)
        made = instantiate(recipe)(policy)
        assert isinstance(made, kind) and made.batches == [1, 3] and made.backend == "plain"
    recipe = recipe_of(compose(command, ["sampler=free_adaptive", "compile=plain"]), predrafts)
    with pytest.raises(ValueError, match="fixed shapes"):
        instantiate(recipe)(policy)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("ddpm", {"num_inference_steps": 500}, "num_inference_steps=500 is more than num_train_timesteps=100"),
        ("ddim10", {"num_inference_steps": 101}, "num_inference_steps=101 is more than num_train_timesteps=100"),
        ("free_block", {"num_inference_steps": 0}, "num_inference_steps=0"),
        ("free_block", {"window": 0}, "window=0; draft at least 1 step"),
        ("free_block", {"window": "long"}, "window='long'; give a number of steps"),
    ],
)
def test_settings_that_cannot_be_are_named(
    policy: DiffusionPolicy, name: str, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        samplers.load(name, policy, **settings)


def test_settings_of_another_type_are_named() -> None:
    """In a process of its own: where types are checked at run time, as in these tests, the check comes before ours."""
    code = f"""
import specpolicy
policy = specpolicy.load_policy({str(ROOT / "checkpoints" / "square")!r})
for name, settings in (("recycled", {{"window": 2.5}}), ("auto", {{"num_inference_steps": "many"}})):
    try:
        specpolicy.samplers.load(name, policy, **settings)
    except ValueError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    window, steps = done.stdout.splitlines()
    assert window.startswith("window=2.5; expected a whole number of steps")
    assert steps.startswith("num_inference_steps='many': expected a whole number")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["ddpm20", "recycled20", "ddim10"])
def test_policies_in_other_precisions(name: str, dtype: torch.dtype) -> None:
    made = DiffusionPolicy.from_pretrained(ROOT / "checkpoints" / "square").to(dtype)
    with np.load(ROOT / "tests" / "policies" / "square_observations.npz") as arrays:
        observation = {key: arrays[key][:1] for key in arrays.files}
    chunk = made.predict_action(observation, samplers.load(name, made), [torch.Generator().manual_seed(0)])
    assert chunk.actions.dtype == np.float32
    assert np.isfinite(chunk.actions).all()


def test_settings_may_be_objects_and_numpy_numbers(policy: DiffusionPolicy) -> None:
    verifier = ResidualVerifier()
    made = samplers.load("free_block", policy, window=np.int64(7), verifier=verifier, num_inference_steps=np.int32(20))
    assert made.verifier is verifier and made.process.num_steps == 20 and int(made.table.max()) == 7
    with pytest.raises(ConfigError, match=r"'free_block' has no setting 'windw'; it has num_inference_steps, drafter"):
        samplers.load("free_block", policy, windw=3)


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("free_block", {"analytic": "no"}, "analytic='no': expected true or false"),
        ("ddim10", {"eta": -1}, "eta=-1: expected a finite number, at least 0, at most 1"),
        ("ddim10", {"eta": "0"}, "eta='0': expected a finite number"),
        ("ddim10", {"eta": float("nan")}, "eta=nan: expected a finite number"),
        ("recycled", {"initial_guess": "none"}, "initial_guess='none': expected one of fitted, zero"),
    ],
)
def test_settings_are_checked_where_a_sampler_is_made(
    policy: DiffusionPolicy, name: str, settings: dict[str, object], says: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=re.escape(says)):
        samplers.load(name, policy, **settings)


def test_a_guess_may_be_an_object_and_a_path_is_no_policy(policy: DiffusionPolicy) -> None:
    assert isinstance(samplers.load("recycled", policy, initial_guess=ZeroGuess()).initial_guess, ZeroGuess)
    with pytest.raises(TypeError, match=r"policy is a str; expected what specpolicy\.load_policy"):
        samplers.load("ddpm", "checkpoints/square")  # type: ignore[arg-type]
