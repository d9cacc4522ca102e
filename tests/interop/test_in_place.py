"""Acceleration of live policies of other packages, in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from live_policies import (
    ACTIONS,
    HORIZON,
    OBSERVED,
    STEPS,
    DiffusionPolicy,
    DiffusionPolicyUNet,
    DiffusionTransformerLowdimPolicy,
    DiffusionUnetLowdimPolicy,
    RolloutPolicy,
    ddim,
    ddpm,
)
from torch import Tensor

from specpolicy import BlockVerifier, FreeDrafter, ReverseProcess, SequentialSampler, SpeculativeSampler
from specpolicy.interop.in_place import UnsupportedPolicy, accelerate_policy

OBS = torch.randn(2, STEPS, OBSERVED, generator=torch.Generator().manual_seed(3))
EEF = {"grip": OBS[..., 2:], "eef": OBS[..., :2], "unused": torch.zeros(2, STEPS, 9)}


def _lerobot(policy: Any) -> Tensor:
    return policy.diffusion.generate_actions({"observation.state": OBS})


def _stanford(policy: Any) -> Tensor:
    return policy.predict_action({"obs": OBS})["action"]


def _robomimic(policy: Any) -> Tensor:
    # observations are not stacked where the policy sees but one step
    obs = EEF if policy.frames > 1 else {key: part[:, -1] for key, part in EEF.items()}
    return policy._get_action_trajectory(obs_dict=obs)


CASES: dict[str, tuple[Callable[[], Any], Callable[[Any], Tensor]]] = {
    "lerobot": (DiffusionPolicy, _lerobot),
    "unet": (DiffusionUnetLowdimPolicy, _stanford),
    "inpainting": (lambda: DiffusionUnetLowdimPolicy(inpainting=True), _stanford),
    "transformer": (DiffusionTransformerLowdimPolicy, _stanford),
    "robomimic": (DiffusionPolicyUNet, _robomimic),
    "robomimic of one step": (lambda: DiffusionPolicyUNet(frames=1), _robomimic),
    "robomimic without average": (lambda: DiffusionPolicyUNet(averaged=False), _robomimic),
}


@pytest.mark.parametrize("name", CASES)
def test_the_same_chain_with_the_same_random_numbers(name: str) -> None:
    """Noise, conditions, masks and slices are the package's own: a sequential sampler repeats its answer."""
    make, ask = CASES[name]
    policy = make()
    torch.manual_seed(0)
    expected = ask(policy)
    with torch.no_grad(), accelerate_policy(policy, SequentialSampler) as fast:
        torch.manual_seed(0)
        torch.testing.assert_close(ask(policy), expected, atol=2e-5, rtol=1e-4)
    assert fast.exact and fast.account.evaluations_per_chunk == 100
    torch.manual_seed(0)
    torch.testing.assert_close(ask(policy), expected)


@pytest.mark.parametrize("name", CASES)
def test_fewer_evaluations_and_an_account(name: str) -> None:
    make, ask = CASES[name]
    policy = make()
    with torch.no_grad(), accelerate_policy(policy) as fast:
        assert "no chunk yet" in str(fast.account)
        for _ in range(3):
            ask(policy)
    account = fast.account
    assert fast.exact and account.chunks == 6
    assert 2 <= account.evaluations_per_chunk < 50
    assert 0 < account.acceptance <= 1 and account.rows > account.network_evaluations
    assert "instead of 100" in str(account)
    account.clear()
    assert account.chunks == 0 and account.latest is None


@pytest.mark.parametrize("name", CASES)
def test_the_distribution_stays(name: str) -> None:
    """Means and variances of many actions agree with the package's own."""
    make, ask = CASES[name]
    policy = make()
    many = {"OBS": OBS[:1].expand(1200, -1, -1)}
    before, globals()["OBS"] = OBS, many["OBS"]
    eef = dict(EEF)
    EEF.update({key: part[:1].expand(1200, -1, -1) for key, part in EEF.items()})
    try:
        torch.manual_seed(1)
        own = ask(policy)
        with torch.no_grad(), accelerate_policy(policy):
            fast = ask(policy)
    finally:
        globals()["OBS"] = before
        EEF.update(eef)
    error = (own.var(0) / 1200 + fast.var(0) / 1200).sqrt()
    assert ((own.mean(0) - fast.mean(0)).abs() < 4.5 * error + 1e-5).all()
    ratio = fast.std(0) / own.std(0)
    assert ((ratio - 1).abs() < 0.13).all()


def test_restoring() -> None:
    policy = DiffusionPolicy()
    before = policy.diffusion.conditional_sample
    fast = accelerate_policy(policy)
    assert policy.diffusion.conditional_sample is not before
    with pytest.raises(UnsupportedPolicy, match="accelerated already"):
        accelerate_policy(policy)
    assert "conditional_sample" not in policy.diffusion.state_dict()
    fast.restore()
    fast.restore()
    assert policy.diffusion.conditional_sample == before and "conditional_sample" not in vars(policy.diffusion)

    def wrapped(*args: Any, **kwargs: Any) -> Tensor:
        return before(*args, **kwargs)

    policy.diffusion.conditional_sample = wrapped  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt), accelerate_policy(policy):
        raise KeyboardInterrupt
    assert policy.diffusion.conditional_sample is wrapped


def test_actions_are_taken_from_the_same_queue() -> None:
    policy = DiffusionPolicy()
    with accelerate_policy(policy) as fast:
        actions = [policy.select_action({"observation.state": OBS}) for _ in range(9)]
    assert {tuple(action.shape) for action in actions} == {(2, ACTIONS)}
    assert fast.account.chunks == 3 * 2


def test_rollout_policies_are_accelerated_where_they_wrap() -> None:
    algorithm = DiffusionPolicyUNet()
    policy = RolloutPolicy(algorithm)
    with accelerate_policy(policy) as fast:
        for _ in range(4):
            policy(EEF)
        assert "_get_action_trajectory" in vars(algorithm)
    assert fast.account.chunks == 2 and "_get_action_trajectory" not in vars(algorithm)


def test_noise_and_generators_of_the_caller() -> None:
    policy = DiffusionPolicy()
    noise = torch.randn(2, HORIZON, ACTIONS)
    with torch.no_grad(), accelerate_policy(policy):
        ask = policy.diffusion.conditional_sample
        a, b = (ask(2, OBS.flatten(1), torch.Generator().manual_seed(7), noise) for _ in range(2))
        c = ask(2, OBS.flatten(1), torch.Generator().manual_seed(8), noise)
    assert torch.equal(a, b) and not torch.equal(a, c)


@pytest.mark.parametrize(
    "make", [lambda: DiffusionPolicy(ddim(), 10), lambda: DiffusionUnetLowdimPolicy(ddim(), 8),
             lambda: DiffusionPolicyUNet(deterministic=True)],
)  # fmt: skip
def test_deterministic_schedulers_are_refused_with_what_can_be_done(make: Callable[[], Any]) -> None:
    policy = make()
    with pytest.raises(UnsupportedPolicy, match=r'DDIM steps.*chain="ddpm".*100-step.*approximate'):
        accelerate_policy(policy)
    with torch.no_grad(), accelerate_policy(policy, chain="ddpm") as fast:
        (
            _lerobot
            if isinstance(policy, DiffusionPolicy)
            else _robomimic
            if isinstance(policy, DiffusionPolicyUNet)
            else _stanford
        )(policy)
    assert fast.account.steps == 100 and not fast.exact
    assert "100-step DDPM chain" in fast.notes[0]


def test_few_ddpm_steps_are_the_corrected_chain() -> None:
    policy = DiffusionPolicy(ddpm(), 20)
    torch.manual_seed(0)
    expected = _lerobot(policy)
    with torch.no_grad(), accelerate_policy(policy, SequentialSampler) as fast:
        torch.manual_seed(0)
        torch.testing.assert_close(_lerobot(policy), expected, atol=2e-5, rtol=1e-4)
    assert fast.exact and fast.account.steps == 20 and not fast.notes


class OldConfig(dict):
    """A scheduler's configuration as diffusers 0.11.1 had it."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def test_schedulers_of_old_diffusers() -> None:
    policy = DiffusionUnetLowdimPolicy()
    new = policy.noise_scheduler
    names = (
        "num_train_timesteps",
        "beta_start",
        "beta_end",
        "beta_schedule",
        "trained_betas",
        "variance_type",
        "clip_sample",
        "prediction_type",
    )
    old = type("DDPMScheduler", (), {"config": OldConfig({name: new.config[name] for name in names})})()
    policy.noise_scheduler, policy.num_inference_steps = old, 100
    with torch.no_grad(), accelerate_policy(policy) as fast:
        _stanford(policy)
    assert fast.exact and not fast.notes
    policy.num_inference_steps = 16
    with accelerate_policy(policy) as fast:
        assert "old diffusers" in fast.notes[0]


def test_what_is_refused() -> None:
    with pytest.raises(UnsupportedPolicy, match="LeRobot's DiffusionPolicy"):
        accelerate_policy(torch.nn.Linear(1, 1))
    with pytest.raises(UnsupportedPolicy, match="variance"):
        accelerate_policy(DiffusionPolicy(ddpm(variance_type="learned")))
    with pytest.raises(UnsupportedPolicy, match="chain='ddim'"):
        accelerate_policy(DiffusionPolicy(), chain="ddim")
    with pytest.raises(UnsupportedPolicy, match="sampler='fast'"):
        accelerate_policy(DiffusionPolicy(), "fast")
    other = SpeculativeSampler(ReverseProcess.from_scheduler(ddpm(), 50), FreeDrafter(), BlockVerifier())
    with pytest.raises(UnsupportedPolicy, match=r"another chain \(50 steps\)"):
        accelerate_policy(DiffusionPolicy(), other)
    policy = DiffusionUnetLowdimPolicy(eta=0.5)
    with accelerate_policy(policy), pytest.raises(UnsupportedPolicy, match="eta"):
        _stanford(policy)


@pytest.mark.parametrize(("name", "exact"), [("ddpm", True), ("asd", True), ("free_block20", True), ("ddim10", False)])
def test_samplers_by_name(name: str, exact: bool) -> None:
    """Whatever steps a name stands for, exact samplers are of the policy's own chain."""
    policy = DiffusionPolicy()
    with torch.no_grad(), accelerate_policy(policy, name) as fast:
        _lerobot(policy)
    account = fast.account
    assert fast.exact is exact and account.steps == 100
    assert account.evaluations_per_chunk == {"ddpm": 100, "ddim10": 10}.get(name, account.evaluations_per_chunk)
    with pytest.raises(UnsupportedPolicy, match="analytic10"):
        accelerate_policy(policy, "analytic10")


def test_a_sampler_of_the_very_chain() -> None:
    mine = SpeculativeSampler(ReverseProcess.from_scheduler(ddpm(), 100), FreeDrafter(), BlockVerifier(), window=10)
    policy = DiffusionPolicy()
    with torch.no_grad(), accelerate_policy(policy, mine) as fast:
        _lerobot(policy)
    assert fast.sampler is mine and fast.account.evaluations_per_chunk < 100
