"""What is computed once a policy and once a chunk: the same numbers, on every path, and never out of date."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import specpolicy
from specpolicy import FreeDrafter, LinearGuess, ReverseProcess, SequentialSampler, SpeculativeSampler
from specpolicy.policies.config import PolicyConfig
from specpolicy.policies.diffusion_policy import DiffusionPolicy
from specpolicy.policies.networks import NETWORKS, SeparableNetwork, build_network
from specpolicy.speculative.denoiser import PreparedCondition, prepared, raw_condition

KINDS: dict[str, dict[str, Any]] = {
    "unet1d": {"name": "unet1d", "channels": (16, 32), "timestep_dim": 16, "groups": 4},
    "mlp": {"name": "mlp", "width": 32, "blocks": 2, "embed": 16, "timestep_dim": 8},
    "mlp with octaves": {"name": "mlp", "width": 32, "blocks": 2, "embed": 16, "timestep_dim": 8, "octaves": 3},
    "transformer": {"name": "transformer", "width": 16, "layers": 2, "heads": 2, "octaves": 2},
    "causal transformer": {"name": "transformer", "width": 16, "layers": 2, "heads": 2, "causal": True,
                           "memory_mask": True, "timestep_mlp": False},
    "encoder": {"name": "transformer", "width": 16, "layers": 1, "heads": 2, "encoder_layers": 2},
}  # fmt: skip


def network(kind: str, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    made = build_network(KINDS[kind], action_dim=3, cond_dim=10, horizon=8)
    with torch.no_grad():  # biases start at 0, and would hide that one is forgotten or counted twice
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made.eval()


def policy(kind: str) -> DiffusionPolicy:
    made = DiffusionPolicy(
        PolicyConfig(
            task="square", observations={"state": 5}, action_dim=3, n_obs_steps=2, horizon=8, n_action_steps=4,
            network=KINDS[kind], scheduler={"num_train_timesteps": 50, "beta_schedule": "squaredcos_cap_v2"},
        )
    )  # fmt: skip
    made.network = network(kind)
    return made.eval()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-5)])
@torch.no_grad()
def test_rows_of_the_tables_give_what_the_network_gives(kind: str, dtype: torch.dtype, tolerance: float) -> None:
    made = network(kind).to(dtype)
    assert isinstance(made, SeparableNetwork)
    x, cond = torch.randn(7, 8, 3, dtype=dtype), torch.rand(2, 10, dtype=dtype) * 2 - 1
    timestep, owner = torch.tensor([0, 1, 17, 49, 30, 30, 2]), torch.tensor([0, 1, 0, 1, 1, 0, 0])
    wanted = made(x, timestep, cond[owner])
    got = made.forward_from(x, made.timestep_table(torch.arange(50))[timestep], made.condition(cond)[owner])
    assert got.dtype == dtype
    assert (got - wanted).abs().max() <= tolerance * wanted.abs().max()


def test_the_test_is_of_all_networks() -> None:
    assert {arguments["name"] for arguments in KINDS.values()} == set(NETWORKS)


class Counting:
    """A policy that says what it is called with."""

    def __init__(self, inner: DiffusionPolicy, prepares: bool) -> None:
        self.inner, self.seen = inner, list[bool]()
        if prepares:
            self.prepare_condition = inner.prepare_condition

    def __call__(self, x: Tensor, timestep: Tensor, cond: Any) -> Tensor:
        self.seen.append(isinstance(cond, PreparedCondition))
        output: Tensor = self.inner(x, timestep, cond)
        return output


def samplers(made: DiffusionPolicy) -> dict[str, Any]:
    process = ReverseProcess.from_scheduler(made.training_scheduler, 10)
    guess = LinearGuess(0.1 * torch.randn(24, 10), torch.zeros(24))
    speculative = SpeculativeSampler(process, FreeDrafter(), window=4, initial_guess=guess)
    sequential = SequentialSampler(process)
    return {
        "speculative": speculative,
        "sequential": sequential,
        "static rounds": specpolicy.compile_sampler(speculative, "plain", batches=[4]),
        "static steps": specpolicy.compile_sampler(sequential, "plain", batches=[4]),
        "scheduler": specpolicy.SchedulerSampler(made.training_scheduler, 10),
    }


@pytest.mark.parametrize("name", ["speculative", "sequential", "static rounds", "static steps", "scheduler"])
@pytest.mark.parametrize("kind", ["unet1d", "mlp", "transformer"])
def test_every_sampler_evaluates_prepared_rows_and_samples_the_same(kind: str, name: str) -> None:
    made = policy(kind)
    torch.manual_seed(1)
    sampler = samplers(made)[name]
    noise, cond = torch.randn(3, 8, 3), torch.rand(3, 10) * 2 - 1
    results, seen = {}, {}
    for prepares in (True, False):
        denoiser = Counting(made, prepares)
        generators = [torch.Generator().manual_seed(row) for row in range(3)]
        results[prepares] = sampler(denoiser, noise, cond=cond, generator=generators)
        seen[prepares] = denoiser.seen
    assert all(seen[True]) and not any(seen[False]) and len(seen[True]) == len(seen[False]) > 0
    torch.testing.assert_close(results[True].sample, results[False].sample, rtol=1e-4, atol=1e-4)
    assert torch.equal(results[True].passes, results[False].passes)


def test_denoisers_that_prepare_nothing_are_called_as_ever() -> None:
    cond = {"a": torch.zeros(2, 3)}
    assert prepared(lambda x, timestep, cond: x, cond) is cond
    assert raw_condition(cond) is cond


@torch.no_grad()
def test_inpainted_observations_are_seen_by_the_network_still() -> None:
    made = DiffusionPolicy(
        PolicyConfig(
            task="square", observations={"state": 5}, action_dim=3, n_obs_steps=2, horizon=8, n_action_steps=4,
            network=KINDS["mlp"], inpainting=True,
        )
    ).eval()  # fmt: skip
    cond, x, timestep = torch.rand(2, 10), torch.randn(2, *made.event_shape), torch.tensor([3, 40])
    ready = made.prepare_condition(cond)
    assert raw_condition(ready) is cond
    torch.testing.assert_close(made(x, timestep, ready), made(x, timestep, cond))
    other = made.prepare_condition(cond + 1)
    assert (made(x, timestep, ready) - made(x, timestep, other)).abs().max() > 1e-3


def test_weights_that_changed_make_new_tables() -> None:
    made, x, cond = policy("mlp"), torch.randn(2, 8, 3), torch.rand(2, 10)
    timestep = torch.tensor([3, 40])

    def difference() -> float:
        with torch.no_grad():
            return float((made(x, timestep, made.prepare_condition(cond)) - made(x, timestep, cond)).abs().max())

    assert difference() < 1e-5
    with torch.no_grad():
        made.network.embed[0].weight.mul_(3)  # type: ignore[index,union-attr,operator]
    assert difference() < 1e-5
    made.load_state_dict(DiffusionPolicy(made.config).state_dict())
    assert difference() < 1e-5
    made.double()
    x, cond = x.double(), cond.double()
    assert difference() < 1e-12
    made.network.embed[0].weight.data.mul_(3)  # type: ignore[index,union-attr,operator]
    assert difference() > 1e-3, "a change that torch does not see: forget() is there for it"
    made._tables.forget()
    assert difference() < 1e-12


def test_the_table_is_computed_once_for_many_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    made, calls = policy("mlp"), []
    table = made.network.timestep_table
    monkeypatch.setattr(made.network, "timestep_table", lambda t: calls.append(len(t)) or table(t))
    for _ in range(3):
        with torch.inference_mode():
            made.prepare_condition(torch.rand(1, 10))
    assert calls == [1, 50]


def test_training_gradients_and_half_precision_keep_the_plain_condition() -> None:
    made, cond = policy("unet1d"), torch.rand(2, 10)
    assert made.prepare_condition(cond) is cond, "gradients are enabled"
    with torch.no_grad():
        assert isinstance(made.prepare_condition(cond), PreparedCondition)
        half = cond.bfloat16()
        assert made.prepare_condition(half) is half
        assert made.train().prepare_condition(cond) is cond
        made.network = nn.Identity()
        assert made.eval().prepare_condition(cond) is cond, "a network that cannot"


def test_a_copy_of_a_policy_has_tables_of_its_own() -> None:
    made, cond = policy("mlp"), torch.rand(1, 10)
    with torch.no_grad():
        made.prepare_condition(cond)
        other = copy.deepcopy(made)
        other.network.embed[0].bias.add_(1.0)  # type: ignore[index,union-attr,operator]
        x, timestep = torch.randn(1, 8, 3), torch.tensor([5])
        torch.testing.assert_close(other(x, timestep, other.prepare_condition(cond)), other(x, timestep, cond))
        torch.testing.assert_close(made(x, timestep, made.prepare_condition(cond)), made(x, timestep, cond))


def test_timesteps_between_the_rows_are_computed() -> None:
    made, cond, x = policy("unet1d"), torch.rand(1, 10), torch.randn(1, 8, 3)
    with torch.no_grad():
        timestep = torch.tensor([12.5])
        torch.testing.assert_close(made(x, timestep, made.prepare_condition(cond)), made(x, timestep, cond))
