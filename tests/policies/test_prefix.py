"""Chunks that continue actions under way: exact given the prefix, refused where it does not fit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sampler_kinds import SAMPLER_KINDS

from specpolicy import ReverseProcess, ZeroGuess
from specpolicy.policies.config import PolicyConfig
from specpolicy.policies.diffusion_policy import DiffusionPolicy
from specpolicy.policies.normalizer import MinMaxNormalizer
from specpolicy.policies.prefix import PrefixError, PrefixGuess
from specpolicy.speculative.denoiser import PreparedCondition
from specpolicy.speculative.exactness import check_exactness

NETWORKS: dict[str, dict[str, Any]] = {
    "mlp": {"name": "mlp", "width": 32, "blocks": 2, "embed": 16, "timestep_dim": 8, "octaves": 2},
    "unet1d": {"name": "unet1d", "channels": [16, 32], "timestep_dim": 16, "groups": 4},
    "transformer": {"name": "transformer", "width": 16, "layers": 2, "heads": 2},
    "encoder": {"name": "transformer", "width": 16, "layers": 1, "heads": 2, "encoder_layers": 2},
}
D, ACTION, HORIZON = 4, 3, 8
LENGTHS = (0, 1, 3, D)


def policy(network: str = "mlp", prediction_type: str = "v_prediction", **changes: Any) -> DiffusionPolicy:
    torch.manual_seed(0)
    scheduler = {"num_train_timesteps": 20, "beta_schedule": "squaredcos_cap_v2", "prediction_type": prediction_type}
    settings: dict[str, Any] = {
        "task": "toy", "observations": {"state": 5}, "action_dim": ACTION, "n_obs_steps": 2, "horizon": HORIZON,
        "n_action_steps": 4, "network": NETWORKS[network], "scheduler": scheduler, "max_delay": D,
    }  # fmt: skip
    made = DiffusionPolicy(PolicyConfig(**(settings | changes))).eval()
    with torch.no_grad():
        for parameter in made.parameters():  # some weights begin at zero, and would hide what they belong to
            parameter.add_(0.1 * torch.randn_like(parameter))
    made.action_normalizer = MinMaxNormalizer(torch.tensor([-1.0, 0.0, -4.0]), torch.tensor([1.0, 2.0, 8.0]))
    return made.requires_grad_(False)


def observed(count: int, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    return {"state": np.random.default_rng(seed).uniform(-1, 1, (count, 2, 5)).astype(np.float32)}


def under_way(*lengths: int) -> list[NDArray[np.float64]]:
    random = np.random.default_rng(1)
    return [random.uniform([-1.0, 0.0, -4.0], [1.0, 2.0, 8.0], (length, ACTION)) for length in lengths]


def process_of(made: DiffusionPolicy) -> ReverseProcess:
    return ReverseProcess.from_scheduler(made.scheduler)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", SAMPLER_KINDS)
def test_every_sampler_is_exact_given_a_prefix(name: str, length: int) -> None:
    made, count = policy(), 300
    process = process_of(made)
    cond = made.encode(observed(count), under_way(*[length] * count))
    generator = torch.Generator().manual_seed(length)
    noise = torch.randn(count, HORIZON, ACTION, generator=generator)
    with torch.inference_mode():
        result = SAMPLER_KINDS[name](process)(made, noise, cond=cond, generator=generator, record=True)
        assert result.trajectory is not None
        x0 = [  # what the network itself says at the states that were visited
            process.x0(x, made(x, process.timesteps[k].expand(count), cond), torch.full((count,), k))
            for k, x in enumerate(result.trajectory[:-1])
        ]
    report = check_exactness(process, replace(result, x0=torch.stack(x0)))
    assert report.smallest > 1e-3, report
    assert report.count > 10_000


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("network", NETWORKS)
def test_a_chunk_begins_with_the_actions_under_way(network: str, prediction_type: str) -> None:
    made, prefixes = policy(network, prediction_type), under_way(*LENGTHS)
    sampler = SAMPLER_KINDS["recycled"](process_of(made))
    chunk = made.predict_action(observed(4), sampler, torch.Generator().manual_seed(0), prefix=prefixes)
    for prediction, prefix in zip(chunk.prediction, prefixes, strict=True):
        np.testing.assert_allclose(prediction[1 : 1 + len(prefix)], prefix, atol=2e-3)
        assert np.abs(prediction[1 + len(prefix)] - prefix[-1]).max() > 0.01 if len(prefix) else True


def test_a_pre_draft_under_another_observation_is_finished_under_the_same_prefix() -> None:
    made, prefixes, generator = policy(), under_way(3, 1), torch.Generator().manual_seed(0)
    sampler = SAMPLER_KINDS["recycled"](process_of(made))
    draft = made.predraft(observed(2, seed=5), sampler, generator, prefix=prefixes)
    chunk = made.predict_action(observed(2), sampler, generator, predraft=draft, prefix=prefixes)
    for prediction, prefix in zip(chunk.prediction, prefixes, strict=True):
        np.testing.assert_allclose(prediction[1 : 1 + len(prefix)], prefix, atol=2e-3)


def test_a_batch_of_mixed_lengths_is_its_entries_one_by_one() -> None:
    made, prefixes, window = policy(), under_way(*LENGTHS), observed(4)
    sampler = SAMPLER_KINDS["free"](process_of(made))
    generators = [torch.Generator().manual_seed(seed) for seed in range(4)]
    together = made.predict_action(window, sampler, generators, prefix=prefixes)
    for row, prefix in enumerate(prefixes):
        own = torch.Generator().manual_seed(row)
        single = made.predict_action({"state": window["state"][row : row + 1]}, sampler, [own], prefix=[prefix])
        np.testing.assert_allclose(together.prediction[row], single.prediction[0], atol=1e-3)


@pytest.mark.parametrize("network", NETWORKS)
@torch.inference_mode()
def test_the_network_sees_known_actions_clean_and_knows_which_they_are(network: str) -> None:
    made, timestep = policy(network), torch.tensor([3, 10, 19, 0])
    x, cond = torch.randn(4, HORIZON, ACTION), made.encode(observed(4), under_way(*[3] * 4))
    output = made(x, timestep, cond)
    other = x.clone()
    other[:, 1:4] += 1.0  # the chain's own noise at known actions
    torch.testing.assert_close(made(other, timestep, cond)[:, 4:], output[:, 4:])
    told_less = made.encode(observed(4), [each[:2] for each in under_way(*[3] * 4)])
    assert (made(x, timestep, told_less)[:, 4:] - output[:, 4:]).abs().max() > 1e-3
    ready = made.prepare_condition(cond)
    assert isinstance(ready, PreparedCondition)
    torch.testing.assert_close(made(x, timestep, ready), output, rtol=1e-4, atol=1e-5)


def test_initial_guesses_see_the_observations_alone_and_are_overwritten() -> None:
    made, prefixes = policy(), under_way(0, 2)
    assert made.prefix is not None
    cond = made.encode(observed(2), prefixes)
    assert cond.shape[1] == made.cond_dim == 2 * 5 + D * (ACTION + 1)

    class Seen(ZeroGuess):
        def x0(self, x: torch.Tensor, cond: Any) -> torch.Tensor:
            assert cond.shape == (2, 10)
            return super().x0(x, cond)

    guess = PrefixGuess(Seen(), made.prefix).x0(torch.randn(2, HORIZON, ACTION), cond)
    assert not guess[0].any() and not guess[1, 3:].any()
    known = made.action_normalizer.normalize(torch.from_numpy(prefixes[1]).float())
    torch.testing.assert_close(guess[1, 1:3], known)


def test_no_prefix_and_an_empty_one_are_the_same() -> None:
    made = policy()
    torch.testing.assert_close(made.encode(observed(2)), made.encode(observed(2), [None, np.zeros((0, ACTION))]))


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        ([np.zeros((D + 1, ACTION))], "5 actions under way; this policy was trained for at most max_delay=4"),
        ([np.zeros((1, 7))], r"a prefix of shape \(1, 7\).*expected"),
        ([np.zeros(ACTION)], "expected"),
        ([np.full((1, ACTION), "a")], "type <U1"),
        ([np.full((1, ACTION), np.nan)], "NaN, infinity"),
        ([np.full((1, ACTION), 1e300)], "NaN, infinity"),
        ([None, None], "2 prefixes for 1 observations"),
    ],
)
def test_prefixes_that_do_not_fit_are_refused(prefix: Any, message: str) -> None:
    with pytest.raises(PrefixError, match=message):
        policy().encode(observed(1), prefix)


def test_a_policy_that_was_not_trained_for_delays_says_so() -> None:
    plain = policy(max_delay=0)
    with pytest.raises(PrefixError, match="takes no prefix of actions under way: it was not trained for delays"):
        plain.encode(observed(1), under_way(2))
    torch.testing.assert_close(plain.encode(observed(1), [None]), plain.encode(observed(1)))


def test_configurations() -> None:
    config = policy().config
    assert PolicyConfig.from_dict(config.to_dict()) == config
    old = policy(max_delay=0).config
    assert "max_delay" not in old.to_dict()
    with pytest.raises(ValueError, match="max_delay: the teacher's is 0, the policy's 4"):
        config.check_interchangeable(old, "teacher")
    with pytest.raises(ValueError, match=r"max_delay=7 from step 1 on leaves nothing to predict.*at most 6"):
        replace(config, max_delay=7)
    with pytest.raises(ValueError, match="max_delay"):
        PolicyConfig.from_dict(config.to_dict() | {"max_delay": -1})
    with pytest.raises(ValueError, match="max_delay: not with inpainting"):
        replace(config, inpainting=True)
